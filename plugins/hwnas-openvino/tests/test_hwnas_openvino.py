"""OpenVINO as a backend: hwnas' conformance suite, and that nothing runs otherwise than asked."""

import ast
import importlib.util
import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hwnas import Conv, Device
from hwnas.errors import BackendUnavailable, ExportError, InvalidInput, MeasurementFailed
from hwnas.latency.interleaving import measure_interleaved
from hwnas.testing import check_backend

# Not importorskip: OpenVINO is imported by the plug-in alone, which does it without telemetry.
if importlib.util.find_spec("openvino") is None:
    pytest.skip("openvino is not installed: pip install openvino", allow_module_level=True)
import hwnas_openvino
from hwnas_openvino import OpenVinoBackend

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp", cores=30)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_conformance(threads):
    check_backend(OpenVinoBackend(threads=threads))


def test_it_computes_in_the_precision_asked_for():
    backend = OpenVinoBackend()
    compiled = backend._compiled(hwnas_openvino.onnx_bytes(Conv(3, 4), [torch.rand(1, 3, 8, 8)]))
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_precision_without_kernels_is_refused(monkeypatch):
    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr(hwnas_openvino, "_core", lambda openvino: Core())
    with pytest.raises(BackendUnavailable, match=r"no bf16 kernels for .*; it has FP32, INT8"):
        OpenVinoBackend(precision="bf16").check()


def test_it_runs_on_a_cpu_alone():
    with pytest.raises(InvalidInput, match="not on NVIDIA TITAN Xp"):
        OpenVinoBackend(GPU)
    with pytest.raises(BackendUnavailable, match="is not in this machine"):
        OpenVinoBackend(Device(kind="cpu", name="Some other CPU", cores=96)).check()


def test_without_openvino_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailable, match="pip install openvino"):
        OpenVinoBackend().check()


def in_a_process_of_its_own(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_its_import_tells_nobody_and_forks_nothing():
    ran = in_a_process_of_its_own(
        "import sys, threading, hwnas_openvino\n"
        "before = threading.active_count()\n"
        "hwnas_openvino._openvino()\n"
        "print(*['openvino' in sys.modules, 'openvino_telemetry' in sys.modules])\n"
        "print(threading.active_count() - before)\n"
    )
    assert ran.stdout.split() == ["True", "False", "0"], ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_signal_finds_its_stack_after_readers_have_gone_in_their_order():
    ran = in_a_process_of_its_own(
        "import os, signal, torch\n"
        "from torch import nn\n"
        "from hwnas_openvino import OpenVinoBackend\n"
        "readers = [OpenVinoBackend().prepare(nn.ReLU(), [torch.ones(1, 1, 2, 2)]) for _ in range(2)]\n"
        "while readers:\n"
        "    del readers[0]\n"
        "seen = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: seen.append(1))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(seen)\n"
    )
    assert (ran.returncode, ran.stdout) == (0, "[1]\n"), ran.stderr


def test_one_thread_is_timed_by_the_cpu_time_of_the_process(monkeypatch):
    assert OpenVinoBackend().settings()["clock"] == "CPU time of the process"
    assert OpenVinoBackend(threads=2).settings()["clock"] == "wall"
    monkeypatch.setattr("sys.platform", "win32")
    assert OpenVinoBackend().settings()["clock"] == "wall"


def test_faults_speak(monkeypatch):
    with pytest.raises(ExportError, match="Conv cannot be exported"):
        OpenVinoBackend().prepare(Conv(3, 4), [torch.rand(1, 2, 8, 8)])
    with pytest.raises(MeasurementFailed, match="OpenVINO cannot compile the model: RuntimeError"):
        OpenVinoBackend()._compiled(b"no model")

    class Lost:
        """A request that runs while it is prepared, and no more."""

        inputs, runs, ns = (), 0, 0

        def create_infer_request(self):
            return self

        def infer(self, share_outputs):
            Lost.runs, Lost.ns = Lost.runs + 1, Lost.ns + 10**6
            if Lost.runs > 4:
                raise RuntimeError("out of memory")

    monkeypatch.setattr(OpenVinoBackend, "_compiled", lambda self, model: Lost())
    monkeypatch.setattr(OpenVinoBackend, "_clock", lambda self: ("its own", lambda: Lost.ns))
    timing = measure_interleaved({"x": OpenVinoBackend().prepare(nn.ReLU(), [torch.rand(1, 3, 8, 8)])})["x"]
    assert (timing.status, timing.error) == ("failed", "the reader failed: RuntimeError: out of memory")


def test_it_uses_public_names_alone():
    tree = ast.parse(inspect.getsource(hwnas_openvino))
    imported = [
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    ours = [(module, name) for module, name in imported if module.split(".")[0] == "hwnas"]
    assert ours and not [name for _, name in ours if name.startswith("_")]
    # Nor does it call what the base class keeps to itself.
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    private = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert private <= own
