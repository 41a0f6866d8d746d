"""Timing on CUDA, on an imitated device: synchronised once a block, launch-bound readings are told."""

import pytest
import torch

from hwnas.latency.cuda import CudaTimer, LaunchBoundWarning
from hwnas.latency.interleaving import measure_interleaved


class FakeCuda:
    """CUDA with a clock of its own: enqueueing and computing cost what the test says, in microseconds."""

    def __init__(self, monkeypatch, *, enqueue_us, compute_us):
        self.host_us, self.device_us, self.synchronised, self.log = 0.0, 0.0, True, []
        self.enqueue_us, self.compute_us = enqueue_us, compute_us
        monkeypatch.setattr("torch.cuda.synchronize", self.synchronize)
        monkeypatch.setattr("torch.cuda.Event", lambda enable_timing: FakeEvent(self))
        monkeypatch.setattr("torch.cuda.device", FakeDeviceContext)
        monkeypatch.setattr("hwnas.latency.cuda.time.perf_counter_ns", lambda: int(self.host_us * 1000))

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


class Around:
    """Notes that it was entered and left."""

    def __init__(self, cuda):
        self.cuda = cuda

    def __enter__(self):
        self.cuda.log.append("enter")

    def __exit__(self, *_):
        self.cuda.log.append("leave")


def timer(graph=False, **options):
    return CudaTimer(torch.device("cuda:0"), graph=graph, remedy="Some(cuda_graph=True)", **options)


def test_blocks_are_timed_between_events_and_synchronised_once(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=100)
    on_cuda = timer(around=lambda: Around(cuda))
    read = on_cuda.reader(cuda.run)
    cuda.log.clear()
    # n runs last 0.010 + n · 0.100 ms: the device waits for the first to be enqueued.
    runs_and_wait = read()
    runs = cuda.log.count("run")
    assert runs_and_wait == pytest.approx((0.010 + runs * 0.100) / runs)
    assert runs * 0.1 >= 1.9, "a block lasts some 2 ms"
    block = ["synchronize", "record", *["run"] * runs, "record", "synchronize"]
    assert cuda.log == ["enter", *block, "leave"]
    assert on_cuda.remarks() == []


def test_launch_bound_readings_are_warned_of_once_and_counted(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=2)
    on_cuda = timer()
    with pytest.warns(LaunchBoundWarning, match=r"enqueueing took 100% .* Some\(cuda_graph=True\)"):
        on_cuda.reader(cuda.run)
    on_cuda.reader(cuda.run)
    assert on_cuda.remarks() == [
        "2 of 2 modules were launch-bound: enqueueing took over 80% of the device time, so their numbers "
        "are the CPU's. Some(cuda_graph=True) avoids it."
    ]


def test_a_replay_is_shared_by_the_inferences_captured_in_it(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=100)
    on_cuda = timer(graph=True)
    monkeypatch.setattr(on_cuda, "_captured", lambda run: run)
    # A replay of 20 inferences that takes 100 µs: 5 µs each, and the wait for the first launch.
    assert on_cuda.reader(cuda.run)() == pytest.approx(0.005, rel=0.01)


def test_replays_that_are_launch_bound_are_not_told_to_replay(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=2)
    on_cuda = timer(graph=True)
    monkeypatch.setattr(on_cuda, "_captured", lambda run: run)
    with pytest.warns(LaunchBoundWarning, match=r"not by the GPU\.$"):
        on_cuda.reader(cuda.run)
    assert on_cuda.remarks()[0].endswith("their numbers are the CPU's.")


def test_warming_up_lasts_as_long_as_asked(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=990)
    counted = []
    timer(warmup_ms=200).reader(lambda: (counted.append(cuda.host_us), cuda.run()))
    # Each run lasts 1 ms: the two hundredth begins before 200 ms are over, whatever blocks come after.
    assert sum(at < 200_000 for at in counted) == 200
    assert cuda.log[: 2 * 200] == ["run", "synchronize"] * 200


def test_a_device_lost_while_reading_gives_no_number(monkeypatch):
    cuda = FakeCuda(monkeypatch, enqueue_us=10, compute_us=100)
    read = timer().reader(cuda.run)

    def lost(device=None):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr("torch.cuda.synchronize", lost)
    timing = measure_interleaved({"conv": read})["conv"]
    assert timing.status == "failed" and timing.count == 0
    assert timing.error == "the reader failed: RuntimeError: CUDA error: unspecified launch failure"
