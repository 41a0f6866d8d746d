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
from hwnas.record import Recording


class BlindChoiceWarning(UserWarning):
    """A choice gets no gradient from the task: it will follow the latency penalty, whatever the task says."""


def network_side(draw: Draw) -> Draw:
    """``draw`` on a tensor of its own, whose gradient is what the network sends back, without a penalty's."""
    return Draw(draw.weights.view_as(draw.weights), draw.index)


class BlindnessMonitor:
    """The mean ``|∂ task loss / ∂ Z|`` of each choice over an epoch's hard draws, at the option drawn.

    Z multiplies an output, so by Euler's theorem the derivative is zero wherever scaling that output changes
    nothing: where all its readers are convolutions with a batch norm behind them. What remains is rounding.
    Soft mixtures are not watched, since there the weights' ratio matters.

    Args:
        arch: whose choices.
        recording: of the supernet; a choice counts in a step only where the draw reaches it.
        score_kinds: kinds of choice that do not learn from this gradient.
    """

    NIL = 1e-4
    """Share of the task's loss below which a derivative is taken for rounding. In fp32 there is more than an
    order of magnitude to either side of it; in bf16 rounding is larger, and may hide a blind choice."""

    def __init__(
        self, arch: ArchParameters, recording: Recording, score_kinds: Collection[ChoiceKind]
    ) -> None:
        self.arch = arch
        self.recording = recording
        self.score_kinds = tuple(score_kinds)
        self._judged = False
        self._sums: Tensor | None = None

    def watch(self, seen: Draw, task_loss: float) -> None:
        """Note the gradient that will come back to ``seen``, the network's side of a hard draw."""
        if seen.index is None or not seen.weights.requires_grad or not math.isfinite(task_loss):
            return
        chosen = {choice.name: k for choice, k in zip(self.arch.choices, seen.index, strict=True)}
        reached = self.recording.live_choices(chosen)
        rows = torch.zeros(len(chosen))
        rows[[self.arch.rows[name] for name in reached]] = 1.0
        rows = rows.to(seen.weights.device)
        note = partial(self._note, rows=rows, task_loss=abs(task_loss))
        seen.weights.register_hook(note)  # type: ignore[no-untyped-call]

    def _note(self, gradient: Tensor, rows: Tensor, task_loss: float) -> None:
        # A step with a gradient that is not finite is not taken, and must not count; all without a
        # synchronisation with the device.
        size = gradient.detach().float().abs().sum(dim=-1)
        taken = rows * torch.isfinite(size).all()
        # [0]: gradients, [1]: losses, [2]: steps in which the choice was reached.
        step = torch.stack([torch.nan_to_num(size, 0.0, 0.0) * taken, task_loss * taken, taken])
        self._sums = step if self._sums is None else self._sums + step

    def means(self) -> dict[str, float | None]:
        """The mean by choice; None where no draw reached it, empty where nothing was watched."""
        if self._sums is None:
            return {}
        gradient, _, count = self._sums.cpu().tolist()
        return {
            choice.name: total / steps if steps else None
            for choice, total, steps in zip(self.arch.choices, gradient, count, strict=True)
        }

    def newly_blind(self) -> list[str]:
        """Choices that learn from this gradient and get none; asked the second time, none are new."""
        if self._judged or self._sums is None:
            return []
        self._judged = True
        alive = self.arch.alive.sum(dim=-1).tolist()
        gradient, loss, count = self._sums.cpu().tolist()
        return [
            choice.name
            for row, choice in enumerate(self.arch.choices)
            if choice.kind not in self.score_kinds
            # With one option there is nothing to learn.
            and alive[row] > 1
            and count[row] > 0
            and gradient[row] < self.NIL * loss[row]
        ]

    def clear(self) -> None:
        """Begin a new epoch."""
        self._sums = None

    def advice(self, blind: Collection[str]) -> str:
        """What to say of the choices that :meth:`newly_blind` found: why that is, and what to do."""
        shown = ", ".join(list(blind)[:8]) + (f" and {len(blind) - 8} more" if len(blind) > 8 else "")
        kinds = {choice.kind for choice in self.arch.choices if choice.name in blind}
        wanted = ",".join(f'"{kind}"' for kind in get_args(ChoiceKind) if kind in {*self.score_kinds, *kinds})
        return (
            f"the task sends no gradient to {shown}: whatever reads their outputs takes the scale out of "
            "them (a convolution with a batch norm), so that under hard sampling they follow the latency "
            f"penalty alone. Let them learn by the score function:  --set 'score_kinds=[{wanted}]'"
        )

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch so far, and whether the choices were judged."""
        return {"sums": self._sums, "judged": self._judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        sums = state_dict["sums"]
        self._sums = None if sums is None else sums.to(self.arch.alive.device)
        self._judged = state_dict["judged"]
