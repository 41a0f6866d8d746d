"""Which whole networks to measure: probes from which a table's rows follow, and samples to test it on.

Both are read off a space's recording, so they work for any space.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.core.genotype import Genotype
from hwnas.core.space import SearchSpace
from hwnas.latency.profile import NetworkSubject
from hwnas.latency.solve import count_matrix, independent_rows
from hwnas.latency.subjects import Subject, plausible_inputs
from hwnas.ops import OpKey

Assignment = dict[str, int]
"""Choice name → option index."""


@dataclass(frozen=True)
class GenotypeSubject(Subject):
    """A whole network of a space, to be timed: derived where it is measured, with fresh weights."""

    space: SearchSpace
    genotype: Genotype
    batch: int = 1
    seed: int = 0

    def build(self) -> nn.Module:
        """The derived network in evaluation mode."""
        return self.space.build(self.genotype, _supernet(self.space, self.seed)).eval()

    def inputs(self) -> list[Tensor]:
        """A plausible image batch."""
        return plausible_inputs([(self.batch, *self.space.input_shape())], self.seed)

    def modules(self) -> set[str]:
        """The space's module, which registers its ops."""
        return {type(self.space).__module__}


@lru_cache(maxsize=1)
def _supernet(space: SearchSpace, seed: int) -> nn.Module:
    # One supernet gives its weights to every network of a measurement: making it takes a second.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return space.supernet()


def network_subjects(
    space: SearchSpace, genotypes: Sequence[Genotype], *, batch: int = 1
) -> dict[str, NetworkSubject]:
    """Networks as :func:`hwnas.latency.profile.profile_keys` takes them, by short id."""
    recording = space.record(batch=batch)
    return {
        genotype.short_id: NetworkSubject(
            GenotypeSubject(space, genotype, batch), recording.count(space.assignment(genotype))
        )
        for genotype in genotypes
    }


def probes(
    space: SearchSpace, weight_ms: Callable[[OpKey], float], *, batch: int = 1, limit: int | None = None
) -> list[Genotype]:
    """The fewest networks of ``space`` whose latencies determine that of every other, if latency adds up.

    Candidates are random networks in which each option is placed, alone and in all choices like it, each
    depth, and each op under its condition; those are taken that tell most apart what the ones before do not.

    Args:
        space: any search space.
        weight_ms: roughly what an op costs; decides which networks tell much, not which rows are identified.
        batch: of the op keys.
        limit: at most so many.
    """
    recording = space.record(batch=batch)
    keys = recording.keys()
    weights = np.array([weight_ms(key) for key in keys])
    assignments = list(_candidates(space, 4 * len(keys)))
    # Choices that cannot matter make no other network.
    unique = {space.genotype(assignment).short_id: assignment for assignment in assignments}
    assignments = list(unique.values())
    counts = count_matrix([recording.count(assignment) for assignment in assignments], keys)
    milliseconds = counts * weights
    total = milliseconds.sum(axis=1)
    # Shares, since a timing's error is in proportion; the root favours networks that are soon measured.
    chosen = independent_rows(milliseconds / total[:, None], np.sqrt(total), limit)
    return [space.genotype(assignments[index]) for index in chosen]


def samples(
    space: SearchSpace,
    predict_ms: Callable[[Assignment], float],
    count: int,
    *,
    seed: int = 0,
    without: Collection[str] = (),
) -> list[Genotype]:
    """``count`` different random networks, spread evenly over the latency range of many random ones.

    Args:
        space: any search space.
        predict_ms: milliseconds of an assignment, to spread by.
        count: how many; fewer where the space has no more.
        seed: of the draws.
        without: short ids of networks that must not be among them, such as those a table was solved from.
    """
    generator = torch.Generator().manual_seed(seed)
    pool: dict[str, tuple[float, Genotype]] = {}
    for _ in range(20 * count):
        assignment = space.random_assignment(generator)
        genotype = space.genotype(assignment)
        if genotype.short_id not in without:
            pool[genotype.short_id] = (predict_ms(assignment), genotype)
    ordered = sorted(pool.values(), key=lambda pair: (pair[0], pair[1].short_id))
    if len(ordered) <= count:
        return [genotype for _, genotype in ordered]
    # Equal steps of latency, not of rank: the thin ends of the range are where a table is likely to be wrong.
    low, high = ordered[0][0], ordered[-1][0]
    picked: list[Genotype] = []
    for step in range(count):
        goal = low + (high - low) * (step / max(1, count - 1))
        nearest = min(range(len(ordered)), key=lambda index: abs(ordered[index][0] - goal))
        picked.append(ordered.pop(nearest)[1])
    return picked


def _candidates(space: SearchSpace, random: int) -> Iterator[Assignment]:
    """Random networks, in which one decision after the other is placed; always the same.

    Placed on a random background, not a bare one: a network of nothing but the first option may be one that
    a compiler folds away, and it is in networks like those to come that a row must be right.
    """
    choices = space.choices()
    generator = torch.Generator().manual_seed(0)
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, choice in choices.items():
        alike.setdefault((choice.kind, *choice.options), []).append(name)
    for name, choice in choices.items():
        for option in range(len(choice.options)):
            yield space.random_assignment(generator) | {name: option}
    for names in alike.values():
        for option in range(len(choices[names[0]].options)):
            yield space.random_assignment(generator) | dict.fromkeys(names, option)
    # Every op at least once, however deep it is nested.
    for condition in dict.fromkeys(use.condition for use in space.record().ops):
        for pick in (min, max):
            yield space.random_assignment(generator) | {name: pick(options) for name, options in condition}
    for _ in range(random):
        yield space.random_assignment(generator)
