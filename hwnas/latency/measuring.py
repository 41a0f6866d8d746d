"""Timing many modules in several processes, round by round, on a machine that is watched meanwhile.

A process has its own memory layout and its own choice of kernels, and both shift the numbers for as long as
it lives: readings of a single one agree with each other and not with the next. So the rounds are divided
among processes, one after the other, each of which prepares everything anew.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import LatencyBackend, host_clock
from hwnas.latency.device import DeviceState
from hwnas.latency.steadiness import canary, causes
from hwnas.latency.timing import Reader, RoundWatch, StoppingRule, Timing, measure_interleaved
from hwnas.ops import OpKey, build_op, registered_ops

K = TypeVar("K")
Progress = Callable[[int, int, str], None]
"""Called with (visits done, visits in all, what was visited)."""


class ProfileSettings(BaseModel):
    """How much to read, in how many processes, and what to do on a machine that is not quiet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=6, ge=1)
    """Visits to each entry, over all processes."""
    processes: int = Field(default=2, ge=1)
    """How many processes share the rounds, one after the other."""
    rule: StoppingRule = StoppingRule()
    """When a visit has read enough."""
    seed: int = 0
    """Of the order of visits, of the ops' weights and of their inputs."""
    save_every_seconds: float = Field(default=5.0, ge=0)
    """How often a table that is being filled is written to its file."""
    tolerance: float = Field(default=1.1, gt=1)
    """How many times slower than usual a round may be before it is thrown away and measured again."""
    extra_rounds: int = Field(default=6, ge=0)
    """How many disturbed rounds each process may measure again."""
    busy: Literal["refuse", "remark"] = "refuse"
    """On a machine that is still not quiet: refuse the numbers, or keep them and say so in the header."""


class Subject(ABC):
    """Something to time: how to make the module and its inputs, in whichever process. Picklable."""

    @abstractmethod
    def build(self) -> tuple[nn.Module, list[Tensor]]:
        """The module in evaluation mode, and its inputs. The caller's random state is left alone."""

    def modules(self) -> set[str]:
        """Names of Python modules that must be imported before :meth:`build`."""
        return set()


def plausible_inputs(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    """Values as they follow a ReLU (half of them zero, the rest half-normal), one tensor for each shape.

    Never constants, on which a max-pool is much quicker.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).relu_() for shape in shapes]


@dataclass(frozen=True)
class OpSubject(Subject):
    """One op alone, rebuilt from its key with fresh weights."""

    key: OpKey
    seed: int = 0

    def build(self) -> tuple[nn.Module, list[Tensor]]:
        """The op and plausible inputs."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            op = build_op(self.key.spec).eval()
        # Two inputs of one op are two tensors with other values.
        inputs = [
            plausible_inputs([shape], self.seed + slot)[0] for slot, shape in enumerate(self.key.input_shapes)
        ]
        return op, inputs

    def modules(self) -> set[str]:
        """The module that registers the op."""
        known = registered_ops().get(self.key.spec.kind)
        return set() if known is None else {known.__module__}


@dataclass(frozen=True)
class ModuleSubject(Subject):
    """A module that is there already, with its inputs."""

    module: nn.Module
    inputs: tuple[Tensor, ...]

    def build(self) -> tuple[nn.Module, list[Tensor]]:
        """A copy in evaluation mode."""
        return copy.deepcopy(self.module).eval(), list(self.inputs)


@dataclass
class Measured(Generic[K]):
    """Timings, and what the machine did meanwhile.

    Attributes:
        timings: of every subject; those that gave no number are failed.
        remarks: what a reader of the numbers should know.
        busy: what disturbed the measurement, in sentences; empty on a quiet machine.
        processes: how many processes measured.
    """

    timings: dict[K, Timing]
    remarks: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    processes: int = 1

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
    on_progress: Progress | None = None,
) -> Measured[K]:
    """Time all ``subjects`` in interleaved rounds, divided among processes.

    Args:
        subjects: name → what to time.
        backend: what to time with.
        settings: how much to read.
        earlier: partial timings of an interrupted run; only the rounds that they lack are measured.
        on_visit: called with a name and its timing so far, ``"partial"`` until its rounds are complete.
        on_progress: called after each visit.

    Raises:
        BackendUnavailable: the backend cannot run here.
        InvalidInput: a subject cannot be built.
        MeasurementFailed: a measuring process died; the message says at what.
    """
    settings = settings or ProfileSettings()
    backend.check()
    names = list(subjects)
    timings: dict[K, Timing] = {
        # Fewer rounds may be asked for now than when it was begun.
        name: timing.model_copy(update={"status": "ok"}) if timing.rounds >= settings.rounds else timing
        for name, timing in (earlier or {}).items()
    }
    processes = settings.processes if backend.varies else 1
    remarks: list[str] = []
    slowdowns: list[float] = []
    states: list[DeviceState] = []
    repeated = 0
    total = sum(max(0, settings.rounds - _rounds(timings.get(name))) for name in names)
    done = 0

    for process in range(processes):
        goal = -(-settings.rounds * (process + 1) // processes)
        todo = [name for name in names if _rounds(timings.get(name)) < goal]
        if not todo:
            continue
        started = {name: timings.get(name) for name in todo}

        def note(
            index: int, timing: Timing, todo: list[K] = todo, started: dict[K, Timing | None] = started
        ) -> None:
            name = todo[index]
            timings[name] = _continued(started[name], timing, settings.rounds)
            if on_visit is not None:
                on_visit(name, timings[name])

        def progressed(here: int, _: int, what: str, base: int = done) -> None:
            if on_progress is not None:
                on_progress(min(base + here, total), total, what)

        job = _Job(
            subjects=[subjects[name] for name in todo],
            labels=[str(name) for name in todo],
            backend=backend,
            rule=settings.rule,
            rounds=goal,
            seed=settings.seed + process,
            tolerance=settings.tolerance,
            extra_rounds=settings.extra_rounds,
            earlier=[
                [list(values) for values in known.readings_ms] if known is not None else []
                for known in started.values()
            ],
        )
        outcome = None if processes == 1 else _run_apart(job, note, progressed)
        if outcome is None:
            if processes > 1:
                remarks.append(
                    "Measured in one process: the space or the backend is defined in a script, which another "
                    "process cannot import."
                )
            processes, job.rounds = 1, settings.rounds
            outcome = _run_here(job, note, progressed)
        for index, timing in enumerate(outcome.timings):
            note(index, timing)
        done += sum(max(0, job.rounds - len(values)) for values in job.earlier)
        states += outcome.states
        slowdowns += outcome.slowdowns
        repeated += outcome.repeated
        remarks += [remark for remark in outcome.remarks if remark not in remarks]
        if job.rounds == settings.rounds:
            break
    if repeated:
        remarks.append(f"Disturbed rounds that were measured again: {repeated}.")
    busy: list[str] = []
    if slowdowns and max(slowdowns) > settings.tolerance:
        # Of the processes that measured: it is they that may have been pushed off their cores.
        pairs = zip(states[::2], states[1::2], strict=True)
        found = list(dict.fromkeys(cause for pair in pairs for cause in causes(backend.device, *pair)))
        listed = ", ".join(f"{value:.2f}" for value in slowdowns)
        busy = [
            f"Rounds ran at unequal speed, as a ratio to the usual: {listed}.",
            f"Likely causes: {'; '.join(found)}." if found else "What disturbed them does not show.",
        ]
    return Measured({name: timings[name] for name in names}, remarks, busy, processes)


def _rounds(timing: Timing | None) -> int:
    """How many rounds a timing has; a failed one is not tried again within one measurement."""
    if timing is None:
        return 0
    return sys.maxsize if timing.status == "failed" else timing.rounds


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


def estimate_seconds(
    subjects: Mapping[K, Subject],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    *,
    sample: int = 12,
) -> tuple[float, float]:
    """About how long :func:`measure_subjects` will take: seconds of preparing, and of measuring.

    Prepares and visits a sample of the subjects once, evenly spread, and scales up.

    Raises:
        BackendUnavailable: the backend cannot run here.
        MeasurementFailed: none of the sample could be timed.
    """
    settings = settings or ProfileSettings()
    backend.check()
    every = list(subjects.values())
    step = max(1, len(every) // sample)
    preparing = measuring = 0.0
    tried = 0
    for subject in every[::step]:
        began = time.perf_counter()
        try:
            reader = backend.prepare(*subject.build())
        except (BackendUnavailable, InvalidInput):
            raise
        except HwnasError:
            continue
        ready = time.perf_counter()
        measure_interleaved({"": reader}, settings.rule, 1)
        measuring += time.perf_counter() - ready
        preparing += ready - began
        tried += 1
    if not tried:
        raise MeasurementFailed(f"none of {len(every[::step])} entries could be timed with {backend}.")
    scale = len(every) / tried
    processes = settings.processes if backend.varies else 1
    return preparing * scale * processes, measuring * scale * settings.rounds


def measure_networks(
    networks: Mapping[K, tuple[nn.Module, Sequence[Tensor]]],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    on_progress: Progress | None = None,
) -> Measured[K]:
    """Time whole networks, name → (network, inputs), in interleaved rounds. They are not changed.

    Raises:
        MeasurementFailed: one of them gave no number, or the machine was not steady.
        BackendUnavailable: the backend cannot run here.
    """
    settings = settings or ProfileSettings()
    subjects = {name: ModuleSubject(module, tuple(inputs)) for name, (module, inputs) in networks.items()}
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


@dataclass
class _Job:
    """What one process measures."""

    subjects: list[Subject]
    labels: list[str]
    backend: LatencyBackend
    rule: StoppingRule
    rounds: int
    seed: int
    tolerance: float
    extra_rounds: int
    earlier: list[list[list[float]]]


@dataclass
class _Outcome:
    timings: list[Timing]
    slowdowns: list[float]
    repeated: int
    remarks: list[str]
    states: list[DeviceState]
    """Of the measuring process, before its first reading and after its last."""


_Visited = Callable[[int, Timing], None]


def _run_here(
    job: _Job, visited: _Visited, progressed: Progress, doing: Callable[[str], None] = lambda what: None
) -> _Outcome:
    """Prepare and measure in this process."""
    readers: dict[int, Reader] = {}
    failures: dict[int, str] = {}
    for position, subject in enumerate(job.subjects):
        doing(f"preparing {job.labels[position]}")
        try:
            readers[position] = job.backend.prepare(*subject.build())
        except (BackendUnavailable, InvalidInput):
            raise
        except HwnasError as error:
            failures[position] = str(error)
    doing("measuring")
    before = DeviceState.read(job.backend.device)
    clock = host_clock(job.backend.threads)[1]
    watch = RoundWatch(
        canary(clock) if job.backend.varies else None,
        job.tolerance,
        job.extra_rounds if job.backend.varies else 0,
    )

    def read(position: int, readings: list[list[float]]) -> None:
        visited(position, Timing.from_rounds(readings))

    timings = measure_interleaved(
        readers,
        job.rule,
        job.rounds,
        job.seed,
        lambda done, total, position: progressed(done, total, job.labels[int(position)]),
        earlier={position: job.earlier[position] for position in readers},
        on_visit=read,
        watch=watch,
    )
    return _Outcome(
        [
            Timing.failed(failures[position]) if position in failures else timings[position]
            for position in range(len(job.subjects))
        ],
        watch.slowdowns if job.backend.varies else [],
        watch.repeated,
        job.backend.remarks(),
        [before, DeviceState.read(job.backend.device)],
    )


def _run_apart(job: _Job, visited: _Visited, progressed: Progress) -> _Outcome | None:
    """The same in a process of its own; None if that process cannot have the job."""
    modules = {name for subject in job.subjects for name in subject.modules()}
    try:
        handed = pickle.dumps(job)
    except Exception:  # noqa: BLE001 - pickle raises whatever the objects' own hooks raise
        return None
    if "__main__" in modules or b"__main__" in handed:
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-c", "from hwnas.latency.measuring import _child; _child()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdin is not None and child.stdout is not None
    doing = "starting"
    try:
        try:
            pickle.dump(sorted(modules), child.stdin)
            child.stdin.write(handed)
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died at once: its exit code says so below
        for line in child.stdout:
            said = json.loads(line)
            if "doing" in said:
                doing = said["doing"]
            elif "visited" in said:
                visited(said["visited"], Timing.from_rounds(said["readings"]))
            elif "progress" in said:
                progressed(*said["progress"])
            elif "unusable" in said:
                return None
            elif "error" in said:
                raise _as_raised(said)
            else:
                return _Outcome(
                    [Timing.model_validate(timing) for timing in said["timings"]],
                    said["slowdowns"],
                    said["repeated"],
                    said["remarks"],
                    [DeviceState.model_validate(state) for state in said["states"]],
                )
        raise MeasurementFailed(
            f"the measuring process ended with exit code {child.wait()} while {doing}, and gave no "
            "number for it. Was the device lost, or the memory used up? What was measured before is kept."
        )
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _received() -> _Job | None:
    """The job from the parent; None if what it needs cannot be imported here."""
    import importlib

    try:
        for name in pickle.load(sys.stdin.buffer):  # noqa: S301 - from the parent, by a pipe
            importlib.import_module(name)
        job: _Job = pickle.load(sys.stdin.buffer)  # noqa: S301
    except (ImportError, AttributeError):
        return None
    return job


def _as_raised(said: dict[str, str]) -> HwnasError:
    known: dict[str, type[HwnasError]] = {
        kind.__name__: kind for kind in (BackendUnavailable, InvalidInput, MeasurementFailed)
    }
    return known.get(said["kind"], MeasurementFailed)(said["error"])


def _child() -> None:
    """A measuring process: a job comes in by stdin, JSON lines go out by stdout."""
    # Ctrl-C goes to the whole group; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Runtimes print to stdout: what is read by the parent goes by a copy of it.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")

    try:
        job = _received()
        if job is None:
            say(unusable=True)
            return
        outcome = _run_here(
            job,
            lambda position, timing: say(visited=position, readings=timing.readings_ms),
            lambda done, total, what: say(progress=[done, total, what]),
            lambda what: say(doing=what),
        )
    except HwnasError as error:
        say(error=str(error), kind=type(error).__name__)
        return
    except BrokenPipeError:
        return
    say(
        timings=[timing.model_dump(mode="json") for timing in outcome.timings],
        slowdowns=outcome.slowdowns,
        repeated=outcome.repeated,
        remarks=outcome.remarks,
        states=[state.model_dump(mode="json") for state in outcome.states],
    )
