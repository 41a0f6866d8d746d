import pytest
import torch
from pydantic import ValidationError
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv, DepthBlock, InputBlock, assigned, record
from hwnas.core.choice import Assignment, blocks, choices_of
from hwnas.core.relaxation import Draw, GumbelSoftmax
from hwnas.errors import GenotypeError, SpaceError

from .nets import ChoiceInDepth, Scale, block, depth

A = Choice(name="a", options=("x2", "x3", "x5"))
ALL = (0, 1, 2)


def scales(*factors):
    return [Scale(float(factor)) for factor in factors]


def choice_block():
    return ChoiceBlock(A, dict(zip(A.options, scales(2, 3, 5), strict=True)))


def depth_block(exits=None):
    return depth("d", scales(2, 3, 5), exits)


def run(module, weights, index=None, alive=ALL, x=1.0):
    module.assign(Assignment(None if weights is None else torch.tensor(weights), index, alive))
    return module(torch.tensor([x]))


class Counter:
    """How often each module was called."""

    def __init__(self, network):
        self.calls = dict.fromkeys((path for path, _ in network.named_modules()), 0)
        for path, module in network.named_modules():
            module.register_forward_hook(lambda *_, path=path: self._count(path))

    def _count(self, path):
        self.calls[path] += 1


def test_a_soft_choice_mixes_its_options():
    # 0.5 · 2 + 0.25 · 3 + 0.25 · 5 = 3
    assert run(choice_block(), [0.5, 0.25, 0.25]).item() == 3.0


def test_a_drawn_choice_computes_that_option_alone():
    module = choice_block()
    counter = Counter(module)
    assert run(module, [0.0, 1.0, 0.0], index=1).item() == 3.0
    assert [counter.calls[f"options.{k}"] for k in ALL] == [0, 1, 0]


def test_dead_options_are_not_computed_in_the_mixture():
    module = choice_block()
    counter = Counter(module)
    assert run(module, [0.5, 0.0, 0.5], alive=(0, 2)).item() == 3.5
    assert [counter.calls[f"options.{k}"] for k in ALL] == [1, 0, 1]


def test_a_soft_depth_mixes_what_leaves_at_each_exit():
    # After the steps: 2, 2·3 = 6, 6·5 = 30.  0.5 · 2 + 0.3 · 6 + 0.2 · 30 = 8.8
    assert run(depth_block(), [0.5, 0.3, 0.2]).item() == pytest.approx(8.8)


def test_a_drawn_depth_computes_only_the_steps_before_the_exit():
    module = depth_block(exits=[Scale(10.0), Scale(100.0), None])
    counter = Counter(module)
    assert run(module, [0.0, 1.0, 0.0], index=1).item() == 600.0
    assert [counter.calls[f"steps.{k}"] for k in ALL] == [1, 1, 0]
    assert [counter.calls[f"exits.{k}"] for k in ALL] == [0, 1, 0]


def test_steps_behind_the_last_live_exit_are_not_computed_in_the_mixture():
    module = depth_block()
    counter = Counter(module)
    assert run(module, [0.5, 0.5, 0.0], alive=(0, 1)).item() == 4.0
    assert [counter.calls[f"steps.{k}"] for k in ALL] == [1, 1, 0]


def test_a_dead_early_exit_is_passed_through_but_not_taken():
    module = depth_block(exits=[Scale(10.0), None, None])
    counter = Counter(module)
    assert run(module, [0.0, 0.5, 0.5], alive=(1, 2)).item() == 18.0  # 0.5 · 6 + 0.5 · 30
    assert counter.calls["exits.0"] == 0


def test_an_input_block_passes_one_input_or_the_mixture():
    module = InputBlock(Choice(name="i", options=("l", "r"), kind="input"))
    left, right = torch.tensor([2.0]), torch.tensor([6.0])
    module.assign(Assignment(torch.tensor([0.25, 0.75]), None, (0, 1)))
    assert module(left, right).item() == 5.0
    module.assign(Assignment(None, 1, (0, 1)))
    assert module(left, right) is right


def test_an_input_block_counts_its_inputs():
    module = InputBlock(Choice(name="i", options=("l", "r"), kind="input"))
    with pytest.raises(SpaceError, match='"i" has 2 options, its block got 3 inputs'):
        module(*[torch.zeros(1)] * 3)


class Both(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, older, younger):
        return younger, older * self.factor


def test_states_of_several_tensors_are_mixed_each_with_the_same_weights():
    module = depth("d", [Both(2.0), Both(3.0)])
    module.assign(Assignment(torch.tensor([0.5, 0.5]), None, (0, 1)))
    older, younger = module(torch.tensor([1.0]), torch.tensor([10.0]))
    # exit 1: (10, 2); exit 2: (2, 30)
    assert (older.item(), younger.item()) == (6.0, 16.0)
    module.assign(Assignment(torch.tensor([0.0, 1.0]), 1, (0, 1)))
    older, younger = module(torch.tensor([1.0]), torch.tensor([10.0]))
    assert (older.item(), younger.item()) == (2.0, 30.0)


def test_the_straight_through_weight_is_exactly_one_and_carries_the_gradient():
    logits = torch.zeros(1, 3, requires_grad=True)
    alive = torch.ones(1, 3, dtype=torch.bool)
    draw = GumbelSoftmax().draw(logits, alive, 1.0, torch.Generator().manual_seed(0))
    module = choice_block()
    module.assign(Assignment(draw.weights[0], draw.index[0], ALL))
    output = module(torch.tensor([1.0]))
    assert output.item() == (2.0, 3.0, 5.0)[draw.index[0]]
    output.backward()
    assert logits.grad.abs().sum() > 0


def test_without_an_assignment_the_supernet_refuses():
    with pytest.raises(SpaceError, match=r'choice "a" has no assignment.*space\.build\(genotype\)'):
        choice_block()(torch.tensor([1.0]))


def test_assigned_takes_the_draw_away_again_even_after_an_error():
    net = ChoiceInDepth().supernet()
    arch = ArchParameters(net)
    with pytest.raises(RuntimeError, match="stop"), assigned(net, arch, arch.one_hot({})):
        raise RuntimeError("stop")
    with pytest.raises(SpaceError, match="has no assignment"):
        net(torch.randn(2, 3, 6, 5))


def test_assigned_refuses_parameters_of_another_supernet():
    other = ArchParameters(nn.Sequential(block("other")))
    with (
        pytest.raises(GenotypeError, match='has the choice "a", the architecture parameters do not'),
        assigned(choice_block(), other, other.one_hot({})),
    ):
        pass


def test_a_hard_search_step_computes_one_option_a_choice_and_nothing_behind_the_exit():
    """Defect of PLiNIO and NNI: their hard Gumbel computes every branch."""
    net = ChoiceInDepth().supernet()
    arch = ArchParameters(net)
    counter = Counter(net)
    draw = arch.draw(GumbelSoftmax(), 1.0, torch.Generator().manual_seed(5))
    index = dict(zip(arch.rows, draw.index, strict=True))
    with assigned(net, arch, draw):
        net(torch.randn(2, 3, 6, 5))
    expected = {f"1.steps.{step}" for step in range(index["d"] + 1)}
    assert {
        path for path, n in counter.calls.items() if n and path.count(".") == 2 and "steps" in path
    } == expected
    drawn = [path for path, n in counter.calls.items() if n and ".options." in path and path[-1].isdigit()]
    assert len(drawn) == [1, 2, 4][index["d"]]


def test_all_blocks_of_a_choice_see_the_same_draw():
    net = nn.Sequential(block("a", channels=3), block("a", channels=3))
    arch = ArchParameters(net)
    with assigned(net, arch, Draw(torch.tensor([[0.0, 1.0]]), (1,))):
        assert [b.assignment.index for b in blocks(net)] == [1, 1]


def test_options_must_be_those_of_the_choice():
    with pytest.raises(SpaceError, match="must agree in name and order"):
        ChoiceBlock(A, {"x3": nn.Identity(), "x2": nn.Identity(), "x5": nn.Identity()})


def test_steps_and_exits_must_be_as_many_as_the_options():
    with pytest.raises(SpaceError, match="has 3 options, its block got 2 steps and 2 exits"):
        DepthBlock(A, scales(1, 2))
    with pytest.raises(SpaceError, match="got 3 steps and 1 exits"):
        DepthBlock(A, scales(1, 2, 3), [None])


@pytest.mark.parametrize("options", [(), ("x", "x")])
def test_a_choice_needs_options_that_differ(options):
    with pytest.raises(ValidationError, match="at least one option and no two alike"):
        Choice(name="a", options=options)


def test_two_meanings_of_one_name_are_refused():
    other = ChoiceBlock(Choice(name="a", options=("y",)), {"y": nn.Identity()})
    with pytest.raises(SpaceError, match='two blocks name the choice "a" but mean different ones'):
        choices_of(nn.Sequential(choice_block(), other))


def test_a_network_without_choices_is_refused():
    with pytest.raises(SpaceError, match="nothing to search"):
        choices_of(Conv(3, 3))


def test_exits_of_different_shapes_are_refused():
    module = depth("d", [Conv(3, 3), Conv(3, 3, stride=2)])
    with pytest.raises(SpaceError, match='choice "d" give outputs of different shapes'):
        record(module, [torch.empty(1, 3, 8, 8)])
