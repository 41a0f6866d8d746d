"""The arithmetic of a block's output, forward and backward in as few passes over memory as it takes.

Written out, a mixture of K outputs reads and writes K more tensors forward, and backward K products for the
weights' gradients; the gradient of a drawn output is multiplied by exactly 1. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def weighted_sum(outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """``Σ_k weights[k] · outputs[k]``, differentiable once.

    Args:
        outputs: at least one; all of one shape.
        weights: as many scalars.
    """
    if len({output.dtype for output in outputs}) > 1:
        # Autocast leaves some options in single precision: then types are torch's to promote.
        return torch.stack([output * weight for output, weight in zip(outputs, weights, strict=True)]).sum(0)
    total: Tensor = _WeightedSum.apply(len(outputs), *outputs, *weights)  # type: ignore[no-untyped-call]
    return total


def straight_through(output: Tensor, weight: Tensor) -> Tensor:
    """``weight · output`` for a ``weight`` of exactly 1, differentiable once."""
    same: Tensor = _StraightThrough.apply(output, weight)  # type: ignore[no-untyped-call]
    return same


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *both: Tensor) -> Tensor:
        outputs, weights = both[:count], both[count:]
        ctx.save_for_backward(*both)
        total = outputs[0] * weights[0]
        for output, weight in zip(outputs[1:], weights[1:], strict=True):
            total.addcmul_(output, weight.to(output.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        both = ctx.saved_tensors
        outputs, weights = both[: len(both) // 2], both[len(both) // 2 :]
        wanted = ctx.needs_input_grad[1:]
        return (
            None,
            *(
                gradient * weight if is_wanted else None
                for weight, is_wanted in zip(weights, wanted, strict=False)
            ),
            *(
                _inner_product(gradient, output).to(weight.dtype) if is_wanted else None
                for output, weight, is_wanted in zip(outputs, weights, wanted[len(outputs) :], strict=True)
            ),
        )


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(output, weight)
        # A tensor of its own: what reads it may write to it.
        return output * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        output, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        return gradient, _inner_product(gradient, output).to(weight.dtype) if wanted else None


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a · b``, without the product in memory where both lie in it alike."""
    if a.dtype == b.dtype == torch.float32 and a.stride() == b.stride():
        if a.is_contiguous():
            return torch.dot(a.view(-1), b.view(-1))
        if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
            return torch.dot(a.permute(0, 2, 3, 1).reshape(-1), b.permute(0, 2, 3, 1).reshape(-1))
    product = a * b
    return product.sum(dtype=torch.promote_types(product.dtype, torch.float32))
