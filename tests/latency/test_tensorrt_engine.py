"""Engines are really built where TensorRT is installed; what needs a GPU is imitated."""

import onnx
import pytest
import torch
from torch import nn

from hwnas.errors import BackendUnavailable, MeasurementFailed
from hwnas.latency.export import onnx_bytes
from hwnas.latency.tensorrt_engine import build_engine
from hwnas.layers import Add, Concat, Conv, PoolLinear, Resize
from tests.latency.imitated_tensorrt import no_gpu, rtx


def exported(network, *shapes, **options):
    return onnx_bytes(network, [torch.rand(shape) for shape in shapes], **options)


def model_of(operator, inputs, outputs):
    """An ONNX model of one node."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, list(inputs), list(outputs))],
        "one node",
        [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [value(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opset).SerializeToString()


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        (nn.Sequential(Conv(3, 4, stride=2), Conv(4, 4), PoolLinear(4, 3)), [(1, 3, 17, 19)]),
        (Add(), [(1, 4, 5, 6)] * 3),
        (Concat(), [(1, 4, 5, 6), (1, 2, 5, 6)]),
        (Resize(), [(1, 4, 5, 6), (1, 3, 11, 13)]),
        (Resize(), [(1, 4, 6, 4), (1, 3, 11, 13)]),
    ],
    ids=["network", "add", "concat", "resize", "resize by strides"],
)
def test_an_engine_is_built(network, shapes, precision):
    assert len(build_engine(exported(network, *shapes, precision=precision), package="tensorrt_rtx")) > 1000


@rtx
@pytest.mark.slow
def test_every_op_of_autortnet_becomes_an_engine():
    from hwnas.ops import build_op
    from hwnas.search_spaces.autortnet import AutoRTNet

    space = AutoRTNet.from_preset("small", num_classes=4, height=32, width=64)
    keys = space.record().keys()
    for key in keys:
        assert build_engine(
            exported(build_op(key.spec), *key.input_shapes, precision="fp16"), package="tensorrt_rtx"
        ), key


@rtx
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (b"no model", r"does not read the model:\n.*Failed to parse the ONNX model"),
        (model_of("Det", {"x": [3, 3]}, {"y": []}), r"does not read the model:\n.*While parsing node.*Det"),
        (exported(Conv(3, 4), (1, 3, 8, 8), dynamic_batch=True), r"cannot build an engine.*\n.*dynamic"),
    ],
    ids=["no model", "operator", "sizes"],
)
def test_an_engine_that_cannot_be_built_is_told_in_tensorrts_words(model, text):
    with pytest.raises(MeasurementFailed, match=text):
        build_engine(model, package="tensorrt_rtx")


@rtx
def test_what_failed_before_is_not_told_again():
    with pytest.raises(MeasurementFailed, match="Failed to parse"):
        build_engine(b"no model", package="tensorrt_rtx")
    with pytest.raises(MeasurementFailed) as caught:
        build_engine(model_of("Det", {"x": [3, 3]}, {"y": []}), package="tensorrt_rtx")
    assert "Failed to parse" not in str(caught.value)


def test_networks_are_strongly_typed(imitate):
    trt = imitate()
    assert build_engine(b"model") == b"engine"
    assert trt.flags == 1 << 1


@no_gpu
def test_tensorrt_itself_builds_only_with_a_driver(imitate, monkeypatch):
    imitate()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match="builds engines only where there is an NVIDIA driver"):
        build_engine(b"model")
