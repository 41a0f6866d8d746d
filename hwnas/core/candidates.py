"""Choosing from a trained supernet: the likeliest architectures, compared with the shared weights."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hwnas.core.arch import ArchParameters
from hwnas.core.budget import Budget, Found
from hwnas.core.discretise import relative_likelihoods
from hwnas.core.scoring import by_loss, shared_scores
from hwnas.core.searched import Searched
from hwnas.processes import told_by_first
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


def validate(searched: Searched, assignment: Mapping[str, int]) -> dict[str, Any]:
    """The metric and the loss of one network on the validation data, with the shared weights.

    Args:
        searched: with validation data; its training data are for batch norms' statistics.
        assignment: which network: choice name → option index.
    """
    data, config = searched.data, searched.config
    assert data.val is not None
    return shared_scores(
        searched.space, searched.net, searched.space.genotype(assignment), data.train, data.val,
        statistics_batches=config.statistics_batches, device=searched.device, seed=config.seed,
        precision=config.precision, channels_last=config.channels_last,
    )  # fmt: skip


def best_candidate(searched: Searched) -> tuple[dict[str, int], dict[str, Any] | None]:
    """The best of the ``candidates`` likeliest networks, and its scores on the validation data.

    Probabilities are learnt from single batches, and choice by choice; what a network as a whole is worth,
    the shared weights say better. Without validation data, the likeliest network and None.
    """
    first = likeliest(searched.arch, searched.recording)
    if searched.data.val is None:
        return next(first), None
    compared = (
        (assignment, validate(searched, assignment))
        for assignment in itertools.islice(first, searched.config.candidates)
    )
    # The first of equals: the likeliest.
    return max(compared, key=lambda pair: by_loss(pair[1]))


class WithinBudget:
    """The network that a search takes under a budget: the best of the likeliest ones that keep it.

    As many are compared as the settings' ``candidates`` says, by their loss on the validation data with the
    shared weights; without validation data, the likeliest is taken. Only networks that use the target as far
    as the likeliest does are compared with it. Several processes call this together: they share the
    validation, and the first solves for networks, since all must validate the same ones.

    Args:
        searched: what was searched.
        budget: what must be kept; the one of ``searched``, or another one.
    """

    def __init__(self, searched: Searched, budget: Budget) -> None:
        self._searched = searched
        self._budget = budget
        self._count = searched.config.candidates if searched.data.val is not None else 1
        self._known: dict[tuple[tuple[str, int], ...], dict[str, Any]] = {}

    def __call__(self, correction: float = 1.0, without: Sequence[Mapping[str, int]] = ()) -> Found | None:
        """The best network but for those in ``without``; None where there is no other.

        For the arguments see :meth:`hwnas.core.budget.Budget.likeliest`.
        """
        candidates = told_by_first(lambda: self._likeliest(correction, without))
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        # The first of equals: the likeliest.
        return max(candidates, key=lambda found: by_loss(self.scores(found.assignment)))

    def scores(self, assignment: Mapping[str, int]) -> dict[str, Any]:
        """What :func:`validate` says of a network, computed once for each. There must be validation data."""
        name = tuple(sorted(self._budget.programme.live(assignment).items()))
        if name not in self._known:
            self._known[name] = validate(self._searched, assignment)
        return self._known[name]

    def _likeliest(self, correction: float, without: Sequence[Mapping[str, int]]) -> list[Found]:
        candidates: list[Found] = []
        passed = list(without)
        while len(candidates) < self._count:
            found = self._budget.likeliest(self._searched.arch, correction=correction, without=passed)
            if found is None or (candidates and found.near != candidates[0].near):
                break
            candidates.append(found)
            passed.append(found.assignment)
        return candidates
