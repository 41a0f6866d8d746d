"""A space's latency table: which ops and which whole networks its recording says are to be measured."""

from __future__ import annotations

from pathlib import Path

from hwnas.core.given import refuse_backend, refuse_space
from hwnas.core.probing import network_subjects, probes
from hwnas.core.space import SearchSpace
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.formula import default_formula
from hwnas.latency.header import TableProtocol
from hwnas.latency.measuring import ProfileSettings, estimate_seconds
from hwnas.latency.measuring_process import OnVisit
from hwnas.latency.profile import NetworkSubject, left_to_measure, profile_keys
from hwnas.latency.subjects import OpSubject, Subject
from hwnas.latency.table import LatencyTable
from hwnas.ops import OpKey

DEFAULT_PROTOCOL: TableProtocol = "probe"
"""Measured side by side in benchmarks/table_fidelity.py."""


def profile(
    space: SearchSpace,
    backend: LatencyBackend,
    *,
    batch: int = 1,
    protocol: TableProtocol = DEFAULT_PROTOCOL,
    path: str | Path | None = None,
    settings: ProfileSettings | None = None,
    on_progress: OnVisit | None = None,
) -> LatencyTable:
    """Measure the ops of ``space`` on a device and return the table; timings that ``path`` holds are kept.

    Args:
        space: whose ops; the table is for its input shape.
        backend: where to measure, and how.
        batch: images in one inference; milliseconds are of the whole batch.
        protocol: ``"isolated"`` times each op alone, as the AutoRTNet paper does. ``"probe"`` times whole
            networks besides, the fewest that determine all others, and solves the rows from both.
        path: file to fill, resumable; None keeps the table in memory only.
        settings: how much to read.
        on_progress: called with (visits done, visits in all, what was visited).

    Raises:
        InvalidInput: the space or the backend is a name or a class.
        SpaceError: the space computes something outside of its ops, which no row would charge for.
        TableMismatch: ``path`` holds a table measured under other conditions; it is left as it is.
        CorruptTable: ``path`` holds something that cannot be trusted.
        Interrupted: Ctrl-C; what was measured is in ``path``.
        MeasurementFailed: an op gave no number that can be believed, or the machine was not steady.
        BackendUnavailable: the backend cannot run here.
    """
    refuse_space(space)
    refuse_backend(backend)
    return profile_keys(
        space.record(batch=batch).keys(),
        backend,
        batch=batch,
        input_shape=space.input_shape(),
        path=path,
        space=space.described(),
        settings=settings,
        networks=probe_subjects(space, batch) if protocol == "probe" else None,
        on_progress=on_progress,
    )


def estimate(
    space: SearchSpace,
    backend: LatencyBackend,
    *,
    batch: int = 1,
    protocol: TableProtocol = DEFAULT_PROTOCOL,
    path: str | Path | None = None,
    settings: ProfileSettings | None = None,
) -> tuple[float, float]:
    """About how long :func:`profile` will take: seconds of preparing, and of measuring. Measures a sample.

    What ``path`` holds complete is left out; what it holds in part counts in full. Both are 0 where nothing
    is left to measure, and only there.

    Raises:
        InvalidInput: the space or the backend is a name or a class.
        SpaceError: the space computes something outside of its ops.
        TableMismatch: ``path`` holds a table measured under other conditions.
        CorruptTable: ``path`` holds something that cannot be trusted.
        MeasurementFailed: none of the sample could be timed.
        BackendUnavailable: the backend cannot run here.
    """
    refuse_space(space)
    refuse_backend(backend)
    networks = probe_subjects(space, batch) if protocol == "probe" else {}
    left = left_to_measure(
        space.record(batch=batch).keys(),
        backend,
        batch=batch,
        input_shape=space.input_shape(),
        path=path,
        networks=networks,
    )
    subjects: dict[OpKey | str, Subject] = {
        name: OpSubject(name) if isinstance(name, OpKey) else networks[name].subject for name in left
    }
    return estimate_seconds(subjects, backend, settings) if subjects else (0.0, 0.0)


def probe_subjects(space: SearchSpace, batch: int) -> dict[str, NetworkSubject]:
    """The networks that the probe protocol measures, by short id.

    The same for every device: chosen by a formula, so that a begun table can be resumed.
    """
    return network_subjects(space, probes(space, default_formula, batch=batch), batch=batch)
