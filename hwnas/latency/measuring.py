"""Timing many modules in several processes, round by round, on a machine that is watched meanwhile.

A process has its own memory layout and its own choice of kernels, and both shift the numbers for as long as
it lives: readings of a single one agree with each other and not with the next. So the rounds are divided
among processes, one after the other, each of which prepares everything anew.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.interleaving import measure_interleaved
from hwnas.latency.levelling import ENTRIES_TO_LEVEL, can_level, levelled, slowdown_by_round, to_usual
from hwnas.latency.measuring_process import Job, OnVisit, Outcome, measure_apart, measure_here
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.steadiness import causes, uncertainty, unsteadiness
from hwnas.latency.stopping import ROUNDS_THAT_TELL, StoppingRule, typical_error
from hwnas.latency.subjects import ModuleSubject, Subject
from hwnas.latency.timing import Timing

K = TypeVar("K")

_PROCESSES_FOR_FEW = 4
# A number on its own, and not of a name (conv2).
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")


class ProfileSettings(BaseModel):
    """How much to read, in how many processes, and what to do on a machine that is not quiet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=8, ge=1)
    """Visits to each entry, over all processes; more where ``relative_error`` asks for them."""
    most_rounds: int = Field(default=16, ge=1)
    """Visits to each entry at most, where ``rounds`` are not more."""
    relative_error: float = Field(default=0.0125, gt=0)
    """While a typical entry is not known to this (:func:`hwnas.latency.stopping.typical_error`), further
    rounds are measured in further processes. From four ``rounds`` on: fewer do not tell."""
    processes: int | None = Field(default=None, ge=1)
    """How many processes share the rounds, one after the other; null: as many as the backend advises, and
    four at most for less than twenty entries."""
    rule: StoppingRule = StoppingRule()
    """When a visit has read enough."""
    seed: int = 0
    """Of the order of visits, of the ops' weights and of their inputs."""
    save_every_seconds: float = Field(default=5.0, ge=0)
    """How often a table that is being filled is written to its file."""
    tolerance: float = Field(default=1.1, gt=1)
    """How many times slower than usual a round may be before it is thrown away and measured again."""
    extra_rounds: int = Field(default=6, ge=0)
    """How many disturbed rounds each process that measures several may measure again."""
    busy: Literal["refuse", "remark"] = "refuse"
    """On a machine that is still not quiet, or where a typical entry of many is known neither to 3 % nor to
    ``relative_error``: refuse the numbers, or keep them and say so in the header."""

    def processes_for(self, backend: LatencyBackend, entries: int) -> int:
        """How many processes measure so many entries with ``backend``: one where readings never differ."""
        if not backend.varies:
            return 1
        if self.processes is not None:
            return self.processes
        # Of a few, starting a process takes longer than all that is read in it; and what their rounds are to
        # one another shows only within a process, which must therefore have several.
        few = entries < ENTRIES_TO_LEVEL
        return min(backend.processes, _PROCESSES_FOR_FEW) if few else backend.processes


@dataclass
class Measured(Generic[K]):
    """Timings, and what the machine did meanwhile.

    Attributes:
        timings: of every subject; those that gave no number are failed.
        remarks: what a reader of the numbers should know.
        busy: what disturbed the measurement, in sentences; empty on a quiet machine.
        processes: how many processes measured.
        measuring_seconds: wall time of visits, without what was prepared for them.
        kept: of failed subjects, what other processes had read: partial, for a later run to go on from.
    """

    timings: dict[K, Timing]
    remarks: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    processes: int = 1
    measuring_seconds: float = 0.0
    kept: dict[K, Timing] = field(default_factory=dict)

    def require_quiet(self, settings: ProfileSettings, consequence: str) -> None:
        """Raise if the machine was busy and ``settings`` do not allow that.

        Args:
            settings: of this measurement.
            consequence: a sentence that says what becomes of the numbers.

        Raises:
            MeasurementFailed: names what disturbed the measurement.
        """
        if self.busy and settings.busy == "refuse":
            raise MeasurementFailed(
                f"the machine was not steady: {' '.join(self.busy)} {consequence} End what else runs here "
                "and try again, or accept such numbers, which will say so (--allow-busy; "
                'ProfileSettings(busy="remark")).'
            )


def measure_subjects(
    subjects: Mapping[K, Subject],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    *,
    earlier: Mapping[K, Timing] | None = None,
    on_visit: Callable[[K, Timing], None] | None = None,
    on_progress: OnVisit | None = None,
) -> Measured[K]:
    """Time all ``subjects`` in interleaved rounds, divided among processes; levelled where they are many.

    Args:
        subjects: name → what to time.
        backend: what to time with.
        settings: how much to read.
        earlier: partial timings of an interrupted run; only the rounds that they lack are measured.
        on_visit: called with a name and its timing so far, ``"partial"`` until its rounds are complete.
            Of a subject that failed: what is kept, else the failed timing.
        on_progress: called after each visit.

    Raises:
        BackendUnavailable: the backend cannot run here.
        InvalidInput: a subject cannot be built.
        MeasurementFailed: a measuring process died or hung; the message says at what.
    """
    settings = settings or ProfileSettings()
    backend.check()
    with tempfile.TemporaryDirectory(prefix="hwnas-") as models:
        measurement = _Measurement(
            subjects, backend, settings, dict(earlier or {}), on_visit, on_progress, Path(models)
        )
        shares = measurement.processes
        for share in range(1, shares + 1):
            measurement.fill(-(-settings.rounds * share // shares))
        measurement.repeat_disturbed()
        measurement.read_on()
        return measurement.found()


class _Measurement(Generic[K]):
    """The timings of ``subjects`` as they come in, process after process (mutated)."""

    def __init__(
        self,
        subjects: Mapping[K, Subject],
        backend: LatencyBackend,
        settings: ProfileSettings,
        earlier: dict[K, Timing],
        on_visit: Callable[[K, Timing], None] | None,
        on_progress: OnVisit | None,
        models: Path,
    ) -> None:
        self.subjects = subjects
        self.backend = backend
        self.settings = settings
        # Fewer rounds may be asked for now than when it was begun.
        self.timings = {
            name: timing.model_copy(update={"status": "ok"}) if timing.rounds >= settings.rounds else timing
            for name, timing in earlier.items()
        }
        self.on_visit = on_visit or (lambda name, timing: None)
        self.on_progress = on_progress or (lambda done, total, what: None)
        self.models = models
        self.processes = settings.processes_for(backend, len(subjects))
        self.remarks: list[str] = []
        self.uncertain: list[str] = []
        self.outcomes: list[Outcome] = []
        self.kept: dict[K, Timing] = {}
        self.canary_ms: list[float] = []  # of the last rounds: those of this run
        self.repeated = 0
        self.done = 0
        self.total = sum(self._missing(name, settings.rounds) for name in subjects)

    def fill(self, goal: int) -> None:
        """Measure in one process until every subject has ``goal`` rounds."""
        files = {name: f"{index}.onnx" for index, name in enumerate(self.subjects)}
        todo = [name for name in self.subjects if self._missing(name, goal)]
        if not todo:
            return
        started = {name: self.timings.get(name) for name in todo}

        def visited(index: int, timing: Timing) -> None:
            name = todo[index]
            before = started[name]
            self.timings[name] = _continued(before, timing, self.settings.rounds)
            if timing.status == "failed" and before is not None:
                # Of the process that failed nothing is kept: its device may have ailed for a while.
                self.kept[name] = before.model_copy(update={"status": "partial"})
            self.on_visit(name, self.kept.get(name, self.timings[name]))

        def progressed(here: int, _: int, what: str) -> None:
            self.on_progress(min(self.done + here, self.total), self.total, what)

        job = Job(
            subjects=[self.subjects[name] for name in todo],
            labels=[str(name) for name in todo],
            backend=self.backend,
            rule=self.settings.rule,
            rounds=goal,
            seed=self.settings.seed + len(self.outcomes),
            tolerance=self.settings.tolerance,
            extra_rounds=self.settings.extra_rounds,
            earlier=[
                [list(values) for values in known.readings_ms] if known is not None else []
                for known in started.values()
            ],
            models=(self.models, [files[name] for name in todo]),
        )
        outcome = None if self.processes == 1 else measure_apart(job, visited, progressed)
        if outcome is None:
            if self.processes > 1:
                self.remarks.append(
                    "Measured in one process: the space or the backend is defined in a script, which another "
                    "process cannot import."
                )
            self.processes, job.rounds = 1, max(goal, self.settings.rounds)
            outcome = measure_here(job, visited, progressed)
        for index, timing in enumerate(outcome.timings):
            visited(index, timing)
        self.done += sum(max(0, job.rounds - len(values)) for values in job.earlier)
        self.outcomes.append(outcome)
        self.canary_ms += outcome.canary_ms
        self.repeated += outcome.repeated
        self.remarks = one_of_each_kind([*self.remarks, *outcome.remarks])

    def repeat_disturbed(self) -> None:
        """Measure once more, in another process, the rounds that ran slower than those of other processes."""
        slowdowns = self._slowdowns()
        rounds, tolerance = len(slowdowns), self.settings.tolerance
        disturbed = [index for index, value in enumerate(slowdowns) if value > tolerance]
        if self.processes == 1 or not disturbed:
            return
        for name, timing in self.timings.items():
            if timing.readings_ms and timing.rounds == rounds:
                self.timings[name] = _without(timing, disturbed)
        self.canary_ms = [
            value
            for index, value in enumerate(self.canary_ms, rounds - len(self.canary_ms))
            if index not in disturbed
        ]
        self.repeated += len(disturbed)
        self.fill(rounds)

    def read_on(self) -> None:
        """Measure further rounds, a process's share at a time, while entries are not known well enough."""
        settings = self.settings
        if not self.backend.varies or settings.rounds < ROUNDS_THAT_TELL:
            return
        # What an interrupted run had begun of them is completed first: entries must have equal rounds.
        goal = max((timing.rounds for timing in self.timings.values()), default=0)
        share = -(-settings.rounds // self.processes)
        self._fill_further(goal)
        while goal < settings.most_rounds and self._error() > settings.relative_error:
            goal = min(settings.most_rounds, goal + share)
            self._fill_further(goal)
        if goal > settings.rounds:
            self.repeat_disturbed()
            self.remarks.append(
                f"Visits to one entry differed much: {goal - settings.rounds} further rounds were measured."
            )
        every = levelled(self.timings).values()
        self.uncertain = uncertainty(every, settings.relative_error)
        error = typical_error(every)
        if error > settings.relative_error and not self.uncertain:
            self.remarks.append(
                f"A typical entry is known to {100 * error:.1f} % only: visits to it differed, as if "
                "something used this machine in bursts."
            )

    def _fill_further(self, goal: int) -> None:
        self.total += sum(self._missing(name, goal) for name in self.subjects)
        self.fill(goal)

    def _error(self) -> float:
        return typical_error(levelled(self.timings).values())

    def found(self) -> Measured[K]:
        """Everything, with what the machine did meanwhile."""
        within = [value for outcome in self.outcomes for value in outcome.slowdowns]
        across = self._slowdowns() if self.backend.varies else ()
        remarks = list(self.remarks)
        if self.repeated:
            remarks.append(f"Disturbed rounds that were measured again: {self.repeated}.")
        tolerance = self.settings.tolerance
        unsteady = unsteadiness(within, tolerance) or unsteadiness(across, tolerance)
        busy = [*unsteady, *self.uncertain]
        borne = max(sum(value > tolerance for value in values) for values in (within, across))
        if borne and not busy:
            remarks.append(f"Rounds that ran slower than usual, few enough to be borne: {borne}.")
        if busy:
            # Of the processes that measured: it is they that may have been pushed off their cores.
            causes_found = causes(self.backend.device, [outcome.states for outcome in self.outcomes])
            busy.append(
                f"Likely causes: {'; '.join(causes_found)}."
                if causes_found
                else "What disturbed them does not show."
            )
        return Measured(
            levelled({name: self.timings[name] for name in self.subjects}),
            remarks,
            busy,
            self.processes,
            sum(outcome.measuring_seconds for outcome in self.outcomes),
            self.kept,
        )

    def _missing(self, name: K, goal: int) -> int:
        """How many rounds a subject lacks; a failed one is not tried again within one measurement."""
        timing = self.timings.get(name)
        if timing is None:
            return goal
        return 0 if timing.status == "failed" else max(0, goal - timing.rounds)

    def _slowdowns(self) -> list[float]:
        """Of all rounds, earlier runs' too, to a usual one, by the worse of two signs.

        Their entries, where there are enough to tell; and the canary, which is known of this run's rounds.
        """
        timings = self.timings.values()
        slowdowns = to_usual(slowdown_by_round(timings))
        if not can_level(timings):
            slowdowns = [1.0] * len(slowdowns)
        canary = to_usual(self.canary_ms)
        # Of earlier runs' rounds it is not known.
        latest = ([1.0] * len(slowdowns) + canary)[len(canary) :]
        return list(map(max, slowdowns, latest))


def _continued(before: Timing | None, timing: Timing, goal: int) -> Timing:
    """``timing`` with the rounds divided among processes, ``before`` being what it began from."""
    if timing.status == "failed":
        return timing
    earlier = () if before is None else before.rounds_by_process or (before.rounds,)
    mine = timing.rounds - sum(earlier)
    shares = (*earlier, mine) if mine > 0 else earlier
    return timing.model_copy(
        update={
            "status": "ok" if timing.rounds >= goal else "partial",
            "rounds_by_process": shares if len(shares) > 1 else (),
        }
    )


def _without(timing: Timing, rounds: Sequence[int]) -> Timing:
    """``timing`` without some of its rounds, by index; never all of them."""
    shares = [
        sum(1 for index in range(end - share, end) if index not in rounds)
        for share, end in zip(
            timing.rounds_by_process or (timing.rounds,),
            itertools.accumulate(timing.rounds_by_process or (timing.rounds,)),
            strict=True,
        )
    ]
    return Timing.from_rounds(
        [values for index, values in enumerate(timing.readings_ms) if index not in rounds],
        status="partial",
        rounds_by_process=[share for share in shares if share],
    )


def one_of_each_kind(remarks: Iterable[str]) -> list[str]:
    """``remarks`` without those that differ from another by numbers only: the one with the most stays."""
    kept: dict[str, str] = {}
    for remark in remarks:
        kind = _NUMBER.sub("#", remark)
        kept[kind] = max(kept.get(kind, remark), remark, key=_numbers)
    return list(kept.values())


def _numbers(remark: str) -> list[float]:
    return list(map(float, _NUMBER.findall(remark)))


def estimate_seconds(
    subjects: Mapping[K, Subject],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    *,
    sample: int = 12,
) -> tuple[float, float]:
    """About how long :func:`measure_subjects` will take: seconds of preparing, and of measuring.

    Prepares and visits a sample of each kind of subject once, evenly spread, and scales up: what a process
    needs to start, which is tried, and to load, for each process; exporting a model once. Further rounds
    (``most_rounds``) are left out: with all of them measuring takes ``most_rounds / rounds`` times as long.

    Raises:
        BackendUnavailable: the backend cannot run here.
        MeasurementFailed: none of the sample could be timed.
    """
    settings = settings or ProfileSettings()
    backend.check()
    processes = settings.processes_for(backend, len(subjects))
    preparing = 0.0
    if processes > 1:
        began = time.perf_counter()
        nothing = Job([], [], backend, settings.rule, 0, 0, settings.tolerance, 0, [])
        if measure_apart(nothing, lambda index, timing: None, lambda done, total, what: None) is None:
            processes = 1
        else:
            preparing = processes * (time.perf_counter() - began)
    measuring = 0.0
    kinds: dict[type[Subject], list[Subject]] = {}
    for subject in subjects.values():
        kinds.setdefault(type(subject), []).append(subject)
    for kind in kinds.values():
        exporting, loading, visiting = _tried(kind[:: max(1, len(kind) // sample)], backend, settings)
        preparing += len(kind) * (exporting + loading * processes)
        measuring += len(kind) * visiting * settings.rounds
    return preparing, measuring


def _tried(
    subjects: Sequence[Subject], backend: LatencyBackend, settings: ProfileSettings
) -> tuple[float, float, float]:
    """Mean seconds of exporting one of them, which is done once, of loading it, and of a visit to it."""
    exporting = loading = visiting = 0.0
    tried = 0
    for subject in subjects:
        began = exported = time.perf_counter()
        try:
            if isinstance(backend, OnnxBackend):
                inputs = subject.inputs()
                model = backend.export(subject.build(), inputs)
                exported = time.perf_counter()
                reader = backend.prepare_model(model, inputs)
            else:
                reader = backend.prepare(subject.build(), subject.inputs())
        except (BackendUnavailable, InvalidInput):
            raise
        except HwnasError:
            continue
        ready = time.perf_counter()
        measure_interleaved({"": reader}, settings.rule, 1, first_counts=backend.first_counts)
        visiting += time.perf_counter() - ready
        exporting += exported - began
        loading += ready - exported
        tried += 1
    if not tried:
        raise MeasurementFailed(f"none of {len(subjects)} entries could be timed with {backend}.")
    return exporting / tried, loading / tried, visiting / tried


def measure_networks(
    networks: Mapping[K, tuple[nn.Module, Sequence[Tensor]]],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    on_progress: OnVisit | None = None,
) -> Measured[K]:
    """Time whole networks, name → (network, inputs), in interleaved rounds. They are not changed.

    Raises:
        MeasurementFailed: one of them gave no number, or the machine was not steady.
        BackendUnavailable: the backend cannot run here.
    """
    subjects = {name: ModuleSubject(module, tuple(inputs)) for name, (module, inputs) in networks.items()}
    return measure_all(subjects, backend, settings, on_progress)


def measure_all(
    subjects: Mapping[K, Subject],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    on_progress: OnVisit | None = None,
) -> Measured[K]:
    """:func:`measure_subjects` where every one of them must give a number, on a quiet machine.

    Raises:
        MeasurementFailed: one of them gave no number, or the machine was not steady.
        BackendUnavailable: the backend cannot run here.
    """
    settings = settings or ProfileSettings()
    measured = measure_subjects(subjects, backend, settings, on_progress=on_progress)
    for name, timing in measured.timings.items():
        if timing.status == "failed":
            raise MeasurementFailed(f"{name} could not be measured with {backend}: {timing.error}")
    measured.require_quiet(settings, "Nothing was kept.")
    return measured


def measure_network(
    module: nn.Module,
    inputs: Sequence[Tensor],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
) -> Timing:
    """Time one whole network end to end; milliseconds for one call on the batch of ``inputs``.

    Raises:
        MeasurementFailed: it gave no number, or the machine was not steady.
        BackendUnavailable: the backend cannot run here.
    """
    name = type(module).__name__
    return measure_networks({name: (module, inputs)}, backend, settings).timings[name]
