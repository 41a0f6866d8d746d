"""A space's latency table: measuring the ops that its recording names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hwnas.core.space import SearchSpace
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.profile import ProfileSettings, profile_keys
from hwnas.latency.table import LatencyTable


def profile(
    space: SearchSpace,
    backend: LatencyBackend,
    *,
    batch: int = 1,
    path: str | Path | None = None,
    settings: ProfileSettings | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> LatencyTable:
    """Measure every op of ``space`` on a device and return the table; rows that ``path`` holds are kept.

    Args:
        space: whose ops; the table is for its input shape.
        backend: where to measure, and how.
        batch: images in one inference; milliseconds are of the whole batch.
        path: file to fill, resumable; None keeps the table in memory only.
        settings: how much to read.
        on_progress: called with (visits done, visits in all, the op's text).

    Raises:
        TableMismatch: ``path`` holds a table measured under other conditions; it is left as it is.
        MeasurementFailed: an op gave no number that can be believed.
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
        on_progress=on_progress,
    )
