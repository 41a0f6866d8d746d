"""Timing on synthetic readings: noisy, drifting, throttled, failing."""

import itertools
import math
import random
import statistics

import pytest
from pydantic import ValidationError

from hwnas.errors import Interrupted, MeasurementFailed
from hwnas.latency.fake import FakeBackend
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.timing import (
    RoundWatch,
    StoppingRule,
    Timing,
    levelled,
    measure_interleaved,
    slowdown_by_round,
    visit,
)

FIVE = StoppingRule(warmup_readings=0, min_readings=5, max_readings=5)


def test_summary_by_hand():
    # Round medians: 2, 4, 9 → their median 4. All readings sorted: 1 2 3 4 4 4 8 9 10.
    timing = Timing.from_rounds([[1, 2, 3], [4, 4, 4], [8, 9, 10]])
    assert timing.median_ms == 4
    assert (timing.count, timing.rounds, timing.status) == (9, 3, "ok")
    assert timing.round_medians_ms == (2, 4, 9)
    assert timing.process_medians_ms == (2, 4, 9)
    # Nine values: share s lies at position 8·s. 0.16 → 1.28: 2 + 0.28·(3 − 2) = 2.28;
    # 0.84 → 6.72: 8 + 0.72·(9 − 8) = 8.72. Half of the distance: (8.72 − 2.28) / 2 = 3.22.
    assert timing.spread_ms == pytest.approx(3.22)
    # 0.05 → 0.4: 1.4; 0.25 → 2: 3; 0.5 → 4: 4; 0.75 → 6: 8; 0.95 → 7.6: 9.6.
    assert timing.quantiles_ms == pytest.approx((1.4, 2.28, 3, 4, 8, 8.72, 9.6))
    assert str(timing) == "4 ms ± 3.2 (n=9, 3 rounds)"


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


def test_field_defect_one_trial_without_warm_up():
    """Default: twelve rounds, in four processes, and the first reading of each visit is thrown away."""
    settings = ProfileSettings()
    assert (settings.rounds, FakeBackend.processes) == (12, 4)
    calls = itertools.count()
    # Each visit is 1 + 2 calls, for equal readings end it; every third call from the first is a warm-up.
    reader = {"op": lambda: 100.0 if next(calls) % 3 == 0 else 1.0}
    timing = measure_interleaved(reader, settings.rule, settings.rounds)["op"]
    assert next(calls) == 12 * (1 + 2)
    assert (timing.count, timing.rounds) == (24, 12)
    assert max(max(values) for values in timing.readings_ms) == 1.0


def test_every_entry_is_visited_once_a_round_in_a_new_order():
    seen = []

    def reader(name):
        return lambda: seen.append(name) or 1.0

    rule = StoppingRule(warmup_readings=0, min_readings=1, max_readings=1)
    names = list("abcdefgh")
    measure_interleaved({name: reader(name) for name in names}, rule, rounds=4, seed=3)
    rounds = [seen[i : i + 8] for i in range(0, 32, 8)]
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) == 4
    before = list(seen)
    seen.clear()
    measure_interleaved({name: reader(name) for name in names}, rule, rounds=4, seed=3)
    assert seen == before


def test_noisy_readings_give_the_truth():
    rng = random.Random(0)

    def noisy(truth):
        # 5 % noise, and one reading in ten is an interruption that takes three times as long.
        return lambda: truth * rng.gauss(1, 0.05) * (3 if rng.random() < 0.1 else 1)

    truths = {"a": 1.0, "b": 1.1, "c": 7.0}
    rule = StoppingRule(min_readings=30, max_readings=30)
    found = measure_interleaved({name: noisy(truth) for name, truth in truths.items()}, rule)
    for name, truth in truths.items():
        assert found[name].median_ms == pytest.approx(truth, rel=0.03)


def test_drift_falls_on_all_entries_alike():
    """A machine that gets 50 % slower on the way: measured in blocks the last entry seems 40 % slower."""
    names, per_visit, rounds = [f"op{i}" for i in range(10)], 5, 6
    reads = len(names) * per_visit * rounds

    def machine():
        step = itertools.count()
        return lambda: 1 + 0.5 * next(step) / reads

    shared = machine()
    interleaved = measure_interleaved(dict.fromkeys(names, shared), FIVE, rounds=rounds)
    medians = [timing.median_ms for timing in interleaved.values()]
    shared = machine()
    blocks = [statistics.median(shared() for _ in range(per_visit * rounds)) for _ in names]
    assert max(blocks) / min(blocks) > 1.4
    assert max(medians) / min(medians) < 1.1


def test_throttled_rounds_do_not_move_the_median_and_are_seen():
    step = itertools.count()
    # 4 entries × 5 readings = 20 a round; rounds 1 and 4 (of 0…5) run at half speed.
    found = measure_interleaved(
        dict.fromkeys("abcd", lambda: 2.0 if next(step) // 20 in (1, 4) else 1.0), FIVE, rounds=6
    )
    assert {timing.median_ms for timing in found.values()} == {1.0}
    assert slowdown_by_round(list(found.values())) == [1, 2, 1, 1, 2, 1]


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
    # The lower quartile of six is the second lowest: 1.0.
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


def test_slowdowns_must_fit_the_rounds():
    with pytest.raises(ValidationError, match="one number above 0 for each round"):
        Timing(median_ms=1, spread_ms=0, count=2, rounds=2, slowdowns=(1.0,))


def test_slowdown_needs_readings():
    assert slowdown_by_round([Timing(median_ms=1, spread_ms=0, count=1)]) == []


def test_a_failing_entry_is_named_and_the_others_go_on():
    def broken():
        raise RuntimeError("CUDA out of memory")

    visits = []
    found = measure_interleaved(
        {"good": lambda: 1.0, "broken": broken},
        FIVE,
        rounds=3,
        on_progress=lambda done, total, name: visits.append((done, total)),
    )
    assert found["good"].median_ms == 1
    assert found["broken"].error == "the reader failed: RuntimeError: CUDA out of memory"
    assert visits[-1] == (6, 6)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_field_defect_negative_latencies_shipped(bad):
    found = measure_interleaved({"op": lambda: bad}, FIVE)["op"]
    assert found.status == "failed"
    assert found.error == f"a reading must be finite and above 0 ms; the backend gave {bad!r}."


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("SIGTERM")])
def test_an_interruption_is_no_failed_entry(stop):
    def reader():
        raise stop

    with pytest.raises(type(stop)):
        measure_interleaved({"op": reader}, FIVE)


def test_earlier_rounds_are_not_measured_again():
    calls = itertools.count()
    found = measure_interleaved(
        {"half": lambda: next(calls) * 0 + 3.0, "whole": lambda: next(calls) * 0 + 3.0},
        FIVE,
        rounds=3,
        earlier={"half": [[1.0] * 5, [1.0] * 5], "whole": [[1.0]] * 3},
    )
    assert next(calls) == 5
    assert found["half"].round_medians_ms == (1, 1, 3)
    assert found["whole"].round_medians_ms == (1, 1, 1)


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


def test_rule_with_crossed_limits():
    with pytest.raises(ValidationError, match="a minimum of a stopping rule is above its maximum"):
        StoppingRule(min_readings=9, max_readings=3)


# --- rounds that something disturbed --------------------------------------------------------------------


def test_a_process_counts_by_the_median_of_its_rounds():
    timing = Timing.from_rounds([[1.0], [2.0], [3.0], [10.0], [30.0]], rounds_by_process=(3, 2))
    assert timing.process_medians_ms == (2.0, 20.0)
    with pytest.raises(ValidationError, match="the processes' rounds do not add up to the rounds"):
        Timing.from_rounds([[1.0], [2.0]], rounds_by_process=(2, 1))


def test_a_disturbed_round_is_measured_again_and_thrown_away():
    step = itertools.count()
    # 4 entries × 5 readings = 20 a round; round 1 of 0, 1, 2 runs at half speed, the one after them does not.
    watch = RoundWatch(extra_rounds=2)
    found = measure_interleaved(
        dict.fromkeys("abcd", lambda: 2.0 if next(step) // 20 == 1 else 1.0), FIVE, rounds=3, watch=watch
    )
    assert watch.repeated == 1
    assert watch.slowdowns == [1.0, 1.0, 1.0]
    assert {timing.readings_ms for timing in found.values()} == {((1.0,) * 5,) * 3}
    assert next(step) == 4 * 20


def test_rounds_are_not_measured_again_for_ever():
    step = itertools.count()
    watch = RoundWatch(extra_rounds=2)
    found = measure_interleaved(
        dict.fromkeys("abcd", lambda: 1.0 + next(step) // 20), FIVE, rounds=3, watch=watch
    )
    # Rounds 0 to 2 took 1, 2, 3 ms; the third is replaced by one of 4, that by one of 5.
    assert watch.repeated == 2
    assert watch.slowdowns == [0.5, 1.0, 2.5]
    assert next(step) == 5 * 20
    assert all(timing.rounds == 3 for timing in found.values())


def test_a_canary_tells_a_slow_round_where_the_entries_cannot():
    step, sung = itertools.count(), itertools.count()
    # Two entries are too few to judge by. The canary is read once a round: slow in the second.
    watch = RoundWatch(canary=lambda: 3.0 if next(sung) == 1 else 1.0, extra_rounds=1)
    measure_interleaved({"a": lambda: 1.0 + 0 * next(step), "b": lambda: 1.0}, FIVE, rounds=2, watch=watch)
    assert (watch.repeated, watch.slowdowns, next(step)) == (1, [1.0, 1.0], 15)


def test_every_ten_visits_the_canary_is_read():
    sung = itertools.count()
    watch = RoundWatch(canary=lambda: 1.0 + 0 * next(sung))
    measure_interleaved({n: lambda: 1.0 for n in range(25)}, FIVE, rounds=2, watch=watch)
    assert next(sung) == 2 * (1 + 2)  # at the beginning of each round, after 10 and after 20 visits
