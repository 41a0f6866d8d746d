"""How good is what a search chooses? Against every network of a small space, random search and evolution.

144 networks (two stages, each 1, 3 or 5 wide kernels and one to four layers) that label CamVid's streets at
48×64. Every network is trained alike, which gives the best one under any budget; then search, random search and
evolution choose under budgets, each at the same cost, with several seeds. Latency is a formula's: the
question is the choice. Stages leave their results in the work folder and go on where they stopped:

    python benchmarks/search_quality.py truth --data DIR --seconds 540     # again, until it says that all is there
    python benchmarks/search_quality.py choose --data DIR --seconds 540
    python benchmarks/search_quality.py result
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hwnas import VOID, FitConfig, MeanIoU, Op, fit, register_op
from hwnas.search_spaces.chain import Chain
from hwnas.segmentation import CamVid

BATCH = 8
RECIPE = FitConfig(epochs=20, lr=0.05, warmup_epochs=1, device="cpu")
TRUTH_SEEDS = (0, 1, 2)


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


SPACE = StreetChain(size=48, num_classes=11, stages=2, depth=4, channels=8, kernels=(1, 3, 5))


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


def load(root: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """All labelled frames of CamVid's train and val: two of four to train, one to validate, one to test."""
    size = SPACE.input_shape()[1:]
    frames = [frame for split in ("train", "val") for frame in CamVid(root, split, size=size)]
    images = torch.stack([image for image, _ in frames])
    labels = torch.stack([label for _, label in frames])
    place = torch.arange(len(labels)) % 4
    parts = {"train": place < 2, "val": place == 2, "test": place == 3}
    return {name: (images[rows], labels[rows]) for name, rows in parts.items()}


class Cache:
    """Finished pieces of work, a JSON line each, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        self.found: dict[str, Any] = dict(json.loads(line) for line in lines)

    def add(self, key: str, value: Any) -> None:
        """Keep a piece."""
        self.found[key] = value
        with self.path.open("a") as file:
            file.write(json.dumps([key, value]) + "\n")


def assignments() -> list[dict[str, int]]:
    """Every network of the space."""
    choices = SPACE.choices()
    options = [range(len(choice.options)) for choice in choices.values()]
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*options)]


def name_of(assignment: dict[str, int]) -> str:
    """A network's name: its option indices in the order of the choices."""
    return "".join(str(index) for index in assignment.values())


def truth(data: dict[str, tuple[Tensor, Tensor]], cache: Cache, until: float) -> bool:
    """Train every network by the recipe and test it; True when all is there."""
    for seed, assignment in itertools.product(TRUTH_SEEDS, assignments()):
        key = f"{name_of(assignment)}/{seed}"
        if key in cache.found:
            continue
        if time.monotonic() > until:
            return False
        began = time.process_time()
        torch.manual_seed(seed)
        network = SPACE.build(SPACE.genotype(assignment))
        fit(
            network,
            Images(*data["train"], training=True),
            loss=SPACE.fit_loss,
            config=RECIPE.model_copy(update={"seed": seed}),
        )
        cache.add(key, scores(network, data) | {"cpu_seconds": time.process_time() - began})
    return True


def scores(network: nn.Module, data: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean IoU in percent on the images to validate and to test, and the test's loss."""
    found = {}
    for part in ("val", "test"):
        metric, losses = SPACE.metric(), []
        with torch.inference_mode():
            for images, labels in Images(*data[part], training=False):
                outputs = network(images)
                metric.update(outputs, labels)
                losses.append(float(SPACE.loss(outputs, labels)))
        found[f"{part}_miou"] = metric.compute()["miou"]
        found[f"{part}_loss"] = sum(losses) / len(losses)
    return found


def main() -> None:
    """One stage, for at most so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["truth"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/search_quality"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + options.seconds
    cache = Cache(options.work / "truth.jsonl")
    done = truth(load(options.data), cache, until)
    print(f"{len(cache.found)} trainings; {'all there' if done else 'not yet all'}", flush=True)


if __name__ == "__main__":
    main()
