"""From PyTorch to ONNX: one exporter for single ops and whole networks, with a numeric check.

The exporter is PyTorch's TorchScript one. It takes 5 ms for an op where the newer one takes 700 ms (torch
2.13), and a table needs a hundred; using it for whole networks too keeps one definition of what a runtime is
given. See docs/decisions/0005-onnx-exporter.md.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hwnas.errors import ExportError, InvalidInput, MissingExtra
from hwnas.files import write_atomically
from hwnas.latency.backend import DTYPES, Precision

OPSET = 17
"""The newest that TensorRT 8.6, the last for older Jetsons, reads."""


class ExportReport(BaseModel):
    """What was written and how far it is from the module it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    opset: int
    size_bytes: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    batches_checked: tuple[int, ...] = ()
    """Batch sizes on which both were compared; empty where no check was asked for."""
    max_abs_difference: float | None = None
    """Largest difference over all outputs and batches checked."""
    max_relative_difference: float | None = None
    """The same, over the largest absolute value of its output where that is above 1."""


def require_onnxruntime(purpose: str) -> Any:
    """The module ``onnxruntime``, which is not always installed.

    Args:
        purpose: what it is needed for, to complete "needed to …".

    Raises:
        MissingExtra: it is not.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnxruntime", purpose) from error
    return onnxruntime


def input_names(count: int) -> tuple[str, ...]:
    """Names of an exported model's inputs, in the module's order: ``input``, or ``input_0`` and so on."""
    return ("input",) if count == 1 else tuple(f"input_{index}" for index in range(count))


def output_names(count: int) -> tuple[str, ...]:
    """Names of an exported model's outputs, in order: ``output``, or ``output_0`` and so on."""
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))


def flat_outputs(outputs: Any) -> list[Tensor]:
    """The tensors of a module's result, in order, out of tuples, lists and dicts."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, list | tuple):
        return [tensor for part in outputs for tensor in flat_outputs(part)]
    return []


def onnx_bytes(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    precision: Precision = "fp32",
    dynamic_batch: bool = False,
    opset: int = OPSET,
) -> bytes:
    """The module, in evaluation mode, as a serialised ONNX model. The module is not changed.

    Inputs that the module does not use (of a resize, only the second input's shape is read) are not in the
    model.

    Args:
        module: takes tensors, gives tensors.
        inputs: examples, batch first; height and width are fixed to theirs.
        precision: weights, inputs and outputs are cast to it.
        dynamic_batch: whether the model takes any batch size.
        opset: version of the ONNX operators.

    Raises:
        ExportError: the module does not run, or holds something that ONNX cannot express.
    """
    dtype = DTYPES[precision]
    buffer = io.BytesIO()
    shapes = [tuple(x.shape) for x in inputs]
    try:
        network = copy.deepcopy(module).cpu().eval().to(dtype)
        tensors = tuple(x.detach().cpu().to(dtype if x.is_floating_point() else x.dtype) for x in inputs)
        with warnings.catch_warnings(), torch.no_grad():
            # That the TorchScript exporter is the older one is known, and why it is used stands above.
            warnings.simplefilter("ignore", DeprecationWarning)
            # Sizes read in Python become constants: that is wanted, for height and width are fixed. A batch
            # size that became one is found by the numeric check.
            warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
            # Remarks of the exporter about constant folding and unused inputs.
            warnings.simplefilter("ignore", UserWarning)
            names_in, names_out = (
                input_names(len(tensors)),
                output_names(len(flat_outputs(network(*tensors)))),
            )
            torch.onnx.export(
                network,
                tensors,
                # This exporter takes a file-like object, though its annotation does not say so.
                cast(Any, buffer),
                dynamo=False,
                opset_version=opset,
                input_names=list(names_in),
                output_names=list(names_out),
                dynamic_axes={name: {0: "batch"} for name in names_in + names_out} if dynamic_batch else None,
            )
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} cannot be exported to ONNX (opset {opset}, {precision}) on inputs "
            f"{shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return buffer.getvalue()


def export_onnx(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: str | Path,
    *,
    precision: Precision = "fp32",
    dynamic_batch: bool = True,
    check: bool = True,
    tolerance: float = 1e-4,
    opset: int = OPSET,
) -> ExportReport:
    """Write ``module`` to ``path`` as ONNX, after comparing both on fresh random inputs.

    The comparison runs the model in ONNX Runtime on the CPU against the module in fp32: at the batch size of
    ``inputs``, and with ``dynamic_batch`` at one more. Nothing is written where they differ.

    Args:
        module: takes tensors, gives tensors; not changed.
        inputs: examples, batch first; height and width are fixed to theirs.
        path: of the ``.onnx`` file; an older file is replaced in one step.
        precision: of the written model. For fp16 and bf16 give a tolerance of their size, some 1e-2.
        dynamic_batch: whether the model takes any batch size.
        check: compare; needs ONNX Runtime.
        tolerance: largest difference allowed, relative to the largest output value where that is above 1.
        opset: version of the ONNX operators.

    Raises:
        ExportError: it cannot be expressed in ONNX, or computes something else there.
        MissingExtra: ``check`` without ONNX Runtime.
        InvalidInput: ``check`` in bf16, which ONNX Runtime's CPU kernels do not have.
    """
    path = Path(path)
    model = onnx_bytes(module, inputs, precision=precision, dynamic_batch=dynamic_batch, opset=opset)
    batches: tuple[int, ...] = ()
    difference: float | None = None
    relative: float | None = None
    if check:
        batch = inputs[0].shape[0]
        batches = (batch, batch + 1) if dynamic_batch else (batch,)
        compared = [_compare(module, inputs, model, size, precision) for size in batches]
        difference = max(absolute for absolute, _ in compared)
        relative = max(share for _, share in compared)
        # Written this way round, NaN fails.
        if not relative <= tolerance:
            raise ExportError(
                f"{type(module).__name__} computes something else in ONNX: the largest difference is "
                f"{relative:.3g} "
                f"of the output's size (batches {', '.join(map(str, batches))}), allowed is {tolerance:.3g}. "
                "Nothing was written. Look for sizes or decisions that depend on values, or, for reduced "
                "precision, raise tolerance."
            )
    write_atomically(path, model)
    names_out = output_names(len(_outputs(module, inputs)))
    return ExportReport(
        path=path,
        opset=opset,
        size_bytes=len(model),
        input_names=input_names(len(inputs)),
        output_names=names_out,
        dynamic_batch=dynamic_batch,
        batches_checked=batches,
        max_abs_difference=difference,
        max_relative_difference=relative,
    )


def with_batch(model: bytes, batch: int) -> bytes:
    """A serialised model that takes any batch size, or ``batch`` already, with that size fixed.

    Raises:
        InvalidInput: it is no ONNX model, or its batch size is fixed to another.
    """
    import onnx

    try:
        found = onnx.load_from_string(model)
    except Exception as error:  # protobuf raises whatever the bytes lead it to
        raise InvalidInput(f"this is no ONNX model: {error}") from error
    for value in found.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and axes[0].dim_value not in (0, batch):
            raise InvalidInput(
                f"the model takes {axes[0].dim_value} images at a time, not {batch}: measure it with --batch "
                f"{axes[0].dim_value}, or export it anew."
            )
    for value in (*found.graph.input, *found.graph.output):
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].dim_value:
            axes[0].dim_value = batch
    # Shapes noted for what lies between still speak of any batch.
    del found.graph.value_info[:]
    fixed: bytes = found.SerializeToString()
    return fixed


def _outputs(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    network = copy.deepcopy(module).cpu().eval().float()
    with torch.no_grad():
        return flat_outputs(network(*(x.detach().cpu() for x in inputs)))


def _compare(
    module: nn.Module, inputs: Sequence[Tensor], model: bytes, batch: int, precision: Precision
) -> tuple[float, float]:
    """Largest absolute difference, and largest relative to its output's size, at one batch size."""
    if precision == "bf16":
        raise InvalidInput(
            "a bf16 model cannot be checked on a CPU by ONNX Runtime; export with check=False."
        )
    onnxruntime = require_onnxruntime("check an exported model")
    generator = torch.Generator().manual_seed(batch)
    fresh = [
        torch.randn((batch, *x.shape[1:]), generator=generator).relu()
        if x.is_floating_point()
        else x.detach().cpu()[:1].expand(batch, *x.shape[1:]).contiguous()
        for x in inputs
    ]
    expected = _outputs(module, fresh)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        named = dict(zip(input_names(len(fresh)), fresh, strict=True))
        feed = {}
        for node in session.get_inputs():
            value = named[node.name]
            feed[node.name] = (value.to(DTYPES[precision]) if value.is_floating_point() else value).numpy()
        found = [torch.from_numpy(output) for output in session.run(None, feed)]
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} was exported but ONNX Runtime does not run it at batch {batch}: "
            f"{type(error).__name__}: {error}"
        ) from error
    absolute = relative = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(
                f"{type(module).__name__} gives {tuple(ours.shape)} in PyTorch and {tuple(theirs.shape)} in "
                f"ONNX "
                f"at batch {batch}. Nothing was written."
            )
        if not ours.numel():
            continue
        gap = float((ours.double() - theirs.double()).abs().max())
        # max() would let a NaN slip by, depending on the order of its arguments.
        if gap != gap:
            return gap, gap
        absolute = max(absolute, gap)
        relative = max(relative, gap / max(1.0, float(ours.abs().max())))
    return absolute, relative
