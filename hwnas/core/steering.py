"""Steering: expected costs are brought to what they are to be, and held there, while a search learns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from hwnas.core.arch import ArchParameters
from hwnas.core.expected import ExpectedCost

REACHED = 0.005
"""Relative: an expected cost this near to its aim is left alone."""
_LARGEST_SHIFT = 0.5  # nats by which one step moves the options of a choice at most, weighted by probability
_FARTHEST_SHIFT = 5.0  # nats by which it moves any option, however improbable


class Multipliers:
    """A multiplier for each cost that is held at an aim; a part of the run's state.

    A method of multipliers (Hestenes 1969, Powell 1969): minimise the task's loss over distributions whose
    expected costs keep their aims. The Lagrangian's step on the costs is not left to Adam, which would divide
    it by the noise of the task's gradient, but taken apart, in closed form. For a multiplier μ, the
    distribution that is nearest to p and cheaper is ``p · exp(−μ · ∂E[cost]/∂p)``, and the gap closes by the
    variance of that derivative for each unit of μ. So a step of Newton's changes μ by ``gap / variance`` and
    the logits by the derivative times that, or by half a nat (root mean square over a choice's options) where
    that is less. Costs are relative to their aims, whatever unit and space.

    Args:
        costs: by name.
        aims: what each is expected to be at most, by name, in its unit, above 0.
        both_ways: names of those that are pushed up to their aims, too: their multipliers may be negative.
    """

    def __init__(
        self, costs: Mapping[str, ExpectedCost], aims: Mapping[str, float], both_ways: Collection[str] = ()
    ) -> None:
        self.costs = dict(costs)
        self.aims = dict(aims)
        self.both_ways = frozenset(both_ways)
        self.values = torch.zeros(len(self.costs))
        """μ, in the order of the costs."""

    def to(self, device: torch.device) -> None:
        """Move costs and multipliers."""
        for cost in self.costs.values():
            cost.to(device)
        self.values = self.values.to(device)

    def state_dict(self) -> dict[str, Any]:
        """The multipliers."""
        return {"multipliers": self.values}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put them back."""
        self.values.copy_(state_dict["multipliers"])

    def step(self, arch: ArchParameters) -> None:
        """Move the multipliers, and the logits with them (mutated), towards the aims by one step."""
        for place, (name, cost) in enumerate(self.costs.items()):
            gap, slope, variances = _slope(cost, self.aims[name], arch)
            variance = variances.sum()
            largest = torch.minimum(
                _LARGEST_SHIFT / variances.max().sqrt(), _FARTHEST_SHIFT / slope.abs().max()
            )
            change = torch.clamp(gap / variance, -largest, largest)
            moves = (gap.abs() > REACHED) & (variance > 0)
            before = self.values[place]
            after = before + torch.where(moves, change, 0.0)
            if name not in self.both_ways:
                after = after.clamp_min(0.0)
            arch.shift((before - after) * slope)
            self.values[place] = after

    def by_name(self) -> dict[str, float]:
        """The multipliers, by the name of the cost."""
        return dict(zip(self.costs, self.values.tolist(), strict=True))


def _slope(cost: ExpectedCost, aim: float, arch: ArchParameters) -> tuple[Tensor, Tensor, Tensor]:
    """The gap (expected ÷ aim − 1), its derivative by the probabilities, centred, and the variances of that.

    Moving the logits by ``−μ · derivative`` changes the gap by ``−μ · Σ variances``, for a small μ. Shapes
    ``[]``, ``[choices, options]`` and ``[choices]``.
    """
    with torch.enable_grad():
        probabilities = arch.probabilities().detach().requires_grad_()
        expected = cost(probabilities) / aim
        (slope,) = torch.autograd.grad(expected, probabilities)
    probabilities = probabilities.detach()
    slope = slope - (probabilities * slope).sum(dim=-1, keepdim=True)
    slope = slope.masked_fill(~arch.alive, 0.0)
    return expected.detach() - 1.0, slope, (probabilities * slope**2).sum(dim=-1)
