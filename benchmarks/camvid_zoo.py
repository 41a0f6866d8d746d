"""The zoo's three networks from scratch: searched on CamVid under a budget, pre-trained, trained.

Network a, b or c has a target in milliseconds at 360×480 (one thread of ONNX Runtime). The search sees
CamVid's train split in small pictures; the recipe pre-trains on Tiny ImageNet and IDD-lite and then trains on
CamVid, train and val together, so that no score on val is given, with a teacher that began with ImageNet's
weights and teaches on IDD-lite's images too. Every stage is resumed when run again; a teacher that is done
for one of the three is copied for those that want the same.

    python benchmarks/camvid_zoo.py search a --data DIR --lut TABLE
    python benchmarks/camvid_zoo.py fit a --data DIR
    python benchmarks/camvid_zoo.py fit a --data DIR --from-zoo          (the stages that the zoo's lacks)
    python benchmarks/camvid_zoo.py fit a --data DIR --scale gpu         (the recipe for hours on a GPU)
    python benchmarks/camvid_zoo.py fit a --data DIR --split train       (a twin that is scored on val)
    python benchmarks/camvid_zoo.py fit a --data DIR --held-out 0006R0   (one that is scored on a drive)
    python benchmarks/camvid_zoo.py result --data DIR --peers ONNX_DIR   (on a quiet machine)

DIR holds the folders camvid, idd_lite and tiny_imagenet; the teacher's weights come with the extra "teacher".
"result" measures the three and whatever ONNX files lie in ONNX_DIR in the same rounds, packs the zoo's
entries, and writes page and plot. With --measured RESULT.json the milliseconds are that result's, which new
weights of the same networks do not change.
Peers are exported from their authors' definitions, with fresh weights, and named like the keys of PUBLISHED
in camvid_zoo_page.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from camvid_zoo_page import described, described_peer, page, plot
from camvid_zoo_recipes import recipe_for
from result_files import slug, today, write_result_files

from hwnas import (
    FitConfig,
    Genotype,
    LatencyTable,
    OnnxRuntimeBackend,
    Progress,
    SearchConfig,
    SearchData,
    evaluate,
    search,
)
from hwnas.cli.folder import RunFolder
from hwnas.files import read_json, write_atomically, write_json
from hwnas.latency.device import Device
from hwnas.latency.export import with_batch
from hwnas.latency.measuring import measure_all
from hwnas.latency.subjects import ModelSubject, ModuleSubject, Subject, plausible_inputs
from hwnas.names import space_of
from hwnas.recipes import Recipe, TeacherStage, train
from hwnas.recipes.recipe import TARGET
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import CamVid, JointAugmentation, evaluation_loader, open_dataset, training_loader
from hwnas.segmentation.metrics import named_metric
from hwnas.segmentation.registry import labelling
from hwnas.zoo import load
from hwnas.zoo.cards import Card, Latency
from hwnas.zoo.entry import Entry
from hwnas.zoo.packing import pack, twin_score

TARGETS_MS = {"a": 38.0, "b": 28.0, "c": 19.0}
"""Milliseconds at 360×480 on one thread of ONNX Runtime."""

SPACE = AutoRTNet(
    cells=(3, 6, 6),
    head_dilations=(),
    cell_ops=("skip", "conv_3x3", "conv_3x3_x2"),
    aggregation_ops=("conv_1x1_x2",),
)
"""Without depthwise convolutions: for each multiplication they take longer on a CPU, most of all in training,
and bf16, which is for dense ones where the CPU has matrix units, is nothing for them
(benchmarks/fit_cost.py)."""

SEARCH_SIZE = (144, 192)
SEARCH_BATCH = 8
SEARCH = {
    "epochs": 24,
    "weight_lr": 0.1,
    "arch_from_epoch": 4,
    "depth_from_epoch": 8,
    "arch_lr": 0.02,
    "relaxation": {"form": "gumbel", "hard": True, "tau": {"form": "linear", "start": 3.0, "end": 0.3}},
    "penalty_on": "probabilities",
    "budget": {"max_params": 6_000_000},
    "validate_every": 20,
    "precision": "bf16",
    "channels_last": True,
    "device": "cpu",
}

BEFORE = "began_with.json"
"""In the folder of a training that goes on from the zoo's weights: their card."""


def entry_name(name: str) -> str:
    """What the zoo calls network a, b or c."""
    return f"autortnet-{name}-camvid"


def say(name: str) -> Any:
    """A progress callback that prints one line an epoch."""

    def report(progress: Progress) -> None:
        if progress.end_of_epoch:
            values = {key: value for key, value in progress.values.items() if isinstance(value, float)}
            print(f"{name} {progress.epoch + 1}/{progress.epochs} {values}", flush=True)

    return report


def stage_search(name: str, options: argparse.Namespace) -> None:
    """Search one of the three; its folder gets the genotype."""
    augment = JointAugmentation(crop=SEARCH_SIZE)
    train = CamVid(options.data / "camvid", "train", size=SEARCH_SIZE, augment=augment, cache=True)
    val = CamVid(options.data / "camvid", "val", size=SEARCH_SIZE, cache=True)
    out = options.work / name
    search(
        SPACE,
        LatencyTable.load(options.lut),
        SearchData(train=training_loader(train, SEARCH_BATCH), val=evaluation_loader(val, 8)),
        SearchConfig(target_ms=TARGETS_MS[name], **SEARCH),
        out=out,
        resume=(out / "search.json").exists(),
        on_progress=say(name),
    )


def copy_whole(source: Path, target: Path) -> None:
    """Copy a folder; ``target`` is there only once it is complete."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    part.rename(target)


def take_teacher(out: Path, stage: TeacherStage) -> None:
    """Copy a finished teacher from another network's folder on the same images, if it was trained alike."""
    twin_of = out.name.partition("-")[2]
    for other in sorted(out.parent.glob("*/teacher/weights.pt")):
        folder = other.parent
        config = FitConfig.model_validate(read_json(folder / "fit.json")["config"])
        is_same = folder.parent.name.partition("-")[2] == twin_of and config == stage.fit
        if is_same and not (out / "teacher").exists():
            copy_whole(folder, out / "teacher")


def take_stages(source: Path, out: Path, recipe: Recipe) -> None:
    """Copy what a network has learnt elsewhere than on CamVid: a twin need not learn it once more.

    Each stage begins with the weights of the one before, so this ends with the first that was done otherwise.
    """
    kept = source / "recipe.json"
    theirs = Recipe.load(kept).stages if kept.is_file() else ()
    for stage, other in zip(recipe.stages[:-1], theirs, strict=False):
        folder = source / stage.name
        if stage != other or stage.data == TARGET or not (folder / "weights.pt").is_file():
            break
        if not (out / stage.name).exists():
            copy_whole(folder, out / stage.name)


def still_to_do(recipe: Recipe, card: Card) -> Recipe:
    """The stages of a recipe that a network of the zoo has not been through.

    Raises:
        SystemExit: it has been through all, or was trained otherwise.
    """
    done = Recipe.model_validate({"about": "", **card.recipe})
    count = len(done.stages)
    if recipe.stages[:count] != done.stages or recipe.teacher != done.teacher:
        raise SystemExit(f"{card.name} did not begin as this recipe does: leave --from-zoo out")
    if count == len(recipe.stages):
        raise SystemExit(f"{card.name} has been through all stages of this recipe: there is nothing to do")
    return recipe.model_copy(update={"stages": recipe.stages[count:]})


def stage_fit(name: str, options: argparse.Namespace) -> None:
    """Train one of the three by the recipe; its folder gets the weights and, if images are held out, a score.

    Frames of one drive are alike, so a score is to be of a drive (sequence) that neither the weights nor the
    teacher's have seen; the search has seen them all.
    """
    before = Entry(options.zoo / entry_name(name)) if options.from_zoo else None
    genotype = before.genotype if before else Genotype.load(options.work / name / "genotype.json")
    held_out, split = options.held_out, options.split
    is_final = split == "train+val" and held_out is None
    out = options.work / (name if is_final else f"{name}-{held_out or split}")
    out.mkdir(parents=True, exist_ok=True)
    genotype.save(out / "genotype.json")
    recipe = recipe_for(name, options.scale)
    if before is not None:
        recipe = still_to_do(recipe, before.card)
        # The entry is replaced by what this ends with.
        write_json(out / BEFORE, before.card)
    is_begun = (out / "recipe.json").exists()
    if not is_final:
        take_stages(options.work / name, out, recipe)
    if recipe.teacher is not None:
        take_teacher(out, recipe.teacher)
    space, camvid = space_of(genotype), options.data / "camvid"
    network, found = train(
        space,
        genotype,
        recipe,
        {"target": f"camvid:{camvid}"}
        | {name: f"{name}:{options.data / name}" for name in ("idd_lite", "tiny_imagenet")},
        out=out,
        splits={"target": split},
        val=None if split == "train+val" else "val",
        options={"target": {"exclude_sequences": (held_out,)}} if held_out else None,
        start=before.network() if before else None,
        on_device=options.scale == "gpu",
        # What was copied was begun.
        resume=is_begun or any((out / stage.name).exists() for stage in recipe.all_stages),
        on_progress=lambda stage, progress: say(f"{name} {stage.name}")(progress),
    )
    scored = CamVid(camvid, "train+val" if held_out else "val", sequences=(held_out,) if held_out else None)
    if held_out:
        last = recipe.stages[-1].fit
        metric = named_metric(space, scored)
        found = evaluate(
            network, evaluation_loader(scored, 4), metric, device=last.device, precision=last.precision
        )
    if found:
        kept = {**found, "data": "camvid", "split": held_out or "val", "images": len(scored)}
        write_atomically(out / "eval.json", (json.dumps(kept, indent=1) + "\n").encode())
        print(kept, flush=True)


def measured(work: Path, peers: Path | None) -> dict[str, Latency]:
    """The three networks and the peers, all in the same rounds, on one thread of ONNX Runtime.

    A network that ``work`` has no trained run of is the one that the zoo has.
    """
    backend = OnnxRuntimeBackend("cpu", threads=1)
    example = plausible_inputs([(1, *SPACE.input_shape())])
    subjects: dict[str, Subject] = {}
    for name in TARGETS_MS:
        is_trained = (work / name / "weights.pt").is_file()
        network = RunFolder(work / name).network() if is_trained else load(entry_name(name))
        subjects[name] = ModuleSubject(network, tuple(example))
    for path in sorted(peers.glob("*.onnx")) if peers else ():
        subjects[path.stem] = ModelSubject(with_batch(path.read_bytes(), 1), tuple(example))
    found = measure_all(subjects, backend)
    return {
        name: Latency(
            median_ms=timing.median_ms,
            spread_ms=timing.spread_ms,
            count=timing.count,
            device=str(backend.device.name),
            backend=backend.name,
            precision=backend.precision,
            batch=1,
            threads=backend.threads,
            versions=backend.versions(),
            settings=backend.settings(),
            remarks=(*found.remarks, *found.busy),
        )
        for name, timing in found.timings.items()
    }


def measured_before(result: dict[str, Any], device: Device) -> dict[str, Latency]:
    """What an earlier result of the same machine says of the three networks and the peers."""
    if (theirs := result["device"]["name"]) != device.name:
        raise SystemExit(f"the milliseconds are of {theirs}, and this is {device.name}: measure here")
    return {
        name: Latency.model_validate(found["latency"])
        for name, found in {**result["networks"], **result["peers"]}.items()
    }


def packed(
    name: str, latency: Latency, options: argparse.Namespace, samples: torch.Tensor, device: Device
) -> Entry:
    """The zoo's entry, made anew of a trained run."""
    run = options.work / name
    write_atomically(run / "measure.json", (latency.model_dump_json(indent=1) + "\n").encode())
    twin = options.work / f"{name}-train"
    return pack(
        run,
        entry_name(name),
        out=options.zoo,
        about=f"street scenes at 360x480, searched for {TARGETS_MS[name]:g} ms on one thread of ONNX Runtime",
        data="CamVid (SegNet's version, 11 classes); pre-trained on Tiny ImageNet and IDD-lite; taught by "
        "EfficientNet-Lite2 with weights from ImageNet, which was trained on the same CamVid images, there "
        "and on IDD-lite's images",
        split="train+val",
        data_licence="CamVid: CC BY-NC 4.0; IDD-lite: IDD's terms, research; ImageNet's terms, research",
        labelling=labelling(f"camvid:{options.data / 'camvid'}"),
        samples=samples,
        scores=(twin_score(run, twin),) if (twin / "eval.json").is_file() else (),
        training_device=options.training_device or device.name,
        before=Card.load(run / BEFORE) if (run / BEFORE).is_file() else None,
    )


def stage_result(options: argparse.Namespace) -> None:
    """Measure, pack, and write the result file, its page and its plot."""
    device = Device.find("auto")
    earlier = read_json(options.measured) if options.measured else None
    known = read_json(options.predicted) if options.predicted else earlier
    latencies = measured_before(earlier, device) if earlier else measured(options.work, options.peers)
    place = f"camvid:{options.data / 'camvid'}"
    train = open_dataset(place, "train")
    places = torch.linspace(0, len(train) - 1, 16).tolist()
    samples = torch.stack([train[round(index)][0] for index in places])
    networks: dict[str, Any] = {}
    for name in TARGETS_MS:
        is_trained = (options.work / name / "weights.pt").is_file()
        entry = (
            packed(name, latencies[name], options, samples, device)
            if is_trained
            else Entry(options.zoo / entry_name(name))
        )
        searched = options.work / name / "result.json"
        said = read_json(searched) if searched.is_file() else known["networks"][name] if known else {}
        networks[name] = described(entry, latencies[name], TARGETS_MS[name], said.get("predicted_ms"))
    peers = {
        name: described_peer(name, latency) for name, latency in latencies.items() if name not in TARGETS_MS
    }
    summary = {
        "question": "the zoo's networks on CamVid at 360x480, and what they take beside others",
        "device": device.model_dump(mode="json"),
        "backend": "onnxruntime fp32, threads 1",
        "date": today(),
        "recipe": {
            name: Entry(options.zoo / network["entry"]).card.recipe for name, network in networks.items()
        },
        "measured": options.measured.name if earlier else None,
        "remark": options.remark,
        "networks": networks,
        "peers": peers,
    }
    stem = options.results / f"camvid_zoo_{slug(device.name)}_{summary['date']}"
    plot(summary, stem.with_name(f"{stem.name}.png"))
    write_result_files(stem, summary, page(summary, f"{stem.name}.png"))


def main() -> None:
    """One stage, for one network or for all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["search", "fit", "result"])
    parser.add_argument("network", nargs="?", choices=sorted(TARGETS_MS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lut", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--scale", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--split", default="train+val")
    parser.add_argument(
        "--held-out",
        choices=["0001TP", "0006R0", "0016E5"],
        help="Train on train and val without this sequence, and score on it (eval.json).",
    )
    parser.add_argument(
        "--from-zoo", action="store_true", help="Begin with the zoo's weights: what the recipe has besides."
    )
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--measured", type=Path, help="Take the milliseconds of this result of this machine.")
    parser.add_argument(
        "--predicted", type=Path, help="Take what searches predicted from this result, where they are gone."
    )
    parser.add_argument("--training-device", help="What it was trained on, if not on this machine.")
    parser.add_argument("--remark", help="What a reader of the result should know besides.")
    parser.add_argument("--zoo", type=Path, default=Path("hwnas/zoo"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.held_out and options.split != "train+val":
        parser.error("--held-out leaves a drive out of train and val: give no --split with it")
    if options.from_zoo and (options.held_out or options.split != "train+val"):
        parser.error("--from-zoo begins with weights that have seen train and val: no score could be told")
    if options.stage == "result":
        stage_result(options)
    elif options.network is None:
        parser.error(f"{options.stage} wants the name of a network: a, b or c")
    else:
        {"search": stage_search, "fit": stage_fit}[options.stage](options.network, options)


if __name__ == "__main__":
    main()
