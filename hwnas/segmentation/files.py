"""Data sets that lie on disk as image files, each with a label file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwnas.errors import DataError
from hwnas.segmentation.dataset import Pixels, SegmentationDataset
from hwnas.segmentation.labels import VOID
from hwnas.segmentation.transforms import JointAugmentation

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")


class Pair(NamedTuple):
    """An image file and the label file that belongs to it."""

    name: str
    image: Path
    label: Path


class PairedFiles(SegmentationDataset):
    """A data set given as a list of file pairs and a table from label values to class numbers.

    Label files are 8-bit, one channel or palette PNG. A label value that ``values`` does not name is an error
    when the file is read, not a silent void.

    Args:
        pairs: the files.
        values: what each value in a label file means: a class number, or 255 for void.
        size: see :class:`SegmentationDataset`; ``augment`` and ``cache`` likewise.
        augment: see there.
        cache: see there.

    Raises:
        DataError: if there are no pairs, or a label file is missing; on reading, if an image cannot be read,
            if the two sizes differ, or if a label holds a value outside ``values``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        values: Mapping[int, int],
        *,
        size: tuple[int, int] | None = None,
        augment: bool | JointAugmentation = False,
        cache: bool = False,
    ) -> None:
        missing = [pair for pair in pairs if not pair.label.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(pairs)} images have no label file; the first is {missing[0].image}, "
                f"whose label should be {missing[0].label}"
            )
        self.pairs = tuple(pairs)
        self._class_of_value = np.full(256, VOID, np.uint8)
        self._is_known = np.zeros(256, bool)
        for value, number in values.items():
            self._class_of_value[value] = number
            self._is_known[value] = True
        super().__init__(size=size, augment=augment, cache=cache)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """The file name without its suffix."""
        return self.pairs[index].name

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """Decode one pair; see :meth:`SegmentationDataset.read`.

        Raises:
            DataError: an image cannot be read, the sizes differ, or a label holds an unknown value.
        """
        pair = self.pairs[index]
        image = _decode(pair.image, convert="RGB")
        label = _decode(pair.label)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise DataError(
                f"{pair.label} should be an 8-bit image with one channel (or a palette); "
                f"it is {label.dtype} with shape {label.shape}"
            )
        if image.shape[:2] != label.shape:
            raise DataError(
                f"{pair.image} is {image.shape[1]}x{image.shape[0]} (width x height) but its label "
                f"{pair.label} is {label.shape[1]}x{label.shape[0]}; they must be of one size"
            )
        is_known = self._is_known[label]
        if not is_known.all():
            strange = sorted(int(value) for value in np.unique(label[~is_known]))
            known = ", ".join(_spans(np.flatnonzero(self._is_known)))
            raise DataError(f"{pair.label} holds the label values {strange}; known here are {known}")
        return image, self._class_of_value[label]


class SplitFolder(PairedFiles, ABC):
    """A data set that lies in one folder, in splits; a subclass says where images and labels are in it.

    Args:
        root: the data set's folder.
        split: one of its parts, or several joined by ``"+"``.
        size: see :class:`SegmentationDataset`; ``augment`` and ``cache`` likewise.
        augment: see there.
        cache: see there.

    Raises:
        DataError: if the folders or labels are not there, or the split is empty.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        size: tuple[int, int] | None = None,
        augment: bool | JointAugmentation = False,
        cache: bool = False,
    ) -> None:
        pairs, values = self.find(Path(root), split.split("+"))
        super().__init__(
            require_pairs(pairs, where=Path(root), split=split),
            values,
            size=size,
            augment=augment,
            cache=cache,
        )

    @abstractmethod
    def find(self, root: Path, splits: Sequence[str]) -> tuple[list[Pair], dict[int, int]]:
        """The pairs of some splits, in order, and what the values in their label files mean.

        Raises:
            DataError: if the folders are not there.
        """

    def class_values(self) -> dict[int, int]:
        """Label files that hold class numbers, and 255 for void."""
        return {number: number for number in range(len(self.classes))} | {VOID: VOID}


def require_folder(folder: Path, *, what: str) -> Path:
    """``folder``, if it is one.

    Raises:
        DataError: if it is not; the message names the nearest folder above that exists, and what lies there.
    """
    if folder.is_dir():
        return folder
    above = next((parent for parent in folder.absolute().parents if parent.is_dir()), Path("/"))
    inside = sorted(entry.name for entry in above.iterdir() if entry.is_dir())[:12]
    raise DataError(f"no folder {folder} ({what}); {above} holds {', '.join(inside) or 'no folders'}")


def require_pairs(pairs: Sequence[Pair], *, where: Path, split: str) -> Sequence[Pair]:
    """``pairs``, if there are any; else a DataError that names the split and the place."""
    if not pairs:
        raise DataError(f"the split {split!r} is empty: no images found under {where}")
    return pairs


def image_files(folder: Path) -> list[Path]:
    """The image files directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _decode(path: Path, *, convert: str | None = None) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.array(image.convert(convert) if convert else image)
    except FileNotFoundError:
        raise DataError(f"no image file {path}") from None
    # Pillow raises SyntaxError for some damaged files.
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _spans(values: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[str]:
    """``[0, 1, 2, 255]`` as ``["0-2", "255"]``."""
    spans: list[list[int]] = []
    for value in (int(value) for value in values):
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return [str(low) if low == high else f"{low}-{high}" for low, high in spans]
