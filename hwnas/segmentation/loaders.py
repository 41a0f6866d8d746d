"""Batches, drawn so that a run can be repeated bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hwnas.errors import InvalidInput
from hwnas.processes import SharedBatches
from hwnas.segmentation.dataset import SegmentationDataset

Batch = tuple[Tensor, Tensor]


class SeededShuffle(Sampler[tuple[int, int]]):
    """Every index once in random order, each with a seed for its augmentation.

    A pass takes one number from torch's global random state and derives the rest from it. So what a pass
    yields depends on that state alone, not on how many workers there are, whether they persist, or what else
    draws random numbers meanwhile.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        order = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        yield from zip(order, seeds, strict=True)


def training_loader(
    dataset: Dataset[Batch], batch_size: int, *, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """Shuffled batches of exactly ``batch_size``; the images left over are dropped, others in each pass.

    Of several processes, each loads its part of every batch.

    Args:
        dataset: of known length, which gives ``dataset[i, seed]``: an item whose augmentation is drawn from
            ``seed``.
        batch_size: items in a batch.
        num_workers: processes that load.
        pin_memory: whether batches lie in memory that a GPU can read while it computes.

    Raises:
        InvalidInput: if the data set does not fill one batch.
    """
    length = len(dataset) if isinstance(dataset, Sized) else 0
    if not 1 <= batch_size <= length:
        raise InvalidInput(f"batch_size must lie in 1…{length}, the size of the data set; got {batch_size}")
    return DataLoader(
        dataset,
        batch_sampler=SharedBatches(SeededShuffle(length), batch_size, drop_last=True),
        num_workers=num_workers,
        pin_memory=pin_memory,
        # DataLoader draws a seed for its workers, once or at every pass, depending on how many there are.
        # Ours need none: it draws from its own generator, and the global state moves by one number a pass.
        generator=torch.Generator(),
        persistent_workers=num_workers > 0,
    )


def evaluation_loader(
    dataset: SegmentationDataset, batch_size: int = 1, *, num_workers: int = 0, pin_memory: bool = False
) -> DataLoader[Batch]:
    """All images in order; the last batch may be smaller."""
    return DataLoader(dataset, batch_size, num_workers=num_workers, pin_memory=pin_memory)
