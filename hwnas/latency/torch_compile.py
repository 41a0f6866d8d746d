"""Timing in PyTorch as ``torch.compile`` makes it: fused by inductor, one graph, fixed shapes."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import warnings
from collections.abc import Callable
from importlib import metadata
from types import FunctionType
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, InvalidInput, MeasurementFailed
from hwnas.latency.backend import Precision
from hwnas.latency.device import Device
from hwnas.latency.torch import TorchBackend

Mode = Literal["default", "max-autotune-no-cudagraphs"]

_numbers = itertools.count()


class TorchCompileBackend(TorchBackend):
    """PyTorch compiled by inductor, read as :class:`TorchBackend` reads the eager one.

    Each module is compiled once, while it is prepared, for the shapes of its inputs, in its precision, and
    for ``threads`` threads. It must become one graph: what would run in Python beside it is refused. The
    checks that compiled code makes at each call (some µs) are in the number, as they are in use;
    ``cuda_graph`` takes them out.

    Compiling takes seconds an op on a CPU, and for a whole network some 17 s the first time: a table needs a
    hundred. Inductor keeps what it compiled in a cache folder of its own.

    Args:
        device: a :class:`Device`, or an alias for :meth:`Device.find`.
        precision: the module and its inputs are cast to it.
        threads: of the CPU.
        cuda_graph: on CUDA, capture the compiled module and time replays. Not on a CPU.
        mode: inductor's; the modes with CUDA graphs of their own would copy the inputs in each call.

    Raises:
        InvalidInput: an unknown mode, or ``cuda_graph`` on a CPU.
    """

    name: ClassVar[str] = "torch-compile"
    processes: ClassVar[int] = 2

    def __init__(
        self,
        device: Device | str = "auto",
        precision: Precision = "fp32",
        threads: int = 1,
        cuda_graph: bool = False,
        mode: Mode = "default",
    ) -> None:
        super().__init__(device, precision, threads, cuda_graph)
        if mode not in get_args(Mode):
            raise InvalidInput(
                f'mode must be one of {", ".join(get_args(Mode))}; got "{mode}". '
                "For CUDA graphs use cuda_graph=True."
            )
        self.mode: Mode = mode

    @property
    def first_counts(self) -> bool:
        """Not known of compiled networks, so no."""
        return False

    def check(self) -> None:
        """Raise unless the device is here, and so is what inductor compiles with.

        Raises:
            BackendUnavailable: the device, a C++ compiler or, on CUDA, Triton is missing.
        """
        super().check()
        if self.device.kind == "cuda":
            if importlib.util.find_spec("triton") is None:
                raise BackendUnavailable(
                    "torch.compile writes its CUDA kernels in Triton, which is not installed. "
                    "Install it with:  pip install triton"
                )
        elif not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "cl"))):
            raise BackendUnavailable(
                "torch.compile needs a C++ compiler for a CPU and finds none. "
                "Install g++, or name one in CXX."
            )

    def settings(self) -> dict[str, str]:
        """Those of eager PyTorch, and the compiler's."""
        return super().settings() | {"compiler": "inductor", "mode": self.mode, "shapes": "static"}

    def versions(self) -> dict[str, str]:
        """PyTorch's version and, on CUDA, that of Triton, which writes the kernels."""
        versions = super().versions()
        if self.device.kind == "cuda":
            try:
                versions["triton"] = metadata.version("triton")
            except metadata.PackageNotFoundError:
                versions["triton"] = "none"
        return versions

    def _inference(self, network: nn.Module, tensors: list[Tensor]) -> Callable[[], object]:
        def inference() -> object:
            return network(*tensors)

        # The compiler counts versions by code object and, after eight, gives up and runs eager: each module
        # gets a code object of its own, as if its inference had been written out.
        name = f"inference_{next(_numbers)}"
        own = FunctionType(
            inference.__code__.replace(co_name=name), globals(), name, None, inference.__closure__
        )
        compiled: Callable[[], object] = torch.compile(own, mode=self.mode, dynamic=False, fullgraph=True)
        with warnings.catch_warnings(), self._around():
            # Deprecations inside of torch, when its compiler is imported, and its advice on TF32.
            for kind in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.simplefilter("ignore", kind)
            try:
                compiled()
            except Exception as error:
                # What follows the first paragraph are stack traces and advice to whoever mends torch.
                cause = str(error).strip().split("\n\n")[0]
                raise MeasurementFailed(
                    f"{type(network).__name__} cannot be compiled ({self.precision}, {self.device.name}) for "
                    f"inputs {[tuple(x.shape) for x in tensors]}: {type(error).__name__}: {cause}"
                ) from error
        return compiled
