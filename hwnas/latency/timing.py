"""What a timing is: readings, what is kept of them and how they are summarised, without torch or hardware.

A *reader* is a function whose one call gives one reading: the milliseconds of one inference. Readings are
taken in *rounds* (:mod:`hwnas.latency.interleaving`). The value of an entry is the lower tercile
(:func:`lower_tercile`) over its rounds of the median within each round, each brought to the speed of a quiet
round (:mod:`hwnas.latency.levelling`).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwnas.errors import MeasurementFailed

QUANTILES = (0.05, 0.16, 0.25, 0.5, 0.75, 0.84, 0.95)
"""Which quantiles of all readings :attr:`Timing.quantiles_ms` holds."""

Reader = Callable[[], float]
"""One call gives one reading: milliseconds of one inference."""


def in_ms(value: float, digits: int = 4) -> str:
    """Milliseconds as people read them, without the unit: so many significant digits, two decimals at least.

    Never in powers of ten: ``12.35``, ``0.01234``.

    Args:
        value: how many.
        digits: 4 for a latency; 2 for how far readings of it lie apart.
    """
    is_plain = math.isfinite(value) and value != 0
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if is_plain else 0
    return f"{value:.{max(2, decimals)}f}"


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest of the sorted values."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def lower_tercile(values: Sequence[float]) -> float:
    """The lower tercile: a third of the values lie below it, by linear interpolation.

    What disturbs a round makes it slower, hardly ever quicker. A median is moved by every disturbed round, if
    only by a little, a minimum is decided by the luckiest round; of eight rounds this bears four to be slow
    by anything, and two to be too quick, of four two and one; of fewer, a slow one moves it.
    """
    return quantile(sorted(values), 1 / 3)


class Timing(BaseModel):
    """What was measured for one op or network: one number that never travels without its spread and count.

    All times are milliseconds for one call on the whole batch (not per sample); but for ``readings_ms`` they
    are those of a quiet round: divided by ``slowdowns``. Make one from readings with
    :meth:`from_rounds`. ``status`` is ``"ok"``; ``"partial"`` while rounds are still missing; ``"failed"``
    where no number could be had. A failed timing's numbers are infinite, so that no sum over it can pass for
    a latency, and ``error`` says why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    median_ms: float = Field(ge=0)
    """The :func:`lower_tercile` over the rounds of each round's median: of one round, the median."""
    spread_ms: float = Field(ge=0)
    """Half the width of the central 68 % of all readings: a robust standard deviation of one reading."""
    count: int = Field(ge=0)
    """Number of readings kept (warm-up excluded)."""
    rounds: int = Field(default=1, ge=0)
    """Number of rounds that the readings come from."""
    quantiles_ms: tuple[float, ...] = ()
    """The :data:`QUANTILES` of all readings, or empty."""
    readings_ms: tuple[tuple[float, ...], ...] = ()
    """Every reading as it was taken, one tuple a round, rounded to the nanosecond; or empty."""
    slowdowns: tuple[float, ...] = ()
    """How much slower than a quiet one each round was for all entries alike; see
    :func:`hwnas.latency.levelling.slowdown_by_round`. Empty: the readings were not corrected."""
    rounds_by_process: tuple[int, ...] = ()
    """How many of the rounds each process measured, in order; empty where there was one process."""
    status: Literal["ok", "partial", "failed"] = "ok"
    error: str | None = None
    """Why there is no number; only where ``status`` is ``"failed"``."""

    @model_validator(mode="after")
    def _believable(self) -> Self:
        numbers = (
            self.median_ms,
            self.spread_ms,
            *self.quantiles_ms,
            *(r for v in self.readings_ms for r in v),
        )
        if self.status == "failed":
            if not self.error or self.count or not math.isinf(self.median_ms):
                raise ValueError("a failed timing has an error, no readings, and infinite numbers")
            return self
        if self.error is not None:
            raise ValueError("only a failed timing has an error")
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"a latency must be finite and not negative; here are {numbers[:4]}…")
        if self.count < 1 or self.rounds < 1:
            raise ValueError("a timing needs at least one reading")
        if self.readings_ms and (self.rounds, self.count) != (
            len(self.readings_ms),
            sum(map(len, self.readings_ms)),
        ):
            raise ValueError("count and rounds disagree with the readings")
        if self.rounds_by_process and sum(self.rounds_by_process) != self.rounds:
            raise ValueError("the processes' rounds do not add up to the rounds")
        if self.slowdowns and (
            len(self.slowdowns) != self.rounds or not all(0 < value < math.inf for value in self.slowdowns)
        ):
            raise ValueError("slowdowns must be one number above 0 for each round")
        return self

    @classmethod
    def from_rounds(
        cls,
        rounds_ms: Sequence[Sequence[float]],
        *,
        status: Literal["ok", "partial"] = "ok",
        rounds_by_process: Sequence[int] = (),
        slowdowns: Sequence[float] = (),
    ) -> Timing:
        """Summarise readings: one sequence of milliseconds for each round, none of them empty.

        Args:
            rounds_ms: the readings as they were taken.
            status: ``"partial"`` while rounds are missing.
            rounds_by_process: how many of the rounds each process measured.
            slowdowns: what to divide each round's readings by.

        Raises:
            MeasurementFailed: there is no reading, or one is negative, NaN or infinite.
        """
        readings = tuple(tuple(round(value, 6) for value in values) for values in rounds_ms)
        factors = tuple(slowdowns) or (1.0,) * len(readings)
        corrected = [
            [value / factor for value in values] for values, factor in zip(readings, factors, strict=True)
        ]
        every = sorted(value for values in corrected for value in values)
        if not readings or not all(readings):
            raise MeasurementFailed("expected at least one reading in every round; got none.")
        if not all(math.isfinite(value) and value >= 0 for value in every):
            raise MeasurementFailed(
                f"a reading must be finite and not negative; got {every[0]} … {every[-1]} ms."
            )
        return cls(
            median_ms=round(lower_tercile([statistics.median(values) for values in corrected]), 9),
            spread_ms=round((quantile(every, 0.84) - quantile(every, 0.16)) / 2, 9),
            count=len(every),
            rounds=len(readings),
            quantiles_ms=tuple(round(quantile(every, share), 9) for share in QUANTILES),
            readings_ms=readings,
            rounds_by_process=tuple(rounds_by_process) if len(rounds_by_process) > 1 else (),
            slowdowns=tuple(slowdowns),
            status=status,
        )

    @classmethod
    def failed(cls, error: str) -> Timing:
        """The record of a measurement that gave no number."""
        return cls(median_ms=math.inf, spread_ms=math.inf, count=0, rounds=0, status="failed", error=error)

    @property
    def round_medians_ms(self) -> tuple[float, ...]:
        """The median of each round, in the order in which they were measured; empty without readings."""
        factors = self.slowdowns or (1.0,) * len(self.readings_ms)
        return tuple(
            statistics.median(values) / factor
            for values, factor in zip(self.readings_ms, factors, strict=True)
        )

    @property
    def process_medians_ms(self) -> tuple[float, ...]:
        """The median over each process's rounds; of a single process, the round medians themselves."""
        medians = self.round_medians_ms
        if len(self.rounds_by_process) < 2:
            return medians
        edges = [0, *itertools.accumulate(self.rounds_by_process)]
        return tuple(statistics.median(medians[a:b]) for a, b in itertools.pairwise(edges) if b > a)

    def __str__(self) -> str:
        if self.status == "failed":
            return f"failed: {self.error}"
        return (
            f"{in_ms(self.median_ms)} ms ± {in_ms(self.spread_ms, 2)} (n={self.count}, {self.rounds} rounds)"
        )
