"""One process's share of a measurement: the job that it gets, how it works, and how the two talk.

The job goes to the child as a pickle through a pipe, never a file; what it finds comes back as JSON lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import LatencyBackend, host_clock
from hwnas.latency.device import DeviceState
from hwnas.latency.interleaving import RoundWatch, measure_interleaved
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.steadiness import canary
from hwnas.latency.stopping import StoppingRule
from hwnas.latency.subjects import ModelSubject, Subject
from hwnas.latency.timing import Reader, Timing

OnVisit = Callable[[int, int, str], None]
"""Called with (visits done, visits in all, what was visited)."""
Visited = Callable[[int, Timing], None]
"""Called with the subject's position and its timing so far, by this process and those before it."""

# A visit lasts 25 ms, or two inferences; half an hour without one is a device that hangs.
_PATIENCE_SECONDS = 1800.0


@dataclass
class Job:
    """What one process measures.

    Attributes:
        subjects: what to time.
        labels: what errors and progress call each of them.
        backend: what to time with.
        rule: when a visit has read enough.
        rounds: how many each subject is to have in the end, ``earlier`` ones included.
        seed: of the order of visits.
        tolerance: how many times slower than usual a round may be.
        extra_rounds: how many disturbed rounds may be measured again.
        earlier: readings of each subject that other processes took, by round.
        models: folder, and file name for each subject, where exported models are kept between processes.
        patience_seconds: how long it may read without a visit to report.
    """

    subjects: list[Subject]
    labels: list[str]
    backend: LatencyBackend
    rule: StoppingRule
    rounds: int
    seed: int
    tolerance: float
    extra_rounds: int
    earlier: list[list[list[float]]]
    models: tuple[Path, list[str]] | None = None
    patience_seconds: float = _PATIENCE_SECONDS


@dataclass
class Outcome:
    """What one process found.

    Attributes:
        timings: of every subject.
        slowdowns: how much slower than usual each of its rounds was.
        canary_ms: of each of its rounds; empty where readings never differ.
        repeated: how many rounds it measured again.
        remarks: the backend's.
        states: of the process, before its first reading and after its last.
        measuring_seconds: wall time from the first visit to the last.
    """

    timings: list[Timing]
    slowdowns: list[float]
    canary_ms: list[float]
    repeated: int
    remarks: list[str]
    states: tuple[DeviceState, DeviceState]
    measuring_seconds: float


def measure_here(
    job: Job, visited: Visited, progressed: OnVisit, doing: Callable[[str], None] = lambda what: None
) -> Outcome:
    """Prepare and measure in this process."""
    readers: dict[int, Reader] = {}
    failures: dict[int, str] = {}
    for position in range(len(job.subjects)):
        doing(f"preparing {job.labels[position]}")
        try:
            readers[position] = _prepared(job, position)
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

    began = time.perf_counter()
    timings = measure_interleaved(
        readers,
        job.rule,
        job.rounds,
        job.seed,
        lambda done, total, position: progressed(done, total, job.labels[int(position)]),
        earlier={position: job.earlier[position] for position in readers},
        on_start=lambda position: doing(f"measuring {job.labels[position]}"),
        on_visit=read,
        watch=watch,
        first_counts=job.backend.first_counts,
    )
    seconds = time.perf_counter() - began
    return Outcome(
        [
            Timing.failed(failures[position]) if position in failures else timings[position]
            for position in range(len(job.subjects))
        ],
        watch.slowdowns if job.backend.varies else [],
        watch.canary_ms,
        watch.repeated,
        job.backend.remarks(),
        (before, DeviceState.read(job.backend.device)),
        seconds,
    )


def _prepared(job: Job, position: int) -> Reader:
    """A subject's reader; a model that another process exported is loaded, and not made again."""
    subject, backend = job.subjects[position], job.backend
    if isinstance(subject, ModelSubject) and isinstance(backend, OnnxBackend):
        return backend.prepare_model(subject.model, subject.inputs(), job.labels[position])
    if not isinstance(backend, OnnxBackend) or job.models is None:
        return backend.prepare(subject.build(), subject.inputs())
    folder, names = job.models
    path = folder / names[position]
    inputs = subject.inputs()
    if not path.is_file():
        path.write_bytes(backend.export(subject.build(), inputs))
    return backend.prepare_model(path.read_bytes(), inputs, job.labels[position])


def measure_apart(job: Job, visited: Visited, progressed: OnVisit) -> Outcome | None:
    """The same in a process of its own; None if that process cannot have the job.

    Raises:
        BackendUnavailable: the backend cannot run there.
        InvalidInput: a subject cannot be built.
        MeasurementFailed: the process died, or hung while it read; the message says at what.
    """
    modules = {name for subject in job.subjects for name in subject.modules()}
    try:
        handed = pickle.dumps(job)
    except Exception:  # noqa: BLE001 - pickle raises whatever the objects' own hooks raise
        return None
    if "__main__" in modules or b"__main__" in handed:
        return None
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.Popen(
        [sys.executable, "-c", "from hwnas.latency.measuring_process import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdin is not None and child.stdout is not None
    doing, heard, over = "starting", time.monotonic(), threading.Event()

    def end_if_it_hangs() -> None:
        # While it prepares nothing is told apart from an engine that builds for an hour.
        while not over.wait(job.patience_seconds):
            if doing.startswith("measuring") and time.monotonic() - heard >= job.patience_seconds:
                child.kill()
                return

    threading.Thread(target=end_if_it_hangs, daemon=True).start()
    try:
        try:
            pickle.dump(sorted(modules), child.stdin)
            child.stdin.write(handed)
            child.stdin.close()
        except BrokenPipeError:
            pass  # it died at once: its exit code says so below
        for line in child.stdout:
            if not line.endswith(b"\n"):
                break  # it died while it wrote
            heard = time.monotonic()
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
                return Outcome(
                    [Timing.model_validate(timing) for timing in said["timings"]],
                    said["slowdowns"],
                    said["canary_ms"],
                    said["repeated"],
                    said["remarks"],
                    (
                        DeviceState.model_validate(said["states"][0]),
                        DeviceState.model_validate(said["states"][1]),
                    ),
                    said["measuring_seconds"],
                )
        silent = time.monotonic() - heard
        hung = f" after {silent / 60:.0f} minutes without a visit" if silent >= job.patience_seconds else ""
        raise MeasurementFailed(
            f"the measuring process ended with exit code {child.wait()}{hung} while {doing}, and gave no "
            "number for it. Was the device lost, or the memory used up? What was measured before is kept."
        )
    finally:
        over.set()
        child.kill()
        child.wait()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _received() -> Job | None:
    """The job from the parent; None if what it needs cannot be imported here."""
    import importlib

    try:
        for name in pickle.load(sys.stdin.buffer):  # noqa: S301 - from the parent, by a pipe
            importlib.import_module(name)
        job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301
    except (ImportError, AttributeError):
        return None
    return job


def _as_raised(said: dict[str, str]) -> HwnasError:
    known: dict[str, type[HwnasError]] = {
        kind.__name__: kind for kind in (BackendUnavailable, InvalidInput, MeasurementFailed)
    }
    return known.get(said["kind"], MeasurementFailed)(said["error"])


def main() -> None:
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
        # Beside other work, more threads mostly wait for one another: decision 7.
        torch.set_num_threads(job.backend.threads)
        outcome = measure_here(
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
        canary_ms=outcome.canary_ms,
        repeated=outcome.repeated,
        remarks=outcome.remarks,
        states=[state.model_dump(mode="json") for state in outcome.states],
        measuring_seconds=outcome.measuring_seconds,
    )
