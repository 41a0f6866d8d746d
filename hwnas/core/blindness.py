"""Noticing choices that hard, straight-through sampling teaches nothing about the task."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from hwnas.core.arch import ArchParameters
from hwnas.core.choice import ChoiceKind
from hwnas.core.relaxation import Draw
from hwnas.errors import HwnasWarning, in_short


class BlindChoiceWarning(HwnasWarning):
    """A choice gets no gradient from the task: it will follow the latency penalty, whatever the task says."""


def network_side(draw: Draw) -> Draw:
    """``draw`` on a tensor of its own, whose gradient is what the network sends back, without a penalty's."""
    return Draw(draw.weights.view_as(draw.weights), draw.index)


class BlindnessMonitor:
    """The mean ``|∂ task loss / ∂ Z|`` of each choice over hard draws, at the option drawn.

    Z multiplies an output, so by Euler's theorem the derivative is zero wherever scaling that output changes
    nothing: where all its readers are convolutions with a batch norm behind them. What remains is rounding.
    A derivative of exactly zero says nothing (the draw cut the block off, or drew an op that gives zeros) and
    does not count. Soft mixtures are not watched, since there the weights' ratio matters.

    Args:
        arch: whose choices.
        score_kinds: kinds of choice that do not learn from this gradient.
    """

    NIL = 1e-4
    """Share of the task's loss below which a derivative is taken for rounding. In fp32 there is more than an
    order of magnitude to either side of it; in bf16 rounding is larger, and may hide a blind choice."""
    STEPS = 8
    """Steps of a choice that count before it is judged: any single derivative can be small by chance."""

    def __init__(self, arch: ArchParameters, score_kinds: Collection[ChoiceKind]) -> None:
        self.arch = arch
        self.score_kinds = tuple(score_kinds)
        # By choice, in rows: the sum of gradients, that of losses, and the number of steps that count.
        self._epoch = torch.zeros(3, len(arch.choices), device=arch.alive.device)
        self._before = torch.zeros_like(self._epoch)
        self._judged = False

    def watch(self, seen: Draw, task_loss: float) -> None:
        """Note the gradient that will come back to ``seen``, the network's side of a hard draw."""
        if seen.index is not None and seen.weights.requires_grad and math.isfinite(task_loss):
            note = partial(self._note, task_loss=abs(task_loss))
            seen.weights.register_hook(note)  # type: ignore[no-untyped-call]

    def _note(self, gradient: Tensor, task_loss: float) -> None:
        # Without a synchronisation with the device. A step whose gradient is not finite is not taken.
        size = gradient.detach().float().abs().sum(dim=-1)
        counts = (size > 0) & torch.isfinite(size).all()
        self._epoch += torch.stack([size, torch.full_like(size, task_loss), torch.ones_like(size)]).where(
            counts, 0.0
        )

    def means(self) -> dict[str, float | None]:
        """The mean of this epoch by choice; None where no step counts."""
        gradient, _, count = self._epoch.cpu().tolist()
        return {
            choice.name: total / steps if steps else None
            for choice, total, steps in zip(self.arch.choices, gradient, count, strict=True)
        }

    def newly_blind(self) -> list[str]:
        """Choices that should learn from this gradient and get none; said once, when enough is known."""
        gradient, loss, count = (self._before + self._epoch).cpu().tolist()
        if self._judged or max(count) < self.STEPS:
            return []
        self._judged = True
        alive = self.arch.alive.sum(dim=-1).tolist()
        return [
            choice.name
            for row, choice in enumerate(self.arch.choices)
            if choice.kind not in self.score_kinds
            # With one option there is nothing to learn.
            and alive[row] > 1
            and count[row] >= self.STEPS
            and gradient[row] < self.NIL * loss[row]
        ]

    def clear(self) -> None:
        """Begin a new epoch."""
        self._before += self._epoch
        self._epoch.zero_()

    def advice(self, blind: Collection[str]) -> str:
        """What to say of the choices that :meth:`newly_blind` found: why that is, and what to do."""
        shown = in_short(blind)
        kinds = {choice.kind for choice in self.arch.choices if choice.name in blind}
        wanted = ",".join(f'"{kind}"' for kind in get_args(ChoiceKind) if kind in {*self.score_kinds, *kinds})
        return (
            f"the task sends no gradient to {shown}: whatever reads their outputs takes the scale out of "
            "them (a convolution with a batch norm), so that under hard sampling they follow the latency "
            f"penalty alone. Let them learn by the score function:  --set 'score_kinds=[{wanted}]'"
        )

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, and whether the choices were judged."""
        return {"epoch": self._epoch, "before": self._before, "judged": self._judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        self._epoch.copy_(state_dict["epoch"])
        self._before.copy_(state_dict["before"])
        self._judged = state_dict["judged"]
