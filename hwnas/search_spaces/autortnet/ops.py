"""The candidate ops of AutoRTNet's cells (ten) and of its aggregation cell (five).

Ops that convolve are convolution, batch norm, ReLU in this order, which every runtime fuses. The stride sits
on the first convolution of a repeat. Every strided op gives ``ceil(n / 2)``, so that odd sizes agree.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas import Op, register_op


@register_op("autortnet.times_zero")
class Zero(Op):
    """Nothing: the input times zero, ``(N, C, H, W) → (N, C, ceil(H/stride), ceil(W/stride))``, as in DARTS.

    Times zero, not fresh zeros: a compiler folds constants, and with them all that is computed from nothing
    else. A network is then no sum of its ops, by a factor of up to a hundred. This way a zero
    edge is executed everywhere, and has a latency row like any other op.
    """

    def __init__(self, stride: int) -> None:
        super().__init__(stride=stride)
        self.stride = stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Zeros, for any finite input."""
        return x_NCHW[:, :, :: self.stride, :: self.stride] * 0.0


@register_op("autortnet.reduce_skip")
class ReduceSkip(Op):
    """A skip connection of stride 2: DARTS's factorised reduction, two 1×1 convolutions on shifted grids.

    ``(N, C, H, W) → (N, C, ceil(H/2), ceil(W/2))``; the second grid is padded at the far edges, so odd sizes
    work. A skip of stride 1 is ``nn.Identity``: it executes nothing and has no row.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels=channels)
        self.even = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels, channels - channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Halve height and width."""
        shifted = functional.pad(x_NCHW, (0, 1, 0, 1))[:, :, 1:, 1:]
        normed: Tensor = self.norm(torch.cat([self.even(x_NCHW), self.odd(shifted)], dim=1))
        return normed


@register_op("autortnet.max_pool")
class MaxPool(Op):
    """3×3 max-pooling and a batch norm."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels=channels, stride=stride)
        self.pool = nn.MaxPool2d(3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Pool, then normalise."""
        normed: Tensor = self.norm(self.pool(x_NCHW))
        return normed


@register_op("autortnet.conv")
class PlainConv(Op):
    """``repeat`` times convolution, batch norm, ReLU."""

    def __init__(self, channels: int, *, kernel: int = 3, stride: int = 1, repeat: int = 1) -> None:
        super().__init__(channels=channels, kernel=kernel, stride=stride, repeat=repeat)
        layers: list[nn.Module] = []
        for step in (stride, *[1] * (repeat - 1)):
            layers += [
                nn.Conv2d(channels, channels, kernel, step, kernel // 2, bias=False),
                nn.BatchNorm2d(channels, affine=False),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Apply all layers."""
        result: Tensor = self.layers(x_NCHW)
        return result


@register_op("autortnet.sep_conv")
class SepConv(Op):
    """``repeat`` times depthwise 3×3 (dilated or not), pointwise 1×1, batch norm, ReLU."""

    def __init__(self, channels: int, *, stride: int = 1, dilation: int = 1, repeat: int = 1) -> None:
        super().__init__(channels=channels, stride=stride, dilation=dilation, repeat=repeat)
        layers: list[nn.Module] = []
        for step in (stride, *[1] * (repeat - 1)):
            layers += [
                nn.Conv2d(channels, channels, 3, step, dilation, dilation, groups=channels, bias=False),
                nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=False),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Apply all layers."""
        result: Tensor = self.layers(x_NCHW)
        return result


CELL_OPS: dict[str, Callable[[int, int], nn.Module]] = {
    "zero": lambda channels, stride: Zero(stride),
    "skip": lambda channels, stride: nn.Identity() if stride == 1 else ReduceSkip(channels),
    "max_pool_3x3": lambda channels, stride: MaxPool(channels, stride),
    "conv_3x3": lambda channels, stride: PlainConv(channels, stride=stride),
    "conv_3x3_x2": lambda channels, stride: PlainConv(channels, stride=stride, repeat=2),
    "sep_conv_3x3": lambda channels, stride: SepConv(channels, stride=stride),
    "sep_conv_3x3_x2": lambda channels, stride: SepConv(channels, stride=stride, repeat=2),
    "dil_sep_conv_3x3_d2": lambda channels, stride: SepConv(channels, stride=stride, dilation=2),
    "dil_sep_conv_3x3_d4": lambda channels, stride: SepConv(channels, stride=stride, dilation=4),
    "dil_sep_conv_3x3_d2_x2": lambda channels, stride: SepConv(channels, stride=stride, dilation=2, repeat=2),
}
"""The ten ops of a cell's edge (Section 3.1), by option name: ``(channels, stride) → module``."""

AGGREGATION_OPS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv_1x1_x2": lambda channels, stride: PlainConv(channels, kernel=1, stride=stride, repeat=2),
    "conv_3x3_x2": lambda channels, stride: PlainConv(channels, stride=stride, repeat=2),
    "dil_sep_conv_3x3_d2_x2": lambda channels, stride: SepConv(channels, stride=stride, dilation=2, repeat=2),
    "dil_sep_conv_3x3_d4_x2": lambda channels, stride: SepConv(channels, stride=stride, dilation=4, repeat=2),
    "dil_sep_conv_3x3_d8_x2": lambda channels, stride: SepConv(channels, stride=stride, dilation=8, repeat=2),
}
"""The five ops of an aggregation edge (Section 3.3), by option name: ``(channels, stride) → module``."""
