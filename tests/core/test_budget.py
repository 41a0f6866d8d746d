import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv
from hwnas.core.budget import Budget
from hwnas.core.budget_config import BudgetConfig
from hwnas.core.cost_ranges import ranges
from hwnas.core.discretise import Limit, relative_likelihoods
from hwnas.core.prune import ThresholdPruner
from hwnas.errors import InfeasibleBudget, InvalidInput
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.chain import Chain

from .nets import SPACES, ChoiceInDepth, Small, all_assignments, table_of
from .test_steering import Two, two_table

SPACE = Chain(size=8, channels=4, depth=3, stages=3)
TABLE = table_of(SPACE, lambda key: 0.1 + 0.013 * key.input_shapes[0][1])
LATENCY = ranges(SPACE, TABLE)["latency_ms"]


def prepared(target_ms=None, space=SPACE, table=TABLE, **values):
    arch = ArchParameters(space.choices().values())
    return Budget(space, arch.choices, table, target_ms, BudgetConfig(**values)), arch


def test_a_tight_tolerance_still_uses_the_target():
    budget, arch = prepared(1.1 * LATENCY.median, below=0.02, above=0.02)
    found = budget.likeliest(arch)
    share = budget.costs(found.assignment)["latency_ms"] / (1.1 * LATENCY.median)
    # Half of what may be wasted is what predictions have to lie in.
    assert found.near and 0.99 <= share <= 1.0


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.0])
def test_a_target_is_used_by_some_share_or_need_not_be(bad):
    with pytest.raises(ValidationError, match="below"):
        BudgetConfig(below=bad)


@pytest.mark.parametrize("seed", range(3))
def test_under_a_ceiling_the_likeliest_network_is_taken_however_fast(seed):
    """By trying all of them; one that uses the target is less likely, or the same."""
    target_ms = 1.1 * LATENCY.median
    ceiling, arch = prepared(target_ms, below=None)
    generator = torch.Generator().manual_seed(seed)
    arch.shift(torch.randn(arch.logits.shape, generator=generator))
    likelihoods = relative_likelihoods(arch.logits, arch.alive)
    rows = {choice.name: row for row, choice in enumerate(ceiling.programme.choices)}

    def likelihood(assignment):
        live = ceiling.programme.live(assignment)
        return math.fsum(likelihoods[rows[name], option] for name, option in live.items())

    found = ceiling.likeliest(arch)
    every = [one for one in all_assignments(SPACE) if ceiling.keeps(one)]
    assert likelihood(found.assignment) == pytest.approx(max(map(likelihood, every)))
    assert found.near
    using, _ = prepared(target_ms)
    assert likelihood(using.likeliest(arch).assignment) <= likelihood(found.assignment) + 1e-9


def test_a_ceiling_pulls_nothing_up():
    """At the least milliseconds nothing is pushed to use the target; above it, all is pushed down to it."""
    budget, arch = prepared(0.9 * LATENCY.max, below=None)
    budget.step(arch)
    assert not arch.logits.any()
    budget, arch = prepared(0.8 * LATENCY.median, below=None)
    for _ in range(60):
        budget.step(arch)
    assert budget.values(arch)["expected"]["latency_ms"] == pytest.approx(0.8 * LATENCY.median, rel=0.006)


def test_a_budget_that_does_not_steer_moves_nothing():
    budget, arch = prepared(2.1, Two(), two_table(), steers=False)
    budget.step(arch)
    assert budget.multipliers.values.tolist() == [0.0]
    assert arch.logits.flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_the_expected_latency_comes_to_the_target_from_either_side(share):
    target_ms = LATENCY.min + share * (LATENCY.max - LATENCY.min)
    budget, arch = prepared(target_ms)
    for _ in range(60):
        budget.step(arch)
    # In the middle of what is accepted: 2 % above to 8 % below.
    aim_ms = max(0.97 * target_ms, 1.01 * LATENCY.min)
    assert budget.values(arch)["expected"]["latency_ms"] == pytest.approx(aim_ms, rel=0.006)
    before = arch.logits.clone()
    budget.step(arch)
    assert torch.equal(arch.logits, before)  # there, nothing moves any more


def test_it_holds_against_a_task_that_always_wants_more():
    budget, arch = prepared(LATENCY.median)
    adam = torch.optim.Adam(arch.parameters(), lr=0.1)
    sizes = [len(matrix) for matrix in arch.parameters()]
    parts = torch.split(slope_of_latency(budget, arch), sizes)
    for _ in range(500):
        for matrix, part in zip(arch.parameters(), parts, strict=True):
            matrix.grad = -part
        adam.step()
        budget.step(arch)
    assert budget.values(arch)["expected"]["latency_ms"] == pytest.approx(0.97 * LATENCY.median, rel=0.01)
    assert budget.multipliers.values.item() > 0


def slope_of_latency(budget, arch):
    """The derivative of expected latency by the probabilities."""
    probabilities = arch.probabilities().detach().requires_grad_()
    return torch.autograd.grad(budget.limits["latency_ms"].cost(probabilities), probabilities)[0]


def test_a_target_at_or_above_the_slowest_network_pulls_at_nothing():
    budget, arch = prepared(LATENCY.max)
    for _ in range(5):
        budget.step(arch)
    assert not arch.logits.any()


def test_other_costs_are_ceilings_and_let_go_again():
    typical = ranges(SPACE)["params"].median
    budget, arch = prepared(max_params=0.5 * typical)
    for _ in range(300):
        budget.step(arch)
    assert budget.values(arch)["expected"]["params"] == pytest.approx(0.5 * typical, rel=0.006)
    assert budget.multipliers.values.item() > 0
    # The task now prefers small networks by itself: the multiplier falls to zero, and not below.
    arch.set_logits({"s1.depth": [9, 0, 0], "s2.depth": [9, 0, 0], "s3.depth": [9, 0, 0]})
    for _ in range(500):
        budget.step(arch)
    assert budget.multipliers.values.item() == 0.0
    assert budget.values(arch)["expected"]["params"] < 0.5 * typical


def test_a_target_beside_other_costs_pulls_from_above_only():
    typical = ranges(SPACE)["params"].median
    budget, arch = prepared(LATENCY.max * 0.9, max_params=0.5 * typical)
    for _ in range(300):
        budget.step(arch)
    assert budget.multipliers.values[0].item() == 0.0
    assert budget.values(arch)["expected"]["params"] == pytest.approx(0.5 * typical, rel=0.006)
    found = budget.likeliest(arch)
    assert budget.costs(found.assignment)["params"] <= 0.5 * typical


def test_nothing_moves_before_every_kind_of_choice_learns():
    budget, arch = prepared(LATENCY.min * 1.2)
    arch.matrices["depth"].requires_grad_(False)
    budget.step(arch)
    assert not arch.logits.any()
    arch.matrices["depth"].requires_grad_(True)
    budget.step(arch)
    assert arch.logits.any()


def test_a_budget_that_waited_to_the_end_says_for_what():
    budget, arch = prepared(LATENCY.median)
    arch.matrices["depth"].requires_grad_(False)
    budget.step(arch)
    (remark,) = budget.remarks()
    assert "held at the budget while searching: choices of kind depth never learnt" in remark
    # A finished search that is resumed steps no more, and says the same.
    other, _ = prepared(LATENCY.median)
    other.load_state_dict(budget.state_dict())
    assert other.remarks() == (remark,)
    arch.matrices["depth"].requires_grad_(True)
    budget.step(arch)
    assert budget.remarks() == ()
    # A checkpoint from before that was kept.
    other.load_state_dict({"multipliers": torch.zeros(1)})
    assert other.remarks() == ()
    # What never steps, such as a baseline's, or does not steer, waits for nothing.
    still, arch = prepared(LATENCY.median, steers=False)
    arch.matrices["depth"].requires_grad_(False)
    still.step(arch)
    assert still.remarks() == ()


def test_the_multiplier_is_its_state():
    budget, arch = prepared(LATENCY.median)
    budget.step(arch)
    other, _ = prepared(LATENCY.median)
    other.load_state_dict(budget.state_dict())
    assert torch.equal(other.multipliers.values, budget.multipliers.values)
    assert other.multipliers.values.any()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_the_network_found_keeps_the_target_and_uses_it_where_any_does(space):
    table = table_of(space)
    latency = ranges(space, table)["latency_ms"]
    every = [prepared(1e9, space, table)[0].costs(a)["latency_ms"] for a in all_assignments(space)]
    assert (latency.min, latency.max) == (min(every), max(every))
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        target_ms = latency.min + share * (latency.max - latency.min)
        budget, arch = prepared(target_ms, space, table)
        for _ in range(30):
            budget.step(arch)
        found = budget.likeliest(arch)
        ms = budget.costs(found.assignment)["latency_ms"]
        assert ms <= target_ms
        assert found.near == any(0.94 * target_ms <= other <= target_ms for other in every)
        assert not found.near or ms >= 0.94 * target_ms


def test_a_correction_multiplies_the_prediction():
    budget, arch = prepared(LATENCY.median)
    for correction in (0.8, 1.0, 1.1):
        found = budget.likeliest(arch, correction=correction)
        ms = budget.costs(found.assignment)["latency_ms"] * correction
        assert 0.94 * LATENCY.median <= ms <= LATENCY.median
    assert budget.likeliest(arch, correction=1000.0) is None


def test_the_middle_of_what_is_accepted_comes_before_its_edges():
    budget, arch = prepared(LATENCY.median)
    ms = budget.costs(budget.likeliest(arch).assignment)["latency_ms"]
    # A quarter of the 6 % from either end.
    assert 0.955 * LATENCY.median <= ms <= 0.985 * LATENCY.median


def test_pruning_spares_what_the_budget_needs():
    budget, arch = prepared(LATENCY.min * 1.05)
    # The task is sure of the deepest networks: the pruner would kill every other depth.
    arch.set_logits({f"s{n}.depth": [0.0, 0.0, 9.0] for n in (1, 2, 3)})
    pruner = ThresholdPruner(share=0.5, kinds=("depth",))
    died = pruner.prune(arch, 0)
    assert len(died) == 6
    assert budget.likeliest(arch) is None
    stays_dead = budget.spare(arch, died)
    found = budget.likeliest(arch)
    assert budget.costs(found.assignment)["latency_ms"] <= LATENCY.min * 1.05
    spared = set(died) - set(stays_dead)
    assert spared == {(f"s{n}.depth", "1") for n in (1, 2, 3)}
    for name, option in died:
        choice = SPACE.choices()[name]
        alive = bool(arch.alive[arch.rows[name], choice.options.index(option)])
        assert alive == ((name, option) in spared)
    assert budget.spare(arch, []) == []


def test_what_is_too_large_to_run_is_switched_off_and_never_found():
    space = Chain(size=16, channels=8, depth=2, stages=2)
    peaks = ranges(space)["activation_mib"]
    budget, arch = prepared(space=space, table=None, max_activation_mib=peaks.min)
    budget.switch_off(arch)
    found = budget.likeliest(arch)
    assert budget.costs(found.assignment) == {"activation_mib": peaks.min}


class Wide(Small):
    """A wide op in a choice, and one only behind a depth: 3·30 + 16·30 numbers, or 3·30 + 3·30."""

    name = "wide"

    def supernet(self):
        options = {
            "thin": Conv(3, 3, kernel=1),
            "wide": nn.Sequential(Conv(3, 16, kernel=1), Conv(16, 3, kernel=1)),
        }
        from .nets import depth

        choice = Choice(name="x", options=tuple(options))
        inner = Choice(name="y", options=tuple(options))
        steps = [Conv(3, 3), ChoiceBlock(inner, dict(options))]
        return nn.Sequential(ChoiceBlock(choice, options), depth("d", steps))


def test_an_option_too_large_anywhere_is_dead_one_too_large_somewhere_is_avoided():
    wide_mib = (3 * 30 + 16 * 30) * 4 / 2**20
    budget, arch = prepared(space=Wide(), table=None, max_activation_mib=0.9 * wide_mib)
    budget.switch_off(arch)
    assert arch.alive[arch.rows["x"]].tolist() == [True, False]
    assert arch.alive[arch.rows["y"]].tolist() == [True, True]  # at depth 1 it does not run
    arch.set_logits({"y": [0.0, 1.0], "d": [0.0, 9.0]})
    found = budget.likeliest(arch).assignment
    assert (found["d"], found["y"]) == (1, 0)
    with pytest.raises(InfeasibleBudget, match=r"activation_mib: asked for at most .*\(min\)") as refused:
        prepared(space=Wide(), table=None, max_activation_mib=1e-6)
    # The nearest is one that a budget of what is printed of it allows.
    printed = float(str(refused.value).rpartition("activation_mib ")[2].rstrip("."))
    allowed = prepared(space=Wide(), table=None, max_activation_mib=printed)[0]
    assert allowed.space.genotype(allowed.programme.any()).short_id
    assert "The nearest network is" in str(refused.value)
    with pytest.raises(InfeasibleBudget):
        prepared(space=Wide(), table=None, max_activation_mib=0.99 * printed)


def test_a_budget_that_no_network_keeps_is_refused_with_the_ranges_and_the_nearest():
    with pytest.raises(InfeasibleBudget) as refused:
        prepared(0.5 * LATENCY.min)
    text = str(refused.value)
    assert f"latency_ms: asked for at most {0.5 * LATENCY.min:.6g}; its networks take {LATENCY}" in text
    assert f"{LATENCY.min:.4g} (min), {LATENCY.median:.4g} (median), {LATENCY.max:.4g} (max)" in text
    cheapest = SPACE.genotype(prepared(LATENCY.min)[0].fastest())
    assert f"The nearest network is {cheapest.short_id}: latency_ms " in text
    # What is printed is rounded up, so that it can be asked for.
    printed = float(text.rpartition("latency_ms ")[2].rstrip("."))
    assert LATENCY.min <= printed <= 1.0001 * LATENCY.min
    prepared(printed)


def test_budgets_that_contradict_each_other_are_refused_although_each_could_be_kept():
    """Two options: a slow small one and a quick large one."""
    space = Two()
    one, three = space.record().keys()
    table = fake_table([one, three], {one: 3.0, three: 1.0}.__getitem__, input_shape=(3, 6, 5))
    # 9 weights and 6 of the batch norm against 81 and 6.
    prepared(1.0, space, table)
    prepared(None, space, table, max_params=15)
    with pytest.raises(InfeasibleBudget, match=r"The nearest network is \w+: latency_ms 3, params 15\."):
        prepared(1.0, space, table, max_params=15)


def test_nothing_asked_is_no_budget():
    arch = ArchParameters(SPACE.choices().values())
    assert Budget.asked(SPACE, arch.choices, TABLE, None, BudgetConfig()) is None
    with pytest.raises(InvalidInput, match="target_ms needs a latency table"):
        Budget.asked(SPACE, arch.choices, None, 3.0, BudgetConfig())


def test_costs_are_positive():
    with pytest.raises(ValidationError, match="greater than 0"):
        BudgetConfig(max_params=0)


def test_several_costs_at_once_are_kept_exactly():
    params, macs = (ranges(SPACE)[name].median for name in ("params", "macs"))
    budget, arch = prepared(LATENCY.median, max_params=0.7 * params, max_macs=0.9 * macs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        arch.shift(torch.randn(arch.logits.shape, generator=generator))
        costs = budget.costs(budget.likeliest(arch).assignment)
        assert costs["latency_ms"] <= LATENCY.median
        assert costs["params"] <= 0.7 * params
        assert costs["macs"] <= 0.9 * macs


def test_a_limit_is_two_sided():
    budget, _ = prepared(LATENCY.median)
    cost = budget.limits["latency_ms"].cost
    fastest = budget.fastest()
    assert Limit(cost, cost.at(fastest)).keeps(fastest)
    assert not Limit(cost, math.nextafter(cost.at(fastest), 0.0)).keeps(fastest)
    assert not Limit(cost, math.inf, least=math.nextafter(cost.at(fastest), math.inf)).keeps(fastest)


def test_aiming_reaches_every_space_without_drifting():
    """Choices with equal costs get no push at all."""
    space = ChoiceInDepth()
    table = table_of(space, lambda key: 1.0)
    budget, arch = prepared(4.2, space, table)
    for _ in range(300):
        budget.step(arch)
    assert not arch.matrices["op"].any()
    assert arch.matrices["depth"].any()
