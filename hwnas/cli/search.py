"""``hwnas search``: find a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hwnas.cli.app import EXIT_BUDGET
from hwnas.cli.baseline import (
    ALGORITHMS,
    SCORINGS,
    baseline_config,
    homes_of,
    refuse_ceilings,
    refuse_penalty,
)
from hwnas.cli.choosing import DEFAULT_SPACE, Chosen, choose_space, space_options
from hwnas.cli.console import headline, note, watching
from hwnas.cli.data import DataChoice, class_count, image_shape, require_maps
from hwnas.cli.folder import RunFolder, RunSetup
from hwnas.cli.machine import (
    Machine,
    default_table_path,
    fields_of,
    machine_options,
    profile_space,
    reading_settings,
    recorded_options,
)
from hwnas.cli.names import find_space
from hwnas.cli.search_report import report_search, report_seeds
from hwnas.cli.settings import changed, parse, sort_out, validated
from hwnas.core.baseline import BaselineConfig, baseline
from hwnas.core.budget import Budget
from hwnas.core.progress import Progress
from hwnas.core.search import UnverifiedTableWarning, search
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_data import SearchData
from hwnas.core.search_result import SearchResult
from hwnas.core.space import SearchSpace
from hwnas.core.stability import Stability, stability
from hwnas.errors import HwnasError, InvalidInput
from hwnas.processes import as_one, processes

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend
    from hwnas.latency.table import LatencyTable

_Function = TypeVar("_Function", bound=Callable[..., Any])


def budget_options(function: _Function) -> _Function:
    """The options --max-params, --max-macs and --max-activation-mib."""
    about = "Most MiB that one op's inputs and output may take."
    function = click.option("--max-activation-mib", type=float, help=about)(function)
    function = click.option("--max-macs", type=float, help="Most multiply-accumulates.")(function)
    return click.option("--max-params", type=float, help="Most parameters.")(function)


@click.command("search")
@click.argument("space", required=False)
@click.option(
    "--lut",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A latency table, or none [default: profile here].",
)
@space_options
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Run folder [default: runs/SPACE]."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its table and data are its own.")
@click.option("--target-ms", type=float, help="A hard budget of milliseconds; with --penalty, a soft one.")
@budget_options
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
@click.option("--batch", type=click.IntRange(1), help="Images in a training batch [default: the preset's].")
@machine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@as_one
def command(
    space: str | None,
    lut: Path | None,
    preset: str | None,
    data: str | None,
    settings: Sequence[str],
    out: Path | None,
    resume: bool,
    target_ms: float | None,
    latency_weight: float | None,
    penalty: str | None,
    max_params: float | None,
    max_macs: float | None,
    max_activation_mib: float | None,
    algorithm: str | None,
    scoring: str | None,
    seeds: int | None,
    batch: int | None,
    device: str | None,
    backend: str | None,
    precision: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Search SPACE (default: autortnet) for a network that is good at the task and fast by a latency table.

    With --target-ms it ends with what was asked, predicted and, where the table's device is here, measured;
    the exit code is 3 if no network keeps the budget.

    --device, --backend, --precision and --threads say where latency is meant, and must match the table;
    where to train is --set search.device=cuda. With nothing given: this machine's own table, a small preset,
    drawn scenes.

    --algorithm random or evolution tries networks one by one instead, for comparison (docs/trust.md).
    """
    machine = Machine(device, backend, precision, threads)
    out = out or Path("runs") / (space or DEFAULT_SPACE).replace(":", "-")
    # A run that is resumed says what it is; what is given anew must agree, or its checkpoint is refused.
    first = out / f"seed-{_first_seed(settings)}" if seeds else out
    folder = RunFolder(first)
    if resume and not first.is_dir():
        raise InvalidInput(f"there is no run at {first} to resume; leave --resume out to start one.")
    kept = (folder.read("search.json") or folder.read("baseline.json")) if resume else {}
    setup = RunSetup.load(first) if resume else None
    algorithm, scoring = _method(algorithm, scoring, kept)
    space = space or kept.get("space")
    kind = find_space(space or DEFAULT_SPACE)
    homes = sort_out(
        parse(settings),
        {"space": list(kind.model_fields), **homes_of(algorithm, scoring), "data": None},
    )
    if kept and kept.get("table") is None and lut not in (None, Path("none")):
        raise InvalidInput(
            f"the run in {out} was started without a latency table, so it cannot go on with {lut}: leave "
            "--lut out, or start anew in another folder (--out)."
        )
    without = lut == Path("none") or (bool(kept) and kept.get("table") is None)
    table = None if without else _given_table(lut, first, resume, machine)
    given = kept.get("fields") or (fields_of(table, kind.name) if table else None)
    if setup and data is not None and data != setup.data.name:
        raise InvalidInput(
            f"the run in {out} learns from {setup.data.name}, so it cannot go on with {data}: leave --data "
            "out, or start anew in another folder (--out)."
        )
    data = data or (setup.data.name if setup else None)
    chosen = choose_space(space, preset, homes["space"], data, given_fields=given)
    costs = {"max_params": max_params, "max_macs": max_macs, "max_activation_mib": max_activation_mib}
    config: SearchConfig | BaselineConfig
    if algorithm == "differentiable":
        base = kept["config"] if kept else chosen.preset.search if chosen.preset else {}
        base = validated(SearchConfig, base)
        config = search_config(base, homes["search"], target_ms, latency_weight, penalty, costs)
    else:
        refuse_penalty(latency_weight, penalty)
        refuse_ceilings(costs)
        config = baseline_config(
            algorithm, scoring, chosen.preset, homes, target_ms, kept=kept["config"] if kept else None
        )
    if setup:
        images = folder.data(data, homes["data"] | ({"batch": batch} if batch else {}))
    else:
        images = DataChoice.of(
            chosen.data, batch or (chosen.preset.batch if chosen.preset else 8), homes["data"]
        )
    classes = (given or {}).get("num_classes")
    if not kept and classes is not None and classes != class_count(chosen.data):
        raise InvalidInput(
            f"the table is for {classes} classes, and {chosen.data} has {class_count(chosen.data)}: give the "
            "--data that it was profiled for, or profile one for these:  "
            f"hwnas profile {kind.name} --data {chosen.data}"
        )
    for assumption in () if kept else chosen.assumed:
        note(f"assuming {assumption}")
    # Before anything is measured: a wrong folder should not cost the minutes of a table.
    search_data = open_data(chosen.space, images)
    if table is None and not without:
        if processes().size > 1:
            raise InvalidInput(
                "latency is measured by one process on a quiet machine, not by these: measure first  (hwnas "
                f"profile {space or DEFAULT_SPACE}), then give --lut FILE; or --lut none."
            )
        measuring = machine.make()
        note(f"assuming latency as measured here: {measuring} (--lut FILE for another table)")
        path = default_table_path(chosen.space, measuring, 1)
        table = profile_space(chosen.space, measuring, path, settings=reading_settings({}, allow_busy=True))
        for remark in table.header.remarks:
            note(remark)
    if table is not None:
        note_other_device(table)
    asked = Asked(chosen, table, images, search_data, config)
    if seeds:
        report_seeds(run_seeds(asked, out, seeds, resume=resume), out, as_json=as_json)
        return
    confirming = None
    if table is not None and isinstance(config, SearchConfig) and config.target_ms is not None:
        confirming = confirming_backend(table, out)
    found = run_search(asked, out, resume=resume, backend=confirming)
    report_search(found, out, config, table, as_json=as_json)
    if found.budget is not None and found.budget.met is False:
        click.get_current_context().exit(EXIT_BUDGET)


def open_data(space: SearchSpace, images: DataChoice) -> SearchData:
    """The loaders of a search, opened and checked to fit the space.

    Raises:
        InvalidInput: options that the data set does not take, or networks that give no maps of its classes.
        DataError: what lies in the folder is not such a data set.
    """
    size = image_shape(space)[1:]
    train = images.training(images.train, size)
    require_maps(space, train.dataset.num_classes)  # type: ignore[attr-defined]  # DataLoader forgets which data set
    return SearchData(
        train=train,
        arch=images.training(images.arch, size) if images.arch else None,
        val=images.evaluation(images.val, size),
        description=images.description(),
    )


def note_other_device(table: LatencyTable) -> None:
    """Say where latency is meant, where that is not this machine."""
    from hwnas.latency.device import here

    if not any(table.header.device.matches(device) for device in here()):
        note(f"latency is meant for {table.header}: not for this machine")


def confirming_backend(table: LatencyTable, out: Path) -> LatencyBackend | None:
    """What the table was measured with, if it can run here under the same conditions; says so, or why not."""
    header = table.header
    try:
        backend = Machine.of(header).make(**recorded_options(header))
        table.check(backend=backend)
    except HwnasError as error:
        reason = str(error).splitlines()[0]
        note(f"what is found cannot be measured here ({reason}): run  hwnas measure {out}  where it can")
        return None
    note(f"what is found will be measured here: {backend}")
    return backend


@dataclass(frozen=True)
class Asked:
    """What is to be searched, by what and on what, put together from the options.

    Attributes:
        chosen: the space, and where its fields come from.
        table: milliseconds; None: latency plays no part.
        images: which data set, as the run's folder keeps it.
        data: its loaders.
        config: of the search, or of the baseline.
    """

    chosen: Chosen
    table: LatencyTable | None
    images: DataChoice
    data: SearchData
    config: SearchConfig | BaselineConfig


def run_search(
    asked: Asked, out: Path, *, resume: bool, backend: LatencyBackend | None = None
) -> SearchResult:
    """Search, watched, with the table and the choice of data kept in the run's folder."""
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


def run_seeds(asked: Asked, out: Path, count: int, *, resume: bool) -> Stability:
    """Search with ``count`` seeds, each in a run folder of its own."""
    seeds = range(asked.config.seed, asked.config.seed + count)
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
            seeds=seeds, out=out, resume=resume, on_progress=say,
        )  # fmt: skip


def _prepare(asked: Asked, out: Path, *, resume: bool) -> list[str]:
    """Lay out the folder of a run that has not begun; what is to be said about its table."""
    space, table, config = asked.chosen.space, asked.table, asked.config
    if table is not None:
        # Refused before anything is written, so that nothing half-made could be resumed.
        table.check(input_shape=space.input_shape())
        table.require(space.record(batch=table.header.batch).keys())
    if isinstance(config, SearchConfig):
        Budget.asked(space, list(space.choices().values()), table, config.target_ms, config.budget)
    name = "baseline" if isinstance(config, BaselineConfig) else "search"
    begun = (out / f"{name}.checkpoint.pt").exists() if resume else (out / f"{name}.json").exists()
    if begun or not processes().is_first:
        return []
    # Before the first step, so that an interrupted run can be resumed with nothing but its folder.
    if table is not None:
        table.save(out / "table.json")
    RunSetup(data=asked.images, preset=asked.chosen.preset_name).save(out)
    return table.doubts() if table is not None else []


def search_config(
    config: SearchConfig,
    settings: Mapping[str, Any],
    target_ms: float | None = None,
    latency_weight: float | None = None,
    penalty: str | None = None,
    costs: Mapping[str, float | None] | None = None,
) -> SearchConfig:
    """The config (a preset's, or a resumed run's), changed by the options.

    Raises:
        InvalidInput: values that do not fit, a penalty that lacks its target, or one beside a hard budget.
    """
    options: dict[str, Any] = {
        f"budget.{name}": most for name, most in (costs or {}).items() if most is not None
    }
    if penalty in ("hinge", "target") and target_ms is None:
        raise InvalidInput(f"--penalty {penalty} pulls towards a target: give --target-ms X as well.")
    if penalty in ("log", "linear") and target_ms is not None:
        raise InvalidInput(
            f"--penalty {penalty} knows no target. Leave it out for a hard budget of --target-ms, or use "
            "--penalty hinge or target for a soft one."
        )
    if penalty is not None:
        options["penalty.form"] = penalty
    if target_ms is not None:
        options["target_ms" if penalty is None else "penalty.target_ms"] = target_ms
    if latency_weight is not None:
        if target_ms is not None and penalty is None:
            raise InvalidInput(
                "--target-ms is a hard budget, which has no weight: leave --latency-weight out, or use "
                "--penalty hinge or target for a soft one."
            )
        options["penalty.weight"] = latency_weight
    return validated(SearchConfig, changed(config.model_dump(), {**options, **settings}))


def _count(progress: Progress) -> str:
    # A baseline's trials, and the training of the weights that they share, count alike.
    what = "trial" if "best" in progress.values else "epoch"
    return f"{what} {progress.epoch + 1}/{progress.epochs}  {headline(progress.values)}"


def _say_trial(progress: Progress) -> None:
    if progress.end_of_epoch:
        note(_count(progress))


def _first_seed(settings: Sequence[str]) -> int:
    given = parse(settings)
    seed = given.get("seed", given.get("search.seed", given.get("fit.seed", 0)))
    return seed if isinstance(seed, int) else 0


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


def _given_table(lut: Path | None, out: Path, resume: bool, machine: Machine) -> LatencyTable | None:
    from hwnas.latency.table import LatencyTable

    kept = out / "table.json"
    path = lut or (kept if resume and kept.is_file() else None)
    if path is None:
        return None
    table = LatencyTable.load(path)
    machine.require(table)
    return table
