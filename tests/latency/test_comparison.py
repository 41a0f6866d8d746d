"""Two tables side by side, and two tables in one."""

import pytest

from hwnas.errors import InvalidInput
from hwnas.latency.comparison import compare
from hwnas.latency.device import Device
from hwnas.latency.header import TableHeader
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey, OpSpec

HEADER = TableHeader(device=Device(kind="cpu", name="some CPU"), backend="torch", input_shape=(3, 8, 8))


def key(name):
    return OpKey(spec=OpSpec(kind=name), input_shapes=((1, 3, 8, 8),))


def row(*process_medians):
    return Timing.from_rounds([[ms] for ms in process_medians], rounds_by_process=(1,) * len(process_medians))


def table(header=HEADER, **rows):
    return LatencyTable(header, {key(name): row(*medians) for name, medians in rows.items()})


def test_each_row_gets_its_verdict():
    first = table(same=(1.0, 1.001), faster=(2.0, 2.001), slower=(1.0, 1.001), gone=(1.0, 1.0))
    second = table(same=(1.01, 1.011), faster=(1.0, 1.001), slower=(1.5, 1.501), new=(1.0, 1.0))
    found = compare(first, second)
    assert {row.key.spec.kind: row.verdict for row in found.rows} == {
        "same": "same",
        "faster": "faster",
        "slower": "slower",
    }
    assert [row.key.spec.kind for row in found.rows] == [
        "faster",
        "slower",
        "same",
    ]  # by how much they differ
    assert (found.only_first, found.only_second) == (1, 1)
    assert found.verdict == "ambiguous"  # not of one mind
    assert found.counts == {"same": 1, "faster": 1, "slower": 1, "ambiguous": 0}


def test_what_noise_hides_is_ambiguous():
    noisy = dict.fromkeys("abc", (1.0, 1.3))
    found = compare(table(**noisy), table(**dict.fromkeys("abc", (1.2, 1.5))))
    assert found.verdict == "ambiguous"
    # A third of the way from one round to the other.
    assert found.ratio == pytest.approx(1.3 / 1.1)


def test_what_is_not_known_well_enough_is_not_the_same():
    first, second = (table(**dict.fromkeys("abc", (ms, ms + 0.3))) for ms in (1.0, 1.01))
    assert compare(first, second).counts["ambiguous"] == 3
    # They are known to 68 % or so, and the tolerance may be half of that or more.
    assert compare(first, second, tolerance=0.4).verdict == "same"
    # The very same timing is, however little is known.
    assert compare(first, first).verdict == "same"


def test_a_single_round_tells_no_few_percent():
    def once(ms):
        return LatencyTable(HEADER, {key(name): Timing.from_rounds([[ms, 1.001 * ms]]) for name in "abc"})

    assert compare(once(1.0), once(1.04)).verdict == "ambiguous"
    assert compare(once(1.0), once(1.01)).verdict == "ambiguous"
    assert compare(once(1.0), once(2.0)).verdict == "slower"


def test_a_machine_that_is_slower_throughout():
    rows = dict.fromkeys("abcd", (1.0, 1.001))
    found = compare(table(**rows), table(**dict.fromkeys("abcd", (1.2, 1.201))))
    assert found.verdict == "slower"


def test_other_conditions_are_listed():
    other = HEADER.model_copy(update={"precision": "fp16"})
    assert compare(table(a=(1.0,)), table(other, a=(1.0,))).conditions == ["precision: fp32 against fp16"]


def test_tables_without_a_common_row():
    with pytest.raises(InvalidInput, match="have no row in common"):
        compare(table(a=(1.0,)), table(b=(1.0,)))
