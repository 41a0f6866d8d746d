"""IDD-lite: Indian street scenes in seven coarse classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwnas.segmentation.dataset import Colour
from hwnas.segmentation.files import Pair, SplitFolder, require_folder


class IddLite(SplitFolder):
    """Indian street scenes, 7 classes, 320×227 (Varma et al., 2019).

    Layout: ``leftImg8bit/SPLIT/SEQUENCE/*_image.jpg`` and ``gtFine/SPLIT/SEQUENCE/*_label.png`` (class
    number, 255 = void). The images are not all of one height: give a ``size`` to batch them.

    For the arguments see :class:`SplitFolder`; ``root`` holds ``leftImg8bit`` and ``gtFine``.
    """

    classes: tuple[str, ...] = (
        "drivable",
        "non-drivable",
        "living-things",
        "vehicles",
        "road-side-objects",
        "far-objects",
        "sky",
    )
    palette: tuple[Colour, ...] = (
        (128, 64, 128),
        (244, 35, 232),
        (220, 20, 60),
        (0, 0, 142),
        (190, 153, 153),
        (70, 70, 70),
        (70, 130, 180),
    )

    def find(self, root: Path, splits: Sequence[str]) -> tuple[list[Pair], dict[int, int]]:
        """See :meth:`SplitFolder.find`."""
        pairs: list[Pair] = []
        for part in splits:
            images = require_folder(root / "leftImg8bit" / part, what=f"the images of split {part!r}")
            labels = require_folder(root / "gtFine" / part, what=f"the labels of split {part!r}")
            for image in sorted(images.glob("*/*_image.jpg")):
                stem, sequence = image.stem.removesuffix("_image"), image.parent.name
                pairs.append(Pair(f"{sequence}_{stem}", image, labels / sequence / f"{stem}_label.png"))
        return pairs, self.class_values()
