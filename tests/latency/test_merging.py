"""Two tables in one: what is pooled, what is solved anew, what does not merge."""

from pathlib import Path

import pytest

from hwnas.errors import InvalidInput, TableMismatch
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


def test_seconds_of_measuring_add_up():
    first, second = (
        LatencyTable(
            HEADER.model_copy(update={"measuring_seconds": seconds}), {key(8): Timing.from_rounds([[ms]])}
        )
        for seconds, ms in ((1.5, 1.0), (2.3, 2.0))
    )
    assert first.merged(second).header.measuring_seconds == 3.8


def test_the_same_readings_are_not_pooled_twice():
    table = LatencyTable(HEADER, ROWS)
    other = LatencyTable(HEADER, {key(8): Timing.from_rounds([[0.2, 0.3], [0.2, 0.4]])})
    said = (
        r"both tables hold the very same measurement of test\.conv\(c_in=8, .* and of 1 more: .*"
        "hwnas profile --out FILE"
    )
    with pytest.raises(InvalidInput, match=said):
        table.merged(table)
    # Nor where they are among others already.
    with pytest.raises(InvalidInput, match=said):
        table.merged(other).merged(table)


def test_readings_that_are_equal_by_themselves_are_pooled():
    """Those of a formula, or a single one."""
    equal = {key(8): Timing.from_rounds([[2.0, 2.0]]), key(16): Timing.from_rounds([[5.0]])}
    more = equal | {key(24): Timing.from_rounds([[1.0]])}
    merged = LatencyTable(HEADER, equal).merged(LatencyTable(HEADER, more))
    assert [timing.rounds for timing in merged.rows.values()] == [2, 2, 1]


def test_merged_networks_are_solved_anew():
    header = HEADER.model_copy(update={"protocol": "probe"})
    tables = []
    for ms in (1.0, 3.0):
        alone = {
            name: Timing.from_rounds([[ms * value for value in values] for values in timing.readings_ms])
            for name, timing in ROWS.items()
        }
        timing = Timing.from_rounds([[ms]])
        table = LatencyTable(header, isolated=alone, networks=[NetworkTiming.of("n", {key(8): 1}, timing)])
        table.solve(list(ROWS))
        tables.append(table)
    merged = tables[0].merged(tables[1])
    assert merged.networks[0].timing.readings_ms == ((1.0,), (3.0,))
    # A third of the way from one of the two rounds to the other.
    assert merged.predict_ms({key(8): 1}) == pytest.approx(5 / 3, rel=0.05)


def test_tables_that_are_not_finished_are_refused_with_what_finishes_them():
    header = HEADER.model_copy(update={"protocol": "probe"})
    first, second = (
        LatencyTable(
            header,
            path=Path(name),
            isolated={key(8): Timing.from_rounds([[ms]], status="partial")},
            networks=[NetworkTiming.of("n", {key(8): 1}, Timing.from_rounds([[ms]], status="partial"))],
        )
        for name, ms in (("a.json", 1.0), ("b.json", 2.0))
    )
    with pytest.raises(InvalidInput) as caught:
        first.merged(second)
    command = (
        "hwnas profile autortnet --device titanxp --backend tensorrt --precision fp16 --batch 1 --threads 1"
    )
    assert str(caught.value) == (
        "neither table has a network that was measured to the end, so there is nothing to solve rows from. "
        "Finish each, and merge them then:\n"
        f"  a.json:  {command} --out a.json\n"
        f"  b.json:  {command} --out b.json"
    )
