"""The numbers of benchmarks/paper_shapes.py: what its runs say of each table and figure of the paper."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from intervals import half_width
from paper_shapes_runs import BASE, RIVALS, SEARCH, STABILITY, SWEEP, Bench
from scipy import stats

from hwnas.core.runlog import read_log


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
        "half_width": half_width(mious),
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
