"""Milliseconds from a formula: for tests, demonstrations, and searches before there is a device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from hwnas.errors import HwnasError, InvalidInput, MeasurementFailed
from hwnas.latency.backend import LatencyBackend, Precision, host_versions
from hwnas.latency.device import Device
from hwnas.latency.formula import Formula, default_formula
from hwnas.latency.header import TableHeader
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import Reader, Timing
from hwnas.ops import OpKey
from hwnas.record import record

FAKE_DEVICE = Device(kind="fake", name="fake device")
"""What a fake table's header names, so that no real device ever accepts it."""


class FakeBackend(LatencyBackend):
    """A backend whose readings are a formula's: the sum over the ops that a module calls.

    The module is run once on meta tensors to see which ops it calls; nothing is computed.

    Args:
        formula: op key → milliseconds, above 0; :func:`default_formula` where left out.
        device: must be here, and changes nothing: the device of a fake backend is the fake device, so that no
            table of it can be taken for one of a real device.
        precision: stands in the header.
        threads: stands in the header.
    """

    name: ClassVar[str] = "fake"
    varies: ClassVar[bool] = False

    def __init__(
        self,
        formula: Formula | None = None,
        *,
        device: Device | str = FAKE_DEVICE,
        precision: Precision = "fp32",
        threads: int = 1,
    ) -> None:
        super().__init__(FAKE_DEVICE if device in ("auto", "fake") else device, precision, threads)
        self.device = FAKE_DEVICE
        self.formula = formula or default_formula

    def check(self) -> None:
        """Nothing to check: it works everywhere."""

    def versions(self) -> dict[str, str]:
        """None: no runtime is involved."""
        return {}

    def prepare(self, module: nn.Module, inputs: Sequence[Tensor]) -> Reader:
        """A reader that gives the formula's value, always the same.

        Raises:
            SpaceError: it computes something outside of its ops, which no formula knows.
            MeasurementFailed: the module does not run, calls no op, or is a supernet.
        """
        try:
            recording = record(copy.deepcopy(module).to("meta"), [x.to("meta") for x in inputs])
        except HwnasError:
            raise
        except Exception as error:
            raise MeasurementFailed(
                f"{type(module).__name__} does not run on inputs {[tuple(x.shape) for x in inputs]}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not recording.ops:
            raise MeasurementFailed(
                f"{type(module).__name__} calls no op (no subclass of hwnas.Op), so the fake backend has "
                "nothing to add up. Time it with the torch backend."
            )
        uses = recording.charged()
        if any(use.condition for use in uses):
            raise MeasurementFailed(
                f"{type(module).__name__} is a supernet: what it costs depends on its choices. "
                "Time a derived network (hwnas.derive, or the space's build)."
            )
        total_ms = sum(self.formula(use.key) for use in uses)
        return lambda: total_ms


def fake_table(
    keys: Iterable[OpKey],
    formula: Formula | None = None,
    *,
    batch: int = 1,
    input_shape: tuple[int, ...] | None = None,
    space: Mapping[str, Any] | None = None,
) -> LatencyTable:
    """A table with the formula's value for each key, at once: no rounds, no building of ops.

    Its rows have count 1 and spread 0; its header names the fake device.

    Args:
        keys: rows to make.
        formula: op key → milliseconds, 0 or more; :func:`default_formula` where left out.
        batch: of the keys.
        input_shape: (C, H, W) of the network that the keys come from; where left out, that of the first key's
            first input, which is right for keys in the order of a recording.
        space: which search space, as ``{"name": …, field: value}``.

    Raises:
        InvalidInput: a key of another batch size, or a formula that gives no latency.
    """
    formula = formula or default_formula
    rows: dict[OpKey, Timing] = {}
    for key in keys:
        value = formula(key)
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInput(
                f"the formula must give finite milliseconds of 0 or more; for {key} it gave {value}."
            )
        rows[key] = Timing(median_ms=value, spread_ms=0.0, count=1)
    if input_shape is None:
        if not rows:
            raise InvalidInput("a fake table without keys needs an input_shape, for example (3, 360, 480).")
        input_shape = next(iter(rows)).input_shapes[0][1:]
    header = TableHeader(
        device=FAKE_DEVICE,
        backend=FakeBackend.name,
        precision="fp32",
        batch=batch,
        threads=1,
        input_shape=input_shape,
        space=dict(space or {}),
        versions=host_versions(),
        protocol="formula",
    )
    return LatencyTable(header, rows)
