"""How far a row may lie from what another build of the table would find."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from hwnas.latency.timing import Timing

# Rows are few, their processes fewer: each row's own scatter counts as much as this many degrees of freedom
# of the whole table's.
_POOLED_FREEDOM = 4
# Relative standard deviation of a whole build: the clock and the neighbours of a shared machine change over
# minutes, so that nothing within one build shows it. Builds in benchmarks/results differ as a whole by up to
# 4 %.
_OF_A_BUILD = 0.01
# Relative standard deviation of the only visit to an entry, at least: in benchmarks/results visits differ by
# 1 to 2.5 % within a process, and processes by 1 to 6 %, where nothing else runs.
_OF_A_VISIT = 0.03
# Relative deviation up to which a solved row is that of a formula.
_CERTAIN = 1e-6
# Student's t, 97.5 %, for 1, 2, … degrees of freedom; 1.96 beyond.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


class Intervals:
    """95 % intervals of rows: scatter between processes, each row's own and the table's, put together.

    Readings of one visit agree far better than two builds of a table do, since memory layout, chosen kernels
    and the machine's mood change from process to process and from round to round. What counts here are the
    medians of processes (of rounds, where there was one process only). A row's own few are pooled with those
    of all rows, as a scaled inverse chi-square prior would. What moves a whole build is added as an
    assumption. So is how visits differ where a table of single rounds does not show it: by 3 %, or by as much
    as the readings of the visit where that is more; by nothing where these are all equal, as a formula's are.

    Args:
        timings: all complete rows of a table.
    """

    def __init__(self, timings: Sequence[Timing]) -> None:
        scatters = [
            scatter / _median_of_chi_square(len(timing.process_medians_ms) - 1)
            for timing in timings
            if (scatter := _relative_variance(timing)) is not None
        ]
        self.pooled = statistics.median(scatters) if scatters else 0.0
        """Relative variance between processes that is usual in this table."""

    def of(self, timing: Timing) -> tuple[float, float]:
        """Lowest and highest milliseconds of the interval.

        Of a solved row ± 1.96 deviations: its spread, and √2 of what moves a build, for each has its own. The
        spread counts once, since most of it is what the networks leave open in either build.
        """
        if not timing.readings_ms:
            # Milliseconds that were taken at their word have next to no deviation, and no moods.
            is_certain = timing.spread_ms <= _CERTAIN * timing.median_ms
            of_builds = 0.0 if is_certain else math.sqrt(2.0) * _OF_A_BUILD * timing.median_ms
            half = 1.96 * math.hypot(timing.spread_ms, of_builds)
            return max(0.0, timing.median_ms - half), timing.median_ms + half
        error, freedom = self.standard_error(timing), len(timing.process_medians_ms) - 1 + _POOLED_FREEDOM
        t = _T[freedom - 1] if freedom <= len(_T) else 1.96
        # A formula has no scatter, and no moods.
        of_a_build = _OF_A_BUILD if error else 0.0
        # Twice: the other build has its own.
        half = t * math.sqrt(2.0) * math.hypot(error, of_a_build) * timing.median_ms
        return max(0.0, timing.median_ms - half), timing.median_ms + half

    def standard_error(self, timing: Timing) -> float:
        """Of a timing over its milliseconds, without what moves a whole build; 0 of one without readings."""
        count = len(timing.process_medians_ms)
        if not count:
            return 0.0
        if count == 1 and not self.pooled:
            return _of_one_visit(timing)
        own = _relative_variance(timing) or 0.0
        variance = ((count - 1) * own + _POOLED_FREEDOM * self.pooled) / (count - 1 + _POOLED_FREEDOM)
        return math.sqrt(variance / count)


def _relative_variance(timing: Timing) -> float | None:
    medians = timing.process_medians_ms
    if len(medians) < 2 or timing.median_ms <= 0:
        return None
    return statistics.variance(medians) / timing.median_ms**2


def _of_one_visit(timing: Timing) -> float:
    """The relative deviation that is assumed of the only visit to an entry."""
    readings = [ms for values in timing.readings_ms for ms in values]
    # A single reading equals itself, whatever it is of.
    is_a_formulas = len(readings) > 1 and min(readings) == max(readings)
    if is_a_formulas or timing.median_ms <= 0:
        return 0.0
    return max(_OF_A_VISIT, timing.spread_ms / timing.median_ms)


def _median_of_chi_square(freedom: int) -> float:
    """Median of a chi-square variable, over its degrees of freedom (Wilson and Hilferty's approximation)."""
    return (1.0 - 2.0 / (9.0 * freedom)) ** 3
