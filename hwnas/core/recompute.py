"""Less memory for more time: blocks that compute their ops again in back-propagation (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_State = TypeVar("_State")


def recomputed(compute: Callable[..., _State], ops: Sequence[nn.Module], inputs: Sequence[Tensor]) -> _State:
    """``compute(*inputs)``, of which only the inputs are kept until the gradient is wanted.

    Args:
        compute: a function of the inputs that calls ``ops``.
        ops: their batch norms follow the first pass only, not the repetition.
        inputs: tensors.
    """
    if not torch.is_grad_enabled():
        return compute(*inputs)
    state: _State = checkpoint(
        compute,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _statistics_stay(ops)),
    )
    return state


@contextmanager
def _statistics_stay(ops: Sequence[nn.Module]) -> Iterator[None]:
    norms = [module for op in ops for module in op.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count
