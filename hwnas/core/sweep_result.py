"""What a sweep finds: its points, which of them are Pareto-optimal, and their file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from hwnas.core.genotype import Genotype
from hwnas.core.scoring import headline
from hwnas.errors import DataError, refusals

Swept: TypeAlias = Literal["target_ms", "latency_weight"]
"""What differs from point to point."""


class SweepPoint(BaseModel):
    """What was found for one value. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    """Milliseconds asked for, or the latency weight."""
    folder: str
    """Name of its run's folder in the sweep's."""
    genotype: Genotype
    """What was found."""
    predicted_ms: float
    """By the table, corrected where measurements for a target corrected it."""
    measured_ms: float | None = None
    """None where it was not measured."""
    met: bool | None = None
    """Whether the measurement is at most the target, with the tolerance allowed; None where there is none."""
    scores: dict[str, Any] | None = None
    """On the validation data, with the shared weights; None without such data."""
    remarks: tuple[str, ...] = ()
    """What a reader should know: why it was not measured, or not met."""
    on_front: bool | None = None
    """Whether no other point is as fast and as good and better in one of both; None without scores. A point
    whose score is not finite is on no front."""

    @property
    def latency_ms(self) -> float:
        """Measured where it was, otherwise predicted."""
        return self.predicted_ms if self.measured_ms is None else self.measured_ms

    @property
    def score(self) -> float | None:
        """The headline of its scores, the higher the better; None without scores."""
        if not self.scores:
            return None
        # A number that JSON has no word for comes back as null.
        return headline({name: math.nan if value is None else value for name, value in self.scores.items()})


class SweepResult(BaseModel):
    """What a sweep found; JSON in ``OUT/pareto.json``. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    swept: Swept
    """What differs from point to point."""
    shared_epochs: int
    """First epochs of each search that were trained once for all."""
    epochs: int
    """Epochs of each search."""
    conditions: dict[str, Any]
    """Under which conditions the table's milliseconds hold."""
    points: tuple[SweepPoint, ...]
    """In the order asked for; while the sweep goes on, those done so far."""

    @classmethod
    def load(cls, out: str | Path) -> SweepResult:
        """What the sweep in the folder ``out`` has found so far.

        Raises:
            DataError: nothing yet, or its file is damaged.
        """
        path = Path(out) / "pareto.json"
        if not path.is_file():
            raise DataError(
                f"the sweep in {out} has finished no point yet; go on with it:  "
                f"hwnas sweep --out {out} --resume"
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path} is not what a sweep found:\n{refusals(error)}") from error

    @property
    def metric(self) -> str | None:
        """The name of what points are compared by; None without scores."""
        return next((next(iter(point.scores)) for point in self.points if point.scores), None)

    @property
    def front(self) -> tuple[SweepPoint, ...]:
        """The points of the Pareto front, the fastest first."""
        on = [point for point in self.points if point.on_front]
        return tuple(sorted(on, key=lambda point: point.latency_ms))

    @property
    def met(self) -> bool:
        """Whether no point's measurement breaks its target."""
        return all(point.met is not False for point in self.points)


def with_front(points: Sequence[SweepPoint]) -> tuple[SweepPoint, ...]:
    """The points, each told whether it is on the Pareto front of latency and score; None without scores."""
    scored = [(point.latency_ms, score) for point in points if (score := point.score) is not None]

    def on_front(point: SweepPoint) -> bool | None:
        ms, score = point.latency_ms, point.score
        if score is None:
            return None
        if not math.isfinite(score):
            return False
        return not any(
            other_ms <= ms and other >= score and (other_ms < ms or other > score)
            for other_ms, other in scored
        )

    return tuple(point.model_copy(update={"on_front": on_front(point)}) for point in points)
