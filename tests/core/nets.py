"""Small nested spaces, their networks and a fake table: what the core's tests run on."""

import itertools
from typing import ClassVar

import torch
from torch import nn

from hwnas import (
    Add,
    Choice,
    ChoiceBlock,
    Conv,
    DepthBlock,
    InputBlock,
    Op,
    PoolLinear,
    SearchSpace,
    register_op,
)
from hwnas.latency.fake import fake_table


@register_op("test.scale")
class Scale(Op):
    """Times a number, so that outputs tell which options ran."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor=factor)
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Small(SearchSpace):
    """Base of the test spaces: classify 3-channel images of 6x5."""

    name: ClassVar[str] = "small"

    def input_shape(self):
        return (3, 6, 5)


def ops_choice(name, channels=4, kernels=(1, 3)):
    return Choice(name=name, options=tuple(f"k{k}" for k in kernels)), {
        f"k{k}": Conv(channels, channels, kernel=k) for k in kernels
    }


def block(name, **kwargs):
    return ChoiceBlock(*ops_choice(name, **kwargs))


def depth(name, steps, exits=None):
    options = tuple(str(n + 1) for n in range(len(steps)))
    return DepthBlock(Choice(name=name, options=options, kind="depth"), steps, exits)


class ChoiceInDepth(Small):
    """Three cells, each with a choice of its own and the last one also sharing the first's."""

    name: ClassVar[str] = "choice_in_depth"

    def supernet(self):
        steps = [block("a"), block("b"), nn.Sequential(block("c"), block("a"))]
        exits = [None, Conv(4, 4, kernel=1), None]
        return nn.Sequential(Conv(3, 4), depth("d", steps, exits), PoolLinear(4, 2))


class SharedChain(Small):
    """One choice decides two blocks in a row."""

    name: ClassVar[str] = "shared_chain"

    def supernet(self):
        return nn.Sequential(Conv(3, 4), block("a"), block("a"), PoolLinear(4, 2))


class ChoiceInChoice(Small):
    """An option that itself has choices and a depth; the outer choice comes again inside."""

    name: ClassVar[str] = "choice_in_choice"

    def supernet(self):
        outer = Choice(name="outer", options=("plain", "rich"))
        inside = ChoiceBlock(outer, {"plain": Conv(4, 4), "rich": Conv(4, 4, kernel=1)})
        rich = nn.Sequential(block("inner", kernels=(1, 3, 5)), depth("d", [block("e"), inside]))
        return nn.Sequential(
            Conv(3, 4), ChoiceBlock(outer, {"plain": nn.Identity(), "rich": rich}), PoolLinear(4, 2)
        )


class WithInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Conv(3, 4)
        self.left, self.right = block("a"), Conv(4, 4, kernel=1)
        self.which = InputBlock(Choice(name="in", options=("left", "right", "stem"), kind="input"))
        # The same module under two names: it must be folded, and kept shared, under both.
        self.again = self.left
        self.head = PoolLinear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.again(self.which(self.left(x), self.right(x), x)))


class Inputs(Small):
    """A choice between three inputs, and a block that is called twice."""

    name: ClassVar[str] = "inputs"

    def supernet(self):
        return WithInput()


class TupleStep(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.add = Add()

    def forward(self, older, younger):
        return younger, self.add(self.inner(older), younger)


class Newest(nn.Module):
    def forward(self, older, younger):
        return younger


class Tuples(Small):
    """A depth whose state is a pair, as in a hyper-cell, with exits that take the newer one."""

    name: ClassVar[str] = "tuples"

    def supernet(self):
        steps = [TupleStep(block("a")), TupleStep(block("b")), TupleStep(block("a"))]
        cells = depth("d", steps, [Newest() for _ in steps])
        class_head = PoolLinear(4, 2)
        return nn.Sequential(Conv(3, 4), SplitThen(cells), class_head)


class SplitThen(nn.Module):
    def __init__(self, cells):
        super().__init__()
        self.cells = cells

    def forward(self, x):
        return self.cells(x, x)


SPACES = [ChoiceInDepth(), SharedChain(), ChoiceInChoice(), Inputs(), Tuples()]


def table_of(space, formula=None):
    """A fake table of ``space``; by default every key has another prime-like number of milliseconds."""
    keys = space.record().keys()
    ms = {key: 0.1 + 0.37 * n for n, key in enumerate(keys)}
    return fake_table(keys, formula or ms.__getitem__, input_shape=space.input_shape())


def all_assignments(space):
    """Every assignment of all choices, also those that differ only where it cannot matter."""
    choices = space.choices()
    for values in itertools.product(*(range(len(choice.options)) for choice in choices.values())):
        yield dict(zip(choices, values, strict=True))


def with_statistics(net, *shape):
    """``net`` with running statistics that are not the initial ones, so that eval mode tells BNs apart."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return net


@register_op("test.side_by_side")
class SideBySide(Op):
    """Two guesses side by side, with a bias."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, first, second):
        return torch.stack([first, second]) + self.bias


class PlantedNet(nn.Module):
    """Two guesses at the sign of x, one by each choice, side by side."""

    def __init__(self):
        super().__init__()
        factor = Choice(name="factor", options=("zero", "one", "one_slow", "minus"))
        values = {"zero": Scale(0.0), "one": Scale(1.0), "one_slow": SlowScale(1.0), "minus": Scale(-1.0)}
        self.factor = ChoiceBlock(factor, values)
        self.cells = depth("cells", [Scale(-1.0), Scale(-1.0), Scale(-1.0)])
        self.together = SideBySide()

    def forward(self, x):
        return self.together(self.factor(x), self.cells(x))


@register_op("test.slow_scale")
class SlowScale(Scale):
    """The same function as Scale, under a key of its own."""


class Planted(Small):
    """Both guesses are right with a factor of one, fast or slow, and with two cells: the sign turns twice.

    (The weights' only parameter, a bias, cannot help: the signs are balanced.)
    """

    name: ClassVar[str] = "planted"

    def input_shape(self):
        return (4,)

    def supernet(self):
        return PlantedNet()

    def loss(self, outputs, targets):
        return torch.nn.functional.softplus(-2.0 * outputs * targets).mean()


def planted_batches(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(8, 4, generator=generator).sign() for _ in range(n)]
    return [(x, x) for x in xs]


def planted_table():
    """Scaling takes 1 ms, slowly 5 ms, and putting both guesses side by side none."""
    ms = {"test.scale": 1.0, "test.slow_scale": 5.0, "test.side_by_side": 0.0}
    return table_of(Planted(), lambda key: ms[key.spec.kind])


def images(n=3, bad=()):
    """Batches of four random images of 3×8×8, one of each of four classes; NaN in the batches named."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for step in range(n):
        x = torch.randn(4, 3, 8, 8, generator=generator)
        if step in bad:
            x[0, 0, 0, 0] = float("nan")
        batches.append((x, torch.tensor([0, 1, 2, 3])))
    return batches
