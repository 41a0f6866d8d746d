"""What the benchmarks write: result files with their pages, and finished pieces of work line by line."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hwnas.files import write_atomically, write_json


def slug(text: str) -> str:
    """A name, of a device say, as part of a file's: lower case, with dashes."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def today() -> str:
    """The date in UTC, 2026-11-25."""
    return datetime.now(UTC).date().isoformat()


def write_result_files(stem: Path, summary: Mapping[str, Any], page: str) -> None:
    """Write ``stem.json`` and ``stem.md``, and print the page."""
    write_json(stem.with_name(f"{stem.name}.json"), summary)
    write_atomically(stem.with_name(f"{stem.name}.md"), page.encode())
    print(page)


def read_lines(path: Path) -> list[Any]:
    """The values of a file with one in JSON a line; none where there is no file.

    A last line that was cut off is left out, and said to be.
    """
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        print(f"{path}: the last line was cut off and is left out", file=sys.stderr, flush=True)
    return [json.loads(line) for line in lines]


def append_line(path: Path, value: Any) -> None:
    """Append a value that :func:`read_lines` reads; a last line that was cut off gives way to it.

    It is on disk when this returns; folders on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened to append: processes that share a work folder lose nothing of each other's.
    with path.open("a+b") as file:
        file.seek(0)
        whole, newline, rest = file.read().rpartition(b"\n")
        if rest:
            file.truncate(len(whole + newline))
        file.write(json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
