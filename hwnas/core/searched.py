"""What a search is about: a space's supernet, what its choices are judged by, and the settings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hwnas.core.arch import ArchParameters
from hwnas.core.budget import Budget
from hwnas.core.choice import recompute
from hwnas.core.expected import ExpectedLatency, LatencyTableLike
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_data import SearchData
from hwnas.core.space import SearchSpace
from hwnas.core.training import torch_device
from hwnas.record import Recording


@dataclass(frozen=True)
class Searched:
    """What is searched, by what, and within what.

    Attributes:
        space: of the networks.
        net: its supernet, whose weights are trained (mutated).
        arch: the parameters of its choices (mutated).
        recording: of the supernet, under the table's batch.
        lut: milliseconds of every op; None: the search knows none.
        cost: of an assignment, by the table; None without one.
        budget: what networks may cost (mutated); None: anything.
        data: to train and to validate on.
        config: settings.
    """

    space: SearchSpace
    net: nn.Module
    arch: ArchParameters
    recording: Recording
    lut: LatencyTableLike | None
    cost: ExpectedLatency | None
    budget: Budget | None
    data: SearchData
    config: SearchConfig

    @classmethod
    def prepared(
        cls, space: SearchSpace, lut: LatencyTableLike | None, data: SearchData, config: SearchConfig
    ) -> Searched:
        """A fresh supernet with all that belongs to it, on the device of ``config``; draws random weights.

        Raises:
            InvalidInput: no such torch device here; a target without a table.
            InfeasibleBudget: no network of the space keeps the budget.
            SpaceError: the supernet breaks a rule of the recording, has nothing to choose, or computes
                outside of its ops where costs are asked for.
            MissingLatency: the table lacks rows of this space.
        """
        device = torch_device(config.device)
        net = space.supernet().to(device)
        if config.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.recompute:
            recompute(net)
        arch = ArchParameters(net).to(device)
        recording = space.record(batch=lut.header.batch if lut is not None else 1)
        cost = ExpectedLatency(recording, arch.choices, lut).to(device) if lut is not None else None
        budget = Budget.asked(space, arch.choices, lut, config.target_ms, config.budget)
        if budget is not None:
            budget.to(device).switch_off(arch)
        return cls(space, net, arch, recording, lut, cost, budget, data, config)

    @property
    def device(self) -> torch.device:
        """Where the supernet is."""
        return self.arch.alive.device
