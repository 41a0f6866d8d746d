"""Whatever goes wrong in a runtime, a table says so, keeps what is sound, and has no number for the rest."""

import importlib.util
import math
from typing import ClassVar

import pytest
import torch

from hwnas.errors import MeasurementFailed, MissingLatency
from hwnas.latency import onnxruntime as onnxruntime_module
from hwnas.latency import tensorrt as tensorrt_module
from hwnas.latency.device import Device
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.onnxruntime import OnnxRuntimeBackend
from hwnas.latency.profile import profile_keys
from hwnas.latency.table import LatencyTable
from hwnas.latency.tensorrt import TensorRTBackend
from hwnas.latency.torch import TorchBackend
from hwnas.latency.torch_compile import TorchCompileBackend
from hwnas.layers import Conv
from hwnas.ops import Op, OpKey, register_op

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp", cores=30, compute_capability="6.1")
SOUND = OpKey(spec=Conv(3, 4).spec, input_shapes=((1, 3, 8, 8),))


@register_op("test.bessel")
class Bessel(Op):
    """Runs in PyTorch; ONNX has no such operator."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


@register_op("test.dies")
class Dies(Op):
    """Runs a few times, and then the device is gone."""

    left: ClassVar[int] = 0

    def forward(self, x):
        Dies.left -= 1
        if Dies.left < 0:
            raise RuntimeError("CUDA error: the launch timed out and was terminated")
        # Longer than a block must be, so that few calls prepare it.
        return torch.randn(1000, 1000) @ torch.randn(1000, 1000)


def key_of(op):
    return OpKey(spec=op.spec, input_shapes=((1, 3, 8, 8),))


def profile(backend, broken, path):
    settings = ProfileSettings(rounds=2, processes=1, busy="remark")
    return profile_keys([SOUND, broken], backend, input_shape=(3, 8, 8), path=path, settings=settings)


def check_that_only_the_sound_row_is_there(path, broken, text):
    table = LatencyTable.load(path)
    assert table.latency_ms(SOUND) > 0
    row = table.rows[broken]
    assert (row.status, row.count, row.median_ms) == ("failed", 0, math.inf)
    assert text in row.error
    with pytest.raises(MissingLatency, match="failed: "):
        table.latency_ms(broken)


def test_an_op_that_cannot_be_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    broken, path = key_of(Bessel()), tmp_path / "table.json"
    with pytest.raises(
        MeasurementFailed, match=r"1 of 2 entries could not be measured with onnxruntime"
    ) as caught:
        profile(OnnxRuntimeBackend("cpu"), broken, path)
    assert "test.bessel" in str(caught.value) and "Bessel cannot be exported to ONNX" in str(caught.value)
    check_that_only_the_sound_row_is_there(path, broken, "Bessel cannot be exported to ONNX")


def test_a_device_that_is_lost_while_it_is_read(tmp_path):
    broken, path = key_of(Dies()), tmp_path / "table.json"
    # Two calls prepare it, and each of the two rounds reads it at least once.
    Dies.left = 3
    with pytest.raises(MeasurementFailed, match="1 of 2 entries could not be measured with torch"):
        profile(TorchBackend("cpu"), broken, path)
    check_that_only_the_sound_row_is_there(path, broken, "CUDA error: the launch timed out")


def test_a_device_that_is_lost_while_an_op_is_prepared(tmp_path):
    broken, path = key_of(Dies()), tmp_path / "table.json"
    Dies.left = 0
    with pytest.raises(MeasurementFailed, match="1 of 2 entries could not be measured with torch"):
        profile(TorchBackend("cpu"), broken, path)
    check_that_only_the_sound_row_is_there(path, broken, "Dies does not run in PyTorch (torch, fp32")


def test_an_op_that_does_not_compile(tmp_path, monkeypatch):
    broken, path = key_of(Bessel()), tmp_path / "table.json"

    def compile_(function, **options):
        def run():
            if isinstance(function.__closure__[0].cell_contents, Bessel):
                raise RuntimeError("C++ compile error: bessel_j0 was not declared in this scope")
            return function()

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(TorchCompileBackend, "check", lambda self: None)
    with pytest.raises(MeasurementFailed, match="1 of 2 entries could not be measured with torch-compile"):
        profile(TorchCompileBackend("cpu"), broken, path)
    check_that_only_the_sound_row_is_there(path, broken, "Bessel cannot be compiled (fp32")


def test_an_op_of_which_a_node_runs_elsewhere(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    broken, path = OpKey(spec=Conv(3, 5).spec, input_shapes=((1, 3, 8, 8),)), tmp_path / "table.json"

    def elsewhere(session, provider):
        channels = session.get_outputs()[0].shape[1]
        return ["Conv (CUDAExecutionProvider)"] if channels == 5 else []

    monkeypatch.setattr(onnxruntime_module, "_nodes_elsewhere", elsewhere)
    with pytest.raises(MeasurementFailed, match="1 of 2 entries could not be measured with onnxruntime"):
        profile(OnnxRuntimeBackend("cpu"), broken, path)
    check_that_only_the_sound_row_is_there(path, broken, "does not take Conv (CUDAExecutionProvider)")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_that_is_not_built(tmp_path, monkeypatch):
    # The builder is TensorRT's own; only running the engine, which needs a GPU, is left out.
    broken, path = OpKey(spec=Conv(3, 5).spec, input_shapes=((1, 3, 8, 8),)), tmp_path / "table.json"
    real = TensorRTBackend.export

    def spoiled(self, module, inputs):
        model = real(self, module, inputs)
        return model[: len(model) // 2] if module.spec == broken.spec else model

    monkeypatch.setattr(TensorRTBackend, "export", spoiled)
    for check in ("check", "_require_cuda"):
        monkeypatch.setattr(TensorRTBackend, check, lambda self: None)
    monkeypatch.setattr(TensorRTBackend, "_loaded", lambda self, plan: (plan, plan))
    monkeypatch.setattr(TensorRTBackend, "_run", lambda self, engine, context, inputs: lambda: None)
    monkeypatch.setattr(tensorrt_module.CudaTimer, "reader", lambda self, run: lambda: 1.0)
    with pytest.raises(MeasurementFailed, match="1 of 2 entries could not be measured with tensorrt"):
        profile(TensorRTBackend(GPU, package="tensorrt_rtx"), broken, path)
    check_that_only_the_sound_row_is_there(path, broken, "Failed to parse the ONNX model")
