"""Discretisation under budgets: the likeliest network that keeps them all, found exactly.

A network is one option of each choice, and its costs are sums of terms under conditions: a linear programme
in 0/1 variables, solved by HiGHS (Huangfu and Hall 2018) through SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwnas.core.choice import Choice
from hwnas.core.expected import ExpectedCost, tabulated
from hwnas.errors import HwnasError
from hwnas.record import Condition, Recording

_LARGEST_JOINT = 4096  # combinations of options that get a variable each
_SCALE = 1000.0  # HiGHS keeps a row to 1e-6; scaled to this size, a limit is kept to 1e-9 of itself
_ROUNDING = 1e-10  # relative: more than two orders of summing can differ by
_NEAR_MISSES = 100  # networks within tolerance of a limit, on its wrong side, that are ruled out one by one
_NARROWER = 1e-8  # relative: what limits give way by after that, so that an end is sure
_INFEASIBLE = 2  # status of scipy.optimize.milp


@dataclass(frozen=True)
class Limit:
    """A cost that must lie between two values, both included."""

    cost: ExpectedCost
    most: float
    least: float = -math.inf

    def keeps(self, assignment: Mapping[str, int]) -> bool:
        """Whether one network keeps it, by its exact sum."""
        return self.least <= self.cost.at(assignment) <= self.most


def relative_likelihoods(logits: Tensor, alive: Tensor) -> NDArray[np.float64]:
    """``ln(p / p of the likeliest option)`` of every option, ``[choices, options]``; −∞ for dead ones.

    What a network loses by not taking the likeliest option of each choice. The *likeliest network* is the one
    whose losses, summed over the choices that matter in it, are least. Choices that do not matter lose
    nothing, so networks of few choices have no advantage over deep ones, and without a budget the likeliest
    network is the one of the likeliest options.
    """
    masked = logits.detach().double().cpu().masked_fill(~alive.cpu(), -math.inf)
    return (masked - masked.max(dim=-1, keepdim=True).values).numpy()


class Programme:
    """The networks of a supernet as a 0/1 programme.

    A variable ``x[c, k]`` for each option, one of each choice being 1. Terms that depend on several choices
    together get a variable for each combination, whose sums over all but one choice must be that choice's
    ``x``: for a depth and an op that is as tight as can be, so that there is next to nothing to branch on.

    Args:
        choices: in the order of the costs' rows.
        recording: says which choices matter in a network.
        forbidden: conditions that must not be met, such as that of an op too large to run.
    """

    def __init__(
        self, choices: Sequence[Choice], recording: Recording, forbidden: Iterable[Condition] = ()
    ) -> None:
        self.choices = tuple(choices)
        self.recording = recording
        self.forbidden = list(dict.fromkeys(forbidden))
        self._shape = (len(self.choices), max(len(choice.options) for choice in self.choices))

    def likeliest(
        self,
        likelihoods: NDArray[np.float64],
        limits: Sequence[Limit],
        *,
        without: Collection[Mapping[str, int]] = (),
    ) -> dict[str, int] | None:
        """The network with the largest sum of ``likelihoods`` that keeps all ``limits``; None if none does.

        Exact: no network that keeps them has a sum larger by more than 1e-6, and every limit is kept by the
        network's own sum, rounded once, not only by the solver's. (Where a hundred likelier networks miss a
        limit by less than 1e-9 of it, those within 1e-8 of it are given up.)

        Args:
            likelihoods: ``[choices, options]``, as of :func:`relative_likelihoods`; −∞ rules an option out.
            limits: costs with what they may be at most, and must be at least.
            without: networks that must not be found again.
        """
        model = self._model(likelihoods > -math.inf, limits, without)
        return self._solved(model, model.per_option(likelihoods), limits)

    def any(self, limits: Sequence[Limit] = ()) -> dict[str, int] | None:
        """Some network that keeps all ``limits``; None if none does."""
        return self.likeliest(np.zeros(self._shape), limits)

    def possible(self, limits: Sequence[Limit] = ()) -> bool:
        """Whether any network keeps all ``limits``."""
        return self.any(limits) is not None

    def cheapest(self, cost: ExpectedCost, limits: Sequence[Limit] = ()) -> dict[str, int] | None:
        """The network of least ``cost`` that keeps all ``limits``; None if none does."""
        return self._extreme(cost, limits, -1.0)

    def dearest(self, cost: ExpectedCost, limits: Sequence[Limit] = ()) -> dict[str, int] | None:
        """The network of greatest ``cost`` that keeps all ``limits``; None if none does."""
        return self._extreme(cost, limits, 1.0)

    def live(self, assignment: Mapping[str, int]) -> dict[str, int]:
        """The part of an assignment that matters: equal for equal networks."""
        return {name: assignment[name] for name in self.recording.live_choices(assignment)}

    def _extreme(self, cost: ExpectedCost, limits: Sequence[Limit], sign: float) -> dict[str, int] | None:
        model = self._model(np.ones(self._shape, dtype=bool), limits, ())
        form = model.of(cost)[0]
        # Where no choice costs anything, all networks are alike, and any is the answer.
        largest = max(map(abs, form.values()), default=0.0) or 1.0
        return self._solved(
            model, {column: sign * _SCALE * value / largest for column, value in form.items()}, limits
        )

    def _model(
        self,
        alive: NDArray[np.bool_],
        limits: Sequence[Limit],
        without: Collection[Mapping[str, int]],
    ) -> _Model:
        model = _Model(self.choices, alive)
        for limit in limits:
            model.limit(limit)
        for condition in self.forbidden:
            model.forbid(condition)
        for network in without:
            model.forbid(_exactly(self.live(network)))
        return model

    def _solved(self, model: _Model, objective: _Form, limits: Sequence[Limit]) -> dict[str, int] | None:
        tries = 0
        while True:
            assignment = model.best(objective)
            if assignment is None or all(limit.keeps(assignment) for limit in limits):
                return assignment
            # Within the solver's tolerance of a limit and beyond it all the same: on to the next.
            model.forbid(_exactly(self.live(assignment)))
            tries += 1
            if tries == _NEAR_MISSES:
                for limit in limits:
                    model.limit(limit, narrower=_NARROWER)


_Form: TypeAlias = Mapping[int, float]
"""A linear form: column → coefficient."""


def _exactly(assignment: Mapping[str, int]) -> Condition:
    return tuple((name, frozenset({option})) for name, option in assignment.items())


class _Model:
    """Columns, rows and bounds of one programme; the first columns are the options of all choices."""

    def __init__(self, choices: Sequence[Choice], alive: NDArray[np.bool_]) -> None:
        self.choices = choices
        self.sizes = [len(choice.options) for choice in choices]
        self.first = [0, *accumulate(self.sizes)]
        self.row_of = {choice.name: row for row, choice in enumerate(choices)}
        self.columns = self.first[-1]
        self.rows: list[tuple[_Form, float, float]] = []
        self.joint: dict[tuple[int, ...], NDArray[np.intp]] = {}
        self.products: dict[tuple[tuple[int, frozenset[int]], ...], int] = {}
        self.alive = np.concatenate([alive[row, :size] for row, size in enumerate(self.sizes)])
        for row in range(len(choices)):
            self.rows.append((dict.fromkeys(self._options(row), 1.0), 1.0, 1.0))

    def per_option(self, values: NDArray[np.float64]) -> _Form:
        """The form with a value for each option, ``[choices, options]``; −∞, ruled out elsewhere, as 0."""
        return {
            self.first[row] + k: float(values[row, k])
            for row, size in enumerate(self.sizes)
            for k in range(size)
            if math.isfinite(values[row, k])
        }

    def of(self, cost: ExpectedCost) -> tuple[_Form, float]:
        """A cost as a linear form and a constant; adds the columns and rows that it takes."""
        form: dict[int, float] = {}
        constant = [cost.offset]
        for rows, members in cost.by_rows().items():
            sizes = [self.sizes[row] for row in rows]
            if not rows:
                constant += [amount for amount, _ in members]
            elif len(rows) == 1 or math.prod(sizes) <= _LARGEST_JOINT:
                amounts = tabulated(members, sizes).numpy().ravel()
                for place, amount in zip(self._combinations(rows).ravel(), amounts, strict=True):
                    form[int(place)] = form.get(int(place), 0.0) + float(amount)
            else:
                for amount, options in members:
                    column = self._product(tuple(zip(rows, options, strict=True)))
                    form[column] = form.get(column, 0.0) + amount
        return form, math.fsum(constant)

    def limit(self, limit: Limit, narrower: float = 0.0) -> None:
        """Keep a cost between two values, or closer together by ``narrower`` of the larger of them."""
        form, constant = self.of(limit.cost)
        bounds = [abs(value) for value in (limit.most, limit.least) if math.isfinite(value)]
        scale = _SCALE / (max(bounds, default=1.0) or 1.0)
        # A little wider than asked, since sums in another order round differently; what is found is checked.
        wider = (_ROUNDING - narrower) * _SCALE
        self.rows.append(
            (
                {column: value * scale for column, value in form.items()},
                (limit.least - constant) * scale - wider,
                (limit.most - constant) * scale + wider,
            )
        )

    def forbid(self, condition: Condition) -> None:
        """Rule out the networks that meet ``condition``."""
        form = {
            self.first[self.row_of[name]] + option: 1.0 for name, options in condition for option in options
        }
        self.rows.append((form, -math.inf, len(condition) - 1.0))

    def best(self, objective: _Form) -> dict[str, int] | None:
        """The assignment that maximises ``objective``; None if none keeps the rows.

        Raises:
            HwnasError: the solver gave up.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # 0.25 s: only where it is needed
        from scipy.sparse import csr_array

        coefficients = np.zeros(self.columns)
        coefficients[list(objective)] = list(objective.values())
        starts = [0, *accumulate(len(form) for form, _, _ in self.rows)]
        matrix = csr_array(
            (
                [value for form, _, _ in self.rows for value in form.values()],
                [column for form, _, _ in self.rows for column in form],
                starts,
            ),
            shape=(len(self.rows), self.columns),
        )
        count = self.first[-1]
        upper = np.ones(self.columns)
        upper[:count] = self.alive
        integral = np.zeros(self.columns, dtype=np.int64)
        integral[:count] = 1
        solved = milp(
            -coefficients,
            integrality=integral,
            bounds=Bounds(0.0, upper),
            constraints=LinearConstraint(
                matrix, [low for _, low, _ in self.rows], [high for _, _, high in self.rows]
            ),
            options={"mip_rel_gap": 0.0},
        )
        if solved.status == _INFEASIBLE:
            return None
        if solved.x is None or solved.status != 0:
            raise HwnasError(f"HiGHS could not solve the discretisation: {solved.message}")
        return {
            choice.name: int(np.argmax(solved.x[self.first[row] : self.first[row + 1]]))
            for row, choice in enumerate(self.choices)
        }

    def _options(self, row: int) -> range:
        return range(self.first[row], self.first[row + 1])

    def _combinations(self, rows: tuple[int, ...]) -> NDArray[np.intp]:
        """The columns of all combinations of options of these choices, ``[options, options, …]``."""
        if len(rows) == 1:
            return np.arange(self.first[rows[0]], self.first[rows[0] + 1])
        if rows not in self.joint:
            sizes = [self.sizes[row] for row in rows]
            columns = np.arange(self.columns, self.columns + math.prod(sizes)).reshape(sizes)
            self.columns += columns.size
            self.joint[rows] = columns
            for axis, row in enumerate(rows):
                for option, column in enumerate(self._options(row)):
                    members = np.take(columns, option, axis=axis).ravel().tolist()
                    self.rows.append(({**dict.fromkeys(members, 1.0), column: -1.0}, 0.0, 0.0))
        return self.joint[rows]

    def _product(self, factors: tuple[tuple[int, frozenset[int]], ...]) -> int:
        """The column of a product of sums of options, for sets of choices too large to enumerate."""
        if factors not in self.products:
            product = self.products[factors] = self.columns
            self.columns += 1
            every: dict[int, float] = {product: -1.0}
            for row, options in factors:
                some = {self.first[row] + option: 1.0 for option in options}
                self.rows.append(({**some, product: -1.0}, 0.0, math.inf))
                every |= some
            self.rows.append((every, -math.inf, len(factors) - 1.0))
        return self.products[factors]
