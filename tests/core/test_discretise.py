import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv, ExpectedLatency, PoolLinear, record
from hwnas.core.budget import Budget
from hwnas.core.budget_config import BudgetConfig
from hwnas.core.cost_ranges import ranges
from hwnas.core.discretise import Limit, Programme, relative_likelihoods
from hwnas.core.expected import ExpectedCost
from hwnas.latency.fake import fake_table

from .nets import SPACES, ChoiceInDepth, Scale, Small, all_assignments, table_of
from .test_random_spaces import TREES, Grown


def randomised(space, seed):
    arch = ArchParameters(space.choices().values())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in arch.parameters():
            matrix.copy_(2 * torch.randn(matrix.shape, generator=generator))
    return arch


def prepared(space, seed=0):
    """A programme of ``space``, its latency, and likelihoods from random logits."""
    arch = randomised(space, seed)
    cost = ExpectedLatency(space.record(), arch.choices, table_of(space))
    programme = Programme(arch.choices, space.record())
    return arch, cost, programme, relative_likelihoods(arch.logits, arch.alive)


def loss_of(space, programme, likelihoods, assignment):
    """The sum over the choices that matter."""
    rows = {choice.name: row for row, choice in enumerate(programme.choices)}
    return math.fsum(
        likelihoods[rows[name], assignment[name]] for name in space.record().live_choices(assignment)
    )


def brute_force(space, programme, likelihoods, limits, without=()):
    """The largest sum over all networks that keep the limits; None if none does."""
    sums = [
        loss_of(space, programme, likelihoods, assignment)
        for assignment in all_assignments(space)
        if all(limit.keeps(assignment) for limit in limits)
        and programme.live(assignment) not in [programme.live(network) for network in without]
    ]
    return max((value for value in sums if value > -math.inf), default=None)


def check(space, programme, likelihoods, limits, without=()):
    found = programme.likeliest(likelihoods, limits, without=without)
    best = brute_force(space, programme, likelihoods, limits, without)
    assert (found is None) == (best is None)
    if found is not None:
        assert all(limit.keeps(found) for limit in limits)
        assert loss_of(space, programme, likelihoods, found) == pytest.approx(best, abs=1e-5)
    return found


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_it_finds_what_trying_every_network_finds(space):
    _, cost, programme, likelihoods = prepared(space)
    latencies = sorted({cost.at(assignment) for assignment in all_assignments(space)})
    # At each network's own latency, which must count as kept, and a rounding below it, which must not.
    for most in latencies[:: max(1, len(latencies) // 12)]:
        check(space, programme, likelihoods, [Limit(cost, most)])
        check(space, programme, likelihoods, [Limit(cost, math.nextafter(most, 0.0))])
        check(space, programme, likelihoods, [Limit(cost, most, least=0.9 * most)])
    assert programme.likeliest(likelihoods, [Limit(cost, 0.999 * latencies[0])]) is None


@settings(max_examples=40, deadline=None, derandomize=True)
@given(TREES, st.integers(0, 2**16))
def test_it_does_in_spaces_that_nobody_thought_of(tree, seed):
    space = Grown(tree=tree)
    _, cost, programme, likelihoods = prepared(space, seed)
    latencies = sorted({cost.at(assignment) for assignment in all_assignments(space)})
    for most in (latencies[0], latencies[len(latencies) // 2], latencies[-1]):
        check(space, programme, likelihoods, [Limit(cost, most)])
    middle = latencies[len(latencies) // 2]
    check(space, programme, likelihoods, [Limit(cost, middle, least=0.8 * middle)])
    cheapest, dearest = programme.cheapest(cost), programme.dearest(cost)
    assert (cost.at(cheapest), cost.at(dearest)) == (latencies[0], latencies[-1])


def test_without_a_budget_the_likeliest_network_is_that_of_the_likeliest_options():
    for space in SPACES:
        arch, _, programme, likelihoods = prepared(space)
        found = programme.likeliest(likelihoods, [])
        assert space.genotype(found) == space.genotype(arch.argmax())


def test_a_deep_network_is_not_less_likely_for_having_more_choices():
    """p(two cells) = 0.7, but every op of the second is a toss-up: 0.7 · 0.25 < 0.3."""
    space = ChoiceInDepth()
    arch = ArchParameters(space.choices().values())
    arch.set_logits({"d": [math.log(0.3), math.log(0.7), -50.0]})
    programme = Programme(arch.choices, space.record())
    assert programme.likeliest(relative_likelihoods(arch.logits, arch.alive), [])["d"] == 1


def test_several_limits_at_once_and_networks_left_out():
    space = ChoiceInDepth()
    arch, cost, programme, likelihoods = prepared(space)
    # Another cost that runs against the first: it is cheap where that is dear.
    other = ExpectedCost([(condition, 5.0 - amount) for condition, amount in cost.terms], arch.choices)
    both = [Limit(cost, 4.0), Limit(other, 30.0)]
    taken = []
    while (found := check(space, programme, likelihoods, both, taken)) is not None:
        taken.append(found)
    expected = {
        tuple(sorted(programme.live(a).items()))
        for a in all_assignments(space)
        if all(limit.keeps(a) for limit in both)
    }
    assert {tuple(sorted(programme.live(found).items())) for found in taken} == expected
    assert len(taken) == len(expected) > 3


def test_dead_options_are_not_taken():
    space = ChoiceInDepth()
    arch, cost, programme, _ = prepared(space)
    free = programme.likeliest(relative_likelihoods(arch.logits, arch.alive), [Limit(cost, 5.0)])
    arch.alive[arch.rows["d"], free["d"]] = False
    likelihoods = relative_likelihoods(arch.logits, arch.alive)
    assert check(space, programme, likelihoods, [Limit(cost, 5.0)])["d"] != free["d"]


def test_what_is_forbidden_does_not_run():
    space = ChoiceInDepth()
    _, cost, programme, likelihoods = prepared(space)
    forbidden = (("a", frozenset({1})), ("d", frozenset({1, 2})))
    for most in (4.0, 5.0, 100.0):
        found = Programme(programme.choices, space.record(), [forbidden]).likeliest(
            likelihoods, [Limit(cost, most)]
        )
        assert found["a"] != 1 or found["d"] == 0
    assert Programme(programme.choices, space.record(), [()]).likeliest(likelihoods, []) is None


def test_sets_of_choices_too_large_to_enumerate(monkeypatch):
    monkeypatch.setattr("hwnas.core.discretise._LARGEST_JOINT", 1)
    for space in SPACES:
        _, cost, programme, likelihoods = prepared(space)
        latencies = sorted({cost.at(assignment) for assignment in all_assignments(space)})
        for most in latencies[:: max(1, len(latencies) // 5)]:
            check(space, programme, likelihoods, [Limit(cost, most, least=0.9 * most)])
        assert cost.at(programme.cheapest(cost)) == latencies[0]
        assert cost.at(programme.dearest(cost)) == latencies[-1]


def one_choice(amounts):
    """A single choice whose options cost these amounts: choices, recording, cost."""
    choice = Choice(name="x", options=tuple(map(str, range(len(amounts)))))
    block = ChoiceBlock(choice, {name: nn.Identity() for name in choice.options})
    terms = [((("x", frozenset({k})),), amount) for k, amount in enumerate(amounts)]
    return [choice], record(block, [torch.empty(1, 2)]), ExpectedCost(terms, [choice])


def test_networks_within_the_solvers_tolerance_of_a_limit_do_not_pass_it(monkeypatch):
    """Thirty likely options miss the budget by less than the solver can see, an unlikely one keeps it."""
    choices, recording, cost = one_choice([1.0 + 1e-12 * (k + 1) for k in range(30)] + [1.0])
    likelihoods = np.zeros((1, 31))
    likelihoods[0, 30] = -5.0
    programme = Programme(choices, recording)
    assert programme.likeliest(likelihoods, [Limit(cost, 1.0)]) == {"x": 30}
    # There is an end to ruling them out one by one; what is given up is then within 1e-8 of the limit.
    monkeypatch.setattr("hwnas.core.discretise._NEAR_MISSES", 5)
    assert programme.likeliest(likelihoods, [Limit(cost, 1.0)]) is None
    assert programme.likeliest(likelihoods, [Limit(cost, 1.0 + 1e-6)]) != {"x": 30}


def test_a_hundred_choices_within_a_per_cent_of_a_target():
    """AutoRTNet has forty; each of these depends on one of ten depths besides."""
    choices = [Choice(name=f"c{n:02}", options=tuple("abcdefghij")) for n in range(100)]
    generator = np.random.default_rng(0)
    terms = [
        (((f"c{n:02}", frozenset({k})), ("c99", frozenset(range(n % 10, 10)))), generator.random())
        for n, k in itertools.product(range(99), range(10))
    ]
    cost = ExpectedCost(terms, choices)
    block = ChoiceBlock(choices[0], {name: nn.Identity() for name in choices[0].options})
    programme = Programme(choices, record(block, [torch.empty(1, 2)]))
    likelihoods = -generator.random((100, 10))
    found = programme.likeliest(likelihoods, [Limit(cost, 20.0, least=19.8)])
    assert 19.8 <= cost.at(found) <= 20.0


def test_a_fake_table_of_equal_rows_has_ties_and_still_a_network():
    space = ChoiceInDepth()
    arch = ArchParameters(space.choices().values())
    table = fake_table(space.record().keys(), lambda key: 1.0, input_shape=space.input_shape())
    cost = ExpectedLatency(space.record(), arch.choices, table)
    programme = Programme(arch.choices, space.record())
    found = programme.likeliest(relative_likelihoods(arch.logits, arch.alive), [Limit(cost, 3.0)])
    assert cost.at(found) == 3.0


class Alike(Small):
    """A choice between ops that have neither products nor parameters to count."""

    name = "alike"

    def supernet(self):
        options = {"one": Scale(1.0), "two": Scale(2.0)}
        return nn.Sequential(
            Conv(3, 4), ChoiceBlock(Choice(name="x", options=tuple(options)), options), PoolLinear(4, 2)
        )


def test_where_no_choice_costs_anything_any_network_is_the_cheapest_and_the_dearest():
    space = Alike()
    for name in ("macs", "params"):
        found = ranges(space)[name]
        assert 0 < found.min == found.median == found.max
    # Milliseconds likewise, under a target too.
    table = table_of(space, lambda key: 0.0 if key.spec.kind == "test.scale" else 1.0)
    arch = ArchParameters(space.choices().values())
    budget = Budget(space, arch.choices, table, 3.0, BudgetConfig())
    budget.step(arch)
    assert budget.costs(budget.likeliest(arch).assignment) == {"latency_ms": 2.0}
