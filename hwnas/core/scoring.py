"""What a network of a space is worth, by weights that all networks share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.core.checkpoint import reseeded
from hwnas.core.distributed import trained_as_one
from hwnas.core.fit import evaluate_with
from hwnas.core.genotype import Genotype
from hwnas.core.space import SearchSpace
from hwnas.core.training import TrainingPrecision, reestimate_statistics
from hwnas.processes import shared, told_by_first

Scores = Mapping[str, Any]
"""What a :class:`LossBeside` computed: the space's metric, its headline first, and ``"loss"``."""


class LossBeside:
    """A space's metric with the mean loss beside it; the loss alone where the space has no metric.

    Args:
        space: whose metric and loss.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.metric = space.metric()
        self.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch."""
        if self.metric is not None:
            self.metric.update(outputs, targets)
        self._total += float(self.space.loss(outputs, targets)) * len(targets)
        self._seen += len(targets)

    def compute(self) -> dict[str, Any]:
        """The metric's values, then ``"loss"``."""
        found = dict(self.metric.compute()) if self.metric is not None else {}
        return {**found, "loss": self._total / max(1, self._seen)}

    def reset(self) -> None:
        """Forget everything."""
        if self.metric is not None:
            self.metric.reset()
        self._total = 0.0
        self._seen = 0


def headline(scores: Scores) -> float:
    """The headline number, the higher the better: the metric's, or the loss with its sign turned.

    What is not finite, or not there, counts as the worst.
    """
    name = next(iter(scores), "loss")
    value = float(scores.get(name, math.nan))
    if not math.isfinite(value):
        return -math.inf
    return -value if name == "loss" else value


def by_loss(scores: Scores) -> float:
    """The loss with its sign turned: what networks with shared weights are compared by.

    Shared weights are far from any network's own, and a metric that counts right answers tells little of such
    networks; their loss ranks them better (``benchmarks/search_quality.py``).
    """
    return headline({"loss": scores["loss"]})


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
    """The metric and the loss of a network with the weights of ``supernet``.

    Its batch norms' statistics are taken anew. The supernet and every global random state are left as they
    were. Several processes call this together: each takes its share of the batches for the statistics,
    computes all scores, and gets the first one's.

    Args:
        space: whose network.
        supernet: whose weights.
        genotype: which network.
        train: gives the batches for the statistics, the same ones for every network of one ``seed``.
        val: what to score on.
        statistics_batches: how many batches of ``train``; 0 keeps the supernet's statistics.
        device: where to compute.
        seed: of the order of ``train``.
        precision: "bf16" for bfloat16 matrix work.
        channels_last: keep images in NHWC memory order.
    """
    network = space.build(genotype, supernet).to(device)
    how: dict[str, Any] = {"device": device, "precision": precision, "channels_last": channels_last}
    if statistics_batches:
        with reseeded(seed), trained_as_one(network):
            reestimate_statistics(network, itertools.islice(shared(train), statistics_batches), **how)
    scores = evaluate_with(network, val, LossBeside(space), **how)
    # Networks are compared by these, and processes that disagreed in a last bit would go on differently.
    return told_by_first(lambda: scores)
