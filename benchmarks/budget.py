"""Is a target in milliseconds met? AutoRTNet at the table's size: asked, predicted, measured, corrected.

For each target a short search (drawn scenes, or CamVid, in small pictures: which networks are good is not the
question here), the exact discretisation, its measurement and, where that misses, correction and another
network. In the end all networks found are measured once more, together, in processes of their own.

    python benchmarks/budget.py --lut TABLE                      (everything)
    python benchmarks/budget.py --lut TABLE --stage search       (needs no quiet machine)
    python benchmarks/budget.py --lut TABLE --stage measure      (does)
    python benchmarks/budget.py --lut TABLE --stage again        (does; then the result files)

Each stage keeps what it has done in the work folder, target by target, and goes on from there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from result_files import slug, today, write_result_files

from hwnas import BudgetConfig, Genotype, LatencyTable, SearchConfig, SearchData, search
from hwnas.cli.machine import Machine, recorded_options
from hwnas.core import figures
from hwnas.core.confirm import BudgetOutcome
from hwnas.core.cost_ranges import Range, ranges
from hwnas.core.probing import network_subjects
from hwnas.files import read_json, write_json
from hwnas.latency.backend import LatencyBackend
from hwnas.latency.measuring import ProfileSettings, measure_subjects
from hwnas.latency.timing import Timing
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import CamVid, SyntheticScenes, training_loader

SIZE = (96, 128)
BATCH = 4
CONFIG = {
    "epochs": 6,
    "device": "cpu",
    "arch_lr": 0.02,
    "weight_lr": 0.05,
    "channels_last": True,
}


def space_of(table: LatencyTable) -> AutoRTNet:
    """The space that the table was measured for."""
    fields = dict(table.header.space)
    name = fields.pop("name", None)
    if name != AutoRTNet.name:
        raise SystemExit(f"the table is of {name}; this benchmark searches {AutoRTNet.name}")
    return AutoRTNet(**fields)


def default_targets(latency: Range, count: int = 6) -> list[float]:
    """Targets in equal ratios from a little above the fastest network to far up, to two digits."""
    low, high = 1.3 * latency.min, 0.7 * latency.max
    steps = [low * (high / low) ** (step / (count - 1)) for step in range(count)]
    return [float(f"{target:.2g}") for target in steps]


def loader(data: Path | None, scenes: int) -> Any:
    """Small augmented pictures."""
    if data is not None:
        return training_loader(CamVid(data, "train", size=SIZE, augment=True, cache=True), BATCH)
    return training_loader(
        SyntheticScenes("train", size=SIZE, length=scenes, augment=True, cache=True), BATCH
    )


def searched(
    space: AutoRTNet,
    table: LatencyTable,
    target_ms: float,
    options: argparse.Namespace,
    backend: LatencyBackend | None,
) -> None:
    """The search for one target in a folder of its own; with a backend what it found is measured."""
    out = options.work / f"{target_ms:g}ms"
    if outcome_in(out, measured=backend is not None) is not None:
        return
    began = time.perf_counter()
    result = search(
        space,
        table,
        SearchData(train=loader(options.data, options.scenes)),
        SearchConfig(**CONFIG, target_ms=target_ms),
        out=out,
        resume=(out / "search.json").exists(),
        backend=backend,
    )
    assert result.budget is not None
    print(
        f"{target_ms:g} ms: {result.genotype.short_id} predicted {result.predicted_ms:.3f}, "
        f"measured {result.budget.measured_ms}, {time.perf_counter() - began:.0f} s "
        + " ".join(result.budget.remarks),
        flush=True,
    )


def outcome_in(out: Path, *, measured: bool) -> BudgetOutcome | None:
    """How the search in a folder ended; None where it has not, or was not measured and should be."""
    path = out / "result.json"
    if not path.exists():
        return None
    outcome = BudgetOutcome.model_validate(read_json(path)["budget"])
    return None if measured and (outcome.met is None or outcome.remarks) else outcome


def measured_again(
    space: AutoRTNet, genotypes: list[Genotype], backend: LatencyBackend, batch: int, path: Path
) -> dict[str, Timing]:
    """All networks in interleaved rounds, in processes that measured none of them; kept at ``path``."""
    subjects = network_subjects(space, genotypes, batch=batch)
    if path.exists():
        kept = read_json(path)
        if set(kept) == set(subjects):
            return {name: Timing.model_validate(timing) for name, timing in kept.items()}
    settings = ProfileSettings(seed=17, rounds=18, most_rounds=54, processes=6)
    found = measure_subjects({name: network.subject for name, network in subjects.items()}, backend, settings)
    found.require_quiet(settings, "The networks were not kept.")
    content = {name: timing.model_dump(mode="json") for name, timing in found.timings.items()}
    write_json(path, content, indent=None)
    return found.timings


def row(space: AutoRTNet, target_ms: float, out: Path, again: dict[str, Timing]) -> dict[str, Any]:
    """One target's numbers."""
    outcome = outcome_in(out, measured=True)
    assert outcome is not None and outcome.measured_ms is not None
    genotype = Genotype.load(out / "genotype.json")
    first = outcome.attempts[0]
    timing = again[genotype.short_id]
    with torch.device("meta"):
        network = space.build(genotype)
    return {
        "asked_ms": target_ms,
        "genotype": genotype.short_id,
        "first_predicted_ms": first.table_ms,
        "first_measured_ms": first.measured_ms,
        "networks_measured": len(outcome.attempts),
        "correction": outcome.correction,
        "predicted_ms": outcome.predicted_ms,
        "measured_ms": outcome.measured_ms,
        "met": outcome.met,
        "again_ms": timing.median_ms,
        "again_spread_ms": timing.spread_ms,
        "again_percent": 100 * (timing.median_ms / target_ms - 1),
        "depths": [value for name, value in sorted(genotype.choices.items()) if name.endswith(".depth")],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "attempts": [attempt.model_dump(mode="json", exclude={"genotype"}) for attempt in outcome.attempts],
    }


def plotted(rows: list[dict[str, Any]], budget: BudgetConfig, title: str) -> Any:
    """Measured against asked, in percent of what was asked."""
    with figures.styled():
        drawn = figures.figure(6.4, 3.4)
        axes = drawn.add_subplot()
        axes.axhspan(-100 * budget.below, 100 * budget.above, color="#e8f1f8", label="accepted")
        for index, (name, label, marker) in enumerate(
            [
                ("first_measured_ms", "first network", "o"),
                ("measured_ms", "network taken", "s"),
                ("again_ms", "measured again", "x"),
            ]
        ):
            axes.plot(
                [row["asked_ms"] for row in rows],
                [100 * (row[name] / row["asked_ms"] - 1) for row in rows],
                marker,
                color=figures.LINES[index],
                label=label,
            )
        axes.set_xscale("log")
        axes.set_xlabel("asked [ms]")
        axes.set_ylabel("measured ÷ asked − 1 [%]")
        axes.set_title(title)
        axes.legend()
    return drawn


def main() -> None:
    """One stage, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lut", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="CamVid; drawn scenes where left out")
    parser.add_argument("--targets", type=float, nargs="+", help="milliseconds")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--work", type=Path, default=Path("runs/budget"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--stage", choices=["search", "measure", "again", "all"], default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = LatencyTable.load(options.lut)
    space = space_of(table)
    latency = ranges(space, table)["latency_ms"]
    targets = options.targets or default_targets(latency)
    print(f"networks take {latency} ms by the table; targets {targets}", flush=True)
    every = options.stage == "all"
    if every or options.stage == "search":
        for target_ms in targets:
            searched(space, table, target_ms, options, None)
    if options.stage == "search":
        return
    backend = Machine.of(table.header).make(**recorded_options(table.header))
    table.check(backend=backend)
    if every or options.stage == "measure":
        for target_ms in targets:
            searched(space, table, target_ms, options, backend)
    if options.stage == "measure":
        return
    folders = {target_ms: options.work / f"{target_ms:g}ms" for target_ms in targets}
    missing = [target_ms for target_ms, out in folders.items() if outcome_in(out, measured=True) is None]
    if missing:
        raise SystemExit(f"not measured yet: {missing}; run --stage measure again, on a quiet machine")
    genotypes = [Genotype.load(out / "genotype.json") for out in folders.values()]
    again = measured_again(space, genotypes, backend, table.header.batch, options.work / "again.json")
    rows = [row(space, target_ms, out, again) for target_ms, out in folders.items()]
    write_result(table, space, latency, rows, options)


def write_result(
    table: LatencyTable,
    space: AutoRTNet,
    latency: Range,
    rows: list[dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """The result file, its page and its plot."""
    budget = BudgetConfig()
    header = table.header
    date = today()
    low, high = 100 * -budget.below, 100 * budget.above
    summary: dict[str, Any] = {
        "question": "is a target in milliseconds met when the network is measured?",
        "device": header.device.model_dump(mode="json"),
        "backend": f"{header.backend} {header.precision}, threads {header.threads}",
        "versions": header.versions,
        "torch": torch.__version__,
        "date": date,
        "space": space.model_dump(mode="json"),
        "table": {"protocol": header.protocol, "verified": table.current_verification is not None},
        "latency_ms": {"min": latency.min, "median": latency.median, "max": latency.max},
        "search": {**CONFIG, "size": SIZE, "batch": BATCH, "data": "camvid" if options.data else "synthetic"},
        "budget": budget.model_dump(mode="json"),
        "within": sum(low <= row["again_percent"] <= high for row in rows),
        "worst_above_percent": max(row["again_percent"] for row in rows),
        "first_within": sum(
            low <= 100 * (row["first_measured_ms"] / row["asked_ms"] - 1) <= high for row in rows
        ),
        "rows": rows,
    }
    stem = f"budget_{header.backend}_{slug(header.device.name)}_{date}"
    figures.save_png(
        plotted(rows, budget, f"{header.device.name}, {header.backend}"), options.results / f"{stem}.png"
    )
    write_result_files(options.results / stem, summary, markdown(summary, f"{stem}.png"))


def markdown(summary: dict[str, Any], plot: str) -> str:
    """The result as a page."""
    latency, budget = summary["latency_ms"], summary["budget"]
    height, width = summary["space"]["height"], summary["space"]["width"]
    lines = [
        f"# {summary['question']}",
        "",
        f"AutoRTNet at {height}x{width}, {summary['device']['name']}, {summary['backend']}, "
        f"{summary['date']}; a table of protocol {summary['table']['protocol']}"
        f"{'' if summary['table']['verified'] else ', not calibrated'}. By it the networks of the space take "
        f"{latency['min']:.2f} ms (min), {latency['median']:.2f} ms (median), {latency['max']:.2f} ms (max).",
        "",
        f"Accepted: {100 * budget['below']:g} % below to {100 * budget['above']:g} % above what was asked. "
        f"Measured again at the end, {summary['within']} of {len(summary['rows'])} networks lie within, the "
        f"slowest {summary['worst_above_percent']:+.1f} % off its target; of the first networks, before any "
        f"correction, {summary['first_within']}.",
        "",
        "| asked ms | first: predicted | measured | networks | correction | taken: predicted | measured "
        "| again ms | off % | depths | parameters M |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        lines.append(
            f"| {row['asked_ms']:g} | {row['first_predicted_ms']:.2f} | {row['first_measured_ms']:.2f} "
            f"| {row['networks_measured']} | {row['correction']:.3f} | {row['predicted_ms']:.2f} "
            f"| {row['measured_ms']:.2f} | {row['again_ms']:.2f} ± {row['again_spread_ms']:.2f} "
            f"| {row['again_percent']:+.1f} | {', '.join(row['depths'])} | {row['parameters'] / 1e6:.2f} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "Again: all networks in interleaved rounds, in six processes or more that measured none of them.",
            "",
            f"![measured against asked]({plot})",
            "",
            "Written by benchmarks/budget.py. The searches are short and on small pictures: the milliseconds "
            "are the result, not the networks' quality.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
