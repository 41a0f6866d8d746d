"""Random colours, RGB in 0…1, of what stands in a street."""

from __future__ import annotations

import numpy as np

from hwnas.segmentation.scenes.canvas import Floats


def building_colours(rng: np.random.Generator, count: int) -> Floats:
    """Brick, sandstone, concrete, white, pale blue, olive or dark, ``[count, 3]``."""
    kinds = np.array(
        [[0.62, 0.36, 0.28], [0.72, 0.64, 0.5], [0.55, 0.55, 0.56], [0.75, 0.76, 0.78], [0.5, 0.6, 0.72],
         [0.5, 0.55, 0.4], [0.4, 0.36, 0.34]]
    )  # fmt: skip
    chosen = kinds[rng.integers(0, len(kinds), count)]
    return (chosen * rng.uniform(0.6, 1.15, (count, 1)) * rng.uniform(0.92, 1.08, (count, 3))).astype(
        np.float32
    )


def leaf_colours(rng: np.random.Generator, count: int) -> Floats:
    """Greens, and the browns of autumn, ``[count, 3]``."""
    kinds = np.array([[0.25, 0.38, 0.14], [0.36, 0.42, 0.2], [0.45, 0.35, 0.16], [0.28, 0.32, 0.24]])
    chosen = kinds[rng.integers(0, len(kinds), count)]
    return (chosen * rng.uniform(0.6, 1.2, (count, 1)) * rng.uniform(0.9, 1.1, (count, 3))).astype(np.float32)


def car_colour(rng: np.random.Generator) -> Floats:
    """Mostly greys, else anything, ``[3]``."""
    if rng.random() < 0.6:  # most cars are white, silver, grey or black
        return (rng.uniform(0.08, 0.9) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    return rng.uniform(0.08, 0.75, 3).astype(np.float32)
