"""``hwnas doctor``: one line a backend, with what really works here and what to do where it does not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from hwnas.cli import doctor
from hwnas.errors import MissingExtra
from hwnas.latency import device as device_module
from hwnas.latency import onnxruntime as onnxruntime_module
from hwnas.latency import tensorrt, tensorrt_probe
from hwnas.latency.device import Device, DeviceState
from hwnas.latency.tensorrt_probe import Probe
from tests.cli.conftest import hwnas, said


@pytest.fixture(autouse=True)
def probed(monkeypatch):
    """TensorRT is tried in a process of its own, which its own tests do."""
    answers = {name: Probe(package=name, why="ModuleNotFoundError.") for name in ("tensorrt", "tensorrt_rtx")}
    for module in (tensorrt, tensorrt_probe):
        monkeypatch.setattr(module, "probe", answers.get)
    return answers


def line(text, start):
    return next(line for line in text.splitlines() if line[4:].startswith(start))


def test_what_works_is_said_for_scripts():
    found = said("doctor")
    assert found["packages"]["torch"]
    assert found["backends"]["fake"]["works_on"] == ["cpu"]
    assert found["backends"]["torch"]["detail"].startswith("torch ")
    assert found["backends"]["tensorrt"]["works_on"] == []
    assert [probe["runs"] for probe in found["backends"]["tensorrt"]["probes"]] == [False, False]
    assert found["devices"][0]["kind"] == "cpu" and found["states"][0]["seconds"] > 0


def test_each_backend_has_a_line():
    shown = hwnas("doctor").output
    for name in ("torch", "torch-compile", "onnxruntime", "tensorrt", "fake"):
        assert len([one for one in shown.splitlines() if one[4:].startswith(f"backend {name} ")]) == 1
    assert line(shown, "backend tensorrt").startswith("--")
    assert "Neither tensorrt nor tensorrt-rtx is installed." in line(shown, "backend tensorrt")


def test_the_providers_that_a_session_really_gets():
    pytest.importorskip("onnxruntime")
    assert said("doctor")["backends"]["onnxruntime"]["providers"][-1] == "CPUExecutionProvider"


def test_onnxruntime_gpu_that_falls_back_is_found_out(monkeypatch):
    pytest.importorskip("onnxruntime")
    # As the GPU build without a driver does it: lists CUDA, and gives a session that runs on the CPU.
    monkeypatch.setattr(
        onnxruntime_module,
        "real_providers",
        lambda: (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
    )
    assert line(hwnas("doctor").output, "backend onnxruntime").endswith(
        "of CUDAExecutionProvider, CPUExecutionProvider a session gets CPUExecutionProvider, "
        "and cannot start CUDAExecutionProvider"
    )


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = said("doctor")["backends"]["onnxruntime"]
    assert found["works_on"] == [] and "hwnas[onnxruntime]" in found["why_not"]["cpu"]


def test_a_folder_that_an_uninstalled_onnxruntime_left_is_told_on_one_line(monkeypatch):
    left = ModuleType("onnxruntime")
    left.__path__ = ["/env/onnxruntime"]
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    text = line(hwnas("doctor").output, "backend onnxruntime")
    assert text.startswith("--") and "Of ONNX Runtime only a folder is left (/env/onnxruntime)" in text
    assert "then pip install 'hwnas[onnxruntime]' or, for a GPU, 'hwnas[onnxruntime-gpu]'." in text


def test_an_onnxruntime_that_fails_is_told_on_one_line(monkeypatch):
    def fails():
        raise RuntimeError("no\nlibcublas")

    monkeypatch.setattr(onnxruntime_module, "real_providers", fails)
    text = line(hwnas("doctor").output, "backend onnxruntime")
    assert "ONNX Runtime fails (RuntimeError: no libcublas): pip uninstall -y onnxruntime" in text


def test_tensorrt_says_how_far_it_comes(probed):
    probed["tensorrt_rtx"] = Probe(
        package="tensorrt_rtx", version="1.7", builds=True, why="cudaError 35: no driver. Install a driver."
    )
    text = line(hwnas("doctor").output, "backend tensorrt")
    assert "tensorrt_rtx 1.7 builds engines and cannot run them: cudaError 35: no driver. Install a" in text


def test_two_onnxruntimes_in_one_folder(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "1.2")
    assert "share one folder: the later one won. pip uninstall -y onnxruntime" in hwnas("doctor").output


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA TITAN Xp",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert device_module.gpus_of_the_driver() == ["NVIDIA TITAN Xp"]
    cpu = [Device(kind="cpu", name="AMD EPYC")]
    packages = {"torch": "2.13.0+cpu", "onnxruntime": None, "onnxruntime-gpu": None}
    assert doctor._advice(packages, cpu) == [
        "the driver has NVIDIA TITAN Xp, but torch 2.13.0+cpu cannot use it: "
        "install a CUDA build of torch that this driver is new enough for."
    ]
    assert doctor._advice(packages, [*cpu, Device(kind="cuda", name="NVIDIA TITAN Xp")]) == []


def test_clocks_that_are_held_down():
    state = DeviceState(
        seconds=0.0,
        gpu_mhz=1404,
        gpu_temperature_c=83,
        gpu_power_w=250,
        gpu_throttle_reasons=0x4 | 0x20 | 0x1,
    )
    assert state.held_down_by == ("the power cap", "temperature, by the driver")
    assert doctor._state(state) == (
        "GPU 1404 MHz, 83 °C, 250 W, clocks held down by the power cap, temperature, by the driver"
    )
    assert doctor._state(DeviceState(seconds=0.0)) == "nothing known of its state"


def test_a_broken_plug_in_hides_nothing(monkeypatch):
    def broken(self, **options):
        raise ModuleNotFoundError("No module named 'libfoo'")

    monkeypatch.setattr(doctor.Machine, "make", broken)
    found = doctor._backend("foo", [Device(kind="cpu", name="AMD EPYC")])
    assert found["why_not"] == {"cpu": "broken: ModuleNotFoundError: No module named 'libfoo'"}


def test_a_missing_extra_is_told_on_one_line(monkeypatch):
    def missing(self, **options):
        raise MissingExtra("foo", "bar", "do it")

    monkeypatch.setattr(doctor.Machine, "make", missing)
    found = doctor._backend("foo", [Device(kind="cpu", name="AMD EPYC")])
    assert "\n" not in found["why_not"]["cpu"] and "pip install 'hwnas[bar]'" in found["why_not"]["cpu"]
