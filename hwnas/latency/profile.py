"""Filling a table: every op alone, all in rounds, resumable; and timing whole networks the same way.

Rounds and resuming. All missing rows are measured together, in rounds, because rounds are what averages out a
machine whose speed drifts. The file is saved every few seconds: rows with fewer rounds than asked for are in
it as ``"partial"``, with their readings, and count as missing. The next run measures only the rounds that a
partial row lacks, and nothing of a complete one. Its readings then come from two processes, which is a
better sample than one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hwnas.errors import (
    BackendUnavailable,
    HwnasError,
    Interrupted,
    InvalidInput,
    MeasurementFailed,
    TableMismatch,
)
from hwnas.latency.backend import LatencyBackend, host_versions
from hwnas.latency.device import DeviceState
from hwnas.latency.table import LatencyTable, TableHeader, check_batch
from hwnas.latency.timing import Reader, StoppingRule, Timing, measure_interleaved, slowdown_by_round
from hwnas.ops import Op, OpKey, build_op

K = TypeVar("K")

_SLOW_ROUND = 1.1  # a round this much slower than the others is remarked upon


class ProfileSettings(BaseModel):
    """How much to read and how often to save."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=6, ge=1)
    """Visits to each entry. Six against one: entries of two builds differ by 1.4 % instead of 3.4 %."""
    rule: StoppingRule = StoppingRule()
    seed: int = 0
    """Of the order of visits, of the ops' weights and of their inputs."""
    save_every_seconds: float = Field(default=5.0, ge=0)
    busy: Literal["remark", "refuse"] = "remark"
    """Where rounds differ in speed by more than 10 %: say so in the header, or refuse the table."""


def plausible_inputs(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    """Values as they follow a ReLU (half of them zero, the rest half-normal), one tensor for each shape.

    Never constants: a max-pool takes 0.4 of its time on them.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).relu_() for shape in shapes]


def seeded_op(key: OpKey, seed: int = 0) -> Op:
    """The op that ``key`` names, in evaluation mode, its weights drawn from ``seed``.

    The caller's random state is not touched.

    Raises:
        InvalidInput: nobody registered such an op.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_op(key.spec).eval()


def profile_keys(
    keys: Iterable[OpKey],
    backend: LatencyBackend,
    *,
    batch: int = 1,
    input_shape: tuple[int, ...],
    path: str | Path | None = None,
    space: Mapping[str, Any] | None = None,
    settings: ProfileSettings | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> LatencyTable:
    """Measure each op alone and return the table; complete rows that ``path`` holds are never measured again.

    Each op is rebuilt from its key with fresh weights, in evaluation mode.

    Args:
        keys: ops to have rows for, batch first; doubles count once.
        backend: what to time with.
        batch: of the keys.
        input_shape: (C, H, W) of the network that the keys come from.
        path: file to fill; None keeps the table in memory only.
        space: which search space, as ``{"name": …, field: value}``, for the header.
        settings: how much to read.
        on_progress: called after each visit with (visits done, visits in all, the op's text).

    Raises:
        TableMismatch: ``path`` holds a table of other conditions; it is left as it is.
        CorruptTable: ``path`` holds something that cannot be trusted.
        InvalidInput: a key of another batch size, or of an op that nobody registered.
        BackendUnavailable: the backend cannot run here.
        MeasurementFailed: some ops gave no number, or, with ``busy="refuse"``, the machine was not steady.
            All rows that could be measured are in ``path``; failed ones are marked so and tried again next
            time.
        Interrupted: Ctrl-C; what was measured is in ``path``. Without ``path``, KeyboardInterrupt passes
            through.
    """
    settings = settings or ProfileSettings()
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
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        Path(path) if path is not None else None,
        wanted,
    )
    missing = [key for key in wanted if key not in table]
    if missing:
        _fill(table, wanted, missing, backend, settings, on_progress)
    return table


def _opened(header: TableHeader, path: Path | None, wanted: list[OpKey]) -> LatencyTable:
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
    if any(key not in table for key in wanted):
        table.header = table.header.model_copy(
            update={"processes": table.header.processes + 1, "space": header.space or table.header.space}
        )
    return table


def _fill(
    table: LatencyTable,
    wanted: list[OpKey],
    missing: list[OpKey],
    backend: LatencyBackend,
    settings: ProfileSettings,
    on_progress: Callable[[int, int, str], None] | None,
) -> None:
    """Measure those of ``wanted`` that are ``missing`` into ``table``; save on the way if it has a path."""
    before = DeviceState.read(backend.device)
    if table.header.before is None:
        table.header = table.header.model_copy(update={"before": before})
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        if table.path is not None:
            table.save(table.path)
        saved = time.monotonic()

    def note(key: OpKey, rounds_ms: list[list[float]]) -> None:
        status: Literal["ok", "partial"] = "ok" if len(rounds_ms) >= settings.rounds else "partial"
        table.rows[key] = Timing.from_rounds(rounds_ms, status=status)
        if time.monotonic() - saved >= settings.save_every_seconds:
            save()

    earlier = {
        key: table.rows[key].readings_ms
        for key in missing
        if key in table.rows and table.rows[key].status == "partial"
    }
    try:
        readers, failures = _prepared(missing, backend, settings)
        timings = measure_interleaved(
            readers,
            settings.rule,
            settings.rounds,
            settings.seed,
            on_progress,
            earlier=earlier,
            on_visit=note,
        )
    except KeyboardInterrupt:
        save()
        if table.path is None:
            raise
        done = sum(key in table for key in missing)
        raise Interrupted(
            f"stopped: {done} of {len(missing)} rows are complete, and {len(missing) - done} are still "
            f"missing. "
            f"What was measured is in {table.path}; the same command goes on from there."
        ) from None
    timings |= {key: Timing.failed(error) for key, error in failures.items()}
    # Rows were put in as they were visited, at random; they are kept in the order of the keys.
    place = {key: index for index, key in enumerate(wanted)}
    rows = {**table.rows, **timings}
    table.rows = {key: rows[key] for key in sorted(rows, key=lambda key: place.get(key, -1))}
    after = DeviceState.read(backend.device)
    busy = unsteady(table, missing, after)
    table.header = table.header.model_copy(
        update={
            "after": after,
            "remarks": tuple(dict.fromkeys([*table.header.remarks, *backend.remarks(), *busy])),
        }
    )
    if busy and settings.busy == "refuse":
        raise MeasurementFailed(
            f"the machine was not steady: {' '.join(busy)} The table was not completed. End what else runs "
            f"here, "
            'or accept it with ProfileSettings(busy="remark").'
        )
    save()
    failed = [key for key in missing if table.rows[key].status == "failed"]
    if failed:
        kept = f" The other rows are in {table.path}." if table.path is not None else ""
        raise MeasurementFailed(
            f"{len(failed)} of {len(missing)} ops could not be measured with {backend}:\n"
            + "\n".join(f"  {key}: {table.rows[key].error}" for key in failed)
            + f"\nA failed op has no latency, least of all 0.{kept}"
        )


def _prepared(
    missing: list[OpKey], backend: LatencyBackend, settings: ProfileSettings
) -> tuple[dict[OpKey, Reader], dict[OpKey, str]]:
    """Readers of the ops that the backend takes, and why it does not take the others."""
    readers: dict[OpKey, Reader] = {}
    failures: dict[OpKey, str] = {}
    # Inputs of one shape are shared among ops; two inputs of one op are still two tensors.
    inputs: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    for key in missing:
        op = seeded_op(key, settings.seed)
        tensors = []
        for slot, shape in enumerate(key.input_shapes):
            if (slot, shape) not in inputs:
                inputs[slot, shape] = plausible_inputs([shape], settings.seed + slot)[0]
            tensors.append(inputs[slot, shape])
        try:
            readers[key] = backend.prepare(op, tensors)
        except (BackendUnavailable, InvalidInput):
            raise
        except HwnasError as error:
            failures[key] = str(error)
    return readers, failures


def unsteady(table: LatencyTable, measured: Iterable[OpKey], after: DeviceState) -> list[str]:
    """Sentences about what disturbed a run that measured these rows; empty on a quiet machine."""
    complete = [table.rows[key] for key in measured if key in table]
    slowdown = slowdown_by_round(complete) if len(complete) > 2 else []
    sentences = []
    if slowdown and max(slowdown) > _SLOW_ROUND:
        rounds = ", ".join(f"{value:.2f}" for value in slowdown)
        load = f" (load average {after.load_average:.1f})" if after.load_average is not None else ""
        sentences.append(f"Rounds ran at unequal speed, as a ratio to the usual: {rounds}{load}.")
    if after.gpu_processes is not None and after.gpu_processes > 1:
        sentences.append(f"{after.gpu_processes} processes computed on the GPU.")
    return sentences


def measure_networks(
    networks: Mapping[K, tuple[nn.Module, Sequence[Tensor]]],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[K, Timing]:
    """Time whole networks, name → (network, inputs), in interleaved rounds. They are not changed.

    Raises:
        MeasurementFailed: one of them gave no number.
        ExportError: one of them cannot be brought to the backend's runtime.
        BackendUnavailable: the backend cannot run here.
    """
    settings = settings or ProfileSettings()
    backend.check()
    readers = {name: backend.prepare(module, inputs) for name, (module, inputs) in networks.items()}
    timings = measure_interleaved(readers, settings.rule, settings.rounds, settings.seed, on_progress)
    for name, timing in timings.items():
        if timing.status == "failed":
            raise MeasurementFailed(f"{name} could not be measured with {backend}: {timing.error}")
    return timings


def measure_network(
    module: nn.Module,
    inputs: Sequence[Tensor],
    backend: LatencyBackend,
    settings: ProfileSettings | None = None,
) -> Timing:
    """Time one whole network end to end; milliseconds for one call on the batch of ``inputs``.

    Raises:
        MeasurementFailed: it gave no number.
        ExportError: it cannot be brought to the backend's runtime.
        BackendUnavailable: the backend cannot run here.
    """
    return measure_networks({type(module).__name__: (module, inputs)}, backend, settings)[
        type(module).__name__
    ]
