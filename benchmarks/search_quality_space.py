"""The spaces of search_quality.py: networks that label CamVid's streets, and the images."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from hwnas import VOID, LatencyTable, MeanIoU, Op, register_op
from hwnas.latency.fake import fake_table
from hwnas.record import Recording
from hwnas.search_spaces.chain import Chain
from hwnas.segmentation import CamVid

BATCH = 8
BUDGETS = (0.3, 0.5, 0.75)
"""Shares of the networks that are within each budget."""
SIZES = {"train": 234, "val": 117, "test": 117}
"""Images by part."""


@register_op("street_chain.head")
class Head(Op):
    """A 1×1 classifier and a bilinear enlargement to the image's size."""

    def __init__(self, c_in: int, c_out: int, factor: int) -> None:
        super().__init__(c_in=c_in, c_out=c_out, factor=factor)
        self.factor = factor
        self.classify = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits by pixel."""
        return nn.functional.interpolate(
            self.classify(x_NCHW), scale_factor=self.factor, mode="bilinear", align_corners=False
        )


class StreetChain(Chain):
    """The chain space, with a head that labels pixels."""

    name: ClassVar[str] = "street_chain"

    def input_shape(self) -> tuple[int, int, int]:
        """``(3, size, 4/3 size)``."""
        return (3, self.size, self.size * 4 // 3)

    def supernet(self) -> nn.Module:
        """The chain without its last layer, and the head."""
        *body, last = super().supernet().children()
        return nn.Sequential(*body, Head(last.linear.in_features, self.num_classes, 2**self.stages))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the pixels whose class is known."""
        return nn.functional.cross_entropy(outputs, targets, ignore_index=VOID)

    def metric(self) -> MeanIoU:
        """Mean IoU."""
        return MeanIoU(self.num_classes)


@dataclass(frozen=True)
class Question:
    """A space, and how much of it is trained for the truth.

    Attributes:
        space: the networks to choose from.
        seeds: of the searches and the baselines; not those that the settings were found with (0 to 2).
        truth_seeds: of the trainings.
        sample: how many networks are trained besides those that were chosen; None: all there are.
    """

    space: StreetChain
    seeds: Sequence[int]
    truth_seeds: Sequence[int]
    sample: int | None = None

    @functools.cached_property
    def recording(self) -> Recording:
        """The space's."""
        return self.space.record()

    @functools.cached_property
    def table(self) -> LatencyTable:
        """The formula's milliseconds."""
        return fake_table(self.recording.keys(), input_shape=self.space.input_shape())

    @functools.cached_property
    def networks(self) -> dict[str, dict[str, int]]:
        """Every network, by name: its option indices in the order of the choices."""
        choices = self.space.choices()
        options = [range(len(choice.options)) for choice in choices.values()]
        every = (dict(zip(choices, values, strict=True)) for values in itertools.product(*options))
        return {self.name_of(assignment): assignment for assignment in every}

    def name_of(self, assignment: Mapping[str, int]) -> str:
        """A network's name."""
        return "".join(str(assignment[choice]) for choice in self.space.choices())

    @functools.cached_property
    def milliseconds(self) -> dict[str, float]:
        """By network."""
        return {name: self.predict_ms(assignment) for name, assignment in self.networks.items()}

    def predict_ms(self, assignment: Mapping[str, int]) -> float:
        """A network's milliseconds."""
        return self.table.predict_ms(self.recording.count(assignment))

    @functools.cached_property
    def budgets_ms(self) -> list[float]:
        """Within them are the shares :data:`BUDGETS` of all networks."""
        sorted_ms = sorted(self.milliseconds.values())
        return [sorted_ms[int(share * len(sorted_ms))] for share in BUDGETS]

    def sampled(self) -> list[str]:
        """The networks that methods are compared with."""
        names = list(self.networks)
        return names if self.sample is None else sorted(random.Random(0).sample(names, self.sample))


def _street_chain(stages: int) -> StreetChain:
    return StreetChain(size=48, num_classes=11, stages=stages, depth=4, channels=8, kernels=(1, 3, 5))


QUESTIONS = {
    "small": Question(_street_chain(2), seeds=range(10, 20), truth_seeds=(0, 1, 2)),
    "large": Question(_street_chain(3), seeds=range(10, 42), truth_seeds=(0, 1), sample=100),
}


class Images:
    """Batches from memory: shuffled and mirrored at random for training, in order for evaluation."""

    def __init__(self, images: Tensor, labels: Tensor, *, training: bool) -> None:
        self.images, self.labels, self.training = images, labels, training

    def __len__(self) -> int:
        return len(self.labels) // BATCH if self.training else -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.training:
            yield from zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True)
            return
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        order = torch.randperm(len(self.labels), generator=generator)
        mirrored = torch.rand(len(self.labels), generator=generator) < 0.5
        for rows in order.split(BATCH)[: len(self)]:
            images, labels, mirror = self.images[rows], self.labels[rows], mirrored[rows]
            yield (
                torch.where(mirror[:, None, None, None], images.flip(3), images),
                torch.where(mirror[:, None, None], labels.flip(2), labels),
            )


def load(root: Path, size: tuple[int, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """All labelled frames of CamVid's train and val: two of four to train, one to validate, one to test."""
    frames = [frame for split in ("train", "val") for frame in CamVid(root, split, size=size)]
    images = torch.stack([image for image, _ in frames])
    labels = torch.stack([label for _, label in frames])
    place = torch.arange(len(labels)) % 4
    parts = {"train": place < 2, "val": place == 2, "test": place == 3}
    found = {name: (images[rows], labels[rows]) for name, rows in parts.items()}
    if (sizes := {name: len(part) for name, (_, part) in found.items()}) != SIZES:
        raise SystemExit(f"{root} should give {SIZES} images, and gives {sizes}: is it all of CamVid?")
    return found
