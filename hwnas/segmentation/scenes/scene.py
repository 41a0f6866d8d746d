"""Draws one street scene and its label map with numpy: the pictures of the synthetic data set.

A camera looks along a street. Every image column meets a facade (or a hedge, or the corner of the next
house behind a gap) at one depth, every row below the horizon meets the ground at one depth; what a pixel
shows follows from comparing the two. Cars, people, poles and trees are then painted from far to near.
Lengths are in metres, ``f`` is the focal length in pixels, and a thing of size s at depth z spans
``f * s / z`` pixels.

Colours are drawn so that none of them gives a class away: walls and cars may be sky-blue, coats road-grey and
hedges brown, and light, haze, shadow and noise move all of them. Shape and place tell the classes apart.
"""

from __future__ import annotations

import numpy as np

from hwnas.segmentation.labels import VOID
from hwnas.segmentation.scenes.canvas import CAR, PERSON, POLE, Canvas, Floats, Pixels, Street
from hwnas.segmentation.scenes.street import draw_street
from hwnas.segmentation.scenes.things import things_in


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[Pixels, Pixels]:
    """A random scene: image uint8 ``[height, width, 3]`` and label uint8 ``[height, width]``."""
    street = Street.random(rng, height, width)
    canvas = draw_street(rng, street)
    for z, draw in things_in(rng, street):
        draw(canvas, z)
    _draw_bonnet(rng, canvas)
    return _develop(rng, canvas.image), canvas.label


def _draw_bonnet(rng: np.random.Generator, canvas: Canvas) -> None:
    """The front of the camera's own car, and the undecided pixels around cars and people: void."""
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
    first, is_bonnet = height - int(tall) - 1, below > 0
    shine = rng.uniform(0.05, 0.4) + 0.2 * np.exp(-np.maximum(below, 0) / 3)
    colour = canvas.street.sky[:, None, None] * shine[first:]
    np.copyto(canvas.image[:, first:], colour, where=is_bonnet[first:], casting="same_kind")
    label[is_bonnet] = VOID


def _develop(rng: np.random.Generator, image: Floats) -> Pixels:
    """What lens and sensor do: soften, expose, tint, darken the corners, add noise."""
    height, width = image.shape[1:]
    soft = np.float32(rng.uniform(0.1, 0.3))
    image[:, :, 1:-1] += soft * (0.5 * (image[:, :, :-2] + image[:, :, 2:]) - image[:, :, 1:-1])
    image[:, 1:-1] += soft * (0.5 * (image[:, :-2] + image[:, 2:]) - image[:, 1:-1])
    exposure = rng.uniform(0.6, 1.25) * rng.uniform(0.92, 1.08, 3)
    gloom = rng.uniform(0, 0.3)
    across = np.linspace(-1, 1, width, dtype=np.float32) ** 2
    upward = np.linspace(-1, 1, height, dtype=np.float32) ** 2
    corners = 1 - np.float32(gloom / 2) * (across[None, :] + upward[:, None])
    image *= corners * exposure.astype(np.float32)[:, None, None]
    # Uniform noise (deviation = width / √12) costs a fifth of normal noise and nothing learns the difference.
    image += (rng.random((height, width), np.float32) - np.float32(0.5)) * np.float32(rng.uniform(0.02, 0.1))
    image += (rng.random(image.shape, np.float32) - np.float32(0.5)) * np.float32(rng.uniform(0.0, 0.07))
    np.clip(image, 0, 1, out=image)
    image *= 255
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))
