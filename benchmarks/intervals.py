"""How well a mean of few independent values is known."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from scipy import stats


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of their mean (Student's t); None of fewer than two."""
    if len(values) < 2:
        return None
    t = float(stats.t.ppf(0.975, len(values) - 1))
    return t * statistics.stdev(values) / len(values) ** 0.5
