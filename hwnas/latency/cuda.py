"""Timing on a CUDA device by its own events: blocks of launches, or of replays of a captured graph."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hwnas.errors import HwnasWarning
from hwnas.latency.backend import calls_per_block
from hwnas.latency.timing import Reader

ENQUEUE_SHARE = 0.8
"""Enqueueing that takes more than this share of the device's time makes a reading one of the CPU's."""

# The first kernel's launch (some 5 µs) is inside the events, and must not count.
_BLOCK_MS = 2.0
# Inferences in one captured graph: replaying costs some 10 µs each time, which many small ops must share.
_CALLS_PER_GRAPH = 20


class LaunchBoundWarning(HwnasWarning):
    """Readings on a GPU that tell the time of the CPU's launches."""


class CudaTimer:
    """Makes readers on one CUDA device, and counts those whose number is their launches'.

    A reading is a block of launches between two events with one synchronise at its end. Caches are warm.

    Args:
        device: with its index.
        graph: capture 20 launches as one CUDA graph, and time replays.
        around: makes a context that holds while warming up, capturing and in each block.
        remedy: the call that times replays instead, for the warning where launches are not captured.
        warmup_ms: on the wall clock, before the first block.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        graph: bool,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        remedy: str,
        warmup_ms: float = 0.0,
    ) -> None:
        self.device = device
        self.graph = graph
        self._around = around
        self._remedy = remedy
        self._warmup_ms = warmup_ms
        self._readers = 0
        self._launch_bound = 0

    def reader(self, run: Callable[[], object]) -> Reader:
        """A reader of ``run``, which enqueues one inference on the current stream."""
        self._readers += 1
        with torch.cuda.device(self.device):
            per_launch = 1
            self._warm_up(run)
            if self.graph:
                run, per_launch = self._captured(run), _CALLS_PER_GRAPH
            start = untyped(torch.cuda).Event(enable_timing=True)
            end = untyped(torch.cuda).Event(enable_timing=True)
        enqueue_share = 0.0

        def block_ms(launches: int) -> float:
            nonlocal enqueue_share
            with torch.cuda.device(self.device), self._around():
                # Nothing of what ran before may still be queued when the clock starts.
                torch.cuda.synchronize(self.device)
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

        launches = calls_per_block(block_ms, _BLOCK_MS)
        block_ms(launches)
        # A single launch says nothing: its enqueueing cannot overlap with anything.
        if launches > 1 and enqueue_share > ENQUEUE_SHARE:
            self._note_launch_bound(enqueue_share)
        return lambda: block_ms(launches) / (launches * per_launch)

    def remarks(self) -> list[str]:
        """How many readers were bound by their launches, in a sentence; empty for none."""
        if not self._launch_bound:
            return []
        remedy = "" if self.graph else f" {self._remedy} avoids it."
        return [
            f"{self._launch_bound} of {self._readers} modules were launch-bound: enqueueing took over "
            f"{ENQUEUE_SHARE:.0%} of the device time, so their numbers are the CPU's.{remedy}"
        ]

    def _note_launch_bound(self, share: float) -> None:
        self._launch_bound += 1
        if self._launch_bound == 1:
            remedy = "" if self.graph else f" Time replays instead: {self._remedy}."
            warnings.warn(
                f"enqueueing took {share:.0%} of the device time: these readings are bound by the CPU's "
                f"launches, not by the GPU.{remedy}",
                LaunchBoundWarning,
                stacklevel=4,
            )

    def _warm_up(self, run: Callable[[], object]) -> None:
        start = time.perf_counter_ns()
        while (time.perf_counter_ns() - start) / 1e6 < self._warmup_ms:
            with self._around():
                run()
                torch.cuda.synchronize(self.device)

    def _captured(self, run: Callable[[], object]) -> Callable[[], object]:
        """A replay of several inferences captured as one CUDA graph, on static inputs."""
        with self._around():
            # Capture forbids synchronising and allocating outside of its pool: cuDNN's trials, cuBLAS's
            # workspaces and lazy initialisation must have happened, on another stream than the default one.
            side = untyped(torch.cuda).Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    run()
            torch.cuda.current_stream(self.device).wait_stream(side)
            torch.cuda.synchronize(self.device)
            graph = torch.cuda.CUDAGraph()
            outputs: Any = None
            with torch.cuda.graph(graph):
                for _ in range(_CALLS_PER_GRAPH):
                    # Each output is let go, so that the next inference may reuse its memory.
                    outputs = None
                    outputs = run()
            del outputs
        return graph.replay


def untyped(module: Any) -> Any:
    """A module of torch whose functions carry no annotations, for the type checker."""
    return module
