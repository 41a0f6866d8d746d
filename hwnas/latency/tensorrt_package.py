"""Which package TensorRT is on this machine; its log and its runtime, one of each in a process."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, Literal, get_args

from hwnas.errors import BackendUnavailable, MissingExtra

Package = Literal["tensorrt", "tensorrt_rtx"]

PACKAGES: tuple[Package, ...] = get_args(Package)
"""The modules that TensorRT may be, the one that is preferred first."""

_LINES = 8  # of TensorRT's log in an error


def import_tensorrt(package: Package | None) -> Any:
    """The module of TensorRT: the package asked for, or the first that can be imported.

    Raises:
        BackendUnavailable: it is older than TensorRT 10.
        MissingExtra: it is not installed.
    """
    wanted = (package,) if package else PACKAGES
    for name in wanted:
        try:
            found = importlib.import_module(name)
        except (ImportError, OSError):  # OSError: its libraries are not where it expects them
            continue
        version = str(found.__version__)
        if name == "tensorrt" and int(version.split(".")[0]) < 10:
            raise BackendUnavailable(f"TensorRT 10 or newer is needed; here is {version}. Upgrade it.")
        return found
    raise MissingExtra(" or ".join(wanted), wanted[-1].replace("_", "-"), "time models in TensorRT")


@lru_cache
def log_of(package: Package) -> Any:
    """The log of a package: one for all builders and runtimes, since TensorRT keeps the first it is given."""
    trt = importlib.import_module(package)

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]  # the base is only known once it is imported
        """Keeps what went wrong, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.lines.append(text)

        def __str__(self) -> str:
            return "\n".join(f"  {line}" for line in self.lines[:_LINES]) or "  (TensorRT logged no error)"

    return Log()


@lru_cache
def runtime_of(package: Package) -> Any:
    """The runtime of a package, which must outlive every engine that it loads."""
    return importlib.import_module(package).Runtime(log_of(package))
