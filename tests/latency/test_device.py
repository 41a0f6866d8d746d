"""Devices: names, fingerprints, errors; machines are imitated, none needs to be here."""

import contextlib
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from hwnas.errors import DeviceNotFound
from hwnas.latency import device as module
from hwnas.latency.device import ALIASES, Device, DeviceState, here

TITAN = Device(kind="cuda", name="NVIDIA TITAN Xp", index=0, cores=30, compute_capability="6.1")
H200 = Device(kind="cuda", name="NVIDIA H200", index=1, cores=132, memory_gib=139.8)
CPU = Device(kind="cpu", name="AMD EPYC", cores=2, memory_gib=23.5)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(module, "here", lambda: [CPU, TITAN, H200])


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("NVIDIA TITAN Xp", "titanxp"),
        ("NVIDIA GeForce GTX 1080 Ti", "gtx1080ti"),
        ("NVIDIA GeForce GTX 1080", "gtx1080"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("Orin", "orin"),
        ("NVIDIA TITAN X (Pascal)", "titanx"),
        ("GeForce GTX TITAN X", "titanx"),
        ("TITAN V", "titanv"),
        ("TITAN RTX", "titanrtx"),
        ("NVIDIA GeForce GTX 1080 with Max-Q Design", "cuda"),
        ("NVIDIA GeForce GTX 1060 6GB", "gtx1060"),
        ("NVIDIA GeForce RTX 2070 SUPER", "rtx2070super"),
        ("NVIDIA GeForce RTX 2080 Super with Max-Q Design", "cuda"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "rtx3090ti"),
        ("NVIDIA GeForce RTX 4060", "rtx4060"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "cuda"),
        ("NVIDIA GeForce RTX 4070", "rtx4070"),
        ("NVIDIA GeForce RTX 4070 SUPER", "rtx4070super"),
        ("NVIDIA GeForce RTX 4070 Ti", "rtx4070ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070tisuper"),
        ("NVIDIA GeForce RTX 4080", "rtx4080"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", "rtx4090d"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "cuda"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX A2000 12GB", "a2000"),
        ("NVIDIA RTX A5000 Laptop GPU", "cuda"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA RTX A1000", "cuda"),
        ("Quadro P1000", "cuda"),
        ("Tesla P100-PCIE-16GB", "p100"),
        ("Tesla V100S-PCIE-32GB", "v100"),
        ("Tesla T4", "t4"),
        ("GRID T4-8Q", "cuda"),
        ("NVIDIA T400", "cuda"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10-12Q", "cuda"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "cuda"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA H200 NVL", "h200"),
        ("NVIDIA B200", "b200"),
        ("Xavier", "xavier"),
        ("NVIDIA Tegra X2", "tx2"),
        ("NVIDIA Tegra X1", "nano"),
    ],
)
def test_alias_of_a_driver_name(name, alias):
    device = Device(kind="cuda", name=name)
    assert device.alias == alias
    assert [a for a in ALIASES if device.answers_to(a)] == [a for a in [alias] if a != "cuda"]
    assert device.answers_to("cuda")


def test_this_machine():
    devices = here()
    assert devices[0].kind == "cpu" and devices[0].cores == os.cpu_count() and devices[0].name
    assert len(devices) == 1 + (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert Device.find("cpu") == devices[0]
    assert Device.model_validate_json(devices[0].model_dump_json()) == devices[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("auto", TITAN),
        ("cpu", CPU),
        ("cuda", TITAN),
        ("cuda:1", H200),
        ("h200", H200),
        ("Titan-Xp", TITAN),
        ("  TITAN XP ", TITAN),
    ],
)
def test_find(two_gpus, text, found):
    assert Device.find(text) == found


def test_auto_without_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "here", lambda: [CPU])
    assert Device.find("auto") == CPU
    assert CPU.torch_name == "cpu" and H200.torch_name == "cuda:1"


def test_a_known_device_that_is_elsewhere(two_gpus):
    with pytest.raises(DeviceNotFound) as caught:
        Device.find("v100")
    assert str(caught.value) == (
        'no "v100" in this machine. Devices here:\n'
        "  cpu     AMD EPYC (2 cores, 23.5 GiB)\n"
        "  cuda:0  NVIDIA TITAN Xp (30 SMs)\n"
        "  cuda:1  NVIDIA H200 (132 SMs, 139.8 GiB)\n"
        'Run the same command on a machine that has a "v100" and bring the table file back '
        "(it is plain JSON), or measure a device that is here:  --device auto"
    )


def test_a_word_that_names_no_device(two_gpus):
    with pytest.raises(DeviceNotFound) as caught:
        Device.find("banana")
    text = str(caught.value)
    assert text.startswith('no device is known as "banana". Known: auto, cpu, cuda, cuda:N, titanxp,')
    assert "NVIDIA H200" in text


def test_differences_name_what_differs():
    slower = TITAN.model_copy(update={"cores": 28, "compute_capability": None, "driver": "580", "index": 3})
    # The capability is unknown on one side; driver and index make no other device.
    assert TITAN.differences(slower) == ["SMs: 30 against 28"]
    assert not TITAN.matches(slower)
    assert TITAN.matches(TITAN.model_copy(update={"index": 1, "driver": "580", "memory_gib": 11.9}))
    assert CPU.differences(H200) == [
        "kind: cpu against cuda",
        "name: AMD EPYC against NVIDIA H200",
        "cores: 2 against 132",
    ]


def test_a_power_cap_makes_another_device():
    assert H200.model_copy(update={"power_cap_w": 700.0}).differences(
        H200.model_copy(update={"power_cap_w": 350.0})
    ) == ["power cap (W): 700.0 against 350.0"]


class ImitatedNvml:
    """Two calls answer, the others raise what a board that does not report a reading raises."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __getattr__(self, name):
        def unsupported(*arguments):
            raise RuntimeError("not supported")

        return unsupported

    def nvmlInit(self):
        self.open = True

    def nvmlShutdown(self):
        self.open = False

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return {1: 1404, 2: 5705}[clock]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 250_000


@pytest.fixture
def imitated_gpu(monkeypatch):
    nvml = ImitatedNvml()
    properties = SimpleNamespace(
        name="NVIDIA TITAN Xp",
        multi_processor_count=30,
        total_memory=12 * 2**30,
        major=6,
        minor=1,
        uuid="1234",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    return nvml


def test_fingerprint_of_a_gpu(imitated_gpu):
    device = here()[1]
    assert (device.name, device.cores, device.memory_gib) == ("NVIDIA TITAN Xp", 30, 12.0)
    assert (device.compute_capability, device.power_cap_w) == ("6.1", 250.0)
    assert not imitated_gpu.open


def test_state_of_a_gpu_keeps_what_can_be_read(imitated_gpu):
    state = DeviceState.read(TITAN)
    assert (state.gpu_mhz, state.gpu_memory_mhz, state.gpu_temperature_c) == (1404, 5705, None)
    assert not imitated_gpu.open


def test_a_measuring_process_does_not_count_its_parent_among_those_on_the_gpu(imitated_gpu, monkeypatch):
    on_it = [SimpleNamespace(pid=pid) for pid in (os.getpid(), os.getppid())]
    monkeypatch.setattr(
        ImitatedNvml, "nvmlDeviceGetComputeRunningProcesses", lambda self, handle: on_it, raising=False
    )
    assert DeviceState.read(TITAN).gpu_processes == 1


@pytest.mark.parametrize("broken", ["absent", "no driver"])
def test_state_without_nvml(imitated_gpu, monkeypatch, broken):
    if broken == "absent":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        monkeypatch.setattr(ImitatedNvml, "nvmlInit", lambda self: self.unsupported())
    assert DeviceState.read(TITAN).gpu_mhz is None
    assert here()[1].power_cap_w is None


def test_state_of_the_cpu():
    state = DeviceState.read(CPU)
    assert state.seconds > 0 and state.gpu_mhz is None
    with contextlib.suppress(OSError):
        os.getloadavg()
        assert state.load_average is not None and state.load_average >= 0
    assert DeviceState.model_validate_json(state.model_dump_json()) == state
