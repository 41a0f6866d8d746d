"""The page and the plot of search_quality.py, from the numbers of its result file."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import half_width
from result_files import write_result_files


def interval(values: list[float]) -> dict[str, float]:
    """Mean and half-width of its 95 % interval, of two independent values or more."""
    half = half_width(values)
    assert half is not None
    return {"mean": statistics.fmean(values), "half_width": half}


def found_by_knowing(
    quality: Mapping[str, float], feasible: Sequence[Sequence[str]], deviation: float, draws: int = 4000
) -> dict[str, Any]:
    """Rank and regret that would be read for whoever always chose the best network, on average over noise.

    Which network is the best, the truth knows up to the noise of its trainings. Here networks' qualities are
    the measured ones brought towards their mean, until noise of that size on top would spread them as they
    are.

    Args:
        quality: measured, by network.
        feasible: the networks within each budget.
        deviation: of a measured quality.
        draws: of the noise.
    """
    random = np.random.default_rng(0)
    by_budget = []
    for names in feasible:
        measured = np.array([quality[name] for name in names])
        spread = float(measured.var())
        kept = math.sqrt(1.0 - deviation**2 / spread) if spread > deviation**2 else 0.0
        latent = measured.mean() + kept * (measured - measured.mean())
        read = latent + random.normal(0.0, deviation, (draws, len(latent)))
        best = read[:, int(latent.argmax())]
        by_budget.append(
            {
                "rank": 100.0 * float((read > best[:, None]).mean()),
                "regret": float((read.max(axis=1) - best).mean()),
            }
        )
    return {
        "rank": statistics.fmean(found["rank"] for found in by_budget),
        "regret": statistics.fmean(found["regret"] for found in by_budget),
        "by_budget": by_budget,
    }


def write(summary: dict[str, Any], stem: Path) -> None:
    """The result file, the page and the plot; what follows from truth and choices is computed anew."""
    known = summary["truth"]
    quality = known["miou"]
    known["best"], known["worst"] = max(quality.values()), min(quality.values())
    within = feasible(summary)
    summary["feasible"] = [len(names) for names in within]
    summary["found_by_knowing"] = found_by_knowing(
        quality, within, known["deviation_of_one_training"] / math.sqrt(len(known["seeds"]))
    )
    by_budget = {method: compared(summary, method) for method in summary["methods"]}
    # A seed's budgets hang together: its mean is one value.
    by_seed = {
        method: {
            what: [statistics.fmean(values) for values in zip(*(row[what] for row in rows), strict=True)]
            for what in ("regret", "rank")
        }
        for method, rows in by_budget.items()
    }

    def minus(method: str, other: str, what: str) -> dict[str, float]:
        pairs = zip(by_seed[method][what], by_seed[other][what], strict=True)
        return interval([one - two for one, two in pairs])

    for method, found in summary["methods"].items():
        found |= {what: interval(by_seed[method][what]) for what in ("regret", "rank")}
        found["minus_search"] = {what: minus(method, "search", what) for what in ("regret", "rank")}
        found["by_budget"] = [
            {what: interval(row[what]) for what in ("regret", "rank")} for row in by_budget[method]
        ]
        found["regret_minus_likeliest"] = minus(method, "likeliest", "regret")
    plot(summary, stem.with_name(f"{stem.name}.png"))
    write_result_files(stem, summary, page(summary, f"{stem.name}.png"))


def feasible(summary: Mapping[str, Any]) -> list[list[str]]:
    """The networks within each budget that choices are compared with.

    Those of the sample, not all that were trained: methods would be measured by one another.
    """
    known = summary["truth"]
    return [
        [name for name in known["sampled"] if known["ms"][name] <= limit] for limit in summary["budgets_ms"]
    ]


def compared(summary: Mapping[str, Any], method: str) -> list[dict[str, list[float]]]:
    """A method's regrets and ranks by seed, under each budget.

    Raises:
        ValueError: it chose a network that breaks a budget.
    """
    known = summary["truth"]
    quality, rows = known["miou"], []
    budgets = zip(summary["budgets_ms"], feasible(summary), summary["methods"][method]["chosen"], strict=True)
    for limit_ms, names, chosen in budgets:
        if slow := [name for name in chosen if known["ms"][name] > limit_ms]:
            raise ValueError(f"{method} chose {slow} under a budget of {limit_ms} ms.")
        best = max(quality[name] for name in names)
        better = [sum(quality[name] > quality[one] for name in names) for one in chosen]
        rows.append(
            {
                "regret": [best - quality[one] for one in chosen],
                "rank": [100.0 * count / len(names) for count in better],
            }
        )
    return rows


def is_all_trained(summary: Mapping[str, Any]) -> bool:
    """Whether choices are compared with every network of the space, and not with a sample."""
    return len(summary["truth"]["sampled"]) == int(summary["space"]["networks"])


def write_again(path: Path) -> None:
    """The page and the plot of a result file, from its numbers."""
    write(json.loads(path.read_text()), path.with_suffix(""))


def page(summary: dict[str, Any], picture: str) -> str:
    """The result as a page."""

    def shown(value: dict[str, float], digits: int = 1, sign: str = "") -> str:
        return f"{value['mean']:{sign}.{digits}f} ± {value['half_width']:.{digits}f}"

    cost, count, known = summary["costs_in_training_images"], summary["trials"], summary["truth"]
    settings, images, recipe = summary["search"], summary["images"], summary["recipe"]
    deviation = known["deviation_of_one_training"]
    space, size = summary["space"], len(known["sampled"])
    channels = [str(space["channels"] * 2**stage) for stage in range(space["stages"])]
    is_all = is_all_trained(summary)
    compared = "networks" if is_all else "sampled networks"
    trained = (
        "All networks"
        if is_all
        else f"A random sample of {size} networks, and those that a method chose, {len(known['miou'])} in all"
    )
    paragraphs = [
        f"{summary['device']['name']}, one thread, torch {summary['torch']}, {summary['date']}. Latency is a "
        "formula's (`hwnas.latency.formula`), not a device's.",
        f"**Space.** {space['networks']} networks: {('two', 'three')[space['stages'] - 2]} stages, each with "
        f"kernels of 1, 3 or 5 and one to four layers, {', '.join(channels[:-1])} and {channels[-1]} "
        "channels; CamVid's 468 labelled frames at 48×64, 11 classes, dealt out "
        f"in turn: {images['train']} train, {images['val']} validate, {images['test']} test. Neighbouring "
        "frames are alike, so scores are higher than on new streets.",
        f"**Truth.** {trained}, each trained for {recipe['epochs']} epochs with {len(known['seeds'])} seeds "
        f"({known['cpu_minutes']:.0f} CPU minutes). A network's quality is its mean mIoU on the "
        f"test frames, {known['worst']:.1f} to {known['best']:.1f} %. One training deviates by "
        f"{deviation:.1f}, so this mean does by {deviation / math.sqrt(len(known['seeds'])):.1f}: "
        "differences of a few tenths mean little.",
        "**Cost.** In images that go forward and back; one that only goes forward counts a third. The search "
        f"takes {cost['search']:,.0f}: {settings['epochs']} epochs of shared weights, a forward step of the "
        f"choices beside each from epoch {settings['arch_from_epoch']} on, and {settings['candidates']} "
        f"candidates scored. (Training by the recipe once takes {cost['recipe']:,.0f}.) It runs once a seed "
        "and chooses under each budget; each choice is charged the whole search. At that cost random search "
        "and evolution "
        f"train the same supernet on uniform draws and score {count['shared']} networks with it, or train "
        f"{count['trained']} networks for {summary['short']['epochs']} epochs.",
        f"**Regret**: test mIoU of the best of the {compared} within the budget, minus that of the chosen "
        f"one. **Rank**: share of the {compared} within the budget that are better than the chosen one. "
        f"Means over {len(summary['seeds'])} seeds and all budgets, 95 % intervals over seeds. The last "
        f"columns: rank under each budget ({compared} within it). Settings were found with other seeds, on "
        f"{'the same networks' if is_all else 'the space of two stages'}.",
        f"**The best {'network itself' if is_all else 'of the sample'}**: what would be read for whoever "
        "always chose it, since the truth is as "
        "noisy as it is (simulated: qualities brought towards their mean, and noise put on again). That is "
        "an average: on this one truth a method may be read lower, by luck.",
    ]
    heads = [f"≤ {ms:.3f} ms ({n})" for ms, n in zip(summary["budgets_ms"], summary["feasible"], strict=True)]
    lines = [f"# {summary['question'].capitalize()}", ""]
    for paragraph in paragraphs:
        lines += [*textwrap.wrap(paragraph, 120, break_long_words=False), ""]
    lines += [
        "| | regret [% mIoU] | regret minus the search's | regret minus its likeliest's | rank [%] "
        "| rank minus the search's | " + " | ".join(heads) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(heads),
    ]
    for method, found in summary["methods"].items():
        regret, rank = (
            ("", "")
            if method == "search"
            else (
                shown(found["minus_search"][what], digits, "+")
                for what, digits in (("regret", 2), ("rank", 1))
            )
        )
        cells = [
            found["name"],
            *(shown(found["regret"], 2), regret),
            "" if method == "likeliest" else shown(found["regret_minus_likeliest"], 2, "+"),
            *(shown(found["rank"]), rank),
            *(shown(budget["rank"]) for budget in found["by_budget"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    knowing = summary["found_by_knowing"]
    by_budget = " | ".join(f"{budget['rank']:.1f}" for budget in knowing["by_budget"])
    best = "the best network itself" if is_all else "the best of the sample"
    lines.append(f"| {best} | {knowing['regret']:.2f} |  |  | {knowing['rank']:.1f} |  | {by_budget} |")
    return "\n".join([*lines, "", f"![truth and choices]({picture})", ""])


def plot(summary: dict[str, Any], path: Path) -> None:
    """Every network's quality against its milliseconds, the budgets, and what each method chose."""
    from hwnas.core import figures

    quality, ms = summary["truth"]["miou"], summary["truth"]["ms"]
    shown = ("search", "random-trained", "evolution-trained")
    with figures.styled():
        drawn = figures.figure(7.0, 4.2)
        axes = drawn.add_subplot()
        axes.plot(
            list(ms.values()),
            list(quality.values()),
            ".",
            color="#bbbbbb",
            markersize=4,
            label="all networks" if is_all_trained(summary) else "a sample, and what was chosen",
        )
        for limit_ms in summary["budgets_ms"]:
            axes.axvline(limit_ms, color="#888888", linewidth=0.8)
        for place, method in enumerate(shown):
            chosen = [name for names in summary["methods"][method]["chosen"] for name in names]
            axes.scatter(
                [ms[name] for name in chosen],
                [quality[name] - 0.12 * place for name in chosen],
                s=[10 + 12 * chosen.count(name) for name in chosen],
                facecolors="none",
                edgecolors=figures.LINES[place],
                label=summary["methods"][method]["name"],
            )
        axes.set(xlabel="milliseconds by a formula", ylabel="mIoU on the test frames [%]")
        axes.legend(loc="lower right")
        figures.save_png(drawn, path)
