"""Rows from whole networks: what each op costs where it really runs, solved from end-to-end timings.

A network that runs op k ``n_k`` times takes ``Σ_k n_k · x_k`` milliseconds if latency adds up. Ops that
always run together cannot be told apart by any number of networks; what decides between them, and keeps the
rest from following the noise, is a prior: the ops timed alone (or a formula), brought to the networks' level.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from hwnas.errors import InvalidInput, MeasurementFailed
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey

Vector = NDArray[np.float64]

# Relative standard deviations tried for the additive model's misfit, and for what each row has of its own
# against the prior; the networks left out weigh them. Steps are fine, for between two coarse ones a little
# noise decides.
_MISFITS = (1e-8, 1e-6, 1e-4, 1e-3, 2e-3, 3e-3, 5e-3, 7e-3, 0.01, 0.014, 0.02, 0.03, 0.04, 0.07, 0.1)
_OF_ROWS = (0.003, 0.005, 0.01, 0.014, 0.02, 0.03, 0.04, 0.055, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 1.0)
# Width of what all ops of a kind have in common against the prior, over that of a single row. Free, it
# foretells networks no better, and makes two builds of a table differ by which of the two they widen.
_KINDS_OVER_ROWS = 2.0
# Before anything is known, a hypothesis of wider rows weighs less by this power of their width: what networks
# foretell equally well with rows as they are alone, need not move any. A power, for a runtime that fuses must
# be able to overrule it.
_POWER_OF_WIDTH = 3.0
_LEAST_WEIGHT = 1e-3  # of a hypothesis that is worth solving for
# A term of the prior's level must differ from nothing by so many standard errors. What is known to a third of
# itself is there in one build of a table and not in the next, and moves the cheapest rows.
_CLEAR_ERRORS = 5.0
_NETWORKS_PER_TERM = 3
_SAYS_NOTHING = 1e-6  # singular value of terms beside those that are there
_LEAST_SHARE = 0.1  # of what the scale makes of an op's time alone
# A network is left out whose error, where it is not fitted, is above both.
_OUTLIER_DEVIATIONS = 6.0
_OUTLIER_SHARE = 0.15


class NetworkTiming(BaseModel):
    """A whole network that was timed end to end, and how often it runs each op. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Which network: a genotype's short id."""
    counts: tuple[tuple[OpKey, int], ...]
    """Each op key that it runs, and how often."""
    timing: Timing

    @classmethod
    def of(cls, name: str, counts: Mapping[OpKey, int], timing: Timing) -> NetworkTiming:
        """From a counter of op keys."""
        return cls(name=name, counts=tuple(counts.items()), timing=timing)

    @property
    def counter(self) -> Counter[OpKey]:
        """The counts as a counter."""
        return Counter(dict(self.counts))


@dataclass(frozen=True)
class PriorLevel:
    """What brings ops timed alone to the level of the same ops in networks.

    Attributes:
        scale: milliseconds in a network over those alone.
        fixed_scale: the same for the fixed ops, which every network runs equally often: stem and head.
        call_ms: milliseconds taken off each of the other ops after scaling, ``scale · alone − call_ms``: what
            a call costs alone. Below zero they are added: in a network an op finds nothing in the caches.
    """

    scale: float
    fixed_scale: float
    call_ms: float


@dataclass(frozen=True)
class Solution:
    """Rows that were solved from networks.

    Attributes:
        rows: every key's milliseconds, with their standard deviation as the spread and the number of networks
            that run it as the count.
        residual_percent: root mean square, over the networks, of the relative difference between the sum of
            the rows and the measurement.
        left_out_percent: the same for each network when it is left out of the solution: what to expect of
            networks that were not measured.
        outliers: names of the networks that are no sum of their ops by far (a compiler folded them, or a
            reading went wrong) and were therefore left out.
        misfit: relative standard deviation that the likeliest hypothesis ascribes to the network timings.
        of_rows: the one that it ascribes to the prior of each row by itself; to that of all ops of a kind
            together, twice as much.
        level: what the prior was brought to the networks' level by.
    """

    rows: dict[OpKey, Timing]
    residual_percent: float
    left_out_percent: float
    outliers: tuple[str, ...]
    misfit: float
    of_rows: float
    level: PriorLevel


@dataclass(frozen=True)
class _Hypothesis:
    """How wide noise and prior are, and how likely that is."""

    misfit: float
    of_rows: float
    weight: float


def solve_rows(
    networks: Sequence[NetworkTiming],
    keys: Sequence[OpKey],
    prior_ms: Mapping[OpKey, float],
    prior_errors: Mapping[OpKey, float] | None = None,
) -> Solution:
    """Milliseconds of each of ``keys`` such that their sums give the measured networks; none is negative.

    The expected rows under ``b = A x + noise``, ``x ~ prior``. Noise and prior are normal and relative to the
    milliseconds. The prior may be off for all ops of a kind together (a runtime that fuses every concat into
    its neighbours) and, half as much, for each row by itself. How wide noise and prior are, is weighed: rows
    are averaged over hypotheses by how well each foretells every network from the others (leave-one-out
    predictive likelihood: Geisser and Eddy 1979; Rasmussen and Williams 2006, Eqs. 5.10-5.12, who choose one
    by it), so that a little more noise in another build does not tip a choice; where that hardly differs, by
    how little it moves the rows. The prior's level is fitted to
    all networks, the one left out too. Where latency is exactly additive and the
    networks identify the rows, sums come out exactly.

    Args:
        networks: timed end to end; those whose timing failed or is not complete are left out.
        keys: the rows wanted.
        prior_ms: milliseconds of each key, right in proportion; above 0.
        prior_errors: relative standard error of each of these; 0 where left out.

    Raises:
        MeasurementFailed: no network was timed.
        InvalidInput: a network runs an op that is not among ``keys``, or a key has no prior.
    """
    timed = [network for network in networks if network.timing.status == "ok"]
    if not timed:
        raise MeasurementFailed("no network was timed, so there is nothing to solve rows from.")
    without = [key for key in keys if not 0.0 < prior_ms.get(key, 0.0) < math.inf]
    if without:
        raise InvalidInput(f"the prior must give milliseconds above 0 for every key; none for {without[0]}.")
    outliers: list[str] = []
    while True:
        solution, left_out = _solved(timed, keys, prior_ms, prior_errors or {})
        # Far off by the standard of the others, and by any: it would spoil all rows that it shares.
        usual = 1.4826 * float(np.median(np.abs(left_out)))
        limit = max(_OUTLIER_DEVIATIONS * usual, _OUTLIER_SHARE)
        worst = int(np.argmax(np.abs(left_out)))
        if abs(left_out[worst]) <= limit or len(outliers) >= len(networks) // 5:
            return replace(solution, outliers=tuple(outliers))
        outliers.append(timed.pop(worst).name)


def _solved(
    timed: Sequence[NetworkTiming],
    keys: Sequence[OpKey],
    prior_ms: Mapping[OpKey, float],
    prior_errors: Mapping[OpKey, float],
) -> tuple[Solution, Vector]:
    """The solution, and each network's relative error when it is left out of it."""
    counts = count_matrix([network.counter for network in timed], keys)
    measured = np.array([network.timing.median_ms for network in timed])
    prior, level = _scaled_prior(counts, measured, np.array([prior_ms[key] for key in keys]))
    # In units of the prior and of the measurements: all that follows is relative.
    shares = counts * prior / measured[:, None]
    of_prior = _OfPrior(
        alike=np.array([[float(one.spec.kind == other.spec.kind) for other in keys] for one in keys]),
        errors=np.array([prior_errors.get(key, 0.0) for key in keys]),
    )
    # Milliseconds without a spread are taken at their word, unless they contradict one another.
    certain = all(network.timing.spread_ms == 0.0 for network in timed) and _is_additive(counts, measured)
    hypotheses = _weighed(shares, of_prior, _MISFITS[:1] if certain else _MISFITS)
    rows, variance, left_out = np.zeros(len(keys)), np.zeros(len(keys)), np.zeros(len(timed))
    solved = []
    for hypothesis in hypotheses:
        spread = of_prior.covariance(hypothesis.of_rows)
        found, deviation = _expected(shares, spread, hypothesis.misfit)
        solved.append((hypothesis.weight, found, deviation))
        rows += hypothesis.weight * found
        left_out += hypothesis.weight * _left_out(shares, spread, (hypothesis.misfit,))[0].errors
    for weight, found, deviation in solved:
        variance += weight * (deviation**2 + (found - rows) ** 2)
    likeliest = max(hypotheses, key=lambda hypothesis: hypothesis.weight)
    runs = (counts > 0).sum(axis=0)
    solution = Solution(
        rows={
            key: Timing(
                median_ms=round(float(ms), 9), spread_ms=round(float(sd), 9), count=max(1, int(n)), rounds=1
            )
            for key, ms, sd, n in zip(keys, rows * prior, np.sqrt(variance) * prior, runs, strict=True)
        },
        residual_percent=_rms_percent(shares @ rows - 1.0),
        left_out_percent=_rms_percent(left_out),
        outliers=(),
        misfit=likeliest.misfit,
        of_rows=likeliest.of_rows,
        level=level,
    )
    return solution, left_out


def count_matrix(networks: Sequence[Mapping[OpKey, int]], keys: Sequence[OpKey]) -> Vector:
    """How often each network (row) runs each key (column).

    Raises:
        InvalidInput: a network runs an op that is not among ``keys``.
    """
    column = {key: index for index, key in enumerate(keys)}
    matrix = np.zeros((len(networks), len(keys)))
    for row, counts in enumerate(networks):
        for key, count in counts.items():
            if key not in column:
                raise InvalidInput(f"a network runs {key}, which is not among the {len(keys)} keys.")
            matrix[row, column[key]] = count
    return matrix


def independent_rows(matrix: Vector, size: Vector, limit: int | None = None) -> list[int]:
    """Indices of rows that span the row space, each time the one that the chosen ones explain least.

    Gram-Schmidt with pivoting: the fewest networks from which every other network's latency follows, those
    first in which an op takes the largest share that no other explains.

    Args:
        matrix: a row for each candidate network.
        size: what a row's unexplained part is divided by before rows are compared, above 0.
        limit: stop after so many.
    """
    rest = matrix / np.maximum(np.linalg.norm(matrix, axis=0).max(), 1e-300)
    chosen: list[int] = []
    smallest = 1e-9 * np.linalg.norm(rest, axis=1).max(initial=0.0)
    for _ in range(min(matrix.shape) if limit is None else min(limit, *matrix.shape)):
        length = np.linalg.norm(rest, axis=1)
        length[chosen] = 0.0
        best = int(np.argmax(np.where(length > smallest, length / size, 0.0)))
        if length[best] <= smallest:
            break
        chosen.append(best)
        direction = rest[best] / length[best]
        # Twice: once leaves rounding errors that pass for new directions.
        for _ in range(2):
            rest = rest - np.outer(rest @ direction, direction)
    return chosen


def _scaled_prior(counts: Vector, measured: Vector, alone: Vector) -> tuple[Vector, PriorLevel]:
    """The prior brought to the networks' level: ``scale · alone − call``, and another scale for fixed ops.

    Of the ops that every network runs equally often, networks tell nothing but the sum, a constant in all of
    them. It may be quite another share of their time alone than the rest's is: they have the largest
    activations. Under one scale for both, large networks would be foretold too fast and small ones too slow,
    or the other way round. A call and a scale of the fixed ops' own are believed only where the networks show
    them clearly. No op is scaled to less than a tenth of what ``scale`` says.
    """
    fixed = (counts == counts[0]).all(axis=0) & (counts[0] > 0)
    total, calls = counts @ alone, counts[:, ~fixed].sum(axis=1)
    # Shares of the time alone: of a share of the measured time, one folded network would decide the fit.
    terms = np.stack([np.ones(len(total)), counts[:, fixed] @ alone[fixed] / total, -calls / total], axis=1)
    scale, of_fixed, call = _clear_terms(terms, measured / total)
    fixed_scale = max(scale + of_fixed, _LEAST_SHARE * scale)
    scaled: Vector = np.where(fixed, fixed_scale * alone, scale * alone - call)
    scaled = np.maximum(scaled, _LEAST_SHARE * scale * alone)
    # Least squares leave the median network a little off, and rows that are held at a tenth leave all.
    to_median = float(np.median(measured / (counts @ scaled)))
    level = PriorLevel(
        scale=float(to_median * scale),
        fixed_scale=float(to_median * fixed_scale),
        call_ms=float(to_median * call),
    )
    return scaled * to_median, level


def _clear_terms(terms: Vector, wanted: Vector) -> Vector:
    """Coefficients of least squares, without terms (columns, from the second on) that are not clear.

    Without any, the first is the median of ``wanted``, for it must be a column of ones.
    """
    found = np.zeros(terms.shape[1])
    # Terms that say what those before them say already, or nothing, are none.
    kept = [0]
    for term in range(1, terms.shape[1]):
        if np.linalg.matrix_rank(terms[:, [*kept, term]], tol=_SAYS_NOTHING) > len(kept):
            kept.append(term)
    kept = kept[: max(1, len(wanted) // _NETWORKS_PER_TERM)]
    while len(kept) > 1:
        design = terms[:, kept]
        fitted = np.linalg.lstsq(design, wanted, rcond=None)[0]
        variance = float(np.sum((wanted - design @ fitted) ** 2)) / (len(wanted) - len(kept))
        errors = math.sqrt(variance) * np.linalg.norm(np.linalg.pinv(design), axis=1)
        clear = np.abs(fitted) > _CLEAR_ERRORS * errors
        if clear[1:].all() and fitted[0] > 0.0:
            found[kept] = fitted
            return found
        weakest = 1 + int(np.argmin(np.abs(fitted[1:]) / np.maximum(errors[1:], 1e-300)))
        kept.pop(weakest)
    found[0] = float(np.median(wanted))
    return found


def _is_additive(counts: Vector, measured: Vector) -> bool:
    """Whether rows exist whose sums are exactly the measurements."""
    design = counts / measured[:, None]
    solved = np.linalg.lstsq(design, np.ones(len(measured)), rcond=None)[0]
    return bool(np.abs(design @ solved - 1.0).max() < 1e-9)


@dataclass(frozen=True)
class _OfPrior:
    """What is known of the prior: which rows are of a kind (1, else 0), and how well each was measured."""

    alike: Vector
    errors: Vector

    def covariance(self, of_rows: float) -> Vector:
        """Of the rows over their priors: what those of a kind have in common, and what each has alone."""
        own = np.diag(of_rows**2 + self.errors**2)
        covariance: Vector = (_KINDS_OVER_ROWS * of_rows) ** 2 * self.alike + own
        return covariance


def _weighed(shares: Vector, of_prior: _OfPrior, misfits: Sequence[float]) -> list[_Hypothesis]:
    """The hypotheses that are worth solving for, with weights that add up to 1."""
    found = []
    for of_rows in _OF_ROWS:
        left_outs = _left_out(shares, of_prior.covariance(of_rows), misfits)
        beforehand = -_POWER_OF_WIDTH * math.log(of_rows)
        for misfit, left_out in zip(misfits, left_outs, strict=True):
            found.append((beforehand + left_out.log_likelihood, misfit, of_rows))
    best = max(log_weight for log_weight, *_ in found)
    kept = [
        _Hypothesis(misfit, of_rows, math.exp(log_weight - best))
        for log_weight, misfit, of_rows in found
        if log_weight - best > math.log(_LEAST_WEIGHT)
    ]
    total = sum(hypothesis.weight for hypothesis in kept)
    return [replace(hypothesis, weight=hypothesis.weight / total) for hypothesis in kept]


class _LeftOut(NamedTuple):
    """Each network's error where the others foretell it, and how likely all these errors are together."""

    errors: Vector
    log_likelihood: float


def _left_out(shares: Vector, spread: Vector, misfits: Sequence[float]) -> list[_LeftOut]:
    """For each misfit, what the prior and all other networks say of each network, without solving anew."""
    residual = 1.0 - shares.sum(axis=1)
    values, vectors = np.linalg.eigh(shares @ spread @ shares.T)
    found = []
    for misfit in misfits:
        inverse = (vectors / (np.maximum(values, 0.0) + misfit**2)) @ vectors.T
        precision = np.diag(inverse)
        errors = (inverse @ residual) / precision
        found.append(_LeftOut(errors, 0.5 * float(np.sum(np.log(precision) - errors**2 * precision))))
    return found


def _expected(shares: Vector, spread: Vector, misfit: float) -> tuple[Vector, Vector]:
    """Mean and standard deviation of the rows over their priors; what would be negative is held at 0."""
    count = len(spread)
    whiten = np.linalg.inv(np.linalg.cholesky(spread))
    free = np.ones(count, dtype=bool)
    # Stacked: squaring the matrix would cost half the digits.
    wanted = np.concatenate([np.full(len(shares), 1.0 / misfit), whiten.sum(axis=1)])
    while True:
        design = np.vstack([shares[:, free] / misfit, whiten[:, free]])
        solved = np.linalg.lstsq(design, wanted, rcond=None)[0]
        if (solved >= 0).all():
            break
        free[np.flatnonzero(free)[solved < 0]] = False
    rows, deviation = np.zeros(count), np.zeros(count)
    rows[free] = solved
    _, singular, directions = np.linalg.svd(design, full_matrices=False)
    deviation[free] = np.sqrt(((directions.T / singular) ** 2).sum(axis=1))
    return rows, deviation


def _rms_percent(relative: Vector) -> float:
    return round(100.0 * float(np.sqrt(np.mean(relative**2))), 6)
