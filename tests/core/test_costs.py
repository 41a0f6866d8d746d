import itertools
import math
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas import Add, Choice, ChoiceBlock, Conv, PoolLinear, Resize, record
from hwnas.core.costs import (
    MEBIBYTE,
    activation_mib,
    any_of,
    macs,
    op_activations,
    op_macs,
    parameters,
    peak,
)
from hwnas.errors import SpaceError
from hwnas.ops import OpKey
from hwnas.record import holds
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain

from .nets import SPACES, Small, all_assignments, block, depth


class SharedNet(nn.Module):
    """One convolution that runs where either of two choices says so, one in both arms of a third, a bare
    parameter, and a parameter of two owners."""

    def __init__(self):
        super().__init__()
        self.bare = nn.Parameter(torch.zeros(3, 1, 1))
        self.stem = Conv(3, 4)
        options = {"skip": nn.Identity(), "shared": Conv(4, 4)}
        self.left, self.right = (
            ChoiceBlock(Choice(name=name, options=tuple(options)), options) for name in ("left", "right")
        )
        both = Conv(4, 4, kernel=5)
        self.arms = ChoiceBlock(
            Choice(name="arms", options=("once", "twice")), {"once": both, "twice": nn.Sequential(both, both)}
        )
        first, second = Conv(4, 4), Conv(4, 4)
        second.conv.weight = first.conv.weight
        self.cells = depth("cells", [block("op"), first, nn.Sequential(second, block("op"))])
        self.head = PoolLinear(4, 2)
        self.add = Add()

    def forward(self, x):
        x = self.arms(self.right(self.left(self.stem(self.add(x, self.bare)))))
        return self.head(self.cells(x))


class Shared(Small):
    name: ClassVar[str] = "shared"

    def supernet(self):
        return SharedNet()


TINY_AUTORTNET = AutoRTNet(
    cells=(1, 2, 2), init_channels=1, channel_multiplier=2, stem_channels=(2, 2), aggregation_width=2,
    head_width=4, head_dilations=(2,), height=32, width=64,
)  # fmt: skip


def networks(space):
    """All networks of a small space, some of a larger one."""
    if math.prod(len(choice.options) for choice in space.choices().values()) < 3000:
        return list(all_assignments(space))
    generator = torch.Generator().manual_seed(0)
    return [space.random_assignment(generator) for _ in range(20)]


ALL = [*SPACES, Shared(), Chain(size=8, channels=4, depth=2), TINY_AUTORTNET]


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_parameters_are_those_of_the_derived_network(space):
    cost = parameters(space, list(space.choices().values()))
    supernet = space.skeleton()
    for assignment in networks(space):
        network = space.build(space.genotype(assignment), supernet)
        assert cost.at(assignment) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_macs_are_those_of_the_derived_network(space):
    cost = macs(space, list(space.choices().values()))
    supernet = space.skeleton()
    x = torch.empty(1, *space.input_shape(), device="meta")
    for assignment in networks(space)[:40]:
        network = space.build(space.genotype(assignment), supernet).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x)
        assert cost.at(assignment) == counter.get_total_flops() / 2


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_the_peak_is_that_of_the_ops_that_the_derived_network_runs(space):
    uses = activation_mib(space.record())
    supernet = space.skeleton()
    x = torch.empty(1, *space.input_shape(), device="meta")
    for assignment in networks(space)[:40]:
        network = space.build(space.genotype(assignment), supernet)
        largest = max(op_activations(use.key) for use in record(network, [x]).ops)
        assert peak(uses, assignment) == largest * 4 / MEBIBYTE


def key_of(op, *shapes):
    return OpKey(spec=op.spec, input_shapes=shapes)


def test_numbers_worked_by_hand():
    # 3·3 taps · 3 inputs · 8 outputs · 5·6 positions (stride 2 of 10 × 12)
    assert op_macs(key_of(Conv(3, 8, stride=2), (1, 3, 10, 12))) == 9 * 3 * 8 * 5 * 6
    # Depthwise: one input for each output.
    assert op_macs(key_of(Conv(8, 8, groups=8), (1, 8, 5, 6))) == 9 * 8 * 5 * 6
    assert op_macs(key_of(PoolLinear(8, 3), (1, 8, 5, 6))) == 8 * 3
    assert op_macs(key_of(Add(), (1, 4, 5, 6), (1, 4, 5, 6))) == 0
    assert op_activations(key_of(Conv(3, 8, stride=2), (1, 3, 10, 12))) == 3 * 10 * 12 + 8 * 5 * 6
    assert op_activations(key_of(Add(), (1, 4, 5, 6), (1, 4, 5, 6))) == 3 * 4 * 5 * 6
    # Of the second input only the shape is read.
    resize = key_of(Resize(), (1, 4, 5, 6), (1, 3, 10, 12))
    assert op_activations(resize) == 4 * 5 * 6 + 4 * 10 * 12


def test_half_precision_takes_half_the_memory():
    space = SPACES[0]
    whole, half = activation_mib(space.record()), activation_mib(space.record(), bytes_per_value=2)
    assert [2 * mib for _, mib in half] == [mib for _, mib in whole]


CONDITIONS = [
    (),
    (("a", frozenset({0})),),
    (("a", frozenset({0, 1})),),
    (("a", frozenset({1})), ("b", frozenset({0}))),
    (("b", frozenset({1, 2})),),
    (("b", frozenset({2})), ("c", frozenset({0, 2}))),
    (("a", frozenset({2})), ("b", frozenset({0})), ("c", frozenset({1}))),
]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_at_least_one_of_several_conditions_as_a_signed_sum(count):
    for conditions in itertools.combinations(CONDITIONS, count):
        signed = any_of(conditions)
        for values in itertools.product(range(3), repeat=3):
            assignment = dict(zip("abc", values, strict=True))
            total = sum(sign for condition, sign in signed if holds(condition, assignment))
            assert total == any(holds(condition, assignment) for condition in conditions)


def test_what_is_implied_adds_no_term():
    # Cells one behind the other: the first of them decides.
    reached = [(("d", frozenset(range(n, 9))),) for n in range(9)]
    assert any_of(reached) == [(reached[0], 1)]


def test_too_many_overlaps_are_refused_in_words():
    conditions = [((f"c{n:02}", frozenset({0})),) for n in range(20)]
    with pytest.raises(SpaceError, match=r"under 20 conditions.*leave max_params out"):
        any_of(conditions)
