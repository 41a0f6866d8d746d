"""Intervals, worked by hand, and asked whether they hold what another build finds."""

import math
import random
import statistics

import pytest

from hwnas.latency.intervals import Intervals
from hwnas.latency.solve import NetworkTiming, solve_rows
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey, OpSpec


def test_by_hand():
    # Process medians 0.9 and 1.1: variance 0.02, relative to the second of the four rounds, 0.9.
    timing = Timing.from_rounds([[0.9], [0.9], [1.1], [1.1]], rounds_by_process=(2, 2))
    intervals = Intervals([timing])
    # The median of a chi-square variable with one degree of freedom is (1 − 2/9)³ = 0.4705 or nearly so.
    own = 0.02 / 0.9**2
    assert intervals.pooled == pytest.approx(own / 0.4705, rel=1e-3)
    # One degree of freedom of its own, four of the table's; t(5) = 2.57. The
    # difference of two builds has twice the variance of a mean over two processes, and of a build's 1 %.
    error = math.sqrt((own + 4 * intervals.pooled) / 5 / 2)
    assert intervals.standard_error(timing) == pytest.approx(error)
    half = 2.57 * math.sqrt(2 * (error**2 + 0.01**2)) * 0.9
    assert intervals.of(timing) == pytest.approx((0.9 - half, 0.9 + half))
    # Without readings nothing is known of it.
    assert intervals.standard_error(Timing(median_ms=2.0, spread_ms=0.5, count=3)) == 0.0


def test_a_solved_row_has_its_own_deviation():
    timing = Timing(median_ms=2.0, spread_ms=0.5, count=3)
    # Two builds as a whole: each has 1 % of 2 ms.
    half = 1.96 * math.sqrt(0.5**2 + 2 * 0.02**2)
    assert Intervals([timing]).of(timing) == pytest.approx((2.0 - half, 2.0 + half))
    certain = Timing(median_ms=2.0, spread_ms=0.0, count=3)
    assert Intervals([certain]).of(certain) == (2.0, 2.0)


def test_rows_of_exact_milliseconds_have_no_moods():
    key = OpKey(spec=OpSpec(kind="test.op"), input_shapes=((1, 4),))
    network = NetworkTiming.of("n", {key: 2}, Timing(median_ms=3.0, spread_ms=0.0, count=1))
    row = solve_rows([network], [key], {key: 1.0}).rows[key]
    assert Intervals([row]).of(row) == pytest.approx((1.5, 1.5), rel=1e-5)
    assert Intervals([]).of(Timing(median_ms=0.1, spread_ms=0.5, count=3))[0] == 0.0


def test_of_a_single_round_a_deviation_is_assumed():
    steady, alone = Timing.from_rounds([[1.0, 1.0, 1.001]]), Timing.from_rounds([[1.0]])
    # 3 % of its own and a build's 1 %, for this build and another; t(4) = 2.78.
    half = 2.78 * math.sqrt(2 * (0.03**2 + 0.01**2))
    for timing in (steady, alone):
        assert Intervals([timing]).of(timing) == pytest.approx((1.0 - half, 1.0 + half))
    # Readings that differ by more say more: half of 1.84 − 1.16, over 1.5.
    spread = Timing.from_rounds([[1.0, 2.0]])
    assert Intervals([spread]).standard_error(spread) == pytest.approx(0.34 / 1.5)
    # Where other rows show how rounds differ, nothing is assumed.
    intervals = Intervals([alone, Timing.from_rounds([[0.99], [1.01]])])
    assert intervals.standard_error(alone) == pytest.approx(math.sqrt(intervals.pooled))


def test_readings_that_are_all_equal_are_a_formulas():
    timing = Timing.from_rounds([[1.5, 1.5]])
    assert Intervals([timing]).of(timing) == (1.5, 1.5)


@pytest.mark.parametrize("between", [0.002, 0.02])
def test_they_hold_another_build_at_least_four_times_in_five(between):
    """A block of repeats in one process covers an independent rebuild in 8 to 30 % of all cases."""
    random.seed(1)

    def build(truth):
        rounds = []
        for _ in range(2):
            layout = random.gauss(1.0, between)
            rounds += [[truth * layout * random.gauss(1.0, 0.001) for _ in range(5)] for _ in range(3)]
        return Timing.from_rounds(rounds, rounds_by_process=(3, 3))

    truths = [random.uniform(0.1, 5.0) for _ in range(200)]
    first, second = [build(truth) for truth in truths], [build(truth) for truth in truths]
    intervals = Intervals(first)
    held = [
        low <= other.median_ms <= high
        for (low, high), other in zip(map(intervals.of, first), second, strict=True)
    ]
    assert statistics.fmean(held) >= 0.8
    # And not by being as wide as a barn door.
    ends = zip(map(intervals.of, first), first, strict=True)
    widths = [(high - low) / timing.median_ms for (low, high), timing in ends]
    assert statistics.median(widths) < 10 * math.hypot(between, 0.01)
