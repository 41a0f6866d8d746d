"""Several processes that train one network: shared statistics, the global batch's loss, added-up metrics.

Gradients are averaged in :class:`hwnas.core.training.GuardedStep`; docs/decisions/0010-processes.md says why
not by DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hwnas.processes import add_up, copy_first, processes


@contextmanager
def trained_as_one(network: nn.Module) -> Iterator[None]:
    """For the body, ``network`` is one network over all processes; in one process alone, nothing happens.

    It begins with the weights and buffers of the first process, and its batch norms (mutated for the body)
    normalise over the global batch, as they would in one process. All processes must call the same batch
    norms in the same order.
    """
    if processes().size == 1:
        yield
        return
    copy_first([*network.parameters(), *network.buffers()])
    plain = [(module, type(module)) for module in network.modules() if type(module) in _BATCH_NORMS]
    for module, _ in plain:
        module.__class__ = _SynchronisedBatchNorm
    try:
        yield
    finally:
        for module, kind in plain:
            module.__class__ = kind


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _SynchronisedBatchNorm(nn.SyncBatchNorm):
    """torch's own on a GPU; on the CPU, where it has no kernels, the same from differentiable sums.

    Modules become one by their class, in place: what a replaced module is referred to by (optimisers, shared
    names, checkpoints) stays as it is.
    """

    process_group = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise over the batches of all processes."""
        if not self.training or input.device.type != "cpu":
            return super().forward(input)
        # In double precision the mean of squares less the square of the mean is exact enough, and everything
        # travels in one message.
        values = input.double()
        over = [0, *range(2, values.dim())]
        shape = [1, -1, *[1] * (values.dim() - 2)]
        own = [
            values.sum(over),
            values.square().sum(over),
            values.new_tensor([values.numel() / values.shape[1]]),
        ]
        total, squares, count = torch.split(_sum(torch.cat(own)), [values.shape[1], values.shape[1], 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        output = (values - mean.view(shape)) * (variance.view(shape) + self.eps).rsqrt()
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class _Sum(torch.autograd.Function):
    """A sum over processes, of which every process uses the result: so its gradients add up too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return add_up(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return add_up(gradients[0].clone())


def _sum(tensor: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def global_loss(loss: Tensor, weight: Tensor | float) -> Tensor:
    """The loss of the global batch, ``Σ weight · loss / Σ weight`` over processes, as a scalar.

    Its value is the same in all of them; its gradient is this process's part, times their number, so that the
    mean of all gradients is the gradient.

    Args:
        loss: of this process's share, a scalar.
        weight: how many things that is a mean over.
    """
    size = processes().size
    if size == 1:
        return loss
    own = torch.as_tensor(weight, dtype=torch.float64, device=loss.device)
    # A share in which nothing counts may have no loss; its gradient is none.
    counted = torch.where(own > 0, loss, loss.new_zeros(()))
    total, weights = add_up(torch.stack([own * counted.detach(), own])).unbind()
    # Where nothing counts anywhere, the loss is 0, and so is its gradient.
    weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)
    part = counted * (own * size / weights).to(loss.dtype)
    return part + ((total / weights).to(loss.dtype) - part.detach())


@runtime_checkable
class Additive(Protocol):
    """A metric that is a function of sums over examples, so that processes can share the work."""

    def sums(self) -> Tensor:
        """The sums so far, one tensor of a shape that never changes."""
        ...

    def take_sums(self, sums: Tensor) -> None:
        """Replace the sums."""
        ...


def add_up_metric(metric: Any, device: torch.device) -> bool:
    """Give ``metric`` (mutated) what all processes have counted; whether it then tells of all examples.

    Args:
        metric: any metric; one that is not :class:`Additive` stays as it is.
        device: where the processes train.
    """
    if processes().size == 1:
        return True
    if not isinstance(metric, Additive):
        return False
    metric.take_sums(add_up(metric.sums().to(device, copy=True)))
    return True
