"""From a trained network to the file that is deployed, in fp32, fp16 or int8.

The fp32 model is PyTorch's export, checked against the network; exporting folds each batch norm into the
convolution before it. The others are made of that model, after the folding, by ONNX Runtime's own tools. See
docs/decisions/0012-deployment.md.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hwnas.core.genotype import Genotype
from hwnas.deploy.description import Description, ExportPrecision, Output
from hwnas.deploy.onnx_network import OnnxNetwork
from hwnas.deploy.precisions import halved, quantised
from hwnas.errors import InvalidInput
from hwnas.files import write_atomically
from hwnas.latency.backend import host_versions
from hwnas.latency.export import export_onnx
from hwnas.segmentation.labels import Labelling
from hwnas.segmentation.metrics import class_numbers

CLASSES_OUTPUT = "classes"
"""Name of the output of a file with the argmax in its graph."""


class Exported(BaseModel):
    """What was written, and how far it is from the network. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    """Of the file."""
    precision: ExportPrecision
    """What it computes in."""
    output: Output
    """What it gives."""
    size_bytes: int
    """Of the file."""
    max_abs_difference: float
    """Largest difference between the logits of the fp32 model and of the network, on random inputs."""
    agreement_percent: float | None = None
    """Share of the samples' pixels for which the file and the network name the same class."""
    images_compared: int = 0
    """How many samples there were."""
    calibration_images: int = 0
    """Of an int8 file: how many pictures its ranges come from."""


def export(
    network: nn.Module,
    input_shape: tuple[int, ...],
    path: str | Path,
    *,
    precision: ExportPrecision = "fp32",
    argmax: bool = False,
    genotype: Genotype | None = None,
    labelling: Labelling | None = None,
    samples: Tensor | None = None,
    calibration: Tensor | None = None,
) -> Exported:
    """Write a segmentation network as ONNX; the file takes any batch size, and fp32 images in any precision.

    Args:
        network: gives logits ``[N, classes, H, W]`` of its input's height and width; put into eval mode where
            there are ``samples``, otherwise not changed.
        input_shape: of one image, ``(3, H, W)``.
        path: of the file; an older one is replaced in one step.
        precision: fp16 halves weights and activations; int8 quantises both, weights by channel.
        argmax: end with the class numbers, uint8 ``[N, H, W]``, instead of the logits.
        genotype: kept in the file's metadata; ``labelling`` likewise.
        labelling: what ``hwnas predict`` needs to know.
        samples: normalised images, ``[N, 3, H, W]``, on which file and network are compared.
        calibration: the same, from the training data, on which int8's ranges are observed.

    Raises:
        ExportError: the network cannot be expressed in ONNX, or computes something else there.
        InvalidInput: int8 without ``calibration``; no image in ``samples``, or images of another size than
            ``input_shape`` there or in ``calibration``.
        MissingExtra: ONNX Runtime is not installed.
    """
    if precision == "int8" and (calibration is None or not len(calibration)):
        raise InvalidInput(
            "int8 needs images to calibrate its ranges on: pass calibration=, some tens of training images."
        )
    for what, images in (("samples", samples), ("calibration", calibration)):
        if images is not None and (not len(images) or tuple(images.shape[1:]) != tuple(input_shape)):
            raise InvalidInput(
                f"{what}= takes at least one image of the network's own shape, [N, "
                f"{', '.join(map(str, input_shape))}]; got {list(images.shape)}"
            )
    import onnx

    with tempfile.TemporaryDirectory(prefix="hwnas-") as folder:
        plain, written = Path(folder) / "fp32.onnx", Path(folder) / "written.onnx"
        report = export_onnx(network, [torch.rand(1, *input_shape)], plain)
        model = onnx.load(plain)
        if precision == "int8":
            assert calibration is not None
            model = quantised(plain, calibration)
        if argmax:
            _end_with_argmax(model)
        if precision == "fp16":
            model = halved(model)
        description = Description(
            version=host_versions()["hwnas"],
            precision=precision,
            output="classes" if argmax else "logits",
            genotype=genotype,
            labelling=labelling,
            calibration_images=len(calibration) if precision == "int8" and calibration is not None else 0,
        )
        onnx.helper.set_model_props(model, description.metadata())
        content: bytes = model.SerializeToString()
        written.write_bytes(content)
        same = agreement_percent(network, OnnxNetwork(written), samples) if samples is not None else None
    write_atomically(Path(path), content)
    return Exported(
        path=Path(path),
        precision=precision,
        output=description.output,
        size_bytes=len(content),
        max_abs_difference=float(report.max_abs_difference or 0.0),
        agreement_percent=same,
        images_compared=0 if samples is None else len(samples),
        calibration_images=description.calibration_images,
    )


@torch.inference_mode()
def agreement_percent(network: nn.Module, other: nn.Module, images_NCHW: Tensor) -> float:
    """For how many pixels of ``images_NCHW`` two networks name the same class, in percent.

    Both are put into eval mode and left as they were otherwise; either gives logits or class numbers.

    Raises:
        InvalidInput: there are no images.
    """
    if not len(images_NCHW):
        raise InvalidInput("to compare two networks takes at least one image; got none")
    same = pixels = 0
    for image in images_NCHW:
        ours, theirs = (class_map(each, image[None]) for each in (network, other))
        same += int((ours == theirs).sum())
        pixels += ours.numel()
    return 100 * same / pixels


@torch.inference_mode()
def class_map(network: nn.Module, images_NCHW: Tensor) -> Tensor:
    """Class numbers ``[N, H, W]`` int64 of a network that gives these or logits; it stays in eval mode."""
    return class_numbers(network.eval()(images_NCHW))


def _end_with_argmax(model: Any) -> None:
    """Let a model of logits give class numbers, uint8 ``[N, H, W]``, in place."""
    import onnx

    (logits,) = model.graph.output
    batch, _, height, width = (axis.dim_param or axis.dim_value for axis in logits.type.tensor_type.shape.dim)
    largest = f"{CLASSES_OUTPUT}_int64"
    model.graph.node.extend(
        [
            onnx.helper.make_node("ArgMax", [logits.name], [largest], name="argmax", axis=1, keepdims=0),
            onnx.helper.make_node(
                "Cast", [largest], [CLASSES_OUTPUT], name="argmax_to_uint8", to=onnx.TensorProto.UINT8
            ),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(CLASSES_OUTPUT, onnx.TensorProto.UINT8, [batch, height, width])
    )
