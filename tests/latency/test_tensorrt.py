"""Timing in TensorRT: running engines is imitated, or needs a GPU."""

import contextlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from hwnas.errors import (
    BackendUnavailable,
    DeviceNotFound,
    ExportError,
    InvalidInput,
    MeasurementFailed,
    MissingExtra,
)
from hwnas.latency import tensorrt as module
from hwnas.latency.device import Device
from hwnas.latency.tensorrt import TensorRTBackend
from hwnas.latency.tensorrt_probe import probe
from hwnas.layers import Conv
from hwnas.testing import check_backend
from tests.latency.imitated_tensorrt import GPU, no_gpu, rtx


@rtx
def test_a_module_that_cannot_be_exported_is_told():
    with pytest.raises(ExportError, match="Conv cannot be exported to ONNX"):
        TensorRTBackend(GPU, package="tensorrt_rtx").build(Conv(3, 4), [torch.rand(1, 2, 8, 8)])


@rtx
@no_gpu
def test_without_a_driver_it_is_probed_to_build_and_not_to_run():
    found = probe("tensorrt_rtx")
    assert (found.builds, found.runs) == (True, False)
    assert found.version and "Install an NVIDIA driver" in found.why
    with pytest.raises(
        BackendUnavailable, match=r"cannot run on NVIDIA TITAN Xp.*: cudaError \d+: CUDA driver.*nvidia-smi"
    ):
        TensorRTBackend(GPU, package="tensorrt_rtx").check()


@no_gpu
def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(BackendUnavailable, match="sees no CUDA device"):
        TensorRTBackend(GPU).prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    with pytest.raises(BackendUnavailable, match=r"sees none here\. Install an NVIDIA driver.*hwnas doctor"):
        TensorRTBackend()
    with pytest.raises(DeviceNotFound, match='no "titanxp" in this machine'):
        TensorRTBackend("titanxp")


def test_arguments_are_checked():
    with pytest.raises(InvalidInput, match=r"TensorRT runs on CUDA devices only; this is .*onnxruntime"):
        TensorRTBackend("cpu")
    with pytest.raises(InvalidInput, match='package must be one of tensorrt, tensorrt_rtx; got "trt"'):
        TensorRTBackend(GPU, package="trt")
    with pytest.raises(InvalidInput, match="runs must be 1 or more; got 0"):
        TensorRTBackend(GPU).layer_times_ms(Conv(3, 4), [torch.rand(1, 3, 8, 8)], runs=0)


def test_a_timing_cache_is_kept_by_device_and_version(imitate, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trt = imitate()
    backend = TensorRTBackend(GPU)
    assert backend.settings()["timing_cache"] == "True"
    path = tmp_path / "hwnas" / "tensorrt" / "tensorrt-10.9-nvidia-titan-xp-sm6.1.timing-cache"
    assert backend.build(Conv(3, 4), [torch.rand(1, 3, 8, 8)]) == b"engine"
    assert path.read_bytes() == b"titan: new"
    assert trt.used == [GPU.index], "kernels are timed on the device that is meant"
    # What is there is used, and not written again.
    path.write_bytes(b"titan: known kernels")
    written = path.stat().st_mtime_ns
    backend.build(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (b"titan: known kernels", written)
    # Another device's is not taken, but replaced.
    path.write_bytes(b"h200: known kernels")
    backend.build(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    assert path.read_bytes() == b"titan: new"
    path.unlink()
    TensorRTBackend(GPU, timing_cache=False).build(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    assert not path.exists()


def test_an_engine_that_is_not_built_yields_the_log(imitate):
    imitate(plan=None)
    with pytest.raises(
        MeasurementFailed, match=r"10.9 cannot build an engine of the model:\n  no kernel for"
    ):
        TensorRTBackend(GPU, timing_cache=False).prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


class FakeContext:
    """Runs nothing: notes addresses, and the streams that it was enqueued on."""

    def __init__(self, works=True):
        self.addresses, self.streams, self.works, self.profiler = {}, [], works, None

    def get_tensor_shape(self, name):
        return (1, 4, 8, 8)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        self.streams.append(stream)
        if self.profiler is not None:
            for layer, ms in (("conv", 0.25), ("relu", 0.125)):
                self.profiler.report_layer_time(layer, ms)
        return self.works


class FakeEngine:
    num_io_tensors = 2

    def get_tensor_name(self, index):
        return ("input", "output")[index]

    def get_tensor_mode(self, name):
        return name

    def get_tensor_dtype(self, name):
        return "half"


@pytest.fixture
def imitate_running(imitate, monkeypatch):
    """An engine and a context whose buffers lie on the CPU."""
    trt = imitate()
    trt.TensorIOMode = SimpleNamespace(INPUT="input")
    trt.float32, trt.float16, trt.bfloat16, trt.int32, trt.int64, trt.bool = (
        "float",
        "half",
        "bf16",
        "int",
        "long",
        "bool",
    )
    trt.IProfiler = type("IProfiler", (), {"__init__": lambda self: None})
    trt.LayerInformationFormat = SimpleNamespace(JSON="json")
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    monkeypatch.setattr(Device, "torch_name", property(lambda self: "cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(TensorRTBackend, "_on_stream", lambda self: contextlib.nullcontext())
    return TensorRTBackend(GPU, "fp16", timing_cache=False)


def test_a_run_is_enqueued_on_the_current_stream_with_every_tensor_bound(imitate_running):
    context = FakeContext()
    run = imitate_running._run(FakeEngine(), context, [torch.rand(1, 3, 8, 8)])
    assert set(context.addresses) == {"input", "output"} and all(context.addresses.values())
    run()
    run()
    assert context.streams == [7, 7]


def test_a_run_that_cannot_be_enqueued_gives_no_number(imitate_running, monkeypatch):
    loaded = (FakeEngine(), FakeContext(works=False))
    monkeypatch.setattr(imitate_running, "_loaded", lambda plan: loaded)
    with pytest.raises(MeasurementFailed, match="could not enqueue an inference"):
        imitate_running.prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        (None, "cannot load the engine that it built"),
        (SimpleNamespace(create_execution_context=lambda: None), "is the GPU's memory full?"),
    ],
)
def test_an_engine_that_cannot_be_loaded_gives_no_number(imitate_running, monkeypatch, engine, text):
    monkeypatch.setattr(
        module, "runtime_of", lambda package: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    )
    with pytest.raises(MeasurementFailed, match=text):
        imitate_running.prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_whatever_is_raised_says_what_was_run(imitate_running, monkeypatch):
    def lost(plan):
        raise RuntimeError("CUDA error: device-side assert")

    monkeypatch.setattr(imitate_running, "_loaded", lost)
    with pytest.raises(
        MeasurementFailed,
        match=r"Conv does not run in TensorRT \(fp16, NVIDIA TITAN Xp\) on inputs.*device-side",
    ):
        imitate_running.prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_layers_are_timed_in_a_run_of_their_own(imitate_running, monkeypatch):
    context = FakeContext()
    monkeypatch.setattr(imitate_running, "_loaded", lambda plan: (FakeEngine(), context))
    found = imitate_running.layer_times_ms(Conv(3, 4), [torch.rand(1, 3, 8, 8)], runs=4)
    assert found == {"conv": 0.25, "relu": 0.125}
    # As many runs to warm up, before the profiler is there.
    assert len(context.streams) == 8


def test_layers_are_listed_in_detail_from_an_engine_of_their_own(imitate_running, monkeypatch):
    imitate_running.build(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    assert sys.modules["tensorrt"].config.profiling_verbosity == "names"
    inspector = SimpleNamespace(
        get_engine_information=lambda form: json.dumps({"Layers": [f"conv as {form}"]})
    )
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    monkeypatch.setattr(imitate_running, "_loaded", lambda plan: (engine, FakeContext()))
    assert imitate_running.layers(Conv(3, 4), [torch.rand(1, 3, 8, 8)]) == {"Layers": ["conv as json"]}
    assert sys.modules["tensorrt"].config.profiling_verbosity == "detailed"


def test_a_type_without_counterpart_is_refused(imitate_running):
    class Odd(FakeEngine):
        def get_tensor_dtype(self, name):
            return "int4"

    with pytest.raises(MeasurementFailed, match="type int4 has no counterpart in PyTorch"):
        imitate_running._run(Odd(), FakeContext(), [torch.rand(1, 3, 8, 8)])


def test_settings_tell_graphs_from_launches():
    first, second = (TensorRTBackend(GPU, cuda_graph=graph, timing_cache=False) for graph in (True, False))
    assert first.settings() != second.settings()
    assert first.settings()["timing_cache"] == "False" and first.remarks() == []


@pytest.mark.tensorrt
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.filterwarnings("ignore::hwnas.latency.cuda.LaunchBoundWarning")
def test_conformance(precision, cuda_graph):
    backend = TensorRTBackend("cuda", precision, cuda_graph=cuda_graph)
    try:
        backend.check()
    except (BackendUnavailable, MissingExtra) as error:
        pytest.skip(str(error))
    check_backend(backend)
    conv, x = Conv(3, 4), torch.rand(1, 3, 8, 8)
    assert backend.layers(conv, [x])["Layers"]
    assert sum(backend.layer_times_ms(conv, [x], runs=3).values()) > 0
