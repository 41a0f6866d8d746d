"""What every runtime that can time a module has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from hwnas.errors import InvalidInput
from hwnas.latency.device import Device

Precision = Literal["fp32", "fp16", "bf16"]
"""Number format of weights and activations. "fp32" is the real one: TF32 is switched off where it can be."""

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""PyTorch's type for each precision."""


class LatencyBackend(ABC):
    """A runtime on one device, in one precision: it turns a module into a reader of its latency.

    A subclass sets :attr:`name` and writes :meth:`check`, :meth:`versions` and :meth:`prepare`; entries of the
    entry-point group ``hwnas.latency_backends`` are found by name. :func:`hwnas.testing.check_backend` says
    whether it behaves.

    Args:
        device: what to time on.
        precision: number format of weights and activations.
        threads: CPU threads that one inference may use; means nothing on a GPU.

    Raises:
        InvalidInput: an unknown precision, or fewer than one thread.
    """

    name: ClassVar[str]
    """Registered name, as on the command line."""

    def __init__(self, device: Device, precision: Precision = "fp32", threads: int = 1) -> None:
        if precision not in get_args(Precision):
            raise InvalidInput(f'precision "{precision}" is not one of {", ".join(get_args(Precision))}.')
        if threads < 1:
            raise InvalidInput(f"threads is {threads}; at least 1 is needed to run anything.")
        self.device = device
        self.precision: Precision = precision
        self.threads = threads

    @property
    def label(self) -> str:
        """What a table calls this backend: the name, and whatever else of its set-up changes the numbers."""
        return self.name

    @abstractmethod
    def check(self) -> None:
        """Make sure that a measurement would run where and how it was asked for.

        Raises:
            BackendUnavailable: it would not; the message says what is missing and how to get it.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of everything whose change can change a latency; they head the table."""

    @abstractmethod
    def prepare(self, module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], float]:
        """Get ``module`` ready to run on ``inputs`` and return a reader of its latency.

        The module is timed in evaluation mode, as a copy: neither it nor the inputs are changed. Warming up,
        compiling and moving data happen here, outside of every reading.

        Args:
            module: what to time, with float32 weights on the CPU.
            inputs: its positional arguments, float32 on the CPU, batch first.

        Returns:
            A function without arguments. Each call takes one reading: milliseconds of one inference of the whole
            batch, positive.

        Raises:
            BackendUnavailable: the runtime would run it somewhere else than asked.
            ExportError: the module cannot be brought into the runtime's form.
        """

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.label} on {self.device}, {self.precision}, {self.threads} threads)"
        )
