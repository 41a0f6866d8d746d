import copy
import itertools
import math
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import nn

from hwnas import (
    ArchParameters,
    BlindChoiceWarning,
    Choice,
    ChoiceBlock,
    Conv,
    DepthBlock,
    Op,
    PoolLinear,
    SearchConfig,
    SearchData,
    assigned,
    register_op,
    search,
)
from hwnas.core.relaxation import Draw, ExponentialSchedule, GumbelSoftmax, Softmax
from hwnas.core.score import ScoreFunction

from .nets import ChoiceInDepth, Planted, Scale, planted_batches, table_of

CHOICES = [
    Choice(name="op", options=("a", "b")),
    Choice(name="depth", options=("1", "2", "3"), kind="depth"),
]


@register_op("test.normed")
class Normed(Op):
    """A batch norm, and a bias."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(4, affine=False)

    def forward(self, x):
        return self.norm(x) + self.bias


class BlindNet(nn.Module):
    """Two steps give the right sign; what reads the depth's output takes all scale out of it."""

    def __init__(self):
        super().__init__()
        depth = Choice(name="cells", options=("1", "2", "3"), kind="depth")
        self.cells = DepthBlock(depth, [Scale(-1.0), Scale(-1.0), Scale(-1.0)])
        self.norm = Normed()

    def forward(self, x):
        return self.norm(self.cells(x))


class Blind(Planted):
    name: ClassVar[str] = "blind"

    def supernet(self):
        return BlindNet()


def one_hot(index, width=3):
    weights = torch.zeros(len(index), width)
    weights[torch.arange(len(index)), torch.tensor(index)] = 1.0
    return Draw(weights, tuple(index))


def test_straight_through_is_blind_where_scale_does_not_matter():
    """The reason for all this: hyper-cells end in batch norms, so hard depths felt the penalty only."""
    net = BlindNet().train()
    arch = ArchParameters(net)
    x, y = planted_batches(1)[0]
    for index in range(3):
        weights = one_hot((index,)).weights.requires_grad_()
        with assigned(net, arch, Draw(weights, (index,))):
            Blind().loss(net(x), y).backward()
        assert float(weights.grad.abs().max()) < 1e-4


@pytest.mark.parametrize("kinds", [("depth",), ()], ids=["score", "straight-through"])
def test_a_planted_depth_behind_a_batch_norm_is_found_by_the_score_function_only(kinds):
    config = SearchConfig(
        device="cpu",
        epochs=12,
        arch_lr=0.1,
        score_kinds=kinds,
        relaxation=GumbelSoftmax(tau=ExponentialSchedule(start=2.0, end=0.3)),
        penalty={"form": "linear", "weight": 0.05},
    )
    said = nullcontext() if kinds else pytest.warns(BlindChoiceWarning, match="no gradient to cells")
    with said:
        result = search(Blind(), table_of(Blind(), lambda key: 1.0), SearchData(planted_batches()), config)
    assert result.genotype.choices == {"cells": "2" if kinds else "1"}


def test_the_gradient_is_the_advantage_times_that_of_log_p():
    arch = ArchParameters(CHOICES)
    score = ScoreFunction(arch, ("depth",), decay=0.5)
    draw = one_hot((0, 1))
    assert float(score.term(2.0, draw).detach()) == 0.0  # no baseline yet, no advantage
    value = score.term(5.0, draw)  # the baseline is 2
    assert float(value.detach()) == 0.0
    value.backward()
    third = 1 / 3
    expected = torch.tensor([[-third, 1 - third, -third]]) * (5.0 - 2.0)
    torch.testing.assert_close(arch.matrices["depth"].grad, expected)
    assert not arch.matrices["op"].grad.any()  # not of these kinds
    # Sums 0.5·2 = 1 and 0.5·1 + 0.5·5 = 3, weights 0.5 and 0.75: the mean is 4.
    state = score.state_dict()
    assert (state["sum"], state["weight"]) == (3.0, 0.75)
    # The second loss lay 3 above what was expected: a fifth of that is its depth's effect, seen again.
    assert state["effects"].tolist() == [[0.0, 0.0, 0.0], [0.0, pytest.approx(0.6), 0.0]]


def test_it_is_unbiased():
    """Brute force: over all options, Σ p · term's gradient is the gradient of Σ p · loss."""
    losses = [0.3, 1.7, 0.9]
    arch = ArchParameters(CHOICES[1:])
    with torch.no_grad():
        arch.matrices["depth"].copy_(torch.tensor([[0.2, -0.4, 0.7]]))
    probabilities = arch.probabilities()
    exact = torch.autograd.grad((probabilities[0] * torch.tensor(losses)).sum(), arch.matrices["depth"])[0]
    mean = torch.zeros(1, 3)
    for index, loss in enumerate(losses):
        score = ScoreFunction(arch, ("depth",))
        effects = torch.tensor([[0.5, -0.3, 0.1]], dtype=torch.float64)
        score.load_state_dict({"sum": 0.95, "weight": 1.0, "effects": effects})
        gradient = torch.autograd.grad(score.term(loss, one_hot((index,))), arch.matrices["depth"])[0]
        mean += float(probabilities[0, index].detach()) * gradient
    torch.testing.assert_close(mean, exact)


def test_dead_options_get_no_gradient():
    arch = ArchParameters(CHOICES[1:])
    arch.alive[0, 2] = False
    score = ScoreFunction(arch, ("depth",))
    score.term(1.0, one_hot((0,)))
    score.term(3.0, one_hot((0,))).backward()
    torch.testing.assert_close(arch.matrices["depth"].grad, torch.tensor([[1.0, -1.0, 0.0]]))


def test_the_network_sees_no_straight_through_gradient_of_these_choices():
    arch = ArchParameters(CHOICES)
    draw = arch.draw(GumbelSoftmax(), 1.0, torch.Generator().manual_seed(0))
    seen = ScoreFunction(arch, ("depth",)).seen_by_network(draw)
    assert torch.equal(seen.weights, draw.weights)
    (seen.weights * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert arch.matrices["op"].grad.any()
    assert not arch.matrices["depth"].grad.any()


@pytest.mark.parametrize("kinds", [("depth",), ()])
def test_a_soft_mixture_keeps_its_own_gradient(kinds):
    arch = ArchParameters(CHOICES)
    score = ScoreFunction(arch, kinds)
    draw = arch.draw(Softmax(), 1.0)
    assert score.seen_by_network(draw) is draw
    assert not score.term(1.0, draw).requires_grad


def test_a_loss_that_is_not_finite_leaves_the_baseline_alone():
    arch = ArchParameters(CHOICES)
    score = ScoreFunction(arch, ("depth",))
    score.term(1.0, one_hot((0, 0)))
    before = {name: copy.copy(value) for name, value in score.state_dict().items()}
    score.term(math.nan, one_hot((0, 0)))
    assert all(
        torch.equal(*map(torch.as_tensor, (score.state_dict()[name], before[name]))) for name in before
    )


def test_straight_through_cannot_tell_something_from_nothing():
    """Edges that are added up before a batch norm: their derivatives are there, and sum to zero."""
    torch.manual_seed(0)
    edges = [
        ChoiceBlock(Choice(name=name, options=("conv", "skip")), {"conv": Conv(3, 3), "skip": nn.Identity()})
        for name in ("left", "right")
    ]
    net = nn.ModuleList([*edges, Conv(3, 4), PoolLinear(4, 2)]).train()
    arch = ArchParameters(net)
    weights = one_hot((0, 1), width=2).weights.requires_grad_()
    x = torch.randn(8, 3, 6, 6)
    with assigned(net, arch, Draw(weights, (0, 1))):
        logits = net[3](net[2](net[0](x) + net[1](x)))
    nn.functional.cross_entropy(logits, torch.arange(8) % 2).backward()
    left, right = float(weights.grad[0, 0]), float(weights.grad[1, 1])
    assert abs(left) > 1e-4
    assert abs(left + right) < 0.05 * abs(left)


def gradients(score, arch, losses, probabilities):
    """The gradient of each draw of both choices, and how likely the draw is."""
    for index in itertools.product(range(2), range(3)):
        fresh = ScoreFunction(arch, ("op", "depth"))
        fresh.load_state_dict(score.state_dict())
        arch.zero_grad()
        fresh.term(losses[index], one_hot(index)).backward()
        grad = torch.cat([matrix.grad for matrix in arch.matrices.values()])
        yield grad, float(probabilities[0, index[0]] * probabilities[1, index[1]])


def test_the_effects_of_other_choices_are_taken_off_without_bias():
    """Brute force over all draws of two choices: the same mean gradient, and far less variance."""
    effect = {0: (0.0, 1.0), 1: (0.0, 2.0, -3.0)}
    losses = {(i, j): 5.0 + effect[0][i] + effect[1][j] for i in range(2) for j in range(3)}
    arch = ArchParameters(CHOICES)
    arch.set_logits({"op": [0.3, -0.2], "depth": [0.1, 0.5, -0.4]})
    p = arch.probabilities().detach()
    logits = [matrix.detach().clone().requires_grad_() for matrix in arch.matrices.values()]
    soft = [torch.softmax(logits[0][0, :2], 0), torch.softmax(logits[1][0], 0)]
    mean = sum(soft[0][i] * soft[1][j] * loss for (i, j), loss in losses.items())
    exact = torch.cat(torch.autograd.grad(mean, logits))

    variances = {}
    for name, known in (("plain", 0.0), ("effects", 1.0)):
        score = ScoreFunction(arch, ("op", "depth"))
        effects = torch.tensor([[*effect[0], 0.0], [*effect[1]]], dtype=torch.float64) * known
        score.load_state_dict({"sum": 5.0, "weight": 1.0, "effects": effects})
        found = list(gradients(score, arch, losses, p))
        expected = sum(weight * grad for grad, weight in found)
        torch.testing.assert_close(expected[0, :2], exact[0, :2])
        torch.testing.assert_close(expected[1], exact[1])
        variances[name] = sum(weight * float((grad - expected)[0].square().sum()) for grad, weight in found)
    # The op's gradient no longer feels which depth was drawn, whose effect is several times its own.
    assert variances["effects"] < 0.1 * variances["plain"]


def test_effects_are_learnt_on_the_way():
    effect = {"op": (0.0, 1.0), "depth": (0.0, 2.0, -3.0)}
    arch = ArchParameters(CHOICES)
    score = ScoreFunction(arch, ("op", "depth"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        draw = arch.draw(GumbelSoftmax(), 1.0, generator)
        score.term(5.0 + effect["op"][draw.index[0]] + effect["depth"][draw.index[1]], draw)
    found = score.state_dict()["effects"]
    # Only differences between options mean anything.
    assert float(found[0, 1] - found[0, 0]) == pytest.approx(1.0, abs=0.15)
    assert float(found[1, 1] - found[1, 0]) == pytest.approx(2.0, abs=0.15)
    assert float(found[1, 2] - found[1, 0]) == pytest.approx(-3.0, abs=0.15)


def test_a_choice_that_is_cut_away_learns_nothing():
    space = ChoiceInDepth()
    arch = ArchParameters(space.supernet())
    score = ScoreFunction(arch, ("op", "depth"), space.record())
    score.load_state_dict(
        {"sum": 1.0, "weight": 1.0, "effects": torch.zeros(arch.alive.shape, dtype=torch.float64)}
    )
    # One cell: a and the depth matter, b and c do not.
    score.term(3.0, arch.one_hot({"d": 0})).backward()
    moved = {
        choice.name for choice in arch.choices
        if torch.cat([matrix.grad for matrix in arch.matrices.values()])[arch.rows[choice.name]].any()
    }  # fmt: skip
    assert moved == {"d", "a"}
