"""What a search step costs: hard single-path sampling against the soft mixture, on the paper's space.

Each variant runs in a process of its own (peak memory belongs to a process), steps of the two take turns, and
the result is the ratio. Run:  python benchmarks/search_cost.py --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from hwnas import ArchParameters, assigned
from hwnas.core.relaxation import GumbelSoftmax
from hwnas.files import write_atomically
from hwnas.search_spaces.autortnet import AutoRTNet


def worker(hard: bool, height: int, width: int, batch: int) -> None:
    """Read "step" lines, do a search step for each, print its seconds; "end" prints peak MiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    space = AutoRTNet.from_preset("paper", height=height, width=width)
    net = space.supernet().train()
    arch = ArchParameters(net)
    generator = torch.Generator().manual_seed(0)
    weights = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    alphas = torch.optim.Adam(arch.parameters(), lr=1e-3)
    x = torch.rand(batch, 3, height, width)
    y = torch.randint(space.num_classes, (batch, height, width))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        began = time.perf_counter()
        draw = arch.draw(GumbelSoftmax(hard=hard), 3.0, generator)
        with assigned(net, arch, draw):
            loss = space.loss(net(x), y)
        weights.zero_grad()
        alphas.zero_grad()
        loss.backward()
        weights.step()
        alphas.step()
        print(time.perf_counter() - began, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


def main() -> None:
    """Run both variants in turns and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--worker", choices=["hard", "soft"])
    options = parser.parse_args()
    size = {"height": 180, "width": 240, "batch": 4}
    if options.worker:
        worker(options.worker == "hard", **size)
        return
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for name in ("hard", "soft")
    }

    def ask(name: str, line: str) -> float:
        child = children[name]
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(line + "\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    # What the interpreter, the libraries and the weights take before the first step, the same for both.
    before = {}
    for name, child in children.items():
        assert child.stdout is not None
        before[name] = float(child.stdout.readline())
    seconds: dict[str, list[float]] = {"hard": [], "soft": []}
    for round_number in range(options.rounds + 1):
        # A hard step's cost depends on the depth drawn: four of them for each soft one.
        for name in ["hard"] * 4 + ["soft"]:
            value = ask(name, "step")
            if round_number:
                seconds[name].append(value)
    peak = {name: ask(name, "end") for name in children}
    mean = {name: statistics.fmean(values) for name, values in seconds.items()}
    result = {
        "question": "seconds and peak memory of a search step, hard against soft",
        "space": "autortnet, preset paper",
        **size,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "steps": {name: len(values) for name, values in seconds.items()},
        "mean_seconds": mean,
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "process_mib_before_first_step": before,
        "peak_process_mib": peak,
        "soft_over_hard_seconds": mean["soft"] / mean["hard"],
        "soft_over_hard_peak_process": peak["soft"] / peak["hard"],
        "soft_over_hard_step_memory": (peak["soft"] - before["soft"]) / (peak["hard"] - before["hard"]),
    }
    path = options.out / f"search_cost_cpu_{result['date']}.json"
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
