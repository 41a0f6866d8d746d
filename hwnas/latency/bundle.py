"""Measuring on a machine that has neither torch nor hwnas: a folder goes there, one file comes back.

A bundle is a folder: ONNX models of single ops and whole networks, ``manifest.json``, and ``run.py``, a copy
of :mod:`hwnas.latency.edge_runner`. The runner writes raw readings to ``results.json``; here they are
summarised as all others are, and become an ordinary latency table. Reading either file runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from torch import nn

from hwnas.errors import (
    CorruptTable,
    InvalidInput,
    MeasurementFailed,
    MissingLatency,
    MissingTable,
    TableMismatch,
    listing,
)
from hwnas.files import write_atomically, write_json
from hwnas.latency import edge_runner
from hwnas.latency.backend import host_versions
from hwnas.latency.device import CPU_FLAGS, Device, DeviceState
from hwnas.latency.edge_runner import SCHEMA_VERSION
from hwnas.latency.export import OPSET, input_names, onnx_bytes
from hwnas.latency.header import TableHeader
from hwnas.latency.levelling import levelled, slowdown_by_round, to_usual
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.profile import NetworkSubject
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.steadiness import uncertainty, unsteadiness
from hwnas.latency.subjects import OpSubject, plausible_inputs
from hwnas.latency.table import LatencyTable, check_batch
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey

BundlePrecision = Literal["fp32", "fp16"]
"""What numpy has too, which makes the inputs on the device."""

_DTYPES: dict[BundlePrecision, Literal["float32", "float16"]] = {"fp32": "float32", "fp16": "float16"}

_File = TypeVar("_File", bound=BaseModel)
_Reading = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BundleInput(BaseModel):
    """One input of a model; its values follow a ReLU and are drawn on the device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    """Batch first."""
    dtype: Literal["float32", "float16"]


class OpCount(BaseModel):
    """How often a network calls an op."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: OpKey
    count: int = Field(ge=1)


class BundleEntry(BaseModel):
    """One model of a bundle: of a single op (``key``), or of a network that calls ops (``counts``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    """What it is, for people."""
    file: str = Field(pattern=r"^models/[a-z0-9-]+\.onnx$")
    sha256: str
    """Of the file, in hexadecimal digits."""
    inputs: tuple[BundleInput, ...]
    key: OpKey | None = None
    counts: tuple[OpCount, ...] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.key is None) == (self.counts is None):
            raise ValueError("an entry is either of an op (key) or of a network (counts)")
        return self


class Manifest(BaseModel):
    """What a bundle holds and how it is to be measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    bundle_id: str = ""
    """Digest of all else in here, and by the models' checksums of the models too."""
    hwnas: str
    """The version that exported it."""
    space: dict[str, JsonValue] = {}
    """The search space: its name under ``"name"``, and its fields."""
    input_shape: tuple[int, ...]
    """Of the network that the ops come from, without the batch: (C, H, W)."""
    batch: int = Field(ge=1)
    precision: BundlePrecision
    opset: int
    settings: ProfileSettings
    cpu_flags: tuple[str, ...]
    """Instruction sets to look for, so that a CPU has one fingerprint here and there."""
    entries: tuple[BundleEntry, ...]

    def digest(self) -> str:
        """What :attr:`bundle_id` must be."""
        return edge_runner.digest(self.model_dump(mode="json", exclude={"bundle_id"}))


class _Conditions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device
    backend: str
    threads: int = Field(ge=1)
    versions: dict[str, str]
    settings: dict[str, str]


class _Readings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds_ms: tuple[Annotated[tuple[_Reading, ...], Field(min_length=1)], ...]
    rounds_by_run: tuple[int, ...] = ()
    error: str | None


class _Results(BaseModel):
    """What the runner writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    checksum: str
    bundle_id: str
    conditions: _Conditions
    created: str
    processes: int = Field(ge=1)
    before: DeviceState
    after: DeviceState
    remarks: tuple[str, ...]
    rounds: int = Field(ge=1)
    entries: dict[str, _Readings]


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


def load_manifest(folder: str | Path) -> Manifest:
    """The manifest of the bundle in ``folder``, after it and all models were verified.

    Raises:
        MissingTable: there is none.
        CorruptTable: it or a model is truncated, altered, or of another version.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    remedy = "Restore the bundle from where it was exported, or export a new one."
    manifest, content = _loaded(path, Manifest, remedy)
    # Of the file's own values: a later hwnas with one more field must still find an old bundle unaltered.
    found = edge_runner.digest({name: value for name, value in content.items() if name != "bundle_id"})
    if found != manifest.bundle_id:
        raise CorruptTable(f"{path} was altered after it was written: it is not that of its id. {remedy}")
    for entry in manifest.entries:
        model = folder / entry.file
        if not model.is_file():
            raise CorruptTable(f"the bundle is incomplete: there is no {model}. {remedy}")
        if hashlib.sha256(model.read_bytes()).hexdigest() != entry.sha256:
            raise CorruptTable(
                f"{model} ({entry.about}) is not the model that was exported: its checksum differs. {remedy}"
            )
    return manifest


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
    found = _loaded_results(path, manifest)
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
    if busy and manifest.settings.busy == "refuse" and not allow_busy:
        raise MeasurementFailed(
            f"the machine was not steady: {' '.join(busy)} End what else runs on {conditions.device}, delete "
            f"{path.name} there and measure again (python3 run.py), or accept such numbers (--allow-busy)."
        )
    header = header.model_copy(update={"remarks": (*found.remarks, *busy)})
    if not networks:
        return ImportedBundle(manifest, LatencyTable(header, ops))
    table = LatencyTable(header.model_copy(update={"protocol": "probe"}), isolated=ops, networks=networks)
    table.solve(list(ops))
    return ImportedBundle(manifest, table)


def _loaded_results(path: Path, manifest: Manifest) -> _Results:
    """The results in ``path``, verified, of this bundle, and complete."""
    remedy = "Bring the file from the device again, or delete it there and measure again (python3 run.py)."
    found, content = _loaded(path, _Results, remedy)
    checksum = edge_runner.digest({name: value for name, value in content.items() if name != "checksum"})
    if checksum != found.checksum:
        raise CorruptTable(
            f"{path} was altered after it was written: its checksum says {found.checksum}, its content gives "
            f"{checksum}. {remedy}"
        )
    if found.bundle_id != manifest.bundle_id:
        raise TableMismatch(
            f"{path} was measured with another bundle ({found.bundle_id}) than this one "
            f"({manifest.bundle_id}). Give the folder that its run.py came from."
        )
    names = [entry.name for entry in manifest.entries]
    if found.entries.keys() != set(names):
        raise CorruptTable(f"{path} has other entries than the bundle. {remedy}")
    failed = [entry for entry in manifest.entries if found.entries[entry.name].error is not None]
    if failed:
        raise MeasurementFailed(
            f"{len(failed)} of {len(names)} models gave no number on {found.conditions.device}:\n"
            + listing(f"{entry.about}: {found.entries[entry.name].error}" for entry in failed)
            + "\nA failed op has no latency, least of all 0. On the device, run.py tries them again."
        )
    missing = [entry for entry in manifest.entries if len(found.entries[entry.name].rounds_ms) < found.rounds]
    if missing:
        raise MissingLatency(
            f"{len(missing)} of {len(names)} models were not measured to the end ({found.rounds} rounds):\n"
            + listing(
                f"{entry.about}: {len(found.entries[entry.name].rounds_ms)} rounds" for entry in missing
            )
            + "\nGo on where it stopped, on the device:  python3 run.py"
        )
    return found


def _loaded(path: Path, model: type[_File], remedy: str) -> tuple[_File, dict[str, Any]]:
    """A JSON file of this schema as ``model``, and its content as it stands there."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise MissingTable(f"there is no {path}. {remedy}") from None
    except json.JSONDecodeError as error:
        raise CorruptTable(
            f"{path} is not complete JSON (line {error.lineno}): was it truncated? {remedy}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptTable(f"{path} cannot be read as text: {error}. {remedy}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise CorruptTable(
            f"{path} has schema version {version!r}; this hwnas reads {SCHEMA_VERSION}. Export and measure "
            "with one version of hwnas."
        )
    try:
        return model.model_validate_json(text), content
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        value = first["input"]
        shown = f", got {value!r}" if isinstance(value, str | int | float) else ""
        raise CorruptTable(
            f"{path} holds what no bundle gives: {'.'.join(map(str, first['loc']))}: {first['msg']}{shown}. "
            f"{remedy}"
        ) from error
