"""Is a feature map put back to where strides took it from? mIoU with both ways of resizing, at several sizes.

Where strides of 2 do not divide a size, ``n / ceil(n / f)`` is not ``f``: resizing by the ratio of the sizes
("ratio") moves features away from their places, and maps of several strides against each other;
:func:`hwnas.layers.bilinear_onto` ("strides") does not. Every network is scored both ways with the same
weights, on CamVid's train images, brought to each size; its logits are brought back to the labels'. It is no
test score: the zoo's networks were trained on these images.

    python benchmarks/resizing.py --data DIR                           (the zoo's three)
    python benchmarks/resizing.py --data DIR --nets RUN ZOO-NAME …     (others)

DIR holds the folder camvid.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from other_streets import networks
from result_files import slug, today, write_result_files
from torch import Tensor, nn
from torch.utils.data import Subset

from hwnas import MeanIoU, Resize, evaluate
from hwnas.latency.device import Device
from hwnas.layers import bilinear
from hwnas.segmentation import CamVid, evaluation_loader

SIZES = ((360, 480), (384, 512), (405, 540), (450, 600), (540, 720))
"""Only 384×512 is divided by all of the networks' strides."""


class ByRatio(nn.Module):
    """A resize by the ratio of the sizes."""

    def forward(self, x_NCHW: Tensor, like_NCHW: Tensor) -> Tensor:
        """Resize the first tensor to the height and width of the second."""
        return bilinear(x_NCHW, (like_NCHW.shape[2], like_NCHW.shape[3]))


class At(nn.Module):
    """A network that sees its images in another size."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Logits at the images' own size."""
        logits: Tensor = self.network(bilinear(x_N3HW, self.size))
        return bilinear(logits, (x_N3HW.shape[2], x_N3HW.shape[3]))


def resize_by_ratio(network: nn.Module) -> None:
    """Put :class:`ByRatio` in the place of every resize, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, Resize):
                setattr(module, name, ByRatio())


def main() -> None:
    """Score each both ways, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nets", nargs="+", default=[], metavar="NET")
    parser.add_argument("--labels", nargs="+", default=[], help="What to call them, in their order.")
    parser.add_argument("--every", type=int, default=4, help="Score every so manieth image.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.labels and len(options.labels) != len(options.nets):
        parser.error(
            f"--labels names {len(options.labels)} networks, --nets {len(options.nets)}: give as many"
        )
    train = CamVid(options.data / "camvid", "train")
    images = Subset(train, range(0, len(train), options.every))
    found: dict[str, Any] = {}
    for number, (label, network, _) in enumerate(networks(options.nets)):
        label = options.labels[number] if options.labels else label
        network.eval()
        found[label] = {}
        for way in ("strides", "ratio"):
            if way == "ratio":
                resize_by_ratio(network)
            scores = {}
            for size in SIZES:
                metric = MeanIoU(train.num_classes, names=train.classes)
                loader = evaluation_loader(images, 4)
                scores["×".join(map(str, size))] = evaluate(At(network, size), loader, metric, device="cpu")
            found[label][way] = scores
            print(label, way, {size: round(one["miou"], 2) for size, one in scores.items()}, flush=True)
    device = Device.find("cpu")
    summary = {
        "question": "Is a feature map put back to where strides took it from?",
        "device": device.name,
        "torch": torch.__version__,
        "date": today(),
        "images": len(images),
        "networks": found,
    }
    stem = options.results / f"resizing_{slug(device.name)}_{summary['date']}"
    write_result_files(stem, summary, page(summary))


def page(summary: dict[str, Any]) -> str:
    """The result as a page."""
    sizes = list(next(iter(summary["networks"].values()))["strides"])
    rows = [
        f"| {label} | {way} | " + " | ".join(f"{scores[size]['miou']:.2f}" for size in sizes) + " |"
        for label, ways in summary["networks"].items()
        for way, scores in ways.items()
    ]
    return "\n".join(
        [
            f"# {summary['question']}",
            "",
            f"mIoU % on {summary['images']} of CamVid's train images, which the networks were trained on,",
            f"brought to each size. torch {summary['torch']}, {summary['date']}.",
            "",
            f"| network | resized by | {' | '.join(sizes)} |",
            "|---" * (2 + len(sizes)) + "|",
            *rows,
            "",
            "Written by benchmarks/resizing.py.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
