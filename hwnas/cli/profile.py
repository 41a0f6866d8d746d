"""``hwnas profile``: fill a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hwnas.cli.choosing import choose_space, space_options
from hwnas.cli.console import note, result
from hwnas.cli.machine import (
    Machine,
    allow_busy_option,
    default_table_path,
    machine_options,
    profile_space,
    reading_settings,
)
from hwnas.cli.names import find_space
from hwnas.cli.settings import parse, sort_out
from hwnas.core.profiling import DEFAULT_PROTOCOL, estimate


@click.command("profile")
@click.argument("space", required=False)
@space_options
@machine_options
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in one inference."
)
@click.option(
    "--protocol",
    type=click.Choice(["probe", "isolated"]),
    default=DEFAULT_PROTOCOL,
    show_default=True,
    help="Ops alone, or solved from whole networks.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The table's file [default: in tables/]."
)
@click.option("--estimate", "only_estimate", is_flag=True, help="Only say about how long it will take.")
@allow_busy_option
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
    protocol: Any,
    out: Path | None,
    only_estimate: bool,
    allow_busy: bool,
    as_json: bool,
) -> None:
    """Measure the ops of SPACE (default: autortnet) and write a table; run again to go on where it stopped.

    --set also takes backend.NAME (backend.provider=tensorrt), rounds, processes and fields of the stopping
    rule.
    """
    from hwnas.latency.measuring import ProfileSettings

    fields = list(find_space(space or "autortnet").model_fields)
    homes = sort_out(
        parse(settings), {"space": fields, "profile": list(ProfileSettings.model_fields), "backend": None}
    )
    measuring = Machine(device, backend, precision, threads).make(**homes["backend"])
    chosen = choose_space(space, preset, homes["space"], data)
    for assumption in chosen.assumed:
        note(f"assuming {assumption}")
    path = out or default_table_path(chosen.space, measuring, batch, protocol)
    reading = reading_settings(homes["profile"], allow_busy=allow_busy)
    if only_estimate:
        preparing, taking = estimate(
            chosen.space, measuring, batch=batch, protocol=protocol, settings=reading
        )
        result(
            {"preparing_seconds": preparing, "measuring_seconds": taking},
            [f"about {preparing:.0f} s to prepare and {taking:.0f} s to measure, on {measuring}"],
            as_json=as_json,
        )
        return
    table = profile_space(chosen.space, measuring, path, batch=batch, protocol=protocol, settings=reading)
    header = table.header
    values = {
        "table": str(path),
        "rows": len(table.rows),
        "networks": len(table.networks),
        "protocol": header.protocol,
        "left_out_percent": header.left_out_percent,
        "device": header.device.name,
        "backend": header.backend,
        "precision": header.precision,
        "total_ms": sum(timing.median_ms for timing in table.rows.values()),
        "remarks": header.remarks,
    }
    solved = (
        f" solved from {len(table.networks)} networks "
        f"(one left out is missed by {header.left_out_percent:.1f} %)"
        if table.networks
        else ""
    )
    lines = [
        f"{path}: {len(table.rows)} rows{solved} on {header.device.name}, {header.backend} "
        f"{header.precision}, batch {header.batch}",
        *header.remarks,
        f"test it:         hwnas verify {path}",
        f"search with it:  hwnas search {chosen.space.name} --lut {path}",
    ]
    result(values, lines, as_json=as_json)
