"""A latency table as a file: JSON, one row a line, with a checksum. Reading one runs no code."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from hwnas.errors import CorruptTable, MissingTable
from hwnas.files import write_atomically
from hwnas.latency.header import TableHeader
from hwnas.latency.packaged import packaged_tables
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.timing import Timing
from hwnas.latency.verification import Verification
from hwnas.lookup import meant
from hwnas.ops import OpKey

SCHEMA_VERSION = 3
"""Raised when the file's meaning changes; older files are migrated on loading, newer ones refused.

1: header and rows. 2: also ops timed alone, networks, and a verification; no version in the header.
3: rounds brought to the speed of a quiet one (``slowdowns``), seconds of measuring.
"""

_PARTS = ("header", "rows", "isolated", "networks", "verification")
_PARTS_OF_VERSION_1 = ("header", "rows")


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: OpKey
    timing: Timing


@dataclass(frozen=True)
class TableContent:
    """Everything that a table's file holds."""

    header: TableHeader
    rows: dict[OpKey, Timing]
    isolated: dict[OpKey, Timing]
    networks: list[NetworkTiming]
    verification: Verification | None


class _Parts(BaseModel):
    """The same as the file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    header: TableHeader
    rows: list[_Row]
    isolated: list[_Row] = []
    networks: list[NetworkTiming] = []
    verification: Verification | None = None


_ROW = TypeAdapter(_Row)


def write_content(content: TableContent, path: Path) -> None:
    """Write a table to ``path`` in one step."""
    parts = _json_parts(content)

    def lines(rows: list[str]) -> str:
        return "[\n" + ",\n".join(f"  {row}" for row in rows) + "\n]" if rows else "[]"

    text = (
        "{\n"
        f'"schema_version": {SCHEMA_VERSION},\n'
        f'"checksum": "{checksum(content)}",\n'
        f'"header": {parts["header"]},\n'
        f'"rows": {lines(parts["rows"])},\n'
        f'"isolated": {lines(parts["isolated"])},\n'
        f'"networks": {lines(parts["networks"])},\n'
        f'"verification": {parts["verification"]}\n'
        "}\n"
    )
    write_atomically(path, text.encode())


def read_content(path: Path) -> TableContent:
    """Read and verify the table at ``path``.

    Raises:
        MissingTable: there is no such file.
        CorruptTable: it is truncated, altered after it was written, of a newer hwnas, or holds a row that
            cannot be a latency. The message says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingTable(
            f"no table at {path}{meant(str(path), packaged_tables())}. "
            f"Measure one:  hwnas profile --out {path}  (hwnas table list names those that come with hwnas)"
        ) from None
    except IsADirectoryError:
        raise MissingTable(f"{path} is a folder; expected a table's file.") from None
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
        or not {"schema_version", "checksum", *_PARTS_OF_VERSION_1} <= content.keys()
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
    parts = {
        name: content[name] for name in (_PARTS if version > 1 else _PARTS_OF_VERSION_1) if name in content
    }
    found = _digest(list(parts.values()))
    try:
        read = _Parts.model_validate_json(json.dumps(_migrated(parts, version)))
    except ValidationError as error:
        raise CorruptTable(
            f"{path} holds what no measurement gives: {_first_error(error, parts)}. {_REMEDY}"
        ) from error
    for rows in (read.rows, read.isolated):
        if len({row.key for row in rows}) != len(rows):
            raise CorruptTable(f"{path} has two rows for one op key. {_REMEDY}")
    if found != content["checksum"]:
        raise CorruptTable(
            f"{path} was altered after it was written: its checksum says {content['checksum']}, "
            f"its content gives {found}. {_REMEDY}"
        )
    return TableContent(
        header=read.header,
        rows={row.key: row.timing for row in read.rows},
        isolated={row.key: row.timing for row in read.isolated},
        networks=list(read.networks),
        verification=read.verification,
    )


def checksum(content: TableContent) -> str:
    """SHA-256 over all parts of the file, as it has them: ``"sha256:…"``."""
    parts = _json_parts(content)
    return _digest(
        [
            json.loads(part) if isinstance(part, str) else [json.loads(row) for row in part]
            for part in (parts[name] for name in _PARTS)
        ]
    )


def rows_digest(rows: Mapping[OpKey, Timing]) -> str:
    """SHA-256 over keys and milliseconds of the rows alone."""
    return _digest([[str(key), timing.median_ms] for key, timing in rows.items() if timing.status == "ok"])


def _json_parts(content: TableContent) -> dict[str, Any]:
    """Every part as JSON text, rows one by one."""

    def rows(timings: dict[OpKey, Timing]) -> list[str]:
        return [_ROW.dump_json(_Row(key=key, timing=timing)).decode() for key, timing in timings.items()]

    return {
        "header": content.header.model_dump_json(),
        "rows": rows(content.rows),
        "isolated": rows(content.isolated),
        "networks": [network.model_dump_json() for network in content.networks],
        "verification": content.verification.model_dump_json() if content.verification else "null",
    }


def _migrated(parts: dict[str, Any], version: int) -> dict[str, Any]:
    """The parts as the present schema has them."""
    if version == 1 and isinstance(parts["header"], dict):
        header = {name: value for name, value in parts["header"].items() if name != "schema_version"}
        return {**parts, "header": header}
    return parts


_REMEDY = "Restore it from a copy, or delete it and measure again (hwnas profile)."


class _NotANumber(ValueError):
    pass


def _refuse_constant(text: str) -> NoReturn:
    raise _NotANumber(text)


def _digest(content: JsonValue) -> str:
    """SHA-256 over the content in one spelling.

    Of the file's own values, not of the models read from them: a later hwnas whose models have one more
    optional field must still find an old file unaltered.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _first_error(error: ValidationError, parts: dict[str, Any]) -> str:
    """The first thing wrong, with the op it is about where that can be told."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(map(str, first["loc"]))
    about = ""
    part, *rest = first["loc"]
    if part in ("rows", "isolated") and rest and isinstance(rest[0], int):
        row = parts[str(part)][rest[0]]
        about = f" (row {rest[0] + 1}: {json.dumps(row.get('key') if isinstance(row, dict) else None)})"
    value = first["input"]
    shown = f", got {value!r}" if isinstance(value, str | int | float) else ""
    if isinstance(value, float) and not math.isfinite(value):
        shown = f", got {value}"
    return f"{place}{about}: {first['msg']}{shown}"
