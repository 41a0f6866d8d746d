"""Scores, calibrations and evidence: numbers worked by hand, and brute force for the clever parts."""

import itertools
import math

import numpy as np
import pytest

from hwnas.errors import InvalidInput
from hwnas.latency.verification import (
    Calibration,
    NetworkEvidence,
    Scores,
    fit_calibration,
    kendall_tau,
    verification,
    worst_kinds,
)
from hwnas.ops import OpKey, OpSpec


def test_scores_by_hand():
    # Off by +4 %, −8 %, +20 %, 0 %.
    scores = Scores.of([10.4, 18.4, 36.0, 40.0], [10.0, 20.0, 30.0, 40.0])
    assert scores.networks == 4
    assert scores.rmspe_percent == pytest.approx(100 * math.sqrt((0.04**2 + 0.08**2 + 0.2**2) / 4), abs=1e-4)
    assert (scores.within_5, scores.within_10) == (50.0, 75.0)
    assert scores.kendall_tau == 1.0
    assert scores.bias == pytest.approx((1.04 + 1.0) / 2)
    assert str(scores).startswith("RMSPE 10.95 %, within 5 % 50 %, within 10 % 75 %, Kendall tau 1.000")


def test_predictions_that_are_wrong_by_any_factor_are_scored():
    assert Scores.of([1e-6, 2e-6, 3e-6], [1.0, 2.0, 3.0]).bias == 1e-6
    assert "bias 1e-06" in str(Scores.of([1e-6, 2e-6], [1.0, 2.0]))


@pytest.mark.parametrize(("predicted", "measured"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_scores_need_two_networks(predicted, measured):
    with pytest.raises(InvalidInput, match="scores need two networks or more, each predicted and measured"):
        Scores.of(predicted, measured)


def test_kendall_tau_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(0)
    first, second = random.normal(size=12), random.normal(size=12)
    pairs = list(itertools.combinations(range(12), 2))
    agreeing = sum((first[i] - first[j]) * (second[i] - second[j]) > 0 for i, j in pairs)
    assert kendall_tau(first, second) == pytest.approx(2 * agreeing / len(pairs) - 1, abs=1e-6)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall_tau([1, 1, 1], [3, 2, 1]) == 0.0
    # With ties: of three pairs one is tied in the first; 2 / sqrt(2 · 3).
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6), abs=1e-6)


def test_a_scale_an_offset_and_a_cost_an_op_are_found_where_they_are():
    sums, ops = [1.0, 2.0, 4.0, 7.0, 9.0, 12.0, 3.0, 5.0], [3, 10, 4, 12, 6, 20, 15, 9]
    only_scale = fit_calibration(sums, ops, [1.25 * value for value in sums])
    assert (only_scale.scale, only_scale.offset_ms, only_scale.per_op_ms) == (1.25, 0.0, 0.0)
    offset = fit_calibration(sums, ops, [0.9 * value + 0.5 for value in sums])
    assert (offset.scale, offset.offset_ms, offset.per_op_ms) == pytest.approx((0.9, 0.5, 0.0))
    whole = fit_calibration(sums, ops, [0.9 * s + 0.5 + 0.02 * n for s, n in zip(sums, ops, strict=True)])
    assert (whole.scale, whole.offset_ms, whole.per_op_ms) == pytest.approx((0.9, 0.5, 0.02))
    assert whole(10.0, 5) == pytest.approx(9.0 + 0.5 + 0.1)


def test_noise_moves_an_offset_and_a_cost_an_op_little():
    random = np.random.default_rng(2)
    # Where longer networks have more ops, as they do, a free line can hardly tell the three terms apart.
    sums, new_sums = np.linspace(10, 30, 10), np.linspace(8, 32, 50)
    ops, new_ops = (np.round(30 + values + random.normal(0, 3, len(values))) for values in (sums, new_sums))
    off, free = [], []
    for _ in range(50):
        measured = sums * random.normal(1.1, 0.02, 10)
        found = fit_calibration(list(sums), list(ops), list(measured))
        predicted = [found(s, n) for s, n in zip(new_sums, new_ops, strict=True)]
        off.append(np.sqrt(np.mean((predicted / (1.1 * new_sums) - 1) ** 2)))
        design = np.stack([sums, np.ones(10), ops], axis=1) / measured[:, None]
        line = np.linalg.lstsq(design, np.ones(10), rcond=None)[0]
        predicted = np.stack([new_sums, np.ones(50), new_ops], axis=1) @ line
        free.append(np.sqrt(np.mean((predicted / (1.1 * new_sums) - 1) ** 2)))
    assert np.mean(off) < 0.01 and np.mean(off) < 0.85 * np.mean(free)


def test_a_calibration_is_the_posterior_mean_of_its_prior():
    """By hand: rows stacked below the data say that offset and cost are 0 ± 3 % of a network, noise 1.5 %."""
    random = np.random.default_rng(0)
    sums, ops = random.uniform(5, 30, 12), random.integers(20, 60, 12)
    measured = (0.9 * sums + 0.4 + 0.01 * ops) * random.normal(1, 0.015, 12)
    ms, n = np.median(measured), np.median(ops)
    data = np.stack([sums, np.ones(12), ops], axis=1) / measured[:, None] / 0.015
    prior = np.array([[0, 1 / ms, 0], [0, 0, n / ms]]) / 0.03
    line = np.linalg.lstsq(np.concatenate([data, prior]), np.r_[np.full(12, 1 / 0.015), 0, 0], rcond=None)[0]
    found = fit_calibration(list(sums), list(ops), list(measured))
    assert (found.scale, found.offset_ms, found.per_op_ms) == pytest.approx(tuple(line), rel=1e-6)


@pytest.mark.parametrize("networks", [2, 3, 4])
def test_few_networks_give_little_beside_a_scale(networks):
    # A line goes through them exactly; it is not believed for that.
    sums, ops = [10.0, 12.0, 20.0, 31.0][:networks], [40, 30, 45, 33][:networks]
    measured = [10.3, 11.8, 20.5, 30.7][:networks]
    found = fit_calibration(sums, ops, measured)
    for sum_ms, count in ((8.0, 35), (16.0, 40), (36.0, 45)):
        assert found(sum_ms, count) == pytest.approx(sum_ms, rel=0.025)


def test_networks_that_contradict_a_positive_scale_give_a_plain_one():
    found = fit_calibration([1.0, 2.0, 3.0, 4.0, 5.0], [10] * 5, [5.0, 4.0, 3.0, 2.0, 1.0])
    assert found == Calibration(scale=1.0, networks=5)


def test_one_network_gives_a_scale():
    assert fit_calibration([2.0], [3], [3.0]) == Calibration(scale=1.5, networks=1)
    with pytest.raises(InvalidInput, match="a calibration needs at least one network"):
        fit_calibration([], [], [])


def test_the_kind_that_is_priced_wrong_is_named():
    keys = {name: OpKey(spec=OpSpec(kind=name), input_shapes=((1, 2),)) for name in ("conv", "pool", "add")}
    random = np.random.default_rng(0)
    counts = [
        {keys[n]: int(c) for n, c in zip(keys, row, strict=True)} for row in random.integers(1, 9, (30, 3))
    ]
    rows = dict.fromkeys(keys.values(), 1.0)
    predicted = [float(sum(c.values())) for c in counts]
    # Pooling really takes a fifth longer than its row says.
    measured = [p + 0.25 * c[keys["pool"]] for p, c in zip(predicted, counts, strict=True)]
    (kind, percent), *rest = worst_kinds(counts, rows, predicted, measured)
    assert kind == "pool" and percent == pytest.approx(25, abs=2)
    assert all(abs(value) < 1 for _, value in rest)


def network(name, sum_ms, measured_ms, **values):
    return NetworkEvidence(name=name, sum_ms=sum_ms, ops=5, measured_ms=measured_ms, **values)


def test_the_fit_never_sees_what_it_is_judged_by():
    fitted = [network(f"f{n}", n, 2.0 * n, fitted=True) for n in (1.0, 2.0, 3.0)]
    tested = [network(f"t{n}", n, 1.0 * n) for n in (1.0, 2.0, 3.0, 4.0)]
    found = verification([*fitted, *tested], created="now", rows="sha256:0")
    assert found.calibration == Calibration(scale=2.0, networks=3)
    assert found.uncalibrated.rmspe_percent == 0.0
    assert found.calibrated.bias == 2.0 and found.calibrated.networks == 4
    assert not found.is_good
    # The measurement is half of each calibrated prediction.
    assert (found.low_percent, found.high_percent) == (-50.0, 0.0)


def test_no_calibration_on_demand():
    found = verification([network("a", 1.0, 1.1), network("b", 2.0, 2.1)], created="now", rows="")
    assert found.calibration == Calibration()
    assert found.calibrated == found.uncalibrated
    assert found.repeat_kendall_tau is None


def test_networks_of_one_depth_are_ranked_among_themselves():
    """Between depths the order is easy; within one it is reversed here, and that must show."""
    deep = [
        network(f"d{n}", 100 + n, 100.0 - n, group="depth=2", processes_ms=(100.0 - n, 100.0 - n))
        for n in range(10)
    ]
    flat = [
        network(f"s{n}", 1.0 + n, 1.0 + n, group="depth=1", processes_ms=(1.0 + n, 1.0 + n))
        for n in range(10)
    ]
    few = [network("x", 50.0, 50.0, group="depth=3", processes_ms=(50.0, 51.0))]
    found = verification([*deep, *flat, *few], created="now", rows="")
    assert found.calibrated.kendall_tau > 0.5
    assert found.group_kendall_tau == -1.0
    assert found.group_repeat_kendall_tau == 1.0
    assert found.repeat_kendall_tau == 1.0
