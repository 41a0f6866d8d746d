"""Measuring on a machine that has neither torch nor hwnas: a folder goes there, one file comes back.

A bundle is a folder: ONNX models of single ops and whole networks, ``manifest.json``, and ``run.py``, a copy
of :mod:`hwnas.latency.edge_runner`. The runner writes raw readings to ``results.json``; here they are
summarised as all others are, and become an ordinary latency table. Reading either file runs no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hwnas.errors import InvalidInput, MeasurementFailed
from hwnas.files import write_atomically, write_json
from hwnas.latency import edge_runner
from hwnas.latency.backend import host_versions
from hwnas.latency.bundle_files import (
    BundleEntry,
    BundleInput,
    BundlePrecision,
    BundleResults,
    Manifest,
    OpCount,
    load_manifest,
    load_results,
)
from hwnas.latency.device import CPU_FLAGS
from hwnas.latency.export import OPSET, input_names, onnx_bytes
from hwnas.latency.header import TableHeader
from hwnas.latency.levelling import levelled, slowdown_by_round, to_usual
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.profile import NetworkSubject
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.steadiness import uncertainty, unsteadiness
from hwnas.latency.stopping import ROUNDS_THAT_TELL
from hwnas.latency.subjects import OpSubject, plausible_inputs
from hwnas.latency.table import LatencyTable, check_batch
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey

_DTYPES: dict[BundlePrecision, Literal["float32", "float16"]] = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class ImportedBundle:
    """What was measured with a bundle."""

    manifest: Manifest
    table: LatencyTable
    """Its rows are the ops, or, where whole networks were measured besides, solved from both."""


def export_bundle(
    folder: str | Path,
    keys: Iterable[OpKey],
    *,
    input_shape: tuple[int, ...],
    batch: int = 1,
    precision: BundlePrecision = "fp32",
    space: Mapping[str, Any] | None = None,
    settings: ProfileSettings | None = None,
    networks: Mapping[str, NetworkSubject] | None = None,
) -> Manifest:
    """Write a bundle of ops, and of whole networks, to ``folder``; returns its manifest.

    Args:
        folder: new or empty.
        keys: ops to have rows for, batch first; doubles count once.
        input_shape: (C, H, W) of the networks, and of the one that the keys come from.
        batch: of the keys and of the networks' input.
        precision: the models are exported in it.
        space: which search space, as ``{"name": …, field: value}``.
        settings: how much to read.
        networks: name → whole network of these ops, which takes one input; the table's rows will then be
            solved from them.

    Raises:
        InvalidInput: ``folder`` is not empty; a precision that numpy lacks; a key of another batch size, or
            of an op that nobody registered.
        ExportError: an op or a network cannot be expressed in ONNX. What was written has no manifest, and the
            runner refuses it.
    """
    folder = Path(folder)
    settings = settings or ProfileSettings()
    if precision not in _DTYPES:
        raise InvalidInput(
            f'a bundle is in {" or ".join(_DTYPES)}, for its inputs are made by numpy; got "{precision}".'
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"{folder} is not an empty folder. Give a new one, or delete it first.")
    wanted = list(dict.fromkeys(keys))
    networks = networks or {}
    for key in [*wanted, *(key for network in networks.values() for key in network.counts)]:
        check_batch(key, batch)
    entries = [
        _written(
            folder,
            f"op-{index:04}",
            str(key),
            OpSubject(key, settings.seed).build(),
            key.input_shapes,
            precision,
            key=key,
        )
        for index, key in enumerate(wanted)
    ]
    entries += [
        _written(
            folder,
            f"network-{index:04}",
            name,
            network.subject.build(),
            ((batch, *input_shape),),
            precision,
            counts=tuple(OpCount(key=key, count=count) for key, count in network.counts.items()),
        )
        for index, (name, network) in enumerate(networks.items())
    ]
    manifest = Manifest(
        hwnas=host_versions()["hwnas"],
        space=dict(space or {}),
        input_shape=input_shape,
        batch=batch,
        precision=precision,
        opset=OPSET,
        settings=settings,
        cpu_flags=CPU_FLAGS,
        entries=tuple(entries),
    )
    manifest = manifest.model_copy(update={"bundle_id": manifest.digest()})
    write_atomically(folder / "run.py", Path(edge_runner.__file__).read_bytes())
    # Last: a folder without it is no bundle.
    write_json(folder / "manifest.json", manifest)
    return manifest


def _written(
    folder: Path,
    name: str,
    about: str,
    module: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    precision: BundlePrecision,
    **identity: Any,
) -> BundleEntry:
    """The entry of a model that was exported into ``folder``."""
    model = onnx_bytes(module, plausible_inputs(shapes), precision=precision)
    file = f"models/{name}.onnx"
    write_atomically(folder / file, model)
    return BundleEntry(
        name=name,
        about=about,
        file=file,
        sha256=hashlib.sha256(model).hexdigest(),
        inputs=tuple(
            BundleInput(name=input_name, shape=shape, dtype=_DTYPES[precision])
            for input_name, shape in zip(input_names(len(shapes)), shapes, strict=True)
        ),
        **identity,
    )


def import_bundle(
    folder: str | Path, results: str | Path | None = None, *, allow_busy: bool = False
) -> ImportedBundle:
    """The table of a bundle that was measured.

    Args:
        folder: of the bundle.
        results: the file that its ``run.py`` wrote; default: ``results.json`` in ``folder``.
        allow_busy: take the numbers of a machine that was not steady; the table will say so.

    Raises:
        MissingTable: a file is not there.
        CorruptTable: one is truncated, altered, of another version, or holding what no
            measurement gives.
        TableMismatch: the results are of another bundle.
        MissingLatency: not everything was measured yet.
        MeasurementFailed: some entries gave no number, or, where the bundle was exported with
            ``busy="refuse"``, the machine was not steady.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    path = Path(results) if results is not None else folder / "results.json"
    found = load_results(path, manifest)
    timings = levelled(
        {
            entry.name: Timing.from_rounds(
                found.entries[entry.name].rounds_ms,
                rounds_by_process=[n for n in found.entries[entry.name].rounds_by_run if n],
            )
            for entry in manifest.entries
        }
    )
    conditions = found.conditions
    header = TableHeader(
        device=conditions.device,
        backend=conditions.backend,
        precision=manifest.precision,
        batch=manifest.batch,
        threads=conditions.threads,
        input_shape=manifest.input_shape,
        space=manifest.space,
        versions={"hwnas": manifest.hwnas, **conditions.versions},
        settings=conditions.settings,
        created=found.created,
        processes=found.processes,
        before=found.before,
        after=found.after,
    )
    ops = {entry.key: timings[entry.name] for entry in manifest.entries if entry.key is not None}
    networks = [
        NetworkTiming.of(entry.about, {count.key: count.count for count in entry.counts}, timings[entry.name])
        for entry in manifest.entries
        if entry.counts is not None
    ]
    slowdown = to_usual(slowdown_by_round(list(timings.values()))) if len(timings) > 2 else []
    busy = [
        *unsteadiness(slowdown, manifest.settings.tolerance),
        *uncertainty(timings.values(), manifest.settings.relative_error),
    ]
    if busy:
        busy.append(_likely_causes(found))
    if busy and manifest.settings.busy == "refuse" and not allow_busy:
        raise MeasurementFailed(
            f"the machine was not steady: {' '.join(busy)} End what else runs on {conditions.device}, delete "
            f"{path.name} there and measure again (python3 run.py), or accept such numbers (--allow-busy)."
        )
    rounds = min((timing.rounds for timing in timings.values()), default=ROUNDS_THAT_TELL)
    remarks = [*found.remarks, *busy]
    if rounds < ROUNDS_THAT_TELL:
        remarks.append(
            f"Rounds of an entry: {rounds}. Fewer than {ROUNDS_THAT_TELL} do not tell how well it is known."
        )
    header = header.model_copy(update={"remarks": tuple(remarks)})
    if not networks:
        return ImportedBundle(manifest, LatencyTable(header, ops))
    table = LatencyTable(header.model_copy(update={"protocol": "probe"}), isolated=ops, networks=networks)
    table.solve(list(ops))
    return ImportedBundle(manifest, table)


def _likely_causes(found: BundleResults) -> str:
    """What may have disturbed the device, by its states before the first reading and after the last."""
    # steadiness.causes would name what runs on this machine, now.
    before, after, device = found.before, found.after, found.conditions.device
    causes = []
    # A clock that rose was idle: the state before is from before the models were loaded.
    if before.cpu_mhz and after.cpu_mhz and after.cpu_mhz < 0.9 * before.cpu_mhz:
        causes.append(f"the CPU's clock went from {before.cpu_mhz:.0f} to {after.cpu_mhz:.0f} MHz")
    seconds = after.seconds - before.seconds
    # Each process counts its own: between two runs there is no difference.
    if found.processes == 1 and seconds > 0:
        rate = ((after.involuntary_switches or 0) - (before.involuntary_switches or 0)) / seconds
        if rate > 20:
            causes.append(f"run.py was pushed off its core {rate:.0f} times a second")
    load = after.load_average or 0.0
    if device.kind == "cpu" and device.cores and load > device.cores:
        causes.append(f"the load average was {load:.1f} on {device.cores} cores")
    return f"Likely causes: {'; '.join(causes)}." if causes else "What disturbed it does not show."
