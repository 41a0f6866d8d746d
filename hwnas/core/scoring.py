"""What a network of a space is worth, by weights that all networks share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.core.checkpoint import reseeded
from hwnas.core.fit import evaluate_with
from hwnas.core.genotype import Genotype
from hwnas.core.space import Metric, SearchSpace
from hwnas.core.training import TrainingPrecision, reestimate_statistics

Scores = Mapping[str, Any]
"""What a metric computed; the first entry is the headline number, the higher the better."""


class NegativeLoss:
    """The mean loss over batches with its sign turned, for spaces without a metric of their own."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch."""
        self.total -= float(self.loss(outputs, targets)) * len(targets)
        self.seen += len(targets)

    def compute(self) -> dict[str, float]:
        """``{"negative_loss": mean}``."""
        return {"negative_loss": self.total / max(1, self.seen)}

    def reset(self) -> None:
        """Forget everything."""
        self.total = 0.0
        self.seen = 0


def metric_of(space: SearchSpace) -> Metric:
    """The space's metric, or :class:`NegativeLoss` where it has none."""
    return space.metric() or NegativeLoss(space.loss)


def headline(scores: Scores) -> float:
    """The headline number; one that is not finite counts as the worst."""
    value = float(next(iter(scores.values())))
    return value if math.isfinite(value) else -math.inf


def shared_scores(
    space: SearchSpace,
    supernet: nn.Module,
    genotype: Genotype,
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    statistics_batches: int,
    device: torch.device,
    seed: int = 0,
    precision: TrainingPrecision = "fp32",
    channels_last: bool = False,
) -> dict[str, Any]:
    """The metric of a network with the weights of ``supernet``, its batch norms' statistics taken anew.

    The supernet and every global random state are left as they were.

    Args:
        space: whose network.
        supernet: whose weights.
        genotype: which network.
        train: gives the batches for the statistics, the same ones for every network of one ``seed``.
        val: what to score on.
        statistics_batches: how many batches of ``train``.
        device: where to compute.
        seed: of the order of ``train``.
        precision: "bf16" for bfloat16 matrix work.
        channels_last: keep images in NHWC memory order.
    """
    network = space.build(genotype, supernet).to(device)
    how: dict[str, Any] = {"device": device, "precision": precision, "channels_last": channels_last}
    with reseeded(seed):
        reestimate_statistics(network, itertools.islice(train, statistics_batches), **how)
    return evaluate_with(network, val, metric_of(space), **how)
