"""Latency penalties: what expected milliseconds add to the task's loss (the f of Eq. 8)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class LatencyPenalty(BaseModel, ABC):
    """A function from expected milliseconds to a term of the loss. Frozen; ``weight`` is λ."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def __call__(self, latency_ms: Tensor) -> Tensor:
        """The term to add, a scalar, from a scalar of milliseconds."""


class LogPenalty(LatencyPenalty):
    """``λ · ln(latency in µs)``: the size of the term hardly depends on the device (FBNet's lineage).

    The AutoRTNet paper's own form is lost; this one fits its λ and its tables in µs, and is the default.
    """

    form: Literal["log"] = "log"
    """Names this penalty in JSON and in ``--set penalty.form=log``."""
    weight: float = Field(0.01, ge=0)
    """λ: the term grows by 0.7 λ where latency doubles."""

    def __call__(self, latency_ms: Tensor) -> Tensor:
        """The term."""
        return self.weight * torch.log(latency_ms * 1000.0)


class LinearPenalty(LatencyPenalty):
    """``λ · latency in ms``."""

    form: Literal["linear"] = "linear"
    """Names this penalty in JSON and in ``--set penalty.form=linear``."""
    weight: float = Field(0.01, ge=0)
    """λ: loss per millisecond."""

    def __call__(self, latency_ms: Tensor) -> Tensor:
        """The term."""
        return self.weight * latency_ms


class TargetPenalty(LatencyPenalty):
    """``λ · |latency / target − 1|``: pulls towards the target from both sides."""

    form: Literal["target"] = "target"
    """Names this penalty in JSON and in ``--set penalty.form=target``."""
    weight: float = Field(1.0, ge=0)
    """λ: the term where latency is twice the target."""
    target_ms: float = Field(gt=0)
    """Milliseconds to meet."""

    def __call__(self, latency_ms: Tensor) -> Tensor:
        """The term."""
        return self.weight * torch.abs(latency_ms / self.target_ms - 1.0)


class HingePenalty(LatencyPenalty):
    """``λ · max(0, latency / target − 1)``: free below the target, growing above it."""

    form: Literal["hinge"] = "hinge"
    """Names this penalty in JSON and in ``--set penalty.form=hinge``."""
    weight: float = Field(1.0, ge=0)
    """λ: the term where latency is twice the target."""
    target_ms: float = Field(gt=0)
    """Milliseconds to stay under."""

    def __call__(self, latency_ms: Tensor) -> Tensor:
        """The term."""
        return self.weight * torch.relu(latency_ms / self.target_ms - 1.0)


AnyPenalty: TypeAlias = Annotated[
    LogPenalty | LinearPenalty | TargetPenalty | HingePenalty, Field(discriminator="form")
]
