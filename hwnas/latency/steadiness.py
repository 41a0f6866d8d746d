"""Is the machine quiet? A canary that is read between the measurements, and names for what disturbs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from hwnas.latency.device import Device, DeviceState
from hwnas.latency.timing import Reader

# In the first-level cache, so that what ran before leaves no trace: a larger one took a quarter longer
# behind a network than behind itself.
_CANARY_NUMBERS = 1 << 11
_CANARY_PASSES = 800
_CANARY_READS = 3

_BUSY_SHARE = 0.2  # of a core, from which another process is named
_HOPELESS = 3.0  # times the error that is wanted
_BORNE_SHARE = 0.25  # of the rounds; an entry's usual round bears twice as many that are slow


def canary(clock_ns: Callable[[], int]) -> Reader:
    """A reader of a fixed piece of work on the CPU, below 1 ms: slower than usual, the machine is disturbed.

    It feels a lowered clock, a core that is shared and, with a wall clock, being pushed off the core. A
    reading is the quickest of three.

    Args:
        clock_ns: the clock that the measurements use.
    """
    numbers = np.linspace(0.0, 1.0, _CANARY_NUMBERS)
    room = np.empty_like(numbers)

    def once() -> float:
        start = clock_ns()
        for _ in range(_CANARY_PASSES):
            np.add(numbers, numbers, out=room)
        return (clock_ns() - start) / 1e6

    return lambda: min(once() for _ in range(_CANARY_READS))


def unsteadiness(slowdowns: Sequence[float], tolerance: float) -> list[str]:
    """That rounds ran at unequal speed, in a sentence; empty where so few did that entries bear it.

    Args:
        slowdowns: how many times slower than usual each round was.
        tolerance: how many times is borne.
    """
    if sum(value > tolerance for value in slowdowns) <= _BORNE_SHARE * len(slowdowns):
        return []
    listed = ", ".join(f"{value:.2f}" for value in slowdowns)
    return [f"Rounds ran at unequal speed, as a ratio to the usual: {listed}."]


def restlessness(error: float, wanted: float) -> list[str]:
    """That visits to one entry differed too much for numbers to be believed, in a sentence; or empty.

    Two tables that are known so badly lie further apart than a few percent: with every core of a machine
    hogged a typical entry was known to 3.4 and 4.0 %, and the rows of the two were 2.9 % apart in the median
    (``benchmarks/table_fidelity.py``).

    Args:
        error: to what share of its milliseconds a typical entry is known.
        wanted: to what share it should be.
    """
    if error <= _HOPELESS * wanted:
        return []
    return [
        f"A typical entry is known to {100 * error:.1f} % only, where {100 * wanted:g} % are wanted: visits "
        "to it differed."
    ]


def causes(device: Device, before: DeviceState, after: DeviceState) -> list[str]:
    """What may have disturbed a measurement on ``device`` between two moments, in words.

    Never fails; what cannot be read is not named.
    """
    found = []
    if after.gpu_processes is not None and after.gpu_processes > 1:
        found.append(f"{after.gpu_processes} processes compute on the GPU")
    held = list(dict.fromkeys((*before.held_down_by, *after.held_down_by)))
    if held:
        found.append(f"the GPU's clocks are held down by {' and '.join(held)}")
    if before.gpu_mhz and after.gpu_mhz and abs(after.gpu_mhz / before.gpu_mhz - 1) > 0.05:
        found.append(f"the GPU's clock went from {before.gpu_mhz:.0f} to {after.gpu_mhz:.0f} MHz")
    if before.cpu_mhz and after.cpu_mhz and abs(after.cpu_mhz / before.cpu_mhz - 1) > 0.1:
        found.append(f"the CPU's clock went from {before.cpu_mhz:.0f} to {after.cpu_mhz:.0f} MHz")
    seconds = after.seconds - before.seconds
    if after.involuntary_switches is not None and before.involuntary_switches is not None and seconds > 0:
        rate = (after.involuntary_switches - before.involuntary_switches) / seconds
        if rate > 20:
            found.append(f"this process was pushed off its core {rate:.0f} times a second")
    others = busy_processes()
    if others:
        found.append(f"other processes are at work: {', '.join(others)}")
    elif after.load_average is not None and after.load_average > (os.cpu_count() or 1):
        found.append(f"the load average is {after.load_average:.1f} on {os.cpu_count()} cores")
    return found


def busy_processes(seconds: float = 0.2, limit: int = 4) -> list[str]:
    """Other processes that use a good part of a core just now, busiest first: ``"python (412, 97 %)"``.

    Args:
        seconds: how long to look.
        limit: name at most so many.
    """
    import psutil

    mine = {os.getpid(), os.getppid()}
    watched = []
    for process in psutil.process_iter():
        try:
            process.cpu_percent()
            watched.append(process)
        except psutil.Error:
            continue
    time.sleep(seconds)
    busy = []
    for process in watched:
        try:
            share = process.cpu_percent()
            if share > 100 * _BUSY_SHARE and process.pid not in mine:
                busy.append((share, f"{process.name()} ({process.pid}, {share:.0f} %)"))
        except psutil.Error:
            continue
    return [name for _, name in sorted(busy, reverse=True)[:limit]]
