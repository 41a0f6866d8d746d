"""``hwnas doctor``: what works here and, if not, why not."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from hwnas.cli.console import result
from hwnas.cli.machine import Machine
from hwnas.cli.names import known_backends
from hwnas.errors import HwnasError

_PACKAGES = {
    "torch": "everything",
    "kornia": "augmentation",
    "torchmetrics": "mIoU",
    "onnx": "export",
    "onnxruntime": "measuring with ONNX Runtime: pip install 'hwnas[onnxruntime]'",
    "onnxruntime-gpu": "the same on a GPU: pip install 'hwnas[onnxruntime-gpu]'",
    "matplotlib": "reports: pip install 'hwnas[plot]'",
    "tensorboard": "TensorBoard logs: pip install 'hwnas[tensorboard]'",
    "nvidia-ml-py": "GPU clocks and temperatures: pip install 'hwnas[gpu-health]'",
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(as_json: bool) -> None:
    """Say which packages, devices and backends work on this machine and, if not, why not."""
    from hwnas.latency.device import here

    packages = {name: _version(name) for name in _PACKAGES}
    devices = here()
    backends = {f"{name} on {device.alias}": _check(name, device.torch_name)
                for device in devices for name in known_backends()}  # fmt: skip
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [
        f"{'ok' if found else '--':<4}{name:<18}{found or 'not installed; needed for ' + _PACKAGES[name]}"
        for name, found in packages.items()
    ]
    if packages["onnxruntime"] and packages["onnxruntime-gpu"]:
        lines.append(
            "!!  onnxruntime and onnxruntime-gpu are both installed and share one folder: the later one won. "
            "Uninstall both, then install one."
        )
    lines += [f"ok  device {device.alias:<11}{device}" for device in devices]
    lines += [
        f"{'ok' if why is None else '--':<4}backend {name:<18} {why or ''}".rstrip()
        for name, why in backends.items()
    ]
    values = {
        "python": platform.python_version(),
        "packages": packages,
        "devices": [device.model_dump(mode="json") for device in devices],
        "backends": {name: why or "ok" for name, why in backends.items()},
    }
    result(values, lines, as_json=as_json)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _check(backend: str, device: str) -> str | None:
    """None if the backend works on the device, else why not."""
    try:
        Machine(device=device, backend=backend).make()
    except HwnasError as error:
        return " ".join(str(error).split())
    return None
