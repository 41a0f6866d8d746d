"""Augmentation of an image together with its label map.

The geometry is ours and the colour is kornia's; the measurements behind this are in
``docs/decisions/0004-augmentation.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.segmentation.labels import VOID

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class JointAugmentation:
    """Random scale, crop, flip and colour, drawn from torch's global random state.

    Applied to ``image`` uint8 ``[3, H, W]`` and ``label`` uint8 ``[H, W]``; gives ``image`` float32
    ``[3, h, w]`` in 0…1 (not yet normalised) and ``label`` uint8 ``[h, w]``, where ``(h, w)`` is ``crop``.
    It computes on the device that they lie on; what is drawn depends on the CPU's random state alone.
    A crop larger than the scaled image is filled with the mean colour (zero once normalised) and with void.
    """

    crop: tuple[int, int] | None = None
    """Height and width of what comes out; ``None`` keeps those of what goes in."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Least and largest magnification, drawn uniformly."""
    flip: float = 0.5
    """Probability of a mirror image."""
    rare: tuple[int, ...] = ()
    """Class numbers that are seldom seen."""
    rare_share: float = 0.0
    """Share of crops that are put over a pixel of one of them, drawn from those that the image has."""
    brightness: float = 0.3
    """Largest relative change; 0 leaves brightness alone. Likewise for contrast and saturation."""
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.0
    """Largest turn of the colour circle, in 0…0.5. Ten times as costly as the other three together."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Colour of the padding, in 0…1."""

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise InvalidInput(f"scale must be (least, largest) with 0 < least <= largest; got {self.scale}")
        if not 0 <= self.flip <= 1:
            raise InvalidInput(f"flip is a probability in 0…1; got {self.flip}")
        if not 0 <= self.rare_share <= 1:
            raise InvalidInput(f"rare_share is a probability in 0…1; got {self.rare_share}")
        if self.rare_share and not self.rare:
            raise InvalidInput(f"rare_share is {self.rare_share:g}, and rare names no class to show")
        if self.crop is not None and min(self.crop) < 1:
            raise InvalidInput(f"crop is a (height, width) of at least one pixel; got {self.crop}")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidInput(f"{name} must lie in 0…{most:g}; got {getattr(self, name)}")

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Draw one augmentation and apply it to both."""
        pixels, target, _ = self.viewed(image, label)
        return pixels, target

    def viewed(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor, View]:
        """Draw one augmentation and apply it to both; and what it shows, for other maps of the image.

        Args:
            image: uint8 ``[3, H, W]``.
            label: uint8 ``[H, W]``.

        Returns:
            Colours in 0…1, float32 ``[3, h, w]``; class numbers, uint8 ``[h, w]``; the view.
        """
        height, width = label.shape
        crop_height, crop_width = self.crop or (height, width)
        low, high = self.scale
        magnification = low + (high - low) * float(torch.rand(()))
        # Only the window that the crop will show is resized: the cost does not grow with the magnification.
        row, column = self._over(label)
        rows = _placed(height, crop_height, magnification, row)
        columns = _placed(width, crop_width, magnification, column)
        patch = resize_image(image[:, rows.source, columns.source], (rows.length, columns.length))
        labels = resize_label(label[rows.source, columns.source], (rows.length, columns.length))
        view = View(rows, columns, is_mirrored=float(torch.rand(())) < self.flip)
        pixels = self._recoloured(patch.float() / 255)

        canvas = channels(self.mean, image.device).repeat(1, crop_height, crop_width)
        target = torch.full((crop_height, crop_width), VOID, dtype=torch.uint8, device=label.device)
        canvas[:, rows.target, columns.target] = pixels
        target[rows.target, columns.target] = labels
        if view.is_mirrored:
            canvas, target = canvas.flip(-1), target.flip(-1)
        return canvas, target, view

    def _over(self, label: Tensor) -> tuple[int | None, int | None]:
        """Row and column of the pixel that the crop must show, if there is to be one."""
        if not self.rare_share or float(torch.rand(())) >= self.rare_share:
            return None, None
        here = [number for number in self.rare if bool((label == number).any())]
        if not here:
            return None, None
        number = here[int(torch.randint(len(here), ()))]
        places = (label == number).nonzero()
        row, column = places[int(torch.randint(len(places), ()))].tolist()
        return row, column

    def _recoloured(self, pixels: Tensor) -> Tensor:
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        if not any(strengths):
            return pixels
        recoloured: Tensor = _colour_jitter(*strengths)(pixels[None])[0]
        return recoloured


@dataclass(frozen=True)
class Placement:
    """Along one axis: which pixels of the source are shown, and where in the crop they go.

    Attributes:
        source: pixels of the source.
        target: pixels of the crop.
        extent: how many the source has.
        crop: how many the crop has.
    """

    source: slice
    target: slice
    extent: int
    crop: int

    @property
    def length(self) -> int:
        """How many pixels of the crop show something."""
        return int(self.target.stop - self.target.start)

    def seen_from(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where in the source the centres of ``count`` equal parts of the crop lie; and whether they do.

        Args:
            count: of parts, along the axis.
            device: where to compute.

        Returns:
            Places as grid_sample has them, -1 and 1 the source's ends; and a bool each, false in the
            padding.
        """
        centres = (torch.arange(count, device=device) + 0.5) * self.crop / count
        shown = (centres - self.target.start) / self.length
        places = self.source.start + shown * (self.source.stop - self.source.start)
        return 2 * places / self.extent - 1, (shown >= 0) & (shown < 1)


@dataclass(frozen=True)
class View:
    """What an augmented image shows of its source.

    Attributes:
        rows: along the height.
        columns: along the width.
        is_mirrored: left for right.
    """

    rows: Placement
    columns: Placement
    is_mirrored: bool

    @classmethod
    def of_all(cls, height: int, width: int) -> Self:
        """All of an image, as it is."""
        rows, columns = (Placement(slice(0, n), slice(0, n), n, n) for n in (height, width))
        return cls(rows, columns, is_mirrored=False)

    def of(self, maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The same view of other maps of the image, between whose values it interpolates (bilinearly).

        Args:
            maps: ``[C, h, w]``, float, of any resolution; they cover the whole image.
            size: rows and columns of the result, which covers the whole crop.

        Returns:
            ``[C, *size]``, and a bool map ``size`` that is false where the crop is padding. Both are of the
            centre of each part of the crop: no mean over it is taken, and a part that is padding at one edge
            counts as shown if its centre is.
        """
        rows, row_is_shown = self.rows.seen_from(size[0], maps.device)
        columns, column_is_shown = self.columns.seen_from(size[1], maps.device)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None].to(maps.dtype)
        seen = functional.grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0]
        is_shown = row_is_shown[:, None] & column_is_shown
        return (seen.flip(-1), is_shown.flip(-1)) if self.is_mirrored else (seen, is_shown)


def _placed(extent: int, crop: int, magnification: float, over: int | None = None) -> Placement:
    """Put a crop at a random place over (or, where it is larger, around) a magnified axis.

    Where there is a place that it must show, ``over``, it is drawn from those crops that do.
    """
    window = max(1, round(crop / magnification))
    slack = extent - window
    low, high = min(0, slack), max(0, slack)
    if over is not None and slack > 0:
        low, high = max(0, over - window + 1), min(slack, over)
    start = low + int(torch.randint(high - low + 1, ()))
    first, last = max(0, start), min(extent, start + window)
    begin = round((first - start) * crop / window)
    end = max(begin + 1, round((last - start) * crop / window))
    if end > crop:  # one source pixel, less than half a crop pixel wide, at the far edge
        begin, end = crop - 1, crop
    return Placement(slice(first, last), slice(begin, end), extent, crop)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image ``[3, H, W]`` at another ``(height, width)``: bilinear, averaging when it shrinks."""
    if tuple(image.shape[-2:]) == size:
        return image
    # torch has a kernel for bytes on CPUs only, and it fails an internal assertion where the result is one
    # pixel (seen in 2.13). It is three times as fast, and rounds some values the other way.
    has_kernel = image.device.type == "cpu" and size != (1, 1)
    source = image if has_kernel else image.float()
    resized = functional.interpolate(source[None], size, mode="bilinear", align_corners=False, antialias=True)
    return resized[0] if has_kernel else resized[0].round().byte()


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 label map ``[H, W]`` at another ``(height, width)``: the value at the nearest pixel centre."""
    if tuple(label.shape) == size:
        return label
    # "nearest" takes the corner pixel and so shifts labels against a bilinear image; this does not.
    return functional.interpolate(label[None, None], size, mode="nearest-exact")[0, 0]


@lru_cache(maxsize=32)
def channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """A number for each channel, ``[3, 1, 1]``, not to be changed; kept: copying to a GPU waits."""
    # Kept beyond the evaluation in which it may be made first.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run a block with torch's CPU random state set from ``seed``, if not None, and restored afterwards."""
    if seed is None:
        yield
        return
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@lru_cache(maxsize=8)
def _colour_jitter(brightness: float, contrast: float, saturation: float, hue: float) -> Any:
    from kornia.augmentation import ColorJitter  # 0.2 s to import

    return ColorJitter(brightness, contrast, saturation, hue, p=1.0)
