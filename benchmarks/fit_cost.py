"""What a training step costs on this device, by precision, memory order and compiler, for two networks.

One network of the zoo's space, dense convolutions only, and one of all of AutoRTNet's candidates, mostly
separable ones. Each way of training is one :func:`hwnas.fit` on crops of 240×320, batch 8; its first epoch,
with the compiling, is left out.

    python benchmarks/fit_cost.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from camvid_zoo import SPACE
from result_files import slug, today, write_result_files

from hwnas import FitConfig, fit
from hwnas.core.runlog import read_log
from hwnas.latency.device import Device
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import OhemCrossEntropy

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, channels last": {"channels_last": True},
    "fp32, channels last, compiled": {"channels_last": True, "compiled": True},
    "bf16, channels last": {"channels_last": True, "precision": "bf16"},
    "bf16, channels last, compiled": {"channels_last": True, "precision": "bf16", "compiled": True},
}
BATCH, SIZE = 8, (240, 320)


def seconds_per_step(space: AutoRTNet, way: dict[str, Any], *, device: str, steps: int, epochs: int) -> float:
    """Median over the epochs but the first of their seconds, by step."""
    generator = torch.Generator().manual_seed(0)
    network = space.build(space.random(generator))
    images = torch.randn(BATCH, 3, *SIZE, generator=generator)
    targets = torch.randint(0, space.num_classes, (BATCH, *SIZE), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            network,
            [(images, targets)] * steps,
            loss=OhemCrossEntropy(),
            config=FitConfig(epochs=epochs, lr=1e-4, device=device, **way),
            out=folder,
        )
        log = read_log(Path(folder) / "fit.log.jsonl")
    seconds = [event["seconds"] for event in log if event["event"] == "epoch"]
    return statistics.median(seconds[1:]) / steps


def main() -> None:
    """Time all ways, for both networks, twice over in two orders, and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = Device.find(options.device)
    spaces = {"dense": SPACE, "separable": AutoRTNet(cells=(3, 6, 6))}
    found: dict[str, dict[str, list[float]]] = {kind: {way: [] for way in WAYS} for kind in spaces}
    for order in (list(WAYS), list(WAYS)[::-1]):
        for way in order:
            for kind, space in spaces.items():
                seconds = seconds_per_step(
                    space, WAYS[way], device=options.device, steps=options.steps, epochs=options.epochs
                )
                found[kind][way].append(seconds)
                print(f"{kind}, {way}: {1e3 * seconds / BATCH:.1f} ms an image", flush=True)
    summary = {
        "question": "what an image costs in training, by precision, memory order and compiler",
        "device": device.model_dump(mode="json"),
        "threads": 1,
        "date": today(),
        "torch": torch.__version__,
        "batch": BATCH,
        "size": SIZE,
        "seconds_per_step": found,
    }
    stem = options.out / f"fit_cost_{slug(device.name)}_{summary['date']}"
    write_result_files(stem, summary, page(summary))


def page(summary: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [
        f"# {summary['question']}",
        "",
        f"{summary['device']['name']}, one thread, torch {summary['torch']}, {summary['date']}. One",
        f"random AutoRTNet each, crops of {SIZE[0]}x{SIZE[1]}, batch {BATCH}; forward, loss, backward, step.",
        "The quicker of two runs. Ratios are to the first line.",
        "",
        "| | dense, ms an image | ratio | separable, ms an image | ratio |",
        "|---|---|---|---|---|",
    ]
    best = {
        kind: {way: min(values) for way, values in ways.items()}
        for kind, ways in summary["seconds_per_step"].items()
    }
    for way in WAYS:
        cells = [
            f"{1e3 * best[kind][way] / BATCH:.1f} | {best[kind][way] / best[kind]['fp32']:.2f}"
            for kind in ("dense", "separable")
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Written by benchmarks/fit_cost.py.", ""])


if __name__ == "__main__":
    main()
