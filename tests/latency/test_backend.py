"""What all backends share: their arguments, the blocks of a host-timed reader, and one conformance suite."""

import pytest
import torch

from hwnas.errors import BackendUnavailable, DeviceNotFound, InvalidInput
from hwnas.latency.backend import LatencyBackend, calls_per_block, host_clock, host_reader, host_versions
from hwnas.latency.device import Device
from hwnas.latency.fake import FakeBackend
from hwnas.latency.onnxruntime import OnnxRuntimeBackend
from hwnas.latency.torch import TorchBackend
from hwnas.testing import check_backend

BACKENDS = {
    "fake": FakeBackend,
    "torch": lambda: TorchBackend("cpu"),
    "torch-bf16": lambda: TorchBackend("cpu", "bf16"),
    "onnxruntime": lambda: OnnxRuntimeBackend("cpu"),
}


class Clock:
    """Nanoseconds that only ``run`` moves on."""

    def __init__(self, cost_ns):
        self.now, self.cost_ns, self.runs = 0, cost_ns, 0

    def run(self):
        self.runs += 1
        self.now += self.cost_ns

    def __call__(self):
        return self.now


@pytest.mark.parametrize("name", BACKENDS)
def test_conformance(name):
    if name == "onnxruntime":
        pytest.importorskip("onnxruntime")
    check_backend(BACKENDS[name]())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.filterwarnings("ignore::hwnas.latency.cuda.LaunchBoundWarning")
def test_conformance_on_cuda(precision, cuda_graph):
    check_backend(TorchBackend("cuda", precision, cuda_graph=cuda_graph))


class Broken(FakeBackend):
    """A backend that is wrong in one way at a time."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def versions(self):
        return {"x": 1} if self.fault == "versions" else {}

    def prepare(self, module, inputs):
        reader = super().prepare(module, inputs)
        match self.fault:
            case "zero":
                return lambda: 0.0
            case "nan":
                return lambda: float("nan")
            case "constant":
                return lambda: 1.0
            case "eval":
                module.eval()
            case "inputs":
                inputs[0].zero_()
            case "half":
                module.half()
            case "random":
                torch.randn(1)
        return reader


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("versions", "must map text to text"),
        ("zero", "above 0; it is 0.0"),
        ("nan", "above 0; it is nan"),
        ("constant", "is the right module timed"),
        ("eval", "left the module in evaluation mode"),
        ("inputs", "changed its inputs"),
        ("half", "changed the module's weights"),
        ("random", "random state"),
    ],
)
def test_the_suite_finds(fault, text):
    with pytest.raises(AssertionError, match=text):
        check_backend(Broken(fault))


def test_arguments_are_checked():
    with pytest.raises(InvalidInput, match='precision must be one of fp32, fp16, bf16; got "int8"'):
        TorchBackend("cpu", "int8")
    with pytest.raises(InvalidInput, match="threads must be 1 or more; got 0"):
        TorchBackend("cpu", threads=0)
    with pytest.raises(DeviceNotFound, match='no device is known as "nonsense"'):
        TorchBackend("nonsense")


@pytest.mark.parametrize("kind", [TorchBackend, OnnxRuntimeBackend])
def test_a_device_of_another_machine_is_refused(kind):
    elsewhere = Device(kind="cpu", name="Some other CPU", cores=96)
    with pytest.raises(BackendUnavailable, match=r"Some other CPU.* is not in this machine; here are"):
        kind(elsewhere).check()


def test_the_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        LatencyBackend("cpu")


def test_host_versions_name_python_and_hwnas():
    assert set(host_versions()) == {"python", "hwnas"}


def test_a_reading_is_the_mean_over_a_block_that_is_long_enough():
    clock = Clock(cost_ns=100_000)  # 0.1 ms a run
    read = host_reader(clock.run, clock, min_block_ms=0.5)
    clock.runs = 0
    assert read() == pytest.approx(0.1)
    # At least 0.5 / 0.1 = 5 runs; aimed a fifth above: 6.
    assert clock.runs == 6


def test_a_long_run_is_a_block_by_itself():
    clock = Clock(cost_ns=30_000_000)
    read = host_reader(clock.run, clock)
    clock.runs = 0
    assert read() == pytest.approx(30.0)
    assert clock.runs == 1


def test_what_finishes_a_block_is_timed_and_what_is_around_is_not():
    clock = Clock(cost_ns=1_000_000)

    class Around:
        def __enter__(self):
            clock.now += 10**9

        def __exit__(self, *_):
            clock.now += 10**9

    def finish():
        clock.now += 500_000

    # One run of 1 ms and the finish of 0.5 ms; the seconds around them are not in it.
    assert host_reader(clock.run, clock, around=Around, finish=finish)() == pytest.approx(1.5)


def test_calls_grow_at_most_tenfold_at_once():
    asked = []

    def block_ms(calls):
        asked.append(calls)
        return calls * 1e-5

    # 0.5 / 0.00001 = 50,000 calls: 1 (warm-up), 1, 10, 100, 1000, 10000, then 1.2 · 50,000.
    assert calls_per_block(block_ms, 0.5) == 60_000
    assert asked[:6] == [1, 1, 10, 100, 1000, 10_000]


def test_one_thread_is_timed_by_cpu_time_and_several_by_the_wall():
    clock = host_clock(1)[1]
    start = clock()
    sum(range(1000))
    assert clock() > start
    assert host_clock(2)[0] == "wall"


def test_a_system_without_a_fine_cpu_clock_uses_the_wall(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    assert host_clock(1)[0] == "wall"
    monkeypatch.setattr("sys.platform", "linux")
    assert host_clock(1)[0] == "CPU time of the thread"
