"""``hwnas table``: tables that come along; one looked at or checked, two compared or put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.cli.app import EXIT_NOT_GOOD
from hwnas.cli.choosing import choose_space, space_options
from hwnas.cli.console import result
from hwnas.cli.data import image_shape
from hwnas.cli.machine import Machine, fields_of, machine_options
from hwnas.cli.settings import parse, sort_out
from hwnas.latency.timing import in_ms
from hwnas.names import find_space

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable


@click.group("table")
def command() -> None:
    """Look at a latency table, check that it fits, compare two, or put two together.

    TABLE is a file, or the name of a table that comes with hwnas.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show_packaged(as_json: bool) -> None:
    """Print the tables that come with hwnas: their names, which every --lut takes, and what they are for."""
    from hwnas.latency.packaged import packaged_tables
    from hwnas.latency.table import LatencyTable

    tables = {name: LatencyTable.load(path) for name, path in packaged_tables().items()}
    lines = [
        line
        for name, table in tables.items()
        for line in (
            name,
            f"  {table.header}",
            f"  {table.header.space.get('name', 'networks')}, {len(table.rows)} rows, "
            f"{table.header.protocol}, {table.header.created[:10]}; verified: {_verified(table, 'never')}",
        )
    ]
    values = {
        name: {
            "header": table.header.model_dump(mode="json"),
            "rows": len(table.rows),
            "calibrated": said.calibrated.model_dump() if (said := table.current_verification) else None,
        }
        for name, table in tables.items()
    }
    result(values, lines, as_json=as_json)


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
        f"runtime    {header.backend} {header.precision}, threads {header.threads}",
        f"input      {'x'.join(map(str, header.input_shape))}, batch {header.batch}",
        f"created    {header.created}",
        f"versions   {', '.join(f'{name} {version}' for name, version in header.versions.items())}",
        f"rows       {len(found.rows)}, {header.protocol}{_solved(found)}",
        f"verified   {_verified(found, f'never; hwnas verify {table}')}",
        *(f"remark     {remark}" for remark in header.remarks),
        "",
        *(
            f"{in_ms(timing.median_ms):>9} ms ± {in_ms(timing.spread_ms, 2)}  {key}"
            for key, timing in slowest[:rows]
        ),
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
    """Check that TABLE is sound, was measured as asked, and (with SPACE) has all rows the space needs.

    It also says what hwnas verify has found. The exit code is 2 if a check fails, and 4 if only the
    verification did: its predictions are not good enough to search by. Never verified is no failure.
    """
    from hwnas.latency.table import LatencyTable

    found = LatencyTable.load(table)
    Machine(device, backend, precision, threads).require(found)
    said = f"{table}: sound, {len(found.rows)} rows"
    if space is not None:
        fields = sort_out(parse(settings), {"space": list(find_space(space).model_fields)})["space"]
        chosen = choose_space(
            space, preset, fields, data, given_fields=fields_of(found, find_space(space).name)
        ).space
        found.check(input_shape=image_shape(chosen))
        keys = chosen.record(batch=found.header.batch).keys()
        found.require(keys)
        said += f", all {len(keys)} of {chosen.name}"
    click.echo(said)
    click.echo(f"verified: {_verified(found, f'never; hwnas verify {table}')}")
    verified = found.current_verification
    if verified is not None and not verified.is_good:
        click.echo("its predictions are not good enough to search by")
        click.get_current_context().exit(EXIT_NOT_GOOD)


@command.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=float,
    default=0.03,
    show_default=True,
    help="Relative difference that counts as none.",
)
@click.option(
    "--rows",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="How many of the rows that differ most.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def diff(first: Path, second: Path, tolerance: float, rows: int, as_json: bool) -> None:
    """Say of each row of SECOND whether it is the same as in FIRST, faster, slower, or ambiguous."""
    from hwnas.latency.comparison import compare
    from hwnas.latency.table import LatencyTable

    found = compare(LatencyTable.load(first), LatencyTable.load(second), tolerance)
    told = ", ".join(f"{count} {verdict}" for verdict, count in found.counts.items() if count)
    lines = [
        f"{found.verdict}: median ratio {found.ratio:.3f} over {len(found.rows)} rows ({told})",
        *(f"other conditions: {line}" for line in found.conditions),
        *([f"{found.only_first} rows only in {first}"] if found.only_first else []),
        *([f"{found.only_second} rows only in {second}"] if found.only_second else []),
        *(
            f"{row.verdict:<10}{row.ratio:6.3f}  {in_ms(row.first_ms):>9} → {in_ms(row.second_ms):>9} ms  "
            f"{row.key}"
            for row in found.rows[:rows]
        ),
        *([f"… and {len(found.rows) - rows} more rows (--rows N)"] if len(found.rows) > rows else []),
    ]
    values = {
        "verdict": found.verdict,
        "ratio": found.ratio,
        "counts": found.counts,
        "conditions": found.conditions,
        "rows": [
            {
                "key": str(row.key),
                "first_ms": row.first_ms,
                "second_ms": row.second_ms,
                "verdict": row.verdict,
            }
            for row in found.rows
        ],
    }
    result(values, lines, as_json=as_json)


@command.command("merge")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write."
)
def merge(tables: Sequence[Path], out: Path) -> None:
    """Put TABLES of the same conditions together: rows of all, rounds of one row pooled."""
    from hwnas.errors import InvalidInput
    from hwnas.latency.table import LatencyTable

    if out.exists():
        raise InvalidInput(f"{out} exists; name a new file (--out), or delete it.")
    merged = LatencyTable.load(tables[0])
    for path in tables[1:]:
        merged = merged.merged(LatencyTable.load(path))
    merged.save(out)
    click.echo(f"{out}: {len(merged.rows)} rows from {len(tables)} tables; verify it:  hwnas verify {out}")


def _solved(table: LatencyTable) -> str:
    header = table.header
    if not table.networks or header.left_out_percent is None:
        return ""
    left_out = f"{header.left_out_percent:.1f} %"
    return f" (solved from {len(table.networks)} networks; one left out is missed by {left_out})"


def _verified(table: LatencyTable, never: str) -> str:
    said = table.current_verification
    if said is None:
        return never
    return f"{said.created}, {said.calibrated.networks} networks: {said.calibrated}"
