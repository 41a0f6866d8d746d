"""Cars, people, poles, trees and clutter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwnas.segmentation.labels import VOID
from hwnas.segmentation.scenes.canvas import CAR, PERSON, POLE, VEGETATION, Canvas, Floats, Street
from hwnas.segmentation.scenes.colours import car_colour, leaf_colours
from hwnas.segmentation.scenes.noise import noise_at


def things_in(
    rng: np.random.Generator, street: Street
) -> list[tuple[float, Callable[[Canvas, float], None]]]:
    """What stands in the street, from far to near: depth and how to paint it."""
    things: list[tuple[float, Callable[[Canvas, float], None]]] = []
    kerb, wall = street.road, street.wall
    spacing, tree_spacing = rng.uniform(10, 25), rng.uniform(6, 14)
    for side in (0, 1):
        outward = -1 if side == 0 else 1

        def on_pavement(side: int = side) -> float:
            return rng.uniform(min(kerb[side], wall[side]), max(kerb[side], wall[side]))

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
            colour=car_colour(rng),
            glass=np.float32(rng.uniform(0.05, 0.4)) * np.array([0.9, 1.0, 1.1], np.float32),
            lamps=np.array([0.75, 0.08, 0.06] if shows_tail else [0.9, 0.9, 0.8], np.float32),
        )

    def __call__(self, canvas: Canvas, z: float) -> None:
        """Stack cross-sections from the far end to the near one: a solid that shows its flank."""
        canvas.shade(self.x, z + self.length / 2, self.width * 1.4, self.length * 1.3, 0.6)
        slices = 2 if z > 22 else 6 if z > 9 else 10
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
        canvas.paint(box, body, tone[:, None, None] * (0.7 + 0.5 * v), z, CAR)
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
            canvas.paint(box, everywhere, self.colour[:, None, None] * (0.8 - 0.3 * box.u), z, POLE)
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
            colour=leaf_colours(rng, 1)[0],
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
        noise = noise_at(crown.v * 60 + self.tile[0], crown.u * 25 + self.tile[1])
        foot = 0.4
        up = (crown.v - (1 + foot) / 2) / ((1 - foot) / 2)
        leaves = crown.u**2 + up**2 < 0.75 + 0.35 * noise
        tone = 0.85 + 0.2 * up + 0.3 * noise
        canvas.paint(crown, leaves, self.colour[:, None, None] * tone, z, VEGETATION)


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
            canvas.paint(box, mask, self.colour[:, None, None] * (0.7 + 0.4 * box.v), z, VOID)
