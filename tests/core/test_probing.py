"""Which networks are measured: the fewest that determine all others, and samples over the whole range."""

import itertools

import numpy as np
import pytest

from hwnas.core.probing import GenotypeSubject, network_subjects, probes, samples
from hwnas.latency.fake import FakeBackend
from hwnas.latency.formula import default_formula
from hwnas.latency.header import TableHeader
from hwnas.latency.measuring import measure_subjects
from hwnas.latency.solve import count_matrix
from hwnas.latency.table import LatencyTable
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain

from .nets import SPACES, all_assignments

SMALL = AutoRTNet.from_preset("small", num_classes=8, cells=(1, 2, 2), height=32, width=64)


def additive(key):
    """Another price for every key, none a multiple of another."""
    return 1.0 + sum(map(ord, str(key))) % 997 / 313


def price(recording, assignment):
    return sum(additive(key) * count for key, count in recording.count(assignment).items())


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_probes_are_as_many_as_the_rank_of_all_networks(space):
    recording = space.record()
    keys = recording.keys()
    everything = count_matrix([recording.count(a) for a in all_assignments(space)], keys)
    chosen = probes(space, default_formula)
    of_probes = count_matrix([recording.count(space.assignment(genotype)) for genotype in chosen], keys)
    assert len(chosen) == np.linalg.matrix_rank(of_probes) == np.linalg.matrix_rank(everything)


@pytest.mark.parametrize("space", [*SPACES, Chain()], ids=lambda space: space.name)
def test_a_table_from_the_probes_recovers_an_additive_device(space):
    recording = space.record()
    measured = [(g, price(recording, space.assignment(g))) for g in probes(space, default_formula)]
    table = LatencyTable.from_networks(space, measured)
    assert table.header.residual_percent < 1e-6
    for assignment in itertools.islice(all_assignments(space), 400):
        expected = price(recording, assignment)
        assert table.predict_ms(recording.count(assignment)) == pytest.approx(expected, rel=1e-6)


def test_a_table_from_networks_recovers_an_additive_device_for_autortnet():
    recording = SMALL.record()
    measured = [(g, price(recording, SMALL.assignment(g))) for g in probes(SMALL, default_formula)]
    header = TableHeader(
        device=FakeBackend().device, backend="somebody's", input_shape=SMALL.input_shape(), batch=1
    )
    table = LatencyTable.from_networks(SMALL, measured, header=header)
    assert (table.header.protocol, table.header.space["name"]) == ("probe", "autortnet")
    for genotype in samples(SMALL, lambda a: price(recording, a), 30):
        counts = recording.count(SMALL.assignment(genotype))
        expected = sum(additive(key) * count for key, count in counts.items())
        assert table.predict_ms(counts) == pytest.approx(expected, rel=1e-6)


def test_a_device_that_is_not_additive_is_reported():
    """Every op makes each other one dearer: the residual says that sums do not tell all."""
    recording = SMALL.record()
    measured = []
    for genotype in samples(SMALL, lambda a: price(recording, a), 120, seed=5):
        counts = recording.count(SMALL.assignment(genotype))
        ms = sum(additive(key) * count for key, count in counts.items())
        measured.append((genotype, ms * (1 + 0.02 * sum(counts.values()))))
    table = LatencyTable.from_networks(SMALL, measured)
    assert table.header.left_out_percent > 0.5
    assert all(timing.median_ms >= 0 for timing in table.rows.values())


def test_fewer_probes_on_demand():
    assert len(probes(SMALL, default_formula, limit=7)) == 7


def test_samples_are_different_spread_and_none_of_those_excluded():
    recording = SMALL.record()

    def predict(assignment):
        return price(recording, assignment)

    first = samples(SMALL, predict, 20)
    assert len({genotype.short_id for genotype in first}) == 20
    assert first == samples(SMALL, predict, 20)
    others = samples(SMALL, predict, 20, without={genotype.short_id for genotype in first})
    assert not {genotype.short_id for genotype in first} & {genotype.short_id for genotype in others}
    ms = sorted(predict(SMALL.assignment(genotype)) for genotype in first)
    low, high = ms[0], ms[-1]
    # Equal steps over the range: no third of it is without a sample.
    assert {int(2.999 * (value - low) / (high - low)) for value in ms} == {0, 1, 2}


def test_a_space_with_few_networks_gives_them_all():
    space = Chain(stages=1, depth=2, kernels=(1, 3))
    assert len(samples(space, lambda assignment: 1.0, 50)) == 4


def test_a_network_is_measured_as_it_is_derived():
    genotypes = samples(SMALL, lambda a: price(SMALL.record(), a), 3)
    subjects = network_subjects(SMALL, genotypes)
    found = measure_subjects(
        {name: network.subject for name, network in subjects.items()}, FakeBackend(additive)
    ).timings
    for genotype in genotypes:
        expected = price(SMALL.record(), SMALL.assignment(genotype))
        assert found[genotype.short_id].median_ms == pytest.approx(expected)
    subject = GenotypeSubject(SMALL, genotypes[0], batch=2)
    network, inputs = subject.build(), subject.inputs()
    assert not network.training and inputs[0].shape == (2, 3, 32, 64)
