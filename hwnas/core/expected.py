"""Expected latency: a table folded with a recording into a differentiable function of an assignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hwnas.core.choice import Choice
from hwnas.ops import OpKey
from hwnas.record import Recording


class LatencySource(Protocol):
    """What the expectation needs of a table: :class:`hwnas.LatencyTable`, or a stand-in for it."""

    def require(self, keys: Sequence[OpKey]) -> None:
        """Raise MissingLatency unless every key has a row."""
        ...

    def latency_ms(self, key: OpKey) -> float:
        """The milliseconds of one row."""
        ...


class ExpectedLatency(nn.Module):
    """The expected milliseconds of a supernet as a function of an assignment Z ``[choices, options]``.

    ``latency(Z) = Σ_uses t(key) · Π_choices Σ_options Z``, multilinear in Z: with Z = probabilities it is the
    exact expectation over independent draws; at one-hot it is the sum of table rows of that network; with the
    relaxed sample it is the paper's form (Eq. 4 and 7), in which depth enters cumulatively.

    Op uses with equal conditions are added up beforehand; what is left is one product with a 0/1 matrix, a
    gather, a product and a dot.

    Args:
        recording: what the supernet runs, and when.
        choices: the choices in the order of the rows of Z.
        table: milliseconds by op key.

    Raises:
        MissingLatency: the table lacks a row for a key of the recording.
    """

    factor_matrix: Tensor
    group_factors: Tensor
    group_ms: Tensor
    penalised_rows: Tensor

    def __init__(self, recording: Recording, choices: Sequence[Choice], table: LatencySource) -> None:
        super().__init__()
        table.require(recording.keys())
        self.uses = recording.ops
        self._use_ms = [table.latency_ms(use.key) for use in self.uses]
        rows = {choice.name: row for row, choice in enumerate(choices)}
        width = max(len(choice.options) for choice in choices)

        factors: dict[tuple[str, frozenset[int]], int] = {}
        groups: dict[tuple[int, ...], int] = {}
        totals: list[float] = []
        self._use_group: list[int] = []
        for use, ms in zip(self.uses, self._use_ms, strict=True):
            group = tuple(factors.setdefault(factor, len(factors)) for factor in use.condition)
            position = groups.setdefault(group, len(groups))
            if position == len(totals):
                totals.append(0.0)
            totals[position] += ms
            self._use_group.append(position)

        matrix = torch.zeros(len(factors), len(choices) * width)
        for (name, options), factor in factors.items():
            for option in options:
                matrix[factor, rows[name] * width + option] = 1.0
        longest = max((len(group) for group in groups), default=0)
        # Shorter conditions are padded with one more factor that is always 1.
        padded = [list(group) + [len(factors)] * (longest - len(group)) for group in groups]
        self.register_buffer("factor_matrix", matrix)
        self.register_buffer(
            "group_factors", torch.tensor(padded, dtype=torch.long).reshape(len(groups), longest)
        )
        self.register_buffer("group_ms", torch.tensor(totals))
        self.register_buffer(
            "penalised_rows", torch.tensor([choice.penalised for choice in choices]).unsqueeze(-1)
        )

    def forward(self, weights: Tensor) -> Tensor:
        """Milliseconds of ``weights`` ``[…, choices, options]``, shape ``[…]``; differentiable."""
        return self._group_probabilities(weights) @ self.group_ms.to(weights.dtype)

    def penalised(self, weights: Tensor) -> Tensor:
        """The same number, without gradient to choices that bear no penalty (the aggregation cell's)."""
        latency_ms: Tensor = self(torch.where(self.penalised_rows, weights, weights.detach()))
        return latency_ms

    def total(self, weights: Tensor) -> float:
        """Milliseconds of one assignment as a plain number."""
        with torch.no_grad():
            return float(self(weights))

    def by_block(self, weights: Tensor, depth: int = 1) -> dict[str, float]:
        """Milliseconds by part of the network: by the first ``depth`` names of the ops' module paths."""
        return self._split(weights, [".".join(use.path.split(".")[:depth]) for use in self.uses])

    def by_kind(self, weights: Tensor) -> dict[str, float]:
        """Milliseconds by kind of op."""
        return self._split(weights, [use.key.spec.kind for use in self.uses])

    def _split(self, weights: Tensor, labels: Sequence[str]) -> dict[str, float]:
        with torch.no_grad():
            probabilities = self._group_probabilities(weights).tolist()
        shares: dict[str, float] = {}
        for label, ms, group in zip(labels, self._use_ms, self._use_group, strict=True):
            shares[label] = shares.get(label, 0.0) + ms * probabilities[group]
        return shares

    def _group_probabilities(self, weights: Tensor) -> Tensor:
        flat = weights.flatten(-2)
        factors = flat @ self.factor_matrix.to(weights.dtype).T
        factors = torch.cat([factors, torch.ones_like(flat[..., :1])], dim=-1)
        product = torch.ones_like(factors[..., :1]).expand(*factors.shape[:-1], len(self.group_factors))
        for position in range(self.group_factors.shape[1]):
            product = product * factors[..., self.group_factors[:, position]]
        return product
