"""Timing in PyTorch: its own threads, type and mode, all put back; what fails is told."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from hwnas.errors import BackendUnavailable, InvalidInput, MeasurementFailed
from hwnas.latency.device import Device
from hwnas.latency.torch import TorchBackend
from hwnas.layers import Conv

GPU = Device(kind="cuda", name="NVIDIA TITAN Xp", index=0, cores=30)


class Spy(nn.Module):
    """Notes the state in which it is run; a copy of it notes in the same list."""

    seen: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, index):
        Spy.seen.append(
            {
                "threads": torch.get_num_threads(),
                "inference": torch.is_inference_mode_enabled(),
                "training": self.training,
                "dtypes": (self.weight.dtype, x.dtype, index.dtype),
            }
        )
        return x * self.weight


@pytest.fixture
def seen():
    Spy.seen.clear()
    yield Spy.seen
    Spy.seen.clear()


def test_runs_in_inference_with_its_own_threads_and_type(seen):
    threads = torch.get_num_threads()
    read = TorchBackend("cpu", "bf16", threads=threads + 1).prepare(
        Spy().train(), [torch.ones(3), torch.ones(3, dtype=torch.int64)]
    )
    assert read() > 0
    assert torch.get_num_threads() == threads
    # Weights and floating inputs are cast; whole numbers stay.
    types = (torch.bfloat16, torch.bfloat16, torch.int64)
    expected = {"threads": threads + 1, "inference": True, "training": False, "dtypes": types}
    assert all(state == expected for state in seen)


def test_threads_are_put_back_when_the_module_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of luck")

    threads = torch.get_num_threads()
    with pytest.raises(
        MeasurementFailed, match=r"Fails does not run in PyTorch \(torch, fp32.*RuntimeError: out of luck"
    ):
        TorchBackend("cpu", threads=threads + 1).prepare(Fails(), [torch.ones(1)])
    assert torch.get_num_threads() == threads


def test_inputs_that_do_not_fit_are_told():
    with pytest.raises(MeasurementFailed, match=r"Conv does not run.*\[\(1, 4, 8, 8\)\]"):
        TorchBackend("cpu").prepare(Conv(3, 8), [torch.ones(1, 4, 8, 8)])


def test_settings_and_versions_head_the_table():
    first = {"first_reading": "kept where it is long"}
    assert TorchBackend("cpu", threads=2).settings() == {"clock": "wall", **first}
    assert set(TorchBackend("cpu", "bf16").settings()) == {"clock", "first_reading", "bf16"}
    assert TorchBackend("cpu").first_counts and not TorchBackend(GPU).first_counts
    assert TorchBackend("cpu").versions() == {"torch": torch.__version__}
    assert TorchBackend("cpu").remarks() == []
    graph = TorchBackend(GPU, cuda_graph=True).settings()
    assert graph["cuda_graph"] == "True" and "tf32" in graph
    assert graph != TorchBackend(GPU).settings()


def test_a_graph_on_a_cpu_is_refused():
    with pytest.raises(InvalidInput, match="cuda_graph needs a CUDA device"):
        TorchBackend("cpu", cuda_graph=True)


def test_bf16_says_by_which_instructions():
    plain = Device(kind="cpu", name="Some CPU", flags=("avx2",))
    able = Device(kind="cpu", name="Some CPU", flags=("avx512f", "avx512_bf16", "amx_bf16"))
    assert TorchBackend(plain, "bf16").settings()["bf16"] == "through fp32"
    assert TorchBackend(able, "bf16").settings()["bf16"] == "avx512_bf16, amx_bf16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device_is_refused():
    with pytest.raises(BackendUnavailable, match=r"cannot run on NVIDIA TITAN Xp.*--device cpu"):
        TorchBackend(GPU).check()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.filterwarnings("ignore::hwnas.latency.cuda.LaunchBoundWarning")
def test_a_graph_is_not_slower_than_launching():
    conv, x = Conv(8, 8), torch.rand(1, 8, 8, 8)
    launched, replayed = (
        min(TorchBackend("cuda", cuda_graph=graph).prepare(conv, [x])() for _ in range(3))
        for graph in (False, True)
    )
    assert replayed < 1.5 * launched
