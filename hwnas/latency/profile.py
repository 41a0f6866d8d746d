"""Filling a table: every op alone and, for the probe protocol, whole networks; all in rounds, resumable.

Rounds and resuming. Everything that is missing is measured together, in rounds, because rounds are what
averages out a machine whose speed drifts. The file is saved every few seconds: until all rounds are there,
and the machine was found quiet in them, timings are in it as ``"partial"``, with their readings, and count as
missing. The next run measures only the rounds that a partial timing lacks, and nothing of a complete one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hwnas.errors import Interrupted, MeasurementFailed, TableMismatch
from hwnas.latency.backend import LatencyBackend, host_versions
from hwnas.latency.device import DeviceState
from hwnas.latency.header import TableHeader
from hwnas.latency.measuring import ProfileSettings, measure_subjects, one_of_each_kind
from hwnas.latency.measuring_process import OnVisit
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.subjects import OpSubject, Subject
from hwnas.latency.table import LatencyTable, check_batch
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey


@dataclass(frozen=True)
class NetworkSubject:
    """A whole network to measure beside the ops: how to build it, and how often it runs each op."""

    subject: Subject
    counts: Mapping[OpKey, int]


def profile_keys(
    keys: Iterable[OpKey],
    backend: LatencyBackend,
    *,
    batch: int = 1,
    input_shape: tuple[int, ...],
    path: str | Path | None = None,
    space: Mapping[str, Any] | None = None,
    settings: ProfileSettings | None = None,
    networks: Mapping[str, NetworkSubject] | None = None,
    on_progress: OnVisit | None = None,
) -> LatencyTable:
    """Measure ops and return the table; what ``path`` holds complete is never measured again.

    Each op is rebuilt from its key with fresh weights, in evaluation mode, and timed alone. With ``networks``
    these are timed too, in the same rounds, and the table's rows are solved from both (protocol ``"probe"``).

    Args:
        keys: ops to have rows for, batch first; doubles count once.
        backend: what to time with.
        batch: of the keys.
        input_shape: (C, H, W) of the network that the keys come from.
        path: file to fill; None keeps the table in memory only.
        space: which search space, as ``{"name": …, field: value}``, for the header.
        settings: how much to read.
        networks: name → whole network made of these ops.
        on_progress: called after each visit with (visits done, visits in all, the entry's text).

    Raises:
        TableMismatch: ``path`` holds a table of other conditions; it is left as it is.
        CorruptTable: ``path`` holds something that cannot be trusted.
        InvalidInput: a key of another batch size, or of an op that nobody registered.
        BackendUnavailable: the backend cannot run here.
        MeasurementFailed: some ops gave no number (all that could be measured is in ``path``; failed ones are
            marked so and tried again next time, and what other processes had read of one is gone on from), a
            measuring process died or hung, or, with ``busy="refuse"``, the machine was not steady (nothing
            of this run is kept).
        Interrupted: Ctrl-C; what was measured is in ``path``. Without ``path``, KeyboardInterrupt passes
            through.
    """
    filling = _begun(keys, backend, batch, input_shape, path, space, settings, networks)
    filling.run(on_progress)
    return filling.table


def left_to_measure(
    keys: Iterable[OpKey],
    backend: LatencyBackend,
    *,
    batch: int = 1,
    input_shape: tuple[int, ...],
    path: str | Path | None = None,
    networks: Mapping[str, NetworkSubject] | None = None,
) -> list[OpKey | str]:
    """The ops and the names of the networks that :func:`profile_keys` would measure, some of them begun.

    Nothing is measured or written. For the arguments see there.

    Raises:
        TableMismatch: ``path`` holds a table of other conditions.
        CorruptTable: ``path`` holds something that cannot be trusted.
        InvalidInput: a key of another batch size.
        BackendUnavailable: the backend cannot run here.
    """
    return _begun(keys, backend, batch, input_shape, path, None, None, networks).missing()


def _begun(
    keys: Iterable[OpKey],
    backend: LatencyBackend,
    batch: int,
    input_shape: tuple[int, ...],
    path: str | Path | None,
    space: Mapping[str, Any] | None,
    settings: ProfileSettings | None,
    networks: Mapping[str, NetworkSubject] | None,
) -> _Filling:
    """What :func:`profile_keys` goes on with."""
    wanted = list(dict.fromkeys(keys))
    for key in wanted:
        check_batch(key, batch)
    backend.check()
    table = _opened(
        TableHeader(
            device=backend.device,
            backend=backend.name,
            precision=backend.precision,
            batch=batch,
            threads=backend.threads,
            input_shape=input_shape,
            space=dict(space or {}),
            versions=host_versions() | backend.versions(),
            settings=backend.settings(),
            protocol="probe" if networks else "isolated",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        Path(path) if path is not None else None,
    )
    return _Filling(table, wanted, dict(networks or {}), backend, settings or ProfileSettings())


def _opened(header: TableHeader, path: Path | None) -> LatencyTable:
    """The table at ``path`` if it is of the same conditions, else, where there is none, an empty one."""
    if path is None or not path.exists():
        return LatencyTable(header, path=path)
    table = LatencyTable.load(path)
    differences = table.header.differences(header)
    if differences:
        raise TableMismatch(
            f"{path} is a table of other conditions, so it can be neither reused nor extended "
            "(table against this run):\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nGive another file (--out), or delete that one."
        )
    table.header = table.header.model_copy(update={"space": header.space or table.header.space})
    return table


class _Filling:
    """A table that is being filled (mutated): what is measured, and what is missing."""

    def __init__(
        self,
        table: LatencyTable,
        keys: list[OpKey],
        networks: dict[str, NetworkSubject],
        backend: LatencyBackend,
        settings: ProfileSettings,
    ) -> None:
        self.table = table
        self.keys = keys
        self.networks = networks
        self.backend = backend
        self.settings = settings
        # Under the probe protocol what is measured of an op is not its row.
        self.ops = table.isolated if networks else table.rows
        self.timed = {network.name: network for network in table.networks}

    def timing(self, name: OpKey | str) -> Timing | None:
        """What is known of an op or a network."""
        if isinstance(name, OpKey):
            return self.ops.get(name)
        network = self.timed.get(name)
        return None if network is None else network.timing

    def put(self, name: OpKey | str, timing: Timing | None) -> None:
        """Write down a timing, or forget it."""
        if isinstance(name, OpKey):
            if timing is None:
                self.ops.pop(name, None)
            else:
                self.ops[name] = timing
        elif timing is None:
            self.timed.pop(name, None)
        else:
            self.timed[name] = NetworkTiming.of(name, self.networks[name].counts, timing)

    def missing(self) -> list[OpKey | str]:
        """Ops and networks without a complete timing."""
        names: list[OpKey | str] = [*self.keys, *self.networks]
        return [name for name in names if (known := self.timing(name)) is None or known.status != "ok"]

    def _has_all_rounds(self, name: OpKey | str) -> bool:
        known = self.timing(name)
        return known is not None and known.status != "failed" and known.rounds >= self.settings.rounds

    def run(self, on_progress: OnVisit | None) -> None:
        """Measure what is missing, then solve what is to be solved; save on the way if there is a path."""
        missing = self.missing()
        if missing:
            self._measure(missing, on_progress)
        if self.networks and (missing or not all(key in self.table for key in self.keys)):
            self.table.solve([key for key, timing in self.ops.items() if timing.status == "ok"])
            self._save()

    def _measure(self, missing: list[OpKey | str], on_progress: OnVisit | None) -> None:
        known = {name: self.timing(name) for name in missing}
        header = self.table.header
        if header.before is None:
            header = header.model_copy(update={"before": DeviceState.read(self.backend.device)})
        self.table.header = header
        saved = time.monotonic()

        def note(name: OpKey | str, timing: Timing) -> None:
            nonlocal saved
            # Whether the machine was quiet is judged over all rounds: until then none is good, however the
            # run ends. The next one that finds its rounds complete judges them.
            is_judged = timing.status == "failed"
            self.put(name, timing if is_judged else timing.model_copy(update={"status": "partial"}))
            if time.monotonic() - saved >= self.settings.save_every_seconds:
                self._save()
                saved = time.monotonic()

        try:
            measured = measure_subjects(
                {
                    name: OpSubject(name, self.settings.seed)
                    if isinstance(name, OpKey)
                    else self.networks[name].subject
                    for name in missing
                },
                self.backend,
                self.settings,
                earlier={
                    name: timing
                    for name, timing in known.items()
                    if timing is not None and timing.status == "partial"
                },
                on_visit=note,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            self._save()
            if self.table.path is None:
                raise
            left = sum(not self._has_all_rounds(name) for name in missing)
            raise Interrupted(
                f"stopped: {len(missing) - left} of {len(missing)} entries are complete, and {left} are "
                f"still missing. What was measured is in {self.table.path}; the same command goes on."
            ) from None
        except Exception:
            # A table without a reading would only be in the way of a run under other conditions.
            if any(self.timing(name) is not timing for name, timing in known.items()):
                self._save()
            raise
        try:
            measured.require_quiet(self.settings, "Nothing of this run is kept.")
        except MeasurementFailed:
            for name, timing in known.items():
                self.put(name, timing)
            self._save()
            raise
        for name, timing in measured.timings.items():
            self.put(name, measured.kept.get(name, timing))
        # Timings came in at random; they are kept in the order of the keys.
        place = {key: index for index, key in enumerate(self.keys)}
        for key in sorted(self.ops, key=lambda key: place.get(key, -1)):
            self.ops[key] = self.ops.pop(key)
        self.table.header = self.table.header.model_copy(
            update={
                "after": DeviceState.read(self.backend.device),
                "processes": max(len(t.rounds_by_process) or 1 for t in self.ops.values()),
                "measuring_seconds": round(header.measuring_seconds + measured.measuring_seconds, 1),
            }
        )
        self._remark([*measured.remarks, *measured.busy])
        self.table.networks = list(self.timed.values())
        self.table.level()
        self.timed = {network.name: network for network in self.table.networks}
        self.ops = self.table.isolated if self.networks else self.table.rows
        self._save()
        failed = {name: timing for name, timing in measured.timings.items() if timing.status == "failed"}
        if failed:
            kept = f" All else is in {self.table.path}." if self.table.path is not None else ""
            raise MeasurementFailed(
                f"{len(failed)} of {len(missing)} entries could not be measured with {self.backend}:\n"
                + "\n".join(f"  {name}: {timing.error}" for name, timing in failed.items())
                + f"\nA failed op has no latency, least of all 0.{kept}"
            )

    def _remark(self, remarks: Sequence[str]) -> None:
        before = self.table.header.remarks
        self.table.header = self.table.header.model_copy(
            update={"remarks": tuple(one_of_each_kind([*before, *remarks]))}
        )

    def _save(self) -> None:
        self.table.networks = list(self.timed.values())
        if self.table.path is not None:
            self.table.save(self.table.path)
