"""Ground, facades and sky."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.segmentation.scenes.canvas import (
    BUILDING,
    FAR,
    PAVEMENT,
    ROAD,
    SKY,
    VEGETATION,
    Canvas,
    Floats,
    Pixels,
    Street,
)
from hwnas.segmentation.scenes.colours import building_colours, leaf_colours
from hwnas.segmentation.scenes.noise import fraction, noise_at


def draw_street(rng: np.random.Generator, street: Street) -> Canvas:
    """Ground, facades and sky.

    Each pixel gets a label, an ink (a number in a table of colours) and a tone (a factor); three channels are
    touched only once, at the end.
    """
    rows = np.arange(street.height, dtype=np.float32) + np.float32(0.5)
    columns = np.arange(street.width, dtype=np.float32) + np.float32(0.5)
    offset = columns - np.float32(street.vanishing)
    facade = _facades_by_column(rng, street, offset)
    ground_z = np.float32(street.f * street.camera) / np.maximum(rows - np.float32(street.horizon), 0.3)
    ground_x = (offset[None, :] / street.f) * ground_z[:, None]
    # A thing's foot is f·camera/z under the horizon; its top, by its height above the camera, over it.
    is_ground = rows[:, None] >= street.horizon + street.f * street.camera / facade.depth[None, :]
    top = street.horizon + street.f * (street.camera - facade.height) / facade.depth
    is_sky = rows[:, None] < top[None, :]
    y = (street.camera + (street.horizon - rows)[:, None] * (facade.depth / street.f)).astype(np.float32)

    ground = _ground(rng, street, ground_x, ground_z)
    walls = _walls(rng, facade, y)
    label = np.where(is_ground, ground.label, walls.label)
    label[is_sky] = SKY

    # One look-up in a tile of noise serves ground and walls: in their own metres, so it shrinks with depth.
    grain = rng.uniform(4, 12)
    across = np.where(is_ground, ground_x, facade.along[None, :]) * grain
    upward = np.where(is_ground, ground_z[:, None], y) * grain
    tone = 1 + noise_at(upward, across) * np.where(is_ground, ground.roughness, walls.roughness)
    tone *= np.where(is_ground, ground.tone, walls.tone)
    tone *= _sunshine(rng, street, facade, ground_x, ground_z, is_ground)

    depth = np.where(is_ground, ground_z[:, None], facade.depth[None, :])
    clear = np.exp(depth * np.float32(-1 / street.haze))
    inks = np.concatenate([_ground_and_glass_colours(rng), facade.colours])
    ink = np.where(is_ground, ground.ink, walls.ink)
    image = np.stack([channel.take(ink) for channel in np.ascontiguousarray(inks.T)])
    image *= tone * clear
    image += street.sky[:, None, None] * (1 - clear)

    shift, stretch = rng.uniform(0, 256, 2).tolist(), 96 / street.height
    clouds = noise_at(
        (rows * 2 * stretch + shift[0])[:, None],
        (columns * stretch * rng.uniform(0.3, 1) + shift[1])[None, :],
    )
    glow = 0.15 * (rows / street.height)[:, None] + rng.uniform(0, 0.15) * clouds
    np.copyto(image, street.sky[:, None, None] + glow, where=is_sky)
    return Canvas(street, image, label)


@dataclass
class _Surface:
    """What each pixel would show if it were ground (or wall); each ``[H, W]`` or broadcastable to it."""

    label: Pixels
    ink: NDArray[np.intp]
    roughness: Floats
    tone: Floats


_ASPHALT, _PAVING, _GRASS, _PAINT, _GLASS, _FIRST_WALL = range(6)
"""Inks; the facades' segments follow."""


def _ground_and_glass_colours(rng: np.random.Generator) -> Floats:
    return np.stack(
        [
            rng.uniform(0.22, 0.5) * rng.uniform(0.93, 1.07, 3),
            rng.uniform(0.25, 0.65) * rng.uniform(0.9, 1.1, 3),
            leaf_colours(rng, 1)[0],
            np.full(3, rng.uniform(0.55, 0.9)),
            rng.uniform(0.08, 0.5) * np.array([0.85, 1.0, 1.15]),
        ]
    ).astype(np.float32)


@dataclass
class _FacadeColumns:
    """What stands at the end of each image column; most fields are ``[W]``."""

    depth: Floats
    along: Floats
    """Metres along the wall."""
    height: Floats
    label: Pixels
    ink: NDArray[np.intp]
    lower_ink: NDArray[np.intp]
    """Ink of the ground floor."""
    colours: Floats
    """What the inks from _FIRST_WALL on look like, ``[inks, 3]``."""
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
    count = 24  # segments of 5 m at least: beyond FAR on each side
    is_right = offset > 0
    line = np.where(is_right, street.wall[1], -street.wall[0])
    depth = np.minimum(street.f * line / np.maximum(np.abs(offset), 1e-3), FAR)
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
    through = is_gap[side, segment] & (depth < FAR)
    depth = np.where(through, ends[side, segment], depth)
    segment = np.minimum(segment + through, count - 1)
    is_front = in_crossing | through
    along = np.where(is_front, offset * depth / street.f, depth)

    hedge = is_hedge[side, segment]
    ragged = noise_at(np.full(1, rng.uniform(0, 256)), along * 9)
    height = heights[side, segment] * np.where(hedge, 1 + 0.25 * ragged, 1)
    palette = building_colours(rng, 2 * count).reshape(2, count, 3)
    leaves = leaf_colours(rng, 2 * count).reshape(2, count, 3)
    colours = np.where(is_hedge[..., None], leaves, palette)
    has_shop = ~is_hedge & (rng.random((2, count)) < 0.5)
    lower = np.where(has_shop[..., None], palette[:, ::-1] * np.float32(rng.uniform(0.5, 1)), colours)
    ink = _FIRST_WALL + side * count + segment
    return _FacadeColumns(
        depth=depth.astype(np.float32),
        along=along.astype(np.float32),
        height=height.astype(np.float32),
        label=np.where(hedge, VEGETATION, BUILDING).astype(np.uint8),
        ink=ink,
        lower_ink=ink + 2 * count,
        colours=np.concatenate([colours.reshape(-1, 3), lower.reshape(-1, 3)]).astype(np.float32),
        bay=rng.uniform(1.5, 4, (2, count))[side, segment].astype(np.float32),
        storey=rng.uniform(2.6, 4, (2, count))[side, segment].astype(np.float32),
        is_front=is_front,
        reach=(ends[0].astype(np.float32), ends[1].astype(np.float32)),
        tall=(
            np.where(is_gap[0], 0, heights[0]).astype(np.float32),
            np.where(is_gap[1], 0, heights[1]).astype(np.float32),
        ),
    )


def _walls(rng: np.random.Generator, facade: _FacadeColumns, y: Floats) -> _Surface:
    """The facades with their windows, for pixels at height ``y``."""
    is_building = facade.label == BUILDING
    lower = np.float32(rng.uniform(2.6, 4))
    across = fraction(facade.along / facade.bay)
    upward = fraction((y - lower) / facade.storey[None, :])
    narrow, low = rng.uniform(0.15, 0.35), rng.uniform(0.15, 0.4)
    is_window = (
        ((across > narrow) & (across < 1 - narrow) & is_building)[None, :]
        & (upward > low)
        & (upward < 0.85)
        & (y > 0.6)
        & (y < facade.height[None, :] - 0.5)
    )
    ink = np.where(y < lower, facade.lower_ink[None, :], facade.ink[None, :])
    ink[is_window] = _GLASS
    is_cornice = (y > facade.height[None, :] - 0.4) & is_building[None, :]
    return _Surface(
        label=facade.label[None, :],
        ink=ink,
        roughness=np.where(is_building, np.float32(0.1), np.float32(0.35))[None, :],
        tone=np.where(is_cornice, np.float32(rng.uniform(0.6, 1.3)), np.float32(1)),
    )


def _ground(rng: np.random.Generator, street: Street, x: Floats, z: Floats) -> _Surface:
    """Road, pavement and verge at ``(x, z)``."""
    left, right = street.road
    in_crossing = (z > street.crossing[0]) & (z < street.crossing[1])
    is_road = ((x > left) & (x < right)) | in_crossing[:, None]
    verge = rng.uniform(0.3, 1.5)
    has_verge = (rng.random(2) < 0.3).tolist()
    is_grass = np.zeros_like(is_road)
    if has_verge[0]:
        is_grass |= (x < street.wall[0] + verge) & ~is_road
    if has_verge[1]:
        is_grass |= (x > street.wall[1] - verge) & ~is_road
    is_paved = ~(is_road | is_grass)

    label = np.full(x.shape, PAVEMENT, np.uint8)
    label[is_road], label[is_grass] = ROAD, VEGETATION
    ink = np.full(x.shape, _PAVING, np.intp)
    ink[is_road], ink[is_grass] = _ASPHALT, _GRASS
    ink[_markings(rng, street, x, z) & is_road] = _PAINT

    flag = rng.uniform(0.4, 1.0)  # side of a paving stone
    is_joint = (fraction(x / flag) < 0.08) | (fraction(z / flag) < 0.1)[:, None]
    is_kerb = ((x < left) & (x > left - 0.18)) | ((x > right) & (x < right + 0.18))
    tone = np.ones(x.shape, np.float32)
    tone[is_joint & is_paved & (z < 14)[:, None]] = 0.8
    tone[is_kerb & is_paved] = rng.uniform(0.7, 1.4)
    smooth = np.float32(rng.uniform(0.05, 0.15))
    return _Surface(label, ink, np.where(is_grass, np.float32(0.35), smooth), tone)


def _markings(rng: np.random.Generator, street: Street, x: Floats, z: Floats) -> NDArray[np.bool_]:
    """Where paint lies on the road: a dashed middle line, edge lines, a zebra before the crossing."""
    left, right = street.road
    middle = (left + right) / 2 + rng.uniform(-0.5, 0.5)
    is_dash = fraction((z + rng.uniform(0, 6)) / 6) < (0.5 if rng.random() < 0.5 else 1.0)
    marks: NDArray[np.bool_] = (np.abs(x - middle) < 0.08) & is_dash[:, None] & (rng.random() < 0.7)
    if rng.random() < 0.4:
        marks |= (np.abs(x - left - 0.4) < 0.07) | (np.abs(x - right + 0.4) < 0.07)
    marks &= ((z < street.crossing[0]) | (z > street.crossing[1]))[:, None]
    is_zebra = (z > street.crossing[0] - 3.5) & (z < street.crossing[0] - 0.5)
    if is_zebra.any():
        marks |= is_zebra[:, None] & (fraction(x) < 0.5)
    return marks


def _sunshine(
    rng: np.random.Generator,
    street: Street,
    facade: _FacadeColumns,
    x: Floats,
    z: Floats,
    is_ground: NDArray[np.bool_],
) -> Floats:
    """How much light a pixel gets: less on walls that the sun does not reach and in the shadow of houses."""
    light = np.where(facade.is_front, np.float32(rng.uniform(0.7, 1.1)), np.float32(1))
    long = rng.uniform(0.15, 0.9)
    if not street.sunny_side:
        return np.where(is_ground, np.float32(1), light[None, :])
    is_left = np.arange(street.width) + 0.5 < street.vanishing
    index = 0 if street.sunny_side < 0 else 1
    is_shaded = (is_left if index == 0 else ~is_left) & ~facade.is_front
    light[is_shaded] *= np.float32(street.shadow)
    ends, heights = facade.reach[index], facade.tall[index]
    reach = heights[np.minimum(np.searchsorted(ends, z), len(ends) - 1)] * np.float32(long)
    inward = x - street.wall[0] if index == 0 else street.wall[1] - x
    ground_light = np.where(inward < reach[:, None], np.float32(street.shadow), np.float32(1))
    return np.where(is_ground, ground_light, light[None, :])
