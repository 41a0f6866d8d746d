"""What a search step costs on a GPU: AutoRTNet's paper space, 360×480, batches of 16, eager and optimised.

The steps are those of search_cost.py, without the loading of images. Each variant runs by itself, since
several do not fit into memory together; one that does not fit alone is said to.

Run:  python benchmarks/search_cost_gpu.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from result_files import slug, today, write_result_files
from search_cost import ours

from hwnas.latency.device import Device

VARIANTS = (
    "hard",
    "hard channels_last bf16",
    "soft",
    "soft channels_last bf16",
    "soft cuda_graph",
    "soft channels_last bf16 cuda_graph",
)
SEARCH = {"epochs": 150, "images": 367}
"""The paper's search on CamVid."""


def measured(variant: str, size: dict[str, int], device: str, steps: int) -> dict[str, Any]:
    """What a step takes, after the first few, and the peak of memory; or that there was too little of it."""
    is_cuda = torch.device(device).type == "cuda"

    def wait() -> None:
        if is_cuda:
            torch.cuda.synchronize(device)

    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step = ours(set(variant.split()), size, device)
        for _ in range(3):
            step()
        seconds = []
        for _ in range(steps):
            wait()
            began = time.perf_counter()
            step()
            wait()
            seconds.append(time.perf_counter() - began)
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}
    finally:
        step = None  # type: ignore[assignment]  # what it holds is freed before the next variant
        gc.collect()
        if is_cuda:
            torch.cuda.empty_cache()
    return {
        "steps": steps,
        "mean_ms": 1000 * statistics.fmean(seconds),
        "median_ms": 1000 * statistics.median(seconds),
        "slowest_ms": 1000 * max(seconds),
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if is_cuda else None,
    }


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    steps = SEARCH["epochs"] * (SEARCH["images"] // result["batch"])
    lines = [
        "# What a search step costs on a GPU",
        "",
        f"AutoRTNet, preset paper, {result['height']}×{result['width']}, batch {result['batch']}, "
        f"{result['device']['name']}, torch {result['torch']}, {result['date']}. Images lie on the device. "
        f"The paper's search on CamVid, {SEARCH['epochs']} epochs of {SEARCH['images']} images, takes "
        f"{steps} such steps.",
        "",
        "| step | mean ms | median ms | slowest ms | peak GiB | minutes of the paper's search |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["variants"].items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | | | |")
            continue
        peak = "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        lines.append(
            f"| {name} | {row['mean_ms']:.1f} | {row['median_ms']:.1f} | {row['slowest_ms']:.1f} | {peak} "
            f"| {row['mean_ms'] * steps / 60_000:.1f} |"
        )
    return "\n".join([*lines, "", "Written by benchmarks/search_cost_gpu.py.", ""])


def main() -> None:
    """Run all variants, and write what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    size = {"height": options.height, "width": options.width, "batch": options.batch}
    device = Device.find(options.device)
    variants = {}
    for variant in options.variants:
        variants[variant] = measured(variant, size, options.device, options.steps)
        print(variant, variants[variant], flush=True)
    result = {
        "question": "what a search step costs on a GPU",
        **size,
        "device": device.model_dump(mode="json"),
        "torch": torch.__version__,
        "date": today(),
        "variants": variants,
    }
    write_result_files(options.out / f"search_cost_gpu_{slug(device.name)}_{today()}", result, page(result))


if __name__ == "__main__":
    main()
