from typing import ClassVar

import pytest
import torch
from pydantic import Field, ValidationError
from torch import nn

from hwnas import Conv, Genotype, Preset, SearchSpace
from hwnas.core.space import for_classes
from hwnas.errors import GenotypeError, InvalidInput
from hwnas.search_spaces.chain import Chain

from .nets import SPACES, ChoiceInChoice, ChoiceInDepth, SharedChain, all_assignments


class Presets(SharedChain):
    name: ClassVar[str] = "presets"
    presets: ClassVar = {"wide": Preset(about="wider", fields={"width": 9}, search={"epochs": 3})}
    width: int = 4


def test_recordings_are_made_on_meta_and_once():
    space = ChoiceInDepth()
    assert space.record() is space.record()
    assert space.record(batch=2) is not space.record()
    assert space.record(batch=2).keys()[0].input_shapes == ((2, 3, 6, 5),)


def test_a_space_equals_its_json():
    space = Chain(size=16, kernels=(1, 3))
    assert Chain.model_validate_json(space.model_dump_json()) == space


def test_a_space_is_frozen_and_refuses_unknown_fields():
    with pytest.raises(ValidationError, match="frozen"):
        Chain().size = 3
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Chain(colour=3)


def test_presets_set_fields_that_the_caller_may_override():
    assert Presets.from_preset("wide").width == 9
    assert Presets.from_preset("wide", width=2).width == 2
    assert Presets.from_preset().width == 4


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(InvalidInput, match='presets has no preset "tall"; it has: wide'):
        Presets.from_preset("tall")
    with pytest.raises(InvalidInput, match="it has: none"):
        SharedChain.preset("tall")


def test_fields_that_a_preset_cannot_have_are_refused():
    with pytest.raises(InvalidInput, match=r"presets refuses these values:\n  "):
        Presets.from_preset("wide", width="broad")


def test_choices_that_cannot_matter_are_dropped():
    space = ChoiceInDepth()
    shallow = space.genotype({"d": 0, "a": 1, "b": 0, "c": 1})
    assert shallow.choices == {"a": "k3", "d": "1"}
    assert shallow == space.genotype({"d": 0, "a": 1})
    plain = ChoiceInChoice().genotype({"outer": 0, "inner": 2, "d": 1, "e": 1})
    assert plain.choices == {"outer": "plain"}


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_genotypes_come_back_as_assignments(space):
    for assignment in all_assignments(space):
        genotype = space.genotype(assignment)
        again = space.assignment(Genotype.model_validate_json(genotype.model_dump_json()))
        assert space.genotype(again) == genotype
        assert {name: assignment[name] for name in again} == again


def test_a_genotype_must_decide_what_matters():
    with pytest.raises(GenotypeError, match="nothing is decided about b"):
        ChoiceInDepth().genotype({"d": 1, "a": 0})
    space = ChoiceInDepth()
    genotype = space.genotype({"d": 1, "a": 0, "b": 0})
    short = genotype.model_copy(update={"choices": {"d": "2", "a": "k1"}})
    with pytest.raises(GenotypeError, match="the genotype decides nothing about b"):
        space.assignment(short)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_out_of_range_is_refused(index):
    with pytest.raises(GenotypeError, match=f'"a" has options 0 to 1, got {index}'):
        SharedChain().genotype({"a": index})


def test_a_genotype_of_another_space_is_refused():
    genotype = SharedChain().genotype({"a": 0})
    with pytest.raises(GenotypeError, match='of the space "shared_chain", not of "choice_in_depth"'):
        ChoiceInDepth().assignment(genotype)


def test_a_genotype_of_other_fields_is_refused_with_the_difference():
    """Defect of autodeeplab (#97): the retraining used the default architecture, not the one searched."""
    genotype = Chain(size=16).random()
    with pytest.raises(
        GenotypeError, match=r"  size: genotype 16, space 32\n.*Chain\(\*\*genotype\.fields\)"
    ):
        Chain().build(genotype)
    assert Chain(**genotype.fields).assignment(genotype)


class Grown(SharedChain):
    name: ClassVar[str] = "grown"
    since: list[int] = Field(default_factory=lambda: [3])


def test_a_genotype_older_than_a_field_with_a_made_default_fits_it():
    genotype = Grown().random(torch.Generator().manual_seed(0))
    assert genotype.fields.pop("since") == [3]
    assert Grown().assignment(genotype)
    with pytest.raises(GenotypeError, match="since: genotype None, space"):
        Grown(since=[4]).assignment(genotype)


def test_a_genotype_older_than_a_field_was_found_with_the_fields_default():
    genotype = Chain(size=16).random(torch.Generator().manual_seed(0))
    older = genotype.model_copy(
        update={"fields": {name: value for name, value in genotype.fields.items() if name != "kernels"}}
    )
    assert Chain(size=16).assignment(older) == Chain(size=16).assignment(genotype)
    with pytest.raises(GenotypeError, match=r"  kernels: genotype None, space \[1, 3\]"):
        Chain(size=16, kernels=(1, 3)).assignment(older)


def test_unknown_choices_and_options_are_refused():
    space = SharedChain()
    genotype = space.genotype({"a": 0})
    with pytest.raises(GenotypeError, match='"z"'):
        space.assignment(genotype.model_copy(update={"choices": {"a": "k1", "z": "k1"}}))
    with pytest.raises(GenotypeError, match='"a" cannot be "k9"'):
        space.assignment(genotype.model_copy(update={"choices": {"a": "k9"}}))


def test_build_takes_the_weights_of_the_supernet_given():
    space = SharedChain()
    supernet = space.supernet()
    network = space.build(space.genotype({"a": 1}), supernet)
    torch.testing.assert_close(network[1].conv.weight, supernet[1].options[1].conv.weight)


def test_random_architectures_come_from_the_generator():
    space = ChoiceInChoice()
    draws = [space.random(torch.Generator().manual_seed(3)) for _ in range(2)]
    assert draws[0] == draws[1]
    generator = torch.Generator().manual_seed(0)
    found = {space.random(generator).short_id for _ in range(400)}
    assert len(found) == space.cardinality()


def test_cardinality_counts_different_networks():
    # plain: 1. rich: 3 inner × (depth 1: 2 of e; depth 2: 2 of e) = 3 · 4 = 12.
    assert ChoiceInChoice().cardinality() == 13
    # Depth 1: 2 of a; depth 2: 2 · 2; depth 3: 2 · 2 · 2.
    assert ChoiceInDepth().cardinality() == 14
    # Two stages, each 3 kernels × 3 depths: 9 · 9.
    assert Chain().cardinality() == 81


class Minimal(SearchSpace):
    name: ClassVar[str] = "minimal"

    def input_shape(self):
        return (3,)

    def supernet(self):
        return nn.Sequential(Conv(3, 3))


def test_defaults_of_loss_and_metric():
    outputs, targets = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    space = Minimal()
    assert space.loss(outputs, targets).item() == pytest.approx(0.6931, abs=1e-4)  # ln 2
    assert space.fit_loss(outputs, targets) == space.loss(outputs, targets)
    assert space.metric() is None


def test_a_recording_does_not_make_a_space_another_one() -> None:
    fresh, recorded = Chain(depth=1), Chain(depth=1)
    recorded.record()
    assert fresh == recorded
    assert hash(fresh) == hash(recorded)
    assert fresh != Chain(depth=2)


def test_the_same_choices_tell_other_classes_apart():
    chain = Chain(size=16, num_classes=3)
    found = chain.random(torch.Generator().manual_seed(1))
    space, genotype = for_classes(chain, found, 7)
    assert genotype.choices == found.choices
    assert space.num_classes == genotype.fields["num_classes"] == 7
    assert for_classes(chain, found, 3) == (chain, found)
    one, other = chain.build(found), space.build(genotype)
    shapes = {name: value.shape for name, value in other.state_dict().items()}
    differ = {name for name, value in one.state_dict().items() if value.shape != shapes[name]}
    assert differ and all("linear" in name for name in differ)
    # What a space recorded of its supernet is not recorded again.
    assert for_classes(chain, found, 7)[0] is space


def test_a_space_without_classes_is_refused():
    space = ChoiceInDepth()
    with pytest.raises(
        InvalidInput, match=r"the data have 7 classes, and .* has no field num_classes to set"
    ):
        for_classes(space, space.random(), 7)
