"""Verifying tables on whole networks, on devices that are additive, and on one that is not."""

import copy

import pytest
import torch

from hwnas import LatencyTable, SearchConfig, SearchData, profile, search, verify
from hwnas.core.search import UnverifiedTableWarning
from hwnas.core.verification import drawn
from hwnas.errors import InvalidInput, MeasurementFailed, TableMismatch
from hwnas.latency.device import Device
from hwnas.latency.fake import FakeBackend
from hwnas.latency.formula import default_formula
from hwnas.latency.measuring import ProfileSettings
from hwnas.ops import Op
from hwnas.record import record
from hwnas.search_spaces.chain import Chain

SPACE = Chain(stages=3, depth=3, kernels=(1, 3, 5), size=16, channels=4)
QUICK = ProfileSettings(rounds=1)


class Whole(FakeBackend):
    """A device on which an op costs 0.9 of what it costs alone, and each network half a millisecond more."""

    def prepare(self, module, inputs):
        reader = super().prepare(module, inputs)
        if isinstance(module, Op):
            return reader
        total = 0.9 * reader() + 0.5
        return lambda: total


class Moody(FakeBackend):
    """A device that takes half as long again for networks with an odd number of ops."""

    def prepare(self, module, inputs):
        reader = super().prepare(module, inputs)
        ops = len(record(copy.deepcopy(module).to("meta"), [x.to("meta") for x in inputs]).ops)
        return lambda: reader() * (1.5 if ops % 2 and not isinstance(module, Op) else 1.0)


@pytest.fixture
def isolated(tmp_path):
    return profile(SPACE, Whole(), protocol="isolated", path=tmp_path / "t.json", settings=QUICK)


def test_what_was_measured_alone_is_calibrated_on_whole_networks(isolated):
    found = verify(isolated, SPACE, Whole(), samples=12, calibrate=6, settings=QUICK)
    assert found.calibrated.networks == 12 and found.calibration.networks == 6
    assert found.uncalibrated.rmspe_percent > 1
    assert found.calibrated.rmspe_percent < 0.1
    assert found.calibration.scale == pytest.approx(0.9, rel=1e-3)
    assert found.calibration.offset_ms == pytest.approx(0.5, rel=1e-2)
    assert found.is_good
    # It is in the file, and predictions go by it.
    loaded = LatencyTable.load(isolated.path)
    assert loaded.verification == found
    counts = SPACE.record().count(SPACE.assignment(SPACE.random(torch.Generator().manual_seed(9))))
    alone = sum(default_formula(key) * count for key, count in counts.items())
    assert loaded.predict_ms(counts) == pytest.approx(0.9 * alone + 0.5, rel=1e-3)
    assert loaded.doubts() == []


def test_probes_need_no_calibration():
    """The half millisecond of every network goes into ops that every network runs."""
    table = profile(SPACE, Whole(), protocol="probe", settings=QUICK)
    assert table.header.protocol == "probe" and table.networks and table.isolated
    found = verify(table, SPACE, Whole(), samples=12, calibrate=0, settings=QUICK)
    assert found.uncalibrated.rmspe_percent < 1e-3
    assert found.uncalibrated == found.calibrated
    probed = {network.name for network in table.networks}
    assert not probed & {network.name for network in found.evidence}


def test_a_device_that_is_not_additive_fails():
    table = profile(SPACE, Moody(), protocol="isolated", settings=QUICK)
    found = verify(table, SPACE, Moody(), samples=12, calibrate=6, settings=QUICK)
    assert not found.is_good
    assert table.verification == found
    table.header = table.header.model_copy(update={"device": Device(kind="cpu", name="some CPU")})
    (doubt,) = table.doubts()
    assert "failed its verification (RMSPE" in doubt and "hwnas profile chain" in doubt


def test_a_table_of_other_conditions_is_refused(isolated):
    with pytest.raises(TableMismatch, match="precision: fp32 against fp16"):
        verify(isolated, SPACE, Whole(precision="fp16"), settings=QUICK)
    assert isolated.verification is None


def test_a_network_without_a_number_leaves_the_table_as_it_was(isolated):
    class Broken(Whole):
        def prepare(self, module, inputs):
            if not isinstance(module, Op):
                raise MeasurementFailed("device lost")
            return super().prepare(module, inputs)

    before = isolated.path.read_bytes()
    with pytest.raises(MeasurementFailed, match=r"8 of 8 networks could not be measured(.|\n)*device lost"):
        verify(isolated, SPACE, Broken(), samples=6, calibrate=2, settings=QUICK)
    assert isolated.path.read_bytes() == before


def test_a_space_with_too_few_networks():
    space = Chain(stages=1, depth=2, kernels=(1, 3))
    table = profile(space, FakeBackend(), protocol="isolated", settings=QUICK)
    with pytest.raises(InvalidInput, match=r"has only 4 networks beside those .* verifying takes 10"):
        verify(table, space, FakeBackend(), settings=QUICK)


def test_the_networks_to_calibrate_on_are_spread_over_the_range():
    table = profile(SPACE, FakeBackend(), protocol="isolated", settings=QUICK)
    fitted, tested = drawn(table, SPACE, samples=20, calibrate=5)
    assert (len(fitted), len(tested)) == (5, 20)
    ms = [
        table.predict_ms(SPACE.record().count(SPACE.assignment(genotype))) for genotype in (*fitted, *tested)
    ]
    assert max(ms[:5]) > 0.7 * max(ms)
    assert min(ms[:5]) < 1.5 * min(ms)


def test_a_search_warns_of_a_table_that_was_never_tested(tmp_path):
    space = Chain(stages=1, depth=2, kernels=(1, 3), size=8, channels=4)
    table = profile(space, FakeBackend(), protocol="isolated", settings=QUICK)
    table.header = table.header.model_copy(update={"device": Device(kind="cpu", name="some CPU")})
    batch = (torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
    config = SearchConfig(epochs=1, device="cpu")
    with pytest.warns(
        UnverifiedTableWarning, match=r"was never tested on whole networks.*hwnas verify TABLE"
    ):
        search(space, table, SearchData([batch]), config)
