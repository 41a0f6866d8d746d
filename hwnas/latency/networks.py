"""Tables from whole networks: the rows are solved from what was timed end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from hwnas.errors import MeasurementFailed
from hwnas.latency.device import Device
from hwnas.latency.formula import default_formula
from hwnas.latency.header import UNNAMED_BACKEND, TableHeader
from hwnas.latency.intervals import Intervals
from hwnas.latency.solve import NetworkTiming, Solution, solve_rows
from hwnas.latency.table_file import TableContent
from hwnas.latency.timing import Timing
from hwnas.ops import OpKey
from hwnas.record import Recording


class RecordedSpace(Protocol):
    """What a table needs of a search space: which ops a genotype runs."""

    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        ...

    def record(self, batch: int = 1) -> Recording:
        """All op uses with their conditions."""
        ...

    def assignment(self, genotype: Any) -> dict[str, int]:
        """The option indices that a genotype names."""
        ...

    def described(self) -> dict[str, Any]:
        """Its name and its fields, as JSON."""
        ...


def content_of_networks(
    space: RecordedSpace,
    networks: Sequence[tuple[Any, float]],
    header: TableHeader | None = None,
    prior_ms: Mapping[OpKey, float] | None = None,
) -> TableContent:
    """A table's content of anybody's whole-network measurements.

    For the arguments see :meth:`hwnas.LatencyTable.from_networks`, as for what is raised.
    """
    header = header or TableHeader(
        device=Device.find("auto"), backend=UNNAMED_BACKEND, input_shape=space.input_shape()
    )
    recording = space.record(batch=header.batch)
    keys = recording.keys()
    content = TableContent(
        header=header.model_copy(update={"protocol": "probe", "space": space.described()}),
        rows={},
        isolated={},
        networks=[
            NetworkTiming.of(
                genotype.short_id,
                recording.count(space.assignment(genotype)),
                _timing_of(genotype, milliseconds),
            )
            for genotype, milliseconds in networks
        ],
        verification=None,
    )
    return solve_content(content, keys, prior_ms or {key: default_formula(key) for key in keys})[0]


def _timing_of(genotype: Any, milliseconds: float) -> Timing:
    """What somebody says that a network takes."""
    # Readings are kept to the nanosecond, and what rounds to nothing would be divided by.
    if not 0.0 < round(milliseconds, 6) < math.inf:
        raise MeasurementFailed(
            f"network {genotype.short_id} is said to take {milliseconds} ms; expected a finite number, of a "
            "nanosecond or more. Correct it, or leave that network out."
        )
    return Timing.from_rounds([[milliseconds]])


def solve_content(
    content: TableContent, keys: Sequence[OpKey], prior_ms: Mapping[OpKey, float] | None = None
) -> tuple[TableContent, Solution]:
    """``content`` with the rows solved from its networks and without its verification; and the solution.

    For the arguments see :meth:`hwnas.LatencyTable.solve`, as for what is raised.
    """
    errors: dict[OpKey, float] = {}
    if prior_ms is None:
        alone = {key: timing for key, timing in content.isolated.items() if timing.status == "ok"}
        intervals = Intervals(list(alone.values()))
        prior_ms = {key: timing.median_ms for key, timing in alone.items()}
        errors = {key: intervals.standard_error(timing) for key, timing in alone.items()}
    known = set(keys)
    networks = [network for network in content.networks if known.issuperset(network.counter)]
    solution = solve_rows(networks, keys, prior_ms, errors)
    said = [f"Networks not used, since they are by far no sum of their ops: {', '.join(solution.outliers)}."]
    remarks = [remark for remark in content.header.remarks if not remark.startswith("Networks not used")]
    header = content.header.model_copy(
        update={
            "residual_percent": solution.residual_percent,
            "left_out_percent": solution.left_out_percent,
            "remarks": (*remarks, *(said if solution.outliers else [])),
        }
    )
    return replace(content, header=header, rows=dict(solution.rows), verification=None), solution
