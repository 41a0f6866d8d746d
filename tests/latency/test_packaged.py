"""Tables that come with hwnas: sound, whole, and of the space that they name."""

import pytest

from hwnas.latency.packaged import packaged_tables
from hwnas.latency.table import LatencyTable
from hwnas.names import find_space


@pytest.mark.parametrize("name", packaged_tables())
def test_a_table_that_comes_along_has_a_row_for_each_op_of_its_space(name):
    table = LatencyTable.load(name)
    assert table.path is None
    fields = dict(table.header.space)
    space = find_space(fields.pop("name"))(**fields)
    table.check(input_shape=space.input_shape())
    table.require(space.record(batch=table.header.batch).keys())
    assert not table.header.remarks


def test_there_are_some():
    assert packaged_tables()
