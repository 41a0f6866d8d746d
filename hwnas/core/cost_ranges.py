"""What the networks of a space cost: the cheapest, a typical one, the dearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from hwnas.core.choice import Choice
from hwnas.core.costs import activation_mib, macs, parameters, peak
from hwnas.core.discretise import Programme
from hwnas.core.expected import ExpectedCost, ExpectedLatency, LatencyTableLike
from hwnas.core.space import SearchSpace
from hwnas.record import Condition

_SAMPLES = 2000  # random networks whose median is a space's
_PEAKS = 200  # of these, networks whose peak is looked up: one by one, in Python


@dataclass(frozen=True)
class Range:
    """What the networks of a space cost: the cheapest, a typical one (median of random ones), the dearest."""

    min: float
    median: float
    max: float

    def __str__(self) -> str:
        return f"{self.min:.4g} (min), {self.median:.4g} (median), {self.max:.4g} (max)"


def range_of(cost: ExpectedCost, programme: Programme) -> Range:
    """The cheapest and the dearest network exactly, the median of random ones."""
    ends = [found for found in (programme.cheapest(cost), programme.dearest(cost)) if found is not None]
    return Range(
        cost.at(ends[0]), float(cost.predict_many(_random(programme.choices)).median()), cost.at(ends[-1])
    )


def peak_range(uses: Sequence[tuple[Condition, float]], programme: Programme) -> Range:
    """The same of a cost that is a maximum over what runs, not a sum; the median of fewer random ones."""
    names = [choice.name for choice in programme.choices]
    drawn = [dict(zip(names, row, strict=True)) for row in _random(programme.choices)[:_PEAKS].tolist()]
    return Range(
        peak(uses, of_least_peak(uses, programme)),
        median(peak(uses, assignment) for assignment in drawn),
        max(amount for _, amount in uses),
    )


def of_least_peak(uses: Sequence[tuple[Condition, float]], programme: Programme) -> dict[str, int]:
    """A network whose largest amount of all that runs is the least."""
    values = sorted({amount for _, amount in uses})

    def within(most: float) -> dict[str, int] | None:
        forbidden = [condition for condition, amount in uses if amount > most]
        return Programme(programme.choices, programme.recording, forbidden).any()

    found = within(values[-1])
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        network = within(values[middle])
        if network is None:
            low = middle + 1
        else:
            found, high = network, middle
    assert found is not None, "nothing is forbidden above the greatest amount"
    return found


def _random(choices: Sequence[Choice]) -> Tensor:
    """Option indices of random networks ``[networks, choices]``; the same in whichever order choices come."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        choice.name: torch.randint(len(choice.options), (_SAMPLES,), generator=generator)
        for choice in sorted(choices, key=lambda choice: choice.name)
    }
    return torch.stack([drawn[choice.name] for choice in choices], dim=1)


def ranges(space: SearchSpace, table: LatencyTableLike | None = None) -> dict[str, Range]:
    """What the networks of a space cost, by the name of the cost; milliseconds where there is a table.

    Raises:
        MissingLatency: the table lacks rows of the space.
    """
    choices = list(space.choices().values())
    batch, bytes_per_value = batch_and_bytes(table)
    recording = space.record(batch=batch)
    programme = Programme(choices, recording)
    costs: dict[str, ExpectedCost] = {}
    if table is not None:
        costs["latency_ms"] = ExpectedLatency(recording, choices, table)
    costs |= {"params": parameters(space, choices), "macs": macs(space, choices)}
    found = {name: range_of(cost, programme) for name, cost in costs.items()}
    return found | {"activation_mib": peak_range(activation_mib(recording, bytes_per_value), programme)}


def batch_and_bytes(table: LatencyTableLike | None) -> tuple[int, int]:
    """Batch, and bytes of an activation, under a table's conditions."""
    if table is None:
        return 1, 4
    return table.header.batch, 2 if table.header.precision in ("fp16", "bf16") else 4
