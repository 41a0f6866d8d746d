"""Expected cost: amounts under conditions, folded into a differentiable function of an assignment.

Latency is the first of them: a table folded with a recording.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from hwnas.core.choice import Choice
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.verification import Calibration, Verification
from hwnas.ops import OpKey
from hwnas.record import Condition, Recording, holds

Terms: TypeAlias = Sequence[tuple[Condition, float]]
"""A cost as a sum: each amount counts in the networks where its condition holds."""

_LARGEST_LOOKUP = 1 << 20  # combinations of options that are tabulated for one set of choices


class LatencySource(Protocol):
    """What the expectation needs of a table: :class:`hwnas.LatencyTable`, or a stand-in for it."""

    def require(self, keys: Sequence[OpKey]) -> None:
        """Raise MissingLatency unless every key has a row."""
        ...

    def latency_ms(self, key: OpKey) -> float:
        """The milliseconds of one row."""
        ...

    @property
    def calibration(self) -> Calibration:
        """What whole networks taught about the rows; changes nothing where none were measured."""
        ...

    @property
    def current_verification(self) -> Verification | None:
        """What whole networks said about the rows as they are, if any did."""
        ...


class LatencyTableLike(LatencySource, Protocol):
    """A latency table as the search needs it."""

    def check(
        self, *, backend: LatencyBackend | None = None, input_shape: tuple[int, ...] | None = None
    ) -> None:
        """Raise TableMismatch if the table was measured under other conditions, or at another resolution."""
        ...

    def doubts(self) -> list[str]:
        """Why its predictions should not be relied on, in sentences."""
        ...

    @property
    def header(self) -> Any:
        """Under which conditions the table was measured."""
        ...


class ExpectedCost(nn.Module):
    """The expected cost of a supernet as a function of an assignment Z ``[choices, options]``.

    ``cost(Z) = offset + Σ_terms amount · Π_choices Σ_options Z``, multilinear in Z: with Z = probabilities it
    is the exact expectation over independent draws; at one-hot it is the cost of that network.

    Terms with equal conditions are added up beforehand; what is left is one product with a 0/1 matrix, a
    gather, a product and a dot.

    Args:
        terms: amounts, and the condition under which each of them counts.
        choices: the choices in the order of the rows of Z.
        offset: what every network costs, whatever it runs.
    """

    factor_matrix: Tensor
    group_factors: Tensor
    group_amounts: Tensor
    penalised_rows: Tensor

    def __init__(self, terms: Terms, choices: Sequence[Choice], *, offset: float = 0.0) -> None:
        super().__init__()
        self.terms = list(terms)
        self.offset = offset
        rows = {choice.name: row for row, choice in enumerate(choices)}
        self._rows = rows
        self._sizes = [len(choice.options) for choice in choices]
        self._lookups: list[tuple[tuple[int, ...], tuple[int, ...], Tensor]] | None = None
        width = max(len(choice.options) for choice in choices)

        factors: dict[tuple[str, frozenset[int]], int] = {}
        groups: dict[tuple[int, ...], int] = {}
        totals: list[float] = []
        self._term_group: list[int] = []
        for condition, amount in self.terms:
            group = tuple(factors.setdefault(factor, len(factors)) for factor in condition)
            position = groups.setdefault(group, len(groups))
            if position == len(totals):
                totals.append(0.0)
            totals[position] += amount
            self._term_group.append(position)

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
        self.register_buffer("group_amounts", torch.tensor(totals))
        self.register_buffer(
            "penalised_rows", torch.tensor([choice.penalised for choice in choices]).unsqueeze(-1)
        )

    def forward(self, weights: Tensor) -> Tensor:
        """The cost of ``weights`` ``[…, choices, options]``, shape ``[…]``; differentiable."""
        return self._group_probabilities(weights) @ self.group_amounts.to(weights.dtype) + self.offset

    def penalised(self, weights: Tensor) -> Tensor:
        """The same number, without gradient to choices that bear no penalty (the aggregation cell's)."""
        cost: Tensor = self(torch.where(self.penalised_rows, weights, weights.detach()))
        return cost

    def total(self, weights: Tensor) -> float:
        """The cost of one assignment as a plain number."""
        with torch.no_grad():
            return float(self(weights))

    def at(self, assignment: Mapping[str, int]) -> float:
        """The cost of one network (choice name → option index), in double precision.

        The sum is rounded once, whatever the order of the terms: what is compared with a budget.
        """
        amounts = [amount for condition, amount in self.terms if holds(condition, assignment)]
        return math.fsum([self.offset, *amounts])

    def predict_many(self, indices: Tensor) -> Tensor:
        """The cost of many networks at once: option indices ``[networks, choices]`` → ``[networks]``.

        Equal to :meth:`forward` at one-hot, by another way: for each set of choices that terms depend on
        together the cost of every combination is tabulated once, so that a network takes a few additions.

        Args:
            indices: integers, in the order of the choices; those of choices that cannot matter are free.
        """
        if any(math.prod(self._sizes[row] for row in rows) > _LARGEST_LOOKUP for rows in self.by_rows()):
            return self._one_by_one(indices)
        if self._lookups is None:
            self._lookups = self._tabulated()
        total = torch.full((len(indices),), self.offset, dtype=torch.float64)
        columns = indices.to(torch.int64).cpu().T.contiguous()
        for rows, strides, amounts in self._lookups:
            place = torch.zeros(len(indices), dtype=torch.int64)
            for row, stride in zip(rows, strides, strict=True):
                place.add_(columns[row], alpha=stride)
            total += amounts[place]
        return total

    def by_rows(self) -> dict[tuple[int, ...], list[tuple[float, list[frozenset[int]]]]]:
        """The terms by the set of choices (rows of Z) that each depends on, with its options of each.

        A factor that holds all options of its choice is always 1, and left out.
        """
        sets: dict[tuple[int, ...], list[tuple[float, list[frozenset[int]]]]] = {}
        for condition, amount in self.terms:
            factors = [(self._rows[name], options) for name, options in condition]
            factors = [(row, options) for row, options in factors if len(options) < self._sizes[row]]
            rows = tuple(row for row, _ in factors)
            sets.setdefault(rows, []).append((amount, [options for _, options in factors]))
        return sets

    def _one_by_one(self, indices: Tensor) -> Tensor:
        """The same by :meth:`forward`, in portions that fit into memory."""
        width = max(self._sizes)
        parts = [
            self(torch.nn.functional.one_hot(part.to(torch.int64), width).to(self.group_amounts))
            for part in torch.split(indices, 4096)
        ]
        return torch.cat(parts).double().cpu()

    def _tabulated(self) -> list[tuple[tuple[int, ...], tuple[int, ...], Tensor]]:
        """For each set of choices named together: rows, strides, and the cost by combination."""
        lookups = []
        for rows, members in self.by_rows().items():
            sizes = [self._sizes[row] for row in rows]
            table = tabulated(members, sizes)
            strides = tuple(math.prod(sizes[place + 1 :]) for place in range(len(sizes)))
            lookups.append((rows, strides, table.flatten()))
        return lookups

    def _group_probabilities(self, weights: Tensor) -> Tensor:
        flat = weights.flatten(-2)
        factors = flat @ self.factor_matrix.to(weights.dtype).T
        factors = torch.cat([factors, torch.ones_like(flat[..., :1])], dim=-1)
        product = torch.ones_like(factors[..., :1]).expand(*factors.shape[:-1], len(self.group_factors))
        for position in range(self.group_factors.shape[1]):
            product = product * factors[..., self.group_factors[:, position]]
        return product


def tabulated(members: Sequence[tuple[float, Sequence[frozenset[int]]]], sizes: Sequence[int]) -> Tensor:
    """Terms of one set of choices as their sum by combination of options, shape ``sizes``, float64."""
    table = torch.zeros(list(sizes), dtype=torch.float64)
    for amount, conditions in members:
        part = torch.tensor(amount, dtype=torch.float64)
        for size, options in zip(sizes, conditions, strict=True):
            chosen = torch.zeros(size, dtype=torch.float64)
            chosen[list(options)] = 1.0
            part = part.unsqueeze(-1) * chosen
        table += part
    return table


class ExpectedLatency(ExpectedCost):
    """The expected milliseconds of a supernet as a function of an assignment Z ``[choices, options]``.

    ``latency(Z) = Σ_uses t(key) · Π_choices Σ_options Z``: at the relaxed sample this is the paper's form
    (Eq. 4 and 7), in which depth enters cumulatively; at one-hot the sum of table rows of that network.

    A table that was verified has a calibration, ``scale · Σ + offset + per_op · number of ops``: it is part
    of the function, which stays multilinear and differentiable.

    Args:
        recording: what the supernet runs, and when.
        choices: the choices in the order of the rows of Z.
        table: milliseconds by op key.

    Raises:
        MissingLatency: the table lacks a row for a key of the recording.
    """

    def __init__(self, recording: Recording, choices: Sequence[Choice], table: LatencySource) -> None:
        table.require(recording.keys())
        calibration, verification = table.calibration, table.current_verification
        terms = [
            (use.condition, calibration.scale * table.latency_ms(use.key) + calibration.per_op_ms)
            for use in recording.ops
        ]
        super().__init__(terms, choices, offset=calibration.offset_ms)
        self.uses = recording.ops
        self._interval = (
            None
            if verification is None
            else (1 + verification.low_percent / 100, 1 + verification.high_percent / 100)
        )

    def interval_ms(self, weights: Tensor) -> tuple[float, float] | None:
        """The 95 % interval of one assignment's milliseconds; None where the table was never verified.

        From how far the networks of the verification, which no fit had seen, lay from their predictions.
        """
        if self._interval is None:
            return None
        total = self.total(weights)
        return total * self._interval[0], total * self._interval[1]

    def by_block(self, weights: Tensor, depth: int = 1) -> dict[str, float]:
        """Milliseconds by part of the network: by the first ``depth`` names of the ops' module paths.

        A calibration's offset is in none of them.
        """
        return self._split(weights, [".".join(use.path.split(".")[:depth]) for use in self.uses])

    def by_kind(self, weights: Tensor) -> dict[str, float]:
        """Milliseconds by kind of op. A calibration's offset is in none of them."""
        return self._split(weights, [use.key.spec.kind for use in self.uses])

    def _split(self, weights: Tensor, labels: Sequence[str]) -> dict[str, float]:
        with torch.no_grad():
            probabilities = self._group_probabilities(weights).tolist()
        shares: dict[str, float] = {}
        for label, (_, ms), group in zip(labels, self.terms, self._term_group, strict=True):
            shares[label] = shares.get(label, 0.0) + ms * probabilities[group]
        return shares
