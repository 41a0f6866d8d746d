"""Ops that most spaces need: the fused convolution, and the glue between candidate ops.

Every strided op halves as ``ceil(n / 2)``, and every resize goes to the size of a given tensor and puts each
position over those that strides made it of, so that networks built from these work at any input size, not
only at multiples of 32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.ops import Op, register_op


def bilinear(x_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """``x_NCHW`` at another height and width, bilinearly, corners not aligned.

    ``(N, C, H, W) → (N, C, *size)``. The same values as torch's ``interpolate`` and, up to rounding, the same
    gradient. Where that is in NCHW memory order on the CPU, as a loss gives it, two matrix products stand for
    torch's scatter.

    Args:
        x_NCHW: left untouched.
        size: height and width that come out.
    """
    if x_NCHW.requires_grad and x_NCHW.device.type == "cpu":
        resized: Tensor = _Bilinear.apply(x_NCHW, *size)  # type: ignore[no-untyped-call]  # torch's
        return resized
    return functional.interpolate(x_NCHW, size=size, mode="bilinear", align_corners=False)


def bilinear_onto(x_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """``x_NCHW`` over the positions that strides of 2 made it of, bilinearly.

    ``(N, C, H, W) → (N, C, *size)``. Of ``n`` positions strides of 2 leave ``ceil(n / f)``, ``f`` a power
    of two, and each of these stands for ``f`` of them, whether or not ``f`` divides ``n``. So an axis is
    enlarged by ``f`` and cut at ``n``. The ratio of the sizes, by which :func:`bilinear` resizes, would move
    what is farther down or to the right from its place by up to nearly ``f``, and against maps of other
    strides. Sizes that no strides of 2 relate are resized by their ratio.

    Only sizes are known: a map that was pooled to a size of its own, such as 6 bins over 45 rows, may pass
    for one that strides made. Resize that with :func:`bilinear`.

    Args:
        x_NCHW: left untouched.
        size: height and width that come out.
    """
    height, width = size
    # To an exporter that traces, sizes are tensors.
    whole = (_whole(int(x_NCHW.shape[-2]), height), _whole(int(x_NCHW.shape[-1]), width))
    resized = bilinear(x_NCHW, whole)
    return resized if whole == (height, width) else resized[..., :height, :width]


def _whole(n_in: int, n_out: int) -> int:
    """The size that is to be cut to ``n_out``, or ``n_out`` where no strides of 2 relate the two."""
    # The least power of two that is no less than the ratio: the strides' product, if there is one.
    factor = 1 << (-(-n_out // n_in) - 1).bit_length()
    return n_in * factor if -(-n_out // factor) == n_in else n_out


class _Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, height: int, width: int) -> Tensor:
        ctx.size = x_NCHW.shape[-2:]
        return functional.interpolate(x_NCHW, size=(height, width), mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NCHW,) = gradients
        if not gradient_NCHW.is_contiguous():
            size = gradient_NCHW.shape[-2:]
            whole = (*gradient_NCHW.shape[:2], *ctx.size)
            scattered = torch.ops.aten.upsample_bilinear2d_backward(gradient_NCHW, size, whole, False)
            return scattered, None, None
        # Bilinear resizing is linear along each axis: out = R x Cᵀ, and its adjoint Rᵀ g C.
        # A compiler would trace through the cache, and say so.
        resizing = _resizing.__wrapped__ if torch.compiler.is_compiling() else _resizing
        rows, columns = (
            resizing(n_in, n_out).to(gradient_NCHW)
            for n_in, n_out in zip(ctx.size, gradient_NCHW.shape[-2:], strict=True)
        )
        return rows.T @ (gradient_NCHW @ columns), None, None


@lru_cache(maxsize=64)
def _resizing(n_in: int, n_out: int) -> Tensor:
    """The matrix ``[n_out, n_in]`` that resizes one axis."""
    units = torch.eye(n_in, dtype=torch.float64)[None]
    resized = functional.interpolate(units, size=n_out, mode="linear", align_corners=False)
    return resized[0].T.contiguous()


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

    Raises:
        InvalidInput: the kernel is even: padded alike on all sides, none gives this output size.
    """

    def __init__(
        self, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            c_in=c_in, c_out=c_out, kernel=kernel, stride=stride, dilation=dilation, groups=groups
        )
        if kernel < 1 or kernel % 2 == 0:
            raise InvalidInput(
                f"Conv needs an odd kernel, got kernel={kernel}: padded alike on all sides, an even one "
                f"changes the size of the map. Use {max(1, kernel - 1)} or {max(3, kernel + 1)}, or write an "
                "op of your own that pads as you want it (docs/new-space.md)."
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
    """Bilinear resize of the first tensor over the height and width of the second (corners not aligned).

    Where strides made the first of the second's size, each position comes to lie where it was taken from, at
    sizes too that the strides do not divide: :func:`hwnas.layers.bilinear_onto`.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
        """Resize ``x_NCHW``; of ``like_NCHW`` only the shape is read."""
        return bilinear_onto(x_NCHW, (int(like_NCHW.shape[-2]), int(like_NCHW.shape[-1])))


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
