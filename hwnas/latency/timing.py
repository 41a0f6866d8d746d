"""How often to read, what to keep, how to summarise: the discipline of timing, without torch or hardware.

A *reader* is a function whose one call gives one reading: the milliseconds of one inference. All readers of a
table are visited in random order, again and again, in *rounds*: a machine that slows down for a second then
disturbs one round of many entries instead of every reading of one. The value of an entry is the median over
its rounds of the median within each round, each brought to the speed of a quiet round (:func:`levelled`).
"""

from __future__ import annotations

import itertools
import math
import operator
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwnas.errors import HwnasError, Interrupted, MeasurementFailed

QUANTILES = (0.05, 0.16, 0.25, 0.5, 0.75, 0.84, 0.95)
"""Which quantiles of all readings :attr:`Timing.quantiles_ms` holds."""

_VISITS_PER_LOOK = 10  # between two looks at the canary

# With fewer entries a round's speed cannot be told from their own scatter.
_ENTRIES_TO_LEVEL = 20
_POLISHES = 4  # the medians no longer move after two or three

K = TypeVar("K")
Reader = Callable[[], float]
"""One call gives one reading: milliseconds of one inference."""


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest of the sorted values."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class Timing(BaseModel):
    """What was measured for one op or network: a median that never travels without its spread and count.

    All times are milliseconds for one call on the whole batch (not per sample); but for ``readings_ms`` they
    are those of a quiet round: divided by ``slowdowns``. Make one from readings with
    :meth:`from_rounds`. ``status`` is ``"ok"``; ``"partial"`` while rounds are still missing; ``"failed"``
    where no number could be had. A failed timing's numbers are infinite, so that no sum over it can pass for
    a latency, and ``error`` says why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    median_ms: float = Field(ge=0)
    """Median over the rounds of each round's median."""
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
    """How much slower than a quiet one each round was for all entries alike; see :func:`levelled`. Empty: the
    readings were not corrected."""
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
            median_ms=round(statistics.median(statistics.median(values) for values in corrected), 9),
            spread_ms=round((_quantile(every, 0.84) - _quantile(every, 0.16)) / 2, 9),
            count=len(every),
            rounds=len(readings),
            quantiles_ms=tuple(round(_quantile(every, share), 9) for share in QUANTILES),
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
        return f"{self.median_ms:.4g} ms ± {self.spread_ms:.2g} (n={self.count}, {self.rounds} rounds)"


class StoppingRule(BaseModel):
    """When one visit to one reader has read enough.

    After ``warmup_readings`` that are thrown away, reading goes on until ``min_readings`` are there, and then
    until any of these holds: ``max_readings``; ``max_seconds`` since the first kept reading; or at least
    ``min_seconds`` have passed and the standard error of the visit's median is at most ``relative_noise`` of
    it.

    The defaults give 5 to 25 ms a visit, and one reading of what takes longer: visits differ, and processes
    do, by what no longer visit would average out, so many short visits tell more than a few long ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    warmup_readings: int = Field(default=1, ge=0)
    """Thrown away at the start of each visit: the entry before it has left its own data in the caches."""
    min_readings: int = Field(default=1, ge=1)
    max_readings: int = Field(default=30, ge=1)
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
        # 1.25 = sqrt(pi/2): the standard error of a median, over that of a mean, for normal noise.
        error = 1.25 * (_quantile(ordered, 0.84) - _quantile(ordered, 0.16)) / 2 / math.sqrt(count)
        return error <= self.relative_noise * _quantile(ordered, 0.5)


def _checked(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise MeasurementFailed(f"a reading must be finite and above 0 ms; the backend gave {value!r}.")
    return float(value)


def visit(reader: Reader, rule: StoppingRule, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Read once through: warm-up, then readings (milliseconds) until ``rule`` is content.

    Raises:
        MeasurementFailed: the reader raised, or a reading was not a finite number above 0.
    """
    try:
        for _ in range(rule.warmup_readings):
            _checked(reader())
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


class RoundWatch:
    """Tells rounds that something disturbed from quiet ones, so that they can be measured again.

    A round is disturbed if it ran more than ``tolerance`` times slower than usual: by its entries, compared
    with themselves in the other rounds, or by a canary, a fixed piece of work that is read on the way.

    Args:
        canary: a reader of work that always takes as long on a quiet machine; None: judge by entries alone.
        tolerance: how many times slower than usual a quiet round may be, above 1.
        extra_rounds: how many disturbed rounds may be measured again.
    """

    def __init__(self, canary: Reader | None = None, tolerance: float = 1.1, extra_rounds: int = 0) -> None:
        self.canary = canary
        self.tolerance = tolerance
        self.extra_rounds = extra_rounds
        self.repeated = 0
        """Rounds that were thrown away and measured again."""
        self.slowdowns: list[float] = []
        """How much slower than the usual one each round was that is kept, by the worse of both signs."""
        self._canary_ms: list[list[float]] = []

    def begin_round(self) -> None:
        """Note that a round begins."""
        self._canary_ms.append([])
        self.look()

    def look(self) -> None:
        """Read the canary, if there is one, into the round in progress."""
        if self.canary is not None:
            self._canary_ms[-1].append(self.canary())

    def drop(self, index: int) -> None:
        """Forget a round that was thrown away."""
        del self._canary_ms[index]
        self.repeated += 1

    def judge(self, rounds: Sequence[Mapping[K, Sequence[float]]]) -> list[float]:
        """How much slower than usual each of ``rounds`` (entry → readings) was; 1.0 is usual."""
        by_entry: dict[K, list[float]] = {}
        for visits in rounds:
            for key, values in visits.items():
                by_entry.setdefault(key, []).append(statistics.median(values))
        usual = {key: statistics.median(medians) for key, medians in by_entry.items() if len(medians) > 1}
        canary = [statistics.median(values) for values in self._canary_ms if values]
        slowdowns = []
        for index, visits in enumerate(rounds):
            ratios = [statistics.median(v) / usual[key] for key, v in visits.items() if usual.get(key)]
            signs = [statistics.median(ratios)] if len(ratios) > 2 else []
            if len(canary) == len(rounds):
                signs.append(canary[index] / min(canary))
            slowdowns.append(max(signs, default=1.0))
        return slowdowns


def measure_interleaved(
    readers: Mapping[K, Reader],
    rule: StoppingRule | None = None,
    rounds: int = 6,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
    *,
    earlier: Mapping[K, Sequence[Sequence[float]]] | None = None,
    on_visit: Callable[[K, list[list[float]]], None] | None = None,
    watch: RoundWatch | None = None,
) -> dict[K, Timing]:
    """Time all ``readers`` in rounds, each round in a new random order; one :class:`Timing` for each.

    An entry whose reader raises or gives no believable number is not visited again; its timing is
    :meth:`Timing.failed` and the others go on.

    Args:
        readers: name → reader.
        rule: when a visit has read enough.
        rounds: visits to each reader.
        seed: of the orders.
        on_progress: called after each visit with (visits done, visits in all, the entry's text).
        earlier: readings of rounds that an interrupted run finished; only the missing rounds are measured.
        on_visit: called with an entry and its readings so far, by round, whenever they change.
        watch: what tells disturbed rounds, and how many of them to measure again.
    """
    rule, watch = rule or StoppingRule(), watch or RoundWatch()
    before = {key: [list(values) for values in (earlier or {}).get(key, ())] for key in readers}
    failures: dict[K, str] = {}
    measured: list[dict[K, list[float]]] = []
    total = sum(max(0, rounds - len(before[key])) for key in readers)
    done = 0

    def readings(key: K) -> list[list[float]]:
        return before[key] + [visits[key] for visits in measured if key in visits]

    def go_round(due: list[K], label: str) -> None:
        nonlocal done
        random.Random(f"{seed}:{label}").shuffle(due)
        visits: dict[K, list[float]] = {}
        measured.append(visits)
        watch.begin_round()
        for number, key in enumerate(due, start=1):
            try:
                visits[key] = visit(readers[key], rule)
            except Interrupted:
                raise
            except HwnasError as error:
                failures[key] = str(error)
                done += max(0, rounds - len(readings(key)) - 1)
            else:
                if on_visit is not None:
                    on_visit(key, readings(key))
            if number % _VISITS_PER_LOOK == 0:
                watch.look()
            done += 1
            if on_progress is not None:
                on_progress(min(done, total), total, str(key))

    for index in range(rounds):
        due = [key for key in readers if key not in failures and len(before[key]) <= index]
        if due:
            go_round(due, str(index))
    for extra in range(watch.extra_rounds):
        slowdowns = watch.judge(measured)
        if not slowdowns or max(slowdowns) <= watch.tolerance:
            break
        worst = slowdowns.index(max(slowdowns))
        again = [key for key in measured.pop(worst) if key not in failures]
        watch.drop(worst)
        go_round(again, f"extra {extra}")
    watch.slowdowns = watch.judge(measured)
    return {
        key: Timing.failed(failures[key]) if key in failures else Timing.from_rounds(readings(key))
        for key in readers
    }


def slowdown_by_round(timings: Iterable[Timing]) -> list[float]:
    """How much slower each round was than a quiet one, for all entries alike.

    All entries are visited in every round, so what a round does to all of them is the machine's doing (a
    clock, a neighbour, a process's luck). It is fitted with the entries' own milliseconds in turn (Tukey's
    median polish, of logarithms). A quiet round is at the lower quartile, for disturbances add time.

    Args:
        timings: those without readings, and those whose rounds are not those of most (by process), do not
            count.

    Returns:
        for each round a ratio, 1.0 throughout on a steady machine; empty where no readings were kept.
    """
    chosen = _of_one_shape(timings)
    logs = [
        [math.log(max(statistics.median(values), 1e-12)) for values in timing.readings_ms]
        for timing in chosen
    ]
    if not logs:
        return []
    speeds = [0.0] * len(logs[0])
    for _ in range(_POLISHES):
        usual = [statistics.median(map(operator.sub, values, speeds)) for values in logs]
        speeds = [
            statistics.median(values[index] - own for values, own in zip(logs, usual, strict=True))
            for index in range(len(speeds))
        ]
    quiet = sorted(speeds)[(len(speeds) - 1) // 4]
    return [round(math.exp(speed - quiet), 6) for speed in speeds]


def levelled(timings: Mapping[K, Timing]) -> dict[K, Timing]:
    """The same timings with each round brought to the speed of a quiet one (:func:`slowdown_by_round`).

    Two measurements made in different moods of one machine then agree. Where there are fewer than twenty
    entries of one number of rounds, a round's speed cannot be told from their own scatter, and they stay as
    they are; so do entries of another number of rounds. May be repeated: it goes by the readings.
    """
    chosen = _of_one_shape(timings.values())
    slowdowns = slowdown_by_round(chosen)
    if len(chosen) < _ENTRIES_TO_LEVEL or set(slowdowns) == {1.0}:
        return dict(timings)
    shape = _shape(chosen[0])
    return {
        name: Timing.from_rounds(
            timing.readings_ms,
            status="partial" if timing.status == "partial" else "ok",
            rounds_by_process=timing.rounds_by_process,
            slowdowns=slowdowns,
        )
        if timing.readings_ms and _shape(timing) == shape
        else timing
        for name, timing in timings.items()
    }


def _shape(timing: Timing) -> tuple[int, tuple[int, ...]]:
    return timing.rounds, timing.rounds_by_process


def _of_one_shape(timings: Iterable[Timing]) -> list[Timing]:
    """Those with readings, and with as many rounds in each process as most of them have."""
    kept = [timing for timing in timings if timing.readings_ms]
    if not kept:
        return []
    shape = statistics.mode(map(_shape, kept))
    return [timing for timing in kept if _shape(timing) == shape]
