"""What the two files of a bundle hold, the manifest and the results; reading and verifying them.

Either may have been on other machines: it is believed only where schema, checksum and contents agree. Reading
runs no code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from hwnas.errors import (
    CorruptTable,
    MeasurementFailed,
    MissingLatency,
    MissingTable,
    TableMismatch,
    listing,
)
from hwnas.latency import edge_runner
from hwnas.latency.device import Device, DeviceState
from hwnas.latency.edge_runner import SCHEMA_VERSION
from hwnas.latency.measuring import ProfileSettings
from hwnas.ops import OpKey

BundlePrecision = Literal["fp32", "fp16"]
"""What numpy has too, which makes the inputs on the device."""

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


class Conditions(BaseModel):
    """On what and with what a bundle was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device
    backend: str
    threads: int = Field(ge=1)
    versions: dict[str, str]
    settings: dict[str, str]


class Readings(BaseModel):
    """Milliseconds of one entry, round by round; or why there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds_ms: tuple[Annotated[tuple[_Reading, ...], Field(min_length=1)], ...]
    rounds_by_run: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """How many of the rounds each run of the runner measured; empty: not on record."""
    error: str | None

    @model_validator(mode="after")
    def _of_these_rounds(self) -> Self:
        counted, there = sum(self.rounds_by_run), len(self.rounds_ms)
        if self.rounds_by_run and counted != there:
            raise ValueError(f"rounds_by_run adds up to {counted} rounds, and rounds_ms holds {there}")
        return self


class BundleResults(BaseModel):
    """What the runner writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    checksum: str
    bundle_id: str
    conditions: Conditions
    created: str
    processes: int = Field(ge=1)
    before: DeviceState
    after: DeviceState
    remarks: tuple[str, ...]
    rounds: int = Field(ge=1)
    entries: dict[str, Readings]


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


def load_results(path: Path, manifest: Manifest) -> BundleResults:
    """The results in ``path``, verified, of the bundle of ``manifest``, and complete.

    Raises:
        MissingTable: there is no such file.
        CorruptTable: it is truncated, altered, of another version, or holding what no measurement gives.
        TableMismatch: it is of another bundle.
        MissingLatency: not everything was measured yet.
        MeasurementFailed: some entries gave no number.
    """
    remedy = "Bring the file from the device again, or delete it there and measure again (python3 run.py)."
    found, content = _loaded(path, BundleResults, remedy)
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
