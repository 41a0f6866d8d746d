"""The shapes of the AutoRTNet paper's results at the scale of one CPU core, on CamVid at a low resolution.

Not its numbers: whether latency and mIoU fall as λ rises (Figure 6), whether the searched network beats
random ones of equal latency (Table 3), whether depths agree over initial counts of cells and seeds (Table 4)
and settle shallow first (Figure 5), and what the places of downsampling (Table 5) and aggregation (Table 6)
are worth. Each stage leaves its runs in the work folder, and goes on where SIGTERM or Ctrl-C stopped it:

    python benchmarks/paper_shapes.py --data DIR                      # all stages, then the result
    python benchmarks/paper_shapes.py --data DIR --stage sweep        # random, sweep, depths, positions, …
    python benchmarks/paper_shapes.py --data DIR --stage result       # from the runs that are there

Milliseconds are a formula's unless ``--lut`` brings a measured table of the same space.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from paper_shapes_page import write_result
from paper_shapes_runs import STAGES, Bench
from result_files import append_line

from hwnas.errors import Interrupted


def main() -> None:
    """One stage, or all of them and the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="CamVid's folder")
    parser.add_argument("--work", type=Path, default=Path("runs/paper_shapes"))
    parser.add_argument("--lut", type=Path, help="a measured table of the space; else a formula")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--stage", choices=[*STAGES, "result", "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.data, options.work, options.lut)
    before = len(bench.found)
    try:
        for stage in STAGES if options.stage == "all" else (options.stage,):
            if stage != "result":
                bench.run(stage)
                print(f"{stage}: all there", flush=True)
    except Interrupted as stopped:
        raise SystemExit(f"{stopped} Run the same command again.") from None
    finally:
        spent = {"cpu_seconds": time.process_time(), "runs": len(bench.found) - before}
        append_line(bench.work / "cpu_seconds.jsonl", spent)
    if options.stage in ("result", "all"):
        write_result(bench, options.results)


if __name__ == "__main__":
    main()
