"""From an fp32 model to fp16 and int8, by ONNX Runtime's own tools. Why these settings: decision 12."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hwnas.latency.export import input_names, require_onnxruntime


def halved(model: Any) -> Any:
    """An ``onnx.ModelProto`` with fp16 weights and activations, and fp32 at its borders.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
    """
    with _tools("convert a model to fp16"), warnings.catch_warnings():
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        # Weights below fp16's smallest number become it: far below what their sums can tell.
        warnings.simplefilter("ignore", UserWarning)
        converted = convert_float_to_float16(model, keep_io_types=True)
        # It appends the casts behind the nodes that read them, which ONNX does not allow.
        OnnxModel.graph_topological_sort(converted.graph)
    return converted


def quantised(path: Path, images_NCHW: Tensor) -> Any:
    """The model at ``path`` in int8, as pairs of QuantizeLinear and DequantizeLinear; its folder is used.

    Args:
        path: of an fp32 model with one input.
        images_NCHW: on which the ranges of activations are observed.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
    """
    import onnx

    prepared, result = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    with _tools("quantise a model"):
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(path, prepared)
        quantize_static(
            prepared,
            result,
            _Images(images_NCHW),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # TensorRT takes no zero points. The mean of the images' ranges, not the widest of all: an outlier
            # in one image then costs the others no resolution.
            extra_options={"ActivationSymmetric": True, "CalibMovingAverage": True},
        )
    return onnx.load(result)


class _Images:
    """One image after the other, as a CalibrationDataReader gives them."""

    def __init__(self, images_NCHW: Tensor) -> None:
        self._images: Iterator[Tensor] = iter(images_NCHW)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {input_names(1)[0]: image[None].numpy()}


@contextmanager
def _tools(purpose: str) -> Iterator[None]:
    """A context to import and use ONNX Runtime's tools in.

    They import their own files by bare names, so that their folder must be on Python's path, where they leave
    it for good; and they send remarks to the root logger.
    """
    require_onnxruntime(purpose)
    path, disabled = list(sys.path), logging.root.manager.disable
    import onnxruntime.transformers

    sys.path[:] = [*path, str(Path(onnxruntime.transformers.__file__).parent)]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        sys.path[:] = path
