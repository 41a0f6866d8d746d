import math

import pytest
import torch
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv, ExpectedLatency, record
from hwnas.core.expected import ExpectedCost
from hwnas.errors import MissingLatency
from hwnas.latency.fake import fake_table
from hwnas.latency.timing import Timing
from hwnas.latency.verification import Calibration, Scores, Verification
from hwnas.record import Recording, holds

from .nets import SPACES, ChoiceInChoice, ChoiceInDepth, SharedChain, all_assignments, table_of


def compiled(space, formula=None):
    arch = ArchParameters(space.supernet())
    table = table_of(space, formula)
    return arch, table, ExpectedLatency(space.record(), arch.choices, table)


def randomised(arch, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in arch.parameters():
            matrix.copy_(torch.randn(matrix.shape, generator=generator))
    return arch


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_at_the_probabilities_it_is_the_expectation_over_independent_draws(space):
    arch, table, cost = compiled(space)
    probabilities = randomised(arch).probabilities().detach().double()
    expectation = 0.0
    for assignment in all_assignments(space):
        probability = math.prod(
            float(probabilities[arch.rows[name], index]) for name, index in assignment.items()
        )
        ms = sum(table.latency_ms(key) * n for key, n in space.record().count(assignment).items())
        expectation += probability * ms
    assert cost.total(probabilities) == pytest.approx(expectation, rel=1e-6)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_at_one_hot_it_is_the_sum_of_the_rows_that_run(space):
    arch, table, cost = compiled(space)
    for assignment in all_assignments(space):
        ms = sum(table.latency_ms(use.key) for use in space.record().ops if holds(use.condition, assignment))
        assert cost.total(arch.one_hot(assignment).weights) == pytest.approx(ms, rel=1e-5)


def shared_chain(inner):
    """The same choice twice, one inside the other; only option "b" of both runs the timed op."""
    choice = Choice(name="x", options=("a", "b"))
    return choice, ChoiceBlock(
        choice, {"a": nn.Identity(), "b": ChoiceBlock(choice, {"a": nn.Identity(), "b": inner})}
    )


def test_a_choice_that_comes_twice_on_a_path_counts_once():
    choice, network = shared_chain(Conv(3, 3))
    recording = record(network, [torch.empty(1, 3, 4, 4)])
    table = fake_table(recording.keys(), lambda key: 1.0, input_shape=(3, 4, 4))
    cost = ExpectedLatency(recording, [choice], table)
    # P(x = b) = 0.3, one decision: 0.3 · 1 ms. A product over both blocks would give 0.3 · 0.3 = 0.09.
    assert cost.total(torch.tensor([[0.7, 0.3]])) == pytest.approx(0.3)


def test_depth_enters_cumulatively():
    space = ChoiceInDepth()
    arch, _, cost = compiled(space, lambda key: 1.0)
    probabilities = torch.full_like(arch.probabilities(), 0.5)
    probabilities[arch.rows["d"]] = torch.tensor([0.5, 0.3, 0.2])
    # Stem and head: 2. Cell 1 always: 1. Cell 2 at exits 2 and 3: 0.3 + 0.2. The op in exit 2: 0.3.
    # Cell 3 holds two blocks: 2 · 0.2.  2 + 1 + 0.5 + 0.3 + 0.4 = 4.2
    assert cost.total(probabilities) == pytest.approx(4.2)


def test_gradients_are_those_of_finite_differences():
    for space in (ChoiceInDepth(), ChoiceInChoice(), SharedChain()):
        arch, _, cost = compiled(space)
        weights = randomised(arch).probabilities().detach().double().requires_grad_()
        assert torch.autograd.gradcheck(cost.double(), weights)
        assert torch.autograd.gradcheck(cost.penalised, weights)


def test_batches_of_assignments_are_computed_at_once():
    arch, _, cost = compiled(ChoiceInChoice())
    draws = torch.stack([arch.one_hot(a).weights for a in all_assignments(ChoiceInChoice())])
    ms = cost(draws.reshape(2, -1, *draws.shape[1:]))
    assert ms.shape == (2, len(draws) // 2)
    assert ms.flatten().tolist() == pytest.approx([cost.total(draw) for draw in draws])


def test_the_penalty_does_not_move_choices_that_bear_none_but_counts_them():
    free = Choice(name="free", options=("one", "three"), penalised=False)
    paid = Choice(name="paid", options=("one", "three"))
    network = nn.Sequential(
        *(ChoiceBlock(choice, {"one": Conv(3, 3, kernel=1), "three": Conv(3, 3)}) for choice in (free, paid))
    )
    recording = record(network, [torch.empty(1, 3, 4, 4)])
    one, three = recording.keys()
    table = fake_table([one, three], {one: 1.0, three: 3.0}.__getitem__, input_shape=(3, 4, 4))
    cost = ExpectedLatency(recording, [free, paid], table)
    weights = torch.full((2, 2), 0.5, requires_grad=True)
    ms = cost.penalised(weights)
    assert float(ms.detach()) == pytest.approx(4.0)  # 0.5 · 1 + 0.5 · 3, twice
    ms.backward()
    assert weights.grad.tolist() == [[0.0, 0.0], [1.0, 3.0]]


def test_shares_by_block_and_by_kind_sum_to_the_total():
    arch, _, cost = compiled(ChoiceInDepth())
    probabilities = randomised(arch).probabilities()
    total = cost.total(probabilities)
    assert sum(cost.by_block(probabilities).values()) == pytest.approx(total, rel=1e-5)
    assert sum(cost.by_block(probabilities, depth=3).values()) == pytest.approx(total, rel=1e-5)
    assert set(cost.by_block(probabilities)) == {"0", "1", "2"}
    assert set(cost.by_kind(probabilities)) == {"hwnas.conv", "hwnas.pool_linear"}
    assert sum(cost.by_kind(probabilities).values()) == pytest.approx(total, rel=1e-5)


def test_a_missing_row_is_never_zero():
    space = SharedChain()
    keys = space.record().keys()
    table = fake_table(keys[:-1], input_shape=space.input_shape())
    arch = ArchParameters(space.supernet())
    with pytest.raises(MissingLatency, match=r"1 of 4 .*(\n|.)*hwnas\.pool_linear"):
        ExpectedLatency(space.record(), arch.choices, table)


def test_a_network_without_ops_takes_no_time():
    choice = Choice(name="x", options=("a", "b"))
    cost = ExpectedLatency(Recording(), [choice], fake_table([], input_shape=(3, 4, 4)))
    assert cost.total(torch.tensor([[0.5, 0.5]])) == 0.0


def test_it_follows_its_weights_to_another_precision():
    arch, _, cost = compiled(SharedChain())
    probabilities = arch.probabilities()
    assert cost(probabilities.double()).dtype == torch.float64
    assert cost.total(probabilities) == pytest.approx(cost.total(probabilities.double()))


# --- calibrated, and many networks at once ----------------------------------------------------------------


def calibrated(space, **values):
    """A fake table whose verification says ``scale · sum + offset + per_op · ops``."""
    table = table_of(space)
    scores = Scores(networks=9, rmspe_percent=1, within_5=100, within_10=100, kendall_tau=1, bias=1)
    table.verification = Verification(
        created="now",
        rows=table.rows_digest,
        uncalibrated=scores,
        calibrated=scores,
        calibration=Calibration(networks=10, **values),
        low_percent=-2.0,
        high_percent=3.0,
    )
    return table


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_a_calibration_is_part_of_the_expectation(space):
    arch = ArchParameters(space.supernet())
    table = calibrated(space, scale=1.5, offset_ms=0.25, per_op_ms=0.1)
    cost = ExpectedLatency(space.record(), arch.choices, table)
    for assignment in all_assignments(space):
        counts = space.record().count(assignment)
        total = sum(table.latency_ms(key) * n for key, n in counts.items())
        expected = 1.5 * total + 0.25 + 0.1 * sum(counts.values())
        weights = arch.one_hot(assignment).weights
        assert table.predict_ms(counts) == pytest.approx(expected)
        assert cost.total(weights) == pytest.approx(expected, rel=1e-5)
        assert cost.interval_ms(weights) == pytest.approx((0.98 * expected, 1.03 * expected), rel=1e-5)


def test_a_calibrated_expectation_stays_differentiable():
    space = ChoiceInDepth()
    arch = randomised(ArchParameters(space.supernet()))
    cost = ExpectedLatency(
        space.record(), arch.choices, calibrated(space, scale=2.0, offset_ms=1.0, per_op_ms=0.1)
    ).double()
    weights = arch.probabilities().detach().double().requires_grad_()
    assert torch.autograd.gradcheck(cost, weights)


def test_a_calibration_of_other_rows_is_not_used():
    space = ChoiceInDepth()
    table = calibrated(space, scale=2.0)
    before = table.predict_ms({space.record().keys()[0]: 1})
    key = space.record().keys()[0]
    table.rows[key] = Timing(median_ms=7.0, spread_ms=0.0, count=1)
    assert table.predict_ms({key: 1}) == 7.0 != before


def test_without_a_verification_there_is_no_interval():
    arch, _, cost = compiled(ChoiceInDepth())
    assert cost.interval_ms(arch.probabilities()) is None


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_many_networks_at_once_equal_each_alone(space):
    arch = ArchParameters(space.supernet())
    cost = ExpectedLatency(
        space.record(), arch.choices, calibrated(space, scale=1.1, offset_ms=0.2, per_op_ms=0.01)
    )
    assignments = list(all_assignments(space))
    indices = torch.tensor([[a[choice.name] for choice in arch.choices] for a in assignments])
    alone = [cost.total(arch.one_hot(assignment).weights) for assignment in assignments]
    assert cost.predict_many(indices).tolist() == pytest.approx(alone, rel=1e-5)


def test_sets_of_choices_too_large_to_tabulate_are_computed(monkeypatch):
    space = ChoiceInDepth()
    arch, _, cost = compiled(space)
    indices = torch.tensor([[a[choice.name] for choice in arch.choices] for a in all_assignments(space)])
    expected = cost.predict_many(indices)
    monkeypatch.setattr("hwnas.core.expected._LARGEST_LOOKUP", 1)
    torch.testing.assert_close(cost.predict_many(indices), expected, rtol=1e-5, atol=0)


# --- other costs than latency ------------------------------------------------------------------------------


def test_a_cost_is_an_offset_and_amounts_under_conditions():
    choices = [Choice(name="a", options=("x", "y")), Choice(name="b", options=("x", "y", "z"))]
    a, b = frozenset({1}), frozenset({0, 2})
    terms = [
        ((), 3.0),
        ((("a", a),), 10.0),
        ((("a", a), ("b", b)), -4.0),
        ((("b", frozenset(range(3))),), 0.5),
    ]
    cost = ExpectedCost(terms, choices, offset=100.0)
    assert cost.at({"a": 0, "b": 0}) == 103.5
    assert cost.at({"a": 1, "b": 0}) == 109.5
    assert cost.at({"a": 1, "b": 1}) == 113.5
    # 103.5 + 0.5 · 10 − 0.5 · (0.2 + 0.5) · 4
    assert cost.total(torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])) == pytest.approx(107.1)
    assert cost.predict_many(torch.tensor([[0, 0], [1, 0], [1, 1]])).tolist() == [103.5, 109.5, 113.5]
    # What is always so is no dependence.
    assert set(cost.by_rows()) == {(), (0,), (0, 1)}


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_one_networks_cost_is_rounded_once(space):
    _, table, cost = compiled(space)
    for assignment in all_assignments(space):
        rows = [table.latency_ms(use.key) for use in space.record().ops if holds(use.condition, assignment)]
        assert cost.at(assignment) == math.fsum(rows)
