"""Timing in TensorRT: one path for TensorRT 10 and 11 and for TensorRT for RTX."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import Precision
from hwnas.latency.cuda import CudaTimer
from hwnas.latency.device import Device
from hwnas.latency.export import OPSET, input_names
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.tensorrt_engine import build_engine, timing_cache_path
from hwnas.latency.tensorrt_package import PACKAGES, Package, import_tensorrt, log_of, runtime_of
from hwnas.latency.tensorrt_probe import probe
from hwnas.latency.timing import Reader

_WARMUP_MS = 200.0  # on the first runs clocks rise, and TensorRT for RTX compiles


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
        trt = import_tensorrt(self.package)
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
        keeps = self._keeps_timings()
        cache = timing_cache_path(import_tensorrt(self.package), self.device) if keeps else None
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
        trt = import_tensorrt(self.package)
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
            profiler = _profiler(import_tensorrt(self.package))
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
        name: Package = import_tensorrt(self.package).__name__
        return name

    def _keeps_timings(self) -> bool:
        # In TensorRT for RTX timing caches are deprecated and hold nothing.
        return self.timing_cache and self._package() == "tensorrt"

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
        log = log_of(self._package())
        with torch.cuda.device(self.device.index):
            log.lines.clear()
            engine = runtime_of(self._package()).deserialize_cuda_engine(plan)
            if engine is None:
                raise MeasurementFailed(f"TensorRT cannot load the engine that it built:\n{log}")
            context = engine.create_execution_context()
            if context is None:
                raise MeasurementFailed(f"TensorRT cannot run the engine; is the GPU's memory full?\n{log}")
        return engine, context

    def _run(self, engine: Any, context: Any, inputs: Sequence[Tensor]) -> Callable[[], None]:
        """One inference of ``context`` on copies of ``inputs``, enqueued on the current stream."""
        trt = import_tensorrt(self.package)
        log = log_of(self._package())
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


def _profiler(trt: Any) -> Any:
    """An ``IProfiler`` that adds up each layer's milliseconds in ``total_ms``."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc]  # the base is only known once it is imported
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
