"""Timing in PyTorch: threads and modes are put back, CUDA is synchronised, launch-bound readings are told."""

import warnings
from typing import ClassVar

import pytest
import torch
from torch import nn

from hwnas.errors import BackendUnavailable, InvalidInput, MeasurementFailed
from hwnas.latency.device import Device
from hwnas.latency.torch import LaunchBoundWarning, TorchBackend
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
        MeasurementFailed, match=r"Fails does not run in PyTorch \(fp32.*RuntimeError: out of luck"
    ):
        TorchBackend("cpu", threads=threads + 1).prepare(Fails(), [torch.ones(1)])
    assert torch.get_num_threads() == threads


def test_inputs_that_do_not_fit_are_told():
    with pytest.raises(MeasurementFailed, match=r"Conv does not run.*\[\(1, 4, 8, 8\)\]"):
        TorchBackend("cpu").prepare(Conv(3, 8), [torch.ones(1, 4, 8, 8)])


def test_settings_and_versions_head_the_table():
    assert TorchBackend("cpu", threads=2).settings() == {"clock": "wall"}
    assert TorchBackend("cpu").versions() == {"torch": torch.__version__}
    assert TorchBackend("cpu").remarks() == []
    graph = TorchBackend(GPU, cuda_graph=True).settings()
    assert graph["cuda_graph"] == "True" and "tf32" in graph
    assert graph != TorchBackend(GPU).settings()


def test_a_graph_on_a_cpu_is_refused():
    with pytest.raises(InvalidInput, match="cuda_graph needs a CUDA device"):
        TorchBackend("cpu", cuda_graph=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_cuda_device_is_refused():
    with pytest.raises(BackendUnavailable, match=r"cannot run on NVIDIA TITAN Xp.*--device cpu"):
        TorchBackend(GPU).check()


class FakeCuda:
    """CUDA with a clock of its own: enqueueing and computing cost what the test says, in microseconds."""

    def __init__(self, monkeypatch, *, enqueue_us, compute_us):
        self.host_us, self.device_us, self.synchronised, self.log = 0.0, 0.0, True, []
        self.enqueue_us, self.compute_us = enqueue_us, compute_us
        monkeypatch.setattr("torch.cuda.synchronize", self.synchronize)
        monkeypatch.setattr("torch.cuda.Event", lambda enable_timing: FakeEvent(self))
        monkeypatch.setattr("torch.cuda.device", FakeDeviceContext)
        monkeypatch.setattr("hwnas.latency.torch.time.perf_counter_ns", lambda: int(self.host_us * 1000))

    def run(self):
        self.log.append("run")
        self.host_us += self.enqueue_us
        # A kernel starts when it is enqueued and the one before is done.
        self.device_us = max(self.device_us, self.host_us) + self.compute_us

    def synchronize(self, device=None):
        self.log.append("synchronize")
        self.host_us = max(self.host_us, self.device_us)


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.at_us = cuda, None

    def record(self):
        self.cuda.log.append("record")
        self.cuda.device_us = max(self.cuda.device_us, self.cuda.host_us)
        self.at_us = self.cuda.device_us

    def synchronize(self):
        self.cuda.synchronize()

    def elapsed_time(self, end):
        assert self.cuda.host_us >= end.at_us, "read before the device had come so far"
        return (end.at_us - self.at_us) / 1000


class FakeDeviceContext:
    def __init__(self, device):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def reader_on(cuda, backend):
    return backend._cuda_reader(cuda.run, torch.device("cuda:0"))


def test_cuda_is_timed_between_events_and_synchronised_once_a_block(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=100)
    backend = TorchBackend(GPU)
    benchmark = torch.backends.cudnn.benchmark
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = reader_on(cuda, backend)
    cuda.log.clear()
    # n runs last 0.010 + n · 0.100 ms: the device waits for the first to be enqueued.
    runs_and_wait = read()
    runs = cuda.log.count("run")
    assert runs_and_wait == pytest.approx((0.010 + runs * 0.100) / runs)
    assert runs * 0.1 >= 1.9, "a block lasts some 2 ms"
    assert cuda.log == ["synchronize", "record", *["run"] * runs, "record", "synchronize"]
    assert backend.remarks() == []
    assert torch.backends.cudnn.benchmark == benchmark


def test_launch_bound_readings_are_warned_of_once_and_counted(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=2)
    backend = TorchBackend(GPU)
    with pytest.warns(
        LaunchBoundWarning, match=r"enqueueing took 100% .* TorchBackend\(..., cuda_graph=True\)"
    ):
        reader_on(cuda, backend)
    reader_on(cuda, backend)
    backend._prepared = 2
    assert backend.remarks() == [
        "2 of 2 modules were launch-bound: enqueueing took over 80% of the device time, so their numbers "
        "are the CPU's. cuda_graph=True avoids it."
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.filterwarnings("ignore::hwnas.latency.torch.LaunchBoundWarning")
def test_a_graph_is_not_slower_than_launching():
    conv, x = Conv(8, 8), torch.rand(1, 8, 8, 8)
    launched, replayed = (
        min(TorchBackend("cuda", cuda_graph=graph).prepare(conv, [x])() for _ in range(3))
        for graph in (False, True)
    )
    assert replayed < 1.5 * launched
