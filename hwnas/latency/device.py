"""Which machine a number was measured on, and in what state it was."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from hwnas.errors import DeviceNotFound

# As drivers write them after "GeForce"; the alias is the same in small letters without spaces.
_GEFORCE = (
    *(
        "GTX 1060",
        "GTX 1070",
        "GTX 1070 Ti",
        "GTX 1080",
        "GTX 1080 Ti",
        "GTX 1650",
        "GTX 1660",
        "GTX 1660 Ti",
    ),
    *("RTX 2060", "RTX 2070", "RTX 2070 SUPER", "RTX 2080", "RTX 2080 SUPER", "RTX 2080 Ti"),
    *(
        "RTX 3060",
        "RTX 3060 Ti",
        "RTX 3070",
        "RTX 3070 Ti",
        "RTX 3080",
        "RTX 3080 Ti",
        "RTX 3090",
        "RTX 3090 Ti",
    ),
    *("RTX 4060", "RTX 4060 Ti", "RTX 4070", "RTX 4070 SUPER", "RTX 4070 Ti", "RTX 4070 Ti SUPER"),
    *("RTX 4080", "RTX 4080 SUPER", "RTX 4090", "RTX 4090 D"),
    *("RTX 5060", "RTX 5060 Ti", "RTX 5070", "RTX 5070 Ti", "RTX 5080", "RTX 5090", "RTX 5090 D"),
)

ALIASES: dict[str, str] = {
    "titanxp": r"TITAN Xp\b",
    "titanx": r"TITAN X\b",
    "titanv": r"TITAN V\b",
    "titanrtx": r"TITAN RTX\b",
    # No other name follows: "RTX 4070" is not what "RTX 4070 Ti SUPER" is.
    **{name.replace(" ", "").lower(): rf"{name}\b(?! (?:Ti|SUPER|D)\b)" for name in _GEFORCE},
    "a2000": r"RTX A2000\b",
    "a4000": r"RTX A4000\b",
    "a5000": r"RTX A5000\b",
    "a6000": r"RTX A6000\b",
    "rtx6000ada": r"RTX 6000 Ada\b",
    "p100": r"\bP100\b",
    "v100": r"\bV100S?\b",
    "t4": r"\bT4\b",
    "a10": r"\bA10\b",
    "a10g": r"\bA10G\b",
    "a30": r"\bA30\b",
    "a40": r"\bA40\b",
    "a100": r"\bA100\b",
    "l4": r"\bL4\b",
    "l40": r"\bL40\b",
    "l40s": r"\bL40S\b",
    "h100": r"\bH100\b",
    "h200": r"\bH200\b",
    "gh200": r"\bGH200\b",
    "b200": r"\bB200\b",
    "gb10": r"\bGB10\b",
    "orin": r"\bOrin\b",
    "xavier": r"\bXavier\b",
    "thor": r"\bThor\b",
    "tx2": r"Tegra X2|\bTX2\b",
    "nano": r"Tegra X1|Jetson Nano",
}
"""Short names of CUDA devices → pattern in the name that the driver reports (case does not matter).

An alias names a family: boards of one name may differ in cores (the Orins) or power, which
:meth:`Device.differences` compares. A part of a board, or its kin in a laptop, has no alias.
"""

# Laptops' chips, slices of a board (MIG), and its virtual parts (GRID T4-8Q): other devices of the same name.
_NOT_THE_WHOLE = re.compile(r"\bLaptop\b|\bMax-Q\b|\bMobile\b|\bMIG\b|-\d+[ABCQ]\b", re.IGNORECASE)

CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "avx_vnni",
    "asimd",
    "asimddp",
    "sve",
    "bf16",
)
"""Instruction sets that decide which convolution kernels a CPU runtime picks, out of over a hundred."""


class Device(BaseModel):
    """The fingerprint of one processor that can be timed: what two tables must share to be compared.

    Fields that could not be read are None and match anything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cpu", "cuda", "fake"]
    name: str
    """As the operating system or the driver reports it."""
    index: int = 0
    """Which of several CUDA devices; not part of the identity."""
    cores: int | None = None
    """Logical cores of a CPU, streaming multiprocessors of a GPU."""
    memory_gib: float | None = None
    flags: tuple[str, ...] = ()
    """Instruction sets of a CPU that change its kernels."""
    compute_capability: str | None = None
    driver: str | None = None
    cuda: str | None = None
    """Version of CUDA that PyTorch was built for."""
    power_cap_w: float | None = None
    """Power limit in force, where pynvml is installed."""

    @property
    def alias(self) -> str:
        """Short name, as ``hwnas profile --device`` takes it; the kind where no alias fits."""
        if self.kind == "cuda":
            for alias in ALIASES:
                if _is_named(self.name, alias):
                    return alias
        return self.kind

    @property
    def torch_name(self) -> str:
        """What ``torch.device`` takes: ``"cpu"`` or ``"cuda:0"``."""
        return f"cuda:{self.index}" if self.kind == "cuda" else "cpu"

    def answers_to(self, alias: str) -> bool:
        """Whether ``alias`` (``"titanxp"``, ``"cuda"``, ``"cpu"``, in any case) names this device."""
        alias = _normal(alias)
        if alias in ALIASES:
            return self.kind == "cuda" and _is_named(self.name, alias)
        # The fake device lies on torch's CPU, and is none.
        return alias == self.kind or (self.kind == "cuda" and alias == self.torch_name)

    def differences(self, other: Device) -> list[str]:
        """What tells two devices apart, a line each; empty where numbers of one hold for the other.

        Compared are kind, name, cores, instruction sets, compute capability and power cap, each only where
        both are known. Memory, driver and CUDA version are on record but do not make another device.
        """
        lines = []
        for field, label in (
            ("kind", "kind"),
            ("name", "name"),
            ("cores", "SMs" if self.kind == "cuda" else "cores"),
            ("flags", "instruction sets"),
            ("compute_capability", "compute capability"),
            ("power_cap_w", "power cap (W)"),
        ):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine not in (None, ()) and theirs not in (None, ()) and mine != theirs:
                lines.append(f"{label}: {_readable(mine)} against {_readable(theirs)}")
        return lines

    def matches(self, other: Device) -> bool:
        """Whether numbers measured on one hold for the other."""
        return not self.differences(other)

    def __str__(self) -> str:
        unit = "SMs" if self.kind == "cuda" else "cores"
        parts = [
            f"{self.cores} {unit}" if self.cores else "",
            f"{self.memory_gib:g} GiB" if self.memory_gib else "",
        ]
        detail = ", ".join(part for part in parts if part)
        return f"{self.name} ({detail})" if detail else self.name

    @staticmethod
    def find(alias: str = "auto") -> Device:
        """The device of this machine that ``alias`` names.

        Args:
            alias: ``"auto"`` (the first CUDA device, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or
                one of :data:`ALIASES` such as ``"titanxp"``. Case, spaces, ``-`` and ``_`` do not matter.

        Raises:
            DeviceNotFound: it is not in this machine, or nobody knows the name.
        """
        wanted = _normal(alias)
        devices = here()
        if wanted == "auto":
            return devices[-1] if len(devices) == 1 else devices[1]
        for device in devices:
            if device.answers_to(wanted):
                return device
        listing = "\n".join(f"  {device.torch_name:7} {device}" for device in devices)
        if wanted not in ALIASES and not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
            raise DeviceNotFound(
                f'no device is known as "{alias}". Known: auto, cpu, cuda, cuda:N, {", ".join(ALIASES)}.\n'
                f"Devices here:\n{listing}"
            )
        raise DeviceNotFound(
            f'no "{alias}" in this machine. Devices here:\n{listing}\n'
            f'Run the same command on a machine that has a "{alias}" and bring the table file back '
            "(it is plain JSON), or measure a device that is here:  --device auto"
        )


def here() -> list[Device]:
    """The devices of this machine: the CPU first, then each CUDA device that PyTorch can use."""
    cuda = (
        [_cuda_device(index) for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return [_cpu_device(), *cuda]


def gpus_of_the_driver() -> list[str]:
    """Names of the GPUs that the NVIDIA driver has, whatever PyTorch can use; empty without pynvml."""
    try:
        import pynvml
    except ImportError:
        return []
    if _or_none(lambda: pynvml.nvmlInit() or True) is None:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except Exception:  # noqa: BLE001 - NVML raises its own errors for whatever a board does not report
        return []
    finally:
        _or_none(pynvml.nvmlShutdown)


def _is_named(name: str, alias: str) -> bool:
    """Whether the driver's name of a CUDA device is what ``alias`` stands for."""
    return re.search(ALIASES[alias], name, re.IGNORECASE) is not None and _NOT_THE_WHOLE.search(name) is None


def _normal(alias: str) -> str:
    return re.sub(r"[\s_-]", "", alias.strip().lower())


def _readable(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read_text(path: str) -> str:
    """Content of a file of the operating system, or nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_device() -> Device:
    info = _read_text("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read_text("/proc/meminfo"), re.MULTILINE)
    # ARM kernels name no model; their device tree names the board.
    board = _read_text("/proc/device-tree/model").strip("\0\n ")
    fallback = board or platform.processor() or platform.machine() or "unknown CPU"
    return Device(
        kind="cpu",
        name=name.group(1).strip() if name else fallback,
        cores=os.cpu_count(),
        memory_gib=round(int(memory.group(1)) / 2**20, 1) if memory else None,
        flags=tuple(flag for flag in CPU_FLAGS if flag in present),
    )


def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    driver: str | None = None
    power_cap_w: float | None = None
    with _nvml(index) as nvml:
        if nvml is not None:
            library, handle = nvml
            driver = _or_none(lambda: _text(library.nvmlSystemGetDriverVersion()))
            power_cap_w = _or_none(lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
    if driver is None:
        version = re.search(
            r"Kernel Module\s.*?(\d+\.\d+(?:\.\d+)?)", _read_text("/proc/driver/nvidia/version")
        )
        driver = version.group(1) if version else None
    return Device(
        kind="cuda",
        name=properties.name,
        index=index,
        cores=properties.multi_processor_count,
        memory_gib=round(properties.total_memory / 2**30, 1),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=driver,
        cuda=torch.version.cuda,
        power_cap_w=power_cap_w,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _or_none(read: Any) -> Any:
    """What ``read()`` gives, or None: NVML raises its own errors for whatever a board does not report."""
    try:
        return read()
    except Exception:  # noqa: BLE001 - a reading about the machine must never stop a measurement of an op
        return None


@contextlib.contextmanager
def _nvml(index: int) -> Iterator[tuple[Any, Any] | None]:
    """(pynvml, handle of the device) where the library and a driver are there, else None."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    if _or_none(lambda: pynvml.nvmlInit() or True) is None:
        yield None
        return
    try:
        # CUDA may number boards otherwise than NVML does (CUDA_VISIBLE_DEVICES); the UUID tells them apart.
        uuid = _or_none(lambda: f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        handle = _or_none(lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid)) if uuid else None
        yield None if handle is None else (pynvml, handle)
    finally:
        _or_none(pynvml.nvmlShutdown)


# NVML's nvmlClocksThrottleReason… bits, less the one for idling.
_THROTTLE_REASONS = {
    0x002: "a clock that was set",
    0x004: "the power cap",
    0x008: "a hardware slowdown",
    0x010: "a group of GPUs that boost alike",
    0x020: "temperature, by the driver",
    0x040: "temperature, by the hardware",
    0x080: "the power supply",
    0x100: "the display's clock",
}


class DeviceState(BaseModel):
    """What else the machine was doing, read at one moment. Whatever could not be read is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    """Unix time."""
    load_average: float | None = None
    """Processes wanting a core, averaged over the last minute, on the whole machine."""
    cpu_mhz: float | None = None
    """Mean clock over the logical cores."""
    involuntary_switches: int | None = None
    """Times that this process was pushed off its core since it started."""
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_power_w: float | None = None
    gpu_throttle_reasons: int | None = None
    """NVML's bit mask; 0: the clocks are not held down."""
    gpu_processes: int | None = None
    """Processes that compute on this GPU, this one included; its parent, which only checked, is not."""

    @property
    def held_down_by(self) -> tuple[str, ...]:
        """What holds the GPU's clocks down, in words; empty for nothing, idling, or nothing known."""
        mask = self.gpu_throttle_reasons or 0
        return tuple(text for bit, text in _THROTTLE_REASONS.items() if mask & bit)

    @staticmethod
    def read(device: Device) -> DeviceState:
        """The state of ``device`` and its host now. Never fails."""
        clocks = [
            float(value)
            for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _read_text("/proc/cpuinfo"), re.M)
        ]
        values: dict[str, Any] = {
            "load_average": _or_none(lambda: os.getloadavg()[0]),
            "cpu_mhz": round(sum(clocks) / len(clocks), 1) if clocks else None,
            "involuntary_switches": _or_none(_involuntary_switches),
        }
        if device.kind == "cuda":
            with _nvml(device.index) as nvml:
                if nvml is not None:
                    library, handle = nvml
                    values |= {
                        "gpu_mhz": _or_none(
                            lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)
                        ),
                        "gpu_memory_mhz": _or_none(
                            lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_MEM)
                        ),
                        "gpu_temperature_c": _or_none(
                            lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)
                        ),
                        "gpu_power_w": _or_none(lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000),
                        "gpu_throttle_reasons": _or_none(
                            lambda: library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
                        ),
                        "gpu_processes": _or_none(
                            lambda: sum(
                                process.pid != os.getppid()
                                for process in library.nvmlDeviceGetComputeRunningProcesses(handle)
                            )
                        ),
                    }
        return DeviceState(seconds=time.time(), **values)


def _involuntary_switches() -> int:
    import resource  # absent on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
