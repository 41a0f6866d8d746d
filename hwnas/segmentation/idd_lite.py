"""IDD-lite: Indian street scenes in seven coarse classes."""

from __future__ import annotations

from pathlib import Path

from hwnas.segmentation.dataset import Colour
from hwnas.segmentation.files import Pair, PairedFiles, require_folder, require_pairs
from hwnas.segmentation.transforms import VOID, JointAugmentation


class IddLite(PairedFiles):
    """Indian street scenes, 7 classes, 320×227 (Varma et al., 2019).

    Layout: ``leftImg8bit/SPLIT/SEQUENCE/*_image.jpg`` and ``gtFine/SPLIT/SEQUENCE/*_label.png`` (class
    number, 255 = void). The images are not all of one height: give a ``size`` to batch them.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``"train"``, ``"val"``, or several joined by ``"+"``.
        size: see :class:`SegmentationDataset`; ``augment`` and ``cache`` likewise.
        augment: see there.
        cache: see there.

    Raises:
        DataError: if the folders or labels are not there, or the split is empty.
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

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        size: tuple[int, int] | None = None,
        augment: bool | JointAugmentation = False,
        cache: bool = False,
    ) -> None:
        root = Path(root)
        pairs: list[Pair] = []
        for part in split.split("+"):
            images = require_folder(root / "leftImg8bit" / part, what=f"the images of split {part!r}")
            labels = require_folder(root / "gtFine" / part, what=f"the labels of split {part!r}")
            for image in sorted(images.glob("*/*_image.jpg")):
                stem, sequence = image.stem.removesuffix("_image"), image.parent.name
                pairs.append(Pair(f"{sequence}_{stem}", image, labels / sequence / f"{stem}_label.png"))
        values = {number: number for number in range(len(self.classes))} | {VOID: VOID}
        super().__init__(
            require_pairs(pairs, where=root / "leftImg8bit", split=split),
            values,
            size=size,
            augment=augment,
            cache=cache,
        )
