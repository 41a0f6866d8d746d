"""Pictures of predictions, for a run's report."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import InvalidInput
from hwnas.files import write_atomically
from hwnas.segmentation.dataset import Colour, Pixels, SegmentationDataset
from hwnas.segmentation.labels import VOID
from hwnas.segmentation.metrics import class_numbers

_GAP = 4
"""White pixels between the panels."""


def colourise(
    labels: Tensor | Pixels, palette: Sequence[Colour], *, ignore_index: int = VOID, void: Colour = (0, 0, 0)
) -> Pixels:
    """A label map ``[H, W]`` as an RGB picture, uint8 ``[H, W, 3]``.

    Raises:
        InvalidInput: if a label is neither in the palette nor ``ignore_index``.
    """
    numbers = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
    strange = sorted(set(np.unique(numbers).tolist()) - set(range(len(palette))) - {ignore_index})
    if strange:
        raise InvalidInput(f"labels {strange} are not in the palette of {len(palette)} colours")
    table = np.array([*palette, void], dtype=np.uint8)
    return table[np.where(numbers == ignore_index, len(palette), numbers)]


def overlay(
    picture: Pixels,
    labels: Tensor | Pixels,
    palette: Sequence[Colour],
    *,
    opacity: float = 0.5,
    ignore_index: int = VOID,
) -> Pixels:
    """An RGB picture, uint8 ``[H, W, 3]``, with each pixel tinted in its class's colour; void stays as it is.

    Args:
        picture: not changed.
        labels: class numbers ``[H, W]``.
        palette: a colour for each class.
        opacity: of the colours, 0…1.
        ignore_index: the class number that is not tinted.

    Raises:
        InvalidInput: the sizes differ, the opacity is none, or a label is not in the palette.
    """
    if not 0 <= opacity <= 1:
        raise InvalidInput(f"opacity must lie in 0…1; got {opacity}")
    if tuple(picture.shape[:2]) != tuple(labels.shape):
        raise InvalidInput(
            f"picture and labels must share their height and width; got {list(picture.shape)} and "
            f"{list(labels.shape)}"
        )
    numbers = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
    colours = colourise(numbers, palette, ignore_index=ignore_index)
    share = np.where(numbers == ignore_index, 0.0, opacity)[..., None]
    blended: Pixels = np.rint(picture * (1 - share) + colours * share).astype(np.uint8)
    return blended


def save_triptych(
    path: str | Path, dataset: SegmentationDataset, image: Tensor, target: Tensor, prediction: Tensor
) -> Path:
    """Write image, ground truth and prediction side by side as a PNG; returns the path.

    Args:
        path: file to write, replaced in one step; its folder is made if need be.
        dataset: gives the palette, and undoes its own normalisation.
        image: ``[3, H, W]`` as the data set gives it.
        target: ``[H, W]`` class numbers; void is black.
        prediction: ``[H, W]`` class numbers.

    Raises:
        InvalidInput: the three differ in height or width, or hold numbers without a colour.
    """
    from PIL import Image

    size = tuple(image.shape[-2:])
    if tuple(target.shape) != size or tuple(prediction.shape) != size:
        raise InvalidInput(
            f"image, target and prediction must share their height and width; "
            f"got {list(image.shape)}, {list(target.shape)} and {list(prediction.shape)}"
        )
    photo = (dataset.denormalise(image) * 255).round().byte().permute(1, 2, 0).numpy()
    gap = np.full((size[0], _GAP, 3), 255, np.uint8)
    truth = colourise(target, dataset.palette, ignore_index=dataset.ignore_index)
    guess = colourise(prediction, dataset.palette, ignore_index=dataset.ignore_index)
    picture = Image.fromarray(np.concatenate([photo, gap, truth, gap, guess], axis=1))

    path = Path(path)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    write_atomically(path, content.getvalue())
    return path


@torch.no_grad()
def save_predictions(
    network: nn.Module,
    dataset: SegmentationDataset,
    folder: str | Path,
    indices: Iterable[int],
    *,
    device: str | torch.device = "cpu",
) -> list[Path]:
    """Write one triptych for each index, named after the image; the network is left in the mode it came in.

    Args:
        network: gives logits ``[1, C, H, W]``, or class numbers ``[1, H, W]``, for an image ``[1, 3, H, W]``;
            already on ``device``.
        dataset: where the images come from; without augmentation, if you want to see the whole image.
        folder: where the PNG files go.
        indices: which images.
        device: where to compute.
    """
    was_training = network.training
    network.eval()
    try:
        paths = []
        for index in indices:
            image, target = dataset[index]
            prediction = class_numbers(network(image[None].to(device)))[0].cpu()
            path = Path(folder) / f"{dataset.name(index)}.png"
            paths.append(save_triptych(path, dataset, image, target, prediction))
        return paths
    finally:
        network.train(was_training)
