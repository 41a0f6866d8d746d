"""What a timing says of its readings, and which numbers are none."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from hwnas.errors import MeasurementFailed
from hwnas.latency.timing import Timing, in_ms, lower_tercile


def test_summary_by_hand():
    # Round medians: 2, 4, 9; a third of the way from the first to the last is two thirds of that from 2 to 4.
    # All readings sorted: 1 2 3 4 4 4 8 9 10.
    timing = Timing.from_rounds([[1, 2, 3], [4, 4, 4], [8, 9, 10]])
    assert timing.median_ms == pytest.approx(2 + 2 * 2 / 3, abs=1e-9)
    assert (timing.count, timing.rounds, timing.status) == (9, 3, "ok")
    assert timing.round_medians_ms == (2, 4, 9)
    assert timing.process_medians_ms == (2, 4, 9)
    # Nine values: share s lies at position 8·s. 0.16 → 1.28: 2 + 0.28·(3 − 2) = 2.28;
    # 0.84 → 6.72: 8 + 0.72·(9 − 8) = 8.72. Half of the distance: (8.72 − 2.28) / 2 = 3.22.
    assert timing.spread_ms == pytest.approx(3.22)
    # 0.05 → 0.4: 1.4; 0.25 → 2: 3; 0.5 → 4: 4; 0.75 → 6: 8; 0.95 → 7.6: 9.6.
    assert timing.quantiles_ms == pytest.approx((1.4, 2.28, 3, 4, 8, 8.72, 9.6))
    assert str(timing) == "3.333 ms ± 3.22 (n=9, 3 rounds)"


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (123.456, 4, "123.46"),
        (12.345678, 4, "12.35"),
        (1.2, 4, "1.200"),
        (0.099996, 4, "0.10000"),
        (0.0123456, 4, "0.01235"),
        (0.0000123456, 4, "0.00001235"),
        (-0.0012, 4, "-0.001200"),
        (3.22, 2, "3.22"),
        (0.00123, 2, "0.0012"),
        (0.0, 4, "0.00"),
        (float("nan"), 4, "nan"),
        (float("inf"), 4, "inf"),
    ],
)
def test_milliseconds_are_shown_with_digits_that_tell_something(value, digits, shown):
    assert in_ms(value, digits) == shown


def test_the_usual_round_by_hand():
    assert lower_tercile([9, 1, 4, 2]) == 2  # a third lies below: the second of four
    assert lower_tercile([7, 3, 1, 2, 9, 8, 4]) == 3  # the third of seven
    assert lower_tercile([2, 8]) == 4
    assert lower_tercile([7]) == 7


def test_rounds_are_summarised_by_the_usual_one():
    assert Timing.from_rounds([[1.0], [2.0], [4.0], [9.0]]).median_ms == 2
    # Divided by the slowdowns first.
    assert Timing.from_rounds([[2.0], [4.0], [8.0], [18.0]], slowdowns=(2.0,) * 4).median_ms == 2


def test_half_of_the_rounds_may_be_slow_by_anything_and_a_quarter_too_quick():
    assert 1 <= lower_tercile([1.0, 1.1, 1.2, 1.1, 1e9, 1e9, 1e9, 1e9]) <= 1.2
    assert 1 <= lower_tercile([1.0, 1.1, 1.2, 1.0, 1.1, 1.2, 1e-9, 1e-9]) <= 1.2


def test_where_bursts_disturb_some_rounds_the_usual_one_is_steadier_than_the_median():
    random = np.random.default_rng(0)
    draws = random.normal(1.0, 0.01, size=(2000, 8))
    draws += (random.random(draws.shape) < 0.3) * random.exponential(0.2, draws.shape)
    found = np.array([lower_tercile(row.tolist()) for row in draws])
    assert np.std(found) < 0.5 * np.std(np.median(draws, axis=1))
    assert np.mean(found) == pytest.approx(1.0, abs=0.01)


def test_mean_is_not_the_statistic():
    assert Timing.from_rounds([[1, 1, 1, 1, 1000]]).median_ms == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.001])
def test_impossible_numbers_are_no_timing(bad):
    with pytest.raises(ValidationError, match=r"finite and not negative|greater than or equal to 0"):
        Timing(median_ms=bad, spread_ms=0, count=1)
    with pytest.raises(MeasurementFailed, match="a reading must be finite and not negative; got"):
        Timing.from_rounds([[1.0, bad]])


@pytest.mark.parametrize("rounds_ms", [[], [[]], [[1.0], []]])
def test_no_reading_is_no_timing(rounds_ms):
    with pytest.raises(MeasurementFailed, match="at least one reading in every round"):
        Timing.from_rounds(rounds_ms)


def test_count_and_rounds_must_agree_with_the_readings():
    with pytest.raises(ValidationError, match="count and rounds disagree with the readings"):
        Timing(median_ms=1, spread_ms=0, count=3, rounds=1, readings_ms=((1.0, 1.0),))


def test_field_defect_failed_profile_is_never_0():
    failed = Timing.failed("out of memory")
    assert math.isinf(failed.median_ms) and failed.status == "failed"
    assert str(failed) == "failed: out of memory"
    with pytest.raises(ValidationError, match="a failed timing has an error, no readings, and infinite"):
        Timing(median_ms=0, spread_ms=0, count=0, rounds=0, status="failed", error="out of memory")
    with pytest.raises(ValidationError, match="only a failed timing has an error"):
        Timing(median_ms=1, spread_ms=0, count=1, error="out of memory")


def test_slowdowns_must_fit_the_rounds():
    with pytest.raises(ValidationError, match="one number above 0 for each round"):
        Timing(median_ms=1, spread_ms=0, count=2, rounds=2, slowdowns=(1.0,))


def test_a_process_counts_by_the_median_of_its_rounds():
    timing = Timing.from_rounds([[1.0], [2.0], [3.0], [10.0], [30.0]], rounds_by_process=(3, 2))
    assert timing.process_medians_ms == (2.0, 20.0)
    with pytest.raises(ValidationError, match="the processes' rounds do not add up to the rounds"):
        Timing.from_rounds([[1.0], [2.0]], rounds_by_process=(2, 1))
