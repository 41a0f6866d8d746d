"""Timing in PyTorch, eager: the CPU by its own time, CUDA by its own events."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import DTYPES, LatencyBackend, Precision, calls_per_block, host_clock, host_reader
from hwnas.latency.device import Device
from hwnas.latency.timing import Reader

ENQUEUE_SHARE = 0.8
"""Enqueueing that takes more than this share of the device's time makes a reading one of the CPU's."""

# A block on the GPU: the first kernel's launch (some 5 µs) is inside the events, and must not count.
_CUDA_BLOCK_MS = 2.0
# Inferences in one captured graph: replaying costs some 10 µs each time, which many small ops must share.
_CALLS_PER_GRAPH = 20


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
        self._launch_bound = 0
        self._prepared = 0

    def check(self) -> None:
        """Raise unless the device is here and PyTorch can use it."""
        if self.device.kind == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(
                f"PyTorch {torch.__version__} cannot run on {self.device}: it sees no CUDA device here. "
                "Install a CUDA build of torch on a machine with a driver, or use --device cpu."
            )
        self._require_here()

    def settings(self) -> dict[str, str]:
        """On CUDA: graph replay, algorithm choice, TF32. On a CPU: the clock."""
        if self.device.kind != "cuda":
            return {"clock": host_clock(self.threads)[0]}
        return {
            "cuda_graph": str(self.cuda_graph),
            "cudnn": str(_untyped(torch.backends.cudnn).version()),
            "cudnn_benchmark": "True",
            "tf32": f"conv {torch.backends.cudnn.allow_tf32}, matmul {torch.backends.cuda.matmul.allow_tf32}",
            "cache": "warm",
        }

    def remarks(self) -> list[str]:
        """How many of the prepared modules were bound by their launches."""
        if not self._launch_bound:
            return []
        return [
            f"{self._launch_bound} of {self._prepared} modules were launch-bound: enqueueing took over "
            f"{ENQUEUE_SHARE:.0%} of the device time, so their numbers are the CPU's. cuda_graph=True "
            f"avoids it."
        ]

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor]) -> Reader:
        """A reader for a copy of ``module``, cast and moved, in evaluation mode."""
        device = torch.device(self.device.torch_name)
        dtype = DTYPES[self.precision]
        self._prepared += 1
        try:
            network = copy.deepcopy(module).eval().to(device=device, dtype=dtype)
            tensors = [x.detach().to(device, dtype if x.is_floating_point() else None) for x in inputs]

            def run() -> object:
                return network(*tensors)

            if device.type == "cpu":
                return host_reader(run, host_clock(self.threads)[1], around=self._one_thread_pool)
            with torch.cuda.device(device):
                return self._cuda_reader(run, device)
        except HwnasError:
            raise
        except Exception as error:
            raise MeasurementFailed(
                f"{type(module).__name__} does not run in PyTorch ({self.precision}, {self.device.name}) on "
                f"inputs "
                f"{[tuple(x.shape) for x in inputs]}: {type(error).__name__}: {error}"
            ) from error

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
    def _cuda_settings(self, device: torch.device) -> Iterator[None]:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            with torch.cuda.device(device), torch.inference_mode():
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    def _cuda_reader(self, run: Callable[[], object], device: torch.device) -> Reader:
        per_launch = 1
        if self.cuda_graph:
            run, per_launch = self._captured(run, device), _CALLS_PER_GRAPH
        start = _untyped(torch.cuda).Event(enable_timing=True)
        end = _untyped(torch.cuda).Event(enable_timing=True)
        enqueue_share = 0.0

        def block_ms(launches: int) -> float:
            nonlocal enqueue_share
            with self._cuda_settings(device):
                # Nothing of what ran before may still be queued when the clock starts.
                torch.cuda.synchronize(device)
                before = time.perf_counter_ns()
                start.record()
                for _ in range(launches):
                    run()
                end.record()
                enqueued_ms = (time.perf_counter_ns() - before) / 1e6
                end.synchronize()
                taken_ms: float = start.elapsed_time(end)
            enqueue_share = enqueued_ms / max(taken_ms, 1e-6)
            return taken_ms

        launches = calls_per_block(block_ms, _CUDA_BLOCK_MS)
        block_ms(launches)
        # A single launch says nothing: its enqueueing cannot overlap with anything.
        if launches > 1 and enqueue_share > ENQUEUE_SHARE:
            self._note_launch_bound(enqueue_share)
        return lambda: block_ms(launches) / (launches * per_launch)

    def _note_launch_bound(self, share: float) -> None:
        self._launch_bound += 1
        if self._launch_bound == 1:
            warnings.warn(
                f"enqueueing took {share:.0%} of the device time: these readings are bound by the CPU's "
                "launches, not by the GPU. Time replays instead: TorchBackend(..., cuda_graph=True).",
                LaunchBoundWarning,
                stacklevel=5,
            )

    def _captured(self, run: Callable[[], object], device: torch.device) -> Callable[[], object]:
        """A replay of ``_CALLS_PER_GRAPH`` inferences captured as one CUDA graph, on static inputs."""
        with self._cuda_settings(device):
            # Capture forbids synchronising and allocating outside of its pool: cuDNN's trials, cuBLAS's
            # workspaces and lazy initialisation must have happened, on another stream than the default one.
            side = _untyped(torch.cuda).Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    run()
            torch.cuda.current_stream(device).wait_stream(side)
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            outputs: Any = None
            with torch.cuda.graph(graph):
                for _ in range(_CALLS_PER_GRAPH):
                    # Each output is let go, so that the next inference may reuse its memory.
                    outputs = None
                    outputs = run()
            del outputs
        return graph.replay


def _untyped(module: Any) -> Any:
    """A module of torch whose functions carry no annotations, for the type checker."""
    return module


class LaunchBoundWarning(UserWarning):
    """Readings on a GPU that tell the time of the CPU's launches."""
