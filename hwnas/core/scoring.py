"""What a network of a space is worth, by weights that all networks share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.core.checkpoint import reseeded
from hwnas.core.distributed import Additive, trained_as_one
from hwnas.core.evaluation import evaluate_with
from hwnas.core.genotype import Genotype
from hwnas.core.space import SearchSpace
from hwnas.core.training import TrainingPrecision, reestimate_statistics
from hwnas.processes import shared, told_by_first

Scores = Mapping[str, Any]
"""What a :class:`LossBeside` computed: the space's metric, its headline first, and ``"loss"``."""


class LossBeside:
    """A space's metric with the mean loss beside it; the loss alone where the space has no metric.

    The loss is that of all batches as one: each batch's counts by :meth:`SearchSpace.loss_weight`. Made of a
    space, it is one that processes share (:class:`hwnas.core.distributed.Additive`) where the metric is.

    Args:
        space: whose metric and loss.
    """

    def __new__(cls, space: SearchSpace) -> LossBeside:
        """One whose sums can be added up, where the metric's can."""
        metric = space.metric()
        additive = metric is None or isinstance(metric, Additive)
        return super().__new__(_AdditiveLossBeside if additive else LossBeside)

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.metric = space.metric()
        self.reset()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch."""
        if self.metric is not None:
            self.metric.update(outputs, targets)
        weight = float(self.space.loss_weight(targets))
        # Where nothing counts, such as in images without a known pixel, a loss may be no number.
        if weight > 0:
            self._total += float(self.space.loss(outputs, targets)) * weight
            self._seen += weight

    def compute(self) -> dict[str, Any]:
        """The metric's values, then ``"loss"``."""
        found = dict(self.metric.compute()) if self.metric is not None else {}
        return {**found, "loss": self._total / self._seen if self._seen else 0.0}

    def reset(self) -> None:
        """Forget everything."""
        if self.metric is not None:
            self.metric.reset()
        self._total = 0.0
        self._seen = 0.0


class _AdditiveLossBeside(LossBeside):
    """Sums of the loss, then those of the metric."""

    def sums(self) -> Tensor:
        own = torch.tensor([self._total, self._seen], dtype=torch.float64)
        if self._counts is None:
            return own
        # Counts below 2^53 are exact in double precision.
        counted = self._counts.sums()
        return torch.cat([own.to(counted.device), counted.double().flatten()])

    def take_sums(self, sums: Tensor) -> None:
        self._total, self._seen = sums[:2].tolist()
        if self._counts is not None:
            before = self._counts.sums()
            self._counts.take_sums(sums[2:].reshape(before.shape).to(before.dtype))

    @property
    def _counts(self) -> Additive | None:
        metric: Any = self.metric
        return metric if isinstance(metric, Additive) else None


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
    were. Several processes call this together: they share the batches, and all get the first one's scores.

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
    scores = evaluate_with(network, val, LossBeside(space), shared=True, **how)
    # Networks are compared by these, and processes that disagreed in a last bit would go on differently.
    return told_by_first(lambda: scores)
