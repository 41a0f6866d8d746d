"""The score function: the task's gradient for choices that straight-through sampling leaves blind."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from hwnas.core.arch import ArchParameters
from hwnas.core.choice import ChoiceKind
from hwnas.core.relaxation import Draw, masked


class ScoreFunction:
    """``∇ E[loss] = E[(loss − baseline) · ∇ log p(drawn option)]`` (Williams 1992, "REINFORCE").

    A hard draw multiplies its output by a weight of exactly 1 and differentiates by that weight. Where
    whatever reads the output is a convolution with a batch norm behind it, scaling the output changes
    nothing, so that derivative is zero: a depth then feels the latency penalty alone and shrinks to one step,
    whatever the task says. The score function needs the loss only, and is unbiased; its price is variance.

    The baseline is the running mean of the loss (bias-corrected, as Adam's), part of the run's state.

    Args:
        arch: whose choices.
        kinds: kinds of choice that are trained so; the others keep their straight-through gradient.
        decay: weight of the past in the baseline.
    """

    def __init__(self, arch: ArchParameters, kinds: Collection[ChoiceKind], decay: float = 0.95) -> None:
        self.arch = arch
        self.decay = decay
        self.rows = torch.tensor([choice.kind in kinds for choice in arch.choices]).unsqueeze(-1)
        self._sum = 0.0
        self._weight = 0.0

    def applies(self, draw: Draw) -> bool:
        """Whether ``draw`` is hard and has a choice of these kinds: a soft mixture is not blind."""
        return draw.index is not None and bool(self.rows.any())

    def seen_by_network(self, draw: Draw) -> Draw:
        """``draw`` as the network gets it: without a straight-through gradient to these choices."""
        if not self.applies(draw):
            return draw
        rows = self.rows.to(draw.weights.device)
        return Draw(torch.where(rows, draw.weights.detach(), draw.weights), draw.index)

    def term(self, task_loss: float, draw: Draw) -> Tensor:
        """A scalar whose gradient is the score function's; 0 for a soft draw. Moves the baseline."""
        logits = self.arch.logits
        if not self.applies(draw) or not math.isfinite(task_loss):
            return logits.new_zeros(())
        advantage = task_loss - self._sum / self._weight if self._weight else 0.0
        self._sum = self.decay * self._sum + (1 - self.decay) * task_loss
        self._weight = self.decay * self._weight + (1 - self.decay)
        assert draw.index is not None
        index = torch.tensor(draw.index, device=logits.device).unsqueeze(-1)
        log_p = torch.log_softmax(masked(logits, self.arch.alive), dim=-1).gather(-1, index)
        surrogate = (log_p * self.rows.to(logits.device)).sum()
        # Only the gradient is wanted: the value that is added to the loss is exactly zero.
        return advantage * (surrogate - surrogate.detach())

    def state_dict(self) -> dict[str, Any]:
        """The baseline."""
        return {"sum": self._sum, "weight": self._weight}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the baseline back."""
        self._sum = state_dict["sum"]
        self._weight = state_dict["weight"]
