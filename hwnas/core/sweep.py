"""A sweep: one search for each of several targets or latency weights, and the Pareto front of what they find.

What the searches have in common, their first epochs, is trained once (``warm_up`` of :func:`hwnas.search`).
Each is otherwise the search that it would be alone, and finds the same to the last bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwnas.core.budget import Budget
from hwnas.core.confirm import Measure, measurer_of_first, timed
from hwnas.core.expected import LatencyTableLike
from hwnas.core.given import refuse_backend, refuse_data, refuse_space, refuse_table
from hwnas.core.progress import Progress
from hwnas.core.run import Run, refuse_taken, require_begun
from hwnas.core.search import common_epochs, search, search_identity
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_data import SearchData
from hwnas.core.search_result import conditions
from hwnas.core.space import SearchSpace
from hwnas.core.sweep_page import NoPlotWarning, write_table_and_plot
from hwnas.core.sweep_result import SweepPoint, SweepResult, Swept, with_front
from hwnas.errors import InvalidInput, MeasurementFailed
from hwnas.files import write_json
from hwnas.latency.backend import LatencyBackend
from hwnas.processes import as_one, processes, told_by_first

WARM_UP = "warm-up"
"""Name of the folder of the epochs that all points share."""


@as_one
def sweep(
    space: SearchSpace,
    lut: LatencyTableLike | None,
    data: SearchData,
    config: SearchConfig | None = None,
    *,
    targets_ms: Sequence[float] | None = None,
    latency_weights: Sequence[float] | None = None,
    out: str | Path,
    resume: bool = False,
    on_progress: Callable[[float, Progress], None] | None = None,
    backend: LatencyBackend | None = None,
    measure: Measure | None = None,
) -> SweepResult:
    """Search once for each target, or for each latency weight, and say which results are Pareto-optimal.

    The epochs before targets or weights act are trained once: those before ``arch_from_epoch``, and with
    targets and no pruner those before ``depth_from_epoch``, too, or all where the budget does not steer. Each
    point is a run of its own in ``out/4ms`` or ``out/weight-0.01``, which every other function takes, and is
    bit for bit what :func:`hwnas.search` finds alone. ``out/warm-up`` has what they share,
    ``out/pareto.json`` the result, ``out/sweep.json`` what was asked. Once all points are done,
    ``out/sweep.md`` has them as a table and, with scores, ``out/pareto.png`` as a plot: predicted, measured,
    quality, the Pareto front marked. A target that is missed when measured does not end the sweep.

    Args:
        space: what can be chosen.
        lut: milliseconds of every op.
        data: as of :func:`hwnas.search`; with ``val``, networks have scores, and there is a front.
        config: of all searches; its target, or its penalty's weight, is replaced.
        targets_ms: hard budgets of milliseconds, at least two; or
        latency_weights: weights of the config's penalty, at least two.
        out: folder of the runs.
        resume: go on with the sweep in ``out``, given the same again. Points that are done stay, and are
            measured if they were not; of a finished sweep the result is returned.
        on_progress: called with the value and its search's progress.
        backend: measures what is found, under the table's conditions; under targets, as of
            :func:`hwnas.search`.
        measure: the same by any function from a genotype to milliseconds, instead of ``backend``.

    Warns:
        NoPlotWarning: matplotlib is not installed, so there is no ``pareto.png``. Besides, whatever the
            search warns of.

    Raises:
        InvalidInput: an argument is a name or a path where an object is wanted; not exactly one of targets
            and weights, fewer than two values, two alike, or one out of range; no table; a target in the
            config beside latency weights; ``out`` holds a sweep already and ``resume`` is false, or none and
            it is true; it, or a point's folder, holds another run.
        InfeasibleBudget: no network of the space keeps the least target; raised before anything is trained.
        CheckpointError: what is to be resumed is damaged, or is another sweep; the message lists the
            differences.
        Interrupted: Ctrl-C or SIGTERM; the sweep can be resumed. Besides, whatever the search raises.
    """
    refuse_space(space)
    refuse_table(lut)
    refuse_data(data)
    refuse_backend(backend)
    out = Path(out)
    if resume:
        told_by_first(lambda: require_begun(out, "sweep"))
    swept, values = swept_values(targets_ms, latency_weights)
    told_by_first(lambda: refuse_taken_points(out, swept, values, resume=resume))
    if lut is None:
        raise InvalidInput("a sweep is over milliseconds: give a latency table.")
    config = config or SearchConfig()
    configs = point_configs(config, swept, values)
    common = config.model_copy(update={"target_ms": None})
    choices = list(space.choices().values())
    # By the first process, which alone measures: on an unlike node another might find its backend wanting.
    told_by_first(lambda: lut.check(backend=backend, input_shape=space.input_shape()))
    # The least target is the hardest: a network that keeps it keeps all.
    tightest = min(configs, key=lambda one: one.target_ms or 0.0)
    Budget.asked(space, choices, lut, tightest.target_ms, config.budget)
    measure = measurer_of_first(space, lut, backend, measure, config.budget.processes)
    can_measure = told_by_first(lambda: measure is not None)
    points = _Points()
    identity = {**search_identity(space, lut, data, common), "swept": swept, "values": list(values)}

    def found(place: int, *, resume: bool) -> SweepPoint:
        value, one, folder = values[place], configs[place], out / folder_name(swept, values[place])

        def report(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(value, progress)

        begun = told_by_first((folder / "search.json").is_file)
        under_target = measure if swept == "target_ms" else None
        result = search(
            space, lut, data, one,
            out=folder, resume=resume and begun, on_progress=report,
            measure=under_target, warm_up=out / WARM_UP,
        )  # fmt: skip
        assert result.predicted_ms is not None
        point = SweepPoint(
            value=value,
            folder=folder.name,
            genotype=result.genotype,
            predicted_ms=result.predicted_ms,
            scores=dict(result.scores) if result.scores else None,
        )
        if swept == "latency_weight":
            return told_by_first(lambda: _measured(point, measure))
        outcome = result.budget
        assert outcome is not None
        return point.model_copy(
            update={"measured_ms": outcome.measured_ms, "met": outcome.met, "remarks": outcome.remarks}
        )

    def kept() -> SweepResult:
        result = SweepResult(
            swept=swept,
            shared_epochs=common_epochs(configs[0], [choice.kind for choice in choices]),
            epochs=config.epochs,
            conditions=conditions(lut.header),
            points=with_front(points.done),
        )
        if processes().is_first:
            write_json(out / "pareto.json", result)
        return result

    with Run(out, "sweep", identity, {"points": points}, resume=resume) as run:
        # The first point takes long: stopped in it, the sweep must know what it was.
        run.save()
        earlier = len(points.done)
        for place in run.epochs(len(values)):
            point = found(place, resume=resume)
            points.done.append(point)
            run.log.write("point", step=place, **point.model_dump(mode="json", exclude={"on_front"}))
            kept()
        # Found before, maybe on another machine, where nothing could be measured.
        for place in range(earlier if can_measure else 0):
            if points.done[place].measured_ms is None:
                points.done[place] = point = found(place, resume=True)
                run.log.write("measured", step=place, **point.model_dump(mode="json", exclude={"on_front"}))
                kept()
                run.stop_if_asked(save=True)
        run.save()
        result = kept()
        lacking = write_table_and_plot(result, out) if processes().is_first else None
        if lacking is not None:
            warnings.warn(lacking, NoPlotWarning, stacklevel=3)  # of whoever called: as_one lies between
        return result


def refuse_taken_points(out: Path, swept: Swept, values: Sequence[float], *, resume: bool) -> None:
    """Refuse a folder in which something else than this sweep was begun, in it or in that of any point.

    Raises:
        InvalidInput: there is a run, which is not to be resumed or is of another kind.
    """
    if not resume:
        refuse_taken(out, "sweep")
    for value in values:
        folder = out / folder_name(swept, value)
        if not (resume and (folder / "search.json").is_file()):
            refuse_taken(folder, "search")


def swept_values(
    targets_ms: Sequence[float] | None, latency_weights: Sequence[float] | None
) -> tuple[Swept, tuple[float, ...]]:
    """What is swept over, and the values.

    Raises:
        InvalidInput: not exactly one of the two, fewer than two values, two alike, or one out of range.
    """
    swept: Swept
    if targets_ms is not None and latency_weights is None:
        swept, given, allowed = "target_ms", targets_ms, "above 0"
    elif latency_weights is not None and targets_ms is None:
        swept, given, allowed = "latency_weight", latency_weights, "of at least 0"
    else:
        raise InvalidInput("a sweep is over targets_ms or over latency_weights: give one of them.")
    values = tuple(float(value) for value in given)
    for value in values:
        if not math.isfinite(value) or value < 0 or (value == 0 and swept == "target_ms"):
            raise InvalidInput(f"a {swept} must be a number {allowed}, got {value:g}.")
    if len(values) < 2 or len({folder_name(swept, value) for value in values}) < len(values):
        raise InvalidInput(f"a sweep takes at least two values, all different, got {list(values)}.")
    return swept, values


def point_configs(config: SearchConfig, swept: Swept, values: Sequence[float]) -> list[SearchConfig]:
    """The settings of each point's search.

    Raises:
        InvalidInput: latency weights beside a target.
    """
    if swept == "target_ms":
        return [config.model_copy(update={"target_ms": value}) for value in values]
    if config.target_ms is not None:
        raise InvalidInput(
            f"with a target of {config.target_ms:g} ms the penalty rests, and all latency weights would find "
            "the same: leave target_ms out, or sweep over targets_ms."
        )
    penalties = [config.penalty.model_copy(update={"weight": value}) for value in values]
    return [config.model_copy(update={"penalty": penalty}) for penalty in penalties]


def folder_name(swept: Swept, value: float) -> str:
    """The name of a point's folder: ``4ms``, or ``weight-0.01``."""
    return f"{value:.12g}ms" if swept == "target_ms" else f"weight-{value:.12g}"


class _Points:
    """The points that are done; part of the sweep's checkpoint."""

    def __init__(self) -> None:
        self.done: list[SweepPoint] = []

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"points": [point.model_dump() for point in self.done]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put them back."""
        self.done = [SweepPoint.model_validate(values) for values in state_dict["points"]]


def _measured(point: SweepPoint, measure: Measure | None) -> SweepPoint:
    """The point with what its network takes, or with why that could not be measured."""
    if measure is None:
        return point
    try:
        return point.model_copy(update={"measured_ms": timed(point.genotype, measure).median_ms})
    except MeasurementFailed as error:
        return point.model_copy(update={"remarks": (str(error),)})
