"""Multipliers, a step at a time and by hand; tests/core/test_budget.py has them in a budget's hands."""

import math

import pytest
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv, ExpectedLatency
from hwnas.core.steering import Multipliers
from hwnas.latency.fake import fake_table

from .nets import Small


class Two(Small):
    """One choice: of a convolution of 1 ms and one of 3 ms."""

    name = "two"

    def supernet(self):
        choice = Choice(name="x", options=("one", "three"))
        return nn.Sequential(ChoiceBlock(choice, {"one": Conv(3, 3, kernel=1), "three": Conv(3, 3)}))


def two_table():
    one, three = Two().record().keys()
    return fake_table([one, three], {one: 1.0, three: 3.0}.__getitem__, input_shape=(3, 6, 5))


def prepared(aim_ms, both_ways=("latency_ms",)):
    space = Two()
    arch = ArchParameters(space.choices().values())
    cost = ExpectedLatency(space.record(), arch.choices, two_table())
    return Multipliers({"latency_ms": cost}, {"latency_ms": aim_ms}, both_ways), arch


def test_a_step_worked_by_hand():
    multipliers, arch = prepared(2.1)
    # At even odds 2 ms are expected, a gap of 2 / 2.1 − 1 = −1/21.
    # Derivatives by the probabilities are 1 / 2.1 and 3 / 2.1, centred ∓1 / 2.1, of variance 1 / 2.1². The
    # multiplier moves by −2.1² / 21 = −0.21, the logits by 0.21 · (∓1 / 2.1) = ∓0.1.
    multipliers.step(arch)
    assert multipliers.by_name() == {"latency_ms": pytest.approx(-0.21, rel=1e-5)}
    assert arch.logits.flatten().tolist() == pytest.approx([-0.1, 0.1], rel=1e-5)
    expected = multipliers.costs["latency_ms"].total(arch.probabilities())
    assert expected == pytest.approx(2 + math.tanh(0.1), rel=1e-5)


def test_a_ceiling_that_is_kept_pulls_at_nothing():
    multipliers, arch = prepared(2.1, both_ways=())
    multipliers.step(arch)
    assert multipliers.by_name() == {"latency_ms": 0.0}
    assert not arch.logits.any()


def test_one_step_moves_no_option_by_more_than_half_a_nat():
    multipliers, arch = prepared(1.02)
    multipliers.step(arch)
    assert arch.logits.flatten().tolist() == pytest.approx([0.5, -0.5])


def test_an_aim_that_is_reached_is_left_alone():
    multipliers, arch = prepared(2.0 / 1.004)
    multipliers.step(arch)
    assert not arch.logits.any()
    multipliers, arch = prepared(2.0 / 1.006)
    multipliers.step(arch)
    assert arch.logits.all()
