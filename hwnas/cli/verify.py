"""``hwnas verify``: whole networks against a latency table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hwnas.cli.app import EXIT_NOT_GOOD
from hwnas.cli.choosing import DEFAULT_SPACE
from hwnas.cli.console import counting, note, result
from hwnas.cli.machine import Machine, allow_busy_option, reading_settings, recorded_options
from hwnas.cli.settings import parse, sort_out
from hwnas.core.verification import CALIBRATION_NETWORKS, verify
from hwnas.latency.timing import in_ms
from hwnas.names import find_space

if TYPE_CHECKING:
    from hwnas.latency.verification import Verification


@click.command("verify")
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("space", required=False)
@click.option("--preset", help="Named starting point of the space [default: the table's own fields].")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A field of the space; rounds, backend.NAME …",
)
@click.option(
    "--samples", type=click.IntRange(2), default=50, show_default=True, help="Networks to judge by."
)
@click.option(
    "--calibrate",
    type=click.IntRange(0),
    default=CALIBRATION_NETWORKS,
    show_default=True,
    help="Further networks to fit the calibration on.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the draws of networks.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Predicted against measured, as a PNG."
)
@allow_busy_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    table: Path,
    space: str | None,
    preset: str | None,
    settings: Sequence[str],
    samples: int,
    calibrate: int,
    seed: int,
    plot: Path | None,
    allow_busy: bool,
    as_json: bool,
) -> None:
    """Measure whole networks of SPACE (default: TABLE's own) and say how well TABLE predicts them.

    The networks are in no fit. A calibration from further networks is stored in TABLE, with all the evidence.

    The exit code is 4 if the predictions, calibrated, are not good enough to search by; what was found is
    stored all the same.
    """
    from hwnas.latency.measuring import ProfileSettings
    from hwnas.latency.table import LatencyTable

    found = LatencyTable.load(table)
    fields = dict(found.header.space)
    name = fields.pop("name", None)
    kind = find_space(space or str(name or DEFAULT_SPACE))
    homes = sort_out(
        parse(settings),
        {"space": list(kind.model_fields), "profile": list(ProfileSettings.model_fields), "backend": None},
    )
    own = {} if preset is not None or kind.name != name else fields
    chosen = kind.from_preset(preset, **{**own, **homes["space"]})
    backend = Machine.of(found.header).make(**{**recorded_options(found.header), **homes["backend"]})
    if plot is not None:
        from hwnas.cli.drawing import predicted_against_measured
        from hwnas.core.figures import save_png, styled

        styled()  # matplotlib missing is said before minutes of measuring
    if found.path is None:
        note(
            f"{table} comes with hwnas and is not written to; to keep what is found, verify a copy:  "
            f"hwnas table merge {table} --out FILE"
        )
    note(f"measuring {samples + calibrate} networks of {chosen.name}: {backend}")
    with counting("verifying") as on_progress:
        said = verify(
            found,
            chosen,
            backend,
            samples=samples,
            calibrate=calibrate,
            seed=seed,
            settings=reading_settings(homes["profile"], allow_busy=allow_busy),
            on_progress=on_progress,
        )
    if plot is not None:
        save_png(predicted_against_measured(said, str(found.header)), plot)
    result({"table": str(table), **values(said)}, lines(said), as_json=as_json)
    if not said.is_good:
        click.get_current_context().exit(EXIT_NOT_GOOD)


def values(said: Verification) -> dict[str, object]:
    """What a program would read."""
    return {
        "networks": said.calibrated.networks,
        "uncalibrated": said.uncalibrated.model_dump(),
        "calibrated": said.calibrated.model_dump(),
        "calibration": said.calibration.model_dump(),
        "interval_percent": [said.low_percent, said.high_percent],
        "repeat_kendall_tau": said.repeat_kendall_tau,
        "group_kendall_tau": said.group_kendall_tau,
        "group_repeat_kendall_tau": said.group_repeat_kendall_tau,
        "worst_kinds": dict(said.worst_kinds),
        "is_good": said.is_good,
        "remarks": list(said.remarks),
    }


def lines(said: Verification) -> list[str]:
    """The same for people."""
    from hwnas.latency.verification import GOOD_KENDALL_TAU, GOOD_RMSPE_PERCENT

    calibration = said.calibration
    shown = [
        f"{said.calibrated.networks} networks in no fit",
        f"rows alone   {said.uncalibrated}",
        f"calibrated   {said.calibrated}",
        f"calibration  {calibration.scale:.4f} · sum + {in_ms(calibration.offset_ms)} ms"
        + (f" + {in_ms(calibration.per_op_ms)} ms an op" if calibration.per_op_ms else "")
        + f", from {calibration.networks} networks",
        f"95 % of the networks took {said.low_percent:+.1f} to {said.high_percent:+.1f} % of the prediction",
    ]
    shown.append(
        f"{'good' if said.is_good else 'not good'} enough to search by (calibrated: RMSPE of at most "
        f"{GOOD_RMSPE_PERCENT:g} %, Kendall tau of at least {GOOD_KENDALL_TAU:g})"
    )
    if said.repeat_kendall_tau is not None:
        shown.append(
            f"the measurements' own Kendall tau, process against process: {said.repeat_kendall_tau:.3f}"
        )
    if said.group_kendall_tau is not None:
        itself = said.group_repeat_kendall_tau
        shown.append(
            f"among networks of one depth: Kendall tau {said.group_kendall_tau:.3f}"
            + (f" (measurements with themselves {itself:.3f})" if itself is not None else "")
        )
    off = [f"{kind} {percent:+.1f} %" for kind, percent in said.worst_kinds if abs(percent) >= 1]
    shown += said.remarks
    if off:
        shown.append(f"rows that are too low (+) or too high (-): {', '.join(off)}")
    return shown
