"""How logits become an assignment: softmax and Gumbel-softmax, soft or hard, with temperature schedules.

Pure functions of (logits, live options, temperature, generator); installing a draw in a network is
:mod:`hwnas.core.arch`'s business.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LinearSchedule(_Settings):
    """A value that goes from ``start`` in the first epoch to ``end`` in the last along a line."""

    form: Literal["linear"] = "linear"
    """Names this schedule in JSON and in ``--set relaxation.tau.form=linear``."""
    start: float = Field(3.0, gt=0)
    """The value in the first epoch."""
    end: float = Field(0.03, gt=0)
    """The value in the last epoch, and in the only one of a single epoch."""

    def at(self, epoch: int, epochs: int) -> float:
        """The value in ``epoch`` (counted from 0) of ``epochs``."""
        return self.start + (self.end - self.start) * _progress(epoch, epochs)


class ExponentialSchedule(_Settings):
    """A value that goes from ``start`` in the first epoch to ``end`` in the last by a constant factor."""

    form: Literal["exponential"] = "exponential"
    """Names this schedule in JSON and in ``--set relaxation.tau.form=exponential``."""
    start: float = Field(3.0, gt=0)
    """The value in the first epoch."""
    end: float = Field(0.03, gt=0)
    """The value in the last epoch, and in the only one of a single epoch."""

    def at(self, epoch: int, epochs: int) -> float:
        """The value in ``epoch`` (counted from 0) of ``epochs``."""
        return self.start * math.exp(math.log(self.end / self.start) * _progress(epoch, epochs))


def _progress(epoch: int, epochs: int) -> float:
    return min(epoch, epochs - 1) / (epochs - 1) if epochs > 1 else 1.0


Schedule: TypeAlias = Annotated[LinearSchedule | ExponentialSchedule, Field(discriminator="form")]


@dataclass(frozen=True)
class Draw:
    """One assignment of all choices at once.

    Attributes:
        weights: Z, shape ``[choices, options]``, rows summing to 1, dead and padded options exactly 0.
        index: the drawn option of each choice, or None for a soft mixture.
    """

    weights: Tensor
    index: tuple[int, ...] | None


class Relaxation(_Settings, ABC):
    """A way to turn logits into an assignment; what the search samples in every step."""

    @property
    @abstractmethod
    def temperature(self) -> LinearSchedule | ExponentialSchedule:
        """The schedule of τ."""

    @property
    def is_hard(self) -> bool:
        """Whether one option of each choice is drawn and computed; else all are mixed."""
        return False

    @abstractmethod
    def draw(
        self, logits: Tensor, alive: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Draw:
        """One assignment.

        Args:
            logits: log α, shape ``[choices, options]``.
            alive: booleans of the same shape; at least one true in each row.
            temperature: τ > 0.
            generator: source of the noise, on the CPU, so that runs are the same on every device.
        """


class Softmax(Relaxation):
    """``Z = softmax(log α / τ)``: the deterministic mixture of DARTS (Liu et al. 2019)."""

    form: Literal["softmax"] = "softmax"
    """Names this relaxation in JSON and in ``--set relaxation.form=softmax``."""
    tau: Schedule = LinearSchedule(start=1.0, end=1.0)
    """Temperature: the lower, the closer to one-hot."""

    @property
    def temperature(self) -> LinearSchedule | ExponentialSchedule:
        """The schedule of τ."""
        return self.tau

    def draw(
        self, logits: Tensor, alive: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Draw:
        """The mixture; ``generator`` is not used."""
        return Draw(torch.softmax(masked(logits, alive) / temperature, dim=-1), None)


class GumbelSoftmax(Relaxation):
    """``Z = softmax((log α + G) / τ)``, ``G = −log(−log u)``, ``u ~ U(0, 1)`` (Eq. 3 and 6).

    ``hard`` (the default) draws one option of each choice, straight-through: the value is one-hot, the
    gradient that of the soft sample. Only the drawn op is computed, so the gradient reaches α through the
    drawn option's weight alone, as in GDAS (Dong and Yang 2019). Soft samples are what the AutoRTNet paper
    mixes.
    """

    form: Literal["gumbel"] = "gumbel"
    """Names this relaxation in JSON and in ``--set relaxation.form=gumbel``."""
    hard: bool = True
    """Whether one option is drawn and computed, or all are mixed."""
    tau: Schedule = LinearSchedule()
    """Temperature: the lower, the closer the (soft) sample to one-hot."""

    @property
    def temperature(self) -> LinearSchedule | ExponentialSchedule:
        """The schedule of τ."""
        return self.tau

    @property
    def is_hard(self) -> bool:
        """As it was asked for."""
        return self.hard

    def draw(
        self, logits: Tensor, alive: Tensor, temperature: float, generator: torch.Generator | None = None
    ) -> Draw:
        """One sample, hard or soft."""
        uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype)
        tiny = torch.finfo(uniform.dtype).tiny
        noise = -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))
        perturbed = masked(logits, alive) + noise.to(logits.device)
        soft = torch.softmax(perturbed / temperature, dim=-1)
        if not self.hard:
            return Draw(soft, None)
        index = perturbed.argmax(dim=-1)
        one_hot = torch.zeros_like(soft).scatter_(-1, index.unsqueeze(-1), 1.0)
        # soft − soft.detach() is exactly 0, so the value is exactly one-hot; 1 − s + s would round.
        return Draw(one_hot + (soft - soft.detach()), tuple(index.tolist()))


AnyRelaxation: TypeAlias = Annotated[Softmax | GumbelSoftmax, Field(discriminator="form")]


def masked(logits: Tensor, alive: Tensor) -> Tensor:
    """``logits`` with −∞ at the options that are dead or padding."""
    return logits.masked_fill(~alive, -math.inf)
