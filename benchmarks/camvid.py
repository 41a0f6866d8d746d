"""The main job on real street scenes: profile → search → fit → eval → export → measure on CamVid.

Every stage leaves its files in the work folder and is resumed when run again. Beside the found network
stands a random one, trained alike: the first of a seeded sequence within 10 % of its table latency.

    python benchmarks/camvid.py --data DIR --work runs/camvid --scale cpu
    python benchmarks/camvid.py --data DIR --work runs/camvid-gpu --scale gpu
"""

from __future__ import annotations

import argparse
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwnas import FitConfig, Genotype, MeanIoU, Progress, SearchConfig, SearchData, fit, search
from hwnas.cli.folder import RunFolder
from hwnas.cli.report import write_report
from hwnas.core.fit import load_weights
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.device import Device
from hwnas.latency.export import export_onnx
from hwnas.latency.profile import measure_network, profile_keys
from hwnas.latency.table import LatencyTable
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import CamVid, JointAugmentation, evaluation_loader, save_predictions, training_loader

SCALES: dict[str, dict[str, Any]] = {
    "cpu": {
        "fields": {"aggregation": "upsample"},
        "search_size": (180, 240),
        "search_batch": 8,
        "search": {
            "epochs": 80,
            "arch_from_epoch": 8,
            "depth_from_epoch": 26,
            "arch_lr": 0.01,
            "relaxation": {
                "form": "gumbel",
                "hard": True,
                "tau": {"form": "linear", "start": 3.0, "end": 0.3},
            },
            "penalty": {"form": "log", "weight": 0.05},
            "penalty_on": "probabilities",
            "validate_every": 20,
            "precision": "fp32",
            "channels_last": True,
            "device": "cpu",
        },
        "fit_batch": 8,
        "fit": {
            "epochs": 40,
            "lr": 0.05,
            "warmup_epochs": 1,
            "precision": "fp32",
            "channels_last": True,
            "device": "cpu",
            "validate_every": 10,
        },
        "workers": 0,
    },
    "gpu": {
        "preset": "paper",
        "fields": {},
        "search_size": (360, 480),
        "search_batch": 16,
        "search": {"device": "cuda", "precision": "bf16", "channels_last": True, "validate_every": 10},
        "fit_batch": 16,
        "fit": {
            "epochs": 200,
            "lr": 0.05,
            "warmup_epochs": 2,
            "device": "cuda",
            "precision": "bf16",
            "channels_last": True,
            "validate_every": 20,
        },
        "workers": 14,
    },
}


def backend_for(scale: str) -> LatencyBackend:
    """ONNX Runtime on one thread for the CPU; PyTorch with CUDA-graph replay, in fp16, for the GPU."""
    device = Device.find("auto")
    if scale == "cpu":
        from hwnas.latency.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(device, threads=1)
    from hwnas.latency.torch import TorchBackend

    return TorchBackend(device, precision="fp16", cuda_graph=True)


def say(name: str) -> Any:
    """A progress callback that prints one line an epoch."""

    def report(progress: Progress) -> None:
        if progress.end_of_epoch:
            numbers = {
                key: round(value, 4) for key, value in progress.values.items() if isinstance(value, float)
            }
            for part in ("train", "val"):
                if part in progress.values:
                    numbers[f"{part}_miou"] = round(progress.values[part]["miou"], 2)
            print(f"{name} {progress.epoch + 1}/{progress.epochs} {numbers}", flush=True)

    return report


def predicted_ms(space: AutoRTNet, table: LatencyTable, assignment: dict[str, int]) -> float:
    """The sum of table rows over the ops that one architecture runs."""
    return sum(table.latency_ms(key) * n for key, n in space.record().count(assignment).items())


def random_genotype(
    space: AutoRTNet, table: LatencyTable, wanted_ms: float, seed: int
) -> tuple[Genotype, float, int]:
    """The first random architecture within 10 % of ``wanted_ms``, its latency, and how many were drawn."""
    generator = torch.Generator().manual_seed(seed)
    for drawn in range(1, 20001):
        assignment = {
            name: int(torch.randint(len(choice.options), (), generator=generator))
            for name, choice in space.choices().items()
        }
        ms = predicted_ms(space, table, assignment)
        if abs(ms / wanted_ms - 1) <= 0.1:
            return space.genotype(assignment), ms, drawn
    raise SystemExit(f"no random architecture within 10 % of {wanted_ms:.2f} ms in 20000 draws")


def loaders(data: Path, batch: int, size: tuple[int, int], workers: int) -> tuple[Any, Any]:
    """Augmented training batches at ``size``, and validation batches at full size."""
    augment = JointAugmentation(crop=size)
    if size == (360, 480):
        train = CamVid(data, "train", augment=augment, cache=True)
    else:
        train = CamVid(data, "train", size=size, augment=augment, cache=True)
    val = CamVid(data, "val", cache=True)
    return (
        training_loader(train, batch, num_workers=workers, pin_memory=workers > 0),
        evaluation_loader(val, 4, num_workers=min(4, workers)),
    )


def train_and_measure(
    name: str,
    genotype: Genotype,
    space: AutoRTNet,
    backend: LatencyBackend,
    table: LatencyTable,
    options: argparse.Namespace,
    scale: dict[str, Any],
) -> dict[str, Any]:
    """Fit, evaluate, export and measure one architecture in its own folder."""
    out = options.work / name
    out.mkdir(parents=True, exist_ok=True)
    genotype.save(out / "genotype.json")
    train, val = loaders(options.data, scale["fit_batch"], (360, 480), scale["workers"])
    config = FitConfig(**scale["fit"])
    torch.manual_seed(config.seed)
    network: nn.Module = space.build(genotype)
    began = time.perf_counter()
    scores = fit(
        network,
        train,
        loss=space.fit_loss,
        config=config,
        val=val,
        metric=MeanIoU(space.num_classes, names=CamVid(options.data, "val").classes),
        out=out,
        resume=(out / "fit.json").exists(),
        on_progress=say(name),
    )
    seconds = time.perf_counter() - began
    load_weights(network, out / "weights.pt")
    network.eval()
    if scores:
        (out / "eval.json").write_text(json.dumps(scores, indent=1) + "\n")
    scores = json.loads((out / "eval.json").read_text())
    example = torch.rand(1, *space.input_shape())
    report = export_onnx(network, [example], out / "net.onnx", dynamic_batch=True, check=True)
    timing = measure_network(network, [example], backend)
    save_predictions(network, CamVid(options.data, "val"), out / "predictions", indices=(0, 50, 100))
    predicted = predicted_ms(space, table, space.assignment(genotype))
    return {
        "genotype": genotype.short_id,
        "depth": {n: v for n, v in genotype.choices.items() if n.endswith(".depth")},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "miou": scores["miou"],
        "per_class": scores["per_class"],
        "predicted_ms": predicted,
        "measured_ms": timing.median_ms,
        "measured_spread_ms": timing.spread_ms,
        "onnx_max_abs_difference": report.max_abs_difference,
        "fit_seconds_this_run": seconds,
    }


def main() -> None:
    """All stages, then the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--scale", choices=sorted(SCALES), default="cpu")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--set", action="append", default=[], help="search.NAME=JSON or fit.NAME=JSON")
    parser.add_argument("--genotype", type=Path, help="leave the search out and train this architecture")
    parser.add_argument("--until", choices=["profile", "search", "end"], default="end")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    for text in options.set:
        name, value = text.split("=", 1)
        group, field = name.split(".", 1)
        scale[group][field] = json.loads(value)
    began = time.perf_counter()
    space = AutoRTNet.from_preset(scale.get("preset"), **scale["fields"])
    backend = backend_for(options.scale)
    options.work.mkdir(parents=True, exist_ok=True)
    table = profile_keys(
        space.record().keys(),
        backend,
        batch=1,
        input_shape=space.input_shape(),
        space={"name": space.name, **space.model_dump(mode="json")},
        path=options.work / "table.json",
        on_progress=lambda done, total, key: None,
    )
    print(f"table: {len(table.rows)} rows, {time.perf_counter() - began:.0f} s", flush=True)
    if options.until == "profile":
        return
    preset = AutoRTNet.preset(scale["preset"]).search if "preset" in scale else {}
    config = SearchConfig(**{**preset, **scale["search"]})
    train, val = loaders(options.data, scale["search_batch"], scale["search_size"], scale["workers"])
    search_began = time.perf_counter()
    if options.genotype:
        genotype = Genotype.load(options.genotype)
    else:
        genotype = search(
            space,
            table,
            SearchData(train=train, val=val),
            config,
            out=options.work,
            resume=(options.work / "search.json").exists(),
            on_progress=say("search"),
        ).genotype
    search_seconds = time.perf_counter() - search_began
    found_ms = predicted_ms(space, table, space.assignment(genotype))
    print(f"found {genotype.short_id}: {found_ms:.3f} ms, {search_seconds:.0f} s", flush=True)
    if options.until == "search":
        return
    chosen, random_ms, drawn = random_genotype(space, table, found_ms, seed=1)
    found = train_and_measure("found", genotype, space, backend, table, options, scale)
    write_report(RunFolder(options.work))
    rival = train_and_measure("random", chosen, space, backend, table, options, scale)
    date = datetime.now(UTC).date().isoformat()
    summary = {
        "question": "AutoRTNet searched and trained on CamVid train, evaluated on val, 360x480",
        "device": table.header.device.model_dump(mode="json"),
        "backend": f"{backend.name} {backend.precision}, threads {backend.threads}",
        "torch": torch.__version__,
        "date": date,
        "scale": options.scale,
        "space": space.model_dump(mode="json"),
        "search": config.model_dump(mode="json"),
        "search_size": scale["search_size"],
        "search_batch": scale["search_batch"],
        "fit": FitConfig(**scale["fit"]).model_dump(mode="json"),
        "fit_batch": scale["fit_batch"],
        "search_seconds_this_run": search_seconds,
        "wall_seconds_this_run": time.perf_counter() - began,
        "random_draws_until_similar": drawn,
        "random_table_ms": random_ms,
        "found": found,
        "random": rival,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    device = re.sub("[^a-z0-9]+", "-", table.header.device.name.lower()).strip("-")
    stem = options.results / f"camvid_{device}_{date}"
    stem.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(summary))
    print(markdown(summary))


def markdown(summary: dict[str, Any]) -> str:
    """The result as a page."""
    found, rival = summary["found"], summary["random"]
    rows = [
        "| network | val mIoU % | parameters M | table ms | measured ms | depths |",
        "|---|---|---|---|---|---|",
    ]
    for name, net in (("searched", found), ("random, similar table latency", rival)):
        depths = ", ".join(net["depth"].values())
        rows.append(
            f"| {name} ({net['genotype']}) | {net['miou']:.2f} "
            f"| {net['parameters'] / 1e6:.2f} | {net['predicted_ms']:.3f} "
            f"| {net['measured_ms']:.3f} | {depths} |"
        )
    classes = ["| class | searched | random |", "|---|---|---|"]
    for name, value in found["per_class"].items():
        classes.append(f"| {name} | {value} | {rival['per_class'][name]} |")
    return "\n".join(
        [
            f"# {summary['question']}",
            "",
            f"{summary['device']['name']}, {summary['backend']}, "
            f"torch {summary['torch']}, {summary['date']}. "
            f"Search: {summary['search']['epochs']} epochs at {summary['search_size']}, "
            f"batch {summary['search_batch']}, seed {summary['search']['seed']}. "
            f"Fit: {summary['fit']['epochs']} epochs at 360x480, "
            f"batch {summary['fit_batch']}, no pre-training. "
            f"Wall time of the last run: {summary['wall_seconds_this_run']:.0f} s "
            f"(search {summary['search_seconds_this_run']:.0f} s).",
            "",
            *rows,
            "",
            *classes,
            "",
            "Written by benchmarks/camvid.py. Val is one street filmed at 15 Hz: "
            "it predicts other streets poorly.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
