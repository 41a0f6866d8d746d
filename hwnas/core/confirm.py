"""Confirmation: what was found for a target is measured, and found again where the measurement disagrees."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

from pydantic import BaseModel, ConfigDict

from hwnas.core.arch import ArchParameters
from hwnas.core.budget import Budget, Found
from hwnas.core.genotype import Genotype
from hwnas.core.probing import network_subjects
from hwnas.core.space import SearchSpace
from hwnas.errors import CheckpointError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.measuring import ProfileSettings, measure_subjects
from hwnas.latency.timing import Timing
from hwnas.processes import processes, told_by_first

Measure: TypeAlias = Callable[[Genotype], Timing | float]
"""Milliseconds of a network, measured; raises MeasurementFailed where there is no number."""
Choose: TypeAlias = Callable[[float, Sequence[Mapping[str, int]]], Found | None]
"""A network that keeps the budget, by predictions times a factor, and is none of those given; or None."""


class Attempt(BaseModel):
    """A network that was measured for a target."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    genotype: Genotype
    table_ms: float
    """Predicted by the table, as it is."""
    correction: float
    """What the table's predictions were multiplied by when it was chosen."""
    measured_ms: float
    spread_ms: float
    """Of the readings."""
    count: int
    """How many readings."""


class BudgetOutcome(BaseModel):
    """How a search ended that was given a budget; JSON in ``RUN/result.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: dict[str, float]
    """What the network may cost at most, by the name of the cost."""
    costs: dict[str, float]
    """What it costs, by the same names; ``latency_ms`` is by the table as it is, whatever was measured."""
    predicted_ms: float | None = None
    """What was predicted when it was chosen: ``costs["latency_ms"]`` times the correction that the attempts
    before had taught. The two are the same where it was the first that was measured, or none was."""
    correction: float = 1.0
    """Geometric mean of measured ÷ table milliseconds over all attempts; the table was left as it is."""
    measured_ms: float | None = None
    """None where it was not measured."""
    met: bool | None = None
    """Whether the measurement is at most the target, with the tolerance allowed; None where there is none. It
    may be far below: that it wastes more of the target than ``budget.below`` allows, a remark says."""
    attempts: tuple[Attempt, ...] = ()
    """The networks that were measured, in order."""
    remarks: tuple[str, ...] = ()
    """What a reader should know: why it was not measured, or not met."""


def predicted_outcome(budget: Budget, assignment: dict[str, int]) -> BudgetOutcome:
    """What is known of a network of which nothing was measured."""
    costs = budget.costs(assignment)
    return BudgetOutcome(
        asked=budget.most(), costs=costs, predicted_ms=costs.get("latency_ms"), remarks=budget.remarks()
    )


def measured_by(
    space: SearchSpace,
    backend: LatencyBackend,
    *,
    batch: int = 1,
    settings: ProfileSettings | None = None,
) -> Measure:
    """A function that measures networks of ``space`` end to end with ``backend``, with fresh weights.

    The function raises MeasurementFailed where a network gives no number, or the machine is not steady.
    """

    def measure(genotype: Genotype) -> Timing:
        subjects = network_subjects(space, [genotype], batch=batch)
        found = measure_subjects(
            {name: network.subject for name, network in subjects.items()}, backend, settings
        )
        timing = found.timings[genotype.short_id]
        if timing.status == "failed":
            raise MeasurementFailed(
                f"{genotype.short_id} could not be measured with {backend}: {timing.error}"
            )
        found.require_quiet(settings or ProfileSettings(), "The network was not measured.")
        return timing

    return measure


def measurer(
    space: SearchSpace,
    table: Any,
    backend: LatencyBackend | None,
    measure: Measure | None,
    processes: int | None = None,
) -> Measure:
    """The caller's way to measure networks: ``measure``, or ``backend``, which must be able to run here.

    With a backend each network is read in three rounds in each of ``processes`` (four in one), and in up to
    twice as many further rounds, in further processes, while its readings differ too much; None: as many
    processes as the backend advises.

    Raises:
        InvalidInput: both.
        BackendUnavailable: the backend cannot run here.
    """
    if measure is not None:
        if backend is not None:
            raise InvalidInput("give backend or measure, not both: each says how to measure.")
        return measure
    assert backend is not None
    backend.check()
    processes = ProfileSettings(processes=processes).processes_for(backend, entries=1)
    # A network's few readings in one process are over within a second, and a neighbour's burst may last as
    # long: where they differ, what tells is further processes.
    rounds = max(4, 3 * processes)
    settings = ProfileSettings(rounds=rounds, most_rounds=3 * rounds, processes=processes)
    return measured_by(space, backend, batch=table.header.batch, settings=settings)


def measurer_of_first(
    space: SearchSpace,
    table: Any,
    backend: LatencyBackend | None,
    measure: Measure | None,
    count: int | None = None,
) -> Measure | None:
    """:func:`measurer` in the first process, where there is anything to measure with; None in all others.

    All processes call this together, and all raise what the first one does. It alone measures: what the
    others could do does not matter, and may be another thing on an unlike node.

    Args:
        space: of the networks.
        table: under whose conditions.
        backend: the way to measure, or
        measure: the same; neither: None.
        count: in how many processes a network is measured.

    Raises:
        InvalidInput: both.
        BackendUnavailable: the backend cannot run here.
    """
    made: list[Measure] = []

    def make() -> None:
        if backend is not None or measure is not None:
            made.append(measurer(space, table, backend, measure, count))

    told_by_first(make)
    return made[0] if made else None


def earlier_attempts(out: Path | None) -> tuple[Attempt, ...]:
    """The networks that the run in ``out`` has measured for its target so far.

    Raises:
        CheckpointError: its result.json is damaged.
    """
    path = None if out is None else out / "result.json"
    if path is None or not path.is_file():
        return ()
    try:
        kept = json.loads(path.read_text()).get("budget")
        return BudgetOutcome.model_validate(kept).attempts if kept else ()
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged, and with it what was measured for the target: {error}\n"
            "Delete it and resume again; the networks are then measured anew."
        ) from error


def confirmed(
    budget: Budget,
    arch: ArchParameters,
    measure: Measure | None = None,
    *,
    earlier: Sequence[Attempt] = (),
    keep: Callable[[dict[str, int], BudgetOutcome], object] | None = None,
    choose: Choose | None = None,
    between: Callable[[], object] | None = None,
) -> tuple[dict[str, int], BudgetOutcome]:
    """The network that a search ends with: the best that keeps the budget, also when it is measured.

    Where the measurement lies outside of the tolerance, predictions are corrected by the geometric mean of
    measured ÷ predicted over all attempts, and the best network by those is measured next. If none of
    ``rounds`` attempts is within, the slowest that is not too slow is taken. If all are too slow, the fastest
    network of the space is tried as well, and the fastest of all is taken, as the nearest there is.

    Several processes call this together; the first one measures, since several at once would be in each
    other's way, and keeps.

    Args:
        budget: with a target, if there is anything to measure.
        arch: whose probabilities.
        measure: milliseconds of a network; None: predictions have to do, and ``earlier``.
        earlier: attempts of a confirmation that was interrupted, or done; they are not measured again, and
            all of them count, even where other networks would be chosen now.
        keep: called with the assignment that would be taken and what is known of it, at first from the
            prediction alone, then after each measurement; never with less than ``earlier`` knows.
        choose: which network keeps the budget best, by a correction of predictions, and without those that
            were measured; default: the likeliest.
        between: called after each measurement that is not the last, once it is kept; may raise to stop here.
    """
    if choose is None:

        def choose(correction: float, without: Sequence[Mapping[str, int]]) -> Found | None:
            return told_by_first(partial(budget.likeliest, arch, correction=correction, without=without))

    found = choose(1.0, ())
    assert found is not None, "pruning leaves a network within the budget"
    taken, outcome = found.assignment, predicted_outcome(budget, found.assignment)

    def kept(assignment: dict[str, int], outcome: BudgetOutcome) -> None:
        if keep is not None and processes().is_first:
            keep(assignment, outcome)

    if not earlier:
        kept(taken, outcome)
    can_measure = told_by_first(lambda: measure is not None)
    if budget.target_ms is None:
        return taken, outcome
    lowest_ms = 0.0 if budget.config.below is None else (1.0 - budget.config.below) * budget.target_ms
    highest_ms = (1.0 + budget.config.above) * budget.target_ms
    left = list(earlier)
    attempts: list[Attempt] = []
    assignments: list[dict[str, int]] = []
    while found is not None:
        genotype = budget.space.genotype(found.assignment)
        is_new = not left
        if left and left[0].genotype.short_id == genotype.short_id:
            added = [(found.assignment, left.pop(0))]
        elif left:
            # Another machine's solver, or rounding, chose otherwise: what was measured counts all the same.
            added = [(budget.space.assignment(attempt.genotype), attempt) for attempt in left]
            left.clear()
        elif not can_measure:
            break
        else:
            table_ms = budget.costs(found.assignment)["latency_ms"]
            try:
                attempt = told_by_first(
                    partial(_attempted, genotype, table_ms, outcome.correction, cast(Measure, measure))
                )
            except MeasurementFailed as error:
                outcome = outcome.model_copy(update={"remarks": (*outcome.remarks, f"not measured: {error}")})
                kept(taken, outcome)
                break
            added = [(found.assignment, attempt)]
        assignments += [assignment for assignment, _ in added]
        attempts += [attempt for _, attempt in added]
        best = min(range(len(attempts)), key=lambda index: _order(attempts[index].measured_ms, highest_ms))
        taken = assignments[best]
        outcome = _measured_outcome(budget, budget.target_ms, taken, attempts[best], attempts)
        if not left:
            kept(taken, outcome)
        is_within = any(lowest_ms <= attempt.measured_ms <= highest_ms for _, attempt in added)
        if is_within or (outcome.met and not found.near):
            break
        if is_new and between is not None:
            between()
        found = _next(budget, choose, outcome, assignments)
    return taken, outcome


def _measured_outcome(
    budget: Budget,
    target_ms: float,
    assignment: dict[str, int],
    taken: Attempt,
    attempts: Sequence[Attempt],
) -> BudgetOutcome:
    ratios = [math.log(attempt.measured_ms / attempt.table_ms) for attempt in attempts]
    return BudgetOutcome(
        asked=budget.most(),
        costs=budget.costs(assignment),
        predicted_ms=taken.table_ms * taken.correction,
        correction=math.exp(math.fsum(ratios) / len(ratios)),
        measured_ms=taken.measured_ms,
        met=taken.measured_ms <= (1.0 + budget.config.above) * target_ms,
        attempts=tuple(attempts),
        remarks=budget.remarks(taken.measured_ms),
    )


def timed(genotype: Genotype, measure: Measure) -> Timing:
    """What ``measure`` says of a network, as a timing.

    Raises:
        MeasurementFailed: there is no number, or one that is no latency.
    """
    timing = measure(genotype)
    if not isinstance(timing, Timing):
        timing = Timing.from_rounds([[float(timing)]])
    if timing.median_ms <= 0:
        raise MeasurementFailed(f"{genotype.short_id} took {timing.median_ms} ms, which is no latency.")
    return timing


def _attempted(genotype: Genotype, table_ms: float, correction: float, measure: Measure) -> Attempt:
    timing = timed(genotype, measure)
    return Attempt(
        genotype=genotype,
        table_ms=table_ms,
        correction=correction,
        measured_ms=timing.median_ms,
        spread_ms=timing.spread_ms,
        count=timing.count,
    )


def _next(
    budget: Budget, choose: Choose, outcome: BudgetOutcome, tried: Sequence[dict[str, int]]
) -> Found | None:
    """The network to measure next; None where there is no more to try."""
    if len(tried) < budget.config.rounds:
        found = choose(outcome.correction, tried)
        if found is not None:
            return found
    # By the first process: of equally fast networks another one's solver may find another.
    fastest = told_by_first(budget.fastest)
    live = budget.programme.live
    if outcome.met or live(fastest) in [live(assignment) for assignment in tried]:
        return None
    return Found(fastest, near=False)


def _order(measured_ms: float, highest_ms: float) -> tuple[bool, float]:
    """Of attempts: not too slow before too slow; of those the slowest, of these the fastest first."""
    too_slow = measured_ms > highest_ms
    return too_slow, measured_ms if too_slow else -measured_ms
