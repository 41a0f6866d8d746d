"""Rows of a table from its networks; tests/core/test_probing.py does it with those of a search space."""

import math

import pytest

from hwnas.errors import MeasurementFailed, MissingLatency, TableMismatch
from hwnas.latency.networks import solve_content
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.table import LatencyTable
from hwnas.latency.table_file import TableContent
from hwnas.latency.timing import Timing
from hwnas.latency.verification import Calibration, Scores, Verification
from hwnas.search_spaces.chain import Chain

from .test_table import HEADER, ROWS, key


def content(milliseconds):
    """Networks that run the first op n = 1, 2, … times and the second once."""
    networks = [
        NetworkTiming.of(f"n{n}", {key(8): n, key(16): 1}, Timing.from_rounds([[ms]]))
        for n, ms in enumerate(milliseconds, start=1)
    ]
    return TableContent(HEADER, rows={}, isolated=ROWS, networks=networks, verification=None)


def test_networks_that_are_no_sums_are_named_once():
    spoiled = content([3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 90.0])
    first, solution = solve_content(spoiled, list(ROWS))
    assert solution.outliers == ("n7",)
    again, _ = solve_content(first, list(ROWS))
    for solved in (first, again):
        assert solved.header.remarks == ("Networks not used, since they are by far no sum of their ops: n7.",)
    sound, _ = solve_content(content([3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]), list(ROWS))
    assert sound.header.remarks == ()
    # n · 1 ms and once 2 ms.
    assert sound.rows[key(8)].median_ms == pytest.approx(1.0)
    assert sound.rows[key(16)].median_ms == pytest.approx(2.0)
    assert spoiled.header == HEADER and spoiled.rows == {}


def test_networks_that_run_other_ops_do_not_count():
    known = content([3.0, 4.0, 5.0])
    stranger = NetworkTiming.of("other", {key(24): 1}, Timing.from_rounds([[50.0]]))
    known.networks.append(stranger)
    solved, _ = solve_content(known, list(ROWS))
    assert solved.rows[key(8)].median_ms == pytest.approx(1.0)
    assert solved.networks[-1] is stranger


@pytest.mark.parametrize("milliseconds", [0.0, 4e-7, -1.0, math.nan, math.inf])
def test_milliseconds_that_are_no_latency_are_refused_with_their_network(milliseconds):
    space = Chain(stages=1, depth=1, size=8)
    good, bad = (space.genotype({"s1.kernel": kernel, "s1.depth": 0}) for kernel in (0, 1))
    said = rf"network {bad.short_id} is said to take {milliseconds} ms; expected a finite number"
    with pytest.raises(MeasurementFailed, match=said):
        LatencyTable.from_networks(space, [(good, 1.0), (bad, milliseconds)])


def test_no_command_measures_what_was_measured_elsewhere():
    space = Chain(stages=1, depth=1, size=8)
    table = LatencyTable.from_networks(space, [(space.genotype({"s1.kernel": 0, "s1.depth": 0}), 1.0)])
    scores = Scores(networks=3, rmspe_percent=50, within_5=0, within_10=0, kendall_tau=0, bias=1)
    table.verification = Verification(
        created="now",
        rows=table.rows_digest,
        uncalibrated=scores,
        calibrated=scores,
        calibration=Calibration(),
    )
    with pytest.raises(MissingLatency) as missing:
        table.require([key(8)])
    with pytest.raises(TableMismatch) as mismatch:
        table.check(precision="fp16")
    for text in (str(missing.value), str(mismatch.value), *table.doubts()):
        assert text.endswith(
            "It was made of networks that were measured elsewhere, by no command of hwnas: measure there "
            "what is wanted, and make it anew (LatencyTable.from_networks)."
        )
        assert "hwnas profile" not in text
    # Of another backend there is a command.
    with pytest.raises(TableMismatch, match=r"hwnas profile chain .*--backend torch"):
        table.check(backend="torch")
