"""Writing files so that a reader never sees half of one, and reading JSON."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hwnas.errors import DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step; folders on the way are made.

    An interrupted write leaves the old file as it was. The new file is on disk before it takes the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are meant to be read like any other file of the user's.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def try_place(path: Path) -> None:
    """Make the folder of ``path``, and see that files can be written in it.

    Raises:
        OSError: they cannot; it names ``path``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, content: BaseModel | Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Replace ``path`` by ``content`` as JSON and a newline, as :func:`write_atomically` does.

    Args:
        path: folders on the way are made.
        content: numbers that JSON has no word for (NaN, infinity) are written as null.
        indent: spaces for each level; None: all in one line.
    """
    if isinstance(content, BaseModel):
        text = content.model_dump_json(indent=indent)
    else:
        text = json.dumps(plain(content), indent=indent, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        DataError: no such file, or it holds none.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"there is no {path}.") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: expected a JSON object, got {type(found).__name__}.")
    return found


def plain(value: Any) -> Any:
    """``value`` with null for every number that JSON has no word for (NaN, infinity), however deep."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
