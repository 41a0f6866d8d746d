"""Levelling of readings that were drawn: of rounds at known speeds."""

import math
import random
import statistics

import pytest

from hwnas.latency.levelling import levelled, slowdown_by_round, to_usual
from hwnas.latency.steadiness import unsteadiness
from hwnas.latency.timing import Timing


def drifting(entries, speeds, noise=0.0, processes=()):
    """Timings of entries 1, 2, … ms in rounds of these speeds, each reading off by some share."""
    draw = random.Random(0)
    return {
        n: Timing.from_rounds(
            [[n * speed * math.exp(draw.gauss(0, noise))] for speed in speeds], rounds_by_process=processes
        )
        for n in range(1, entries + 1)
    }


def test_rounds_are_brought_to_the_speed_of_a_quiet_one():
    timings = levelled(drifting(20, [1.0, 1.08, 1.08, 0.99, 1.08, 1.2]))
    assert timings[3].slowdowns == (1.0, 1.08, 1.08, 0.99, 1.08, 1.2)
    assert {n: timing.median_ms for n, timing in timings.items()} == {n: float(n) for n in range(1, 21)}
    assert timings[3].readings_ms[1] == (3.24,)
    assert timings[3].spread_ms == timings[3].process_medians_ms[0] - 3 == 0
    assert levelled(timings) == timings


def test_two_measurements_in_two_moods_agree_once_levelled():
    slow, quick = (drifting(60, speeds, 0.01) for speeds in ([1.0, 1.07, 1.07, 1.07], [1.0] * 4))
    bare = [slow[n].median_ms / quick[n].median_ms for n in slow]
    level = [levelled(slow)[n].median_ms / levelled(quick)[n].median_ms for n in slow]
    assert statistics.median(bare) > 1.05
    assert abs(statistics.median(level) - 1) < 0.005


def test_a_quiet_round_is_the_second_quickest_of_many():
    """However many were disturbed: two of sixteen tell a quiet machine; one alone may be a fluke."""
    timings = levelled(drifting(20, [*[1.1] * 9, 1.0, *[1.05] * 5, 0.9]))
    assert timings[7].slowdowns[9] == 1.0
    assert slowdown_by_round(drifting(20, [1.1, 1.1, 1.1, 1.0]).values()) == [1.1, 1.1, 1.1, 1.0]
    assert slowdown_by_round(drifting(20, [1.1, 1.1, 1.1, 1.1, 0.9]).values())[:2] == [1.0, 1.0]


def test_a_few_quick_rounds_do_not_make_the_others_disturbed():
    slowdowns = slowdown_by_round(drifting(20, [1.12] * 13 + [1.0] * 3).values())
    assert slowdowns[0] == 1.12
    assert to_usual(slowdowns) == pytest.approx([1.0] * 13 + [1 / 1.12] * 3)
    assert unsteadiness(to_usual(slowdowns), 1.1) == []
    assert to_usual([]) == []


def test_few_entries_and_strangers_are_not_levelled():
    few = drifting(19, [1.0, 1.5])
    assert levelled(few) == few
    assert slowdown_by_round(few.values()) == [1.0, 1.5]
    stranger = Timing.from_rounds([[1.0], [1.5], [1.5]])
    mixed = levelled({**drifting(20, [1.0, 1.5]), "more rounds": stranger, "failed": Timing.failed("?")})
    assert mixed["more rounds"] == stranger and mixed["failed"].status == "failed"
    assert mixed[1].median_ms == 1.0


def test_a_formula_is_left_as_it_is():
    exact = drifting(30, [1.0] * 3)
    assert levelled(exact) == exact and exact[1].slowdowns == ()


def test_slowdown_needs_readings():
    assert slowdown_by_round([Timing(median_ms=1, spread_ms=0, count=1)]) == []
