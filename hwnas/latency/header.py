"""The header of a latency table: everything that its numbers depend on, apart from the op."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from hwnas.latency.backend import Precision
from hwnas.latency.device import Device, DeviceState

TableProtocol = Literal["isolated", "probe", "formula"]
"""How rows were found: each op timed alone; solved from whole networks; computed."""

UNNAMED_BACKEND = "networks"
"""The backend of a table that was made of networks of which nobody says what measured them."""

OPTIONS = ("provider", "cuda_graph", "mode", "timing_cache")
"""Which settings are options of a backend too, as ``hwnas profile --set backend.NAME=VALUE`` takes them."""


class TableHeader(BaseModel):
    """Everything that the numbers of a table depend on, apart from the op."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    protocol: TableProtocol = "isolated"
    """``"isolated"``: ops timed alone. ``"probe"``: solved from whole networks. ``"formula"``: computed."""
    created: str = ""
    """When the first row was measured: ISO 8601, UTC."""
    processes: int = Field(default=1, ge=1)
    """How many processes measured a row, the most of any."""
    measuring_seconds: float = Field(default=0.0, ge=0)
    """Wall time of all visits; building and loading what was visited took more besides."""
    before: DeviceState | None = None
    """The machine before the first reading."""
    after: DeviceState | None = None
    """The machine after the last reading."""
    residual_percent: float | None = None
    """Of solved rows: by how much their sums miss the networks they were solved from, root mean square."""
    left_out_percent: float | None = None
    """Of solved rows: by how much they miss a network that is left out of the solution, root mean square."""
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

    def command(self, path: Path | None = None, *, device: str | None = None) -> str | None:
        """The command that measures a table under this header; None of networks that were measured elsewhere.

        Args:
            path: the table's file.
            device: an alias that stands in for the header's device.
        """
        if self.backend == UNNAMED_BACKEND:
            return None
        space = self.space.get("name", "SPACE")
        options = [
            f"--set backend.{name}={self.settings[name]} " for name in OPTIONS if name in self.settings
        ]
        return (
            f"hwnas profile {space} --device {device or self.device.alias} --backend {self.backend} "
            f"--precision {self.precision} --batch {self.batch} --threads {self.threads} {''.join(options)}"
            f"{'--protocol isolated ' if self.protocol == 'isolated' else ''}--out {path or 'FILE'}"
        )

    def __str__(self) -> str:
        shape = _readable(self.input_shape)
        threads = "" if self.device.kind == "cuda" else f", threads {self.threads}"
        return (
            f"{self.device.name}, {self.backend} {self.precision}, batch {self.batch}{threads}, input {shape}"
        )


def _readable(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
