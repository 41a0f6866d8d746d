"""Soft targets: what a teacher says of whole images, asked once, and cropped along with them ever after."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from hwnas.core.guidance import SoftTargets, frozen_teacher
from hwnas.core.training import TrainingPrecision, autocast
from hwnas.layers import bilinear
from hwnas.segmentation.dataset import SegmentationDataset
from hwnas.segmentation.transforms import resize_image

SOFT_TARGET_STRIDE = 4
"""Soft targets have a quarter of an image's rows and columns: a recipe's teacher has no more."""
LEAST_PROBABILITY = 1e-20
"""Of a class in a soft target. Its logarithm, which is kept, must be finite; so small that it is nothing at
any temperature in use."""


class SoftTargetConfig(BaseModel):
    """How a teacher is asked once for each image: what it says is its mean over all views. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scales: tuple[PositiveFloat, ...] = Field((1.0,), min_length=1)
    """Magnifications of the image in which it is shown to the teacher."""
    mirrored: bool = True
    """Whether it is shown the mirror images besides."""


class WithSoftTargets(Dataset[tuple[Tensor, SoftTargets]]):
    """Images with their targets and with what a teacher says of them, in one view.

    ``self[i, seed]`` is ``dataset[i, seed]`` with the teacher's logits in the same view, at a quarter of its
    rows and columns (rounded up). The teacher is asked when an image is first wanted, and never again: what
    it said lies where the image does, in 2 / 16 bytes for each class and pixel. It sees the image as it is,
    whatever the augmentation does to colours.

    Args:
        dataset: the images. Load them in one process: others would ask for themselves.
        teacher: from normalised images to logits; see :func:`hwnas.core.guidance.frozen_teacher`.
        config: in which views the images are shown to it.
        device: where it computes.
        precision: "bf16" for bfloat16 matrix work of the teacher.
        channels_last: keep images and its weights in NHWC memory order.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        teacher: nn.Module,
        config: SoftTargetConfig,
        *,
        device: torch.device,
        precision: TrainingPrecision = "fp32",
        channels_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self._teacher = frozen_teacher(teacher, device, channels_last=channels_last)
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._device = device
        self._precision: TrainingPrecision = precision
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, SoftTargets]:
        number, seed = index
        image, target, view = self.dataset.viewed(number, seed)
        return image, SoftTargets(target, *view.of(self.whole(number).float(), _coarse(*target.shape)))

    def whole(self, index: int) -> Tensor:
        """The logarithms of the teacher's probabilities on a whole image, float16 ``[classes, h, w]``."""
        if index not in self._kept:
            self._kept[index] = self._ask(index)
        return self._kept[index]

    @torch.no_grad()
    def _ask(self, index: int) -> Tensor:
        pixels, label = self.dataset.stored(index)
        height, width = label.shape
        views = []
        for scale in self.config.scales:
            size = (max(1, round(scale * height)), max(1, round(scale * width)))
            shown = self.dataset.normalise(resize_image(pixels, size).float() / 255)[None].to(self._device)
            views.append(self._probabilities(shown, (height, width)))
            if self.config.mirrored:
                views.append(self._probabilities(shown.flip(-1), (height, width)).flip(-1))
        probabilities = torch.stack(views).mean(0)
        return probabilities.clamp_min(LEAST_PROBABILITY).log().half().to(pixels.device)

    def _probabilities(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        with autocast(self._device, self._precision):
            logits: Tensor = self._teacher(image.contiguous(memory_format=self._memory_format))
        probabilities = bilinear(logits.float().contiguous(), size).softmax(1)
        return functional.adaptive_avg_pool2d(probabilities[0], _coarse(*size))


def _coarse(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the soft targets of an image, or of a crop, of that size."""
    return -(-height // SOFT_TARGET_STRIDE), -(-width // SOFT_TARGET_STRIDE)
