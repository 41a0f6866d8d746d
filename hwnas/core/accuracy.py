"""How often a classifier is right."""

from __future__ import annotations

import torch
from torch import Tensor


class Accuracy:
    """Share of right answers, in percent; the headline metric of a classifier.

    Every target counts, one of a label that is to be ignored too.
    """

    def __init__(self) -> None:
        self.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits ``[N, classes, …]`` and targets ``[N, …]``, int64 classes."""
        self.right += int((outputs.argmax(dim=1) == targets).sum())
        self.seen += targets.numel()

    def compute(self) -> dict[str, float]:
        """``{"accuracy": percent}``; 0 before anything was seen."""
        return {"accuracy": 100.0 * self.right / max(1, self.seen)}

    def sums(self) -> Tensor:
        """Right answers, and all: ``[2]``, int64, to be added up over processes."""
        return torch.tensor([self.right, self.seen])

    def take_sums(self, sums: Tensor) -> None:
        """Replace both by sums such as :meth:`sums` gives."""
        self.right, self.seen = sums.tolist()

    def reset(self) -> None:
        """Forget everything."""
        self.right = 0
        self.seen = 0
