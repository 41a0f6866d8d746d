"""``hwnas doctor``: what works here and, if not, why not."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.console import result
from hwnas.cli.machine import Machine
from hwnas.errors import HwnasError
from hwnas.names import known_backends

if TYPE_CHECKING:
    from hwnas.latency.device import Device

_PACKAGES = {
    "torch": "everything",
    "kornia": "augmentation",
    "torchmetrics": "mIoU",
    "onnx": "export",
    "safetensors": "the zoo's weights",
    "onnxruntime": "measuring with ONNX Runtime: pip install 'hwnas[onnxruntime]'",
    "onnxruntime-gpu": "the same on a GPU, instead of onnxruntime: pip install 'hwnas[onnxruntime-gpu]'",
    "tensorrt": "measuring with TensorRT: pip install tensorrt, which fetches it from NVIDIA's own index",
    "tensorrt-rtx": "the same on GeForce RTX: pip install 'hwnas[tensorrt-rtx]'",
    "matplotlib": "reports: pip install 'hwnas[plot]'",
    "tensorboard": "TensorBoard logs: pip install 'hwnas[tensorboard]'",
    "av": "videos in hwnas predict: pip install 'hwnas[video]'",
    "nvidia-ml-py": "GPU clocks and temperatures: pip install 'hwnas[gpu-health]'",
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """Say which packages, devices and backends work on this machine and, if not, why not."""
    from hwnas.latency.device import DeviceState, here

    packages = {name: _version(name) for name in _PACKAGES}
    devices = here()
    states = [DeviceState.read(device) for device in devices]
    backends = {name: _backend(name, devices) for name in known_backends()}
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [
        f"{'ok' if found else '--':<4}{name:<18}{found or 'not installed; needed for ' + _PACKAGES[name]}"
        for name, found in packages.items()
    ]
    advice = _advice(packages, devices)
    lines += [f"!!  {line}" for line in advice]
    lines += [
        f"ok  device {device.torch_name:<9}{device.alias:<12}{device}; {_state(state)}"
        for device, state in zip(devices, states, strict=True)
    ]
    for name, found in backends.items():
        works = ", ".join(found["works_on"])
        said = [f"on {works}: {found['detail']}"] if works else []
        said += [f"not on {device}: {why}" for device, why in found["why_not"].items()]
        lines.append(f"{'ok' if works else '--':<4}backend {name:<14} {'; '.join(said)}")
    values = {
        "python": platform.python_version(),
        "packages": packages,
        "advice": advice,
        "devices": [device.model_dump(mode="json") for device in devices],
        "states": [state.model_dump(mode="json") for state in states],
        "backends": backends,
    }
    result(values, lines, as_json=as_json)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _advice(packages: dict[str, str | None], devices: list[Device]) -> list[str]:
    """What is installed and cannot work as it is, a sentence each with what mends it."""
    from hwnas.latency.device import gpus_of_the_driver

    lines = []
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        lines.append(
            "onnxruntime and onnxruntime-gpu are both installed and share one folder: the later one won. "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install one."
        )
    unused = gpus_of_the_driver()
    if unused and not any(device.kind == "cuda" for device in devices):
        lines.append(
            f"the driver has {', '.join(unused)}, but torch {packages['torch']} cannot use it: "
            "install a CUDA build of torch that this driver is new enough for."
        )
    return lines


def _state(state: Any) -> str:
    """What a device is doing now, as far as it can be read."""
    shown = [
        ("load", state.load_average, ".1f", ""),
        ("CPU", state.cpu_mhz, ".0f", " MHz"),
        ("GPU", state.gpu_mhz, ".0f", " MHz"),
        ("", state.gpu_temperature_c, ".0f", " °C"),
        ("", state.gpu_power_w, ".0f", " W"),
        ("processes", state.gpu_processes, "d", ""),
    ]
    parts = [f"{name} {value:{form}}{unit}".strip() for name, value, form, unit in shown if value is not None]
    if state.held_down_by:
        parts.append(f"clocks held down by {', '.join(state.held_down_by)}")
    return ", ".join(parts) or "nothing known of its state"


def _backend(name: str, devices: list[Device]) -> dict[str, Any]:
    """On which devices a backend really works, with what, and why not on the others."""
    works_on, why_not, detail = [], {}, ""
    for device in devices:
        try:
            backend = Machine(device=device.torch_name, backend=name).make()
            versions = ", ".join(f"{what} {found}" for what, found in backend.versions().items())
            detail = versions or "needs nothing"
        except HwnasError as error:
            why_not[device.torch_name] = " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 - a broken plug-in must not hide what else works
            why_not[device.torch_name] = f"broken: {type(error).__name__}: {error}"
        else:
            works_on.append(device.torch_name)
    extra = _MORE[name]() if name in _MORE else {}
    if extra:
        detail = "; ".join(filter(None, [detail, extra["said"]]))
        if not works_on:
            why_not = {device: f"{why.rstrip('.')}. {extra['said']}" for device, why in why_not.items()}
    return {"works_on": works_on, "why_not": why_not, "detail": detail} | extra


def _onnxruntime() -> dict[str, Any]:
    """Which providers sessions are offered, and which one they really get."""
    from hwnas.latency.onnxruntime import real_providers

    try:
        offered, real = real_providers()
    except HwnasError:
        return {}
    except Exception as error:  # noqa: BLE001 - what is left of a package may raise anything
        return {"said": _broken_onnxruntime(error)}
    lost = [name for name in offered if name not in real]
    said = f"of {', '.join(offered)} a session gets {real[0]}"
    return {"providers": real, "said": said + (f", and cannot start {', '.join(lost)}" if lost else "")}


def _broken_onnxruntime(error: Exception) -> str:
    """What is wrong with an ONNX Runtime that is there and does not work, and what mends it."""
    found = sys.modules.get("onnxruntime")
    folders = ", ".join(getattr(found, "__path__", ()))
    wrong = f"ONNX Runtime fails ({type(error).__name__}: {' '.join(str(error).split())})"
    # A folder that imports without a file of its own is what an uninstalled package left.
    if folders and getattr(found, "__file__", None) is None:
        wrong = f"Of ONNX Runtime only a folder is left ({folders})"
    return (
        f"{wrong}: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'hwnas[onnxruntime]' or, "
        "for a GPU, 'hwnas[onnxruntime-gpu]'."
    )


def _tensorrt() -> dict[str, Any]:
    """How far each TensorRT that is installed comes, tried in a process of its own."""
    from hwnas.latency.tensorrt_package import PACKAGES
    from hwnas.latency.tensorrt_probe import probe

    probes = [probe(package) for package in PACKAGES]
    said = []
    for found in probes:
        if found.version is not None:
            builds = "builds engines and cannot run them" if found.builds else "does not work"
            does = "runs engines" if found.runs else builds
            said.append(f"{found.package} {found.version} {does}" + (f": {found.why}" if found.why else "."))
    return {
        "probes": [found.model_dump(mode="json") for found in probes],
        "said": " ".join(said) or "Neither tensorrt nor tensorrt-rtx is installed.",
    }


_MORE = {"onnxruntime": _onnxruntime, "tensorrt": _tensorrt}
