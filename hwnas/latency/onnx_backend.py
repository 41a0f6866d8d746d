"""Backends of runtimes that read ONNX: exporting, which is slow, apart from loading, which differs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from hwnas.latency.backend import LatencyBackend, Precision
from hwnas.latency.export import onnx_bytes
from hwnas.latency.timing import Reader


class OnnxBackend(LatencyBackend):
    """A runtime that is given ONNX models: a subclass writes :meth:`prepare_model` in place of ``prepare``.

    A module's model is the same in every process, so a measurement exports it once (a second for a whole
    network) and each of its processes loads it anew (some hundredths).
    """

    @property
    def model_precision(self) -> Precision:
        """What models are exported in."""
        return self.precision

    def export(self, module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
        """``module`` at the shapes of ``inputs`` as the serialised model that this runtime is given.

        Raises:
            ExportError: it cannot be expressed in ONNX.
        """
        return onnx_bytes(module, inputs, precision=self.model_precision)

    @abstractmethod
    def prepare_model(self, model: bytes, inputs: Sequence[Tensor], name: str = "the model") -> Reader:
        """A reader for an exported model; see :meth:`LatencyBackend.prepare`.

        Args:
            model: as :meth:`export` gives it.
            inputs: those it was exported with, or others of their shapes.
            name: what an error calls it.

        Raises:
            MeasurementFailed: the runtime cannot run it.
            BackendUnavailable: the runtime cannot run as asked.
        """

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor]) -> Reader:
        """A reader for ``module`` exported at the shapes of ``inputs``."""
        return self.prepare_model(self.export(module, inputs), inputs, type(module).__name__)
