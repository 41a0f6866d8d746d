"""Street scenes that are drawn, not stored: the data set that needs nothing on disk."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from hwnas.errors import InvalidInput
from hwnas.segmentation.dataset import Colour, Pixels, SegmentationDataset
from hwnas.segmentation.scenes import draw_scene
from hwnas.segmentation.transforms import JointAugmentation


class SyntheticScenes(SegmentationDataset):
    """Random streets in perspective, 8 classes and void, drawn by
    :func:`~hwnas.segmentation.scenes.draw_scene`.

    Image ``i`` of a split is the same whenever and wherever it is drawn: it depends on ``seed``, ``split``,
    ``i`` and ``size`` alone. Splits are different streets. Numbers obtained here say whether something
    learns; they say nothing about real streets.

    Args:
        split: any name; the usual are ``"train"`` and ``"val"``.
        size: height and width at which the scenes are drawn, at least 16 each.
        length: how many scenes; by default 400 for ``"train"`` and 100 for any other split.
        seed: another seed is another data set.
        augment: see :class:`SegmentationDataset`.
        cache: see there.
    """

    classes: tuple[str, ...] = (
        "road",
        "pavement",
        "building",
        "sky",
        "vegetation",
        "pole",
        "car",
        "person",
    )
    palette: tuple[Colour, ...] = (
        (128, 64, 128),
        (244, 35, 232),
        (90, 90, 90),
        (70, 130, 180),
        (107, 142, 35),
        (230, 200, 80),
        (0, 0, 142),
        (220, 20, 60),
    )

    def __init__(
        self,
        split: str = "train",
        *,
        size: tuple[int, int] = (128, 256),
        length: int | None = None,
        seed: int = 0,
        augment: bool | JointAugmentation = False,
        cache: bool = False,
    ) -> None:
        if len(size) != 2 or min(size) < 16:
            raise InvalidInput(f"a scene is at least 16 pixels high and wide; got size={size}")
        if split not in ("train", "val", "test"):
            raise InvalidInput(f'drawn scenes have the splits train, val and test; got "{split}"')
        if length is not None and (not isinstance(length, int) or length < 1):
            raise InvalidInput(f"length must be at least 1; got {length!r}")
        if seed < 0:
            raise InvalidInput(f"seed must not be negative; got {seed}")
        self.split = split
        self.seed = seed
        self.length = length if length is not None else (400 if split == "train" else 100)
        self._drawn_size = (int(size[0]), int(size[1]))
        super().__init__(size=size, augment=augment, cache=cache)

    def __len__(self) -> int:
        return self.length

    def name(self, index: int) -> str:
        """Split and number."""
        return f"{self.split}_{index:05d}"

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """Draw one scene; see :meth:`SegmentationDataset.read`."""
        rng = np.random.default_rng([self.seed, crc32(self.split.encode()), index])
        return draw_scene(rng, *self._drawn_size)
