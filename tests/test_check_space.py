"""The conformance suite for search spaces finds what is wrong, and says it."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from hwnas import Choice, ChoiceBlock, Conv, Op, PoolLinear, SearchSpace, register_op
from hwnas.testing import check_space


@register_op("test.liar")
class Liar(Op):
    """Does not tell its attributes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(factor=2.0 * factor)

    def forward(self, x):
        return x


@register_op("test.forgetful")
class Forgetful(Op):
    """Leaves out of its spec what its shapes depend on."""

    def __init__(self, c_in: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, 4, 1)

    def forward(self, x):
        return self.conv(x)


@register_op("test.hiding")
class Hiding(Op):
    """Leaves out of its spec what its time depends on."""

    def __init__(self, dilation: int = 1, repeat: int = 1) -> None:
        super().__init__()
        layers = [nn.Conv2d(4, 4, 3, padding=dilation, dilation=dilation) for _ in range(repeat)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


@register_op("test.unspoken")
class Unspoken(Op):
    """Leaves out of its spec what it cannot be built without."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.conv(x)


@register_op("test.keeping")
class Keeping(Op):
    """Keeps from its first call what goes by shapes alone."""

    kept: torch.Tensor | None = None

    def forward(self, x):
        if self.kept is None or self.kept.shape != x.shape or self.kept.device != x.device:
            self.kept = torch.ones_like(x) * 2
        return x * self.kept


class Residual(nn.Module):
    """Adds without an op."""

    def __init__(self):
        super().__init__()
        self.block = either(x=Conv(4, 4), y=Conv(4, 4, kernel=1))

    def forward(self, x):
        return x + self.block(x)


class Late(nn.Module):
    """Adds without an op in the derived network alone."""

    def __init__(self):
        super().__init__()
        self.block = either(x=Conv(3, 4), y=Conv(3, 4, kernel=1))

    def forward(self, x):
        x = self.block(x)
        return x if isinstance(self.block, ChoiceBlock) else x + 0.0


def either(**options):
    return ChoiceBlock(Choice(name="a", options=tuple(options)), options)


class Space(SearchSpace):
    """Whatever its ``what`` says is wrong with it."""

    name: ClassVar[str] = "wrong"
    what: str

    def input_shape(self):
        return (3, 8, 8)

    def supernet(self):
        return WRONG[self.what]()


class Sneaky(nn.Module):
    """Looks at a decision that is none of its business."""

    def __init__(self):
        super().__init__()
        self.block = either(x=Conv(3, 4), y=Conv(3, 4, kernel=1))
        self.heads = nn.ModuleList([PoolLinear(4, 2), PoolLinear(4, 2)])

    def forward(self, x):
        known = getattr(self.block, "_assignment", None)
        return self.heads[0 if known is None else 1](self.block(x))


class Picky(nn.Module):
    """Works for even sizes alone."""

    def __init__(self):
        super().__init__()
        self.block = either(x=Conv(3, 4), y=Conv(3, 4, kernel=1))

    def forward(self, x):
        height = x.shape[2]
        return self.block(x).unflatten(2, (height // 2, 2)).flatten(2, 3)


class Extra(nn.Module):
    """Runs one op more in the derived network than in the supernet's recording."""

    def __init__(self):
        super().__init__()
        self.block = either(x=Conv(3, 4), y=Conv(3, 4, kernel=1))
        self.more = Conv(4, 4)

    def forward(self, x):
        x = self.block(x)
        return x if isinstance(self.block, ChoiceBlock) else x + 0.0 * self.more(x)


WRONG = {
    "nothing": lambda: nn.Sequential(Conv(3, 4), either(x=Conv(4, 4), y=nn.Identity()), PoolLinear(4, 2)),
    "no op": lambda: either(x=nn.Identity(), y=nn.ReLU()),
    "liar": lambda: nn.Sequential(either(x=Liar(), y=nn.Identity())),
    "forgetful": lambda: nn.Sequential(Conv(3, 5), either(x=Forgetful(5), y=Conv(5, 4))),
    "sneaky": Sneaky,
    "picky": Picky,
    "extra": Extra,
    "residual": lambda: nn.Sequential(Conv(3, 4), Residual()),
    "late": Late,
    "activation": lambda: nn.Sequential(Conv(3, 4), either(x=Conv(4, 4), y=nn.Hardswish())),
    "keeping": lambda: nn.Sequential(
        *[Keeping()] * 2, Conv(3, 4), either(x=Conv(4, 4), y=Conv(4, 4, kernel=1))
    ),
    "two of one key": lambda: nn.Sequential(Conv(3, 4), either(x=Hiding(), y=Hiding(repeat=2))),
    "one of another key": lambda: nn.Sequential(Conv(3, 4), either(x=Hiding(dilation=2), y=Conv(4, 4))),
    "unspoken": lambda: nn.Sequential(Conv(3, 4), either(x=Unspoken(3), y=Unspoken(1))),
}


@pytest.mark.parametrize("what", ["nothing", "keeping"])
def test_nothing_wrong(what):
    check_space(Space(what=what))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no op", "Space calls no op"),
        ("liar", r"test\.liar\(factor=2\.0\) gives test\.liar\(factor=4\.0\) when it is built again"),
        ("forgetful", r"test\.forgetful\(\) @ 1x5x8x8, built alone from its spec, fails on these shapes"),
        ("sneaky", "the derived network's output differs from the supernet's by"),
        ("picky", r"does not run at the odd size \(1, 3, 11, 13\)"),
        ("residual", r"outside of any op(.|\n)*1 \(Residual\): add\nMake an op of it"),
        ("late", r"outside of any op(.|\n)*Late: add\n"),
        ("activation", r'1\.options\.1 \(Hardswish\): hardswish, under the choice "a"'),
        (
            "two of one key",
            r"Hiding at 1\.options\.1 computes convolution\(.*\) where another with the same key, built from "
            r"its spec, computes nothing; both would have the one row of test\.hiding\(\) @ 1x4x8x8",
        ),
        (
            "one of another key",
            r"Hiding at 1\.options\.0 computes convolution\(.* 2, 2, 2, 2.*\) where another",
        ),
        ("unspoken", r"test\.unspoken\(\) does not fit the constructor of Unspoken"),
        ("extra", r"runs other ops than(.|\n)*run, not charged: 1 × hwnas\.conv"),
    ],
)
def test_what_is_wrong_is_said(what, says):
    with pytest.raises(AssertionError, match=says):
        check_space(Space(what=what))


def test_the_random_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_space(Space(what="nothing"))
    assert torch.equal(torch.rand(1), expected)
