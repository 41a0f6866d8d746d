"""Milliseconds from a formula: roughly what an op costs before anything was measured."""

from __future__ import annotations

import math
from collections.abc import Callable

from hwnas.ops import OpKey

Formula = Callable[[OpKey], float]
"""Milliseconds of an op key."""


def default_formula(key: OpKey) -> float:
    """Milliseconds of an imaginary processor: 2 µs a call, 10 GB/s, 20 GMAC/s in fp32.

    From the shapes and the usual attribute names (``c_out`` or ``channels``, ``kernel``, ``stride``,
    ``groups``, ``repeat``) alone: the order of magnitude of a CPU core, monotonic in size, equal on every
    machine. An op with neither ``kernel`` nor ``c_out`` is taken to multiply each element once.
    """
    attributes = dict(key.spec.attributes)

    def number(name: str, default: int) -> int:
        value = attributes.get(name, default)
        return value if isinstance(value, int) and value > 0 else default

    elements = sum(math.prod(shape) for shape in key.input_shapes)
    traffic_ms = 4 * elements / 10e9 * 1e3
    c_out = number("c_out", number("channels", 1) if "kernel" in attributes else 1)
    per_element = number("kernel", 1) ** 2 * c_out / number("groups", 1)
    macs = elements * number("repeat", 1) * per_element / number("stride", 1) ** 2
    return 0.002 + traffic_ms + macs / 20e9 * 1e3
