"""Do networks of CamVid's classes know streets elsewhere? The zoo's on IDD-lite's val split, in its classes.

IDD-lite has seven coarse classes. The probabilities of CamVid's eleven are added up by COARSE, and the
likeliest of the seven is scored. It is no test score of CamVid, nor a strange country: pre-training saw
IDD-lite's train split with its labels, and a network that was taught saw the teacher's answers on it; of val,
nothing did.

    python benchmarks/other_streets.py --data DIR                           (the zoo's three)
    python benchmarks/other_streets.py --data DIR --nets RUN ZOO-NAME …     (others)
    python benchmarks/other_streets.py --cards RESULT.json                  (its scores into the zoo's cards)

DIR holds the folder idd_lite.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from result_files import slug, today, write_result_files
from torch import Tensor, nn

from hwnas import MeanIoU, evaluate
from hwnas.cli.folder import RunFolder
from hwnas.files import read_json, write_json
from hwnas.latency.device import Device
from hwnas.recipes import Recipe
from hwnas.segmentation import CamVid, IddLite, evaluation_loader
from hwnas.zoo import find, names
from hwnas.zoo.cards import Score
from hwnas.zoo.entry import CARD

COARSE = {
    "sky": "sky",
    "building": "far-objects",
    "tree": "far-objects",
    "pole": "road-side-objects",
    "sign_symbol": "road-side-objects",
    "fence": "road-side-objects",
    "road": "drivable",
    "pavement": "non-drivable",
    "car": "vehicles",
    "pedestrian": "living-things",
    "bicyclist": "living-things",
}
"""CamVid's class → IDD-lite's. A bicyclist is a rider and a vehicle there: counted as the rider."""
SIZE = (340, 480)
"""Things are about as large as in CamVid."""


class Coarse(nn.Module):
    """Logarithms of the probabilities of IDD-lite's classes, from a network of CamVid's logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        places = [IddLite.classes.index(COARSE[name]) for name in CamVid.classes]
        self.register_buffer("places", torch.tensor(places))

    places: Tensor

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """``(N, 7, H, W)``."""
        fine = self.network(x_N3HW).float().softmax(1)
        coarse = fine.new_zeros(fine.shape[0], len(IddLite.classes), *fine.shape[2:])
        return coarse.index_add(1, self.places, fine).log()


def networks(given: list[str]) -> Iterator[tuple[str, nn.Module, str]]:
    """Label, network, and what it was trained on."""
    for name in given or names():
        if (Path(name) / "genotype.json").is_file():
            recipe = Path(name) / "recipe.json"
            told = Recipe.load(recipe).about if recipe.is_file() else "without a recipe"
            yield Path(name).name, RunFolder(Path(name)).network(), told
        else:
            entry = find(name)
            yield entry.card.name, entry.network(), entry.card.data


def main() -> None:
    """Score each, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cards", type=Path, metavar="RESULT.json")
    parser.add_argument("--nets", nargs="+", default=[], metavar="NET")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.cards is not None:
        note_in_cards(read_json(options.cards))
        return
    if options.data is None:
        parser.error("--data or --cards is needed")
    images = IddLite(options.data / "idd_lite", "val", size=SIZE)
    found: dict[str, Any] = {}
    for label, network, trained_on in networks(options.nets):
        metric = MeanIoU(images.num_classes, names=images.classes)
        scores = evaluate(Coarse(network).eval(), evaluation_loader(images, 4), metric, device="cpu")
        found[label] = {**scores, "trained_on": trained_on}
        print(f"{label}: {scores['miou']:.1f} %", flush=True)
    device = Device.find("cpu")
    summary = {
        "question": "Do networks of CamVid's classes know streets elsewhere?",
        "device": device.name,
        "torch": torch.__version__,
        "date": today(),
        "images": len(images),
        "size": list(SIZE),
        "classes": COARSE,
        "networks": found,
    }
    stem = options.results / f"other_streets_{slug(device.name)}_{summary['date']}"
    write_result_files(stem, summary, page(summary))


def note_in_cards(summary: dict[str, Any]) -> None:
    """Put these scores into the cards of the zoo's networks, after those on their own data."""
    for name in names():
        entry, found = find(name), summary["networks"].get(name)
        if found is None:
            print(f"{name}: not in this result, left as it is")
            continue
        score = Score(
            data="IDD-lite",
            split="val",
            trained_on=entry.card.split,
            images=summary["images"],
            miou=round(found["miou"], 2),
            per_class={label: round(value, 2) for label, value in found["per_class"].items()},
        )
        own = tuple(kept for kept in entry.card.scores if kept.data is None)
        write_json(entry.folder / CARD, entry.card.model_copy(update={"scores": (*own, score)}))
        print(f"{name}: mIoU {score.miou} %")


def page(summary: dict[str, Any]) -> str:
    """The result as a page."""
    classes = list(next(iter(summary["networks"].values()))["per_class"])
    height, width = summary["size"]
    rows = []
    for name, one in summary["networks"].items():
        values = " | ".join(f"{one['per_class'][each]:.1f}" for each in classes)
        rows.append(f"| {name} | {one['miou']:.1f} | {values} |")
    return "\n".join(
        [
            f"# {summary['question']}",
            "",
            f"IDD-lite's val split, {summary['images']} images at {height}×{width}, in its seven classes, to",
            f"which CamVid's are added up. torch {summary['torch']}, {summary['date']}.",
            "",
            f"| network | mIoU % | {' | '.join(classes)} |",
            "|---" * (2 + len(classes)) + "|",
            *rows,
            "",
            *(f"{name}: {one['trained_on']}." for name, one in summary["networks"].items()),
            "",
            "No network saw these images; pre-training saw IDD-lite's train split with its labels, and a",
            "network that was taught saw its teacher's answers there. It is no test score of CamVid.",
            "Written by benchmarks/other_streets.py.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
