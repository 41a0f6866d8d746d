"""ONNX export: what is written computes what the module computes, at other batch sizes too."""

import onnx
import pytest
import torch
from torch import nn

from hwnas.errors import ExportError, InvalidInput
from hwnas.latency.export import export_onnx, flat_outputs, input_names, onnx_bytes, output_names
from hwnas.layers import Add, Concat, Conv, PoolLinear, Resize

pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """A classifier on top of a resize to the input's size."""

    def __init__(self):
        super().__init__()
        self.stem, self.resize, self.head = Conv(3, 8, stride=2), Resize(), PoolLinear(8, 5)

    def forward(self, x):
        return self.head(self.resize(self.stem(x), x))


class FrozenBatch(nn.Module):
    """Reads its batch size in Python, so the exported model has that one for good."""

    def forward(self, x):
        return x.sum(dim=(1, 2, 3)) * torch.arange(int(x.shape[0]))


class NotANumber(nn.Module):
    def forward(self, x):
        return torch.log(x - 1e6)


class Undeterministic(nn.Module):
    """Computes something else each time."""

    def forward(self, x):
        return x + torch.rand(1).item()


def inputs_of(model):
    return {
        node.name: [d.dim_value or d.dim_param for d in node.type.tensor_type.shape.dim] for node in model
    }


def test_a_network_is_exported_and_compared_at_two_batch_sizes(tmp_path):
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = export_onnx(net, [torch.randn(2, 3, 17, 19)], tmp_path / "deep" / "net.onnx")
    assert report.batches_checked == (2, 3)
    assert 0 <= report.max_abs_difference < 1e-5
    assert report.size_bytes == report.path.stat().st_size > 0
    assert (report.input_names, report.output_names) == (("input",), ("output",))
    model = onnx.load(report.path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == report.opset
    assert inputs_of(model.graph.input) == {"input": ["batch", 3, 17, 19]}
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_fixed_batch_is_compared_at_that_batch_only(tmp_path):
    module = FrozenBatch()
    report = export_onnx(module, [torch.randn(2, 3, 4, 4)], tmp_path / "a.onnx", dynamic_batch=False)
    assert report.batches_checked == (2,)
    assert inputs_of(onnx.load(report.path).graph.input) == {"input": [2, 3, 4, 4]}


def test_a_batch_size_frozen_by_tracing_is_found(tmp_path):
    with pytest.raises(ExportError, match=r"ONNX Runtime does not run it at batch 3"):
        export_onnx(FrozenBatch(), [torch.randn(2, 3, 4, 4)], tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [NotANumber, Undeterministic])
def test_a_model_that_computes_something_else_is_not_written(tmp_path, module):
    with pytest.raises(ExportError, match=r"computes something else in ONNX.*allowed is 0.0001"):
        export_onnx(module(), [torch.rand(1, 1, 4, 4)], tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_check_can_be_left_out(tmp_path):
    report = export_onnx(Undeterministic(), [torch.rand(1, 1, 4, 4)], tmp_path / "a.onnx", check=False)
    assert report.path.exists()
    assert report.batches_checked == () and report.max_abs_difference is None


def test_a_module_that_does_not_run_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"Conv cannot be exported to ONNX.*\(1, 4, 8, 8\)"):
        export_onnx(Conv(3, 8), [torch.randn(1, 4, 8, 8)], tmp_path / "a.onnx")


def test_reduced_precision(tmp_path):
    x = torch.randn(1, 3, 9, 9)
    report = export_onnx(Conv(3, 8), [x], tmp_path / "half.onnx", precision="fp16", tolerance=1e-2)
    # Half precision keeps 11 bits: off by some 1e-3, and certainly not by nothing.
    assert 0 < report.max_abs_difference < 1e-2
    half = onnx.load(report.path).graph.input[0].type.tensor_type.elem_type
    assert half == onnx.TensorProto.FLOAT16
    with pytest.raises(InvalidInput, match="bf16 model cannot be checked"):
        export_onnx(Conv(3, 8), [x], tmp_path / "b.onnx", precision="bf16")


@pytest.mark.parametrize(
    ("module", "shapes", "names"),
    [
        (Add(), [(1, 4, 5, 6)] * 3, ["input_0", "input_1", "input_2"]),
        (Concat(), [(1, 4, 5, 6), (1, 2, 5, 6)], ["input_0", "input_1"]),
        # Of the second input only the shape is read, which is a constant by then.
        (Resize(), [(1, 4, 5, 6), (1, 3, 11, 13)], ["input_0"]),
        (Resize(), [(1, 4, 6, 4), (1, 3, 11, 13)], ["input_0"]),
    ],
)
def test_the_model_has_the_inputs_that_are_used(module, shapes, names):
    model = onnx.load_from_string(onnx_bytes(module, [torch.randn(shape) for shape in shapes]))
    assert [node.name for node in model.graph.input] == names


def test_several_outputs_keep_their_order(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x + 1, "b": (x * 2,)}

    report = export_onnx(Two(), [torch.randn(1, 2, 3, 3)], tmp_path / "two.onnx")
    assert report.output_names == ("output_0", "output_1")
    assert report.max_abs_difference == 0.0


def test_names():
    assert input_names(1) == ("input",)
    assert input_names(2) == ("input_0", "input_1")
    assert output_names(2) == ("output_0", "output_1")
    assert flat_outputs("text") == []


def test_exporting_warns_of_nothing():
    # Warnings are errors in these tests: a deprecation that slipped through would fail here.
    assert onnx_bytes(nn.ReLU(), [torch.ones(1, 1, 2, 2)])
