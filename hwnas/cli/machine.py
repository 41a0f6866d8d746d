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

from hwnas.arguments import checked_arguments
from hwnas.cli.console import counting, note
from hwnas.cli.settings import changed, validated
from hwnas.core.profiling import DEFAULT_PROTOCOL, profile
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput
from hwnas.files import try_place
from hwnas.names import find_backend, in_file_names

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend
    from hwnas.latency.header import TableHeader, TableProtocol
    from hwnas.latency.measuring import ProfileSettings
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

    @classmethod
    def of(cls, header: TableHeader) -> Machine:
        """The conditions that a table was measured under."""
        return cls(header.device.alias, header.backend, header.precision, header.threads)

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
        if own := sorted(conditions.keys() & options.keys()):
            raise InvalidInput(f"{own[0]} is an option by itself: --{own[0]} {options[own[0]]}")
        arguments = {**conditions, **checked_arguments(kind, options, f"backend {name}")}
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


def recorded_options(header: TableHeader) -> dict[str, Any]:
    """The further arguments of the backend's constructor that a table has on record, such as the provider."""
    parameters = inspect.signature(find_backend(header.backend)).parameters
    options: dict[str, Any] = {}
    for name, text in header.settings.items():
        if name in parameters:
            # Headers keep settings as text; the parameter's default tells what it was.
            default = parameters[name].default
            is_number = isinstance(default, int | float) and not isinstance(default, bool)
            options[name] = (
                text == "True" if isinstance(default, bool) else type(default)(text) if is_number else text
            )
    return options


def fields_of(table: LatencyTable, space: str | None) -> dict[str, Any] | None:
    """The fields of the space that a table was measured for; None if that is not the space asked for."""
    fields: dict[str, Any] = dict(table.header.space)
    name = fields.pop("name", None)
    return fields if space is None or name == space else None


def reading_settings(settings: Mapping[str, Any], *, allow_busy: bool = False) -> ProfileSettings:
    """How much to read: from ``--set`` and ``--allow-busy``.

    Raises:
        InvalidInput: values that do not fit.
    """
    from hwnas.latency.measuring import ProfileSettings

    busy = {"busy": "remark"} if allow_busy else {}
    return validated(ProfileSettings, changed({}, {**settings, **busy}))


def allow_busy_option(function: _Function) -> _Function:
    """The option --allow-busy."""
    return click.option(
        "--allow-busy", is_flag=True, help="Keep numbers of a machine that is not quiet; the table says so."
    )(function)


def default_table_path(
    space: SearchSpace, backend: LatencyBackend, batch: int, protocol: TableProtocol = DEFAULT_PROTOCOL
) -> Path:
    """Where the table of a space under these conditions lies unless --out or --lut says otherwise.

    The name holds a digest of the space's fields, since a table of other fields is another table.
    """
    text = json.dumps(space.model_dump(mode="json"), sort_keys=True)
    parts = [
        in_file_names(space.name),
        hashlib.sha256(text.encode()).hexdigest()[:6],
        backend.device.alias,
        backend.name,
        backend.precision,
        f"batch{batch}",
        *([protocol] if protocol != DEFAULT_PROTOCOL else []),
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
    protocol: TableProtocol = DEFAULT_PROTOCOL,
    settings: ProfileSettings | None = None,
) -> LatencyTable:
    """Measure every op of ``space`` into the table at ``path``; rows that are there stay.

    Args:
        space: whose ops.
        backend: where, and how.
        path: the table's file; a table measured under other conditions is refused.
        batch: images in one inference.
        protocol: each op alone, or whole networks besides.
        settings: how much to read.

    Raises:
        OSError: no file can be written there; raised before anything is measured.
    """
    try_place(path)
    keys = space.record(batch=batch).keys()
    note(f"latency of the {len(keys)} ops of {space.name} ({protocol}): {backend}, in {path}")
    with counting("profiling") as on_progress:
        return profile(
            space,
            backend,
            batch=batch,
            protocol=protocol,
            path=path,
            settings=settings,
            on_progress=on_progress,
        )
