"""When a visit ends."""

import itertools
import math

import pytest
from pydantic import ValidationError

from hwnas.latency.stopping import StoppingRule, typical_error, visit
from hwnas.latency.timing import Timing


def test_a_visit_ends_by_noise_by_time_or_by_count():
    rule = StoppingRule(
        warmup_readings=0, min_readings=3, max_readings=8, min_seconds=2, max_seconds=5, relative_noise=0.01
    )
    # The clock shows the start and then the time after each reading.
    assert len(visit(lambda: 1.0, rule, itertools.count().__next__)) == 3  # quiet at once
    unsteady = itertools.cycle([1.0, 2.0]).__next__
    assert len(visit(unsteady, rule, itertools.count().__next__)) == 5  # max_seconds
    assert len(visit(unsteady, rule, lambda: 0.0)) == 8  # max_readings
    assert len(visit(lambda: 1.0, rule, itertools.count(0, 10).__next__)) == 3  # never under min_readings


@pytest.mark.parametrize(("seconds", "thrown_away"), [(0.0, 1), (1.5, 2), (9.0, 4)])
def test_warm_up_is_short_where_readings_are_long(seconds, thrown_away):
    rule = StoppingRule(warmup_readings=4, warmup_seconds=seconds, min_readings=1, max_readings=1)
    # The clock gains a second with each look.
    assert visit(itertools.count(1).__next__, rule, itertools.count().__next__) == [thrown_away + 1]


@pytest.mark.parametrize(
    ("counts", "first_ms", "readings", "kept"),
    [
        (True, 25.0, 1, [25.0]),
        (True, 24.0, 1, [26.0, 27.0]),  # short, though the next is not
        (True, 25.0, 2, [27.0, 28.0]),  # more than one is asked for
        (False, 25.0, 1, [27.0, 28.0]),
    ],
)
def test_where_the_first_reading_counts_a_long_one_is_the_visit(counts, first_ms, readings, kept):
    rule = StoppingRule(warmup_readings=2, min_readings=readings, max_readings=2, max_seconds=0.025)
    numbers = itertools.count(first_ms)
    assert visit(lambda: next(numbers), rule, lambda: 0.0, first_counts=counts) == kept


def test_rule_with_crossed_limits():
    with pytest.raises(ValidationError, match="a minimum of a stopping rule is above its maximum"):
        StoppingRule(min_readings=9, max_readings=3)


def test_how_well_a_typical_entry_is_known_by_hand():
    assert typical_error([]) == typical_error([Timing.from_rounds([[5.0]])]) == 0.0
    steady = Timing.from_rounds([[2.0], [2.0], [2.0], [2.0]])
    assert typical_error([steady]) == 0.0
    # Off their medians by −0.2, −0.1, 0, 0.1, 0.2: the central 68 % (0.64 to 3.36 of 4 steps) is 0.272 wide.
    spread = Timing.from_rounds([[8.0], [9.0], [10.0], [11.0], [12.0]])
    assert typical_error([spread]) == pytest.approx(math.sqrt(math.pi / 2) * 0.136 / math.sqrt(5))
    # Units do not matter, nor does what all visits have in common.
    other = Timing.from_rounds([[80.0], [90.0], [100.0], [110.0], [120.0]], slowdowns=(2.0,) * 5)
    assert typical_error([other]) == pytest.approx(typical_error([spread]))
