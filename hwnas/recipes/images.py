"""Images with one class each, from folders or zip files, to pre-train on."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hwnas.errors import DataError, InvalidInput
from hwnas.segmentation.dataset import normalised
from hwnas.segmentation.files import IMAGE_SUFFIXES
from hwnas.segmentation.transforms import IMAGENET_MEAN, IMAGENET_STD, resize_image, seeded


class LabelledImages(Dataset[tuple[Tensor, Tensor]]):
    """Images whose folder is their class, as files or as members of zip files.

    They lie at ``SPLIT/CLASS/NAME``, or as in Tiny ImageNet at ``SPLIT/CLASS/images/NAME``.

    ``dataset[i]`` gives the image, float32 ``[3, h, w]``, normalised as segmentation data are, and its
    class, int64. ``dataset[i, seed]`` draws crop and mirror image from ``seed`` instead of torch's global
    random state. Zip files of a split are called ``SPLIT*.zip``; nothing is unpacked, an image is decoded
    when it is asked for. A member that lies unpacked beside its zip file, too, is one image.

    Args:
        place: the folder, or ``NAME:DIR`` as on the command line.
        split: ``"train"``, ``"val"`` …
        crop: height and width that come out, a random part (of the aspect ratios 3:4 to 4:3) brought to that
            size; None keeps whole images, which must then be of one size.
        least_share: least share of an image's area that a crop shows, in (0, 1].
        flip: probability of a mirror image.
        cache: decode all images once, here, and keep the bytes (3 per pixel) in memory.

    Raises:
        InvalidInput: ``least_share`` is no share.
        DataError: no such folder, no images of that split in it, or some that do not lie in the folder of a
            class; on reading, with ``cache`` here, an image that cannot be read.
    """

    def __init__(
        self,
        place: str | Path,
        split: str,
        *,
        crop: tuple[int, int] | None = None,
        least_share: float = 0.08,
        flip: float = 0.5,
        cache: bool = False,
    ) -> None:
        _, colon, rest = str(place).partition(":")
        self.root = Path(rest) if colon and not Path(place).exists() else Path(place)
        if not self.root.is_dir():
            raise DataError(f"no folder {self.root}; expected {_layout(split)}")
        if not 0 < least_share <= 1:
            raise InvalidInput(f"least_share is a share of an image's area, in (0, 1]; got {least_share}")
        self.crop = crop
        self.least_share = least_share
        self.flip = flip
        self._members: list[tuple[Path, str | None]] = []
        classes: list[str] = []
        for path, member, name in _found(self.root, split):
            self._members.append((path, member))
            classes.append(name)
        if not self._members:
            raise DataError(f"no images in {self.root}; expected {_layout(split)}")
        self.classes = tuple(sorted(set(classes)))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = torch.tensor([numbers[name] for name in classes])
        # Here, not when they are asked for: worker processes then share what is read once.
        self._cached = [self.read(index) for index in range(len(self))] if cache else None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        seed = None
        if isinstance(index, tuple):
            index, seed = index
        image = self.stored(index)
        with seeded(seed):
            if self.crop is not None:
                image = random_resized_crop(image, self.crop, self.least_share)
            if float(torch.rand(())) < self.flip:
                image = image.flip(-1)
        return normalised(image.float() / 255, IMAGENET_MEAN, IMAGENET_STD), self._labels[index]

    def stored(self, index: int) -> Tensor:
        """One image as :meth:`read` gives it, from memory where it is kept there."""
        return self.read(index) if self._cached is None else self._cached[index]

    def to(self, device: torch.device | str) -> Self:
        """Keep all images on ``device``, decoded, from now on: :meth:`SegmentationDataset.to`, likewise."""
        self._cached = [self.stored(index).to(device) for index in range(len(self))]
        self._labels = self._labels.to(device)
        return self

    def read(self, index: int) -> Tensor:
        """One image, uint8 ``[3, H, W]``; grey ones get three equal channels.

        Raises:
            DataError: it cannot be read.
        """
        from PIL import Image, UnidentifiedImageError

        path, member = self._members[index]
        try:
            content = path.read_bytes() if member is None else _archive(path, os.getpid()).read(member)
            with Image.open(io.BytesIO(content)) as opened:
                pixels = np.array(opened.convert("RGB"))
        # Pillow raises SyntaxError for some damaged files.
        except (OSError, SyntaxError, UnidentifiedImageError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}{f' ({member})' if member else ''} cannot be read: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def random_resized_crop(image: Tensor, size: tuple[int, int], least_share: float = 0.08) -> Tensor:
    """A random part of an image at ``size``, of an aspect ratio from 3:4 to 4:3 (log-uniform).

    Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842, section 6. A part that does not fit in
    is cut to the image.

    Args:
        image: uint8 ``[3, H, W]``.
        size: height and width of the result.
        least_share: the least share of its area that is shown; the most is all of it.
    """
    height, width = image.shape[-2:]
    share, aspect, at_row, at_column = torch.rand(4).tolist()
    area = (least_share + (1 - least_share) * share) * height * width
    ratio = math.exp((2 * aspect - 1) * math.log(4 / 3))
    rows = min(height, max(1, round(math.sqrt(area / ratio))))
    columns = min(width, max(1, round(math.sqrt(area * ratio))))
    top = int(at_row * (height - rows + 1))
    left = int(at_column * (width - columns + 1))
    return resize_image(image[:, top : top + rows, left : left + columns], size)


def _layout(split: str) -> str:
    return f"{split}/CLASS/NAME or {split}/CLASS/images/NAME, as files or in {split}*.zip."


def _found(root: Path, split: str) -> Iterator[tuple[Path, str | None, str]]:
    """The images of a split in a fixed order: file, or archive and member; and the class."""
    unpacked: set[Path] = set()
    for path in sorted((root / split).rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(root)
            unpacked.add(name)
            yield path, None, _class_of(name, root)
    for path in sorted(root.glob(f"{split}*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(archive.namelist())
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is no zip file, or a damaged one: {error}") from error
        for member in names:
            name = Path(member)
            if name.suffix.lower() in IMAGE_SUFFIXES and name.parts[0] == split and name not in unpacked:
                yield path, member, _class_of(name, path)


def _class_of(name: Path, place: Path) -> str:
    """The class of an image, whose ``name`` begins with the split."""
    split, *folders, _ = name.parts
    # Tiny ImageNet's val/images/ holds all classes: to take it for one would be wrong in silence.
    if folders[1:] not in ([], ["images"]) or folders[:1] in ([], ["images"]):
        raise DataError(f"{place} has {name}, which says no class; expected {_layout(split)}")
    return folders[0]


@lru_cache(maxsize=32)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """An open archive for each process: a file's position is shared with a forked worker otherwise."""
    return zipfile.ZipFile(path)
