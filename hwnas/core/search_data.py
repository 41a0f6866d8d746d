"""What a search learns from: its batches, for weights, choices and validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hwnas.arguments import refuse_text
from hwnas.core.checkpoint import reseeded
from hwnas.errors import InvalidInput
from hwnas.processes import shared

Batches = Iterable[Any]


@dataclass(frozen=True)
class SearchData:
    """The data of a search: anything iterable that yields ``(inputs, targets)`` batches, such as DataLoaders.

    Nothing is resized: inputs are as a rule of the space's ``input_shape()``, for which the table's
    milliseconds hold. Where networks take another size, crops say, what is learned is learned at that, and
    what is predicted is predicted for the space's.

    Several processes share each batch, see :func:`hwnas.processes.shared`.

    Attributes:
        train: trains the weights, and, when ``arch`` is None, α and β in the same back-propagation
            (single-level).
        arch: trains α and β in steps of their own (bilevel).
        val: evaluates the most likely architecture after an epoch.
        description: what the data are, as JSON: names, splits, batch size, augmentation. Part of what the run
            is: resuming with data that are described otherwise is refused. None: hwnas cannot tell.

    Raises:
        InvalidInput: a text, such as the name of a data set, in the place of batches.
    """

    train: Batches
    arch: Batches | None = None
    val: Batches | None = None
    description: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        refuse_batches(train=self.train, arch=self.arch, val=self.val)

    @property
    def held_out(self) -> Batches | None:
        """What trains no weights: ``val`` or, without it, ``arch``."""
        return self.val if self.val is not None else self.arch

    def steps(self) -> Iterator[tuple[Any, Any]]:
        """One epoch of ``(train batch, arch batch or None)``; a shorter ``arch`` begins again.

        What it yields depends on the global random state at its beginning alone, provided that loaders draw
        their order when they begin; so the batches of a begun epoch can be passed over after a resume.

        Raises:
            InvalidInput: ``train`` yields nothing, or ``arch`` nothing or nothing the second time.
        """
        if self.arch is None:
            for batch in _some(self.train, "train"):
                yield batch, None
            return
        # By the time ``arch`` begins again, training (dropout) has moved the global state, which replaying
        # the epoch after a resume does not: that pass takes its order from seeds drawn beforehand.
        seeds = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        second = iter(shared(self.arch))
        for batch in _some(self.train, "train"):
            other = next(second, None)
            if other is None:
                with reseeded(int(torch.randint(2**62, (), generator=seeds))):
                    second = iter(shared(self.arch))
                    other = next(second, None)
            if other is None:
                raise _no_batches("arch")
            yield batch, other


def refuse_batches(**given: Any) -> None:
    """Raise if batches are given by the name of a data set; by name of the argument.

    Raises:
        InvalidInput: they are.
    """
    for name, batches in given.items():
        refuse_text(name, batches, "batches", "a loader", dataset=True)


def _some(batches: Batches, part: str) -> Iterator[Any]:
    """This process's share of the batches, of which there must be one.

    Raises:
        InvalidInput: at the end, there was none.
    """
    is_empty = True
    for batch in shared(batches):
        is_empty = False
        yield batch
    if is_empty:
        raise _no_batches(part)


def _no_batches(part: str) -> InvalidInput:
    return InvalidInput(
        f"SearchData.{part} yields no batches (or none the second time: an iterator is used up); "
        "pass a DataLoader or a list, with at least one batch."
    )
