"""What exporting costs in mIoU: one trained run's network in fp32, fp16 and int8, each evaluated as a file.

    python benchmarks/export_quality.py RUN --data camvid:DIR

Every file is written by what ``hwnas export`` calls and scored by what ``hwnas eval FILE.onnx`` calls, beside
the network in PyTorch. Latency is left to ``hwnas measure FILE.onnx`` on a quiet machine. Run again, it goes
on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from result_files import slug, today, write_result_files

from hwnas import Genotype
from hwnas.cli.data import DataChoice
from hwnas.cli.evaluate import net_eval, run_eval
from hwnas.cli.export import run_export
from hwnas.cli.folder import RunFolder
from hwnas.core.weights import digest
from hwnas.deploy.description import ExportPrecision
from hwnas.files import read_json, write_json
from hwnas.latency.device import Device
from hwnas.latency.export import require_onnxruntime

FILES: tuple[ExportPrecision, ...] = ("fp32", "fp16", "int8")


def score(precision: ExportPrecision, run: Path, images: DataChoice, work: Path) -> dict[str, Any]:
    """Export one file and evaluate it."""
    path = work / f"{precision}.onnx"
    exported = run_export(str(run), path, images, precision=precision)
    return exported | net_eval(str(path), images, images.val)


def main() -> None:
    """Export, evaluate, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="as in hwnas eval: camvid:DIR")
    parser.add_argument("--work", type=Path, default=Path("runs/export_quality"))
    parser.add_argument("--label", help="Goes into the names of the result files, and into the title.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    images = DataChoice.of(options.data, 4, {})
    # By weights: what is kept of one network, or written meanwhile, is nothing to another.
    work = options.work / digest(RunFolder(options.run).network().state_dict())[:12]
    kept = work / "scores.json"
    scores: dict[str, Any] = read_json(kept) if kept.is_file() else {}
    if "PyTorch" not in scores:
        scores["PyTorch"] = run_eval(RunFolder(options.run), images, images.val, device="cpu", pictures=0)
    for name in FILES:
        if name not in scores:
            scores[name] = score(name, options.run, images, work)
            write_json(kept, scores)
    for name, found in scores.items():
        print(f"{name}: mIoU {found['miou']:.3f} %", flush=True)
    date = today()
    device = Device.find("cpu")
    summary = {
        "question": "What does exporting cost in mIoU?" + (f" {options.label}" if options.label else ""),
        "date": date,
        "device": device.name,
        "torch": torch.__version__,
        "onnxruntime": require_onnxruntime("evaluate files").__version__,
        "genotype": Genotype.load(options.run / "genotype.json").short_id,
        "data": images.name.partition(":")[0],
        # Where files lie on this machine is nobody's business.
        "scores": {
            name: {key: value for key, value in found.items() if key not in ("path", "data")}
            for name, found in scores.items()
        },
    }
    label = f"{slug(options.label)}_" if options.label else ""
    stem = f"export_quality_{label}{slug(device.name)}_{date}"
    write_result_files(options.results / stem, summary, markdown(summary))


def markdown(summary: dict[str, Any]) -> str:
    """The result as a page."""
    scores = summary["scores"]
    whole = scores["PyTorch"]
    rows = [
        "| file | MiB | mIoU % | lost | same class as PyTorch, % of pixels |",
        "|---|---|---|---|---|",
        f"| PyTorch | | {whole['miou']:.2f} | | |",
    ]
    rows += [
        f"| {name} | {found['size_bytes'] / 2**20:.2f} | {found['miou']:.2f} "
        f"| {whole['miou'] - found['miou']:+.2f} | {found['agreement_percent']:.2f} "
        f"({found['images_compared']} images) |"
        for name, found in scores.items()
        if name != "PyTorch"
    ]
    classes = ["| class | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for name in whole["per_class"]:
        values = (found["per_class"][name] for found in scores.values())
        classes.append(
            f"| {name} | " + " | ".join("-" if value is None else f"{value:.1f}" for value in values) + " |"
        )
    int8 = scores["int8"]
    return "\n".join(
        [
            f"# {summary['question']}",
            "",
            f"{summary['device']}, ONNX Runtime {summary['onnxruntime']} (CPU), torch {summary['torch']}, "
            f"{summary['date']}. Network {summary['genotype']} on {summary['data']}, {whole['images']} "
            f"images of {whole['split']}; int8 calibrated on {int8['calibration_images']} training images.",
            "",
            *rows,
            "",
            *classes,
            "",
            "Written by benchmarks/export_quality.py. A negative loss is a gain by chance.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
