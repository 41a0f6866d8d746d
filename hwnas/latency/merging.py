"""Two measurements of one table in one: their rounds are put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwnas.errors import InvalidInput, TableMismatch
from hwnas.latency.table_file import TableContent
from hwnas.latency.timing import Timing


def merge_content(first: TableContent, second: TableContent) -> TableContent:
    """Both tables' timings, pooled, under one header; not levelled or solved anew, without a verification.

    Raises:
        TableMismatch: the headers differ in anything that decides a number.
        InvalidInput: they share readings, which would pass for twice as many.
    """
    differences = first.header.differences(second.header)
    if differences:
        raise TableMismatch(
            "tables of different conditions do not merge (first against second):\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nKeep them in two files."
        )
    shared = _shared(first, second)
    if shared:
        raise InvalidInput(
            f"both tables hold the very same measurement of {shared[0]}"
            + (f" and of {len(shared) - 1} more" if shared[1:] else "")
            + ": pooled, its readings would pass for twice as many. Merge tables that were each measured by "
            "itself, into a new file:  hwnas profile --out FILE"
        )
    header = first.header.model_copy(
        update={
            "processes": first.header.processes + second.header.processes,
            "measuring_seconds": round(first.header.measuring_seconds + second.header.measuring_seconds, 1),
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


def _shared(first: TableContent, second: TableContent) -> list[Any]:
    """What was measured once and is in both: all of it where one is the other's copy.

    A formula's readings are equal however often they are taken, and a single reading may be by chance: these
    show a copy only where everything is equal.
    """
    mine, theirs = _timings(first), _timings(second)
    is_copy = mine == theirs
    return [
        name
        for name, timing in mine.items()
        if is_copy
        or (
            name in theirs
            and any(len(set(values)) > 1 for values in {*timing.readings_ms} & {*theirs[name].readings_ms})
        )
    ]


def _timings(content: TableContent) -> dict[Any, Timing]:
    """Ops, by key, and networks, by name. An op that was timed alone stands for the row solved from it."""
    networks = {network.name: network.timing for network in content.networks}
    return {**content.rows, **content.isolated, **networks}


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
