"""Pruners: which options die, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field

from hwnas.core.arch import ArchParameters
from hwnas.core.choice import ChoiceKind


class Pruner(BaseModel, ABC):
    """A policy that switches options off for good; called once at the end of each epoch. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @abstractmethod
    def prune(self, arch: ArchParameters, epoch: int) -> list[tuple[str, str]]:
        """Switch options off in ``arch.alive`` (mutated) and list them as (choice, option).

        The most likely option of every choice stays.
        """


class NoPruning(Pruner):
    """Every option lives to the end."""

    form: Literal["none"] = "none"
    """Names this pruner in JSON and in ``--set pruner.form=none``."""

    def prune(self, arch: ArchParameters, epoch: int) -> list[tuple[str, str]]:
        """Nothing."""
        return []


class ThresholdPruner(Pruner):
    """From an epoch on, options whose probability falls below ``share`` of an even share die.

    With ``kinds=("depth",)`` this is cell-level pruning: once the late exits of a hyper-cell are dead, its
    last cells are computed no more, neither in the soft mixture nor by any draw.
    """

    form: Literal["threshold"] = "threshold"
    """Names this pruner in JSON and in ``--set pruner.form=threshold``."""
    share: float = Field(0.1, gt=0, lt=1)
    """Dies below ``share / live options``; 0.1 of five options is a probability of 0.02."""
    from_epoch: int = Field(0, ge=0)
    """First epoch (from 0) after which anything may die."""
    kinds: tuple[ChoiceKind, ...] = ("op", "depth", "input")
    """Kinds of choice that are pruned."""

    def prune(self, arch: ArchParameters, epoch: int) -> list[tuple[str, str]]:
        """Switch off the options under the threshold."""
        if epoch < self.from_epoch:
            return []
        died: list[tuple[str, str]] = []
        with torch.no_grad():
            probabilities = arch.by_name(arch.probabilities())
        best = arch.argmax()
        for row, choice in enumerate(arch.choices):
            if choice.kind not in self.kinds:
                continue
            live = [k for k in range(len(choice.options)) if bool(arch.alive[row, k])]
            for k in live:
                if k != best[choice.name] and probabilities[choice.name][k] < self.share / len(live):
                    arch.alive[row, k] = False
                    died.append((choice.name, choice.options[k]))
        return died


AnyPruner: TypeAlias = Annotated[NoPruning | ThresholdPruner, Field(discriminator="form")]
