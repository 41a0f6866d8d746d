"""Rounds brought to the speed of a quiet one, so that measurements in different moods of a machine agree."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from hwnas.latency.timing import Timing

ENTRIES_TO_LEVEL = 20
"""With fewer, a round's speed cannot be told from their own scatter."""
# Of so many rounds, the quickest may be a fluke.
_ROUNDS_FOR_A_FLUKE = 5
_POLISHES = 4  # the medians no longer move after two or three

K = TypeVar("K")


def slowdown_by_round(timings: Iterable[Timing]) -> list[float]:
    """How much slower each round was than a quiet one, for all entries alike.

    All entries are visited in every round, so what a round does to all of them is the machine's doing (a
    clock, a neighbour, a process's luck). It is fitted with the entries' own milliseconds in turn (Tukey's
    median polish, of logarithms). A quiet round is as quick as the second quickest, for disturbances add
    time, however many of the rounds they hit. (Of fewer than five rounds: as the quickest.)

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
    quiet = sorted(speeds)[1 if len(speeds) >= _ROUNDS_FOR_A_FLUKE else 0]
    return [round(math.exp(speed - quiet), 6) for speed in speeds]


def to_usual(slowdowns: Sequence[float]) -> list[float]:
    """The same slowdowns of rounds as ratios to a usual round, at the lower quartile.

    By it a disturbed round is told: two quick ones of sixteen are what to level by, but the others are
    therefore not disturbed.
    """
    if not slowdowns:
        return []
    usual = sorted(slowdowns)[(len(slowdowns) - 1) // 4]
    return [slowdown / usual for slowdown in slowdowns]


def can_level(timings: Iterable[Timing]) -> bool:
    """Whether a round's speed can be told by its entries: from twenty of one number of rounds on."""
    return len(_of_one_shape(timings)) >= ENTRIES_TO_LEVEL


def levelled(timings: Mapping[K, Timing]) -> dict[K, Timing]:
    """The same timings with each round brought to the speed of a quiet one (:func:`slowdown_by_round`).

    Two measurements made in different moods of one machine then agree. Where there are fewer than twenty
    entries of one number of rounds, a round's speed cannot be told from their own scatter, and they stay as
    they are; so do entries of another number of rounds. May be repeated: it goes by the readings.
    """
    chosen = _of_one_shape(timings.values())
    slowdowns = slowdown_by_round(chosen)
    if not can_level(chosen) or set(slowdowns) == {1.0}:
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
