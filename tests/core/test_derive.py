import pytest
import torch
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, Conv, ExpectedLatency, Op, assigned, derive, record
from hwnas.core.choice import Block, blocks
from hwnas.core.derive import Pick, Steps, make_batchnorm_affine
from hwnas.errors import GenotypeError

from .nets import (
    SPACES,
    ChoiceInDepth,
    Inputs,
    SharedChain,
    all_assignments,
    block,
    table_of,
    with_statistics,
)


def supernet_of(space):
    torch.manual_seed(0)
    return with_statistics(space.supernet()).eval()


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_derived_network_equals_the_supernet_at_one_hot_and_sums_to_its_expected_latency(space):
    supernet = supernet_of(space)
    arch = ArchParameters(supernet)
    table = table_of(space)
    cost = ExpectedLatency(space.record(), arch.choices, table)
    x = torch.randn(2, *space.input_shape())
    for assignment in all_assignments(space):
        draw = arch.one_hot(assignment)
        with torch.no_grad():
            with assigned(supernet, arch, draw):
                expected = supernet(x)
            network = derive(supernet, assignment).eval()
            torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)
        ran = record(network, [x[:1]]).ops
        assert all(use.condition == () for use in ran)
        milliseconds = sum(table.latency_ms(use.key) for use in ran)
        assert cost.total(draw.weights) == pytest.approx(milliseconds, rel=1e-5)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_equal_networks_have_equal_genotypes_and_different_ones_do_not(space):
    supernet = supernet_of(space)
    x = torch.randn(2, *space.input_shape())
    outputs = {}
    for assignment in all_assignments(space):
        genotype = space.genotype(assignment)
        with torch.no_grad():
            output = derive(supernet, assignment).eval()(x)
            known = outputs.setdefault(genotype.short_id, output)
            torch.testing.assert_close(output, known)
            # The canonical genotype alone is enough to build the same network.
            torch.testing.assert_close(space.build(genotype, supernet).eval()(x), output)
    assert len(outputs) == space.cardinality()


def test_a_derived_network_holds_no_block_and_only_the_ops_that_run():
    space = ChoiceInDepth()
    network = derive(space.supernet(), {"d": 0, "a": 1})
    assert not any(isinstance(module, Block) for module in network.modules())
    ran = record(network, [torch.randn(1, 3, 6, 5)]).ops
    held = [module for module in network.modules() if isinstance(module, Op)]
    # stem, the cell's kernel 3, the classifier
    assert [use.key.spec.kind for use in ran] == ["hwnas.conv", "hwnas.conv", "hwnas.pool_linear"]
    assert len(held) == 3


def test_the_supernet_is_left_untouched_and_weights_are_copies():
    supernet = supernet_of(SharedChain())
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    network = derive(supernet, {"a": 0})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert [type(module) for module in supernet.modules()].count(nn.BatchNorm2d) == 5
    assert len(list(blocks(supernet))) == 2
    for name, value in supernet.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_affine_batch_norms_are_added_and_compute_the_same():
    supernet = supernet_of(SharedChain())
    x = torch.randn(2, 3, 6, 5)
    plain = derive(supernet, {"a": 1}, affine=False).eval()
    affine = derive(supernet, {"a": 1}).eval()
    norms = [module for module in affine.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.affine for norm in norms] == [True] * 3
    assert not any(m.affine for m in plain.modules() if isinstance(m, nn.BatchNorm2d))
    torch.testing.assert_close(affine(x), plain(x))
    affine(x).sum().backward()
    assert all(norm.weight.grad is not None and norm.bias.grad is not None for norm in norms)


def test_affine_batch_norms_that_are_there_already_keep_their_values():
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.fill_(3.0)
    make_batchnorm_affine(nn.Sequential(norm))
    assert norm.weight.tolist() == [3.0, 3.0]


def test_a_module_with_two_names_is_folded_once_and_stays_shared():
    network = derive(Inputs().supernet(), {"a": 1, "in": 2})
    assert network.again is network.left
    assert isinstance(network.which, Pick)


def test_one_module_in_two_places_of_a_list_is_folded_in_both():
    shared = block("a")
    network = derive(nn.Sequential(shared, nn.Sequential(shared)), {"a": 0})
    assert network[0] is network[1][0]
    assert not any(isinstance(module, Block) for module in network.modules())


def test_a_module_that_one_block_drops_and_another_place_uses_is_kept():
    shared = Conv(4, 4, kernel=1)
    either = ChoiceBlock(Choice(name="a", options=("x", "y")), {"x": shared, "y": Conv(4, 4)})
    network = derive(nn.Sequential(either, shared), {"a": 1})
    assert [module.conv.kernel_size for module in network] == [(3, 3), (1, 1)]


def test_depth_keeps_the_steps_up_to_the_exit():
    network = derive(ChoiceInDepth().supernet(), {"d": 1, "a": 0, "b": 0})
    steps = network[1]
    assert isinstance(steps, Steps)
    assert len(steps.steps) == 2
    assert steps.leave is not None


def test_a_choice_that_matters_must_be_decided():
    with pytest.raises(GenotypeError, match='decides nothing about "b", which this network needs'):
        derive(ChoiceInDepth().supernet(), {"d": 1, "a": 0})


@pytest.mark.parametrize("index", [-1, 2])
def test_an_option_out_of_range_is_refused(index):
    with pytest.raises(GenotypeError, match=f'choice "a" has options 0 to 1, got {index}'):
        derive(SharedChain().supernet(), {"a": index})


def test_a_derived_network_can_be_traced_by_torch():
    network = derive(ChoiceInDepth().supernet(), {"d": 2, "a": 0, "b": 1, "c": 1}).eval()
    x = torch.randn(1, 3, 6, 5)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))
