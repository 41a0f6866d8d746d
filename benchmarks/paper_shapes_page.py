"""What benchmarks/paper_shapes.py makes of its runs: numbers, verdicts, page and plots."""

from __future__ import annotations

import itertools
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paper_shapes_runs import (
    BASE,
    BASE_WEIGHT,
    BATCH,
    CELLS,
    FIT,
    RIVALS,
    SEARCH,
    SIZE,
    STABILITY,
    SWEEP,
    Bench,
)
from result_files import read_lines, slug, today, write_result_files
from scipy import stats

from hwnas.cli import drawing
from hwnas.core.runlog import read_log
from hwnas.latency.device import Device

MARGIN = 1.5
"""By how many percent of mIoU the searched network is to lie above the mean of random ones."""


def scores(bench: Bench, name: str) -> dict[int, float]:
    """The mIoU of a network's trainings by seed, as far as they are there."""
    start = f"fit/{name}/"
    return {
        int(key.removeprefix(start)): run["miou"] for key, run in bench.found.items() if key.startswith(start)
    }


def row(bench: Bench, name: str) -> dict[str, Any] | None:
    """A trained network as a row: mIoU by seed, milliseconds, depths."""
    run = next((run for key, run in bench.found.items() if key.startswith(f"fit/{name}/")), None)
    if run is None:
        return None
    told = {field: run[field] for field in ("genotype", "ms", "parameters", "depths")}
    return {"name": name, **told, "miou_by_seed": scores(bench, name)}


def compared(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Give each row its mean ``miou`` over the seeds that all of them were trained with; these seeds.

    A seed is an order of the pictures, and moves all networks alike: those of different seeds do not compare.
    """
    seeds = sorted(set.intersection(*(set(one["miou_by_seed"]) for one in rows))) if rows else []
    for one in rows:
        one["miou"] = statistics.fmean(one["miou_by_seed"][seed] for seed in seeds) if seeds else None
    return seeds


def interval(values: list[float]) -> float | None:
    """Half-width of the 95 % interval of the mean of independent values (Student's t)."""
    if len(values) < 2:
        return None
    t = float(stats.t.ppf(0.975, len(values) - 1))
    return t * statistics.stdev(values) / len(values) ** 0.5


def noise(bench: Bench) -> dict[str, Any]:
    """Standard deviation of one training, apart from what a seed does to all networks.

    From the networks that were trained with seeds 0 and 1: half the variance of their differences.
    """
    names = {key.rsplit("/", 1)[0].removeprefix("fit/") for key in bench.found if key.startswith("fit/")}
    pairs = [pair for name in names if {0, 1} <= (pair := scores(bench, name)).keys()]
    if len(pairs) < 2:
        return {"std": None, "freedom": 0, "difference": None}
    moved = [pair[1] - pair[0] for pair in pairs]
    std = statistics.stdev(moved) / 2**0.5
    # What two trainings of equal networks with the same seed differ by at most, in 95 of 100 pairs.
    difference = float(stats.t.ppf(0.975, len(moved) - 1)) * 2**0.5 * std
    return {
        "std": std,
        "freedom": len(moved) - 1,
        "difference": difference,
        "seed_moves": statistics.fmean(moved),
    }


def sweep_result(bench: Bench) -> dict[str, Any]:
    """Figure 6."""
    rows, trained = [], []
    for what in sorted(SWEEP, key=lambda what: what.weight):
        if what.key not in bench.found:
            continue
        run = bench.found[what.key]
        found = {
            "lambda": what.weight,
            **{field: run[field] for field in ("ms", "expected_ms", "depths", "genotype")},
            "penalised_ms": bench.penalised_ms(bench.space(what.cells), run["assignment"]),
            "miou": None,
        }
        if network := row(bench, what.network):
            found |= {field: network[field] for field in ("parameters", "miou_by_seed")}
            trained.append(found)
        rows.append(found)
    seeds = compared(trained)
    falls = {}
    for field in ("ms", "penalised_ms", "expected_ms", "miou"):
        values = [one[field] for one in rows if one[field] is not None]
        falls[field] = [later < earlier for earlier, later in itertools.pairwise(values)]
    return {"rows": rows, "falls": falls, "planned": len(SWEEP), "seeds": seeds}


def random_result(bench: Bench) -> dict[str, Any] | None:
    """Table 3."""
    searched = row(bench, BASE.network)
    rivals = [found for count in range(RIVALS) if (found := row(bench, f"random_{count}"))]
    if searched is None or len(rivals) < 2:
        return None
    seeds = compared([searched, *rivals])
    mious = [rival["miou"] for rival in rivals]
    margin = searched["miou"] - statistics.fmean(mious)
    return {
        "searched": searched,
        "random": rivals,
        "seeds": seeds,
        "drawn": bench.found["rivals"]["drawn"],
        "mean": statistics.fmean(mious),
        "std": statistics.stdev(mious),
        "half_width": interval(mious),
        "margin": margin,
        # One more draw of the random networks' distribution would lie within this of their mean.
        "one_more": float(stats.t.ppf(0.975, len(mious) - 1))
        * statistics.stdev(mious)
        * (1 + 1 / len(mious)) ** 0.5,
        "beaten": sum(searched["miou"] > miou for miou in mious),
    }


def depth_result(bench: Bench) -> dict[str, Any]:
    """Table 4, and when each hyper-cell's depth was last changed (Figure 5)."""
    base = bench.found.get(BASE.key)
    rows = []
    for what in STABILITY:
        if what.key not in bench.found:
            continue
        epochs = [e for e in read_log(bench.work / what.key / "search.log.jsonl") if e["event"] == "epoch"]
        settled = {}
        for name in epochs[-1]["depth"]:
            course = [event["depth"][name]["argmax"] for event in epochs]
            changes = (i for i in range(1, len(course)) if course[i] != course[i - 1])
            settled[name] = 1 + max(changes, default=SEARCH.depth_from_epoch)
        rows.append(
            {
                "seed": what.seed,
                "cells": what.cells,
                "depths": bench.found[what.key]["depths"],
                "expected": [round(value["expected"], 2) for value in epochs[-1]["depth"].values()],
                "settled_epoch": list(settled.values()),
                "ms": bench.found[what.key]["ms"],
            }
        )
    told = {
        "rows": rows,
        "planned": len(STABILITY),
        "least": sum(one["depths"] == [1, 1, 1] for one in rows),
        "first_shallowest": sum(min(one["settled_epoch"]) == one["settled_epoch"][0] for one in rows),
    }
    if base is None or len(rows) < 2:
        return told
    near = [
        abs(depth - wanted) <= 1
        for one in rows
        if (one["cells"], one["seed"]) != (BASE.cells, BASE.seed)
        for depth, wanted in zip(one["depths"], base["depths"], strict=True)
    ]
    chance = [
        sum(abs(depth - wanted) <= 1 for depth in range(1, most + 1)) / most
        for one in rows
        if (one["cells"], one["seed"]) != (BASE.cells, BASE.seed)
        for most, wanted in zip(one["cells"], base["depths"], strict=True)
    ]
    return {**told, "near": sum(near), "of": len(near), "by_chance": sum(chance)}


def others_result(bench: Bench) -> dict[str, Any]:
    """Tables 5 and 6."""
    names = [key.split("/")[1] for key in bench.found if key.startswith("fit/")]
    found: dict[str, Any] = {}
    if all(what.key in bench.found for what in SWEEP):
        moved = [row(bench, name) for name in dict.fromkeys(names) if name.startswith("positions_")]
        searched = row(bench, bench.deep().network)
        seeds = compared([one for one in (searched, *moved) if one])
        found["positions"] = {"searched": searched, "moved": moved, "seeds": seeds}
    none, searched = row(bench, "aggregation_none"), row(bench, BASE.network)
    drawn = [row(bench, name) for name in dict.fromkeys(names) if name.startswith("aggregation_r")]
    seeds = compared([one for one in (none, *drawn, searched) if one])
    found["aggregation"] = {"none": none, "random": drawn, "searched": searched, "seeds": seeds}
    return found


def write_result(bench: Bench, out: Path) -> None:
    """The result file, its page and its plots."""
    space = bench.space()
    header = bench.table(space).header
    host = Device.find("cpu")
    date = today()
    pieces = read_lines(bench.work / "cpu_seconds.jsonl")
    summary: dict[str, Any] = {
        "question": "The shapes of the AutoRTNet paper's results, on CamVid at a low resolution",
        "device": host.model_dump(mode="json"),
        "torch": torch.__version__,
        "date": date,
        "latency": f"{header.backend} on {header.device.name}, at {space.height}x{space.width}",
        "measured": bench.lut is not None,
        "space": space.model_dump(mode="json"),
        "initial_cells": CELLS,
        "size": SIZE,
        "batch": BATCH,
        "search": SEARCH.model_dump(mode="json"),
        "fit": FIT.model_dump(mode="json"),
        "cpu_minutes": sum(piece["cpu_seconds"] for piece in pieces) / 60,
        "noise": noise(bench),
        "sweep": sweep_result(bench),
        "random": random_result(bench),
        "depths": depth_result(bench),
        **others_result(bench),
    }
    stem = out / f"paper_shapes_{slug(host.name)}_{date}"
    pictures = {}
    for name, drawn in plots(bench, summary).items():
        pictures[name] = f"{stem.name}_{name}.png"
        drawing.save_png(drawn, out / pictures[name])
    write_result_files(stem, summary, page(summary, pictures))


def plots(bench: Bench, summary: dict[str, Any]) -> dict[str, Any]:
    """Figures 5 and 6, where their runs are there."""
    found: dict[str, Any] = {}
    log = bench.work / BASE.key / "search.log.jsonl"
    curves = drawing.depth_curves([event for event in read_log(log) if event["event"] == "epoch"])
    if curves is not None:
        found["depth"] = curves
    rows = [dict(one) for one in summary["sweep"]["rows"] if one["miou"] is not None]
    rivals = [dict(one) for one in (summary["random"] or {}).get("random", [])]
    # Copies: in the plot only seeds that all of both have are compared.
    seeds = compared([*rows, *rivals])
    if len(rows) > 1 and seeds:
        with drawing.styled():
            drawn = drawing.figure(6.4, 3.8)
            axes = drawn.add_subplot()
            for some, style, colour, label in (
                (rivals, ".", "#999999", "random networks"),
                (rows, "-o", drawing.LINES[0], "searched"),
            ):
                axes.plot([one["ms"] for one in some], [one["miou"] for one in some], style, color=colour,
                          label=label)  # fmt: skip
            for one in rows:
                axes.annotate(
                    f"λ = {one['lambda']:g}", (one["ms"], one["miou"]), xytext=(4, 4),
                    textcoords="offset points",
                )  # fmt: skip
            kind = "by a measured table" if summary["measured"] else "by a formula"
            axes.set(xlabel=f"milliseconds {kind}", ylabel=f"val mIoU, seed {', '.join(map(str, seeds))} [%]")
            axes.legend(loc="lower right")
            found["sweep"] = drawn
    return found


def cells_of(depth: Sequence[int]) -> str:
    """As the paper writes them: {2, 4, 6}."""
    return "{" + ", ".join(map(str, depth)) + "}"


def seeds_of(one: dict[str, Any]) -> str:
    """The mean mIoU that is compared, and that of each seed where there are several."""
    several = one["miou_by_seed"]
    each = f" ({', '.join(f'{several[seed]:.1f}' for seed in sorted(several))})" if len(several) > 1 else ""
    return f"{one['miou']:.1f}{each}"


def page(summary: dict[str, Any], pictures: dict[str, str]) -> str:
    """The result as a page."""
    settings, recipe, height = summary["search"], summary["fit"], summary["space"]["height"]
    source = (
        f"a measured table's ({summary['latency']})"
        if summary["measured"]
        else "a formula's (`hwnas.latency.formula`), not a device's"
    )
    wide = "/".join(
        str(summary["space"]["init_channels"] * summary["space"]["channel_multiplier"] ** h)
        for h in (1, 2, 3)
    )
    spread = summary["noise"]
    scatter = (
        f"A seed is the pictures' order and the weights' beginning; seed 1 moves all networks by "
        f"{spread['seed_moves']:+.1f} on average, so only equal seeds are compared (below: the mean over the "
        "seeds that all rows of a table have, in brackets those of seeds 0 and 1). Apart from that one "
        "training's "
        f"mIoU deviates by {spread['std']:.1f} ({spread['freedom']} degrees of freedom): two trainings of "
        f'equal networks differ by up to {spread["difference"]:.1f} in 95 of 100 cases. "Within noise" below '
        "means that, over the root of the seeds compared."
        if spread["std"] is not None
        else "Too few networks were trained with two seeds, so the noise of one training is unknown."
    )
    lines = [f"# {summary['question']}", ""]
    for paragraph in (
        f"{summary['device']['name']}, one thread, torch {summary['torch']}, {summary['date']}; "
        f"{summary['cpu_minutes']:.0f} CPU minutes in all. Not the paper's numbers are asked for, but their "
        "shapes: each section says whether its shape holds.",
        f"**Space.** AutoRTNet with node widths {wide}, at most {cells_of(CELLS[0])} cells, "
        f"{summary['space']['aggregation']} wiring. Milliseconds are {source}, at {height}×"
        f"{summary['space']['width']}; pictures for training and validation have {SIZE[0]}×{SIZE[1]}, so "
        "that the milliseconds are not those of what is validated.",
        f"**Search.** {settings['epochs']} epochs of CamVid train at batch {summary['batch']}, single-level; "
        f"choices from epoch {settings['arch_from_epoch']}, depths from {settings['depth_from_epoch']} "
        f"(counted from 0); penalty λ · ln(µs), base λ = {BASE_WEIGHT:g}. **Training.** {recipe['epochs']} "
        "epochs for every network, from scratch, alike: far from trained out. Pictures are mirrored at "
        "random, and augmented no further. Val is one street filmed at 15 Hz: it predicts other streets "
        "poorly.",
        f"**Noise.** {scatter}",
    ):
        lines += said(paragraph)
    lines += [*sweep_page(summary, pictures), *random_page(summary)]
    lines += [*depth_page(summary, pictures), *others_page(summary)]
    return "\n".join([*lines, "Written by benchmarks/paper_shapes.py.", ""])


def said(text: str) -> list[str]:
    """A paragraph."""
    return [*textwrap.wrap(text, 120, break_long_words=False), ""]


def sweep_page(summary: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    """Figure 6."""
    sweep, difference = summary["sweep"], summary["noise"]["difference"]
    rows = sweep["rows"]
    lines = ["## λ against latency and mIoU (Figure 6)", ""]
    if len(rows) < 2:
        return [*lines, f"Not run: {len(rows)} of {sweep['planned']} searches are there.", ""]
    lines += [
        "| λ | ms | ms, aggregation all 1×1 | expected ms | depths | parameters k | val mIoU % |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        trained = f"{one['parameters'] / 1e3:.0f} | {seeds_of(one)}" if one["miou"] is not None else "| "
        lines.append(
            f"| {one['lambda']:g} | {one['ms']:.2f} | {one['penalised_ms']:.2f} | {one['expected_ms']:.2f} "
            f"| {cells_of(one['depths'])} | {trained} |"
        )
    lines.append("")
    falls = sweep["falls"]
    if len(rows) < sweep["planned"]:
        lines += [f"{len(rows)} of {sweep['planned']} searches are there.", ""]
    shapes = [
        f"{what} falls at each higher λ: {verdict(all(falls[field]))} ({sum(falls[field])} of "
        f"{len(falls[field])} steps fall)"
        for field, what in (
            ("ms", "Latency of the network found"),
            (
                "penalised_ms",
                "without the aggregation cell's choices, which bear no penalty (as in the paper), it",
            ),
            ("expected_ms", "expected latency, over the final probabilities,"),
        )
    ]
    text = "; ".join(shapes) + "."
    scored = [one for one in rows if one["miou"] is not None]
    if len(scored) > 1:
        drop = scored[0]["miou"] - scored[-1]["miou"]
        text += (
            f" The mIoU falls with it: {verdict(all(falls['miou']))} ({sum(falls['miou'])} of "
            f"{len(falls['miou'])} steps fall); from the lowest to the highest λ by {drop:.1f}"
            f"{within(drop, difference, sweep['seeds'])}."
        )
    return [*lines, *said(text), *shown(pictures, "sweep", "mIoU against latency")]


def shown(pictures: dict[str, str], name: str, what: str) -> list[str]:
    """A picture, if there is one."""
    return [f"![{what}]({pictures[name]})", ""] if name in pictures else []


def random_page(summary: dict[str, Any]) -> list[str]:
    """Table 3."""
    lines = ["## Against random networks of its latency (Table 3)", ""]
    found = summary["random"]
    if found is None:
        return [*lines, "Not run.", ""]
    lines += ["| network | ms | parameters k | depths | val mIoU % |", "|---|---|---|---|---|"]
    for name, one in (("searched", found["searched"]), *(("random", rival) for rival in found["random"])):
        lines.append(
            f"| {name} ({one['genotype']}) | {one['ms']:.2f} | {one['parameters'] / 1e3:.0f} "
            f"| {cells_of(one['depths'])} | {seeds_of(one)} |"
        )
    margin = found["margin"]
    sure = "outside" if abs(margin) > found["one_more"] else "within"
    return [
        *lines,
        "",
        *said(
            f"{len(found['random'])} random networks, of {found['drawn']} drawn, seeds compared: "
            f"{', '.join(map(str, found['seeds']))}: {found['mean']:.1f} ± "
            f"{found['std']:.1f} (standard deviation; 95 % interval of their mean ± "
            f"{found['half_width']:.1f}). The searched one lies {margin:+.1f} from their mean and above "
            f"{found['beaten']} of them. That the margin is at least {MARGIN} (the paper's is 6.2): "
            f"{verdict(margin >= MARGIN)}; the searched one is {sure} what 95 of 100 further random networks "
            f"would reach (their mean ± {found['one_more']:.1f})."
        ),
    ]


def depth_page(summary: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    """Table 4 and Figure 5."""
    found = summary["depths"]
    lines = ["## Depths over initial cells and seeds (Table 4)", ""]
    if len(found["rows"]) < 2:
        lines += [f"Not run: {len(found['rows'])} of {found['planned']} searches are there.", ""]
    else:
        lines += [
            "| seed | initial cells | found | expected | ms | argmax unchanged from epoch |",
            "|---|---|---|---|---|---|",
        ]
        for one in found["rows"]:
            lines.append(
                f"| {one['seed']} | {cells_of(one['cells'])} | {cells_of(one['depths'])} "
                f"| {', '.join(f'{value:.1f}' for value in one['expected'])} | {one['ms']:.2f} "
                f"| {', '.join(map(str, one['settled_epoch']))} |"
            )
        lines += [
            "",
            *said(
                f"All within ±1 cell of the first row: {verdict(found['near'] == found['of'])} "
                f"({found['near']} of {found['of']} depths are; of depths drawn uniformly, "
                f"{found['by_chance']:.1f} would be on average). {found['least']} of the searches end at one "
                f"cell each, the least there can be. {len(found['rows'])} of "
                f"{found['planned']} searches are there."
            ),
        ]
    lines += ["## Depth against the epoch (Figure 5)", ""]
    lines += shown(pictures, "depth", "depth of each hyper-cell against the epoch") or ["Not run.", ""]
    if found["rows"]:
        counted, count = found["first_shallowest"], len(found["rows"])
        lines += said(
            f"The first hyper-cell settles first, or with the first, in {counted} of {count} searches: "
            f"{verdict(counted == count)} as a rule. Settled is a depth whose argmax no longer changes; how "
            "far the expected depth is from it in the end says how little is decided."
        )
    return lines


def others_page(summary: dict[str, Any]) -> list[str]:
    """Tables 5 and 6."""
    difference = summary["noise"]["difference"]
    lines = ["## Places of downsampling (Table 5)", ""]
    places = summary.get("positions")
    if places is None or places["searched"] is None or not places["moved"]:
        lines += ["Not run.", ""]
    else:
        lines += ["| cells of the hyper-cells | reductions at | ms | val mIoU % |", "|---|---|---|---|"]
        for name, one in (("searched", places["searched"]), *(("random", m) for m in places["moved"])):
            a, b, _ = one["depths"]
            lines.append(
                f"| {name} {cells_of(one['depths'])} | 1, {1 + a}, {1 + a + b} | {one['ms']:.2f} "
                f"| {seeds_of(one)} |"
            )
        best = max(one["miou"] for one in places["moved"])
        ahead = places["searched"]["miou"] - best
        lines += [
            "",
            *said(
                f"The searched places give the best mIoU: {verdict(ahead > 0)} ({ahead:+.1f} against the "
                f"best of {len(places['moved'])} others{within(ahead, difference, places['seeds'])}"
                "). The same cells in all, so latencies differ. The first reduction is always the first "
                "cell: the space has no cells before it, as the paper's (3, 5, 8) has."
            ),
        ]
    lines += ["## Aggregation (Table 6)", ""]
    kinds = summary["aggregation"]
    if kinds["none"] is None or not kinds["random"] or kinds["searched"] is None:
        return [*lines, "Not run.", ""]
    random_mean = statistics.fmean(one["miou"] for one in kinds["random"])
    lines += ["| aggregation cell | ms | val mIoU % |", "|---|---|---|"]
    for name, one in (
        ("none", kinds["none"]),
        *(("random", one) for one in kinds["random"]),
        ("searched", kinds["searched"]),
    ):  # fmt: skip
        lines.append(f"| {name} | {one['ms']:.2f} | {seeds_of(one)} |")
    some = random_mean - kinds["none"]["miou"]
    found = kinds["searched"]["miou"] - random_mean
    return [
        *lines,
        "",
        *said(
            f"Random ones are better than none: {verdict(some > 0)} "
            f"({some:+.1f}{within(some, difference, kinds['seeds'])}). The searched one is better than "
            f"random ones: {verdict(found > 0)} ({found:+.1f} against the mean of {len(kinds['random'])}"
            f"{within(found, difference, kinds['seeds'])}). None: the third hyper-cell's "
            "output alone, enlarged to 1/8, by a wiring without edges; no option of the space says it, since "
            "every aggregation op convolves."
        ),
    ]


def verdict(holds: bool) -> str:
    """What the page says of a shape."""
    return "holds" if holds else "**does not hold**"


def within(difference: float, of_one_seed: float | None, seeds: Sequence[int]) -> str:
    """Whether a difference is one, as a clause."""
    if of_one_seed is None:
        return ""
    return ", within noise" if abs(difference) <= of_one_seed / len(seeds) ** 0.5 else ", beyond noise"
