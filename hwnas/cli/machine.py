"""The device, runtime and conditions under which latency is meant: options, backends and tables."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hwnas.cli.console import counting, note
from hwnas.cli.names import find_backend
from hwnas.core.space import SearchSpace
from hwnas.errors import DeviceNotFound, InvalidInput, TableMismatch

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend
    from hwnas.latency.device import Device
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

    def find(self) -> Device:
        """The device in this machine.

        Raises:
            DeviceNotFound: it is not here.
        """
        from hwnas.latency.device import Device

        return Device.find(self.device or "auto")

    def make(self, **options: Any) -> LatencyBackend:
        """The backend on that device, checked to work.

        Args:
            **options: further arguments of the backend's constructor.

        Raises:
            DeviceNotFound: the device is not here.
            BackendUnavailable: the runtime is not.
            InvalidInput: an argument that the backend does not take.
        """
        device = self.find()
        name = self.backend or "onnxruntime"
        kind = find_backend(name)
        taken = inspect.signature(kind).parameters
        arguments: dict[str, Any] = {
            "device": device,
            "precision": self.precision or "fp32",
            "threads": self.threads or 1,
        }
        if device.kind == "cuda":
            arguments["provider"] = "cuda"
        arguments = {key: value for key, value in arguments.items() if key in taken}
        unknown = [key for key in options if key not in taken]
        if unknown:
            raise InvalidInput(f"backend {name} takes no {', '.join(unknown)}; it takes {', '.join(taken)}.")
        backend = kind(**{**arguments, **options})
        backend.check()
        return backend

    def require(self, table: LatencyTable, where: Path) -> None:
        """Refuse a table that was measured under other conditions than those asked for.

        Raises:
            TableMismatch: the message lists each difference.
        """
        header = table.header
        if self.device is not None and self.device != header.device.alias:
            try:
                table.check(device=self.find())
            except DeviceNotFound as error:
                raise TableMismatch(
                    f"{where} was measured on {header.device.name} ({header.device.alias}), "
                    f"--device asks for {self.device}."
                ) from error
        table.check(backend=self.backend, precision=self.precision, threads=self.threads)


def default_table_path(space: SearchSpace, machine: Machine) -> Path:
    """Where the table of a space under these conditions lies unless --out or --lut says otherwise.

    The name holds a digest of the space's fields, since a table of other fields is another table.
    """
    digest = hashlib.sha256(json.dumps(space.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[
        :6
    ]
    device = machine.find()
    parts = [space.name, digest, device.alias or device.kind, machine.backend or "onnxruntime",
             machine.precision or "fp32"]  # fmt: skip
    if device.kind == "cpu":
        parts.append(f"{machine.threads or 1}threads")
    return Path("tables") / ("-".join(part.replace(":", "").replace(" ", "_") for part in parts) + ".json")


def profile_space(
    space: SearchSpace,
    machine: Machine,
    path: Path,
    *,
    batch: int = 1,
    backend_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> LatencyTable:
    """Measure every op of ``space`` on ``machine`` into the table at ``path``; rows that are there stay.

    Args:
        space: whose ops.
        machine: where, and how.
        path: the table's file; a table measured under other conditions is refused.
        batch: images in one inference.
        backend_options: further arguments of the backend.
        settings: fields of ProfileSettings.
    """
    from hwnas.latency.profile import ProfileSettings, profile_keys

    backend = machine.make(**dict(backend_options or {}))
    from hwnas.cli.settings import validated

    keys = space.record(batch=batch).keys()
    note(f"profiling {len(keys)} ops of {space.name} on {backend.device.name}, {backend.name}")
    with counting("profiling") as on_progress:
        return profile_keys(
            keys,
            backend,
            batch=batch,
            input_shape=space.input_shape(),
            path=path,
            space={"name": space.name, "fields": space.model_dump(mode="json")},
            settings=validated(ProfileSettings, dict(settings or {})),
            on_progress=on_progress,
        )
