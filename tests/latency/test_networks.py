"""Rows of a table from its networks; tests/core/test_probing.py does it with those of a search space."""

import pytest

from hwnas.latency.networks import solve_content
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.table_file import TableContent
from hwnas.latency.timing import Timing

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
