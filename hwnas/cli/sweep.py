"""``hwnas sweep``: one search for each target or latency weight, and their Pareto front."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.app import EXIT_BUDGET
from hwnas.cli.asking import (
    Asked,
    Options,
    asking_options,
    base_config,
    confirming_backend,
    gather,
    note_idle_choices,
    search_config,
)
from hwnas.cli.choosing import Chosen
from hwnas.cli.console import headline, note
from hwnas.cli.folder import RunFolder
from hwnas.cli.sweep_report import report_sweep
from hwnas.core.progress import Progress
from hwnas.core.search import UnverifiedTableWarning
from hwnas.core.search_config import SearchConfig
from hwnas.core.sweep import folder_name, point_configs, refuse_taken_points, sweep, swept_values
from hwnas.core.sweep_result import SweepResult, Swept
from hwnas.errors import InvalidInput
from hwnas.processes import as_one, processes, told_by_first

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend


def numbers(text: str) -> tuple[float, ...]:
    """``"4,6.5"`` as ``(4.0, 6.5)``."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f'"{text}" should be numbers with commas between them: 4,6,9.') from error


@click.command("sweep")
@click.option(
    "--targets", type=numbers, metavar="X,Y,…", help="Hard budgets of milliseconds, a search for each."
)
@click.option("--latency-weights", type=numbers, metavar="X,Y,…", help="Or values of λ, a search for each.")
@click.option(
    "--penalty", type=click.Choice(["log", "linear"]), help="Form of the penalty that the weights are of."
)
@asking_options
@as_one
def command(
    options: Options,
    targets: tuple[float, ...] | None,
    latency_weights: tuple[float, ...] | None,
    penalty: str | None,
) -> None:
    """Search SPACE (default: autortnet) once for each of --targets, or --latency-weights, and compare.

    It ends with a table and a plot of what was predicted and, where the table's device is here, measured, and
    of the quality on the validation data; the points of the Pareto front are marked. Each point is a run
    folder of its own in --out. What they have in common, the warm-up, is trained once.

    The exit code is 3 if a target was missed, or if no network keeps the least one. All other options are
    those of hwnas search.
    """
    out, resume = options.out_or("-sweep"), options.resume
    folder = RunFolder(out)
    if resume and not out.is_dir():
        raise InvalidInput(f"there is no sweep at {out} to resume; leave --resume out to start one.")
    kept = folder.read("sweep.json") if resume else {}
    if kept and targets is None and latency_weights is None:
        targets, latency_weights = _kept_values(kept)
    if targets is None and latency_weights is None:
        raise InvalidInput(
            "a sweep is over values: give --targets 4,6,9 or --latency-weights 0.001,0.01,0.1."
        )
    if targets is not None and latency_weights is not None:
        raise InvalidInput("a sweep is over --targets or over --latency-weights: give one of them.")
    swept, values = swept_values(targets, latency_weights)
    if penalty is not None and swept == "target_ms":
        raise InvalidInput(
            "--targets are hard budgets, beside which the penalty rests: leave --penalty out, or sweep over "
            "--latency-weights."
        )
    if options.lut == Path("none"):
        raise InvalidInput("a sweep is over milliseconds: give a latency table (--lut FILE).")
    if processes().size == 1:
        # As in the search: before anything is measured.
        refuse_taken_points(out, swept, values, resume=bool(kept))
    if resume and not kept:
        # As in the search.
        note(f"no sweep was begun in {out}: there is nothing to resume, and it starts anew")

    def configure(chosen: Chosen, settings: Mapping[str, dict[str, Any]]) -> SearchConfig:
        base = base_config(kept, chosen)
        return search_config(base, settings["search"], penalty=penalty, costs=options.costs)

    asked = gather(options, folder, kept, {"search": list(SearchConfig.model_fields)}, configure)
    if asked.table is None:
        raise InvalidInput("a sweep is over milliseconds: give a latency table (--lut FILE).")
    found = run_sweep(
        asked,
        swept,
        values,
        out,
        resume=resume and bool(kept),
        backend=confirming_backend(asked.table, out / "POINT"),
    )
    report_sweep(found, out, as_json=options.as_json)
    if not found.met:
        click.get_current_context().exit(EXIT_BUDGET)


def run_sweep(
    asked: Asked,
    swept: Swept,
    values: Sequence[float],
    out: Path,
    *,
    resume: bool,
    backend: LatencyBackend | None = None,
) -> SweepResult:
    """Sweep, watched, with the table and the choice of data kept in the folder of each point."""
    config = asked.config
    assert isinstance(config, SearchConfig)
    configs = point_configs(config, swept, values)
    # The least target is the hardest.
    hardest = min(configs, key=lambda one: one.target_ms or 0.0)
    replace(asked, config=hardest).refuse_if_hopeless(resume=resume)
    note_idle_choices(hardest, asked.chosen.space)
    told_by_first(lambda: refuse_taken_points(out, swept, values, resume=resume))
    doubts = asked.lay_out(out, "sweep", resume=resume)
    for value in values:
        asked.lay_out(out / folder_name(swept, value), "search", resume=resume)
    for doubt in doubts:
        note(doubt)

    def say(value: float, progress: Progress) -> None:
        if progress.end_of_epoch:
            count = f"epoch {progress.epoch + 1}/{progress.epochs}"
            note(f"{folder_name(swept, value)}: {count}  {headline(progress.values)}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedTableWarning)
        return sweep(
            asked.chosen.space, asked.table, asked.data, config,
            targets_ms=values if swept == "target_ms" else None,
            latency_weights=values if swept == "latency_weight" else None,
            out=out, resume=resume, on_progress=say, backend=backend,
        )  # fmt: skip


def _kept_values(
    kept: Mapping[str, Any],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Targets and latency weights of the sweep that is resumed."""
    values = tuple(kept["values"])
    return (values, None) if kept["swept"] == "target_ms" else (None, values)
