"""Draws one street scene and its label map with numpy: the pictures of the synthetic data set.

A camera looks along a street. Every image column meets a facade (or a hedge, or the corner of the next house
behind a gap) at one depth, every row below the horizon meets the ground at one depth; what a pixel shows follows
from comparing the two. Cars, people, poles and trees are then painted from far to near. Lengths are in metres,
``f`` is the focal length in pixels, and a thing of size s at depth z spans ``f * s / z`` pixels.

Colours are drawn so that none of them gives a class away: walls and cars may be sky-blue, coats road-grey and
hedges brown, and light, haze, shadow and noise move all of them. Shape and place are what tell the classes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

ROAD, PAVEMENT, BUILDING, SKY, VEGETATION, POLE, CAR, PERSON = range(8)
VOID = 255

_FAR = 90.0
"""Depth, m, at which the street ends in a backdrop."""


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[Pixels, Pixels]:
    """A random scene: image uint8 ``[height, width, 3]`` and label uint8 ``[height, width]``."""
    street = Street.random(rng, height, width)
    canvas = _draw_street(rng, street)
    for z, draw in _things(rng, street):
        draw(canvas, z)
    _draw_bonnet(rng, canvas)
    return _develop(rng, canvas.image), canvas.label


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
            wall=(left - kerbs[0], right + kerbs[1]),
            crossing=(crossing, crossing + rng.uniform(6, 12)) if rng.random() < 0.5 else (_FAR, _FAR),
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
    """The picture while it is painted: image float32 ``[H, W, 3]`` in 0…1, label uint8 ``[H, W]``."""

    street: Street
    image: Floats
    label: Pixels

    def box(self, x: float, z: float, width: float, height: float) -> Box | None:
        """The pixels of an upright ``width`` × ``height`` rectangle that stands on the ground; None if unseen."""
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
        seen = colour * clear + self.street.sky * (1 - clear)
        np.copyto(self.image[box.window], seen.astype(np.float32), where=mask[..., None])
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
        self.image[upper:lower, first:last] *= (1 - dark)[..., None]


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


def _draw_street(rng: np.random.Generator, street: Street) -> Canvas:
    """Ground, facades and sky."""
    rows = np.arange(street.height, dtype=np.float32) + 0.5
    columns = np.arange(street.width, dtype=np.float32) + 0.5
    offset = columns - street.vanishing
    facade = _facades_by_column(rng, street, offset)
    ground_z = street.f * street.camera / np.maximum(rows - street.horizon, 0.3)
    ground_x = (offset[None, :] / street.f) * ground_z[:, None]
    base = street.row(0, 1) - street.horizon  # f * camera: its quotient by the depth is the foot's row
    is_ground = rows[:, None] >= street.horizon + base / facade.depth[None, :]
    top = street.horizon + street.f * (street.camera - facade.height) / facade.depth
    is_sky = rows[:, None] < top[None, :]

    ground_label, ground_colour, ground_roughness = _ground(rng, street, ground_x, ground_z)
    label = np.where(is_ground, ground_label, facade.label[None, :])
    label[is_sky] = SKY

    y = street.camera + (street.horizon - rows)[:, None] * (facade.depth / street.f)[None, :]
    image = _walls(rng, facade, y)
    np.copyto(image, ground_colour, where=is_ground[..., None])

    # One look-up in a tile of noise serves ground and walls: in their own metres, so that it shrinks with depth.
    grain = rng.uniform(4, 12)
    noise = _noise_tile()
    across = np.where(is_ground, ground_x, facade.along[None, :]) * grain
    upward = np.where(is_ground, ground_z[:, None], y) * grain
    texture = noise[upward.astype(np.int32) & 255, across.astype(np.int32) & 255]
    roughness = np.where(is_ground, ground_roughness, facade.roughness[None, :])
    tone = 1 + texture * roughness
    image *= tone[..., None]
    _apply_sunshine(rng, street, facade, image, ground_x, ground_z, is_ground)

    depth = np.where(is_ground, ground_z[:, None], facade.depth[None, :])
    clear = np.exp(depth * np.float32(-1 / street.haze))[..., None]
    image *= clear
    image += street.sky * (1 - clear)

    shift, stretch = rng.integers(0, 256, 2), 96 / street.height
    clouds = noise[
        np.ix_(
            (rows * 2 * stretch + shift[0]).astype(np.int32) & 255,
            (columns * stretch * rng.uniform(0.3, 1) + shift[1]).astype(np.int32) & 255,
        )
    ]
    glow = 0.15 * (rows / street.height)[:, None] + rng.uniform(0, 0.15) * clouds
    np.copyto(image, street.sky + glow[..., None], where=is_sky[..., None])
    return Canvas(street, image, label.astype(np.uint8))


@dataclass
class _FacadeColumns:
    """What stands at the end of each image column; every field is ``[W]`` or ``[W, 3]``."""

    depth: Floats
    along: Floats
    """Metres along the wall."""
    height: Floats
    label: Pixels
    colour: Floats
    lower_colour: Floats
    """Colour of the ground floor."""
    roughness: Floats
    bay: Floats
    """Metres from window to window, and from storey to storey."""
    storey: Floats
    is_front: NDArray[np.bool_]
    """Whether the wall faces the camera, at the end of a gap."""
    reach: tuple[Floats, Floats]
    """For each side, the far ends of its segments …"""
    tall: tuple[Floats, Floats]
    """… and their heights, 0 for gaps."""


def _facades_by_column(rng: np.random.Generator, street: Street, offset: Floats) -> _FacadeColumns:
    count = 24  # segments of 5 m at least: beyond _FAR on each side
    is_right = offset > 0
    line = np.where(is_right, street.wall[1], -street.wall[0])
    depth = np.minimum(street.f * line / np.maximum(np.abs(offset), 1e-3), _FAR)
    in_crossing = (depth > street.crossing[0]) & (depth < street.crossing[1])
    depth = np.where(in_crossing, street.crossing[1], depth)

    ends = np.cumsum(rng.uniform(5, 16, (2, count)), axis=1)
    leafiness = rng.uniform(0, 0.7)
    is_hedge = rng.random((2, count)) < leafiness
    is_gap = rng.random((2, count)) < 0.25
    is_gap[:, 1:] &= ~is_gap[:, :-1]
    is_gap[:, -1] = False
    heights = np.where(is_hedge, rng.uniform(1.5, 7, (2, count)), rng.uniform(4, 18, (2, count)))

    side = is_right.astype(np.intp)
    segment = np.where(is_right, np.searchsorted(ends[1], depth), np.searchsorted(ends[0], depth))
    segment = np.minimum(segment, count - 1)
    through = is_gap[side, segment] & (depth < _FAR)
    depth = np.where(through, ends[side, segment], depth)
    segment = np.minimum(segment + through, count - 1)
    is_front = in_crossing | through
    along = np.where(is_front, offset * depth / street.f, depth)

    hedge = is_hedge[side, segment]
    ragged = _noise_tile()[int(rng.integers(256)), (along * 9).astype(np.int32) & 255]
    height = heights[side, segment] * np.where(hedge, 1 + 0.25 * ragged, 1)
    palette = _building_colours(rng, 2 * count).reshape(2, count, 3)
    leaves = _leaf_colours(rng, 2 * count).reshape(2, count, 3)
    colours = np.where(is_hedge[..., None], leaves, palette)
    lower = np.where(
        (is_hedge | (rng.random((2, count)) < 0.5))[..., None],
        colours,
        palette[:, ::-1] * rng.uniform(0.5, 1),
    )
    return _FacadeColumns(
        depth=depth.astype(np.float32),
        along=along.astype(np.float32),
        height=height.astype(np.float32),
        label=np.where(hedge, VEGETATION, BUILDING).astype(np.uint8),
        colour=colours[side, segment].astype(np.float32),
        lower_colour=lower[side, segment].astype(np.float32),
        roughness=np.where(hedge, 0.35, 0.1).astype(np.float32),
        bay=rng.uniform(1.5, 4, (2, count))[side, segment].astype(np.float32),
        storey=rng.uniform(2.6, 4, (2, count))[side, segment].astype(np.float32),
        is_front=is_front,
        reach=(ends[0].astype(np.float32), ends[1].astype(np.float32)),
        tall=(
            np.where(is_gap[0], 0, heights[0]).astype(np.float32),
            np.where(is_gap[1], 0, heights[1]).astype(np.float32),
        ),
    )


def _walls(rng: np.random.Generator, facade: _FacadeColumns, y: Floats) -> Floats:
    """Colours of the facades, windows included, for pixels at height ``y``."""
    lower = np.float32(rng.uniform(2.6, 4))
    image = np.where((y < lower)[..., None], facade.lower_colour[None], facade.colour[None])
    is_building = facade.label == BUILDING
    across = (facade.along / facade.bay) % 1
    upward = ((y - lower) / facade.storey[None, :]) % 1
    narrow, low = rng.uniform(0.15, 0.35), rng.uniform(0.15, 0.4)
    is_window = (
        ((across > narrow) & (across < 1 - narrow) & is_building)[None, :]
        & (upward > low)
        & (upward < 0.85)
        & (y > 0.6)
        & (y < facade.height[None, :] - 0.5)
    )
    glass = np.float32(rng.uniform(0.08, 0.5)) * np.array([0.85, 1.0, 1.15], np.float32)
    np.copyto(image, glass, where=is_window[..., None])
    is_cornice = (y > facade.height[None, :] - 0.4) & is_building[None, :]
    np.copyto(image, image * np.float32(rng.uniform(0.6, 1.3)), where=is_cornice[..., None])
    return image


def _ground(
    rng: np.random.Generator, street: Street, x: Floats, z: Floats
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Label, colour and roughness of the ground at ``(x, z)``."""
    left, right = street.road
    in_crossing = (z > street.crossing[0]) & (z < street.crossing[1])
    is_road = ((x > left) & (x < right)) | in_crossing[:, None]
    verge = rng.uniform(0.3, 1.5) if rng.random() < 0.5 else -1.0
    is_grass = ~is_road & (
        ((x < street.wall[0] + verge) & (rng.random() < 0.5))
        | ((x > street.wall[1] - verge) & (rng.random() < 0.5))
    )
    label = np.where(is_road, ROAD, np.where(is_grass, VEGETATION, PAVEMENT))

    asphalt = rng.uniform(0.22, 0.5) * rng.uniform(0.93, 1.07, 3)
    paving = rng.uniform(0.25, 0.65) * rng.uniform(0.9, 1.1, 3)
    grass = _leaf_colours(rng, 1)[0]
    tones = np.zeros((8, 3), np.float32)
    tones[ROAD], tones[PAVEMENT], tones[VEGETATION] = asphalt, paving, grass
    colour = tones[label]

    is_near = (z < 14)[:, None]
    flag = rng.uniform(0.4, 1.0)
    is_joint = ((x % flag < 0.05) | (z[:, None] % flag < 0.06)) & is_near & (label == PAVEMENT)
    is_kerb = ((x < left) & (x > left - 0.18)) | ((x > right) & (x < right + 0.18))
    colour[is_joint] *= 0.8
    colour[is_kerb & (label == PAVEMENT)] *= np.float32(rng.uniform(0.7, 1.4))
    colour[_markings(rng, street, x, z) & is_road] = rng.uniform(0.55, 0.9)
    roughness = np.where(is_grass, 0.35, np.float32(rng.uniform(0.05, 0.15))).astype(np.float32)
    return label, colour, roughness


def _markings(rng: np.random.Generator, street: Street, x: Floats, z: Floats) -> NDArray[np.bool_]:
    """Where paint lies on the road: a dashed middle line, edge lines, a zebra before the crossing."""
    left, right = street.road
    middle = (left + right) / 2 + rng.uniform(-0.5, 0.5)
    is_dash = ((z + rng.uniform(0, 6)) % 6 < rng.choice([3.0, 6.0]))[:, None]
    marks = (np.abs(x - middle) < 0.08) & is_dash & (rng.random() < 0.7)
    if rng.random() < 0.4:
        marks |= (np.abs(x - left - 0.4) < 0.07) | (np.abs(x - right + 0.4) < 0.07)
    outside = (z < street.crossing[0]) | (z > street.crossing[1])
    marks &= outside[:, None]
    is_zebra = (z > street.crossing[0] - 3.5) & (z < street.crossing[0] - 0.5)
    return np.asarray(marks | (is_zebra[:, None] & (x % 1.0 < 0.5)))


def _apply_sunshine(
    rng: np.random.Generator,
    street: Street,
    facade: _FacadeColumns,
    image: Floats,
    x: Floats,
    z: Floats,
    is_ground: NDArray[np.bool_],
) -> None:
    """Shade the walls that the sun does not reach and the ground that the houses keep it from."""
    is_left = np.arange(street.width) + 0.5 < street.vanishing
    front = np.float32(rng.uniform(0.7, 1.1))
    light = np.where(facade.is_front, front, 1).astype(np.float32)
    if street.sunny_side:
        index = 0 if street.sunny_side < 0 else 1
        is_shaded = (is_left if index == 0 else ~is_left) & ~facade.is_front
        light[is_shaded] *= street.shadow
        ends, heights = facade.reach[index], facade.tall[index]
        long = heights[np.minimum(np.searchsorted(ends, z), len(ends) - 1)] * np.float32(
            rng.uniform(0.15, 0.9)
        )
        inward = x - street.wall[0] if index == 0 else street.wall[1] - x
        is_dark = is_ground & (inward < long[:, None])
        image *= np.where(is_dark, np.float32(street.shadow), np.float32(1))[..., None]
    image *= np.where(is_ground, np.float32(1), light[None, :])[..., None]


# -- things that stand in the street -------------------------------------------------------------------------


def _things(rng: np.random.Generator, street: Street) -> list[tuple[float, Callable[[Canvas, float], None]]]:
    """What stands in the street, from far to near: depth and how to paint it."""
    things: list[tuple[float, Callable[[Canvas, float], None]]] = []
    kerb, wall = street.road, street.wall
    spacing, tree_spacing = rng.uniform(10, 25), rng.uniform(6, 14)
    for side in (0, 1):
        outward = -1 if side == 0 else 1

        def on_pavement(side: int = side) -> float:
            return float(rng.uniform(*sorted((kerb[side], wall[side]))))

        for z in np.arange(rng.uniform(4, 4 + spacing), 70, spacing) if rng.random() < 0.8 else ():
            things.append((float(z), _Pole.random(rng, kerb[side] + 0.4 * outward, -outward)))
        for z in np.arange(rng.uniform(5, 15), 70, tree_spacing) if rng.random() < 0.45 else ():
            things.append((float(z), _Tree.random(rng, kerb[side] + 0.8 * outward)))
        if rng.random() < 0.7:
            for z in np.arange(rng.uniform(5, 12), 50, 6.5):
                if rng.random() < 0.5:
                    things.append(
                        (float(z), _Car.random(rng, kerb[side] - 1.0 * outward, shows_tail=side == 1))
                    )
        for _ in range(int(rng.integers(0, 4))):
            things.append((rng.uniform(4, 30), _Person.random(rng, on_pavement())))
        for _ in range(int(rng.integers(0, 2))):
            things.append((rng.uniform(5, 20), _Clutter.random(rng, on_pavement())))
    for _ in range(int(rng.integers(0, 3))):
        x = rng.uniform(kerb[0] + 1, kerb[1] - 1)
        things.append((rng.uniform(8, 45), _Car.random(rng, x, shows_tail=x > sum(kerb) / 2)))
    for _ in range(int(rng.integers(0, 3))):
        things.append((rng.uniform(6, 35), _Person.random(rng, rng.uniform(*kerb))))
    return sorted(things, key=lambda thing: -thing[0])


@dataclass
class _Car:
    x: float
    width: float
    height: float
    length: float
    colour: Floats
    glass: Floats
    lamps: Floats

    @classmethod
    def random(cls, rng: np.random.Generator, x: float, *, shows_tail: bool) -> _Car:
        is_van = rng.random() < 0.2
        return cls(
            x=x,
            width=rng.uniform(1.6, 1.9),
            height=rng.uniform(1.9, 2.5) if is_van else rng.uniform(1.35, 1.65),
            length=rng.uniform(3.6, 4.8),
            colour=_car_colour(rng),
            glass=np.float32(rng.uniform(0.05, 0.4)) * np.array([0.9, 1.0, 1.1], np.float32),
            lamps=np.array([0.75, 0.08, 0.06] if shows_tail else [0.9, 0.9, 0.8], np.float32),
        )

    def __call__(self, canvas: Canvas, z: float) -> None:
        """Stack cross-sections from the far end to the near one: a solid that shows its flank."""
        canvas.shade(self.x, z + self.length / 2, self.width * 1.4, self.length * 1.3, 0.6)
        slices = 2 if z > 22 else 6
        for step in range(slices - 1, -1, -1):
            part = step / slices
            has_cabin = self.height > 1.8 or 0.1 < part < 0.8 or slices == 2
            self._cross_section(canvas, z + part * self.length, has_cabin=has_cabin, is_near=step == 0)

    def _cross_section(self, canvas: Canvas, z: float, *, has_cabin: bool, is_near: bool) -> None:
        box = canvas.box(self.x, z, self.width, self.height)
        if box is None:
            return
        u, v = np.abs(box.u), box.v
        body = (v > 0.1) & (v < 0.62) & (u < 1 - 0.5 * np.maximum(v - 0.5, 0))
        wheels = (v < 0.22) & (u > 0.62)
        tone = self.colour * (1.05 if is_near else 0.75)
        if has_cabin:
            cabin = (v >= 0.6) & (u < 0.98 - 0.7 * (v - 0.6))
            canvas.paint(box, cabin, tone, z, CAR)
            canvas.paint(
                box, cabin & (v > 0.64) & (v < 0.93) & (u < 0.86 - 0.6 * (v - 0.6)), self.glass, z, None
            )
        canvas.paint(box, body, tone * (0.7 + 0.5 * v[..., None]).astype(np.float32), z, CAR)
        canvas.paint(box, wheels, np.full(3, 0.06, np.float32), z, CAR)
        if is_near:
            if not has_cabin:
                return
            canvas.paint(box, body & (v < 0.2), self.colour * 0.4, z, None)
            canvas.paint(box, (v > 0.42) & (v < 0.55) & (u > 0.7) & (u < 0.95), self.lamps, z, None)
            canvas.paint(box, (v > 0.3) & (v < 0.38) & (u < 0.28), np.full(3, 0.8, np.float32), z, None)


@dataclass
class _Person:
    x: float
    height: float
    coat: Floats
    trousers: Floats
    skin: Floats
    stride: float

    @classmethod
    def random(cls, rng: np.random.Generator, x: float) -> _Person:
        skin = np.array([0.75, 0.55, 0.42]) * rng.uniform(0.35, 1.15)
        return cls(
            x=x,
            height=rng.uniform(1.45, 1.95),
            coat=rng.uniform(0.05, 0.8, 3).astype(np.float32),
            trousers=(rng.uniform(0.05, 0.45) * rng.uniform(0.7, 1.2, 3)).astype(np.float32),
            skin=skin.astype(np.float32),
            stride=rng.uniform(0.0, 0.5),
        )

    def __call__(self, canvas: Canvas, z: float) -> None:
        canvas.shade(self.x, z, 0.8, 0.8, 0.4)
        box = canvas.box(self.x, z, 0.62, self.height)
        if box is None:
            return
        u, v = np.abs(box.u), box.v
        legs = (v < 0.5) & (u < 0.35 + self.stride * (0.5 - v)) & (u >= self.stride * (0.42 - v))
        torso = (v >= 0.42) & (v < 0.84) & (u < 0.85 - 1.6 * np.maximum(v - 0.7, 0) - 0.3 * (v < 0.55))
        head = (u / 0.38) ** 2 + ((v - 0.915) / 0.085) ** 2 < 1
        canvas.paint(box, legs, self.trousers, z, PERSON)
        canvas.paint(box, torso, self.coat, z, PERSON)
        canvas.paint(box, head, self.skin, z, PERSON)
        canvas.paint(box, head & (v > 0.94), self.skin * 0.3, z, None)


@dataclass
class _Pole:
    x: float
    height: float
    thickness: float
    colour: Floats
    arm: float
    """Metres that the lamp reaches over the road, with its sign; 0: a traffic sign instead."""
    plate: Floats

    @classmethod
    def random(cls, rng: np.random.Generator, x: float, inward: int) -> _Pole:
        is_lamp = rng.random() < 0.65
        return cls(
            x=x,
            height=rng.uniform(4.5, 8) if is_lamp else rng.uniform(2.3, 3.2),
            thickness=rng.uniform(0.12, 0.26),
            colour=(rng.uniform(0.1, 0.6) * rng.uniform(0.9, 1.1, 3)).astype(np.float32),
            arm=inward * rng.uniform(0.6, 1.8) if is_lamp else 0.0,
            plate=rng.uniform(0.1, 0.9, 3).astype(np.float32),
        )

    def __call__(self, canvas: Canvas, z: float) -> None:
        box = canvas.box(self.x, z, self.thickness, self.height)
        if box is not None:
            everywhere = np.ones((box.v.size, box.u.size), bool)
            canvas.paint(box, everywhere, self.colour * (0.8 - 0.3 * box.u[..., None]), z, POLE)
        if self.arm:
            box = canvas.box(self.x + self.arm / 2, z, abs(self.arm), self.height)
            part, colour = 0.97, self.colour
        else:
            box = canvas.box(self.x, z, 0.65, self.height)
            part, colour = 1 - 0.65 / self.height, self.plate
        if box is not None:
            canvas.paint(box, (box.v > part) & (np.abs(box.u) <= 1), colour, z, POLE)


@dataclass
class _Tree:
    x: float
    height: float
    radius: float
    colour: Floats
    bark: Floats
    tile: tuple[int, int]

    @classmethod
    def random(cls, rng: np.random.Generator, x: float) -> _Tree:
        row, column = rng.integers(0, 256, 2)
        return cls(
            x=x,
            height=rng.uniform(3.5, 8),
            radius=rng.uniform(0.9, 2.2),
            colour=_leaf_colours(rng, 1)[0],
            bark=(np.array([0.3, 0.24, 0.18]) * rng.uniform(0.5, 1.5)).astype(np.float32),
            tile=(int(row), int(column)),
        )

    def __call__(self, canvas: Canvas, z: float) -> None:
        canvas.shade(self.x, z, 2 * self.radius, 2 * self.radius, 0.4)
        trunk = canvas.box(self.x, z, 0.3, self.height * 0.6)
        if trunk is not None:
            canvas.paint(trunk, np.ones((trunk.v.size, trunk.u.size), bool), self.bark, z, VEGETATION)
        crown = canvas.box(self.x, z, 2 * self.radius, self.height)
        if crown is None:
            return
        noise = _noise_tile()[
            np.ix_(
                (crown.v[:, 0] * 60 + self.tile[0]).astype(np.int32) & 255,
                (crown.u[0] * 25 + self.tile[1]).astype(np.int32) & 255,
            )
        ]
        foot = 0.4
        up = (crown.v - (1 + foot) / 2) / ((1 - foot) / 2)
        leaves = crown.u**2 + up**2 < 0.75 + 0.35 * noise
        tone = (0.85 + 0.2 * up + 0.3 * noise)[..., None]
        canvas.paint(crown, leaves, self.colour * tone, z, VEGETATION)


@dataclass
class _Clutter:
    """A bin, box or cabinet: something that belongs to no class."""

    x: float
    width: float
    height: float
    colour: Floats

    @classmethod
    def random(cls, rng: np.random.Generator, x: float) -> _Clutter:
        return cls(
            x, rng.uniform(0.4, 1.2), rng.uniform(0.5, 1.4), rng.uniform(0.1, 0.7, 3).astype(np.float32)
        )

    def __call__(self, canvas: Canvas, z: float) -> None:
        canvas.shade(self.x, z, self.width * 1.3, 0.8, 0.5)
        box = canvas.box(self.x, z, self.width, self.height)
        if box is not None:
            mask = np.ones((box.v.size, box.u.size), bool)
            canvas.paint(box, mask, self.colour * (0.7 + 0.4 * box.v[..., None]), z, VOID)


# -- camera --------------------------------------------------------------------------------------------------


def _draw_bonnet(rng: np.random.Generator, canvas: Canvas) -> None:
    """The front of the camera's own car at the bottom, and the undecided pixels around cars and people: void."""
    label = canvas.label
    is_thing = (label == CAR) | (label == PERSON)
    around = np.zeros_like(is_thing)
    around[1:] |= is_thing[:-1]
    around[:-1] |= is_thing[1:]
    around[:, 1:] |= is_thing[:, :-1]
    around[:, :-1] |= is_thing[:, 1:]
    label[around & ~is_thing & (label != POLE)] = VOID

    height, width = label.shape
    if rng.random() < 0.3:
        return
    tall, middle = rng.uniform(0.02, 0.08) * height, rng.uniform(0.4, 0.6)
    place = (np.arange(width) + 0.5) / width - middle
    edge = height - tall * (1 - 2.5 * place**2)
    below = (np.arange(height)[:, None] + 0.5) - edge[None, :]
    shine = rng.uniform(0.05, 0.4) + 0.2 * np.exp(-np.maximum(below, 0) / 3)
    colour = shine[..., None] * canvas.street.sky
    np.copyto(canvas.image, colour.astype(np.float32), where=(below > 0)[..., None])
    label[below > 0] = VOID


def _develop(rng: np.random.Generator, image: Floats) -> Pixels:
    """What lens and sensor do: soften, expose, tint, darken the corners, add noise."""
    height, width = image.shape[:2]
    soft = np.float32(rng.uniform(0.1, 0.3))
    image[:, 1:-1] += soft * (0.5 * (image[:, :-2] + image[:, 2:]) - image[:, 1:-1])
    image[1:-1] += soft * (0.5 * (image[:-2] + image[2:]) - image[1:-1])
    exposure = rng.uniform(0.6, 1.25) * rng.uniform(0.92, 1.08, 3)
    gloom = rng.uniform(0, 0.3)
    across = np.linspace(-1, 1, width, dtype=np.float32) ** 2
    upward = np.linspace(-1, 1, height, dtype=np.float32) ** 2
    corners = (1 - np.float32(gloom / 2) * (across[None, :] + upward[:, None]))[..., None]
    image *= corners
    image *= exposure.astype(np.float32)
    image += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(0.005, 0.03))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.0, 0.02))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


# -- colours and noise ---------------------------------------------------------------------------------------


def _building_colours(rng: np.random.Generator, count: int) -> Floats:
    kinds = np.array(
        [[0.62, 0.36, 0.28], [0.72, 0.64, 0.5], [0.55, 0.55, 0.56], [0.75, 0.76, 0.78], [0.5, 0.6, 0.72],
         [0.5, 0.55, 0.4], [0.4, 0.36, 0.34]]
    )  # fmt: skip
    chosen = kinds[rng.integers(0, len(kinds), count)]
    return (chosen * rng.uniform(0.6, 1.15, (count, 1)) * rng.uniform(0.92, 1.08, (count, 3))).astype(
        np.float32
    )


def _leaf_colours(rng: np.random.Generator, count: int) -> Floats:
    kinds = np.array([[0.25, 0.38, 0.14], [0.36, 0.42, 0.2], [0.45, 0.35, 0.16], [0.28, 0.32, 0.24]])
    chosen = kinds[rng.integers(0, len(kinds), count)]
    return (chosen * rng.uniform(0.6, 1.2, (count, 1)) * rng.uniform(0.9, 1.1, (count, 3))).astype(np.float32)


def _car_colour(rng: np.random.Generator) -> Floats:
    if rng.random() < 0.6:  # most cars are white, silver, grey or black
        return (rng.uniform(0.08, 0.9) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    return rng.uniform(0.08, 0.75, 3).astype(np.float32)


@lru_cache(maxsize=1)
def _noise_tile() -> Floats:
    """Cloud-like noise, ``[256, 256]`` in about -1…1, that repeats without a seam."""
    white = np.random.default_rng(256).standard_normal((256, 256))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(white) / (frequency + 0.01) ** 0.8, (256, 256))
    return np.clip(noise / (2 * noise.std()), -1, 1).astype(np.float32)
