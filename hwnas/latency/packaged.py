"""Latency tables that come with hwnas, by name."""

from __future__ import annotations

from pathlib import Path

_SHIPPED = Path(__file__).parent / "tables"


def packaged_tables() -> dict[str, Path]:
    """The file of each table that comes with hwnas, by name, sorted; :meth:`LatencyTable.load` takes both."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.json"))}


def table_file(path: Path) -> Path:
    """``path`` itself, or the file of the packaged table of that name where it is no file."""
    try:
        is_file = path.is_file()
    except OSError:  # reading it will say why not
        return path
    return path if is_file else packaged_tables().get(str(path), path)
