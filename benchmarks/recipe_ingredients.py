"""What is each ingredient of a recipe worth? One network on CamVid, whole streets left out in turn.

CamVid's train and val together were filmed on three drives (0001TP, 0006R0, 0016E5), whose frames are
near-duplicates. Each run trains on two of them and is scored on the third. The base recipe trains on the
target alone (SGD, "poly", OHEM, scales, mirror images); one ingredient is added to it at a time, or taken
from all of them. Base is run with several seeds: a gain within what these differ by is none.

    python benchmarks/recipe_ingredients.py --data DIR --genotype FILE --work runs/ingredients
    python benchmarks/recipe_ingredients.py … --variants all "all - streets" "all + unlabelled"
    python benchmarks/recipe_ingredients.py … --sequences 0006R0 --precision bf16 --compiled
    python benchmarks/recipe_ingredients.py … --report                     (of what is done so far)

DIR holds the folders camvid, idd_lite and tiny_imagenet; the teacher's weights come with the extra
"teacher". A run that is done is a line in WORK/ingredients.jsonl; started again, also after Ctrl-C or
SIGTERM, the benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from camvid_zoo_recipes import of_small_crops
from result_files import append_line, read_lines, today, write_result_files

from hwnas import Genotype, MeanIoU, evaluate
from hwnas.cli.settings import changed
from hwnas.core.runlog import read_log
from hwnas.errors import Interrupted
from hwnas.latency.device import Device
from hwnas.names import space_of
from hwnas.recipes import Recipe, Stage, TeacherStage, train
from hwnas.segmentation import CamVid, evaluation_loader

SEQUENCES = ("0001TP", "0006R0", "0016E5")
RARE = (2, 6, 7, 9, 10)
"""Pole, sign, fence, pedestrian, bicyclist."""
PLAIN = {"augmentation.brightness": 0, "augmentation.contrast": 0, "augmentation.saturation": 0}
INGREDIENTS: dict[str, dict[str, Any]] = {
    "pictures": {},
    "streets": {},
    "class weights": {"class_weight_offset": 1.1},
    "rare crops": {"augmentation.rare": RARE, "augmentation.rare_share": 0.3},
    "auxiliary heads": {"auxiliary": True},
    "moving average": {"fit.average_decay": 0.99},
    "colour jitter": {
        "augmentation.brightness": 0.3,
        "augmentation.contrast": 0.3,
        "augmentation.saturation": 0.3,
    },
    "longer schedule": {},
    "teacher": {"fit.distillation_weight": 3.0},
    "soft targets": {"fit.distillation_weight": 3.0, "soft_targets": {"scales": (1.0, 1.5)}},
    "unlabelled": {"fit.distillation_weight": 3.0, "unlabelled": ("idd_lite",)},
}
"""What each changes in the target's stage; some change more than that, see :func:`recipe_for`."""
LONGER = 3
TAUGHT = ("teacher", "soft targets", "unlabelled")
"""A teacher, one that is asked once for each image, and one that teaches on IDD-lite's images too. Its own
training takes longer than all else."""
ALL = tuple(name for name in INGREDIENTS if name not in TAUGHT)

VARIANTS = (
    "base",
    *(f"+ {name}" for name in INGREDIENTS),
    "all",
    *(f"all - {name}" for name in ALL),
    *(f"all + {name}" for name in TAUGHT),
)


def ingredients_of(variant: str) -> list[str]:
    """The ingredients of a variant, by its name."""
    if variant == "base":
        return []
    if variant.startswith("+ "):
        return [variant.removeprefix("+ ")]
    if variant.startswith("all + "):
        return [*ALL, variant.removeprefix("all + ")]
    return [name for name in ALL if variant != f"all - {name}"]


def recipe_for(variant: str, seed: int, options: argparse.Namespace) -> Recipe:
    """The recipe of a variant."""
    wanted = ingredients_of(variant)
    epochs = options.epochs * (LONGER if "longer schedule" in wanted else 1)
    size = tuple(options.size)
    fit = {
        "lr": 0.05,
        "warmup_epochs": 1,
        "channels_last": True,
        "device": options.device,
        "precision": options.precision,
        "validate_every": 10**6,
    }
    images: dict[str, Any] = {
        "batch": options.batch,
        "cache": True,
        "augmentation.crop": size,
        **PLAIN,
    }
    settings = {**images, **{f"fit.{name}": value for name, value in fit.items()}}
    # Auxiliary heads are not heard in a compiled training.
    compiled = options.compiled and "auxiliary heads" not in wanted
    target = {**settings, "fit.epochs": epochs, "fit.seed": seed, "fit.compiled": compiled}
    for name in wanted:
        target |= INGREDIENTS[name]
    streets = {**settings, "data": "idd_lite", "size": size, "fit.epochs": options.streets_epochs}
    before = []
    if "pictures" in wanted:
        pictures = of_small_crops(options.pictures_epochs)
        here = pictures.fit.model_copy(update={"device": options.device})
        before.append(pictures.model_copy(update={"fit": here}))
    if "streets" in wanted:
        before.append(Stage(**changed(Stage(name="streets").model_dump(), streets)))
    teacher = None
    if any(name in wanted for name in TAUGHT):
        # In fp32: depthwise convolutions are slower in bf16 on a CPU.
        learns = {**settings, "fit.precision": "fp32", "fit.lr": 0.02, "fit.epochs": options.teacher_epochs}
        teacher = TeacherStage(**changed(TeacherStage(frozen=2).model_dump(), learns))
    last = Stage(**changed(Stage(name="target").model_dump(), target))
    return Recipe(about=variant, stages=(*before, last), teacher=teacher)


def shared(recipe: Recipe, held_out: str, work: Path) -> dict[str, Path]:
    """Where what several runs need is kept: by the stage's name, its folder.

    Pre-training knows neither the sequence that is left out nor the rest of the variant, and a teacher
    nothing but that sequence: once is enough.
    """
    before = [stage.name for stage in recipe.stages[:-1]]
    kept = {name: work / "-".join(before[: place + 1]) for place, name in enumerate(before)}
    return kept if recipe.teacher is None else {**kept, "teacher": work / f"teacher-{held_out}"}


def run(variant: str, held_out: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one variant without one sequence, and score it there."""
    genotype = Genotype.load(options.genotype)
    space = space_of(genotype)
    recipe = recipe_for(variant, seed, options)
    folder = options.work / variant.replace(" ", "_") / f"{held_out}-{seed}"
    kept = shared(recipe, held_out, options.work)
    for name, place in kept.items():
        if (place / "weights.pt").is_file() and not (folder / name).exists():
            shutil.copytree(place, folder / name)
    camvid, size = options.data / "camvid", tuple(options.size)
    network, _ = train(
        space,
        genotype,
        recipe,
        {"target": f"camvid:{camvid}"}
        | {name: f"{name}:{options.data / name}" for name in ("idd_lite", "tiny_imagenet")},
        out=folder,
        splits={"target": "train+val"},
        val=None,
        options={"target": {"size": size, "exclude_sequences": (held_out,)}},
        workers=options.workers,
        resume=True,
        on_progress=lambda stage, progress: (
            progress.end_of_epoch
            and print(
                f"{variant} {held_out} {seed} {stage.name} {progress.epoch + 1}/{progress.epochs}", flush=True
            )
        ),
    )
    for name, place in kept.items():
        if not place.exists():
            shutil.copytree(folder / name, place)
    scored = CamVid(camvid, "train+val", sequences=(held_out,), size=size)
    metric = MeanIoU(scored.num_classes, names=scored.classes)
    found = evaluate(network, evaluation_loader(scored, 8), metric, device=options.device)
    seconds = sum(
        event["seconds"] for event in read_log(folder / "fit.log.jsonl") if event["event"] == "epoch"
    )
    return {
        "variant": variant,
        "held_out": held_out,
        "seed": seed,
        "miou": found["miou"],
        "per_class": found["per_class"],
        "scored_on": len(scored),
        "seconds": round(seconds, 1),
        "settings": settings_of(options),
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a work folder have in common."""
    return {
        "network": Genotype.load(options.genotype).short_id,
        "size": list(options.size),
        "epochs": options.epochs,
        "pictures_epochs": options.pictures_epochs,
        "streets_epochs": options.streets_epochs,
        "teacher_epochs": options.teacher_epochs,
        "batch": options.batch,
        "precision": options.precision,
        "compiled": options.compiled,
    }


def done(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of the work folder so far."""
    path = options.work / "ingredients.jsonl"
    lines = read_lines(path)
    if lines and lines[0]["settings"] != settings_of(options):
        raise SystemExit(f"{path} holds runs of {lines[0]['settings']}: use another --work")
    return lines


def table(lines: list[dict[str, Any]]) -> list[str]:
    """A row for each variant: held-out mIoU by sequence, and the mean gain over base, or loss to all."""
    by = {(line["variant"], line["held_out"], line["seed"]): line["miou"] for line in lines}
    rows = [
        f"| recipe | {' | '.join(f'without {name}' for name in SEQUENCES)} | mean | against | difference |",
        "|---" * (len(SEQUENCES) + 4) + "|",
    ]
    for variant in VARIANTS:
        for seed in sorted({seed for name, _, seed in by if name == variant}):
            against = "base" if variant.startswith("+") else "all"
            scores = {name: by.get((variant, name, seed)) for name in SEQUENCES}
            found = {name: score for name, score in scores.items() if score is not None}
            gains = [
                score - by[against, name, 0] for name, score in found.items() if (against, name, 0) in by
            ]
            compared = variant not in ("base", "all") and gains
            rows.append(
                f"| {variant}{f', seed {seed}' if seed else ''} | "
                + " | ".join("–" if score is None else f"{score:.1f}" for score in scores.values())
                + f" | {mean(found.values()):.1f} | "
                + (f"{against} | {mean(gains):+.1f} |" if compared else "– | – |")
            )
    return rows


def report(lines: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the result file and its page."""
    date = today()
    device = Device.find("cpu" if options.device == "cpu" else "cuda")
    summary = {
        "question": "What is each ingredient of a recipe worth? CamVid, one of three sequences left out",
        "device": device.model_dump(mode="json"),
        "torch": torch.__version__,
        "date": date,
        "settings": settings_of(options),
        "runs": lines,
    }
    settings = ", ".join(f"{name} {value}" for name, value in summary["settings"].items())
    heading = [
        f"# {summary['question']}",
        "",
        f"{device.name}, torch {torch.__version__}, {date}; {settings}.",
        "",
    ]
    last = [
        "",
        "mIoU in % on the sequence that was left out. Written by benchmarks/recipe_ingredients.py.",
        "",
    ]
    stem = options.results / f"recipe_ingredients_{device.alias}_{date}"
    write_result_files(stem, summary, "\n".join([*heading, *table(lines), *last]))


def main(arguments: list[str] | None = None) -> None:
    """All runs that are not done yet, then the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--genotype", type=Path, required=True, help="of a network with 11 classes")
    parser.add_argument("--work", type=Path, default=Path("runs/ingredients"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--sequences", nargs="+", choices=SEQUENCES, default=SEQUENCES, metavar="SEQUENCE")
    parser.add_argument("--seeds", type=int, default=2, help="how many, of base; the others have one")
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--pictures-epochs", type=int, default=16)
    parser.add_argument("--streets-epochs", type=int, default=8)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compiled", action="store_true", help="not where there are auxiliary heads")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    lines = done(options)
    runs = [
        (variant, held_out, seed)
        for variant in options.variants
        for seed in range(options.seeds if variant == "base" else 1)
        for held_out in options.sequences
    ]
    known = {(line["variant"], line["held_out"], line["seed"]) for line in lines}
    for each in () if options.report else runs:
        if each in known:
            continue
        try:
            lines.append(run(*each, options))
        except Interrupted as error:
            raise SystemExit(f"{error} Start again to go on.") from None
        append_line(options.work / "ingredients.jsonl", lines[-1])
    report(lines, options)


if __name__ == "__main__":
    main()
