"""The main job on real street scenes: profile → search → fit → eval → export → measure on CamVid.

Beside the found network stands a random one, trained alike: the first of a seeded sequence within 10 % of
its table latency. Every stage leaves its files in the work folder and is resumed when run again; stages can
also be run one by one (profile, search, found, random, result), the two trainings side by side.

    python benchmarks/camvid.py --data DIR --work runs/camvid
    python benchmarks/camvid.py --data DIR --work runs/camvid --stage found
    python benchmarks/camvid.py --data DIR --work runs/camvid-gpu --scale gpu
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from result_files import slug, today, write_result_files
from torch import nn

from hwnas import FitConfig, Genotype, MeanIoU, Progress, SearchConfig, SearchData, fit, profile, search
from hwnas.cli.folder import RunFolder
from hwnas.cli.report import write_report
from hwnas.core.runlog import read_log
from hwnas.core.weights import load_weights
from hwnas.files import read_json, write_json
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.device import Device
from hwnas.latency.export import export_onnx
from hwnas.latency.measuring import measure_networks
from hwnas.latency.table import LatencyTable
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import CamVid, JointAugmentation, evaluation_loader, save_predictions, training_loader

SCALES: dict[str, dict[str, Any]] = {
    "cpu": {
        "fields": {"aggregation": "upsample"},
        "search_size": (180, 240),
        "search_batch": 8,
        "search": {
            "epochs": 110,
            "weight_lr": 0.1,
            "arch_from_epoch": 8,
            "depth_from_epoch": 36,
            "arch_lr": 0.01,
            "relaxation": {
                "form": "gumbel",
                "hard": True,
                "tau": {"form": "linear", "start": 3.0, "end": 0.3},
            },
            "penalty": {"form": "log", "weight": 0.1},
            "penalty_on": "probabilities",
            "validate_every": 22,
            "precision": "fp32",
            "channels_last": True,
            "device": "cpu",
        },
        "fit_batch": 8,
        "fit": {
            "epochs": 36,
            "lr": 0.05,
            "warmup_epochs": 1,
            "precision": "fp32",
            "channels_last": True,
            "device": "cpu",
            "validate_every": 12,
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


def random_genotype(
    space: AutoRTNet, table: LatencyTable, wanted_ms: float, seed: int
) -> tuple[Genotype, float, int]:
    """The first random architecture within 10 % of ``wanted_ms``, its latency, and how many were drawn."""
    generator = torch.Generator().manual_seed(seed)
    for drawn in range(1, 20001):
        assignment = space.random_assignment(generator)
        ms = table.predict_ms(space.record().count(assignment))
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


def stage_profile(space: AutoRTNet, backend: LatencyBackend, work: Path) -> LatencyTable:
    """The latency table of this machine, each op alone, as in the paper."""
    return profile(space, backend, protocol="isolated", path=work / "table.json")


def stage_search(
    space: AutoRTNet,
    table: LatencyTable,
    config: SearchConfig,
    options: argparse.Namespace,
    scale: dict[str, Any],
) -> None:
    """The search; its folder holds the genotype."""
    train, val = loaders(options.data, scale["search_batch"], scale["search_size"], scale["workers"])
    search(
        space,
        table,
        SearchData(train=train, val=val),
        config,
        out=options.work,
        resume=(options.work / "search.json").exists(),
        on_progress=say("search"),
    )


def stage_fit(
    name: str, genotype: Genotype, space: AutoRTNet, options: argparse.Namespace, scale: dict[str, Any]
) -> None:
    """Train one architecture in a folder of its own, evaluate it, export it."""
    out = options.work / name
    out.mkdir(parents=True, exist_ok=True)
    genotype.save(out / "genotype.json")
    train, val = loaders(options.data, scale["fit_batch"], (360, 480), scale["workers"])
    config = FitConfig(**scale["fit"])
    torch.manual_seed(config.seed)
    network: nn.Module = space.build(genotype)
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
    write_json(out / "eval.json", scores)
    save_predictions(network, CamVid(options.data, "val"), out / "predictions", indices=(0, 50, 100))


def stage_result(
    space: AutoRTNet,
    table: LatencyTable,
    backend: LatencyBackend,
    options: argparse.Namespace,
    scale: dict[str, Any],
) -> None:
    """Export and measure both networks, in turns, and write the result file, its page and its plots."""
    networks: dict[str, nn.Module] = {}
    nets: dict[str, dict[str, Any]] = {}
    example = torch.rand(1, *space.input_shape())
    for name in ("found", "random"):
        out = options.work / name
        genotype = Genotype.load(out / "genotype.json")
        network = space.build(genotype).eval()
        load_weights(network, out / "weights.pt")
        networks[name] = network
        exported = export_onnx(network, [example], out / "net.onnx", dynamic_batch=True, check=True)
        scores = read_json(out / "eval.json")
        nets[name] = {
            "genotype": json.loads(genotype.model_dump_json())["choices"],
            "id": genotype.short_id,
            "depth": {n: v for n, v in genotype.choices.items() if n.endswith(".depth")},
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "miou": scores["miou"],
            "per_class": scores["per_class"],
            "predicted_ms": table.predict_ms(space.record().count(space.assignment(genotype))),
            "onnx_max_abs_difference": exported.max_abs_difference,
            "fit_seconds": seconds_of(out / "fit.log.jsonl"),
        }
    timings = measure_networks(
        {name: (network, [example]) for name, network in networks.items()}, backend
    ).timings
    for name, timing in timings.items():
        nets[name] |= {"measured_ms": timing.median_ms, "measured_spread_ms": timing.spread_ms}
    kept = read_json(options.work / "search.json")
    date = today()
    summary = {
        "question": "AutoRTNet searched and trained on CamVid train, evaluated on val, 360x480",
        "device": table.header.device.model_dump(mode="json"),
        "backend": f"{backend.name} {backend.precision}, threads {backend.threads}",
        "torch": torch.__version__,
        "date": date,
        "scale": options.scale,
        "space": space.model_dump(mode="json"),
        "search": kept["config"],
        "search_size": scale["search_size"],
        "search_batch": scale["search_batch"],
        "search_seconds": seconds_of(options.work / "search.log.jsonl"),
        "fit": FitConfig(**scale["fit"]).model_dump(mode="json"),
        "fit_batch": scale["fit_batch"],
        **nets,
    }
    stem = f"camvid_{slug(table.header.device.name)}_{date}"
    plots = options.results / stem
    write_report(RunFolder(options.work), png=plots)
    page = markdown(summary, [path.name for path in sorted(plots.glob("*.png"))], stem)
    write_result_files(options.results / stem, summary, page)


def seconds_of(log: Path) -> float:
    """Seconds of all epochs in a log, validation included, over however many processes they were spread."""
    return round(sum(event["seconds"] for event in read_log(log) if event["event"] == "epoch"), 1)


def main() -> None:
    """One stage, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--scale", choices=sorted(SCALES), default="cpu")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--set", action="append", default=[], help="search.NAME=JSON or fit.NAME=JSON")
    parser.add_argument(
        "--stage", choices=["profile", "search", "found", "random", "result", "all"], default="all"
    )
    options = parser.parse_args()
    scale = SCALES[options.scale]
    for text in options.set:
        name, value = text.split("=", 1)
        group, field = name.split(".", 1)
        scale[group][field] = json.loads(value)
    space = AutoRTNet.from_preset(scale.get("preset"), **scale["fields"])
    options.work.mkdir(parents=True, exist_ok=True)
    every = options.stage == "all"
    path = options.work / "table.json"
    if every or options.stage in ("profile", "result"):
        backend = backend_for(options.scale)
    if every or options.stage == "profile":
        stage_profile(space, backend, options.work)
    table = LatencyTable.load(path)
    if every or options.stage == "search":
        preset = AutoRTNet.preset(scale["preset"]).search if "preset" in scale else {}
        stage_search(space, table, SearchConfig(**{**preset, **scale["search"]}), options, scale)
    if options.stage in ("profile", "search"):
        return
    found = Genotype.load(options.work / "genotype.json")
    if every or options.stage == "found":
        stage_fit("found", found, space, options, scale)
    if every or options.stage == "random":
        wanted_ms = table.predict_ms(space.record().count(space.assignment(found)))
        rival, ms, drawn = random_genotype(space, table, wanted_ms, seed=1)
        print(
            f"random {rival.short_id}: {ms:.2f} ms (wanted {wanted_ms:.2f}), number {drawn} drawn", flush=True
        )
        stage_fit("random", rival, space, options, scale)
    if every or options.stage == "result":
        stage_result(space, table, backend, options, scale)


def markdown(summary: dict[str, Any], plots: list[str], folder: str) -> str:
    """The result as a page."""
    found, rival = summary["found"], summary["random"]
    rows = [
        "| network | val mIoU % | parameters M | table ms | measured ms | depths | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, net in (("searched", found), ("random, similar table latency", rival)):
        depths = ", ".join(net["depth"].values())
        rows.append(
            f"| {name} ({net['id']}) | {net['miou']:.2f} | {net['parameters'] / 1e6:.2f} "
            f"| {net['predicted_ms']:.2f} | {net['measured_ms']:.2f} ± {net['measured_spread_ms']:.2f} "
            f"| {depths} | {net['fit_seconds']:.0f} |"
        )
    classes = ["| class | searched | random |", "|---|---|---|"]
    for name, value in found["per_class"].items():
        classes.append(f"| {name} | {value:.1f} | {rival['per_class'][name]:.1f} |")
    search_config, fit_config = summary["search"], summary["fit"]
    return "\n".join(
        [
            f"# {summary['question']}",
            "",
            f"{summary['device']['name']}, {summary['backend']}, torch {summary['torch']}, "
            f"{summary['date']}.",
            f"Search: {search_config['epochs']} epochs at {tuple(summary['search_size'])}, "
            f"batch {summary['search_batch']}, λ = {search_config['penalty']['weight']} "
            f"({search_config['penalty']['form']}), seed {search_config['seed']}; "
            f"{summary['search_seconds']:.0f} s.",
            f"Training: {fit_config['epochs']} epochs at 360x480, batch {summary['fit_batch']}, seed "
            f"{fit_config['seed']}, no pre-training.",
            "",
            *rows,
            "",
            *classes,
            "",
            *(f"![{Path(name).stem}]({folder}/{name})" for name in plots),
            "",
            "Written by benchmarks/camvid.py. "
            "Val is one street filmed at 15 Hz: it predicts other streets poorly.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
