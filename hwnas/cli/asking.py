"""What ``hwnas search`` and ``hwnas sweep`` are both told: their options, and what they ask for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.choosing import DEFAULT_SPACE, Chosen, choose_space, space_options
from hwnas.cli.console import note
from hwnas.cli.data import DataChoice, image_shape, require_maps
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
from hwnas.cli.settings import changed, parse, sort_out, validated
from hwnas.core.baseline import refuse_hopeless
from hwnas.core.baseline_config import BaselineConfig
from hwnas.core.budget import Budget
from hwnas.core.budget_config import asked_costs
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_data import SearchData
from hwnas.core.space import SearchSpace
from hwnas.errors import HwnasError, InvalidInput
from hwnas.files import try_place
from hwnas.names import find_space, in_file_names
from hwnas.processes import processes

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend
    from hwnas.latency.table import LatencyTable


@dataclass(frozen=True)
class Options:
    """What the shared options say; None: not given.

    Attributes:
        space: its name.
        lut: file of the latency table, or ``Path("none")``.
        preset: named starting point of the space.
        data: text of the data set.
        settings: what ``--set`` says, one by one.
        out: folder.
        resume: whether to go on with what is in it.
        costs: ceilings, by the name of the field of the budget; None: any.
        batch: images in a training batch.
        machine: where latency is meant.
        as_json: whether to print JSON.
    """

    space: str | None
    lut: Path | None
    preset: str | None
    data: str | None
    settings: Sequence[str]
    out: Path | None
    resume: bool
    costs: Mapping[str, float | None]
    batch: int | None
    machine: Machine
    as_json: bool

    def out_or(self, suffix: str = "") -> Path:
        """The folder; not given: ``runs/SPACE``, with a suffix."""
        return self.out or Path("runs") / (in_file_names(self.space or DEFAULT_SPACE) + suffix)


_COSTS = ("max_params", "max_macs", "max_activation_mib")
_CONDITIONS = ("device", "backend", "precision", "threads")


def asking_options(function: Callable[..., None]) -> Callable[..., None]:
    """SPACE and the options of :class:`Options`, which the verb gets as its first argument."""

    @functools.wraps(function)
    def verb(**values: Any) -> None:
        costs = {name: values.pop(name) for name in _COSTS}
        machine = Machine(**{name: values.pop(name) for name in _CONDITIONS})
        plain = {name: values.pop(name) for name in Options.__dataclass_fields__ if name in values}
        function(Options(**plain, costs=costs, machine=machine), **values)

    decorators: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...] = (
        click.argument("space", required=False),
        click.option(
            "--lut",
            type=click.Path(path_type=Path),
            help="A latency table, a file or one of hwnas table list; or none [default: profile here].",
        ),
        space_options,
        click.option(
            "--out", type=click.Path(file_okay=False, path_type=Path), help="Run folder [default: in runs/]."
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on with what is in --out; its table and data are its own.",
        ),
        click.option("--max-params", type=float, help="Most parameters."),
        click.option("--max-macs", type=float, help="Most multiply-accumulates."),
        click.option(
            "--max-activation-mib", type=float, help="Most MiB that one op's inputs and output may take."
        ),
        click.option(
            "--batch", type=click.IntRange(1), help="Images in a training batch [default: the preset's]."
        ),
        machine_options,
        click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
    )
    for decorator in reversed(decorators):
        verb = decorator(verb)
    return verb


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

    def refuse_if_hopeless(self, *, resume: bool) -> None:
        """Refuse what could not be searched before anything is written, so that nothing could be resumed.

        Raises:
            InvalidInput: a baseline that would find nothing.
            TableMismatch: the table is of another resolution.
            MissingLatency: it lacks rows of the space.
            InfeasibleBudget: no network keeps the budget.
        """
        space, table, config = self.chosen.space, self.table, self.config
        if table is not None:
            table.check(input_shape=space.input_shape())
            table.require(space.record(batch=table.header.batch).keys())
        budget = Budget.asked(space, list(space.choices().values()), table, config.target_ms, config.budget)
        if isinstance(config, BaselineConfig) and not resume:
            refuse_hopeless(space, config, budget)

    def lay_out(self, out: Path, name: str, *, resume: bool) -> list[str]:
        """Lay out the folder of a run of that name that has not begun; what is to be said about its table."""
        begun = (out / f"{name}.checkpoint.pt").exists() if resume else (out / f"{name}.json").exists()
        if begun or not processes().is_first:
            return []
        # Before the first step, so that an interrupted run can be resumed with nothing but its folder.
        # What is said of the table is said of the user's file: the copy is the run's, and may not change.
        if self.table is not None:
            self.table.save_copy(out / "table.json")
        RunSetup(data=self.images, preset=self.chosen.preset_name).save(out)
        return self.table.doubts() if self.table is not None else []


def gather(
    options: Options,
    folder: RunFolder,
    kept: Mapping[str, Any],
    homes: Mapping[str, Sequence[str]],
    configure: Callable[[Chosen, Mapping[str, dict[str, Any]]], SearchConfig | BaselineConfig],
) -> Asked:
    """Put together what is asked for; what is assumed is said. A latency table is measured if there is none.

    Args:
        options: from the command line.
        folder: what is resumed, if anything.
        kept: what that run says that it is; empty for a new one.
        homes: configs that take ``--set``, and their fields.
        configure: the config, from what was chosen and the settings by home.

    Raises:
        InvalidInput: options that contradict each other, the run that is resumed, or the data.
        TableMismatch: the table is of other conditions than those asked for.
    """
    machine, batch = options.machine, options.batch
    setup = RunSetup.load(folder.path) if options.resume else None
    space = options.space or kept.get("space")
    kind = find_space(space or DEFAULT_SPACE)
    settings = sort_out(parse(options.settings), {"space": list(kind.model_fields), **homes, "data": None})
    if kept and kept.get("table") is None and options.lut not in (None, Path("none")):
        raise InvalidInput(
            f"the run in {folder.path} was started without a latency table, so it cannot go on with "
            f"{options.lut}: leave --lut out, or start anew in another folder (--out)."
        )
    without = options.lut == Path("none") or (bool(kept) and kept.get("table") is None)
    table = None if without else _given_table(options, folder.path)
    given = kept.get("fields") or (fields_of(table, kind.name) if table else None)
    if setup and options.data is not None and options.data != setup.data.name:
        raise InvalidInput(
            f"the run in {folder.path} learns from {setup.data.name}, so it cannot go on with "
            f"{options.data}: leave --data out, or start anew in another folder (--out)."
        )
    data = options.data or (setup.data.name if setup else None)
    split = settings["data"].get("train", "train")
    chosen = choose_space(
        space, options.preset, settings["space"], data, split=str(split), given_fields=given
    )
    config = configure(chosen, settings)
    if setup:
        images = folder.data(data, settings["data"] | ({"batch": batch} if batch else {}))
    else:
        images = DataChoice.of(
            chosen.data, batch or (chosen.preset.batch if chosen.preset else 8), settings["data"]
        )
    classes = (given or {}).get("num_classes")
    if not kept and classes is not None and classes != images.class_count():
        raise InvalidInput(
            f"the table is for {classes} classes, and {chosen.data} has {images.class_count()}: give the "
            "--data that it was profiled for, or profile one for these:  "
            f"hwnas profile {kind.name} --data {chosen.data}"
        )
    for assumption in () if kept else chosen.assumed:
        note(f"assuming {assumption}")
    # Before anything is measured: a wrong folder should not cost the minutes of a table.
    search_data = open_data(chosen.space, images, config.device)
    if table is None and not without:
        if processes().size > 1:
            raise InvalidInput(
                "latency is measured by one process on a quiet machine, not by these: measure first  (hwnas "
                f"profile {space or DEFAULT_SPACE}), then give --lut FILE; or --lut none."
            )
        try_place(folder.path / "table.json")
        measuring = machine.make()
        note(f"assuming latency as measured here: {measuring} (--lut FILE for another table)")
        path = default_table_path(chosen.space, measuring, 1)
        table = profile_space(chosen.space, measuring, path, settings=reading_settings({}, allow_busy=True))
        for remark in table.header.remarks:
            note(remark)
    if table is not None:
        note_other_device(table)
    return Asked(chosen, table, images, search_data, config)


def _given_table(options: Options, kept_in: Path) -> LatencyTable | None:
    from hwnas.latency.table import LatencyTable

    kept = kept_in / "table.json"
    path = options.lut or (kept if options.resume and kept.is_file() else None)
    if path is None:
        return None
    table = LatencyTable.load(path)
    options.machine.require(table)
    return table


def open_data(space: SearchSpace, images: DataChoice, device: str) -> SearchData:
    """The loaders of a search on ``device``, opened and checked to fit the space.

    Raises:
        InvalidInput: options that the data set does not take, or networks that give no maps of its classes.
        DataError: what lies in the folder is not such a data set.
    """
    size = image_shape(space)[1:]
    train = images.training(images.train, size, device)
    require_maps(space, train.dataset.num_classes)  # type: ignore[attr-defined]  # DataLoader forgets which data set
    return SearchData(
        train=train,
        arch=images.training(images.arch, size, device) if images.arch else None,
        val=images.evaluation(images.val, size, device),
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


def ceilings(costs: Mapping[str, float | None]) -> dict[str, Any]:
    """The ceilings that were given, by the dotted name of the field of a config."""
    return {f"budget.{name}": most for name, most in costs.items() if most is not None}


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
        InvalidInput: values that do not fit, a penalty that lacks its target, or one beside a hard budget,
            wherever that comes from.
    """
    options: dict[str, Any] = ceilings(costs or {})
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
    asked = validated(SearchConfig, changed(config.model_dump(), {**options, **settings}))
    if asked.target_ms is not None and (penalty is not None or latency_weight is not None):
        option = "--latency-weight" if penalty is None else f"--penalty {penalty}"
        raise InvalidInput(
            f"target_ms={asked.target_ms:g} (of --set, a preset or the run to resume) is a hard budget, "
            f"beside which the penalty rests: leave {option} out, or the target (--set target_ms=null)."
        )
    return asked


def note_idle_choices(config: SearchConfig, space: SearchSpace) -> None:
    """Say which choices will not learn, if any, and that a budget then steers nothing."""
    if config.arch_from_epoch >= config.epochs:
        what, name, first = "choices", "arch_from_epoch", config.arch_from_epoch
    elif config.depth_from_epoch >= config.epochs and any(
        choice.kind == "depth" for choice in space.choices().values()
    ):
        what, name, first = "depths", "depth_from_epoch", config.depth_from_epoch
    else:
        return
    said = f"the {what} will not learn: {name}={first} leaves them none of {config.epochs} epochs"
    # Of activations nothing is steered: options too large are off from the beginning.
    if config.budget.steers and asked_costs(config.target_ms, config.budget).keys() - {"max_activation_mib"}:
        said += "; nothing is held at the budget while searching, only the network chosen in the end keeps it"
    note(said)


def base_config(kept: Mapping[str, Any], chosen: Chosen) -> SearchConfig:
    """The config of the run that is resumed, or else the preset's.

    Raises:
        InvalidInput: values that do not fit.
    """
    return validated(SearchConfig, kept["config"] if kept else chosen.preset.search if chosen.preset else {})
