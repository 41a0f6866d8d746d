"""The likeliest architectures of a distribution, in order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from hwnas.core.arch import ArchParameters
from hwnas.core.relaxation import masked


def likeliest(arch: ArchParameters) -> Iterator[dict[str, int]]:
    """Every assignment of the live options (choice name → index), the likeliest first; lazily.

    The first is :meth:`ArchParameters.argmax`. Assignments that differ only where it cannot matter all come:
    of those the first has the likeliest option in every such place.

    Source: best-first search over sorted options, after Lawler (1972), *A procedure for computing the K best
    solutions*. Each assignment but the first has one predecessor, the one in which its last changed choice is
    an option better, so that none comes twice.
    """
    logits = masked(arch.logits.detach().double().cpu(), arch.alive.cpu())
    order = logits.argsort(dim=-1, descending=True, stable=True).tolist()
    values = logits.sort(dim=-1, descending=True, stable=True).values
    # What each place in the order loses against the likeliest option.
    losses = [
        [best - value for value in row[:live]]
        for row, live in zip(values.tolist(), arch.alive.sum(dim=-1).tolist(), strict=True)
        for best in row[:1]
    ]
    first = (0,) * len(losses)
    waiting: list[tuple[float, tuple[int, ...], int]] = [(0.0, first, 0)]
    while waiting:
        lost, places, changed = heapq.heappop(waiting)
        yield {
            choice.name: order[row][place]
            for row, (choice, place) in enumerate(zip(arch.choices, places, strict=True))
        }
        for row in range(changed, len(places)):
            place = places[row] + 1
            if place < len(losses[row]):
                more = lost + losses[row][place] - losses[row][place - 1]
                heapq.heappush(waiting, (more, (*places[:row], place, *places[row + 1 :]), row))
