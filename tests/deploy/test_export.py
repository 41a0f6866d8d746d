"""Exported files: folded, in their precision, with their description, and naming the network's classes."""

import sys
from collections import Counter

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from hwnas.deploy import Description, OnnxNetwork, export
from hwnas.deploy.export import agreement_percent, class_map
from hwnas.errors import ExportError, InvalidInput
from hwnas.search_spaces.chain import Chain
from tests.deploy.nets import LABELLING, SHAPE, images, trained

pytest.importorskip("onnxruntime")


class Pooled(nn.Module):
    """A batch norm behind a pooling, where there is no convolution to fold it into."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.norm = nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.pool(self.conv(x)))


def kinds(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def weights(path):
    return [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]


def test_batch_norms_are_folded_into_their_convolutions(tmp_path):
    net = trained()
    report = export(net, SHAPE, tmp_path / "net.onnx", samples=images(2))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == 2
    assert kinds(report.path)["Conv"] == 3
    assert "BatchNormalization" not in kinds(report.path)
    assert report.max_abs_difference < 1e-4
    assert report.agreement_percent == 100
    pooled = export(trained(Pooled()), SHAPE, tmp_path / "pooled.onnx")
    assert kinds(pooled.path)["BatchNormalization"] == 1
    assert pooled.agreement_percent is None


@pytest.mark.parametrize("argmax", [False, True])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 100.0), ("fp16", 99.0), ("int8", 95.0)])
def test_a_file_names_the_networks_classes(precision, least, argmax, tmp_path):
    net, samples = trained(), images(3)
    report = export(
        net, SHAPE, tmp_path / "deep/net.onnx", precision=precision, argmax=argmax, samples=samples,
        calibration=images(8, seed=2),
    )  # fmt: skip
    assert (report.precision, report.images_compared) == (precision, 3)
    assert least <= report.agreement_percent <= 100
    assert report.size_bytes == report.path.stat().st_size
    onnx.checker.check_model(onnx.load(report.path), full_check=True)
    loaded = OnnxNetwork(report.path)
    # Whatever the precision: fp32 comes in, in batches of any size.
    found = loaded(samples)
    same = float((class_map(loaded, samples) == net(samples).argmax(1)).float().mean())
    assert 100 * same == pytest.approx(report.agreement_percent)
    if argmax:
        assert found.dtype == torch.int64 and found.shape == (3, 16, 24)
        (output,) = onnx.load(report.path).graph.output
        assert output.name == "classes"
        assert output.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    else:
        assert found.dtype == torch.float32 and found.shape == (3, 4, 16, 24)


def test_fp16_halves_the_weights_after_folding(tmp_path):
    net = trained()
    full = export(net, SHAPE, tmp_path / "fp32.onnx")
    half = export(net, SHAPE, tmp_path / "fp16.onnx", precision="fp16")
    assert {str(array.dtype) for array in weights(half.path) if array.ndim == 4} == {"float16"}
    folded = [array for array in weights(full.path) if array.ndim == 4]
    halved = [array for array in weights(half.path) if array.ndim == 4]
    # The nearest halves of what was folded in fp32, not a folding of halves.
    assert all((a.astype("float16") == b).all() for a, b in zip(folded, halved, strict=True))


def test_int8_quantises_weights_by_channel_without_zero_points(tmp_path):
    report = export(trained(), SHAPE, tmp_path / "n.onnx", precision="int8", calibration=images(4))
    assert report.calibration_images == 4
    model = onnx.load(report.path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = [
        stored[node.input[1]].size
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and stored[node.input[0]].ndim == 4
    ]
    # One scale for each output channel of the three convolutions.
    assert sorted(scales) == [4, 8, 8]
    zeros = [
        stored[node.input[2]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) > 2
    ]
    assert zeros and all(zero.dtype == "int8" and not zero.any() for zero in zeros)


def test_int8_needs_images(tmp_path):
    with pytest.raises(InvalidInput, match="int8 needs images to calibrate"):
        export(trained(), SHAPE, tmp_path / "n.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["samples", "calibration"])
@pytest.mark.parametrize("shape", [(0, *SHAPE), (2, 3, 8, 24), (2, 1, 16, 24)])
def test_images_are_of_the_networks_shape(what, shape, tmp_path):
    images_NCHW = {"samples": images(1), "calibration": images(1), what: torch.zeros(shape)}
    message = r"int8 needs images" if what == "calibration" and not shape[0] else (
        rf"{what}= takes at least one image .*\[N, 3, 16, 24\]; got \[{shape[0]}, "
    )  # fmt: skip
    with pytest.raises(InvalidInput, match=message):
        export(trained(), SHAPE, tmp_path / "n.onnx", precision="int8", **images_NCHW)
    assert not list(tmp_path.iterdir())


def test_nothing_agrees_on_no_image():
    with pytest.raises(InvalidInput, match="takes at least one image; got none"):
        agreement_percent(trained(), trained(), images(0))


def test_a_file_describes_itself(tmp_path):
    space = Chain()
    genotype = space.random(torch.Generator().manual_seed(0))
    report = export(trained(), SHAPE, tmp_path / "n.onnx", genotype=genotype, labelling=LABELLING)
    found = OnnxNetwork(report.path).description
    assert (found.genotype, found.labelling) == (genotype, LABELLING)
    assert (found.precision, found.output, found.calibration_images) == ("fp32", "logits", 0)
    assert found.schema_version == 1
    plain = {prop.key: prop.value for prop in onnx.load(report.path).metadata_props}
    # What other tools read, without hwnas.
    assert plain["hwnas.genotype_id"] == genotype.short_id
    assert plain["hwnas.space"] == "chain"
    assert plain["hwnas.schema_version"] == "1"
    assert plain["hwnas.classes"] == '["road", "sky", "car", "person"]'
    assert plain["hwnas.mean"] == "[0.5, 0.4, 0.3]"
    assert Description.read({"other": "1"}, "x") is None


def test_the_network_is_left_as_it_was(tmp_path):
    net = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    path = list(sys.path)
    export(net, SHAPE, tmp_path / "n.onnx", precision="fp16", samples=images(1))
    # ONNX Runtime's tools leave their folder there.
    assert sys.path == path
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_a_network_that_onnx_cannot_express_is_not_written(tmp_path):
    class Random(nn.Module):
        def forward(self, x):
            return x + torch.rand(1).item()

    with pytest.raises(ExportError, match="computes something else"):
        export(Random(), SHAPE, tmp_path / "n.onnx", precision="fp16")
    assert not list(tmp_path.iterdir())


def test_agreement_is_the_share_of_pixels():
    class Left(nn.Module):
        def __init__(self, columns):
            super().__init__()
            self.columns = columns

        def forward(self, x):
            found = torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.int64)
            found[..., : self.columns] = 1
            return found

    # Of 24 columns six differ.
    assert agreement_percent(Left(6), Left(12), images(2)) == pytest.approx(100 * 18 / 24)
