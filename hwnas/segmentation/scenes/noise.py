"""A repeating tile of noise, the texture of everything."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hwnas.segmentation.scenes.canvas import Floats


def fraction(values: NDArray[np.floating]) -> Floats:
    """``values % 1``, at a thirtieth of the cost."""
    remainder: Floats = values - np.floor(values)
    return remainder


def noise_at(rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Floats:
    """The tile of noise, repeated over the plane, at places that are rounded to its pixels."""
    places = (rows.astype(np.int32) & 255) << 8 | (columns.astype(np.int32) & 255)
    return _noise_tile().take(places)


@lru_cache(maxsize=1)
def _noise_tile() -> Floats:
    """Cloud-like noise, ``[256, 256]`` in about -1…1, that repeats without a seam."""
    white = np.random.default_rng(256).standard_normal((256, 256))
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(white) / (frequency + 0.01) ** 0.8, (256, 256))
    tile: Floats = np.clip(noise / (2 * noise.std()), -1, 1).astype(np.float32)
    return tile
