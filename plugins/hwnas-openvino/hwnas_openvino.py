"""OpenVINO on a CPU as a latency backend of hwnas: ``hwnas profile --backend openvino``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwnas import Device
from hwnas.errors import BackendUnavailable, HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import Precision, host_reader
from hwnas.latency.export import OPSET, input_names, onnx_bytes
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.timing import Reader

_HINTS: dict[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


class OpenVinoBackend(OnnxBackend):
    """OpenVINO's CPU plug-in, from ONNX: one stream, the latency hint, outputs not copied.

    ``precision`` is what OpenVINO computes in; left to itself it takes bf16 where the CPU has it. The model
    is exported in fp32 in any case, and its inputs and outputs stay fp32.

    Args:
        device: a :class:`hwnas.Device`, or an alias; the CPU.
        precision: one that the CPU has kernels for.
        threads: of the CPU.

    Raises:
        InvalidInput: the device is no CPU.
    """

    name: ClassVar[str] = "openvino"
    processes: ClassVar[int] = 4

    def __init__(self, device: Device | str = "cpu", precision: Precision = "fp32", threads: int = 1) -> None:
        super().__init__("cpu" if device == "auto" else device, precision, threads)
        if self.device.kind != "cpu":
            raise InvalidInput(f"OpenVINO runs on the CPU here, not on {self.device}. Use --device cpu.")

    def check(self) -> None:
        """Raise unless OpenVINO is here and computes in the precision asked for."""
        self.require_here()
        able = _core(_openvino()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if self.precision.upper() not in able:
            raise BackendUnavailable(
                f"OpenVINO has no {self.precision} kernels for {self.device}; it has {', '.join(able)}. "
                "Use --precision fp32."
            )
        self._compiled(onnx_bytes(nn.ReLU(), [torch.ones(1, 1, 2, 2)]))

    def versions(self) -> dict[str, str]:
        """OpenVINO's version, and the opset."""
        return {"openvino": str(_openvino().__version__), "onnx_opset": str(OPSET)}

    def settings(self) -> dict[str, str]:
        """The clock, the hint, and the type of inputs and outputs."""
        return {"clock": self._clock()[0], "hint": "latency", "streams": "1", "inputs_outputs": "fp32"}

    def _clock(self) -> tuple[str, Callable[[], int]]:
        # OpenVINO may run in a thread of its own pool: its CPU time is the process's, not the caller's.
        if self.threads == 1 and sys.platform in ("linux", "darwin"):
            return "CPU time of the process", time.process_time_ns
        return "wall", time.perf_counter_ns

    @property
    def model_precision(self) -> Precision:
        """fp32, whatever OpenVINO computes in."""
        return "fp32"

    def prepare_model(self, model: bytes, inputs: Sequence[Tensor], name: str = "the model") -> Reader:
        """A reader for a request of the compiled model."""
        openvino = _openvino()
        compiled = self._compiled(model)
        try:
            request = compiled.create_infer_request()
            named = dict(zip(input_names(len(inputs)), inputs, strict=True))
            # The model has only the inputs that it uses. A tensor is a copy of the array.
            for port in compiled.inputs:
                array = named[port.any_name].detach().cpu().contiguous().numpy()
                request.set_tensor(port.any_name, openvino.Tensor(array))
            return host_reader(lambda: request.infer(share_outputs=True), self._clock()[1])
        except HwnasError:
            raise
        except Exception as error:
            raise MeasurementFailed(
                f"{name} does not run in OpenVINO ({self.precision}) on inputs "
                f"{[tuple(x.shape) for x in inputs]}: {type(error).__name__}: {error}"
            ) from error

    def _compiled(self, model: bytes) -> Any:
        hint = _HINTS[self.precision]
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        try:
            core = _core(_openvino())
            compiled = core.compile_model(core.read_model(model), "CPU", options)
        except Exception as error:
            raise MeasurementFailed(
                f"OpenVINO cannot compile the model: {type(error).__name__}: {error}"
            ) from error
        found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if found != hint:
            raise BackendUnavailable(f"OpenVINO would compute in {found} where {hint} was asked for.")
        return compiled


def _openvino() -> Any:
    try:
        with _quiet_import():
            import openvino
    except ImportError as error:
        raise BackendUnavailable(
            "openvino is not installed. Install it with:  pip install openvino"
        ) from error
    return openvino


@lru_cache
def _core(openvino: Any) -> Any:
    """The one core of this process, which lives as long as the process does.

    A core gives the thread an alternate stack for signals, and at its end puts back the one that it found.
    Of two cores that end in the order in which they began, the second puts back the first one's, which is
    freed by then: the next signal, Ctrl-C say, would kill the process.
    """
    return openvino.Core()


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Import OpenVINO without its telemetry, for the absence of which it has a stub.

    Telemetry reports each import to a web server, from a thread that forks this process and waits for the
    child: work beside a measurement, and a fork of a process with threads, which may hang.
    """
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # how Python is told that a module is absent
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
