"""Timing in PyTorch, eager: the CPU by its own time, CUDA by its own events."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import DTYPES, LatencyBackend, Precision, host_clock, host_reader
from hwnas.latency.cuda import CudaTimer, untyped
from hwnas.latency.device import Device
from hwnas.latency.timing import Reader


class TorchBackend(LatencyBackend):
    """PyTorch as it runs without a compiler, in inference mode, memory format as the tensors have it.

    On the CPU a reading is a block of calls, with ``threads`` threads set around the block alone; one thread
    is timed by the CPU time it takes, more of them by the wall clock. On CUDA it is a block of calls between
    two events with one synchronise at its end; caches are warm, cuDNN chooses its algorithms by trying
    (``cudnn.benchmark``), TF32 is left as PyTorch has it and is on record.

    Args:
        device: a :class:`Device`, or an alias for :meth:`Device.find`.
        precision: the module and its inputs are cast to it.
        threads: of the CPU.
        cuda_graph: on CUDA, capture the module and time replays. For ops whose launches take longer than
            their kernels, this alone tells what the device needs. Not on a CPU.

    Raises:
        InvalidInput: ``cuda_graph`` on a CPU.
    """

    name: ClassVar[str] = "torch"

    def __init__(
        self,
        device: Device | str = "auto",
        precision: Precision = "fp32",
        threads: int = 1,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(device, precision, threads)
        if cuda_graph and self.device.kind != "cuda":
            raise InvalidInput(f"cuda_graph needs a CUDA device; this is {self.device}. Leave it off here.")
        self.cuda_graph = cuda_graph
        self._cuda = CudaTimer(
            torch.device(self.device.torch_name),
            graph=cuda_graph,
            around=self._around,
            remedy=f"{type(self).__name__}(..., cuda_graph=True)",
        )

    @property
    def first_counts(self) -> bool:
        """On a CPU. A network's is 1.004 of the next (median of twelve, a trial); of ops of a few ms 1.1."""
        return self.device.kind == "cpu"

    def check(self) -> None:
        """Raise unless the device is here and PyTorch can use it.

        Raises:
            BackendUnavailable: it is not, or PyTorch cannot.
        """
        if self.device.kind == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(
                f"PyTorch {torch.__version__} cannot run on {self.device}: it sees no CUDA device here. "
                "Install a CUDA build of torch on a machine with a driver, or use --device cpu."
            )
        self.require_here()

    def settings(self) -> dict[str, str]:
        """On CUDA: graph replay, algorithm choice, TF32. On a CPU: clock, which first readings count."""
        if self.device.kind != "cuda":
            clock = {"clock": host_clock(self.threads)[0]}
            if self.first_counts:
                clock["first_reading"] = "kept where it is long"
            return clock | ({"bf16": _bf16_arithmetic(self.device)} if self.precision == "bf16" else {})
        return {
            "cuda_graph": str(self.cuda_graph),
            "cudnn": str(untyped(torch.backends.cudnn).version()),
            "cudnn_benchmark": "True",
            "tf32": f"conv {torch.backends.cudnn.allow_tf32}, matmul {torch.backends.cuda.matmul.allow_tf32}",
            "cache": "warm",
        }

    def remarks(self) -> list[str]:
        """How many of the prepared modules were bound by their launches."""
        return self._cuda.remarks()

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor]) -> Reader:
        """A reader for a copy of ``module``, cast and moved, in evaluation mode.

        Raises:
            MeasurementFailed: the module does not run.
        """
        device = torch.device(self.device.torch_name)
        dtype = DTYPES[self.precision]
        try:
            network = copy.deepcopy(module).eval().to(device=device, dtype=dtype)
            tensors = [x.detach().to(device, dtype if x.is_floating_point() else None) for x in inputs]
            run = self._inference(network, tensors)
            if device.type == "cpu":
                return host_reader(run, host_clock(self.threads)[1], around=self._around)
            return self._cuda.reader(run)
        except HwnasError:
            raise
        except Exception as error:
            raise MeasurementFailed(
                f"{type(module).__name__} does not run in PyTorch ({self.name}, {self.precision}, "
                f"{self.device.name}) on inputs {[tuple(x.shape) for x in inputs]}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _inference(self, network: nn.Module, tensors: list[Tensor]) -> Callable[[], object]:
        """One inference of ``network``, already cast and moved, on ``tensors``."""
        return lambda: network(*tensors)

    def _around(self) -> AbstractContextManager[None]:
        """What holds while a module runs."""
        return _cuda_inference() if self.device.kind == "cuda" else self._one_thread_pool()

    @contextlib.contextmanager
    def _one_thread_pool(self) -> Iterator[None]:
        """Inference mode with this backend's number of threads; both are put back."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _cuda_inference() -> Iterator[None]:
    """Inference mode with cuDNN choosing its algorithms by trying; both are put back."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def _bf16_arithmetic(device: Device) -> str:
    """By which instructions a CPU computes in bf16; without any, kernels go through fp32."""
    return ", ".join(flag for flag in device.flags if "bf16" in flag) or "through fp32"
