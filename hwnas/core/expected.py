"""Expected latency: a table folded with a recording into a differentiable function of an assignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hwnas.core.choice import Choice
from hwnas.latency.verification import Calibration, Verification
from hwnas.ops import OpKey
from hwnas.record import Recording

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


class ExpectedLatency(nn.Module):
    """The expected milliseconds of a supernet as a function of an assignment Z ``[choices, options]``.

    ``latency(Z) = Σ_uses t(key) · Π_choices Σ_options Z``, multilinear in Z: with Z = probabilities it is the
    exact expectation over independent draws; at one-hot it is the sum of table rows of that network; with the
    relaxed sample it is the paper's form (Eq. 4 and 7), in which depth enters cumulatively.

    A table that was verified has a calibration, ``scale · Σ + offset + per_op · number of ops``: it is part
    of the function, which stays multilinear and differentiable.

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
        calibration, verification = table.calibration, table.current_verification
        self._use_ms = [
            calibration.scale * table.latency_ms(use.key) + calibration.per_op_ms for use in self.uses
        ]
        self.offset_ms = calibration.offset_ms
        """Milliseconds that no op accounts for."""
        self._interval = (
            None
            if verification is None
            else (1 + verification.low_percent / 100, 1 + verification.high_percent / 100)
        )
        rows = {choice.name: row for row, choice in enumerate(choices)}
        self._rows = rows
        self._sizes = [len(choice.options) for choice in choices]
        self._lookups: list[tuple[tuple[int, ...], tuple[int, ...], Tensor]] | None = None
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
        return self._group_probabilities(weights) @ self.group_ms.to(weights.dtype) + self.offset_ms

    def penalised(self, weights: Tensor) -> Tensor:
        """The same number, without gradient to choices that bear no penalty (the aggregation cell's)."""
        latency_ms: Tensor = self(torch.where(self.penalised_rows, weights, weights.detach()))
        return latency_ms

    def total(self, weights: Tensor) -> float:
        """Milliseconds of one assignment as a plain number."""
        with torch.no_grad():
            return float(self(weights))

    def interval_ms(self, weights: Tensor) -> tuple[float, float] | None:
        """The 95 % interval of one assignment's milliseconds; None where the table was never verified.

        From how far the networks of the verification, which no fit had seen, lay from their predictions.
        """
        if self._interval is None:
            return None
        total = self.total(weights)
        return total * self._interval[0], total * self._interval[1]

    def predict_many(self, indices: Tensor) -> Tensor:
        """Milliseconds of many networks at once: option indices ``[networks, choices]`` → ``[networks]``.

        Equal to :meth:`forward` at one-hot, by another way: for each set of choices that ops depend on
        together the milliseconds of all combinations are tabulated once, so that a network costs a few
        additions.

        Args:
            indices: integers, in the order of the choices; those of choices that cannot matter are free.
        """
        if any(math.prod(self._sizes[row] for row in rows) > _LARGEST_LOOKUP for rows in self._row_sets()):
            return self._one_by_one(indices)
        if self._lookups is None:
            self._lookups = self._tabulated()
        total = torch.full((len(indices),), self.offset_ms, dtype=torch.float64)
        columns = indices.to(torch.int64).cpu().T.contiguous()
        for rows, strides, milliseconds in self._lookups:
            place = torch.zeros(len(indices), dtype=torch.int64)
            for row, stride in zip(rows, strides, strict=True):
                place.add_(columns[row], alpha=stride)
            total += milliseconds[place]
        return total

    def _row_sets(self) -> set[tuple[int, ...]]:
        return {tuple(self._rows[name] for name, _ in use.condition) for use in self.uses}

    def _one_by_one(self, indices: Tensor) -> Tensor:
        """The same by :meth:`forward`, in portions that fit into memory."""
        width = max(self._sizes)
        parts = [
            self(torch.nn.functional.one_hot(part.to(torch.int64), width).to(self.group_ms))
            for part in torch.split(indices, 4096)
        ]
        return torch.cat(parts).double().cpu()

    def _tabulated(self) -> list[tuple[tuple[int, ...], tuple[int, ...], Tensor]]:
        """For each set of choices named together: rows, strides, and the milliseconds by combination."""
        sets: dict[tuple[int, ...], list[tuple[float, list[frozenset[int]]]]] = {}
        for use, ms in zip(self.uses, self._use_ms, strict=True):
            rows = tuple(self._rows[name] for name, _ in use.condition)
            sets.setdefault(rows, []).append((ms, [options for _, options in use.condition]))
        lookups = []
        for rows, members in sets.items():
            sizes = [self._sizes[row] for row in rows]
            table = torch.zeros(sizes, dtype=torch.float64)
            for ms, conditions in members:
                part = torch.tensor(ms, dtype=torch.float64)
                for size, options in zip(sizes, conditions, strict=True):
                    chosen = torch.zeros(size, dtype=torch.float64)
                    chosen[list(options)] = 1.0
                    part = part.unsqueeze(-1) * chosen
                table += part
            strides = tuple(math.prod(sizes[place + 1 :]) for place in range(len(sizes)))
            lookups.append((rows, strides, table.flatten()))
        return lookups

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
