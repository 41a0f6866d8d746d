"""Is the machine quiet? A canary that is read between the measurements, and names for what disturbs them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from hwnas.latency.device import Device, DeviceState
from hwnas.latency.levelling import can_level
from hwnas.latency.stopping import ROUNDS_THAT_TELL, typical_error
from hwnas.latency.timing import Reader, Timing

# In the first-level cache, so that what ran before leaves no trace: a larger one took a quarter longer
# behind a network than behind itself.
_CANARY_NUMBERS = 1 << 11
_CANARY_PASSES = 800
_CANARY_READS = 3
_CACHE_LINE = 64  # bytes

_BUSY_SHARE = 0.2  # of a core, from which another process is named
_UNCERTAIN = 0.03  # without hogs 0.7 to 2.5 %, with every core hogged 3.4 to 5.2: decision 7
_BORNE_SHARE = 0.25  # of the rounds; an entry's usual round bears twice as many that are slow


def canary(clock_ns: Callable[[], int]) -> Reader:
    """A reader of a fixed piece of work on the CPU, below 1 ms: slower than usual, the machine is disturbed.

    It feels a lowered clock, a core that is shared and, with a wall clock, being pushed off the core. A
    reading is the quickest of three.

    Args:
        clock_ns: the clock that the measurements use.
    """
    # Across cache lines it is a sixth slower; where memory begins is each process's luck.
    memory = np.empty(2 * _CANARY_NUMBERS + _CACHE_LINE // 8)
    first = -memory.ctypes.data % _CACHE_LINE // 8
    numbers, room = memory[first : first + 2 * _CANARY_NUMBERS].reshape(2, -1)
    numbers[:] = np.linspace(0.0, 1.0, _CANARY_NUMBERS)

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


def uncertainty(timings: Collection[Timing], wanted: float) -> list[str]:
    """That visits to one entry differed too much for numbers to be believed, in a sentence; or empty.

    Of few entries what disturbs all of them alike is not taken out: they differ more, and are no worse. Nor
    do few rounds tell.

    Args:
        timings: of all entries, levelled.
        wanted: to what share of its milliseconds a typical entry should be known.
    """
    if not can_level(timings) or max(timing.rounds for timing in timings) < ROUNDS_THAT_TELL:
        return []
    error = typical_error(timings)
    if error <= max(_UNCERTAIN, wanted):
        return []
    return [
        f"A typical entry is known to {100 * error:.1f} % only, where {100 * wanted:g} % are wanted: visits "
        "to it differed."
    ]


def causes(device: Device, spans: Sequence[tuple[DeviceState, DeviceState]]) -> list[str]:
    """What may have disturbed a measurement on ``device``, in words: each kind of thing once, at its worst.

    Never fails; what cannot be read is not named.

    Args:
        device: what was measured on.
        spans: of each process that measured, the machine before its first reading and after its last.
    """
    found = []
    computing = max((after.gpu_processes or 0 for _, after in spans), default=0)
    if computing > 1:
        found.append(f"{computing} processes compute on the GPU")
    held = dict.fromkeys(reason for span in spans for state in span for reason in state.held_down_by)
    if held:
        found.append(f"the GPU's clocks are held down by {' and '.join(held)}")
    found += _clock_change("GPU", [(before.gpu_mhz, after.gpu_mhz) for before, after in spans], 0.05)
    found += _clock_change("CPU", [(before.cpu_mhz, after.cpu_mhz) for before, after in spans], 0.1)
    rate = max((_switches_a_second(before, after) for before, after in spans), default=0.0)
    if rate > 20:
        found.append(f"a measuring process was pushed off its core {rate:.0f} times a second")
    others = busy_processes()
    load = max((after.load_average or 0.0 for _, after in spans), default=0.0)
    if others:
        found.append(f"other processes are at work: {', '.join(others)}")
    elif load > (os.cpu_count() or 1):
        found.append(f"the load average is {load:.1f} on {os.cpu_count()} cores")
    return found


def _clock_change(what: str, spans: Sequence[tuple[float | None, float | None]], borne: float) -> list[str]:
    """The largest change of a clock, where it is more than what is borne."""
    known = [(before, after) for before, after in spans if before and after]
    if not known:
        return []
    before, after = max(known, key=lambda span: abs(span[1] / span[0] - 1))
    if abs(after / before - 1) <= borne:
        return []
    return [f"the {what}'s clock went from {before:.0f} to {after:.0f} MHz"]


def _switches_a_second(before: DeviceState, after: DeviceState) -> float:
    """How often a process was pushed off its core; 0 where that is not known."""
    seconds = after.seconds - before.seconds
    if after.involuntary_switches is None or before.involuntary_switches is None or seconds <= 0:
        return 0.0
    return (after.involuntary_switches - before.involuntary_switches) / seconds


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
