import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from hwnas import (
    ArchParameters,
    ExpectedLatency,
    FitConfig,
    OpSpec,
    SearchConfig,
    SpaceError,
    assigned,
    record,
)
from hwnas.core.guidance import AuxiliaryHeads
from hwnas.core.relaxation import GumbelSoftmax
from hwnas.latency.export import export_onnx
from hwnas.latency.fake import fake_table
from hwnas.latency.subjects import plausible_inputs
from hwnas.ops import build_op
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.autortnet.aggregation import WIRINGS, AggregationCell, Wiring
from hwnas.search_spaces.autortnet.cells import edges
from hwnas.search_spaces.autortnet.ops import AGGREGATION_OPS, CELL_OPS, Zero
from hwnas.testing import check_space


def small(**fields):
    sizes = {
        "num_classes": 3, "height": 64, "width": 96, "cells": (2, 2, 3), "init_channels": 2,
        "channel_multiplier": 2, "stem_channels": (3, 4), "aggregation_width": 4, "head_width": 5,
    }  # fmt: skip
    return AutoRTNet(**{**sizes, **fields})


def deepest(space, option=0):
    return {
        name: len(choice.options) - 1 if choice.kind == "depth" else option % len(choice.options)
        for name, choice in space.choices().items()
    }


@pytest.mark.parametrize("aggregation", WIRINGS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"height": 67, "width": 101, "stem_strides": (2, 1), "nodes": 3},
        {"cell_ops": ("skip", "conv_3x3"), "aggregation_ops": ("conv_1x1_x2",), "head_dilations": ()},
    ],
)
def test_conformance(aggregation, fields):
    check_space(small(aggregation=aggregation, **fields), architectures=3)


@pytest.mark.parametrize("aggregation", WIRINGS)
@pytest.mark.parametrize("size", [(101, 67), (360, 480)])
def test_the_output_has_the_size_of_the_input(aggregation, size):
    space = small(aggregation=aggregation, height=size[0], width=size[1])
    x = torch.randn(1, 3, *size)
    network = space.build(space.random(torch.Generator().manual_seed(0))).eval()
    assert network(x).shape == (1, 3, *size)
    # Every option and every depth agrees in shape at this size: recording refuses otherwise.
    assert space.record().ops


def test_the_space_has_the_paper_size():
    space = AutoRTNet.from_preset("paper", num_classes=19)
    kinds = [choice.kind for choice in space.choices().values()]
    # Three hyper-cells: 5 edges in the reduction cell, 5 in the normal ones, one depth; 7 aggregation edges.
    assert kinds.count("depth") == 3
    assert kinds.count("op") == 3 * 10 + 7
    options = {name: len(choice.options) for name, choice in space.choices().items()}
    assert [options[f"h{h}.depth"] for h in (1, 2, 3)] == [5, 10, 10]
    assert {options[name] for name in options if ".e" in name} == {10}
    assert {options[name] for name in options if name.startswith("agg.")} == {5}
    # A hyper-cell: 10^5 reductions × (1 without normal cells + (depths − 1) · 10^5).
    expected = 5**7
    for depth in (5, 10, 10):
        expected *= 10**5 * (1 + (depth - 1) * 10**5)
    assert space.cardinality() == expected


def test_edges_of_a_cell():
    assert edges(2) == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("make", [*CELL_OPS.values(), *AGGREGATION_OPS.values()])
@pytest.mark.parametrize("size", [(7, 10), (8, 9), (1, 1)])
def test_every_op_gives_the_ceiling_of_the_size(make, stride, size):
    op = make(3, stride).train()
    output = op(torch.randn(2, 3, *size))
    assert output.shape == (2, 3, -(-size[0] // stride), -(-size[1] // stride))
    assert bool(torch.isfinite(output).all())


def test_zero_is_an_op_with_a_row_and_skip_at_stride_one_is_none():
    assert CELL_OPS["zero"](3, 1).spec == OpSpec(kind="autortnet.times_zero", attributes=(("stride", 1),))
    assert isinstance(CELL_OPS["skip"](3, 1), nn.Identity)
    x = torch.randn(1, 3, 5, 5)
    assert not CELL_OPS["zero"](3, 2)(x).any()


@pytest.mark.parametrize("size", [(5, 7), (6, 8)])
def test_the_strided_skip_reads_both_grids(size):
    """Every input pixel reaches the output, at odd sizes too."""
    x = torch.ones(2, 4, *size, requires_grad=True)
    skip = CELL_OPS["skip"](4, 2).eval()
    skip(x).sum().backward()
    touched = (x.grad != 0).any(dim=(0)).any(dim=0)
    even = touched[::2, ::2]
    odd = touched[1::2, 1::2]
    assert bool(even.all())
    assert bool(odd.all())


def test_aggregation_bears_no_penalty_but_its_milliseconds_count():
    space = small()
    arch = ArchParameters(space.supernet())
    table = fake_table(space.record().keys(), input_shape=space.input_shape())
    cost = ExpectedLatency(space.record(), arch.choices, table)
    weights = arch.probabilities().detach().requires_grad_()
    cost.penalised(weights).backward()
    for choice in arch.choices:
        gradient = weights.grad[arch.rows[choice.name]]
        assert bool((gradient == 0).all()) is choice.name.startswith("agg."), choice.name
    total = cost.total(weights.detach())
    assert float(cost.penalised(weights).detach()) == pytest.approx(total)
    aggregation = cost.by_block(weights.detach())["aggregation"]
    assert 0 < aggregation < total


def test_resize_is_in_the_sum():
    """Defect of FasterSeg: the resize was left out, and the one timed was not the one trained."""
    for aggregation, resizes in (("paper", 1), ("upsample", 5)):
        space = small(aggregation=aggregation)
        kinds = [use.key.spec.kind for use in space.record().ops]
        # The last one to the input's size; "upsample" also: x3→m, m→y1, and y2, y3 to the output's level.
        assert kinds.count("hwnas.resize") == resizes, aggregation
        last = [use.key for use in space.record().ops if use.key.spec.kind == "hwnas.resize"][-1]
        assert last.input_shapes[1] == (1, *space.input_shape())


def test_one_cell_deeper_costs_that_cell_and_no_more():
    space = small(cells=(1, 1, 3))
    recording = space.record()
    assignment = deepest(space, option=3)
    counts = [sum(recording.count({**assignment, "h3.depth": depth}).values()) for depth in range(3)]
    # A normal cell of two nodes: two 1×1 convolutions, five edges, two additions, one concatenation.
    assert [b - a for a, b in itertools.pairwise(counts)] == [10, 10]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_hard_draw_runs_no_cell_behind_the_exit(depth):
    space = small(cells=(1, 1, 3))
    net = space.supernet().eval()
    arch = ArchParameters(net)
    calls = []
    for step in net.hypercells[2].cells.steps:
        step.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), assigned(net, arch, arch.one_hot({**deepest(space), "h3.depth": depth})):
        net(torch.randn(1, 3, 64, 96))
    assert len(calls) == depth + 1


@pytest.mark.parametrize("hard", [True, False])
def test_a_search_step_gives_every_live_choice_a_gradient(hard):
    space = small(cells=(1, 2, 2), dropout=0.0)
    torch.manual_seed(0)
    net = space.supernet().train()
    arch = ArchParameters(net)
    draw = arch.draw(GumbelSoftmax(hard=hard), 1.0, torch.Generator().manual_seed(2))
    x, targets = torch.randn(2, 3, 64, 96), torch.randint(3, (2, 64, 96))
    with assigned(net, arch, draw):
        space.loss(net(x), targets).backward()
    gradients = torch.cat([matrix.grad for matrix in arch.parameters()])
    assert bool(torch.isfinite(gradients).all())
    if not hard:
        assert [choice.name for choice in arch.choices if not gradients[arch.rows[choice.name]].any()] == [
            "h1.depth"
        ]


def test_void_pixels_bear_no_loss():
    space = small()
    logits = torch.randn(1, 3, 4, 4)
    targets = torch.randint(3, (1, 4, 4))
    voided = targets.clone()
    voided[0, :2] = 255
    expected = nn.functional.cross_entropy(logits[:, :, 2:], targets[:, 2:])
    torch.testing.assert_close(space.loss(logits, voided), expected)


def test_the_metric_is_miou():
    metric = small().metric()
    metric.update(torch.tensor([[[[9.0, 0.0]], [[0.0, 9.0]], [[0.0, 0.0]]]]), torch.tensor([[[0, 255]]]))
    assert next(iter(metric.compute().items())) == ("miou", 100.0)


def test_a_wiring_may_not_skip_a_level_downwards():
    wiring = Wiring(
        about="",
        levels={"x1": 1, "x2": 2, "x3": 3, "y": 3},
        edges=(("x1", "y"),),
        outputs=("y",),
        output_level=3,
    )
    with pytest.raises(SpaceError, match="edge x1→y goes down 2 levels"):
        AggregationCell((4, 4, 4), 4, wiring, ("conv_1x1_x2",))


@pytest.mark.parametrize("preset", AutoRTNet.presets)
def test_presets_can_be_recorded_and_fit_their_configs(preset):

    space = AutoRTNet.from_preset(preset)
    assert space.record().ops
    SearchConfig(**AutoRTNet.preset(preset).search)
    FitConfig(**AutoRTNet.preset(preset).fit)


def test_a_derived_network_has_affine_norms_and_no_choice_left():
    space = small()
    network = space.build(space.random(torch.Generator().manual_seed(1)))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.affine for norm in norms)
    assert all(use.condition == () for use in record(network, [torch.randn(1, 3, 64, 96)]).ops)


def test_every_op_exports_at_odd_sizes_with_a_dynamic_batch(tmp_path: Path) -> None:
    # 101 → 51 → 26 → 13 → 7 and 67 → 34 → 17 → 9 → 5: each halving meets an odd side somewhere.
    space = AutoRTNet.from_preset("small", height=101, width=67, cells=(2, 2, 2))
    keys = space.record().keys()
    for key in keys:
        op = build_op(key.spec).eval()
        inputs = plausible_inputs(key.input_shapes)
        report = export_onnx(op, inputs, tmp_path / "op.onnx", dynamic_batch=True, check=True)
        assert report.max_abs_difference <= 1e-4, str(key)


def test_zero_halves_upwards_once_exported(tmp_path: Path) -> None:
    # Traced as -(-45 // 2), ONNX's division, which rounds towards zero, would give 22.
    network = Zero(stride=2)
    assert network(torch.ones(1, 2, 45, 60)).shape == (1, 2, 23, 30)
    export_onnx(network, [torch.ones(1, 2, 45, 60)], tmp_path / "zero.onnx", dynamic_batch=True, check=True)


@pytest.mark.parametrize("seed", range(3))
def test_auxiliary_heads_read_the_second_and_third_hypercell(seed):
    space = small()
    network = space.build(space.random(torch.Generator().manual_seed(seed)))
    heads = space.auxiliary_heads(network)
    assert list(heads) == ["hypercells.1", "hypercells.2"]
    names = set(network.state_dict())
    auxiliary = AuxiliaryHeads(network, heads)
    with auxiliary.reading():
        logits = network(torch.randn(2, 3, 64, 96))
        outputs = auxiliary(logits)
    assert [output.shape for output in outputs] == [logits.shape] * 2
    # What the first head says depends on the second hyper-cell and on nothing behind it.
    outputs[0].square().sum().backward()
    reached = {
        n.split(".")[1] for n, p in network.named_parameters() if n[:5] == "hyper" and p.grad is not None
    }
    assert "1" in reached and "2" not in reached
    assert set(network.state_dict()) == names


def test_auxiliary_heads_are_of_the_spaces_classes_and_widths():
    space = small(num_classes=7, nodes=3, head_width=6)
    network = space.build(space.random(torch.Generator().manual_seed(0)))
    heads = space.auxiliary_heads(network)
    # nodes · init_channels · multiplier^h channels come out of hyper-cell h.
    assert [head[0].conv.in_channels for head in heads.values()] == [3 * 2 * 4, 3 * 2 * 8]
    assert {head[1].conv.out_channels for head in heads.values()} == {7}
    assert {head[1].conv.in_channels for head in heads.values()} == {6}


def test_the_candidates_can_be_fewer():
    space = small(cell_ops=("skip", "conv_3x3"), aggregation_ops=("conv_1x1_x2", "conv_3x3_x2"))
    options = {choice.options for choice in space.choices().values() if choice.kind != "depth"}
    assert options == {("skip", "conv_3x3"), ("conv_1x1_x2", "conv_3x3_x2")}
    kinds = {use.key.spec.kind for use in space.record().ops}
    assert "autortnet.conv" in kinds and not kinds & {"autortnet.sep_conv", "autortnet.max_pool"}


@pytest.mark.parametrize("names", [(), ("conv_3x3", "conv_3x3"), ("conv_1x1_x2",)])
def test_candidates_that_are_none_are_refused(names):
    with pytest.raises(ValueError, match=r"expected one or more of zero, skip, .*, each once; got"):
        small(cell_ops=names)


def test_an_image_classifier_has_the_networks_weights_and_logits_before_the_resize():
    space = small(num_classes=5)
    network = space.build(space.random(torch.Generator().manual_seed(0))).eval()
    classifier = space.image_classifier(network)
    assert {id(p) for p in classifier.parameters()} == {id(p) for p in network.parameters()}
    x = torch.randn(2, 3, space.height, space.width)
    coarse = classifier(x)
    assert coarse.shape[1] == 5 and coarse.shape[2] < x.shape[2]
    torch.testing.assert_close(network.resize(coarse, x), network(x))
