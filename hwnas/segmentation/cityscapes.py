"""Cityscapes, or anything in its layout, in the 19 classes that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hwnas.segmentation.dataset import Colour
from hwnas.segmentation.files import Pair, SplitFolder, require_folder
from hwnas.segmentation.labels import VOID

_SCORED: tuple[tuple[int, str, Colour], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
"""Label id, name and colour of each scored class, in the order of the train ids (Cordts et al., 2016)."""

_LABEL_IDS = range(34)


class Cityscapes(SplitFolder):
    """Street scenes of 50 cities, 19 classes, 2048×1024 (Cordts et al., 2016).

    Layout: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and, under ``gtFine`` likewise,
    ``*_gtFine_labelTrainIds.png`` where there are such files, else ``*_gtFine_labelIds.png``, whose ids are
    mapped to the 19 train ids and void. All labels of a split must be of one kind.

    For the arguments see :class:`SplitFolder`; ``root`` holds ``leftImg8bit`` and ``gtFine``.
    """

    classes: tuple[str, ...] = tuple(name for _, name, _ in _SCORED)
    palette: tuple[Colour, ...] = tuple(colour for _, _, colour in _SCORED)

    def find(self, root: Path, splits: Sequence[str]) -> tuple[list[Pair], dict[int, int]]:
        """See :meth:`SplitFolder.find`."""
        images: list[Path] = []
        for part in splits:
            folder = require_folder(root / "leftImg8bit" / part, what=f"the images of split {part!r}")
            require_folder(root / "gtFine" / part, what=f"the labels of split {part!r}")
            images += sorted(folder.glob("*/*_leftImg8bit.png"))
        has_train_ids = any(_label_of(root, image, "labelTrainIds").is_file() for image in images)
        kind = "labelTrainIds" if has_train_ids else "labelIds"
        pairs = [
            Pair(image.stem.removesuffix("_leftImg8bit"), image, _label_of(root, image, kind))
            for image in images
        ]
        if has_train_ids:
            return pairs, self.class_values()
        # 255 is how the licence plate's id, -1, looks in eight bits.
        values = dict.fromkeys((*_LABEL_IDS, VOID), VOID)
        return pairs, values | {label_id: number for number, (label_id, _, _) in enumerate(_SCORED)}


def _label_of(root: Path, image: Path, kind: str) -> Path:
    split, city = image.parts[-3:-1]
    stem = image.stem.removesuffix("_leftImg8bit")
    return root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png"
