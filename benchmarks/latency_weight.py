"""Does the latency of the found network fall as λ rises? AutoRTNet, preset small, on synthetic scenes.

One table of this CPU (ONNX Runtime, one thread), one search for each λ, all else equal.
Run:  python benchmarks/latency_weight.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from result_files import today, write_result_files

from hwnas import SearchConfig, SearchData, search
from hwnas.latency.device import Device
from hwnas.latency.onnxruntime import OnnxRuntimeBackend
from hwnas.latency.profile import profile_keys
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import SyntheticScenes, training_loader

WEIGHTS = (0.0, 0.03, 0.3, 3.0)


def main() -> None:
    """Search once for each λ and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--scenes", type=int, default=160)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (96, 192)
    space = AutoRTNet.from_preset("small", num_classes=8)
    device = Device.find("cpu")
    table = profile_keys(
        space.record().keys(), OnnxRuntimeBackend(device, threads=1), input_shape=space.input_shape()
    )
    data = SyntheticScenes("train", size=size, length=options.scenes, augment=True, cache=True)
    rows = []
    for weight in WEIGHTS:
        config = SearchConfig(
            epochs=options.epochs,
            depth_from_epoch=2,
            arch_lr=0.03,
            weight_lr=0.05,
            device="cpu",
            penalty={"form": "log", "weight": weight},
        )
        began = time.perf_counter()
        result = search(space, table, SearchData(train=training_loader(data, 8)), config)
        depths = [v for n, v in sorted(result.genotype.choices.items()) if n.endswith(".depth")]
        rows.append(
            {
                "lambda": weight,
                "genotype": result.genotype.short_id,
                "predicted_ms": result.predicted_ms,
                "expected_ms": result.expected_ms,
                "depths": depths,
                "search_seconds": time.perf_counter() - began,
            }
        )
        print(rows[-1], flush=True)
    date = today()
    summary = {
        "question": "table latency of the found network against the latency weight λ (log penalty)",
        "device": device.model_dump(mode="json"),
        "backend": "onnxruntime cpu, fp32, 1 thread",
        "torch": torch.__version__,
        "date": date,
        "space": space.model_dump(mode="json"),
        "epochs": options.epochs,
        "scenes": options.scenes,
        "rows": rows,
    }
    lines = ["| λ | predicted ms | expected ms | depths |", "|---|---|---|---|"]
    lines += [
        f"| {row['lambda']} | {row['predicted_ms']:.3f} | {row['expected_ms']:.3f} "
        f"| {', '.join(row['depths'])} |"
        for row in rows
    ]
    heading = [f"# {summary['question']}", "", f"{device.name}, {summary['backend']}, {date}. Seed 0.", ""]
    stem = options.out / f"latency_weight_cpu_{date}"
    write_result_files(stem, summary, "\n".join([*heading, *lines, ""]))


if __name__ == "__main__":
    main()
