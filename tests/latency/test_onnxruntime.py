"""Timing in ONNX Runtime: on the provider asked for or not at all."""

import sys
from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import nn

from hwnas.errors import BackendUnavailable, ExportError, InvalidInput, MeasurementFailed, MissingExtra
from hwnas.latency.device import Device
from hwnas.latency.export import OPSET, onnx_bytes
from hwnas.latency.interleaving import measure_interleaved
from hwnas.latency.onnxruntime import PROVIDERS, OnnxRuntimeBackend, _nodes_elsewhere
from hwnas.layers import Conv

onnxruntime = pytest.importorskip("onnxruntime")

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp", index=1, cores=30)


class Zeros(nn.Module):
    """Reads only the shape of its input: the exported model has no input at all."""

    def forward(self, x):
        return torch.zeros(x.shape)


class FakeSession:
    """Stands in for a session; ONNX Runtime itself cannot start a GPU provider here."""

    def __init__(self, runs_on, nodes):
        self.runs_on, self.nodes, self.falls_back = runs_on, nodes, True

    def get_providers(self):
        return self.runs_on

    def disable_fallback(self):
        self.falls_back = False

    def get_provider_graph_assignment_info(self):
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda kind=kind: [SimpleNamespace(op_type=kind)])
            for kind, provider in self.nodes
        ]


def pretend(monkeypatch, *, available, runs_on, asked=None, nodes=()):
    """Make ONNX Runtime list ``available`` providers and start sessions that run ``nodes`` on ``runs_on``."""

    def session(model, options, providers, enable_fallback):
        if asked is not None:
            asked.update(
                providers=providers,
                threads=options.intra_op_num_threads,
                inter=options.inter_op_num_threads,
                no_cpu=options.get_session_config_entry("session.disable_cpu_ep_fallback"),
                fallback=enable_fallback,
            )
        return FakeSession(runs_on, nodes)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)


def test_the_provider_follows_the_device():
    assert OnnxRuntimeBackend("cpu").provider == "cpu"
    assert OnnxRuntimeBackend(GPU).provider == "cuda"
    assert OnnxRuntimeBackend(GPU, provider="tensorrt").provider == "tensorrt"


def test_a_provider_of_another_kind_of_device_is_refused():
    with pytest.raises(InvalidInput, match="provider cuda does not run on"):
        OnnxRuntimeBackend("cpu", provider="cuda")
    with pytest.raises(InvalidInput, match="provider cpu does not run on NVIDIA TITAN Xp"):
        OnnxRuntimeBackend(GPU, provider="cpu")
    with pytest.raises(InvalidInput, match='provider must be one of cpu, cuda, tensorrt; got "coreml"'):
        OnnxRuntimeBackend("cpu", provider="coreml")


def test_two_providers_do_not_share_a_table():
    assert (
        OnnxRuntimeBackend(GPU, provider="cuda").settings()
        != OnnxRuntimeBackend(GPU, provider="tensorrt").settings()
    )
    assert OnnxRuntimeBackend(GPU).settings() == {
        "provider": "cuda",
        "clock": "wall",
        "tf32": "allowed",
    }
    assert OnnxRuntimeBackend("cpu", threads=2).settings() == {
        "provider": "cpu",
        "clock": "wall",
        "spinning": "stopped after each run",
    }


def test_versions_say_which_distribution():
    versions = OnnxRuntimeBackend("cpu").versions()
    assert versions["onnxruntime"].startswith(f"{onnxruntime.__version__} (onnxruntime")
    assert int(versions["onnx_opset"]) >= 17


def test_a_provider_that_the_build_lacks_is_refused(monkeypatch):
    pretend(monkeypatch, available=["CPUExecutionProvider"], runs_on=["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailable, match=r"CUDAExecutionProvider was asked for.*has only CPUExec"):
        OnnxRuntimeBackend(GPU).prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_a_session_that_falls_back_to_the_cpu_is_refused(monkeypatch):
    # onnxruntime-gpu without a driver lists CUDA and then runs on the CPU without a word.
    pretend(
        monkeypatch,
        available=["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
        runs_on=["CPUExecutionProvider"],
    )
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(
            BackendUnavailable, match=r"would run on CPUExecutionProvider.*\s.*Nothing was measured"
        ):
            OnnxRuntimeBackend(GPU, provider=provider).prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_a_session_is_asked_for_on_one_device_with_its_threads(monkeypatch):
    asked = {}
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    pretend(monkeypatch, available=everything, runs_on=everything, asked=asked)
    session = OnnxRuntimeBackend(GPU, precision="fp16", threads=3, provider="tensorrt")._session(b"")
    # Neither CUDA nor the CPU is in the list: what TensorRT does not take, nobody takes.
    assert asked["providers"] == [
        ("TensorrtExecutionProvider", {"device_id": "1", "trt_fp16_enable": "True"})
    ]
    assert (asked["threads"], asked["inter"], asked["no_cpu"], asked["fallback"]) == (3, 1, "1", 0)
    assert not session.falls_back
    pretend(monkeypatch, available=everything, runs_on=everything[1:], asked=asked)
    OnnxRuntimeBackend(GPU)._session(b"")
    assert asked["providers"] == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "1"})]


def test_a_node_that_runs_elsewhere_is_refused(monkeypatch):
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    nodes = [("Conv", "TensorrtExecutionProvider"), ("Resize", "CUDAExecutionProvider")]
    pretend(monkeypatch, available=everything, runs_on=everything, nodes=nodes)
    with pytest.raises(
        MeasurementFailed,
        match=r"TensorrtExecutionProvider does not take Resize \(CUDAExecutionProvider\);.*Nothing was",
    ):
        OnnxRuntimeBackend(GPU, provider="tensorrt")._session(b"")


@pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="no provider that takes nothing",
)
def test_a_provider_that_takes_no_node_is_refused_by_onnx_runtime_itself(monkeypatch):
    # Not imitated: the Azure provider of the CPU build can be listed, and runs no operator of ONNX's own.
    monkeypatch.setitem(PROVIDERS, "cuda", "AzureExecutionProvider")
    monkeypatch.setattr(OnnxRuntimeBackend, "_provider_options", lambda self: {})
    monkeypatch.setattr(OnnxRuntimeBackend, "require_here", lambda self: None)
    with pytest.raises(MeasurementFailed, match="fallback to CPU EP has been explicitly disabled"):
        OnnxRuntimeBackend(GPU).prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    with pytest.raises(BackendUnavailable, match="Not even a ReLU runs on AzureExecutionProvider"):
        OnnxRuntimeBackend(GPU).check()


def test_where_nodes_run_is_read_from_the_session():
    session = OnnxRuntimeBackend("cpu")._session(onnx_bytes(Conv(3, 4), [torch.rand(1, 3, 8, 8)]))
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not say where nodes run")
    assert _nodes_elsewhere(session, "CPUExecutionProvider") == []
    assert _nodes_elsewhere(session, "X") == ["Conv (CPUExecutionProvider)", "Relu (CPUExecutionProvider)"]
    assert _nodes_elsewhere(SimpleNamespace(), "X") == []


@pytest.mark.parametrize(
    ("device", "precision", "text"),
    [
        ("cpu", "bf16", "no bf16 convolution before opset 22"),
        (GPU, "bf16", "no bf16 convolution before opset 22"),
        ("cpu", "fp16", "would cast to fp32 and back"),
    ],
)
def test_a_precision_without_kernels_is_refused(monkeypatch, device, precision, text):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    backend = OnnxRuntimeBackend(device, precision=precision)
    with pytest.raises(BackendUnavailable, match=text):
        backend.check()
    with pytest.raises(BackendUnavailable, match=text):
        backend.prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_onnx_itself_has_no_bf16_convolution_in_our_opset():
    def types(opset):
        return onnx.defs.get_schema("Conv", opset).type_constraints[0].allowed_type_strs

    assert "tensor(bfloat16)" not in types(OPSET)
    assert "tensor(bfloat16)" in types(22)


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"pip install 'hwnas\[onnxruntime\]'"):
        OnnxRuntimeBackend("cpu").check()


def test_a_model_without_inputs_is_timed():
    assert OnnxRuntimeBackend("cpu").prepare(Zeros(), [torch.rand(1, 3, 8, 8)])() > 0


def test_whole_numbers_stay_whole():
    class Pick(nn.Module):
        def forward(self, x, index):
            return x[index]

    inputs = [torch.rand(4, 4), torch.tensor([2, 0])]
    assert OnnxRuntimeBackend("cpu").prepare(Pick(), inputs)() > 0


def test_inputs_outlive_the_caller():
    # Buffers are bound by address: the reader itself must keep them.
    reader = OnnxRuntimeBackend("cpu").prepare(Conv(3, 4), [torch.rand(1, 3, 64, 64)])
    waste = [torch.full((1, 3, 64, 64), float("nan")) for _ in range(8)]
    assert reader() > 0
    assert len(waste) == 8


def test_a_module_that_cannot_be_exported_is_told():
    with pytest.raises(ExportError, match="Conv cannot be exported to ONNX"):
        OnnxRuntimeBackend("cpu").prepare(Conv(3, 4), [torch.rand(1, 2, 8, 8)])


def test_a_session_that_cannot_be_built_is_told():
    with pytest.raises(MeasurementFailed, match=r"cannot build a session \(cpu, fp32\)"):
        OnnxRuntimeBackend("cpu")._session(b"no model")


def test_a_run_that_fails_is_told(monkeypatch):
    backend = OnnxRuntimeBackend("cpu")

    def fails():
        raise RuntimeError("out of luck")

    monkeypatch.setattr(backend, "_session", lambda model: SimpleNamespace(io_binding=fails))
    with pytest.raises(
        MeasurementFailed, match=r"Conv does not run in ONNX Runtime \(cpu, fp32\).*out of luck"
    ):
        backend.prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_a_device_lost_while_reading_gives_no_number(monkeypatch):
    backend = OnnxRuntimeBackend("cpu")
    real, clock = backend._session, {"ns": 0, "runs": 0}

    class Lost:
        """A session whose runs take 1 ms on its own clock, and fail from the fifth on."""

        def __init__(self, model):
            self.session = real(model)

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run_with_iobinding(self, binding):
            clock["runs"] += 1
            if clock["runs"] > 4:
                raise RuntimeError("CUDA failure 719: unspecified launch failure")
            clock["ns"] += 10**6
            self.session.run_with_iobinding(binding)

    monkeypatch.setattr(backend, "_session", Lost)
    monkeypatch.setattr(backend, "_clock", lambda: ("wall", lambda: clock["ns"]))
    read = backend.prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])
    timing = measure_interleaved({"conv": read})["conv"]
    assert timing.status == "failed" and timing.count == 0
    assert timing.error == "the reader failed: RuntimeError: CUDA failure 719: unspecified launch failure"
