"""``hwnas profile``: fill a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hwnas.cli.choosing import DEFAULT_SPACE, choose_space, space_options
from hwnas.cli.console import note, result
from hwnas.cli.machine import (
    Machine,
    allow_busy_option,
    default_table_path,
    fields_of,
    machine_options,
    profile_space,
    reading_settings,
)
from hwnas.cli.settings import parse, sort_out
from hwnas.core.profiling import DEFAULT_PROTOCOL, estimate, probe_subjects
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput, MissingLatency
from hwnas.names import find_space

if TYPE_CHECKING:
    from hwnas.latency.measuring import ProfileSettings
    from hwnas.latency.table import LatencyTable


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
    help="Ops solved from whole networks, or each alone.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The table's file [default: in tables/]."
)
@click.option("--estimate", "only_estimate", is_flag=True, help="Only say about how long it will take.")
@allow_busy_option
@click.option(
    "--export-bundle",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Measure nothing; write a folder that a device without torch and hwnas measures.",
)
@click.option(
    "--import-bundle",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Measure nothing; make the table of a bundle that a device has measured.",
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What its run.py wrote [default: results.json in the bundle].",
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
    protocol: Any,
    out: Path | None,
    only_estimate: bool,
    allow_busy: bool,
    export_bundle: Path | None,
    import_bundle: Path | None,
    results: Path | None,
    as_json: bool,
) -> None:
    """Measure the ops of SPACE (default: autortnet) and write a table; run again to go on where it stopped.

    --set also takes backend.NAME (backend.provider=tensorrt), rounds, processes and fields of the stopping
    rule.

    For a device without torch and hwnas: --export-bundle here, run.py there, --import-bundle here again.
    """
    from hwnas.latency.measuring import ProfileSettings
    from hwnas.latency.table import LatencyTable

    asked = Machine(device, backend, precision, threads)
    if only_estimate and (export_bundle or import_bundle):
        raise InvalidInput(
            "--estimate is about measuring here. Of a bundle, run.py --estimate tells it on the device."
        )
    if import_bundle is not None:
        source = click.get_current_context().get_parameter_source
        if any(source(name) is ParameterSource.COMMANDLINE for name in ("batch", "protocol")):
            raise InvalidInput(
                "batch and protocol were decided when the bundle was exported: leave --batch and --protocol "
                "out here."
            )
        if export_bundle is not None:
            raise InvalidInput("a bundle is exported, measured, and then imported: give one of both options.")
        _import(
            import_bundle,
            results,
            out,
            asked,
            space,
            preset,
            data,
            settings,
            allow_busy=allow_busy,
            as_json=as_json,
        )
        return
    if results is not None:
        raise InvalidInput("--results belongs to --import-bundle DIR; give both.")
    fields = list(find_space(space or DEFAULT_SPACE).model_fields)
    homes = sort_out(
        parse(settings), {"space": fields, "profile": list(ProfileSettings.model_fields), "backend": None}
    )
    reading = reading_settings(homes["profile"], allow_busy=allow_busy)
    if export_bundle is not None:
        if device or backend or threads or out or homes["backend"]:
            raise InvalidInput(
                "which device, backend and threads is decided where a bundle is measured, by the options of "
                "its run.py, and the table's file when it is imported: leave --device, --backend, --threads, "
                "--out and --set backend.NAME out here."
            )
        chosen = choose_space(space, preset, homes["space"], data)
        for assumption in chosen.assumed:
            note(f"assuming {assumption}")
        _export(
            export_bundle,
            chosen.space,
            precision or "fp32",
            batch,
            protocol,
            reading,
            as_json=as_json,
        )
        return
    measuring = asked.make(**homes["backend"])
    # A table that is to be gone on with says itself which space it is for.
    given = fields_of(LatencyTable.load(out), space) if out is not None and out.exists() else None
    chosen = choose_space(space, preset, homes["space"], data, given_fields=given)
    for assumption in chosen.assumed:
        note(f"assuming {assumption}")
    path = out or default_table_path(chosen.space, measuring, batch, protocol)
    if only_estimate:
        preparing, taking = estimate(
            chosen.space, measuring, batch=batch, protocol=protocol, path=path, settings=reading
        )
        line = (
            f"about {preparing:.0f} s to prepare and {taking:.0f} s to measure, or up to twice as much where "
            f"visits differ, on {measuring}"
        )
        if not (preparing or taking):
            line = f"{path} is complete: nothing is left to measure on {measuring}"
        result({"preparing_seconds": preparing, "measuring_seconds": taking}, [line], as_json=as_json)
        return
    table = profile_space(chosen.space, measuring, path, batch=batch, protocol=protocol, settings=reading)
    _say(table, path, data=data, as_json=as_json)


def _say(table: LatencyTable, path: Path, *, data: str | None = None, as_json: bool) -> None:
    """Print what is in a table, and how to test it and search with it."""
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
        f"test it:         hwnas verify {path}"
        if table.current_verification is None
        else f"tested:          {table.current_verification.calibrated}",
        f"search with it:  hwnas search {header.space.get('name', 'SPACE')} --lut {path}"
        + (f" --data {data}" if data else ""),
    ]
    result(values, lines, as_json=as_json)


def _export(
    folder: Path,
    space: SearchSpace,
    precision: Any,
    batch: int,
    protocol: str,
    reading: ProfileSettings,
    *,
    as_json: bool,
) -> None:
    """Write a bundle of every op of ``space`` and, for the probe protocol, of whole networks."""
    from hwnas.latency.bundle import export_bundle

    manifest = export_bundle(
        folder,
        space.record(batch=batch).keys(),
        input_shape=space.input_shape(),
        batch=batch,
        precision=precision,
        space=space.described(),
        settings=reading,
        networks=probe_subjects(space, batch) if protocol == "probe" else {},
    )
    values = {"bundle": str(folder), "id": manifest.bundle_id, "models": len(manifest.entries)}
    lines = [
        f"{folder}: {len(manifest.entries)} models of {space.name} in {precision}, batch {batch}",
        f"copy it to the device and measure there:  python3 {folder.name}/run.py",
        f"then bring results.json back:  hwnas profile --import-bundle {folder} --out TABLE",
    ]
    result(values, lines, as_json=as_json)


def _import(
    folder: Path,
    results: Path | None,
    out: Path | None,
    asked: Machine,
    space: str | None,
    preset: str | None,
    data: str | None,
    settings: Sequence[str],
    *,
    allow_busy: bool,
    as_json: bool,
) -> None:
    """Write the table of a bundle that was measured, if it is of the space and conditions asked for."""
    from hwnas.latency.bundle import import_bundle

    if out is None:
        raise InvalidInput("say where the table goes:  hwnas profile --import-bundle DIR --out TABLE")
    if out.exists():
        raise InvalidInput(f"{out} is there already. Give another file (--out), or delete that one.")
    if space is None and (preset or data or settings):
        raise InvalidInput("--preset, --data and --set describe a SPACE to compare the bundle with: name it.")
    table = import_bundle(folder, results, allow_busy=allow_busy).table
    asked.require(table)
    if space is not None:
        fields = sort_out(parse(settings), {"space": list(find_space(space).model_fields)})["space"]
        chosen = choose_space(space, preset, fields, data).space
        keys = chosen.record(batch=table.header.batch).keys()
        missing = [key for key in keys if key not in table]
        if missing:
            raise MissingLatency(
                f"{folder} lacks {len(missing)} of the {len(keys)} ops of {chosen.name} with these fields, "
                f"first {missing[0]}. It was exported for {table.header.space}. Give the fields of that one, "
                f"or export another:  hwnas profile {chosen.name} --export-bundle NEW"
            )
    table.save(out)
    _say(table, out, as_json=as_json)
