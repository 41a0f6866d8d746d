"""``hwnas profile``: fill a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hwnas.cli.choosing import choose_space, space_options
from hwnas.cli.console import note, result
from hwnas.cli.machine import Machine, default_table_path, machine_options, profile_space
from hwnas.cli.names import find_space
from hwnas.cli.settings import changed, parse, sort_out, validated


@click.command("profile")
@click.argument("space", required=False)
@space_options
@machine_options
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in one inference."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The table's file [default: in tables/]."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    space: str | None,
    preset: str | None,
    data: str | None,
    settings: Sequence[str],
    device: str | None,
    backend: str | None,
    precision: str | None,
    threads: int | None,
    batch: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure every op of SPACE (default: autortnet) and write a table; run again to go on where it stopped.

    --set also takes backend.NAME (backend.provider=tensorrt) and fields of the stopping rule.
    """
    from hwnas.latency.profile import ProfileSettings

    fields = list(find_space(space or "autortnet").model_fields)
    homes = sort_out(
        parse(settings), {"space": fields, "profile": list(ProfileSettings.model_fields), "backend": None}
    )
    measuring = Machine(device, backend, precision, threads).make(**homes["backend"])
    chosen = choose_space(space, preset, homes["space"], data)
    for assumption in chosen.assumed:
        note(f"assuming {assumption}")
    path = out or default_table_path(chosen.space, measuring, batch)
    reading = validated(ProfileSettings, changed({}, homes["profile"]))
    table = profile_space(chosen.space, measuring, path, batch=batch, settings=reading)
    header = table.header
    values = {
        "table": str(path),
        "rows": len(table.rows),
        "device": header.device.name,
        "backend": header.backend,
        "precision": header.precision,
        "total_ms": sum(timing.median_ms for timing in table.rows.values()),
    }
    lines = [
        f"{path}: {len(table.rows)} rows on {header.device.name}, {header.backend} {header.precision}, "
        f"batch {header.batch}",
        f"search with it:  hwnas search {chosen.space.name} --lut {path}",
    ]
    result(values, lines, as_json=as_json)
