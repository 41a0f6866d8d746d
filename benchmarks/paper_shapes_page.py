"""What benchmarks/paper_shapes.py writes of its numbers: the result file, verdicts, page and plots."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paper_shapes_numbers import compared, depth_result, noise, others_result, random_result, sweep_result
from paper_shapes_runs import BASE, BASE_WEIGHT, BATCH, CELLS, FIT, SEARCH, SIZE, Bench
from result_files import read_lines, slug, today, write_result_files

from hwnas.cli import drawing
from hwnas.core import figures
from hwnas.core.runlog import read_log
from hwnas.latency.device import Device

MARGIN = 1.5
"""By how many percent of mIoU the searched network is to lie above the mean of random ones."""


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
        figures.save_png(drawn, out / pictures[name])
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
        with figures.styled():
            drawn = figures.figure(6.4, 3.8)
            axes = drawn.add_subplot()
            for some, style, colour, label in (
                (rivals, ".", "#999999", "random networks"),
                (rows, "-o", figures.LINES[0], "searched"),
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
