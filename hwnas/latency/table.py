"""The latency table: rows that were measured, under a header that says on what, with what, and how.

On disk it is JSON, one row a line, with a checksum over header and rows. Reading one runs no code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from hwnas.errors import CorruptTable, InvalidInput, MissingLatency, TableMismatch
from hwnas.files import write_atomically
from hwnas.latency.backend import LatencyBackend, Precision
from hwnas.latency.device import Device, DeviceState
from hwnas.latency.timing import Timing, slowdown_by_round
from hwnas.ops import OpKey

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 1
"""Raised when the file's meaning changes; older files are migrated on loading, newer ones refused."""

_LISTED = 10  # keys printed in an error; the rest are counted


class TableHeader(BaseModel):
    """Everything that the numbers of a table depend on, apart from the op."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    device: Device
    backend: str
    precision: Precision = "fp32"
    batch: int = Field(default=1, ge=1)
    """Samples in each measured call. Rows are milliseconds for the whole batch."""
    threads: int = Field(default=1, ge=1)
    input_shape: tuple[int, ...]
    """Of the network's input, without the batch: (C, H, W)."""
    space: dict[str, JsonValue] = {}
    """The search space that the keys come from: its name under ``"name"``, and its fields."""
    versions: dict[str, str] = {}
    settings: dict[str, str] = {}
    """Switches of the backend that decide its numbers."""
    protocol: Literal["isolated", "formula"] = "isolated"
    """``"isolated"``: each op was timed alone."""
    created: str = ""
    """When the first row was measured: ISO 8601, UTC."""
    processes: int = Field(default=1, ge=1)
    """How many processes contributed: a resumed or merged table has more than one."""
    before: DeviceState | None = None
    """The machine before the first reading."""
    after: DeviceState | None = None
    """The machine after the last reading."""
    remarks: tuple[str, ...] = ()
    """What a reader of the numbers should know: rounds that ran slow, launch-bound ops."""

    def differences(self, other: TableHeader) -> list[str]:
        """What keeps the rows of two tables apart, one readable line each; empty where they may mix."""
        lines = [f"device {line}" for line in self.device.differences(other.device)]
        for field in ("backend", "precision", "batch", "threads", "input_shape", "protocol"):
            if field == "threads" and self.device.kind == "cuda":
                continue
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                lines.append(f"{field}: {_readable(mine)} against {_readable(theirs)}")
        for group in ("versions", "settings"):
            mine, theirs = getattr(self, group), getattr(other, group)
            for name in sorted(mine.keys() | theirs.keys()):
                # Python and hwnas itself are on record but do not decide a number.
                if name not in ("python", "hwnas") and mine.get(name) != theirs.get(name):
                    lines.append(f"{name}: {mine.get(name, 'none')} against {theirs.get(name, 'none')}")
        return lines

    def command(self, path: Path | None = None, *, device: str | None = None) -> str:
        """The command that measures a table under this header.

        Args:
            path: the table's file.
            device: an alias that stands in for the header's device.
        """
        space = self.space.get("name", "SPACE")
        return (
            f"hwnas profile {space} --device {device or self.device.alias} --backend {self.backend} "
            f"--precision {self.precision} --batch {self.batch} --threads {self.threads} "
            f"--out {path or 'FILE'}"
        )

    def __str__(self) -> str:
        shape = _readable(self.input_shape)
        threads = "" if self.device.kind == "cuda" else f", threads {self.threads}"
        return (
            f"{self.device.name}, {self.backend} {self.precision}, batch {self.batch}{threads}, input {shape}"
        )


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: OpKey
    timing: Timing


_ROWS = TypeAdapter(list[_Row])


class LatencyTable:
    """Op key → :class:`Timing`, with the header that the numbers are true under.

    Args:
        header: what the rows were measured on and how.
        rows: the timings; the mapping is copied.
        path: where the table lies, for messages.

    Raises:
        InvalidInput: a key's batch size is not the header's.
    """

    def __init__(
        self, header: TableHeader, rows: Mapping[OpKey, Timing] | None = None, path: Path | None = None
    ) -> None:
        self.header = header
        self.rows: dict[OpKey, Timing] = dict(rows or {})
        self.path = path
        for key in self.rows:
            check_batch(key, header.batch)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: object) -> bool:
        """Whether ``key`` has a complete row."""
        timing = self.rows.get(key) if isinstance(key, OpKey) else None
        return timing is not None and timing.status == "ok"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyTable) and (self.header, self.rows) == (other.header, other.rows)

    __hash__ = None  # type: ignore[assignment]  # rows may be added while a table is filled

    def __str__(self) -> str:
        name = f"{self.path}: " if self.path else ""
        return f"{name}{sum(key in self for key in self.rows)} rows ({self.header})"

    @property
    def checksum(self) -> str:
        """SHA-256 over header and rows, as the file has it: ``"sha256:…"``."""
        header, rows = self._json_parts()
        return _checksum(json.loads(header), [json.loads(row) for row in rows])

    @property
    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas data frame (a copy): one line a row, with the conditions in every line."""
        import pandas  # 0.6 s: only where a frame is asked for

        return pandas.DataFrame(
            [
                {
                    "kind": key.spec.kind,
                    "attributes": ", ".join(f"{name}={value}" for name, value in key.spec.attributes),
                    "inputs": ", ".join("x".join(map(str, shape)) for shape in key.input_shapes),
                    "median_ms": timing.median_ms,
                    "spread_ms": timing.spread_ms,
                    "count": timing.count,
                    "rounds": timing.rounds,
                    "status": timing.status,
                    "device": self.header.device.name,
                    "backend": self.header.backend,
                    "precision": self.header.precision,
                    "batch": self.header.batch,
                }
                for key, timing in self.rows.items()
            ],
            columns=[
                *("kind", "attributes", "inputs", "median_ms", "spread_ms", "count", "rounds", "status"),
                *("device", "backend", "precision", "batch"),
            ],
        )

    def latency_ms(self, key: OpKey) -> float:
        """Median milliseconds of one call of the op on its whole batch.

        Raises:
            MissingLatency: the row is absent, incomplete or failed.
        """
        if key not in self:
            self.require([key])
        return self.rows[key].median_ms

    def require(self, keys: Iterable[OpKey]) -> None:
        """Raise unless every key has a complete row.

        Raises:
            MissingLatency: some have none; the message lists them and the command that measures them.
        """
        wanted = list(dict.fromkeys(keys))
        missing = [key for key in wanted if key not in self]
        if not missing:
            return
        lines = [f"  {key}{self._why_missing(key)}" for key in missing[:_LISTED]]
        if len(missing) > _LISTED:
            lines.append(f"  … and {len(missing) - _LISTED} more")
        where = self.path or "the table"
        raise MissingLatency(
            f"{len(missing)} of {len(wanted)} op keys have no row in {where} "
            f"({self.header.device.name}, {self.header.backend} {self.header.precision}):\n"
            + "\n".join(lines)
            + "\nMeasure them on that device (with the --preset and --set of your space, if any):  "
            + self.header.command(self.path)
        )

    def _why_missing(self, key: OpKey) -> str:
        timing = self.rows.get(key)
        if timing is None:
            return ""
        if timing.status == "partial":
            return f"  (only {timing.rounds} rounds were measured before an interruption)"
        return f"  (failed: {timing.error})"

    def check(
        self,
        *,
        device: Device | str | None = None,
        backend: LatencyBackend | str | None = None,
        precision: Precision | None = None,
        batch: int | None = None,
        threads: int | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Raise unless the table was measured under these conditions. What is None is not compared.

        Args:
            device: a fingerprint, or an alias such as ``"titanxp"``.
            backend: its name; or a backend, which also stands for its device, precision, threads, versions
                and settings.
            precision: of weights and activations.
            batch: samples in a call.
            threads: of the CPU; not compared for a table of a GPU.
            input_shape: (C, H, W).

        Raises:
            TableMismatch: the message lists each difference.
        """
        header = self.header
        changes: dict[str, Any] = {}
        if isinstance(backend, LatencyBackend):
            changes = {
                "device": backend.device,
                "backend": backend.name,
                "precision": backend.precision,
                "threads": backend.threads,
                "versions": backend.versions(),
                "settings": backend.settings(),
            }
        elif backend is not None:
            changes["backend"] = backend
        given = {"precision": precision, "batch": batch, "threads": threads}
        changes |= {name: value for name, value in given.items() if value is not None}
        if input_shape is not None and tuple(input_shape) != header.input_shape:
            # Whose network that is, the caller alone knows: the command must not name the table's space.
            changes |= {"input_shape": tuple(input_shape), "space": {}}
        lines = []
        if isinstance(device, Device):
            changes["device"] = device
        elif device is not None and not header.device.answers_to(device):
            lines.append(f'device: {header.device.name} ({header.device.alias}) against "{device}"')
        asked = header.model_copy(update=changes)
        lines += header.differences(asked)
        if lines:
            alias = device if isinstance(device, str) else None
            raise TableMismatch(
                f"{self.path or 'the table'} was measured under other conditions than those asked for "
                "(table against asked):\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nUse a table of these conditions, or measure one (with the --preset and --set of your "
                + f"space, if any):  {asked.command(device=alias)}"
            )

    def with_rows(self, rows: Mapping[OpKey, Timing]) -> LatencyTable:
        """A copy with ``rows`` added; of two timings of one key the new one stays.

        Raises:
            InvalidInput: a key's batch size is not the header's.
        """
        return LatencyTable(self.header, {**self.rows, **rows}, self.path)

    def merged(self, other: LatencyTable) -> LatencyTable:
        """Both tables in one: rows of one key pool the rounds of both. Neither is changed.

        Measuring a table in two processes and merging shows and averages what differs from process to process
        (memory layout, chosen kernels).

        Raises:
            TableMismatch: the headers differ in anything that decides a number.
        """
        differences = self.header.differences(other.header)
        if differences:
            raise TableMismatch(
                "tables of different conditions do not merge (first against second):\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nKeep them in two files."
            )
        rows = dict(self.rows)
        for key, timing in other.rows.items():
            mine = rows.get(key)
            if mine is None or mine.status != "ok":
                rows[key] = timing
            elif timing.status == "ok" and mine.readings_ms and timing.readings_ms:
                rows[key] = Timing.from_rounds(mine.readings_ms + timing.readings_ms)
        header = self.header.model_copy(
            update={
                "processes": self.header.processes + other.header.processes,
                "after": other.header.after,
                "remarks": tuple(dict.fromkeys(self.header.remarks + other.header.remarks)),
            }
        )
        return LatencyTable(header, rows)

    def slowdown_by_round(self) -> list[float]:
        """How much slower than usual each round ran; see :func:`hwnas.latency.timing.slowdown_by_round`."""
        return slowdown_by_round([timing for timing in self.rows.values() if timing.status == "ok"])

    def save(self, path: str | Path) -> None:
        """Write the table to ``path`` in one step: a reader finds the old file or the whole new one.

        ``path`` becomes the table's :attr:`path`.
        """
        self.path = Path(path)
        header, rows = self._json_parts()
        lines = ",\n".join(f"  {row}" for row in rows)
        text = (
            "{\n"
            f'"schema_version": {SCHEMA_VERSION},\n'
            f'"checksum": "{self.checksum}",\n'
            f'"header": {header},\n'
            f'"rows": [\n{lines}\n]\n'
            "}\n"
        )
        write_atomically(self.path, text.encode())

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read and verify a table.

        Raises:
            CorruptTable: the file is not there, truncated, altered after it was written, of a newer hwnas, or
                holds a row that cannot be a latency. The message says which.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CorruptTable(f"no table at {path}. Measure one:  hwnas profile --out {path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CorruptTable(f"{path} cannot be read as text: {error}. {_REMEDY}") from error
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except _NotANumber as error:
            raise CorruptTable(f"{path} holds {error} where a number must stand. {_REMEDY}") from error
        except json.JSONDecodeError as error:
            raise CorruptTable(
                f"{path} is not complete JSON (line {error.lineno}): was it truncated? {_REMEDY}"
            ) from error
        if (
            not isinstance(content, dict)
            or not {"schema_version", "checksum", "header", "rows"} <= content.keys()
        ):
            raise CorruptTable(f"{path} is JSON, but not a latency table of hwnas. {_REMEDY}")
        version = content["schema_version"]
        if not isinstance(version, int) or version < 1:
            raise CorruptTable(f"{path} has schema version {version!r}; expected a whole number. {_REMEDY}")
        if version > SCHEMA_VERSION:
            raise CorruptTable(
                f"{path} was written by a newer hwnas: its schema version is {version}, this hwnas reads up "
                f"to {SCHEMA_VERSION}. Upgrade:  pip install --upgrade hwnas"
            )
        try:
            header = TableHeader.model_validate_json(json.dumps(content["header"]))
            rows = _ROWS.validate_json(json.dumps(content["rows"]))
        except ValidationError as error:
            raise CorruptTable(
                f"{path} holds what no measurement gives: {_first_error(error, content)}. {_REMEDY}"
            ) from error
        table = _without_checks(cls, header, {row.key: row.timing for row in rows}, path)
        if len(table.rows) != len(rows):
            raise CorruptTable(f"{path} has two rows for one op key. {_REMEDY}")
        found = _checksum(content["header"], content["rows"])
        if found != content["checksum"]:
            raise CorruptTable(
                f"{path} was altered after it was written: its checksum says {content['checksum']}, "
                f"its content gives {found}. {_REMEDY}"
            )
        try:
            for key in table.rows:
                check_batch(key, header.batch)
        except InvalidInput as error:
            raise CorruptTable(f"{path}: {error}") from error
        return table

    def _json_parts(self) -> tuple[str, list[str]]:
        header = self.header.model_dump_json()
        return header, [_Row(key=key, timing=timing).model_dump_json() for key, timing in self.rows.items()]


_REMEDY = "Restore it from a copy, or delete it and measure again (hwnas profile)."


class _NotANumber(ValueError):
    pass


def _refuse_constant(text: str) -> NoReturn:
    raise _NotANumber(text)


def _readable(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _checksum(header: JsonValue, rows: JsonValue) -> str:
    """SHA-256 over the content in one spelling.

    Of the file's own values, not of the models read from them: a later hwnas whose models have one more
    optional field must still find an old file unaltered.
    """
    text = json.dumps([header, rows], sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _first_error(error: ValidationError, content: dict[str, Any]) -> str:
    """The first thing wrong, with the op it is about where that can be told."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    index = first["loc"][0] if first["loc"] else None
    about = ""
    if isinstance(index, int):
        key = content["rows"][index].get("key") if isinstance(content["rows"][index], dict) else None
        about = f" (row {index + 1}: {json.dumps(key)})"
    value = first["input"]
    shown = f", got {value!r}" if isinstance(value, str | int | float) else ""
    if isinstance(value, float) and not math.isfinite(value):
        shown = f", got {value}"
    return f"{place}{about}: {first['msg']}{shown}"


def _without_checks(
    cls: type[LatencyTable], header: TableHeader, rows: dict[OpKey, Timing], path: Path
) -> LatencyTable:
    """A table whose rows' batch sizes are looked at later: an altered file should first be called altered."""
    table = cls(header, {}, path)
    table.rows = rows
    return table


def check_batch(key: OpKey, batch: int) -> None:
    """Raise unless the op's inputs have this batch size.

    Raises:
        InvalidInput: they have another, so that milliseconds per batch of different sizes would be added up.
    """
    found = {shape[0] for shape in key.input_shapes if shape}
    if found - {batch}:
        raise InvalidInput(
            f"the table is for batch {batch}, but {key} has batch {', '.join(map(str, sorted(found)))}. "
            "Latencies are per call on the whole batch; record the space with the batch size of the table."
        )
