"""What a segmentation data set is: pairs of a normalised image and a map of class numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence, Sized
from itertools import accumulate
from typing import Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hwnas.core.guidance import SoftTargets
from hwnas.errors import InvalidInput
from hwnas.segmentation.labels import VOID
from hwnas.segmentation.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    JointAugmentation,
    View,
    channels,
    resize_image,
    resize_label,
    seeded,
)

Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]
Target = Tensor | SoftTargets
"""A map of class numbers, maybe with what a teacher says."""


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]], ABC):
    """Images with a class for every pixel.

    ``dataset[i]`` gives the image, float32 ``[3, H, W]``, normalised by :attr:`mean` and :attr:`std`, and the
    target, int64 ``[H, W]``, holding class numbers and :attr:`ignore_index` where the class is unknown.
    ``dataset[i, seed]`` draws the augmentation from ``seed`` instead of torch's global random state, which is
    how :func:`~hwnas.segmentation.loaders.training_loader` makes it independent of the worker processes.

    A subclass sets :attr:`classes` and :attr:`palette` and implements ``__len__``, :meth:`read` and
    :meth:`name`; it calls ``super().__init__`` **last**, since ``cache=True`` reads every image there.

    Args:
        size: height and width to which images (bilinear) and labels (nearest) are brought; None keeps theirs.
        augment: True for :class:`JointAugmentation` with its defaults, or one of your own.
        cache: decode and resize once, and keep the bytes (4 per pixel) in memory.
    """

    classes: tuple[str, ...]
    """Names, in the order of the class numbers."""
    palette: tuple[Colour, ...]
    """An RGB colour (0…255) for each class."""
    ignore_index: int = VOID
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        augment: bool | JointAugmentation = False,
        cache: bool = False,
    ) -> None:
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise InvalidInput(f"size is (height, width), both at least 1; got {size}")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.augment: JointAugmentation | None
        if isinstance(augment, JointAugmentation):
            self.augment = augment
        else:
            self.augment = JointAugmentation(mean=self.mean) if augment else None
        self._cached: list[tuple[Tensor, Tensor]] | None = None
        if cache:
            self._cached = [self._load(index) for index in range(len(self))]

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """The image, uint8 ``[H, W, 3]`` RGB, and its label map, uint8 ``[H, W]``, class numbers and 255."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A short name of one image, fit for a file name."""

    @property
    def num_classes(self) -> int:
        """How many classes are learnt and scored."""
        return len(self.classes)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        image, label, _ = self.viewed(*(index if isinstance(index, tuple) else (index, None)))
        return image, label

    def viewed(self, index: int, seed: int | None = None) -> tuple[Tensor, Tensor, View]:
        """An item, as ``self[index, seed]`` gives it, and what it shows of the image.

        Args:
            index: of the image; negative ones count from the end.
            seed: draws the augmentation; None: torch's global random state does.

        Raises:
            IndexError: there is no such image.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} in a data set of {len(self)} images")
        index %= len(self)
        image, label = self.stored(index)
        if self.augment is None:
            pixels, view = image.float() / 255, View.of_all(*label.shape)
        else:
            with seeded(seed):
                pixels, label, view = self.augment.viewed(image, label)
        return self.normalise(pixels), label.long(), view

    def stored(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 ``[3, H, W]`` and label map uint8 ``[H, W]`` at :attr:`size`, before augmentation."""
        return self._load(index) if self._cached is None else self._cached[index]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Colours in 0…1, ``[…, 3, H, W]``, as the network sees them: zero mean, unit deviation."""
        return normalised(pixels, self.mean, self.std)

    def denormalise(self, image: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, clipped to 0…1."""
        image = image.cpu()
        return (image * channels(self.std, image.device) + channels(self.mean, image.device)).clamp(0, 1)

    def to(self, device: torch.device | str) -> Self:
        """Keep all images on ``device``, decoded, from now on; augmentation computes there, too.

        For a GPU with room for 4 bytes a pixel, beside a CPU that cannot load images as fast as it trains.
        Items then lie on ``device``: load them in the process that trains, without workers.
        """
        self._cached = [
            (image.to(device), label.to(device)) for image, label in map(self.stored, range(len(self)))
        ]
        return self

    def _load(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, labels = self.read(index)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        label = torch.from_numpy(labels)
        if self.size is None:
            return image, label
        return resize_image(image, self.size), resize_label(label, self.size)


class WithUnlabelled(Dataset[tuple[Tensor, Target]]):
    """Labelled images, and as many others as are wanted, drawn anew in each pass, whose targets are void.

    ``self[i, seed]``, from the end of the labelled ones on, is an image that ``seed`` draws from all of
    ``others``, augmented as its data set does: :func:`~hwnas.segmentation.loaders.training_loader` gives
    another seed in each pass.

    Args:
        labelled: seen once each in a pass.
        others: data sets, of known length, whose labels, of whatever classes, are left out; what a teacher
            said stays.
        count: how many of their images are in a pass.
    """

    def __init__(
        self,
        labelled: Dataset[tuple[Tensor, Target]],
        others: Sequence[Dataset[tuple[Tensor, Target]]],
        count: int,
    ) -> None:
        self.labelled = labelled
        self.others = tuple(others)
        self.count = count
        self._starts = tuple(accumulate((len(cast(Sized, part)) for part in self.others), initial=0))

    def __len__(self) -> int:
        return len(cast(Sized, self.labelled)) + self.count

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Target]:
        number, seed = index
        if number < len(self) - self.count:
            return self.labelled[index]
        generator = torch.Generator().manual_seed(seed)
        drawn = int(torch.randint(self._starts[-1], (), generator=generator))
        part = bisect_right(self._starts, drawn) - 1
        image, target = self.others[part][drawn - self._starts[part], seed]
        if isinstance(target, SoftTargets):
            return image, target._replace(targets=torch.full_like(target.targets, VOID))
        return image, torch.full_like(target, VOID)


def normalised(pixels: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Colours in 0…1, ``[…, 3, H, W]``, less ``mean`` and over ``std``."""
    return (pixels - channels(mean, pixels.device)) / channels(std, pixels.device)


def distinct_colours(count: int) -> tuple[Colour, ...]:
    """A colour for each of ``count`` classes, well apart: hues by the golden angle, three brightnesses."""
    from colorsys import hsv_to_rgb

    colours = []
    for index in range(count):
        red, green, blue = hsv_to_rgb(index * 0.381966 % 1, 0.75, (0.95, 0.7, 0.45)[index % 3])
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colours)
