"""Engines of TensorRT: built from ONNX models, with a cache of the kernels that its builder has timed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from hwnas.errors import BackendUnavailable, HwnasError, MeasurementFailed
from hwnas.files import write_atomically
from hwnas.latency.device import Device
from hwnas.latency.tensorrt_package import Package, import_tensorrt, log_of


def build_engine(
    model: bytes,
    *,
    package: Package | None = None,
    timing_cache: Path | None = None,
    detailed: bool = False,
) -> bytes:
    """The engine of a serialised ONNX model, serialised: a strongly typed network in the model's own types.

    With TensorRT for RTX this works without a GPU.

    Args:
        model: as :func:`hwnas.latency.export.onnx_bytes` gives it, every size fixed.
        package: ``"tensorrt"`` or ``"tensorrt_rtx"``; None: the first that is installed.
        timing_cache: file of kernels timed before; read where it is there and fits, and written again.
        detailed: keep what the engine inspector can show of each layer, not only names.

    Raises:
        MissingExtra: neither package is installed.
        BackendUnavailable: TensorRT without a driver.
        MeasurementFailed: the model cannot be parsed or built; with the lines that TensorRT logged.
    """
    trt = import_tensorrt(package)
    if trt.__name__ == "tensorrt" and not torch.cuda.is_available():
        # Its builder times kernels, and without a driver it may take the process down.
        raise BackendUnavailable(
            "TensorRT builds engines only where there is an NVIDIA driver; PyTorch sees no CUDA device here. "
            "Build on the machine that has the GPU."
        )
    log = log_of(trt.__name__)
    log.lines.clear()
    try:
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model):
            raise MeasurementFailed(f"TensorRT {trt.__version__} does not read the model:\n{log}")
        config = builder.create_builder_config()
        if detailed:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        before = _load_timing_cache(config, timing_cache)
        plan = builder.build_serialized_network(network, config)
    except HwnasError:
        raise
    except Exception as error:
        raise MeasurementFailed(
            f"TensorRT {trt.__version__} cannot build an engine: {type(error).__name__}: {error}\n{log}"
        ) from error
    if plan is None:
        raise MeasurementFailed(f"TensorRT {trt.__version__} cannot build an engine of the model:\n{log}")
    kept = config.get_timing_cache() if timing_cache is not None else None
    if timing_cache is not None and kept is not None:
        after = bytes(kept.serialize())
        if after != before:
            write_atomically(timing_cache, after)
    return bytes(plan)


def timing_cache_path(trt: Any, device: Device) -> Path:
    """The file of this user's timing cache of one device and one version of TensorRT."""
    parts = (trt.__name__, str(trt.__version__), device.name, f"sm{device.compute_capability}")
    name = re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")
    return _cache_folder() / f"{name}.timing-cache"


def _cache_folder() -> Path:
    """Where this user's timing caches lie."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hwnas" / "tensorrt"


def _load_timing_cache(config: Any, path: Path | None) -> bytes:
    """Give the builder the cache at ``path``, or an empty one; returns what was taken of the file."""
    if path is None:
        return b""
    try:
        held = path.read_bytes()
    except OSError:
        held = b""
    for content in (held, b""):
        cache = config.create_timing_cache(content)
        # A cache of another device or version is not taken.
        if cache is not None and config.set_timing_cache(cache, False):
            return content
    return b""
