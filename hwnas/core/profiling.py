"""A space's latency table: which ops and which whole networks its recording says are to be measured."""

from __future__ import annotations

from pathlib import Path

from hwnas.core.probing import network_subjects, probes
from hwnas.core.space import SearchSpace
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.formula import default_formula
from hwnas.latency.header import TableProtocol
from hwnas.latency.measuring import ProfileSettings, estimate_seconds
from hwnas.latency.measuring_process import Progress
from hwnas.latency.profile import NetworkSubject, profile_keys
from hwnas.latency.subjects import OpSubject, Subject
from hwnas.latency.table import LatencyTable

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
    on_progress: Progress | None = None,
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
        TableMismatch: ``path`` holds a table measured under other conditions; it is left as it is.
        CorruptTable: ``path`` holds something that cannot be trusted.
        Interrupted: Ctrl-C; what was measured is in ``path``.
        MeasurementFailed: an op gave no number that can be believed, or the machine was not steady.
        BackendUnavailable: the backend cannot run here.
    """
    return profile_keys(
        space.record(batch=batch).keys(),
        backend,
        batch=batch,
        input_shape=space.input_shape(),
        path=path,
        space={"name": space.name, **space.model_dump(mode="json")},
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

    What ``path`` holds complete takes no time; what is begun counts as if it was not.

    Raises:
        CorruptTable: ``path`` holds something that cannot be trusted.
        MeasurementFailed: none of the sample could be timed.
        BackendUnavailable: the backend cannot run here.
    """
    subjects: list[dict[str, Subject]] = [
        {str(key): OpSubject(key) for key in space.record(batch=batch).keys()}  # noqa: SIM118 - no mapping
    ]
    if protocol == "probe":
        subjects.append({name: network.subject for name, network in probe_subjects(space, batch).items()})
    there: set[str] = set()
    if path is not None and Path(path).exists():
        table = LatencyTable.load(path)
        timed = {str(key): timing for key, timing in (table.isolated or table.rows).items()}
        timed |= {network.name: network.timing for network in table.networks}
        there = {name for name, timing in timed.items() if timing.status == "ok"}
    left = [{name: subject for name, subject in group.items() if name not in there} for group in subjects]
    seconds = [estimate_seconds(group, backend, settings) for group in left if group]
    return sum(preparing for preparing, _ in seconds), sum(measuring for _, measuring in seconds)


def probe_subjects(space: SearchSpace, batch: int) -> dict[str, NetworkSubject]:
    """The networks that the probe protocol measures, by short id.

    The same for every device: chosen by a formula, so that a begun table can be resumed.
    """
    return network_subjects(space, probes(space, default_formula, batch=batch), batch=batch)
