"""What the networks of a space cost, against all of them."""

import pytest

from hwnas import LatencyTable
from hwnas.core.cost_ranges import ranges
from hwnas.core.costs import activation_mib, peak
from hwnas.latency.fake import fake_table

from .nets import SPACES, all_assignments, table_of
from .test_budget import SPACE


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_the_ends_are_those_of_all_networks(space):
    table, recording = table_of(space), space.record()
    every = list(all_assignments(space))
    found = ranges(space, table)
    latencies = [table.predict_ms(recording.count(assignment)) for assignment in every]
    peaks = [peak(activation_mib(recording, 4), assignment) for assignment in every]
    for name, values in (("latency_ms", latencies), ("activation_mib", peaks)):
        assert found[name].min == pytest.approx(min(values))
        assert found[name].max == pytest.approx(max(values))
        assert min(values) <= found[name].median <= max(values)


def test_activations_take_the_bytes_of_the_tables_precision_and_its_batch():
    table = fake_table(SPACE.record(batch=3).keys(), lambda key: 1.0, batch=3)
    halves = table.header.model_copy(update={"precision": "fp16"})
    single = ranges(SPACE)["activation_mib"]
    three = ranges(SPACE, table)["activation_mib"]
    half = ranges(SPACE, LatencyTable(halves, table.rows))["activation_mib"]
    assert three.max == pytest.approx(3 * single.max)
    assert half.max == pytest.approx(1.5 * single.max)
    # Multiply-accumulates stay those of one sample.
    assert ranges(SPACE, table)["macs"] == ranges(SPACE)["macs"]
