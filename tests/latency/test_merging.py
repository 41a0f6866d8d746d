"""Two tables in one: what is pooled, what is solved anew, what does not merge."""

import pytest

from hwnas.errors import TableMismatch
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import Timing

from .test_table import HEADER, ROWS, key


def test_field_defect_values_of_two_runtimes_in_one_file():
    table = LatencyTable(HEADER, ROWS)
    other = LatencyTable(HEADER.model_copy(update={"backend": "torch", "versions": {"torch": "2.13"}}), ROWS)
    with pytest.raises(TableMismatch) as caught:
        table.merged(other)
    assert str(caught.value) == (
        "tables of different conditions do not merge (first against second):\n"
        "  backend: tensorrt against torch\n"
        "  tensorrt: 10.3 against none\n"
        "  torch: none against 2.13\n"
        "Keep them in two files."
    )


def test_merging_pools_the_rounds():
    table = LatencyTable(HEADER, ROWS)
    again = LatencyTable(HEADER, {key(16): Timing.from_rounds([[0.5, 0.6], [0.7, 0.8]])})
    merged = table.merged(again)
    # Round medians 0.3666665, 0.55, 0.75: the lower tercile is two thirds of the way to the second.
    assert merged.latency_ms(key(16)) == pytest.approx(0.3666665 + 2 / 3 * (0.55 - 0.3666665))
    assert merged.rows[key(16)].rounds == 3
    assert merged.rows[key(8)] == ROWS[key(8)]
    assert merged.header.processes == 2
    assert table.rows == ROWS


def test_merged_networks_are_solved_anew():
    header = HEADER.model_copy(update={"protocol": "probe"})
    tables = []
    for ms in (1.0, 3.0):
        timing = Timing.from_rounds([[ms]])
        table = LatencyTable(header, isolated=ROWS, networks=[NetworkTiming.of("n", {key(8): 1}, timing)])
        table.solve(list(ROWS))
        tables.append(table)
    merged = tables[0].merged(tables[1])
    assert merged.networks[0].timing.readings_ms == ((1.0,), (3.0,))
    # A third of the way from one of the two rounds to the other.
    assert merged.predict_ms({key(8): 1}) == pytest.approx(5 / 3, rel=0.05)
