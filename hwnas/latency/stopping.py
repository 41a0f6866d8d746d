"""When a visit to a reader has read enough, and the visit itself."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwnas.errors import HwnasError, MeasurementFailed
from hwnas.latency.timing import Reader, Timing, quantile

ROUNDS_THAT_TELL = 4
"""Fewer do not tell how much they differ."""


class StoppingRule(BaseModel):
    """When one visit to one reader has read enough.

    After the warm-up, which is thrown away, reading goes on until ``min_readings`` are there, and then until
    any of these holds: ``max_readings``; ``max_seconds`` since the first kept reading; or at least
    ``min_seconds`` have passed and the standard error of the visit's median is at most ``relative_noise`` of
    it.

    The defaults give 5 to 25 ms a visit, and one reading of what takes longer: visits differ, and processes
    do, by what no longer visit would average out, so many short visits tell more than a few long ones.
    A backend may say that a long first reading counts (``first_counts``): then it is the whole visit.
    ``max_readings`` is out of reach where a reading is a block of half a millisecond; it bounds others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    warmup_readings: int = Field(default=5, ge=0)
    """Thrown away at the start of each visit: the entry before it has left its own data in the caches."""
    warmup_seconds: float = Field(default=0.002, ge=0)
    """No further warm-up reading, after the first, begins later than this."""
    min_readings: int = Field(default=1, ge=1)
    max_readings: int = Field(default=300, ge=1)
    min_seconds: float = Field(default=0.005, ge=0)
    max_seconds: float = Field(default=0.025, ge=0)
    relative_noise: float = Field(default=0.005, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_readings > self.max_readings or self.min_seconds > self.max_seconds:
            raise ValueError("a minimum of a stopping rule is above its maximum")
        return self

    def is_enough(self, readings_ms: Sequence[float], seconds: float) -> bool:
        """Whether a visit with these readings, this long after its first, may end."""
        count = len(readings_ms)
        if count < self.min_readings:
            return False
        # Readings that are all equal come from a formula, and more of them would tell nothing.
        all_equal = count > 1 and min(readings_ms) == max(readings_ms)
        if all_equal or count >= self.max_readings or seconds >= self.max_seconds:
            return True
        if seconds < self.min_seconds:
            return False
        ordered = sorted(readings_ms)
        return _error_of_median(ordered, count) <= self.relative_noise * quantile(ordered, 0.5)


def typical_error(timings: Iterable[Timing]) -> float:
    """To what share of its milliseconds a typical one of these entries is known; 0 where nothing tells.

    Half the width of the central 68 % of how all visits differ from their entry's median visit, taken
    together, over the root of the rounds, times √(π/2): the standard error of a median of normal visits, and
    about that of their lower tercile (1.30 in the place of 1.25). What all rounds of an entry have in common
    does not show.
    """
    off: list[float] = []
    rounds: list[int] = []
    for timing in timings:
        visits = timing.round_medians_ms
        middle = statistics.median(visits) if visits else 0.0
        if len(visits) > 1 and middle > 0.0:
            off += [visit / middle - 1.0 for visit in visits]
            rounds.append(len(visits))
    if not off:
        return 0.0
    return _error_of_median(sorted(off), statistics.median(rounds))


def _error_of_median(ordered: Sequence[float], count: float) -> float:
    """Standard error of the median of ``count`` values that scatter like these."""
    # The root is a median's standard error over that of a mean, for normal noise.
    half_width = (quantile(ordered, 0.84) - quantile(ordered, 0.16)) / 2
    return math.sqrt(math.pi / 2) * half_width / math.sqrt(count)


def _checked(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise MeasurementFailed(f"a reading must be finite and above 0 ms; the backend gave {value!r}.")
    return float(value)


def visit(
    reader: Reader,
    rule: StoppingRule,
    clock: Callable[[], float] = time.perf_counter,
    *,
    first_counts: bool = False,
) -> list[float]:
    """Read once through: warm-up, then readings (milliseconds) until ``rule`` is content.

    Args:
        reader: what to read.
        rule: when to end.
        clock: seconds.
        first_counts: see :attr:`hwnas.latency.backend.LatencyBackend.first_counts`.

    Raises:
        MeasurementFailed: the reader raised, or a reading was not a finite number above 0.
    """
    try:
        start = clock()
        for warmup in range(rule.warmup_readings):
            if warmup and clock() - start > rule.warmup_seconds:
                break
            reading = _checked(reader())
            # By the reading, not the clock: a short one that waited for its core is a cold one all the same.
            is_long = reading >= 1e3 * rule.max_seconds
            if first_counts and not warmup and is_long and rule.min_readings == 1:
                return [reading]
        readings: list[float] = []
        start = clock()
        while not readings or not rule.is_enough(readings, clock() - start):
            readings.append(_checked(reader()))
    except HwnasError:
        raise
    except Exception as error:
        # Runtimes raise classes of their own; whatever it is, this entry has no number and the others go on.
        raise MeasurementFailed(f"the reader failed: {type(error).__name__}: {error}") from error
    return readings
