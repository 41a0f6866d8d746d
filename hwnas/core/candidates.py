"""The likeliest architectures of a distribution, in order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from hwnas.core.arch import ArchParameters
from hwnas.core.discretise import relative_likelihoods
from hwnas.record import Recording


def likeliest(arch: ArchParameters, recording: Recording | None = None) -> Iterator[dict[str, int]]:
    """Every architecture of the live options (choice name → option index), the likeliest first; lazily.

    Likely as :func:`hwnas.core.discretise.relative_likelihoods` has it: choices that do not matter lose
    nothing, and have their likeliest option. Each architecture comes once; the first is
    :meth:`ArchParameters.argmax`. (Under limits, :class:`hwnas.core.discretise.Programme` finds the first.)

    Best-first search. An architecture's changes from the likeliest options, made one after the other in the
    order in which it runs, lead to it through architectures that lose less, each change being of a choice
    that matters by then: so it is waiting before anything that loses more is reached.

    Args:
        arch: whose probabilities.
        recording: says which choices matter in which architecture; None: all do.
    """
    likelihoods = relative_likelihoods(arch.logits, arch.alive)
    order = (-likelihoods).argsort(axis=-1, kind="stable").tolist()
    # What each place in the order loses against the likeliest option.
    losses = [
        [float(-row[option]) for option in options if row[option] > -float("inf")]
        for row, options in zip(likelihoods, order, strict=True)
    ]
    names = [choice.name for choice in arch.choices]

    def assignment(places: tuple[int, ...]) -> dict[str, int]:
        return {name: order[row][place] for row, (name, place) in enumerate(zip(names, places, strict=True))}

    def matter(places: tuple[int, ...]) -> set[str]:
        return set(names if recording is None else recording.live_choices(assignment(places)))

    first = (0,) * len(names)
    waiting: list[tuple[float, tuple[int, ...]]] = [(0.0, first)]
    met = {first}
    while waiting:
        _, places = heapq.heappop(waiting)
        yield assignment(places)
        live = matter(places)
        for row, name in enumerate(names):
            if name not in live or places[row] + 1 == len(losses[row]):
                continue
            changed = (*places[:row], places[row] + 1, *places[row + 1 :])
            left = matter(changed)
            canonical = tuple(changed[row] if name in left else 0 for row, name in enumerate(names))
            if canonical not in met:
                met.add(canonical)
                lost = sum(losses[row][place] for row, place in enumerate(canonical))
                heapq.heappush(waiting, (lost, canonical))
