"""The zoo's three networks from scratch: searched on CamVid under a budget, pre-trained, trained.

Network a, b or c has a target in milliseconds at 360×480 (one thread of ONNX Runtime). The search sees
CamVid's train split in small pictures; the recipe pre-trains on IDD-lite and then trains on CamVid, train and
val together, so that no score on val is given. Every stage is resumed when run again.

    python benchmarks/camvid_zoo.py search a --data DIR --lut TABLE
    python benchmarks/camvid_zoo.py fit a --data DIR
    python benchmarks/camvid_zoo.py fit a --data DIR --scale gpu         (the recipe for hours on a GPU)
    python benchmarks/camvid_zoo.py fit a --data DIR --split train       (scored on val; another folder)

DIR holds the folders camvid, idd_lite and, for the GPU's recipe, tiny_imagenet.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwnas import Genotype, LatencyTable, Progress, SearchConfig, SearchData, search
from hwnas.files import write_atomically
from hwnas.names import space_of
from hwnas.recipes import RECIPES, Recipe, train
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import CamVid, JointAugmentation, evaluation_loader, training_loader

TARGETS_MS = {"a": 19.5, "b": 14.5, "c": 9.8}
"""Milliseconds at 360×480 on one thread of ONNX Runtime."""

SEARCH_SIZE = (144, 192)
SEARCH_BATCH = 8
SEARCH = {
    "epochs": 60,
    "weight_lr": 0.1,
    "arch_from_epoch": 8,
    "depth_from_epoch": 20,
    "arch_lr": 0.02,
    "relaxation": {"form": "gumbel", "hard": True, "tau": {"form": "linear", "start": 3.0, "end": 0.3}},
    "penalty_on": "probabilities",
    "validate_every": 20,
    "channels_last": True,
    "device": "cpu",
}


RARE = (2, 6, 7, 9, 10)
"""Pole, sign, fence, pedestrian, bicyclist: the classes of CamVid with 0.3 to 1.2 % of the pixels."""


CPU_EPOCHS = {"a": {"streets": 5, "target": 45}, "b": {"streets": 5, "target": 40}, "c": {}}
"""Fewer than the recipe's for the costlier networks, so that all three are trained within two hours."""


def recipe_for(name: str, scale: str) -> Recipe:
    """The recipe of one network, with crops over CamVid's rare classes in the last stage."""
    recipe = RECIPES["cpu" if scale == "cpu" else "strong"]
    epochs = CPU_EPOCHS[name] if scale == "cpu" else {}
    *others, last = (
        stage.model_copy(
            update={"fit": stage.fit.model_copy(update={"epochs": epochs.get(stage.name, stage.fit.epochs)})}
        )
        for stage in recipe.stages
    )
    crops = replace(last.augmentation, rare=RARE, rare_share=0.3, scale=(0.75, 1.75))
    return recipe.model_copy(update={"stages": (*others, last.model_copy(update={"augmentation": crops}))})


def say(name: str) -> Any:
    """A progress callback that prints one line an epoch."""

    def report(progress: Progress) -> None:
        if progress.end_of_epoch:
            values = {key: value for key, value in progress.values.items() if isinstance(value, float)}
            print(f"{name} {progress.epoch + 1}/{progress.epochs} {values}", flush=True)

    return report


def stage_search(name: str, options: argparse.Namespace) -> None:
    """Search one of the three; its folder gets the genotype."""
    space = AutoRTNet()
    augment = JointAugmentation(crop=SEARCH_SIZE)
    train = CamVid(options.data / "camvid", "train", size=SEARCH_SIZE, augment=augment, cache=True)
    val = CamVid(options.data / "camvid", "val", size=SEARCH_SIZE, cache=True)
    out = options.work / name
    search(
        space,
        LatencyTable.load(options.lut),
        SearchData(train=training_loader(train, SEARCH_BATCH), val=evaluation_loader(val, 8)),
        SearchConfig(target_ms=TARGETS_MS[name], **SEARCH),
        out=out,
        resume=(out / "search.json").exists(),
        on_progress=say(name),
    )


def stage_fit(name: str, options: argparse.Namespace) -> None:
    """Train one of the three by the recipe; its folder gets the weights and, if val is held out, a score."""
    genotype = Genotype.load(options.work / name / "genotype.json")
    is_final = options.split == "train+val"
    out = options.work / name if is_final else options.work / f"{name}-{options.split}"
    out.mkdir(parents=True, exist_ok=True)
    genotype.save(out / "genotype.json")
    _, found = train(
        space_of(genotype),
        genotype,
        recipe_for(name, options.scale),
        {"target": f"camvid:{options.data / 'camvid'}"}
        | {name: f"{name}:{options.data / name}" for name in ("idd_lite", "tiny_imagenet")},
        out=out,
        splits={"target": options.split},
        val=None if is_final else "val",
        resume=(out / "recipe.json").exists(),
        on_progress=lambda stage, progress: say(f"{name} {stage.name}")(progress),
    )
    if found:
        write_atomically(out / "eval.json", (json.dumps(found, indent=1) + "\n").encode())
        print(found, flush=True)


def main() -> None:
    """One stage for one network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["search", "fit"])
    parser.add_argument("network", choices=sorted(TARGETS_MS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lut", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--scale", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--split", default="train+val")
    options = parser.parse_args()
    {"search": stage_search, "fit": stage_fit}[options.stage](options.network, options)


if __name__ == "__main__":
    main()
