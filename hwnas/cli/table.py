"""``hwnas table``: look at a latency table, and ask whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hwnas.cli.choosing import choose_space, space_options
from hwnas.cli.console import result
from hwnas.cli.data import image_shape
from hwnas.cli.machine import Machine, machine_options
from hwnas.cli.names import find_space
from hwnas.cli.settings import parse, sort_out


@click.group("table")
def command() -> None:
    """Look at a latency table, or check that it fits."""


@command.command("show")
@click.argument("table", type=click.Path(path_type=Path))
@click.option(
    "--rows", type=click.IntRange(0), default=10, show_default=True, help="How many of the slowest rows."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the header and all rows.")
def show(table: Path, rows: int, as_json: bool) -> None:
    """Print under which conditions TABLE was measured, and its slowest rows."""
    from hwnas.latency.table import LatencyTable

    found = LatencyTable.load(table)
    header = found.header
    slowest = sorted(found.rows.items(), key=lambda row: -row[1].median_ms)
    lines = [
        f"device     {header.device.name} ({header.device.alias})",
        f"runtime    {header.backend} {header.precision}, {header.threads} threads",
        f"input      {'x'.join(map(str, header.input_shape))}, batch {header.batch}",
        f"created    {header.created}",
        f"versions   {', '.join(f'{name} {version}' for name, version in header.versions.items())}",
        f"rows       {len(found.rows)}",
        "",
        *(f"{timing.median_ms:9.4f} ms ± {timing.spread_ms:.4f}  {key}" for key, timing in slowest[:rows]),
    ]
    values = {
        "header": header.model_dump(mode="json"),
        "rows": {str(key): timing.model_dump(mode="json") for key, timing in found.rows.items()},
    }
    result(values, lines, as_json=as_json)


@command.command("check")
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("space", required=False)
@space_options
@machine_options
def check(
    table: Path,
    space: str | None,
    preset: str | None,
    data: str | None,
    settings: Sequence[str],
    device: str | None,
    backend: str | None,
    precision: str | None,
    threads: int | None,
) -> None:
    """Check that TABLE is sound, was measured as asked, and (with SPACE) has all rows the space needs."""
    from hwnas.latency.table import LatencyTable

    found = LatencyTable.load(table)
    Machine(device, backend, precision, threads).require(found)
    said = f"{table}: sound, {len(found.rows)} rows"
    if space is not None:
        fields = sort_out(parse(settings), {"space": list(find_space(space).model_fields)})["space"]
        chosen = choose_space(space, preset, fields, data).space
        found.check(input_shape=image_shape(chosen))
        keys = chosen.record(batch=found.header.batch).keys()
        found.require(keys)
        said += f", all {len(keys)} of {chosen.name}"
    click.echo(said)
