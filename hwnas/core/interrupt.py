"""Stopping a long run between two steps, so that what was done is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hwnas.processes import launched


class StopRequest:
    """Whether somebody asked the run to stop: ``requested`` turns true on Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self.requested = False


_HEEDED: list[StopRequest] = []


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request for the body; a second Ctrl-C stops at once.

    Runs inside of a run heed the same request: one that comes while an inner one is past its last step stops
    the outer one.
    Under a launcher of several processes it does not: there one Ctrl-C arrives twice, from the terminal and
    from the launcher, which ends those that do not heed it after a while.
    Outside of the main thread, where Python delivers no signals, the request simply never comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    if _HEEDED:
        yield _HEEDED[-1]
        return
    stop = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT and launched() == 1:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    _HEEDED.append(stop)
    try:
        yield stop
    finally:
        _HEEDED.clear()
        for number, handler in before.items():
            signal.signal(number, handler)
