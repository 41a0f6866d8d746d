"""The device, runtime and conditions under which latency is meant: options, backends and tables."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hwnas.cli.console import counting, note
from hwnas.cli.names import find_backend
from hwnas.core.profiling import profile
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend
    from hwnas.latency.profile import ProfileSettings
    from hwnas.latency.table import LatencyTable

_Function = TypeVar("_Function", bound=Callable[..., Any])


def machine_options(function: _Function) -> _Function:
    """The options --device, --backend, --precision and --threads; each is None where it was not given."""
    function = click.option("--threads", type=click.IntRange(1), help="CPU threads [default: 1]")(function)
    function = click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]),
                            help="[default: fp32]")(function)  # fmt: skip
    function = click.option("--backend", help="onnxruntime, torch, fake … [default: onnxruntime]")(function)
    return click.option("--device", help="auto, cpu, titanxp, h200, cuda:0 … [default: auto]")(function)


@dataclass(frozen=True)
class Machine:
    """The conditions asked for on the command line; None: not asked for."""

    device: str | None = None
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None

    def make(self, **options: Any) -> LatencyBackend:
        """The backend on that device, checked to work.

        Args:
            **options: further arguments of the backend's constructor.

        Raises:
            DeviceNotFound: the device is not here.
            BackendUnavailable: the runtime is not.
            InvalidInput: an argument that the backend does not take.
        """
        name = self.backend or "onnxruntime"
        kind = find_backend(name)
        taken = inspect.signature(kind).parameters
        unknown = [option for option in options if option not in taken]
        if unknown:
            raise InvalidInput(f"backend {name} takes no {', '.join(unknown)}; it takes {', '.join(taken)}.")
        conditions = {
            "device": self.device or "auto",
            "precision": self.precision or "fp32",
            "threads": self.threads or 1,
        }
        arguments: dict[str, Any] = {**conditions, **options}
        backend = kind(**arguments)
        backend.check()
        return backend

    def require(self, table: LatencyTable) -> None:
        """Refuse a table that was measured under other conditions than those asked for.

        Raises:
            TableMismatch: the message lists each difference.
        """
        from hwnas.latency.device import Device

        precision: Any = self.precision
        table.check(
            device=Device.find("auto") if self.device == "auto" else self.device,
            backend=self.backend,
            precision=precision,
            threads=self.threads,
        )


def default_table_path(space: SearchSpace, backend: LatencyBackend, batch: int) -> Path:
    """Where the table of a space under these conditions lies unless --out or --lut says otherwise.

    The name holds a digest of the space's fields, since a table of other fields is another table.
    """
    text = json.dumps(space.model_dump(mode="json"), sort_keys=True)
    parts = [
        space.name,
        hashlib.sha256(text.encode()).hexdigest()[:6],
        backend.device.alias,
        backend.name,
        backend.precision,
        f"batch{batch}",
    ]
    if backend.device.kind == "cpu":
        parts.append(f"threads{backend.threads}")
    return Path("tables") / f"{'-'.join(parts)}.json"


def profile_space(
    space: SearchSpace,
    backend: LatencyBackend,
    path: Path,
    *,
    batch: int = 1,
    settings: ProfileSettings | None = None,
) -> LatencyTable:
    """Measure every op of ``space`` into the table at ``path``; rows that are there stay.

    Args:
        space: whose ops.
        backend: where, and how.
        path: the table's file; a table measured under other conditions is refused.
        batch: images in one inference.
        settings: how much to read.
    """
    keys = space.record(batch=batch).keys()
    note(f"latency of the {len(keys)} ops of {space.name}: {backend}, in {path}")
    with counting("profiling") as on_progress:
        return profile(space, backend, batch=batch, path=path, settings=settings, on_progress=on_progress)
