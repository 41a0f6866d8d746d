"""What a teacher answers on whole images: asked once, and cropped along with them ever after."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from hwnas.core.guidance import Taught
from hwnas.core.training import TrainingPrecision, autocast
from hwnas.layers import bilinear
from hwnas.segmentation.dataset import SegmentationDataset

COARSER = 4
"""Answers are kept at a quarter of an image's rows and columns: a recipe's teacher has no more."""
LEAST_PROBABILITY = 1e-6
"""Of a class in an answer, whose logarithm is kept."""


class KeptAnswers(BaseModel):
    """How a teacher is asked once for each image: the answer is its mean over all views. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scales: tuple[PositiveFloat, ...] = Field((1.0,), min_length=1)
    """Magnifications of the image in which it is shown to the teacher."""
    mirrored: bool = True
    """Whether it is shown the mirror images besides."""


class WithAnswers(Dataset[tuple[Tensor, Taught]]):
    """Images with their targets and with what a teacher says of them, in one view.

    ``self[i, seed]`` is ``dataset[i, seed]`` with the teacher's answer in the same view, at a quarter of its
    rows and columns (rounded up). The teacher is asked when an image is first wanted, and never again: what
    it said lies where the image does, in 2 / 16 bytes for each class and pixel. Colours are those of the
    image as it is, whatever the augmentation does to them.

    Args:
        dataset: the images. Load them in one process: others would ask for themselves.
        teacher: from normalised images to logits; moved to ``device`` and frozen, in eval mode.
        how: in which views the images are shown to it.
        device: where it computes.
        precision: "bf16" for bfloat16 matrix work of the teacher.
        channels_last: keep images and its weights in NHWC memory order.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        teacher: nn.Module,
        how: KeptAnswers,
        *,
        device: torch.device,
        precision: TrainingPrecision = "fp32",
        channels_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.teacher.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.how = how
        self.device = device
        self.precision = precision
        self._answers: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Taught]:
        number, seed = index
        image, target, view = self.dataset.viewed(number, seed)
        return image, Taught(target, *view.of(self.answer(number).float(), _coarse(target)))

    def answer(self, index: int) -> Tensor:
        """The logarithms of the teacher's probabilities on a whole image, float16 ``[classes, h, w]``."""
        if index not in self._answers:
            self._answers[index] = self._ask(index)
        return self._answers[index]

    @torch.no_grad()
    def _ask(self, index: int) -> Tensor:
        pixels, label = self.dataset.stored(index)
        image = self.dataset.normalise(pixels.float() / 255)[None].to(self.device)
        height, width = label.shape
        views = []
        for scale in self.how.scales:
            shown = bilinear(image, (max(1, round(scale * height)), max(1, round(scale * width))))
            views.append(self._probabilities(shown, (height, width)))
            if self.how.mirrored:
                views.append(self._probabilities(shown.flip(-1), (height, width)).flip(-1))
        coarse = functional.adaptive_avg_pool2d(torch.stack(views).mean(0), _coarse(label))
        return coarse.clamp_min(LEAST_PROBABILITY).log().half().to(pixels.device)

    def _probabilities(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        with autocast(self.device, self.precision):
            logits: Tensor = self.teacher(image.contiguous(memory_format=self.memory_format))
        return bilinear(logits.float().contiguous(), size)[0].softmax(0)


def _coarse(map_HW: Tensor) -> tuple[int, int]:
    height, width = map_HW.shape
    return -(-height // COARSER), -(-width // COARSER)
