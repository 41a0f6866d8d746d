"""Readings of many entries, in rounds: noisy, drifting, throttled, disturbed, failing."""

import itertools
import math
import random
import statistics

import pytest

from hwnas.errors import Interrupted
from hwnas.latency.fake import FakeBackend
from hwnas.latency.interleaving import RoundWatch, measure_interleaved
from hwnas.latency.levelling import slowdown_by_round
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.stopping import StoppingRule

FIVE = StoppingRule(warmup_readings=0, min_readings=5, max_readings=5)


def test_field_defect_one_trial_without_warm_up():
    """Default: eight rounds, in eight processes, and the first readings of each visit are thrown away."""
    settings = ProfileSettings()
    assert (settings.rounds, FakeBackend.processes) == (8, 8)
    calls = itertools.count()
    # Each visit is 5 + 2 calls, for equal readings end it; of seven calls the first five are a warm-up.
    reader = {"op": lambda: 100.0 if next(calls) % 7 < 5 else 1.0}
    # On a machine that is slow just now it would end earlier.
    rule = settings.rule.model_copy(update={"warmup_seconds": 60.0})
    timing = measure_interleaved(reader, rule, settings.rounds)["op"]
    assert next(calls) == 8 * (5 + 2)
    assert (timing.count, timing.rounds) == (16, 8)
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
    # 4 entries × 5 readings = 20 a round; rounds 1 and 4 (of 0…7) run at half speed.
    found = measure_interleaved(
        dict.fromkeys("abcd", lambda: 2.0 if next(step) // 20 in (1, 4) else 1.0), FIVE, rounds=8
    )
    assert {timing.median_ms for timing in found.values()} == {1.0}
    assert slowdown_by_round(list(found.values())) == [1, 2, 1, 1, 2, 1, 1, 1]


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


def test_the_canary_is_told_of_each_round_that_is_kept():
    sung = itertools.count()
    # The second round is slow by the canary, and measured again.
    watch = RoundWatch(canary=lambda: (1.0, 3.0, 1.05)[next(sung)], extra_rounds=1)
    measure_interleaved({"a": lambda: 1.0}, FIVE, rounds=2, watch=watch)
    assert watch.canary_ms == [1.0, 1.05]
    assert RoundWatch().canary_ms == []


def test_what_is_visited_is_told_before_and_after():
    said = []
    measure_interleaved(
        {"a": lambda: said.append("read") or 1.0},
        StoppingRule(warmup_readings=0, min_readings=1, max_readings=1),
        rounds=2,
        on_start=lambda key: said.append(f"{key} begins"),
        on_visit=lambda key, readings: said.append(len(readings)),
    )
    assert said == ["a begins", "read", 1, "a begins", "read", 2]
