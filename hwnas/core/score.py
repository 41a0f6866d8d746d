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
from hwnas.record import Recording, holds


class ScoreFunction:
    """``∇ E[loss] = E[(loss − baseline) · ∇ log p(drawn option)]`` (Williams 1992, "REINFORCE").

    A hard draw multiplies its output by a weight of exactly 1 and differentiates by that weight. Where
    whatever reads the output is a convolution with a batch norm behind it, scaling the output changes
    nothing, so that derivative is zero: a depth then feels the latency penalty alone and shrinks to one step,
    whatever the task says. Where several edges are added up before the batch norm, their derivatives sum to
    zero: they can tell one edge from another, but not something from nothing, and cells fill with zeros. The
    score function needs the loss only, and is unbiased; its price is variance.

    Three things keep the variance low, none of which biases the gradient:

    - the running mean of the loss (bias-corrected, as Adam's) is taken off;
    - so is what the *other* choices did to the loss, by an additive model ``mean + Σ effect of each drawn
      option`` that is fitted on the way: choices are drawn independently, so that for one choice the effects
      of all others are a constant;
    - a choice that does not matter in the network drawn learns nothing from it.

    All that is fitted is part of the run's state.

    Args:
        arch: whose choices.
        kinds: kinds of choice that are trained so; the others keep their straight-through gradient.
        recording: of the supernet; says which choices matter in a network. None: all do.
        decay: weight of the past in the mean.
    """

    EFFECTS_STEP = 0.2
    """How far a step moves the model's prediction towards the loss seen, all effects together."""

    def __init__(
        self,
        arch: ArchParameters,
        kinds: Collection[ChoiceKind],
        recording: Recording | None = None,
        decay: float = 0.95,
    ) -> None:
        self.arch = arch
        self.decay = decay
        self.rows = torch.tensor([choice.kind in kinds for choice in arch.choices]).unsqueeze(-1)
        # Each once, however many blocks read a choice under one condition.
        self._uses = (
            []
            if recording is None
            else list(dict.fromkeys((use.choice, use.condition) for use in recording.blocks))
        )
        self._all_matter = recording is None
        self._sum = 0.0
        self._weight = 0.0
        self._effects = torch.zeros(arch.alive.shape, dtype=torch.float64)

    def applies(self, draw: Draw) -> bool:
        """Whether ``draw`` is hard and has a choice of these kinds: a soft mixture is not blind."""
        return draw.index is not None and bool(self.rows.any())

    def seen_by_network(self, draw: Draw) -> Draw:
        """``draw`` as the network gets it: without a straight-through gradient to these choices."""
        if not self.applies(draw):
            return draw
        if bool(self.rows.all()):
            # Then the network need not send a gradient back at all.
            return Draw(draw.weights.detach(), draw.index)
        rows = self.rows.to(draw.weights.device)
        return Draw(torch.where(rows, draw.weights.detach(), draw.weights), draw.index)

    def term(self, task_loss: float, draw: Draw) -> Tensor:
        """A scalar whose gradient is the score function's; 0 for a soft draw. Moves mean and effects."""
        logits = self.arch.logits
        if not self.applies(draw):
            return logits.new_zeros(())
        if not math.isfinite(task_loss):
            # With a derivative, if of nothing: the loss that this is added to may have no other.
            return 0.0 * logits.sum()
        assert draw.index is not None
        advantages = self._advantages(task_loss, draw.index)
        index = torch.tensor(draw.index, device=logits.device).unsqueeze(-1)
        log_p = torch.log_softmax(masked(logits, self.arch.alive), dim=-1).gather(-1, index)
        surrogate = (log_p.squeeze(-1) * advantages.to(log_p)).sum()
        # Only the gradient is wanted: the value that is added to the loss is exactly zero.
        return surrogate - surrogate.detach()

    def _advantages(self, task_loss: float, index: tuple[int, ...]) -> Tensor:
        """By choice: how much worse the loss is than what was to be expected from all else; 0 where nothing
        is to be learnt. ``[choices]``, float64.
        """
        learning = (self.rows.squeeze(-1) & self._matter(index)).double()
        drawn = torch.tensor(index).unsqueeze(-1)
        effects = learning * self._effects.gather(-1, drawn).squeeze(-1)
        expected = self._sum / self._weight + float(effects.sum()) if self._weight else task_loss
        residual = task_loss - expected
        # All effects but its own are taken off: what is left is the residual and its own.
        advantages = learning * residual + effects
        step = self.EFFECTS_STEP / max(1.0, float(learning.sum()))
        self._effects.scatter_add_(-1, drawn, (step * residual * learning).unsqueeze(-1))
        self._sum = self.decay * self._sum + (1 - self.decay) * task_loss
        self._weight = self.decay * self._weight + (1 - self.decay)
        return advantages

    def _matter(self, index: tuple[int, ...]) -> Tensor:
        """Which choices matter in the network drawn, ``[choices]``."""
        if self._all_matter:
            return torch.ones(len(index), dtype=torch.bool)
        assignment = {choice.name: k for choice, k in zip(self.arch.choices, index, strict=True)}
        live = {name for name, condition in self._uses if holds(condition, assignment)}
        return torch.tensor([choice.name in live for choice in self.arch.choices])

    def state_dict(self) -> dict[str, Any]:
        """The mean and the effects."""
        return {"sum": self._sum, "weight": self._weight, "effects": self._effects}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        self._sum = state_dict["sum"]
        self._weight = state_dict["weight"]
        self._effects.copy_(state_dict["effects"])
