"""Timing compiled PyTorch: one compile a module, one graph, and no falling back to eager."""

import pytest
import torch
from torch import nn

from hwnas.errors import BackendUnavailable, InvalidInput, MeasurementFailed
from hwnas.latency.device import Device
from hwnas.latency.torch import TorchBackend
from hwnas.latency.torch_compile import TorchCompileBackend
from hwnas.layers import Conv
from hwnas.testing import check_backend

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp", index=0, cores=30)


class BreaksTheGraph(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


@pytest.fixture
def compiled(monkeypatch):
    """What torch.compile was given; compiling is left out."""
    seen = []

    def compile_(function, **options):
        def run():
            seen[place]["threads"].append(torch.get_num_threads())
            return function()

        place = len(seen)
        seen.append({"code": function.__code__, "threads": [], **options})
        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return seen


def test_each_module_is_compiled_for_itself_with_fixed_shapes(compiled):
    threads = torch.get_num_threads()
    backend = TorchCompileBackend("cpu", threads=threads + 1)
    for channels in (3, 4):
        assert backend.prepare(Conv(channels, 8), [torch.rand(1, channels, 8, 8)])() > 0
    first, second = compiled
    assert first["code"] != second["code"], "the compiler counts versions by code object"
    for one in compiled:
        assert (one["mode"], one["dynamic"], one["fullgraph"]) == ("default", False, True)
        # Also while it is compiled, for inductor writes the number of threads into its loops.
        assert set(one["threads"]) == {threads + 1}
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, where its compiler is imported
def test_what_breaks_the_graph_is_refused():
    with pytest.raises(
        MeasurementFailed,
        match=r"BreaksTheGraph cannot be compiled \(fp32, .*\) for inputs \[\(1, 3\)\]: Unsupported: .*break",
    ):
        TorchCompileBackend("cpu").prepare(BreaksTheGraph(), [torch.rand(1, 3)])


def test_a_compiler_that_fails_gives_no_number(monkeypatch):
    def fails():
        raise RuntimeError("C++ compile error: no g++\n\nA stack trace of a page.")

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    with pytest.raises(MeasurementFailed, match=r"Conv cannot be comp.*RuntimeError: C\+\+ .*: no g\+\+$"):
        TorchCompileBackend("cpu").prepare(Conv(3, 4), [torch.rand(1, 3, 8, 8)])


def test_settings_keep_compiled_and_eager_apart():
    backend = TorchCompileBackend("cpu", mode="max-autotune-no-cudagraphs")
    assert backend.settings() == {
        "clock": TorchBackend("cpu").settings()["clock"],
        "compiler": "inductor",
        "mode": "max-autotune-no-cudagraphs",
        "shapes": "static",
    }
    assert "bf16" in TorchCompileBackend("cpu", "bf16").settings()
    assert set(TorchCompileBackend("cpu").versions()) == {"torch"}
    assert set(TorchCompileBackend(GPU).versions()) == {"torch", "triton"}


def test_a_first_reading_of_a_compiled_network_does_not_count():
    backend = TorchCompileBackend("cpu")
    assert not backend.first_counts and "first_reading" not in backend.settings()


def test_modes_with_graphs_of_their_own_are_refused():
    with pytest.raises(InvalidInput, match=r'got "reduce-overhead"\. For CUDA graphs use cuda_graph=True'):
        TorchCompileBackend(GPU, mode="reduce-overhead")
    with pytest.raises(InvalidInput, match="cuda_graph needs a CUDA device"):
        TorchCompileBackend("cpu", cuda_graph=True)


def test_without_a_compiler_it_is_unavailable(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"needs a C\+\+ compiler for a CPU.*Install g\+\+"):
        TorchCompileBackend("cpu").check()
    monkeypatch.setattr("hwnas.latency.torch.TorchBackend.check", lambda self: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="pip install triton"):
        TorchCompileBackend(GPU).check()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_conformance():
    # Eleven modules, most of them convolutions: more than the compiler allows for one code object.
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=4):
        check_backend(TorchCompileBackend("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.filterwarnings("ignore::hwnas.latency.cuda.LaunchBoundWarning")
def test_conformance_on_cuda(cuda_graph):
    check_backend(TorchCompileBackend("cuda", cuda_graph=cuda_graph))
