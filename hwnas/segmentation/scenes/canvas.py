"""The camera, the light and the picture while it is painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

ROAD, PAVEMENT, BUILDING, SKY, VEGETATION, POLE, CAR, PERSON = range(8)

FAR = 90.0
"""Depth, m, at which the street ends in a backdrop."""


@dataclass
class Street:
    """The camera, the ground and the light of one scene."""

    height: int
    width: int
    f: float
    camera: float
    """Height of the camera above the road."""
    horizon: float
    """Row of the horizon, in pixels from the top."""
    vanishing: float
    """Column at which the street vanishes."""
    road: tuple[float, float]
    """Left and right edge of the road, metres from the camera's line (left is negative)."""
    wall: tuple[float, float]
    """Left and right line of the facades."""
    crossing: tuple[float, float]
    """Depths between which another street crosses."""
    sky: Floats
    haze: float
    """Depth at which 63 % of a thing's colour is lost."""
    sunny_side: int
    """-1: the sun stands on the left and the left wall throws a shadow; 1: on the right; 0: overcast."""
    shadow: float
    """Brightness in the shade, relative."""

    @classmethod
    def random(cls, rng: np.random.Generator, height: int, width: int) -> Street:
        """Draw a street."""
        left, right = -rng.uniform(2.0, 6.5), rng.uniform(2.0, 6.5)
        kerbs = rng.uniform(1.2, 4.5, 2)
        crossing = rng.uniform(12, 60)
        blueness = rng.uniform(0, 1)
        bright = rng.uniform(0.55, 1.0)
        sky = bright * (
            blueness * np.array([0.45, 0.65, 0.95]) + (1 - blueness) * np.array([0.85, 0.86, 0.88])
        )
        sunny_side = int(rng.choice([-1, 1, 0]))
        return cls(
            height=height,
            width=width,
            f=float(max(height, 0.6 * width) * rng.uniform(1.0, 1.5)),
            camera=rng.uniform(1.2, 1.9),
            horizon=height * rng.uniform(0.36, 0.52),
            vanishing=width * rng.uniform(0.35, 0.65),
            road=(left, right),
            wall=(float(left - kerbs[0]), float(right + kerbs[1])),
            crossing=(crossing, crossing + rng.uniform(6, 12)) if rng.random() < 0.5 else (FAR, FAR),
            sky=sky.astype(np.float32),
            haze=float(rng.choice([60, 120, 400])),
            sunny_side=sunny_side,
            shadow=rng.uniform(0.4, 0.75) if sunny_side else 1.0,
        )

    def column(self, x: float, z: float) -> float:
        """Image column of a point ``x`` metres to the right at depth ``z``."""
        return self.vanishing + self.f * x / z

    def row(self, y: float, z: float) -> float:
        """Image row of a point ``y`` metres above the road at depth ``z``."""
        return self.horizon + self.f * (self.camera - y) / z


@dataclass
class Canvas:
    """The picture while it is painted: image float32 ``[3, H, W]`` in 0…1, label uint8 ``[H, W]``."""

    street: Street
    image: Floats
    label: Pixels

    def box(self, x: float, z: float, width: float, height: float) -> Box | None:
        """The pixels of an upright ``width`` × ``height`` rectangle on the ground; None if unseen."""
        street = self.street
        left, right = street.column(x - width / 2, z), street.column(x + width / 2, z)
        top, bottom = street.row(height, z), street.row(0, z)
        if right - left < 1:  # a thing never gets thinner than one pixel
            middle = (left + right) / 2
            left, right = middle - 0.5, middle + 0.5
        first, last = max(0, round(left)), min(street.width, max(round(right), round(left) + 1))
        upper, lower = max(0, round(top)), min(street.height, round(bottom))
        if last <= first or lower <= upper:
            return None
        u = (np.arange(first, last, dtype=np.float32) + 0.5 - left) / (right - left) * 2 - 1
        v = (bottom - np.arange(upper, lower, dtype=np.float32) - 0.5) / max(bottom - top, 1e-3)
        return Box((slice(upper, lower), slice(first, last)), u[None, :], v[:, None], right - left)

    def paint(self, box: Box, mask: NDArray[np.bool_], colour: Floats, z: float, number: int | None) -> None:
        """Fill the mask with a colour, seen through the haze, and label it unless ``number`` is None."""
        clear = float(np.exp(-z / self.street.haze))
        if colour.ndim == 1:
            colour = colour[:, None, None]
        seen = colour * np.float32(clear) + (self.street.sky * np.float32(1 - clear))[:, None, None]
        np.copyto(self.image[:, *box.window], seen, where=mask, casting="same_kind")
        if number is not None:
            self.label[box.window][mask] = number

    def shade(self, x: float, z: float, width: float, depth: float, strength: float) -> None:
        """Darken an ellipse on the ground."""
        street = self.street
        near, far = max(z - depth / 2, 0.5), z + depth / 2
        left, right = street.column(x - width / 2, z), street.column(x + width / 2, z)
        top, bottom = street.row(0, far), street.row(0, near)
        first, last = max(0, int(left)), min(street.width, int(right) + 1)
        upper, lower = max(0, int(top)), min(street.height, int(bottom) + 1)
        if last <= first or lower <= upper:
            return
        u = (np.arange(first, last, dtype=np.float32) - (left + right) / 2) / max(right - left, 1) * 2
        v = (np.arange(upper, lower, dtype=np.float32) - (top + bottom) / 2) / max(bottom - top, 1) * 2
        dark = np.clip(1.2 - u[None, :] ** 2 - v[:, None] ** 2, 0, 1) * strength
        self.image[:, upper:lower, first:last] *= (1 - dark).astype(np.float32)


@dataclass
class Box:
    """A window of the picture with its own coordinates."""

    window: tuple[slice, slice]
    u: Floats
    """``[1, w]``, -1…1 from left to right."""
    v: Floats
    """``[h, 1]``, 0…1 from the foot to the top."""
    pixels: float
    """How many pixels the thing is wide."""
