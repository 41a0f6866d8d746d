"""The passes of a soft step captured as CUDA graphs: a GPU then does not wait for kernels to be launched.

A soft step runs every op of every edge, the same kernels in each step; a CPU may take longer to launch them
than the GPU to compute them. A graph launches them all at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hwnas.core.arch import ArchParameters, assigned
from hwnas.core.relaxation import Draw
from hwnas.core.space import SearchSpace
from hwnas.core.training import TrainingPrecision, autocast
from hwnas.errors import InvalidInput

Captured = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From inputs, targets and Z to the loss and the network's outputs."""


class TaskLoss(nn.Module):
    """What a graph holds: from inputs, targets and a soft assignment Z to the loss and the network's outputs.

    Everything that differs between steps is an argument, since a graph repeats all else as it was.
    """

    def __init__(
        self, space: SearchSpace, net: nn.Module, arch: ArchParameters, precision: TrainingPrecision
    ) -> None:
        super().__init__()
        self.net = net
        self._space = space
        # Outside of the module's own: its parameters are no input of the graph, Z is.
        self._arch = (arch,)
        self._precision = precision

    def forward(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The scalar loss, and the network's outputs, through which nothing flows back.

        Args:
            inputs: ``[N, …]``.
            targets: what the space's loss takes.
            weights: Z, ``[choices, options]``.
        """
        (arch,) = self._arch
        with assigned(self.net, arch, Draw(weights, None)), autocast(inputs.device, self._precision):
            outputs = self.net(inputs)
            loss = self._space.loss(outputs, targets)
        return loss, outputs.detach()


class GraphedTask:
    """:class:`TaskLoss`, captured when it is first called and replayed from then on.

    Each shape of a batch has a graph of its own; when an option dies, all are captured anew. Capturing runs
    the passes a few times; the network's buffers (batch norms' statistics) and the GPU's random state are put
    back afterwards, so that a resumed search goes on as an uninterrupted one. By
    :func:`torch.cuda.make_graphed_callables`, through which gradients flow as usual.

    The tensors that it gives are overwritten by the next call. The memory of a step stays taken between
    steps, and a graph's is free only once no loss of it is held.

    Args:
        space: whose loss.
        net: the supernet, in training mode, on a CUDA device. Its parameters must stay where they are.
        arch: whose live options count.
        precision: of matrix work.
    """

    def __init__(
        self, space: SearchSpace, net: nn.Module, arch: ArchParameters, precision: TrainingPrecision
    ) -> None:
        # Anew for each graph: torch puts the replay in the place of its forward.
        self._task = partial(TaskLoss, space, net, arch, precision)
        self._net = net
        self._arch = arch
        self._alive: list[tuple[int, ...]] | None = None
        self._captured: dict[tuple[Any, ...], Captured] = {}

    def __call__(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a step, which back-propagates into the network and ``weights``; and the outputs.

        Args:
            inputs: ``[N, …]``.
            targets: what the space's loss takes.
            weights: Z of a soft draw, ``[choices, options]``.

        Raises:
            InvalidInput: the network or its loss does what no graph can hold, such as wait for the device.
        """
        alive = self._arch.alive_options()
        if alive != self._alive:
            self._captured.clear()
            # What torch makes of a module refers to itself, and holds the memory of a step.
            gc.collect()
            self._alive = alive
        shape = tuple((each.shape, each.dtype, each.stride()) for each in (inputs, targets))
        if shape not in self._captured:
            self._captured[shape] = self._capture(inputs, targets, weights.detach())
        return self._captured[shape](inputs, targets, weights)

    def _capture(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Captured:
        buffers = [(buffer, buffer.clone()) for buffer in self._net.buffers()]
        device = inputs.device
        state = torch.cuda.get_rng_state(device)
        # Clones: the graph reads its inputs from where these lie.
        example = (inputs.clone(), targets.clone(), weights.clone().requires_grad_())
        try:
            # torch captures on the current device, whichever the tensors lie on.
            with torch.cuda.device(device):
                graphed = torch.cuda.make_graphed_callables(self._task(), example, allow_unused_input=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InvalidInput(
                f"this step cannot be captured as a CUDA graph: {error}\nThe network and its loss must not "
                "wait for the device, nor depend on values; or search with cuda_graph=false."
            ) from error
        torch.cuda.set_rng_state(state, device)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        return cast(Captured, graphed)


def refuse_graphs(*, soft: bool, recompute: bool, device: torch.device, process_count: int) -> None:
    """Refuse a search whose steps cannot be captured.

    Raises:
        InvalidInput: what is in the way.
    """
    reasons = {
        f"it trains on {device.type}, and graphs are CUDA's": device.type != "cuda",
        "hard sampling computes another path in each step (relaxation.hard=false mixes softly)": not soft,
        "activations are computed again (recompute), which reads the random state": recompute,
        f"{process_count} processes wait for one another within a step": process_count > 1,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise InvalidInput(f"cuda_graph captures steps that are the same each time: {'; '.join(found)}.")
