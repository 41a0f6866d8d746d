"""How well a table predicts whole networks, and the correction that a few of them teach.

Pure functions of predicted and measured milliseconds; which networks to measure is decided above.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from hwnas.errors import InvalidInput
from hwnas.ops import OpKey

GOOD_RMSPE_PERCENT = 5.0
"""A table whose calibrated error is above this is not to be relied on; ``search`` warns."""

GOOD_KENDALL_TAU = 0.85
"""A table that orders networks worse than this is not to be relied on; ``search`` warns."""

# Of calibrations; benchmarks/calibration.py compares them with other rules.
_USUAL_TERM = 0.03
_USUAL_NOISE = 0.015
_ENOUGH_FOR_A_LINE = 5
_EXACT = 1e-4


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Scores(_Frozen):
    """Agreement of predicted and measured milliseconds over networks that were in no fit."""

    networks: int = Field(ge=0)
    rmspe_percent: float = Field(ge=0)
    """Root mean square of ``predicted / measured − 1``, in percent."""
    within_5: float = Field(ge=0, le=100)
    """Percent of the networks predicted within 5 % of the measurement."""
    within_10: float = Field(ge=0, le=100)
    """Percent of the networks predicted within 10 %."""
    kendall_tau: float = Field(ge=-1, le=1)
    """Rank correlation, 1 where both order the networks alike."""
    bias: float = Field(gt=0)
    """Median of ``predicted / measured``."""

    @classmethod
    def of(cls, predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> Self:
        """Scores of predictions against measurements, in the same order.

        Raises:
            InvalidInput: fewer than two networks, or different numbers of both.
        """
        if len(predicted_ms) != len(measured_ms) or len(measured_ms) < 2:
            raise InvalidInput(
                f"scores need two networks or more, each predicted and measured; got {len(predicted_ms)} "
                f"predictions and {len(measured_ms)} measurements."
            )
        ratio = np.asarray(predicted_ms) / np.asarray(measured_ms)
        off = np.abs(ratio - 1.0)
        return cls(
            networks=len(ratio),
            rmspe_percent=round(100.0 * float(np.sqrt(np.mean(off**2))), 4),
            within_5=round(100.0 * float(np.mean(off <= 0.05)), 2),
            within_10=round(100.0 * float(np.mean(off <= 0.10)), 2),
            kendall_tau=kendall_tau(predicted_ms, measured_ms),
            # By significant digits: a table may be wrong by any factor.
            bias=float(f"{np.median(ratio):.5g}"),
        )

    def __str__(self) -> str:
        return (
            f"RMSPE {self.rmspe_percent:.2f} %, within 5 % {self.within_5:.0f} %, within 10 % "
            f"{self.within_10:.0f} %, Kendall tau {self.kendall_tau:.3f}, bias {self.bias:.4g}"
        )


class Calibration(_Frozen):
    """``scale · Σ rows + offset + per_op · ops``: what a few whole networks taught about a table."""

    scale: float = Field(default=1.0, gt=0)
    offset_ms: float = 0.0
    """Milliseconds that every network takes, whatever it runs."""
    per_op_ms: float = 0.0
    """Milliseconds of each op that runs, such as a kernel's launch."""
    networks: int = Field(default=0, ge=0)
    """How many networks it was fitted on; 0: it changes nothing."""

    def __call__(self, sum_ms: float, ops: int) -> float:
        """Milliseconds of a network whose rows sum up to ``sum_ms`` over ``ops`` ops."""
        return self.scale * sum_ms + self.offset_ms + self.per_op_ms * ops


class NetworkEvidence(_Frozen):
    """One network of a verification."""

    name: str
    """A genotype's short id."""
    sum_ms: float = Field(gt=0)
    """Sum of the table's rows."""
    ops: int = Field(ge=1)
    """Number of ops that it runs."""
    measured_ms: float = Field(gt=0)
    """End to end."""
    processes_ms: tuple[float, ...] = ()
    """Median of each process that measured it."""
    fitted: bool = False
    """Whether the calibration was fitted on it; the scores leave it out then."""
    group: str = ""
    """Networks that are also compared among themselves: those of one depth."""


class Verification(_Frozen):
    """What whole networks said about a table, with the evidence."""

    created: str
    """ISO 8601, UTC."""
    rows: str
    """Digest of the rows that were verified; other rows are not verified by this."""
    uncalibrated: Scores
    calibrated: Scores
    calibration: Calibration
    repeat_kendall_tau: float | None = None
    """Rank correlation of what some processes measured with what the others did: no table can show more."""
    group_kendall_tau: float | None = None
    """The lowest rank correlation within a group of at least ten networks (one depth)."""
    group_repeat_kendall_tau: float | None = None
    """In that group, the rank correlation of the measurements with themselves."""
    low_percent: float = 0.0
    """A calibrated prediction's 95 % interval begins so many percent below it (negative)."""
    high_percent: float = 0.0
    """… and ends so many percent above it."""
    worst_kinds: tuple[tuple[str, float], ...] = ()
    """Kinds of op that contribute most to the error, and the percent by which their rows are too low."""
    remarks: tuple[str, ...] = ()
    """What a reader should know: rounds measured again, a machine that was not quiet."""
    evidence: tuple[NetworkEvidence, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether calibrated predictions are good enough to search by."""
        return (
            self.calibrated.rmspe_percent <= GOOD_RMSPE_PERCENT
            and self.calibrated.kendall_tau >= GOOD_KENDALL_TAU
        )


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's rank correlation (tau-b) of two equally long sequences; 0 where one is constant."""
    a = np.sign(np.subtract.outer(np.asarray(first, dtype=float), np.asarray(first, dtype=float)))
    b = np.sign(np.subtract.outer(np.asarray(second, dtype=float), np.asarray(second, dtype=float)))
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return round(float((a * b).sum()) / norm, 6) if norm else 0.0


def repeat_kendall_tau(processes_ms: Sequence[Sequence[float]]) -> float | None:
    """Rank correlation of what the first half of the processes measured with what the others did.

    Args:
        processes_ms: for each network, the median of each process; None comes out where any has fewer than
            two, or there is one network only.
    """
    if len(processes_ms) < 2 or any(len(medians) < 2 for medians in processes_ms):
        return None
    halves = [(medians[: len(medians) // 2], medians[len(medians) // 2 :]) for medians in processes_ms]
    return kendall_tau(
        [statistics.median(first) for first, _ in halves], [statistics.median(other) for _, other in halves]
    )


def fit_calibration(
    sums_ms: Sequence[float], ops: Sequence[int], measured_ms: Sequence[float]
) -> Calibration:
    """The correction that fits these networks best, its offset and its cost an op held small by a prior.

    Ridge regression of the relative error. The scale is free; the offset, and all ops' cost together, are
    each expected to be a few percent of a network (``_USUAL_TERM``), against what networks scatter by around
    any such line (``_USUAL_NOISE``): ten of them say too little about either to be asked. Only where five
    networks or more lie on one line exactly, as those of a formula do, that line is taken as it is.

    Raises:
        InvalidInput: no network.
    """
    if not len(sums_ms) == len(ops) == len(measured_ms) or not measured_ms:
        raise InvalidInput(
            "a calibration needs at least one network, with its sum, its ops and its measurement."
        )
    sums, measured = np.asarray(sums_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    # Each column as milliseconds of a typical network, so that the coefficients are shares of one.
    typical_ms, typical_ops = float(np.median(measured)), float(np.median(ops))
    columns = (sums, np.full(len(measured), typical_ms), np.asarray(ops) * (typical_ms / typical_ops))
    design = np.stack(columns, axis=1) / measured[:, None]
    found = np.linalg.lstsq(design, np.ones(len(measured)), rcond=None)[0]
    if len(measured) < _ENOUGH_FOR_A_LINE or np.abs(1.0 - design @ found).max() > _EXACT:
        penalty = np.diag([0.0, 1.0, 1.0]) * (_USUAL_NOISE / _USUAL_TERM) ** 2
        found = np.linalg.solve(design.T @ design + penalty, design.T @ np.ones(len(measured)))
    if found[0] <= 0:
        found = np.array([float(np.median(measured / sums)), 0.0, 0.0])
    return Calibration(
        scale=round(float(found[0]), 9),
        offset_ms=round(float(found[1]) * typical_ms, 9),
        per_op_ms=round(float(found[2]) * typical_ms / typical_ops, 9),
        networks=len(measured),
    )


def worst_kinds(
    counts: Sequence[Mapping[OpKey, int]],
    row_ms: Mapping[OpKey, float],
    predicted_ms: Sequence[float],
    measured_ms: Sequence[float],
    limit: int = 5,
) -> tuple[tuple[str, float], ...]:
    """The kinds of op whose rows explain most of the error, each with the percent that its rows lack.

    A ridge regression of the relative error on the share that each kind has of each network: a kind that is
    priced right has no part in it. Positive: the rows are too low.
    """
    kinds = sorted({key.spec.kind for counter in counts for key in counter})
    shares = np.zeros((len(counts), len(kinds)))
    for row, counter in enumerate(counts):
        of_kind: Counter[str] = Counter()
        for key, count in counter.items():
            of_kind[key.spec.kind] += count * row_ms[key]  # type: ignore[assignment]
        shares[row] = [of_kind[kind] / measured_ms[row] for kind in kinds]
    error = 1.0 - np.asarray(predicted_ms) / np.asarray(measured_ms)
    # A prior of 10 % on each kind's error against 1 % of noise: what the networks cannot tell apart is
    # shared.
    ridge = (0.01 / 0.10) ** 2
    missing = np.linalg.solve(shares.T @ shares + ridge * np.eye(len(kinds)), shares.T @ error)
    weight = np.abs(missing) * shares.mean(axis=0)
    order = np.argsort(-weight)[:limit]
    return tuple((kinds[index], round(100.0 * float(missing[index]), 2)) for index in order)


def verification(
    evidence: Sequence[NetworkEvidence],
    *,
    created: str,
    rows: str,
    kinds: tuple[tuple[str, float], ...] = (),
) -> Verification:
    """Everything that the evidence says; the calibration comes from the networks marked as fitted.

    Raises:
        InvalidInput: fewer than two networks are left for the scores.
    """
    fitted = [network for network in evidence if network.fitted]
    tested = [network for network in evidence if not network.fitted]
    calibration = (
        fit_calibration(
            [network.sum_ms for network in fitted],
            [network.ops for network in fitted],
            [network.measured_ms for network in fitted],
        )
        if fitted
        else Calibration()
    )
    measured = [network.measured_ms for network in tested]
    sums = [network.sum_ms for network in tested]
    corrected = [calibration(network.sum_ms, network.ops) for network in tested]
    # The measurement relative to the prediction, since it is the measurement that an interval must hold.
    relative = np.asarray(measured) / np.asarray(corrected) - 1.0
    groups: dict[str, list[NetworkEvidence]] = {}
    for network in tested:
        groups.setdefault(network.group, []).append(network)
    in_groups = [
        (
            kendall_tau([calibration(n.sum_ms, n.ops) for n in members], [n.measured_ms for n in members]),
            repeat_kendall_tau([n.processes_ms for n in members]),
        )
        for name, members in groups.items()
        if name and len(members) >= 10
    ]
    lowest = min(in_groups, key=lambda pair: pair[0], default=(None, None))
    return Verification(
        created=created,
        rows=rows,
        uncalibrated=Scores.of(sums, measured),
        calibrated=Scores.of(corrected, measured),
        calibration=calibration,
        repeat_kendall_tau=repeat_kendall_tau([n.processes_ms for n in tested]),
        group_kendall_tau=lowest[0],
        group_repeat_kendall_tau=lowest[1],
        low_percent=round(100.0 * min(0.0, float(np.quantile(relative, 0.025))), 3),
        high_percent=round(100.0 * max(0.0, float(np.quantile(relative, 0.975))), 3),
        worst_kinds=kinds,
        evidence=tuple(evidence),
    )
