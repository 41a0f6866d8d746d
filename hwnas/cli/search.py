"""``hwnas search``: find a network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
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
from hwnas.cli.baseline import (
    ALGORITHMS,
    SCORINGS,
    baseline_config,
    homes_of,
    refuse_penalty,
)
from hwnas.cli.choosing import Chosen
from hwnas.cli.console import headline, note, watching
from hwnas.cli.folder import RunFolder
from hwnas.cli.search_report import report_search, report_seeds
from hwnas.cli.settings import parse
from hwnas.cli.sweep_report import is_sweep
from hwnas.core.baseline import baseline
from hwnas.core.baseline_config import BaselineConfig
from hwnas.core.progress import Progress
from hwnas.core.run import refuse_begun, refuse_taken
from hwnas.core.search import UnverifiedTableWarning, search
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_result import SearchResult
from hwnas.core.stability import Stability, refuse_taken_seeds, stability
from hwnas.errors import InvalidInput, in_short
from hwnas.processes import as_one, processes, told_by_first

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend


@click.command("search")
@click.option("--target-ms", type=float, help="A hard budget of milliseconds; with --penalty, a soft one.")
@click.option("--latency-weight", type=float, help="λ, how much latency weighs against the task's loss.")
@click.option(
    "--penalty", type=click.Choice(["log", "linear", "target", "hinge"]), help="Form of the penalty."
)
@click.option(
    "--algorithm",
    type=click.Choice(ALGORITHMS),
    help="What searches, or a baseline [default: differentiable].",
)
@click.option(
    "--scoring",
    type=click.Choice(SCORINGS),
    help="What a baseline scores networks by [default: shared weights].",
)
@click.option("--seeds", type=click.IntRange(2), help="Search so many times, and say how far results agree.")
@asking_options
@as_one
def command(
    options: Options,
    target_ms: float | None,
    latency_weight: float | None,
    penalty: str | None,
    algorithm: str | None,
    scoring: str | None,
    seeds: int | None,
) -> None:
    """Search SPACE (default: autortnet) for a network that is good at the task and fast by a latency table.

    With --target-ms it ends with what was asked, predicted and, where the table's device is here, measured;
    the exit code is 3 if no network keeps the budget, or that of any of the --seeds does not.

    --device, --backend, --precision and --threads say where latency is meant, and must match the table;
    where to train is --set search.device=cuda. With nothing given: this machine's own table, a small preset,
    drawn scenes.

    --algorithm random or evolution tries networks one by one instead, for comparison (docs/trust.md). What
    these find for a target is predicted; `hwnas measure` measures it.
    """
    out, resume = options.out_or(), options.resume
    # A run that is resumed says what it is; what is given anew must agree, or its checkpoint is refused.
    first_seed = _first_seed(options.settings, out if resume else None)
    first = out / f"seed-{first_seed}" if seeds else out
    folder = RunFolder(first)
    if resume and not first.is_dir():
        raise InvalidInput(f"there is no run at {first} to resume; leave --resume out to start one.")
    kept = (folder.read("search.json") or folder.read("baseline.json")) if resume else {}
    if not seeds and not kept:
        _refuse_several(out)
    if resume and not kept:
        # Stopped before the first step, in the measuring of a table say, it was told to go on like this.
        note(f"no search was begun in {first}: there is nothing to resume, and it starts anew")
    method = _method(algorithm, scoring, kept)
    if target_ms is not None and options.lut == Path("none"):
        raise InvalidInput(
            "--target-ms needs a latency table to know milliseconds by: leave --lut none out, or limit other "
            "costs (--max-macs)."
        )
    if processes().size == 1:
        # Before anything is measured or loaded, which takes minutes; several processes measure nothing, and
        # find it out together.
        if seeds:
            kind = "search" if method[0] == "differentiable" else "baseline"
            refuse_taken_seeds(out, range(first_seed, first_seed + seeds), kind, resume=resume)
        elif not resume:
            for name in ("search", "baseline"):
                refuse_begun(out, name)

    def configure(chosen: Chosen, settings: Mapping[str, dict[str, Any]]) -> SearchConfig | BaselineConfig:
        if method[0] == "differentiable":
            base = base_config(kept, chosen)
            return search_config(base, settings["search"], target_ms, latency_weight, penalty, options.costs)
        refuse_penalty(latency_weight, penalty)
        return baseline_config(
            *method, chosen.preset, settings, target_ms, options.costs, kept=kept.get("config")
        )

    asked = gather(options, folder, kept, homes_of(*method), configure)
    table, config = asked.table, asked.config
    if isinstance(config, SearchConfig):
        note_idle_choices(config, asked.chosen.space)
    confirming = None
    if table is not None and isinstance(config, SearchConfig) and config.target_ms is not None:
        confirming = confirming_backend(table, first)
    if seeds:
        searched = run_seeds(asked, out, seeds, resume=resume, backend=confirming)
        report_seeds(searched, out, as_json=options.as_json)
        _note_scores_left_out(searched)
        if any(result.met is False for result in searched.results):
            click.get_current_context().exit(EXIT_BUDGET)
        return
    found = run_search(asked, out, resume=resume and bool(kept), backend=confirming)
    report_search(found, out, config, table, as_json=options.as_json)
    if found.budget is not None and found.budget.met is False:
        click.get_current_context().exit(EXIT_BUDGET)


def run_search(
    asked: Asked, out: Path, *, resume: bool, backend: LatencyBackend | None = None
) -> SearchResult:
    """Search, watched, with the table and the choice of data kept in the run's folder."""

    def refuse() -> None:
        if not resume:
            refuse_taken(out, _kind(asked))

    told_by_first(refuse)
    for doubt in _prepare(asked, out, resume=resume):
        note(doubt)
    space, table, data = asked.chosen.space, asked.table, asked.data
    steps = len(data.train)  # type: ignore[arg-type]  # a DataLoader
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedTableWarning)
        if isinstance(asked.config, BaselineConfig):
            return baseline(space, table, data, asked.config, out=out, resume=resume, on_progress=_say_trial)
        with watching("search", steps) as on_progress:
            return search(
                space, table, data, asked.config,
                out=out, resume=resume, on_progress=on_progress, backend=backend,
            )  # fmt: skip


def run_seeds(
    asked: Asked, out: Path, count: int, *, resume: bool, backend: LatencyBackend | None = None
) -> Stability:
    """Search with ``count`` seeds, each in a run folder of its own."""
    seeds = range(asked.config.seed, asked.config.seed + count)
    told_by_first(lambda: refuse_taken_seeds(out, seeds, _kind(asked), resume=resume))
    doubts: list[str] = []
    for seed in seeds:
        doubts = _prepare(asked, out / f"seed-{seed}", resume=resume) or doubts
    for doubt in doubts:
        note(doubt)

    def say(seed: int, progress: Progress) -> None:
        if progress.end_of_epoch:
            note(f"seed {seed}: {_count(progress)}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedTableWarning)
        return stability(
            asked.chosen.space, asked.table, asked.data, asked.config,
            seeds=seeds, out=out, resume=resume, backend=backend, on_progress=say,
        )  # fmt: skip


def _prepare(asked: Asked, out: Path, *, resume: bool) -> list[str]:
    """Lay out the folder of a run that has not begun; what is to be said about its table."""
    asked.refuse_if_hopeless(resume=resume)
    return asked.lay_out(out, _kind(asked), resume=resume)


def _kind(asked: Asked) -> str:
    """The name of the run, and of its files."""
    return "baseline" if isinstance(asked.config, BaselineConfig) else "search"


def _note_scores_left_out(found: Stability) -> None:
    """Say which scores the mean of all leaves out, because they are not finite."""
    lost = [seed.seed for seed in found.results if seed.score is not None and not math.isfinite(seed.score)]
    if lost:
        note(
            f"the validation score of seed {in_short(map(str, lost))} is not finite: mean and deviation "
            "leave it out"
        )


def _count(progress: Progress) -> str:
    # A baseline's trials, and the training of the weights that they share, count alike.
    what = "trial" if "best" in progress.values else "epoch"
    return f"{what} {progress.epoch + 1}/{progress.epochs}  {headline(progress.values)}"


def _say_trial(progress: Progress) -> None:
    if progress.end_of_epoch:
        note(_count(progress))


def _first_seed(settings: Sequence[str], begun: Path | None) -> int:
    """The first of several seeds: as given, or the least in the folder of those begun, or 0."""
    given = parse(settings)
    seed = given.get("seed", given.get("search.seed", given.get("fit.seed")))
    if isinstance(seed, int):
        return seed
    return min(_seeds_in(begun), default=0) if begun is not None else 0


def _seeds_in(out: Path) -> list[int]:
    """The seeds that searches in a folder were laid out for."""
    names = [folder.name.removeprefix("seed-") for folder in out.glob("seed-*")]
    return [int(name) for name in names if name.isdecimal()]


def _refuse_several(out: Path) -> None:
    """Refuse a folder of several searches, whose folders lie in it, for a single one.

    Raises:
        InvalidInput: it is a sweep's, or of several seeds.
    """
    seeds = _seeds_in(out)
    if is_sweep(out):
        what, options = "a sweep", f"sweep --out {out}"
    elif seeds:
        several = max(2, len(seeds))
        what, options = "a search with each of several seeds", f"search --seeds {several} --out {out}"
    else:
        return
    raise InvalidInput(
        f"{out} holds {what}: go on with  hwnas {options} --resume, or name another folder (--out)."
    )


def _method(algorithm: str | None, scoring: str | None, kept: Mapping[str, Any]) -> tuple[str, str]:
    """Algorithm and scoring: those given, or those of the run that is resumed.

    Raises:
        InvalidInput: they are not the run's, or a scoring for a search that has no use for it.
    """
    config = kept.get("config", {})
    of_run = (
        (config["algorithm"]["form"], config["scoring"]["form"])
        if "algorithm" in config
        else ("differentiable", "shared")
    )
    if kept and (algorithm or of_run[0], scoring or of_run[1]) != of_run:
        raise InvalidInput(
            f"the run to resume is of --algorithm {of_run[0]} --scoring {of_run[1]}: leave both out, or "
            "start anew in another folder (--out)."
        )
    if kept:
        return of_run
    if scoring is not None and algorithm in (None, "differentiable"):
        raise InvalidInput(
            "--scoring is what a baseline goes by: give --algorithm random or evolution as well."
        )
    return algorithm or "differentiable", scoring or "shared"
