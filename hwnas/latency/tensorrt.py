"""Timing in TensorRT: one path for TensorRT 10 and 11 and for TensorRT for RTX."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed, MissingExtra
from hwnas.files import write_atomically
from hwnas.latency.backend import Precision
from hwnas.latency.cuda import CudaTimer
from hwnas.latency.device import Device
from hwnas.latency.export import OPSET, input_names
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.timing import Reader

Package = Literal["tensorrt", "tensorrt_rtx"]

PACKAGES: tuple[Package, ...] = get_args(Package)
"""The modules that TensorRT may be, the one that is preferred first."""

_WARMUP_MS = 200.0  # on the first runs clocks rise, and TensorRT for RTX compiles
_LINES = 8  # of TensorRT's log in an error


class TensorRTBackend(OnnxBackend):
    """TensorRT engines, one for each module, built from its ONNX export.

    Networks are strongly typed: the precision is that of the exported weights and inputs, and TensorRT
    chooses no other. A reading is a block of inferences between two events on a stream of its own, by default
    as replays of a captured CUDA graph, after at least 200 ms of warm-up; inputs and outputs stay on the GPU,
    so no transfer is in the number.

    There is no int8. In strongly typed networks it needs a model with quantise and dequantise nodes whose
    scales come from calibration on the task's data and pass through training; scales made up for single ops
    would time other fusions than those of the network that is deployed.

    Args:
        device: a :class:`Device` of CUDA, or an alias for :meth:`Device.find`.
        precision: the model is exported in it; in bf16 from Ampere on.
        threads: of the host; TensorRT's work is not theirs.
        cuda_graph: capture the inferences and time replays, as ``trtexec --useCudaGraph`` does. Without it,
            the host's launches of some µs a layer bound what is small.
        timing_cache: keep what TensorRT's builder has timed, in the user's cache folder, by device and
            version: later engines are built sooner, and of the same kernels. TensorRT for RTX has none.
        package: which of the two to use where both are installed; by default TensorRT.

    Raises:
        BackendUnavailable: no CUDA device is here.
        InvalidInput: another device was asked for, or a package that is no TensorRT.
    """

    name: ClassVar[str] = "tensorrt"
    processes: ClassVar[int] = 2

    def __init__(
        self,
        device: Device | str = "auto",
        precision: Precision = "fp32",
        threads: int = 1,
        cuda_graph: bool = True,
        timing_cache: bool = True,
        package: Package | None = None,
    ) -> None:
        if package is not None and package not in PACKAGES:
            raise InvalidInput(f'package must be one of {", ".join(PACKAGES)}; got "{package}".')
        super().__init__(device, precision, threads)
        if self.device.kind != "cuda" and device == "auto":
            raise BackendUnavailable(
                f"TensorRT runs on CUDA devices only, and PyTorch {torch.__version__} sees none here. "
                "Install an NVIDIA driver and a CUDA build of torch (hwnas doctor says what is missing), or "
                "use --backend onnxruntime."
            )
        if self.device.kind != "cuda":
            raise InvalidInput(
                f"TensorRT runs on CUDA devices only; this is {self.device}. "
                "Use --backend onnxruntime here, or --device cuda on a machine with an NVIDIA GPU."
            )
        self.cuda_graph = cuda_graph
        self.timing_cache = timing_cache
        self.package = package
        self._stream: Any = None
        self._cuda = CudaTimer(
            torch.device(self.device.torch_name),
            graph=cuda_graph,
            around=self._on_stream,
            remedy=f"{type(self).__name__}(..., cuda_graph=True)",
            warmup_ms=_WARMUP_MS,
        )

    def check(self) -> None:
        """Raise unless TensorRT can build an engine and load it on the device.

        It is tried in a process of its own: without a driver, TensorRT can end the process that asks.

        Raises:
            BackendUnavailable: it cannot; the message says why, and what to install.
            MissingExtra: no TensorRT is installed.
        """
        found = probe(self._package())
        if not found.runs:
            raise BackendUnavailable(f"TensorRT cannot run on {self.device}: {found.why}")
        self._require_cuda()
        self.require_here()

    def _require_cuda(self) -> None:
        """Raise unless PyTorch, which holds the buffers and the clock, can use the device."""
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"TensorRT's buffers lie in PyTorch, and PyTorch {torch.__version__} sees no CUDA device. "
                "Install a CUDA build of torch on a machine with a driver."
            )

    def versions(self) -> dict[str, str]:
        """TensorRT's version under its package's name, and the opset."""
        trt = _tensorrt(self.package)
        return {trt.__name__: str(trt.__version__), "onnx_opset": str(OPSET)}

    def settings(self) -> dict[str, str]:
        """Graph replay, TF32, and whether the builder had a timing cache."""
        return {
            "cuda_graph": str(self.cuda_graph),
            "tf32": "allowed",
            "timing_cache": str(self._keeps_timings()),
            "cache": "warm",
        }

    def remarks(self) -> list[str]:
        """How many of the prepared modules were bound by their launches."""
        return self._cuda.remarks()

    def prepare_model(self, model: bytes, inputs: Sequence[Tensor], name: str = "the model") -> Reader:
        """A reader for an engine built of ``model``.

        Raises:
            BackendUnavailable: PyTorch sees no CUDA device.
            MeasurementFailed: TensorRT cannot build, load or run it; with what it logged.
        """
        self._require_cuda()
        plan = self._built(model)
        with self._speaking(name, inputs):
            return self._cuda.reader(self._run(*self._loaded(plan), inputs))

    def build(self, module: nn.Module, inputs: Sequence[Tensor], *, detailed: bool = False) -> bytes:
        """The engine of ``module`` at the shapes of ``inputs``, serialised; it runs on this device alone.

        Args:
            module: not changed.
            inputs: for their shapes and types.
            detailed: keep of each layer what :meth:`layers` shows, not only its name.

        Raises:
            ExportError: the module cannot be exported to ONNX.
            MeasurementFailed: TensorRT cannot build it.
        """
        return self._built(self.export(module, inputs), detailed=detailed)

    def _built(self, model: bytes, *, detailed: bool = False) -> bytes:
        cache = self._timing_cache_path() if self._keeps_timings() else None
        # The builder times kernels on the current device; TensorRT for RTX builds without any.
        current = torch.cuda.device(self.device.index) if torch.cuda.is_available() else nullcontext()
        with current:
            return build_engine(model, package=self._package(), timing_cache=cache, detailed=detailed)

    def layers(self, module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """What TensorRT made of ``module``: its inspector's JSON, with one entry a layer in ``"Layers"``.

        It is read from an engine of its own, never from one that is timed.

        Raises:
            BackendUnavailable: PyTorch sees no CUDA device.
            ExportError: the module cannot be exported to ONNX.
            MeasurementFailed: TensorRT cannot build or load it.
        """
        self._require_cuda()
        trt = _tensorrt(self.package)
        plan = self.build(module, inputs, detailed=True)
        with self._speaking(type(module).__name__, inputs):
            engine, context = self._loaded(plan)
            inspector = engine.create_engine_inspector()
            # Of an engine that runs, some layers' kernels are known only with their context.
            inspector.execution_context = context
            found: dict[str, Any] = json.loads(
                inspector.get_engine_information(trt.LayerInformationFormat.JSON)
            )
            return found

    def layer_times_ms(
        self, module: nn.Module, inputs: Sequence[Tensor], *, runs: int = 50
    ) -> dict[str, float]:
        """Mean milliseconds of each layer over ``runs`` inferences, after as many to warm up.

        A run apart, with TensorRT's profiler on: it adds 2 to 3 µs a layer and prevents graphs, so the sum is
        not the latency. For finding out where time goes.

        Raises:
            InvalidInput: less than one run.
            BackendUnavailable: PyTorch sees no CUDA device.
            ExportError: the module cannot be exported to ONNX.
            MeasurementFailed: TensorRT cannot build, load or run it.
        """
        if runs < 1:
            raise InvalidInput(f"runs must be 1 or more; got {runs}.")
        self._require_cuda()
        plan = self.build(module, inputs)
        with self._speaking(type(module).__name__, inputs):
            engine, context = self._loaded(plan)
            run = self._run(engine, context, inputs)
            profiler = _profiler(_tensorrt(self.package))
            with self._on_stream():
                for _ in range(runs):
                    run()
                torch.cuda.synchronize(self.device.index)
                context.profiler = profiler
                for _ in range(runs):
                    run()
                    torch.cuda.synchronize(self.device.index)
            return {name: total / runs for name, total in profiler.total_ms.items()}

    def _package(self) -> Package:
        name: Package = _tensorrt(self.package).__name__
        return name

    def _keeps_timings(self) -> bool:
        # In TensorRT for RTX timing caches are deprecated and hold nothing.
        return self.timing_cache and self._package() == "tensorrt"

    def _timing_cache_path(self) -> Path:
        trt = _tensorrt(self.package)
        parts = (trt.__name__, str(trt.__version__), self.device.name, f"sm{self.device.compute_capability}")
        name = re.sub(r"[^a-z0-9.]+", "-", " ".join(parts).lower()).strip("-")
        return _cache_folder() / f"{name}.timing-cache"

    @contextmanager
    def _speaking(self, name: str, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Turn whatever TensorRT or CUDA raises into an error that says what was run."""
        try:
            yield
        except HwnasError:
            raise
        except Exception as error:
            raise MeasurementFailed(
                f"{name} does not run in TensorRT ({self.precision}, {self.device.name}) on "
                f"inputs {[tuple(x.shape) for x in inputs]}: {type(error).__name__}: {error}"
            ) from error

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """This backend's own stream: on the default stream TensorRT synchronises more than once a run."""
        streams: Any = torch.cuda
        if self._stream is None:
            self._stream = streams.Stream(self.device.index)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def _loaded(self, plan: bytes) -> tuple[Any, Any]:
        """The engine on this backend's device, and an execution context of it."""
        log = _log(self._package())
        with torch.cuda.device(self.device.index):
            log.lines.clear()
            engine = _runtime(self._package()).deserialize_cuda_engine(plan)
            if engine is None:
                raise MeasurementFailed(f"TensorRT cannot load the engine that it built:\n{log}")
            context = engine.create_execution_context()
            if context is None:
                raise MeasurementFailed(f"TensorRT cannot run the engine; is the GPU's memory full?\n{log}")
        return engine, context

    def _run(self, engine: Any, context: Any, inputs: Sequence[Tensor]) -> Callable[[], None]:
        """One inference of ``context`` on copies of ``inputs``, enqueued on the current stream."""
        trt = _tensorrt(self.package)
        log = _log(self._package())
        device = torch.device(self.device.torch_name)
        named = dict(zip(input_names(len(inputs)), inputs, strict=True))
        buffers = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            dtype = _torch_dtype(trt, engine.get_tensor_dtype(name))
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                buffers[name] = named[name].detach().to(device, dtype).contiguous()
            else:
                buffers[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device=device)
            context.set_tensor_address(name, buffers[name].data_ptr())
        # Copies were enqueued on another stream than the one that inferences will run on.
        torch.cuda.synchronize(device)

        # Buffers are bound by address, and an engine must outlive its context: the function keeps both.
        def run(alive: object = (engine, buffers)) -> None:
            if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
                raise MeasurementFailed(f"TensorRT could not enqueue an inference:\n{log}")

        return run


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
    trt = _tensorrt(package)
    if trt.__name__ == "tensorrt" and not torch.cuda.is_available():
        # Its builder times kernels, and without a driver it may take the process down.
        raise BackendUnavailable(
            "TensorRT builds engines only where there is an NVIDIA driver; PyTorch sees no CUDA device here. "
            "Build on the machine that has the GPU."
        )
    log = _log(trt.__name__)
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


class Probe(BaseModel):
    """What a TensorRT package can do on this machine, tried in a process of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: str
    version: str | None = None
    """None where it cannot be imported."""
    builds: bool = False
    """Whether it builds an engine."""
    runs: bool = False
    """Whether it loads that engine on a GPU."""
    why: str = ""
    """Why not, and what to do; empty where it runs."""


@lru_cache
def probe(package: Package, timeout_s: float = 120.0) -> Probe:
    """Build and load the smallest engine in another process, and tell how far that came.

    Args:
        package: ``"tensorrt"`` or ``"tensorrt_rtx"``.
        timeout_s: TensorRT's libraries are over a gigabyte, and slow to load the first time.
    """
    command = [sys.executable, "-W", "ignore", "-c", _PROBE, package]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Probe(package=package, why=f"importing and trying {package} took over {timeout_s:g} s.")
    # A line for each step that was reached: a crash keeps what was known before it.
    found: dict[str, Any] = {}
    for line in ran.stdout.splitlines():
        if line.startswith(_PROBE_MARK):
            found |= json.loads(line.removeprefix(_PROBE_MARK))
    if ran.returncode != 0 and not found.get("why"):
        last = ran.stderr.strip().splitlines()[-1:] or [""]
        found["why"] = f"it ended the process that tried it (exit status {ran.returncode}). {last[0]}".strip()
    # Of a line of TensorRT's log, CUDA's own sentence says it all.
    if cuda := re.search(r"cudaError \d+: [^()]+", found.get("why", "")):
        found["why"] = f"{cuda.group().strip()}."
    if not found.get("runs"):
        found["why"] = f"{found.get('why', '')} {_remedy(package, found)}".strip()
    return Probe(package=package, **found)


def _remedy(package: str, found: dict[str, Any]) -> str:
    if not found.get("version"):
        return f"Install it with:  pip install {package.replace('_', '-')}"
    if "driver" in found.get("why", "").lower():
        return "Install an NVIDIA driver that is new enough, or use a machine that has one: nvidia-smi tells."
    return f"Does this GPU and driver fit {package} {found['version']}? nvidia-smi shows both."


_PROBE_MARK = "hwnas-probe "

# One identity layer; every step that succeeded is printed at once.
_PROBE = f"""
import importlib, json, sys
def say(**what):
    print({_PROBE_MARK!r} + json.dumps(what), flush=True)
try:
    trt = importlib.import_module(sys.argv[1])
    say(version=str(trt.__version__))
except Exception as error:
    say(why=f"{{type(error).__name__}}: {{error}}.")
    sys.exit()
lines = []
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            lines.append(text)
log = Log()
try:
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    layer = network.add_identity(network.add_input("x", trt.float32, (1, 8)))
    network.mark_output(layer.get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError("no engine was built")
    say(builds=True)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None or engine.create_execution_context() is None:
        raise RuntimeError("the engine that was built cannot be loaded")
    say(runs=True)
except Exception as error:
    say(why=(lines or [f"{{type(error).__name__}}: {{error}}"])[0] + ".")
"""


def _tensorrt(package: Package | None) -> Any:
    """The module of TensorRT: the package asked for, or the first that can be imported."""
    wanted = (package,) if package else PACKAGES
    for name in wanted:
        try:
            found = importlib.import_module(name)
        except (ImportError, OSError):  # OSError: its libraries are not where it expects them
            continue
        version = str(found.__version__)
        if name == "tensorrt" and int(version.split(".")[0]) < 10:
            raise BackendUnavailable(f"TensorRT 10 or newer is needed; here is {version}. Upgrade it.")
        return found
    raise MissingExtra(" or ".join(wanted), wanted[-1].replace("_", "-"), "time models in TensorRT")


@lru_cache
def _log(package: Package) -> Any:
    """The log of a package: one for all builders and runtimes, since TensorRT keeps the first it is given."""
    trt = importlib.import_module(package)

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]  # the base is only known once it is imported
        """Keeps what went wrong, and prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.lines.append(text)

        def __str__(self) -> str:
            return "\n".join(f"  {line}" for line in self.lines[:_LINES]) or "  (TensorRT logged no error)"

    return Log()


@lru_cache
def _runtime(package: Package) -> Any:
    """The runtime of a package, which must outlive every engine that it loads."""
    return importlib.import_module(package).Runtime(_log(package))


def _profiler(trt: Any) -> Any:
    """An ``IProfiler`` that adds up each layer's milliseconds in ``total_ms``."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms: dict[str, float] = {}

        def report_layer_time(self, layer: str, ms: float) -> None:
            self.total_ms[layer] = self.total_ms.get(layer, 0.0) + ms

    return LayerTimes()


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    """PyTorch's name of one of TensorRT's types."""
    known = {
        trt.float32: torch.float32,
        trt.float16: torch.float16,
        trt.bfloat16: torch.bfloat16,
        trt.int32: torch.int32,
        trt.int64: torch.int64,
        trt.bool: torch.bool,
    }
    if dtype not in known:
        raise MeasurementFailed(
            f"an input or output of TensorRT's type {dtype} has no counterpart in PyTorch."
        )
    return known[dtype]


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
