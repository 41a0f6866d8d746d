"""Two tables side by side: for each row the same, faster, slower, or ambiguous."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from hwnas.errors import InvalidInput
from hwnas.latency.table import LatencyTable
from hwnas.ops import OpKey

Verdict = Literal["same", "faster", "slower", "ambiguous"]

# Where rows are the same, an interval may reach up to so many times the tolerance: what moves a whole build
# makes any of them 3 to 4 % wide.
_REACH = 2.0


@dataclass(frozen=True)
class RowComparison:
    """One row of two tables.

    Attributes:
        key: which.
        first_ms: milliseconds in the first table.
        second_ms: milliseconds in the second.
        verdict: of the second against the first.
    """

    key: OpKey
    first_ms: float
    second_ms: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second_ms / self.first_ms if self.first_ms else float("inf")


@dataclass(frozen=True)
class Comparison:
    """Two tables compared.

    Attributes:
        conditions: what differs in their headers, a line each; empty where they may be merged.
        rows: the rows that both have, those that differ most first.
        only_first: number of rows that the second lacks.
        only_second: number of rows that the first lacks.
    """

    conditions: list[str]
    rows: list[RowComparison]
    only_first: int
    only_second: int

    @property
    def ratio(self) -> float:
        """Median over the rows of second over first."""
        return statistics.median(row.ratio for row in self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows got each verdict."""
        found = Counter(row.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in ("same", "faster", "slower", "ambiguous")}

    @property
    def verdict(self) -> Verdict:
        """Of the whole: that of at least nine rows in ten, else ``"ambiguous"``."""
        for verdict, count in self.counts.items():
            if count >= 0.9 * len(self.rows):
                return verdict  # type: ignore[return-value]  # the keys of counts are verdicts
        return "ambiguous"


def compare(first: LatencyTable, second: LatencyTable, tolerance: float = 0.03) -> Comparison:
    """The rows of ``second`` against those of ``first``, each with its 95 % interval in view.

    A row is slower or faster if the intervals lie apart by more than ``tolerance``; the same if the
    milliseconds agree within it and neither interval reaches further from them than twice that, or if both
    tables hold the very same timing; and ambiguous if none of this holds: then measure more.

    Raises:
        InvalidInput: the tables have no row in common.
    """
    shared = [key for key in first.rows if key in first and key in second]
    if not shared:
        raise InvalidInput(
            f"{first.path or 'the first table'} and {second.path or 'the second'} have no row in common."
        )
    one, other = first.intervals(), second.intervals()
    rows = []
    for key in shared:
        mine, theirs = first.rows[key], second.rows[key]
        low, high = one.of(mine)
        low_other, high_other = other.of(theirs)
        reach = max(high - mine.median_ms, high_other - theirs.median_ms)
        difference = abs(theirs.median_ms - mine.median_ms)
        verdict: Verdict = "ambiguous"
        if low_other > high * (1 + tolerance):
            verdict = "slower"
        elif high_other < low * (1 - tolerance):
            verdict = "faster"
        elif mine == theirs or max(difference, reach / _REACH) <= tolerance * mine.median_ms:
            verdict = "same"
        rows.append(RowComparison(key, mine.median_ms, theirs.median_ms, verdict))
    rows.sort(key=lambda row: -max(row.ratio, 1 / row.ratio if row.ratio else float("inf")))
    return Comparison(
        first.header.differences(second.header),
        rows,
        sum(key in first for key in first.rows) - len(shared),
        sum(key in second for key in second.rows) - len(shared),
    )
