"""CamVid in SegNet's split and its 11 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwnas.errors import DataError, InvalidInput
from hwnas.segmentation.dataset import Colour
from hwnas.segmentation.files import Pair, SplitFolder, image_files, require_folder
from hwnas.segmentation.transforms import JointAugmentation


class CamVid(SplitFolder):
    """Street scenes from a driving car, 11 classes, 480×360 in SegNet's version (Brostow et al., 2009).

    Layout: ``images/SPLIT/NAME.jpg``, ``labels/SPLIT/NAME.png`` (class number, 255 = void) and, where
    there is one, ``SPLIT.txt`` with a name a line. Names begin with the sequence they were filmed in
    (``0006R0_f00930``): neighbouring frames are near-duplicates, so hold out whole sequences when you
    choose a recipe.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        split: ``"train"``, ``"val"``, ``"test"``, or several joined by ``"+"``.
        sequences: keep only names that begin with one of these, for example ``("0006R0",)``.
        exclude_sequences: drop names that begin with one of these.
        size: see :class:`SegmentationDataset`; ``augment`` and ``cache`` likewise.
        augment: see there.
        cache: see there.

    Raises:
        DataError: if the folders or labels are not there, or nothing is left of the split.
    """

    classes: tuple[str, ...] = (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign_symbol",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    )
    palette: tuple[Colour, ...] = (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    )

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        sequences: Sequence[str] | None = None,
        exclude_sequences: Sequence[str] = (),
        size: tuple[int, int] | None = None,
        augment: bool | JointAugmentation = False,
        cache: bool = False,
    ) -> None:
        for name, value in (("sequences", sequences), ("exclude_sequences", exclude_sequences)):
            if isinstance(value, str):
                raise InvalidInput(
                    f"{name} is a tuple of prefixes, such as ({value!r},); got the text {value!r}"
                )
        self._sequences = None if sequences is None else tuple(sequences)
        self._exclude_sequences = tuple(exclude_sequences)
        super().__init__(root, split, size=size, augment=augment, cache=cache)

    def find(self, root: Path, splits: Sequence[str]) -> tuple[list[Pair], dict[int, int]]:
        """See :meth:`SplitFolder.find`.

        Raises:
            DataError: the folders are not there, or no sequence is left.
        """
        wanted, excluded = self._sequences, self._exclude_sequences
        found = [pair for part in splits for pair in _pairs(root, part)]
        kept = [
            pair
            for pair in found
            if (wanted is None or pair.name.startswith(wanted)) and not pair.name.startswith(excluded)
        ]
        if found and not kept:
            raise DataError(
                f"none of the {len(found)} images of split {'+'.join(splits)!r} is left by "
                f"sequences={wanted} and exclude_sequences={excluded}; "
                f"its sequences are {', '.join(sorted({pair.name.split('_')[0] for pair in found}))}"
            )
        return kept, self.class_values()


def _pairs(root: Path, split: str) -> list[Pair]:
    images = require_folder(root / "images" / split, what=f"the images of CamVid's split {split!r}")
    labels = require_folder(root / "labels" / split, what=f"the labels of CamVid's split {split!r}")
    listing = root / f"{split}.txt"
    files = {path.stem: path for path in image_files(images)}
    names = listing.read_text().split() if listing.is_file() else sorted(files)
    missing = [name for name in names if name not in files]
    if missing:
        raise DataError(
            f"{listing} names {len(missing)} images that are not in {images}; the first is {missing[0]}"
        )
    return [Pair(name, files[name], labels / f"{name}.png") for name in names]
