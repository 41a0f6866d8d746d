"""Ops that most spaces need: the fused convolution, and the glue between candidate ops.

Every strided op halves as ``ceil(n / 2)``, and every resize goes to the size of a given tensor, so that
networks built from these work at any input size, not only at multiples of 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.ops import Op, register_op


@register_op("hwnas.conv")
class Conv(Op):
    """Convolution, batch norm and ReLU: the unit that every runtime fuses.

    ``(N, c_in, H, W) → (N, c_out, ceil(H/stride), ceil(W/stride))``. The batch norm has no affine parameters;
    :func:`hwnas.derive` adds them (ones and zeros) in the network that is trained.

    Args:
        c_in: input channels.
        c_out: output channels.
        kernel: side of the kernel, odd.
        stride: 1 or 2.
        dilation: spacing of the kernel's taps.
        groups: channel groups; ``c_in`` makes it depthwise.
    """

    def __init__(
        self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, dilation=dilation, groups=groups
        )
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Apply convolution, norm and ReLU."""
        return functional.relu(self.norm(self.conv(x_NCHW)))


@register_op("hwnas.add")
class Add(Op):
    """Sum of two or more tensors of one shape."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *xs: Tensor) -> Tensor:
        """Add all ``xs``."""
        total = xs[0]
        for x in xs[1:]:
            total = total + x
        return total


@register_op("hwnas.concat")
class Concat(Op):
    """Concatenation along the channels."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, *xs_NCHW: Tensor) -> Tensor:
        """Concatenate all ``xs_NCHW`` on dimension 1."""
        return torch.cat(xs_NCHW, dim=1)


@register_op("hwnas.resize")
class Resize(Op):
    """Bilinear resize of the first tensor to the height and width of the second (corners not aligned)."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
        """Resize ``x_NCHW``; of ``like_NCHW`` only the shape is read."""
        size = (int(like_NCHW.shape[-2]), int(like_NCHW.shape[-1]))
        return functional.interpolate(x_NCHW, size=size, mode="bilinear", align_corners=False)


@register_op("hwnas.pool_linear")
class PoolLinear(Op):
    """Global average pooling and a linear classifier: ``(N, c_in, H, W) → (N, c_out)``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in=c_in, c_out=c_out)
        self.linear = nn.Linear(c_in, c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Pool over height and width, then classify."""
        pooled: Tensor = x_NCHW.mean(dim=(2, 3))
        logits: Tensor = self.linear(pooled)
        return logits
