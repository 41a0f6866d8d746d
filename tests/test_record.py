import re

import pytest
import torch
from torch import nn

from hwnas import Add, Choice, ChoiceBlock, Conv, DepthBlock, Op, PoolLinear, record, register_op
from hwnas.errors import SpaceError
from hwnas.record import active_recorder, both, holds


def conditions(recording):
    return [dict(use.condition) for use in recording.ops]


def choice_of(name, *options, kind="op"):
    return Choice(name=name, options=options, kind=kind)


def convs(**kernels):
    return {name: Conv(3, 3, kernel=kernel) for name, kernel in kernels.items()}


@register_op("test.pair")
class Pair(Op):
    """An op made of an op: only the outer one has a row."""

    def __init__(self):
        super().__init__()
        self.inner = Conv(3, 3)

    def forward(self, x):
        return self.inner(x)


def test_a_plain_network_runs_every_op_always():
    network = nn.Sequential(Conv(3, 4, stride=2), Conv(4, 4), PoolLinear(4, 2))
    recording = record(network, [torch.empty(1, 3, 8, 8)])
    assert [use.path for use in recording.ops] == ["0", "1", "2"]
    assert conditions(recording) == [{}, {}, {}]
    assert [use.key.input_shapes for use in recording.ops] == [
        ((1, 3, 8, 8),),
        ((1, 4, 4, 4),),
        ((1, 4, 4, 4),),
    ]


def test_options_are_recorded_under_their_choice():
    network = ChoiceBlock(choice_of("a", "one", "three"), convs(one=1, three=3))
    recording = record(network, [torch.empty(1, 3, 8, 8)])
    assert conditions(recording) == [{"a": frozenset({0})}, {"a": frozenset({1})}]
    assert [(use.choice, use.condition) for use in recording.blocks] == [("a", ())]


def test_steps_of_a_depth_run_under_their_own_and_all_later_exits():
    steps = [Conv(3, 3) for _ in range(3)]
    network = DepthBlock(
        choice_of("d", "1", "2", "3", kind="depth"), steps, [Conv(3, 3, kernel=1), None, None]
    )
    recording = record(network, [torch.empty(1, 3, 8, 8)])
    assert [(use.path, set(dict(use.condition)["d"])) for use in recording.ops] == [
        ("steps.0", {0, 1, 2}),
        ("exits.0", {0}),
        ("steps.1", {1, 2}),
        ("steps.2", {2}),
    ]


def test_nested_conditions_name_both_choices():
    inner = ChoiceBlock(choice_of("b", "one", "three"), convs(one=1, three=3))
    outer = ChoiceBlock(choice_of("a", "plain", "rich"), {"plain": nn.Identity(), "rich": inner})
    recording = record(outer, [torch.empty(1, 3, 8, 8)])
    assert conditions(recording) == [
        {"a": frozenset({1}), "b": frozenset({0})},
        {"a": frozenset({1}), "b": frozenset({1})},
    ]
    assert recording.live_choices({"a": 0, "b": 1}) == ["a"]
    assert recording.live_choices({"a": 1, "b": 1}) == ["a", "b"]


def test_a_choice_inside_its_own_option_is_held_to_that_option():
    choice = choice_of("a", "one", "three")
    inner = ChoiceBlock(choice, convs(one=1, three=3))
    outer = ChoiceBlock(choice, {"one": Conv(3, 3), "three": inner})
    recording = record(outer, [torch.empty(1, 3, 8, 8)])
    # The inner "one" would need a = one and a = three at once: it is never run, so it has no row.
    assert [(use.path, dict(use.condition)) for use in recording.ops] == [
        ("options.0", {"a": frozenset({0})}),
        ("options.1.options.1", {"a": frozenset({1})}),
    ]


def test_counts_of_one_architecture():
    choice = choice_of("a", "one", "three")
    network = nn.Sequential(*[ChoiceBlock(choice, convs(one=1, three=3)) for _ in range(2)])
    recording = record(network, [torch.empty(1, 3, 8, 8)])
    assert len(recording.keys()) == 2
    assert recording.count({"a": 0}) == {recording.keys()[0]: 2}
    assert recording.count({}) == {}


def test_a_condition_on_a_choice_left_out_does_not_hold():
    condition = (("a", frozenset({0, 1})),)
    assert holds(condition, {"a": 1})
    assert not holds(condition, {"a": 2})
    assert not holds(condition, {})
    assert holds((), {})


def test_an_op_called_twice_is_two_uses_of_one_key():
    conv = Conv(3, 3)
    recording = record(nn.Sequential(conv, conv), [torch.empty(1, 3, 8, 8)])
    assert len(recording.ops) == 2
    assert len(recording.keys()) == 1


def test_an_op_inside_an_op_is_part_of_it():
    recording = record(Pair(), [torch.empty(1, 3, 8, 8)])
    assert [use.key.spec.kind for use in recording.ops] == ["test.pair"]


def test_ops_of_several_inputs_are_identified_by_all_their_shapes():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = Add()

        def forward(self, x):
            return self.add(x, x, x)

    key = record(Sum(), [torch.empty(1, 3, 8, 8)]).keys()[0]
    assert key.input_shapes == ((1, 3, 8, 8),) * 3


def test_recording_on_meta_computes_nothing_and_the_network_is_left_as_it_was():
    network = nn.Sequential(Conv(3, 3), nn.Sequential(Conv(3, 3).eval()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    record(network, [torch.randn(2, 3, 8, 8)])
    assert [module.training for module in network] == [True, True]
    assert network[1][0].training is False
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert active_recorder() is None
    with torch.device("meta"):
        assert len(record(nn.Sequential(Conv(3, 3)), [torch.empty(1, 3, 8, 8)]).ops) == 1


class Careless(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.add = Add()
        self.call = call

    def forward(self, x):
        return self.call(self.add, x)


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (lambda add, x: add(x, 1.0), "Tensor, float"),
        (lambda add, x: add([x, x]), "list"),
        (lambda add, x: add(x, like=x), "Tensor, like=Tensor"),
    ],
)
def test_an_op_takes_positional_tensors_only(call, kinds):
    with pytest.raises(SpaceError, match=rf"hwnas\.add\(\) at add was called with \({kinds}\)"):
        record(Careless(call), [torch.empty(1, 3)])
    assert active_recorder() is None


def test_recordings_do_not_nest():
    with pytest.raises(SpaceError, match="recordings do not nest"):
        record(Careless(lambda add, x: record(add, [x])), [torch.empty(1, 3)])


def test_options_of_different_shapes_are_refused_with_the_shapes():
    network = ChoiceBlock(choice_of("a", "one", "two"), {"one": Conv(3, 3), "two": Conv(3, 3, stride=2)})
    with pytest.raises(SpaceError) as caught:
        record(network, [torch.empty(1, 3, 8, 8)])
    assert "one: [(1, 3, 8, 8)]\n  two: [(1, 3, 4, 4)]" in str(caught.value)


def test_two_conditions_at_once_intersect_choice_by_choice():
    first = (("a", frozenset({0, 1})), ("c", frozenset({2})))
    second = (("a", frozenset({1, 2})), ("b", frozenset({0})))
    assert both(first, second) == (("a", frozenset({1})), ("b", frozenset({0})), ("c", frozenset({2})))
    assert both(first, ()) == both((), first) == first
    assert both(first, (("c", frozenset({0})),)) is None


class Bare(nn.Module):
    """A convolution, and after it whatever ``compute`` says."""

    def __init__(self, compute):
        super().__init__()
        self.conv = Conv(3, 4)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(4)
        self.compute = compute

    def forward(self, x):
        return self.compute(self, self.conv(x))


@pytest.mark.parametrize(
    ("compute", "function"),
    [
        (lambda net, x: x + x, "add"),
        (lambda net, x: x.mul_(2.0), "mul_"),
        (lambda net, x: net.norm(x), r"\w*batch_norm\w*"),
        (lambda net, x: nn.functional.pad(x, (0, 1)), "constant_pad_nd"),
        (lambda net, x: x.transpose(2, 3).contiguous(), "clone"),
        (lambda net, x: x.half(), "_to_copy"),
        (lambda net, x: torch.cat(x.chunk(2, dim=1)), "cat"),
        (lambda net, x: torch._foreach_mul_([x], 2.0), "_foreach_mul_"),
        (lambda net, x: torch.ones(()).expand(x.shape).clone().add_(x), "add_"),
        (lambda net, x: x[0, :, 1:].mul(3), "mul"),
    ],
)
def test_what_is_computed_outside_of_any_op_is_found(compute, function):
    recording = record(Bare(compute), [torch.empty(1, 3, 8, 6)])
    (found,) = recording.uncharged
    assert re.fullmatch(function, found.function)
    assert len(recording.ops) == 1
    for refused in (recording.charged, recording.keys, lambda: recording.count({})):
        with pytest.raises(
            SpaceError, match=rf"take 0 ms in every prediction:\n.*{function}\nMake an op of it"
        ):
            refused()


@pytest.mark.parametrize(
    "compute",
    [
        lambda net, x: net.dropout(x),
        lambda net, x: x.flatten(1).unflatten(1, (4, -1)),
        lambda net, x: x.chunk(2, dim=1)[0].transpose(2, 3)[..., :2].expand(3, -1, -1, -1),
        lambda net, x: (x, torch.arange(8), torch.full((2, 2), 0.5), torch.zeros_like(x), x.new_ones(3)),
        lambda net, x: (x.contiguous(), x.to(torch.float32), x.detach(), torch.tensor([1.0, 2.0])),
        lambda net, x: x if float(net.norm.running_var[0]) > 0 else x.t(),
        lambda net, x: (
            x,
            torch.stack(torch.meshgrid(torch.arange(8) * 2, torch.arange(6), indexing="ij")),
        ),
        lambda net, x: (x, net.norm.running_var.exp().mul_(torch.zeros_like(x).fill_(2.0)[0, 0, 0, 0])),
    ],
    ids=[
        "dropout",
        "reshaping",
        "views",
        "constants",
        "nothing to do",
        "a statistic read",
        "folded",
        "parameters",
    ],
)
def test_what_computes_nothing_needs_no_op(compute):
    recording = record(Bare(compute), [torch.empty(1, 3, 8, 6)])
    assert recording.uncharged == []
    assert len(recording.charged()) == 1


def test_where_it_is_computed_is_said_each_place_once():
    class Twice(nn.Module):
        def forward(self, x):
            return x * 2.0 * 3.0

    network = nn.Sequential(
        ChoiceBlock(choice_of("a", "plain", "twice"), {"plain": nn.Identity(), "twice": Twice()}), nn.ReLU()
    )
    found = record(network, [torch.empty(1, 3, 8, 8)]).uncharged
    assert [str(each) for each in found] == [
        '0.options.1 (Twice): mul, under the choice "a"',
        "1 (ReLU): relu",
    ]


def test_what_the_network_itself_computes_is_of_the_network():
    network = Conv(3, 3)
    network.register_forward_pre_hook(lambda module, args: (args[0] - 0.5,))
    assert [str(each) for each in record(network, [torch.empty(1, 3, 8, 8)]).uncharged] == ["Conv: sub"]


@register_op("test.flat")
class Flat(Op):
    """Copies what does not lie in memory in order."""

    def forward(self, x):
        return x.flatten(1).relu()


def test_the_work_of_an_op_does_not_go_by_the_order_of_memory():
    x = torch.empty(1, 3, 8, 6)
    for given in (x, x.to(memory_format=torch.channels_last), torch.empty(1, 3, 6, 8).transpose(2, 3)):
        assert record(Flat(), [given]).ops[0].work == ("relu(1x144)",)


def test_an_op_is_recorded_with_what_it_has_torch_compute():
    convolution, norm, relu = record(Conv(3, 4), [torch.empty(1, 3, 8, 6)]).ops[0].work
    assert convolution.startswith("convolution(1x3x8x6, 4x3x3x3, 1, 1, 1, 1, 1, 1, ")
    assert "batch_norm" in norm
    assert relu == "relu(1x4x8x6)"
