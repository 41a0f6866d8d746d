"""Timing in ONNX Runtime, with inputs and outputs bound so that no transfer is in the number."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import Precision, host_clock, host_reader
from hwnas.latency.device import Device
from hwnas.latency.export import OPSET, input_names, onnx_bytes, require_onnxruntime
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.timing import Reader

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDERS: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}

_NOT_LOADED = (
    "Its libraries (CUDA, cuDNN, TensorRT) or the driver could not be loaded; "
    "ONNX Runtime says on stderr which."
)


class OnnxRuntimeBackend(OnnxBackend):
    """ONNX Runtime on one execution provider, and on no other.

    ONNX Runtime falls back to the CPU without a word where a provider cannot start, and gives what TensorRT
    does not take to CUDA or the CPU. Here the provider asked for is listed alone, falling back is off, and a
    session with a single node elsewhere is refused. (Versions that do not list where nodes run refuse by
    themselves what would go to the CPU.)

    One intra-op pool of ``threads`` threads, graph optimisation as by default, one sequential graph. A
    reading is a block of runs with bound buffers: one CPU thread is timed by the CPU time it takes, all else
    by the wall clock; on a GPU the runs are enqueued and synchronised once.

    Args:
        device: a :class:`Device`, or an alias for :meth:`Device.find`.
        precision: the model is exported in it: never in bf16, and in fp16 on a CPU only on ARM.
        threads: of the CPU.
        provider: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``; None takes the one of the device's kind.

    Raises:
        InvalidInput: the provider does not run on the device's kind.
    """

    name: ClassVar[str] = "onnxruntime"

    def __init__(
        self,
        device: Device | str = "auto",
        precision: Precision = "fp32",
        threads: int = 1,
        *,
        provider: Provider | None = None,
    ) -> None:
        if provider is not None and provider not in PROVIDERS:
            raise InvalidInput(f'provider must be one of {", ".join(PROVIDERS)}; got "{provider}".')
        if device == "auto" and provider is not None:
            device = "cpu" if provider == "cpu" else "cuda"
        super().__init__(device, precision, threads)
        self.provider: Provider = provider or ("cuda" if self.device.kind == "cuda" else "cpu")
        if (self.provider == "cpu") != (self.device.kind != "cuda"):
            raise InvalidInput(
                f"provider {self.provider} does not run on {self.device}; leave it out, or mend --device."
            )

    def check(self) -> None:
        """Raise unless a session really runs on the provider asked for.

        Raises:
            BackendUnavailable: it would run elsewhere or not at all, the precision has no kernels, or the
                device is not here.
            MissingExtra: ONNX Runtime is not installed.
        """
        self._require_precision()
        self.require_here()
        try:
            self._session(onnx_bytes(nn.ReLU(), [torch.ones(1, 1, 2, 2)], precision=self.precision))
        except MeasurementFailed as error:
            # A provider that cannot start leaves the smallest model to the CPU, which is refused.
            raise BackendUnavailable(
                f"{error}\nNot even a ReLU runs on {PROVIDERS[self.provider]}. {_NOT_LOADED}"
            ) from error

    def _require_precision(self) -> None:
        """Raise where the provider would compute in another precision, or not at all."""
        if self.precision == "bf16":
            raise BackendUnavailable(
                f"ONNX has no bf16 convolution before opset 22, and models are exported in opset {OPSET}. "
                "Use --precision fp32 or fp16, or the torch backend for bf16."
            )
        if self.precision == "fp16" and self.provider == "cpu" and not has_fp16_kernels():
            raise BackendUnavailable(
                f"ONNX Runtime has no fp16 kernels for {platform.machine()}: it would cast to fp32 and "
                "back, and the casts would be in the number. Use --precision fp32."
            )

    def versions(self) -> dict[str, str]:
        """ONNX Runtime's version with the distribution that it came in, and the opset."""
        runtime = _runtime()
        return {"onnxruntime": f"{runtime.__version__} ({_distribution()})", "onnx_opset": str(OPSET)}

    def settings(self) -> dict[str, str]:
        """The provider, the clock, TF32 on a GPU, and what the thread pool does between runs."""
        settings = {"provider": self.provider, "clock": self._clock()[0]}
        if self.provider != "cpu":
            settings["tf32"] = "allowed"
        if self.threads > 1:
            settings["spinning"] = "stopped after each run"
        return settings

    def _clock(self) -> tuple[str, Callable[[], int]]:
        # What a GPU does while the host waits is no CPU time.
        return host_clock(self.threads) if self.provider == "cpu" else ("wall", time.perf_counter_ns)

    def export(self, module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
        """The model, in this backend's precision, which is refused before it is exported.

        Raises:
            BackendUnavailable: the provider does not compute in this precision.
            ExportError: the module cannot be expressed in ONNX.
        """
        self._require_precision()
        return super().export(module, inputs)

    def prepare_model(self, model: bytes, inputs: Sequence[Tensor], name: str = "the model") -> Reader:
        """A reader for a session of its own with buffers bound.

        Raises:
            MeasurementFailed: no session can be built, or it does not run.
            BackendUnavailable: the provider would not run as asked.
        """
        self._require_precision()
        session = self._session(model)
        try:
            return self._reader(session, inputs)
        except HwnasError:
            raise
        except Exception as error:
            raise MeasurementFailed(
                f"{name} does not run in ONNX Runtime ({self.provider}, {self.precision}) "
                f"on inputs "
                f"{[tuple(x.shape) for x in inputs]}: {type(error).__name__}: {error}"
            ) from error

    def _session(self, model: bytes) -> Any:
        runtime = _runtime()
        wanted = PROVIDERS[self.provider]
        available = runtime.get_available_providers()
        if wanted not in available:
            raise BackendUnavailable(
                f"{wanted} was asked for, and {_distribution()} {runtime.__version__} has only "
                f"{', '.join(available)}. The GPU providers come with:  pip uninstall onnxruntime && "
                "pip install 'hwnas[onnxruntime-gpu]'"
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4 if self.provider == "cpu" else 3
        if self.threads > 1:
            # A table holds a hundred sessions; the pool of the one before must not spin on while this one is
            # timed.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        # Which node runs where; without this entry the session does not say.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if self.provider == "cpu":
            provider: Any = wanted
        else:
            # A node that fell back to the CPU would bring two transfers into the number: fail instead.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            provider = (wanted, self._provider_options())
        try:
            session = runtime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
        except Exception as error:
            raise MeasurementFailed(
                f"ONNX Runtime {runtime.__version__} cannot build a session ({self.provider}, "
                f"{self.precision}): "
                f"{type(error).__name__}: {error}"
            ) from error
        running = session.get_providers()[0]
        if running != wanted:
            raise BackendUnavailable(
                f"{wanted} was asked for, and ONNX Runtime would run on {running}. {_NOT_LOADED} "
                "Nothing was measured."
            )
        # Nor may a run that fails be tried again on another provider.
        session.disable_fallback()
        strangers = _nodes_elsewhere(session, wanted)
        if strangers:
            raise MeasurementFailed(
                f"{wanted} does not take {', '.join(strangers)}; ONNX Runtime would run that elsewhere, and "
                "the number would not be this provider's. Nothing was measured."
            )
        return session

    def _provider_options(self) -> dict[str, str]:
        """Of a GPU's provider; every value that decides a number is set here or on record."""
        options = {"device_id": str(self.device.index)}
        if self.provider == "cuda":
            return options | {"use_tf32": "1"}
        return options | {"trt_fp16_enable": str(self.precision == "fp16")}

    def _reader(self, session: Any, inputs: Sequence[Tensor]) -> Reader:
        runtime = _runtime()
        where, index = ("cpu", 0) if self.provider == "cpu" else ("cuda", self.device.index)
        binding = session.io_binding()
        named = dict(zip(input_names(len(inputs)), inputs, strict=True))
        bound = []
        # The model has only the inputs that it uses, and a file its own types and, of others' making, names.
        for position, node in enumerate(session.get_inputs()):
            tensor = (named[node.name] if node.name in named else inputs[position]).detach().cpu()
            array = tensor.to(_FLOATS.get(node.type, tensor.dtype)).contiguous()
            value = runtime.OrtValue.ortvalue_from_numpy(array.numpy(), where, index)
            # The value may share the array's memory: both must outlive the reader.
            bound.append((array, value))
            binding.bind_ortvalue_input(node.name, value)
        for node in session.get_outputs():
            binding.bind_output(node.name, where, index)
        if self.provider == "cpu":
            return host_reader(_keeping(lambda: session.run_with_iobinding(binding), bound), self._clock()[1])
        run_options = runtime.RunOptions()
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return host_reader(
            _keeping(lambda: session.run_with_iobinding(binding, run_options), bound),
            self._clock()[1],
            finish=binding.synchronize_outputs,
            min_block_ms=2.0,
        )


def _keeping(run: Any, alive: object) -> Any:
    """``run``, which holds on to ``alive``."""
    return lambda keep=alive: run()


def _runtime() -> Any:
    return require_onnxruntime("time models in ONNX Runtime")


def real_providers() -> tuple[list[str], list[str]]:
    """The :data:`PROVIDERS` that ONNX Runtime lists, and those of them that a session really got.

    They differ without a word where a provider's libraries or the driver are missing.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
    """
    runtime = _runtime()
    offered = [name for name in runtime.get_available_providers() if name in PROVIDERS.values()]
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    model = onnx_bytes(nn.ReLU(), [torch.ones(1, 1, 2, 2)])
    session = runtime.InferenceSession(model, options, providers=offered)
    return offered, list(session.get_providers())


def _nodes_elsewhere(session: Any, provider: str) -> list[str]:
    """``Conv (CPUExecutionProvider)`` for each node of another provider; empty where it cannot be told."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return [
        f"{node.op_type} ({part.ep_name})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    ]


def has_fp16_kernels() -> bool:
    """Whether ONNX Runtime computes in fp16 on this machine's CPU, instead of casting to fp32 and back."""
    return platform.machine().lower() in ("aarch64", "arm64")


def _distribution() -> str:
    """Which of the two distributions that share the module's name is installed."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return " and ".join(found) or "onnxruntime"
