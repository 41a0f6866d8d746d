"""What a runtime must be able to do to fill a table: make a reader for a module."""

from __future__ import annotations

import math
import platform
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, InvalidInput
from hwnas.latency.device import Device, here
from hwnas.latency.timing import Reader

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class LatencyBackend(ABC):
    """A runtime on a device, in a precision: it turns a module and its inputs into a reader.

    A subclass sets :attr:`name` and writes :meth:`check`, :meth:`versions` and :meth:`prepare`; the
    entry-point group ``hwnas.latency_backends`` gives it a name. When to read, how often, what to discard and
    how to summarise is not its work. :func:`hwnas.testing.check_backend` says whether it behaves.

    Args:
        device: a :class:`Device`, or an alias for :meth:`Device.find`.
        precision: of weights and activations.
        threads: of the CPU; on a GPU, of its host.

    Raises:
        DeviceNotFound: the alias names nothing in this machine.
        InvalidInput: an unknown precision, or less than one thread.
    """

    name: ClassVar[str]
    """As ``hwnas profile --backend`` takes it and table headers have it."""
    varies: ClassVar[bool] = True
    """Whether readings differ from time to time and from process to process; those of a formula do not."""

    processes: ClassVar[int] = 8
    """Among how many processes a measurement's rounds are divided unless it says otherwise. Fewer where
    preparing takes long, for each prepares everything anew."""

    def __init__(
        self, device: Device | str = "auto", precision: Precision = "fp32", threads: int = 1
    ) -> None:
        if precision not in get_args(Precision):
            raise InvalidInput(
                f'precision must be one of {", ".join(get_args(Precision))}; got "{precision}".'
            )
        if threads < 1:
            raise InvalidInput(f"threads must be 1 or more; got {threads}.")
        self.device = Device.find(device) if isinstance(device, str) else device
        self.precision: Precision = precision
        self.threads = threads

    @abstractmethod
    def prepare(self, module: nn.Module, inputs: Sequence[Tensor]) -> Reader:
        """A reader for ``module`` in inference on ``inputs``: each call gives milliseconds of one inference.

        The module and the inputs may lie on the CPU in fp32; neither is changed (a copy is converted). All
        that is done once (compiling, choosing kernels, a first warm-up) is done here and not in the reader.

        Raises:
            MeasurementFailed: the module cannot run.
            ExportError: the module cannot be brought to this runtime.
            BackendUnavailable: the runtime cannot run as asked.
        """

    @property
    def first_counts(self) -> bool:
        """Whether a long first reading, after others' work, is as quick as the next.

        One as long as a visit may last (``StoppingRule.max_seconds``) is then the visit: whole networks cost
        half. A backend that says so says it in its :meth:`settings` too.
        """
        return False

    @abstractmethod
    def check(self) -> None:
        """Raise unless this backend can measure here and now.

        Raises:
            BackendUnavailable: the runtime is not here, or would run somewhere else than asked.
            MissingExtra: its package is not installed.
        """

    def versions(self) -> dict[str, str]:
        """Versions that decide its numbers; two tables that differ here do not mix."""
        return {"torch": torch.__version__}

    def settings(self) -> dict[str, str]:
        """Switches that decide its numbers, as text; two tables that differ here do not mix."""
        return {}

    def remarks(self) -> list[str]:
        """What a reader of the table ought to know about the readings taken so far."""
        return []

    def require_here(self) -> None:
        """For :meth:`check`: raise unless the device is one of this machine's.

        Raises:
            BackendUnavailable: it is not; the message lists those that are.
        """
        devices = here()
        if not any(self.device.matches(device) for device in devices):
            listing = ", ".join(map(str, devices))
            raise BackendUnavailable(
                f"{self.device} is not in this machine; here are: {listing}. "
                "Numbers measured here must not bear its name."
            )

    def __str__(self) -> str:
        return f"{self.name} {self.precision} on {self.device}"


def host_versions() -> dict[str, str]:
    """Versions that are on record but decide no number: Python and hwnas."""
    return {"python": platform.python_version(), "hwnas": metadata.version("hwnas")}


def host_clock(threads: int) -> tuple[str, Callable[[], int]]:
    """The clock for work on the CPU, as its name on record and a function that gives nanoseconds.

    One thread is timed by the CPU time that it used: on a shared machine the wall clock counts the turns of
    others too. Several threads, and systems whose count of CPU time is coarse, are timed by the wall clock.
    """
    # Windows counts CPU time in steps of 16 ms, whatever it says of its resolution.
    if threads == 1 and sys.platform in ("linux", "darwin"):
        return "CPU time of the thread", time.thread_time_ns
    return "wall", time.perf_counter_ns


def host_reader(
    run: Callable[[], object],
    clock_ns: Callable[[], int],
    *,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
    finish: Callable[[], object] | None = None,
    min_block_ms: float = 0.5,
) -> Reader:
    """A reader that times on the host: the mean over a block of back-to-back calls.

    A block is as many calls as last ``min_block_ms``, found here, so that what the clock itself costs (0.1 µs
    for the wall, 0.6 µs for CPU time) stays around 0.1 %.

    Args:
        run: one inference.
        clock_ns: nanoseconds since some moment; see :func:`host_clock`.
        around: makes a context that holds during each block, outside the clock.
        finish: called at the end of each block, inside the clock: where ``run`` only enqueues, the
            synchronise.
        min_block_ms: shortest block.
    """

    def block_ms(calls: int) -> float:
        with around():
            start = clock_ns()
            for _ in range(calls):
                run()
            if finish is not None:
                finish()
            return (clock_ns() - start) / 1e6

    calls = calls_per_block(block_ms, min_block_ms)
    return lambda: block_ms(calls) / calls


def calls_per_block(block_ms: Callable[[int], float], min_block_ms: float) -> int:
    """How many calls a block needs to last ``min_block_ms``; warms up on the way.

    Args:
        block_ms: milliseconds that a block of so many calls took.
        min_block_ms: what to reach.
    """
    block_ms(1)
    calls = 1
    while (taken := block_ms(calls)) < min_block_ms:
        # Aim a fifth above, and at most tenfold at once: the first blocks still hold warm-up.
        calls = max(calls + 1, min(10 * calls, math.ceil(1.2 * calls * min_block_ms / max(taken, 1e-6))))
    return calls
