"""What a search or a training reports while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The state of a run after a step or an epoch.

    Attributes:
        epoch: counted from 0.
        epochs: how many there will be.
        step: batches done since the beginning of the run.
        end_of_epoch: whether this closes an epoch.
        values: the numbers of the moment: loss, temperature, expected_ms and whatever else is logged.
    """

    epoch: int
    epochs: int
    step: int
    end_of_epoch: bool
    values: dict[str, Any] = field(default_factory=dict)
