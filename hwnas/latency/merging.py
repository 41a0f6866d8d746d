"""Two measurements of one table in one: their rounds are put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwnas.errors import TableMismatch
from hwnas.latency.table_file import TableContent
from hwnas.latency.timing import Timing


def merge_content(first: TableContent, second: TableContent) -> TableContent:
    """Both tables' timings, pooled, under one header; not levelled or solved anew, without a verification.

    Raises:
        TableMismatch: the headers differ in anything that decides a number.
    """
    differences = first.header.differences(second.header)
    if differences:
        raise TableMismatch(
            "tables of different conditions do not merge (first against second):\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nKeep them in two files."
        )
    header = first.header.model_copy(
        update={
            "processes": first.header.processes + second.header.processes,
            "after": second.header.after,
            "remarks": tuple(dict.fromkeys(first.header.remarks + second.header.remarks)),
        }
    )
    mine = {network.name: network for network in first.networks}
    theirs = {network.name: network for network in second.networks}
    timings = _pooled(
        {name: network.timing for name, network in mine.items()},
        {name: network.timing for name, network in theirs.items()},
    )
    return TableContent(
        header=header,
        rows=_pooled(first.rows, second.rows),
        isolated=_pooled(first.isolated, second.isolated),
        networks=[
            network.model_copy(update={"timing": timings[name]})
            for name, network in {**theirs, **mine}.items()
        ],
        verification=None,
    )


def _pooled(first: Mapping[Any, Timing], second: Mapping[Any, Timing]) -> dict[Any, Timing]:
    """Timings by name; the rounds of those that both have are put together."""
    timings = dict(first)
    for name, timing in second.items():
        mine = timings.get(name)
        if mine is None or mine.status != "ok":
            timings[name] = timing
        elif timing.status == "ok" and mine.readings_ms and timing.readings_ms:
            timings[name] = Timing.from_rounds(
                mine.readings_ms + timing.readings_ms,
                rounds_by_process=[
                    *(mine.rounds_by_process or (mine.rounds,)),
                    *(timing.rounds_by_process or (timing.rounds,)),
                ],
            )
    return timings
