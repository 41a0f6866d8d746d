"""How good is what a search chooses? Against the truth about a space's networks, random search, evolution.

Networks that label CamVid's streets at 48×64: stages, each of 1, 3 or 5 wide kernels and one to four layers.
Search, random search and evolution choose under budgets, with several seeds, each at the cost of the search;
and networks are trained alike, which tells what the choices are worth. Latency is a formula's, not a
device's: the question is the choice. There are two spaces:

- ``--space small``: two stages, 144 networks. All of them are trained: the best one is known.
- ``--space large``: three stages, 1728 networks. Those that anything chose are trained, and a random sample.
  Here no method can try a good part of the space.

Stages keep their results in the work folder and go on where they stopped; several processes can share them:

    python benchmarks/search_quality.py choose --data DIR    # --seconds 500: again, until all is there
    python benchmarks/search_quality.py choose --data DIR --part 0/2     # and 1/2 beside it
    python benchmarks/search_quality.py truth --data DIR     # likewise, after choose
    python benchmarks/search_quality.py result
    python benchmarks/search_quality.py page --of FILE.json  # page and plot anew, from a result's numbers
"""

from __future__ import annotations

import argparse
import itertools
import math
import shutil
import statistics
import time
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from result_files import append_line, read_lines, today
from search_quality_page import write, write_again
from search_quality_space import BATCH, BUDGETS, QUESTIONS, SIZES, Images, Question, StreetChain, load
from torch import Tensor, nn

from hwnas import (
    AgeingEvolution,
    ArchParameters,
    BaselineConfig,
    BudgetConfig,
    FitConfig,
    RandomSearch,
    SearchConfig,
    SearchData,
    SearchResult,
    SharedWeights,
    ShortTraining,
    baseline,
    fit,
    search,
)
from hwnas.core.budget import Budget
from hwnas.core.candidates import WithinBudget
from hwnas.core.searched import Searched
from hwnas.latency.device import Device

RECIPE = FitConfig(epochs=20, lr=0.05, warmup_epochs=1, device="cpu")
WEIGHTS = SearchConfig(
    epochs=60, weight_lr=0.05, weight_decay=5e-4, device="cpu", statistics_batches=12, validate_every=60
)
"""How weights are trained that networks share, in the search and in the baselines."""
SEARCH = WEIGHTS.model_copy(
    update={
        "arch_from_epoch": 20, "arch_lr": 0.03, "arch_weight_decay": 0.0, "explore": 1.0,
        "entropy_weight": 0.02, "candidates": 16,
    }
)  # fmt: skip
CEILING = BudgetConfig(steers=False, below=None)
"""How the search takes a budget, as the baselines do: networks far below it will do."""
SHORT = RECIPE.model_copy(update={"epochs": 5})
"""How the baselines train networks one by one: a quarter of the recipe, so that they can try more of them."""
FORWARD = 1 / 3
"""Cost of an image that only goes forward, where one that trains weights costs 1."""


class Cache:
    """Finished pieces of work, a JSON line each, by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = dict(read_lines(path))

    def add(self, key: str, value: Any) -> None:
        """Keep a piece."""
        self.found[key] = value
        append_line(self.path, [key, value])


@dataclass(frozen=True)
class Share:
    """What one process does of a stage: about every ``of``-th piece of work, until it is late.

    ``until`` is a moment of ``time.monotonic()``.
    """

    place: int
    of: int
    until: float

    def is_mine(self, key: str) -> bool:
        """Whether a piece of work is this process's, whatever pieces there are besides."""
        return zlib.crc32(key.encode()) % self.of == self.place

    def is_late(self) -> bool:
        """Whether to stop."""
        return time.monotonic() > self.until


def to_train(question: Question, chosen: Mapping[str, Any]) -> list[str]:
    """The networks whose quality is wanted: the sampled, and those that anything chose.

    Raises:
        SystemExit: not everything has chosen.
    """
    wanted = itertools.product(NAMES, question.seeds, BUDGETS)
    if missing := sum(f"{method}/{seed}/{limit}" not in chosen for method, seed, limit in wanted):
        raise SystemExit(f"{missing} choices are not made yet: run `choose` to its end first.")
    return sorted({*question.sampled(), *(piece["chosen"] for piece in chosen.values())})


def truth(
    question: Question,
    data: dict[str, tuple[Tensor, Tensor]],
    names: Collection[str],
    cache: Cache,
    share: Share,
) -> bool:
    """Train these networks by the recipe and test them; True when all is there."""
    for seed, name in itertools.product(question.truth_seeds, names):
        key = f"{name}/{seed}"
        if key in cache.found or not share.is_mine(key):
            continue
        if share.is_late():
            return False
        began = time.process_time()
        torch.manual_seed(seed)
        network = question.space.build(question.space.genotype(question.networks[name]))
        fit(
            network,
            Images(*data["train"], training=True),
            loss=question.space.fit_loss,
            config=RECIPE.model_copy(update={"seed": seed}),
        )
        found = scores(question.space, network, data)
        cache.add(key, found | {"cpu_seconds": time.process_time() - began})
    return True


def scores(
    space: StreetChain, network: nn.Module, data: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """Mean IoU in percent on the images to validate and to test, and the losses there."""
    found = {}
    for part in ("val", "test"):
        metric, losses = space.metric(), []
        with torch.inference_mode():
            for images, labels in Images(*data[part], training=False):
                outputs = network(images)
                metric.update(outputs, labels)
                losses.append(float(space.loss(outputs, labels)))
        found[f"{part}_miou"] = metric.compute()["miou"]
        found[f"{part}_loss"] = sum(losses) / len(losses)
    return found


def costs() -> dict[str, float]:
    """What things cost, in images that train weights (one that only goes forward counts a third).

    Batches are whole, so a pass trains on fewer images than there are.
    """
    a_pass = SIZES["train"] // BATCH * BATCH
    scoring = FORWARD * (WEIGHTS.statistics_batches * BATCH + SIZES["val"])
    moving = SEARCH.epochs - SEARCH.arch_from_epoch
    return {
        "recipe": RECIPE.epochs * a_pass,
        "weights": WEIGHTS.epochs * a_pass,
        # Each step of the architecture is one batch, forward alone; twice the likeliest network is validated.
        "search": WEIGHTS.epochs * a_pass + FORWARD * moving * a_pass + (SEARCH.candidates + 1) * scoring,
        "score_shared": scoring,
        "score_trained": SHORT.epochs * a_pass + FORWARD * SIZES["val"],
    }


def trials() -> dict[str, int]:
    """How many networks the baselines may try at the cost of one search."""
    cost = costs()
    return {
        "shared": int((cost["search"] - cost["weights"]) / cost["score_shared"]),
        "trained": int(cost["search"] / cost["score_trained"]),
    }


def within(
    question: Question, found: SearchResult, data: SearchData, limit_ms: float, candidates: int, seed: int
) -> str:
    """The network that a search chooses under a budget: the best of its likeliest ones that keep it.

    As with ``target_ms``, ``budget.steers=false`` and ``budget.below=null``: such a budget moves nothing in
    the search, so that one serves all of them.
    """
    assert found.supernet is not None
    arch = ArchParameters(found.supernet)
    arch.set_logits(
        {name: [math.log(max(p, 1e-30)) for p in row] for name, row in found.probabilities.items()}
    )
    config = SEARCH.model_copy(update={"candidates": candidates, "seed": seed})
    budget = Budget(question.space, arch.choices, question.table, limit_ms, CEILING)
    searched = Searched(
        question.space, found.supernet, arch, question.recording, None, None, None, data, config
    )
    chosen = WithinBudget(searched, budget)()
    assert chosen is not None, "there are networks within every budget"
    return question.name_of(chosen.assignment)


def choose(
    question: Question, data: dict[str, tuple[Tensor, Tensor]], cache: Cache, work: Path, share: Share
) -> bool:
    """Let everything choose under every budget with every seed; True when all is there."""
    parts = {
        "train": Images(*data["train"], training=True),
        "val": Images(*data["val"], training=False),
    }
    both = SearchData(**parts)
    bilevel = SearchData(**parts, arch=Images(*data["val"], training=True))
    count = trials()
    space = question.space
    for seed in question.seeds[share.place :: share.of]:
        if any(
            f"{name}/{seed}/{limit}" not in cache.found
            for name in ("search", "likeliest")
            for limit in BUDGETS
        ):
            if share.is_late():
                return False
            began = time.process_time()
            # Its choices learn from the images that all methods validate on, which train no weights.
            found = search(space, None, bilevel, SEARCH.model_copy(update={"seed": seed, "candidates": 1}))
            seconds = time.process_time() - began
            for limit, limit_ms in zip(BUDGETS, question.budgets_ms, strict=True):
                began = time.process_time()
                chosen = within(question, found, both, limit_ms, SEARCH.candidates, seed)
                scoring = time.process_time() - began
                cache.add(f"search/{seed}/{limit}", {"chosen": chosen, "cpu_seconds": seconds + scoring})
                likeliest = within(question, found, both, limit_ms, 1, seed)
                cache.add(f"likeliest/{seed}/{limit}", {"chosen": likeliest, "cpu_seconds": seconds})
        for scoring, algorithm in itertools.product(
            ("shared", "trained"), (RandomSearch(), AgeingEvolution())
        ):
            for limit, limit_ms in zip(BUDGETS, question.budgets_ms, strict=True):
                key = f"{algorithm.form}-{scoring}/{seed}/{limit}"
                if key in cache.found:
                    continue
                if share.is_late():
                    return False
                began = time.process_time()
                config = baseline_config(algorithm, scoring, count[scoring], limit_ms, seed)
                out = work / "baselines" / key.replace("/", "-")
                shutil.rmtree(out, ignore_errors=True)
                shared = work / "baselines" / f"supernet-{seed}"
                if scoring == "shared" and shared.exists():
                    # The same weights for both baselines and all budgets: trained once, counted each time.
                    shutil.copytree(shared, out / "supernet")
                result = baseline(space, question.table, both, config, out=out)
                if scoring == "shared" and not shared.exists():
                    shutil.copytree(out / "supernet", shared)
                shutil.rmtree(out)
                chosen = question.name_of(space.assignment(result.genotype))
                cache.add(
                    key,
                    {
                        "chosen": chosen,
                        "trials": len(result.trials),
                        "cpu_seconds": time.process_time() - began,
                    },
                )
    return True


def baseline_config(
    algorithm: RandomSearch | AgeingEvolution, scoring: str, count: int, limit_ms: float, seed: int
) -> BaselineConfig:
    """A baseline at the cost of the search."""
    if algorithm.form == "evolution":
        # A quarter of the trials found the population, at most twenty.
        algorithm = AgeingEvolution(population=min(20, max(4, count // 4)), tournament=3)
    return BaselineConfig(
        algorithm=algorithm,
        scoring=SharedWeights(supernet=WEIGHTS, statistics_batches=WEIGHTS.statistics_batches)
        if scoring == "shared"
        else ShortTraining(fit=SHORT),
        trials=count,
        target_ms=limit_ms,
    ).with_seed(seed)


NAMES = {
    "search": "search",
    "likeliest": "search, its likeliest network",
    "random-shared": "random search, shared weights",
    "evolution-shared": "evolution, shared weights",
    "random-trained": "random search, short trainings",
    "evolution-trained": "evolution, short trainings",
}


def result(question: Question, trained: Cache, chosen: Cache, stem: Path) -> None:
    """Write JSON, a page and a plot."""
    milliseconds, names = question.milliseconds, to_train(question, chosen.found)
    trainings = {name: [f"{name}/{seed}" for seed in question.truth_seeds] for name in names}
    if missing := sum(key not in trained.found for keys in trainings.values() for key in keys):
        raise SystemExit(f"{missing} trainings are missing: run `truth` to its end first.")
    measured = {name: [trained.found[key]["test_miou"] for key in keys] for name, keys in trainings.items()}
    date = today()
    summary: dict[str, Any] = {
        "question": "quality of what is chosen, "
        + ("against every network of a small space" if question.sample is None else "in a larger space"),
        "device": Device.find("cpu").model_dump(mode="json"),
        "latency": "hwnas.latency.formula.default_formula: a formula, not a device",
        "torch": torch.__version__,
        "threads": 1,
        "date": date,
        "space": {
            "name": question.space.name,
            **question.space.model_dump(mode="json"),
            "networks": len(milliseconds),
        },
        "images": SIZES,
        "recipe": RECIPE.model_dump(mode="json"),
        "truth": {
            "seeds": list(question.truth_seeds),
            "deviation_of_one_training": math.sqrt(
                statistics.fmean(map(statistics.variance, measured.values()))
            ),
            "cpu_minutes": sum(one["cpu_seconds"] for one in trained.found.values()) / 60,
            "sampled": question.sampled(),
            "miou": {name: statistics.fmean(values) for name, values in measured.items()},
            "ms": {name: milliseconds[name] for name in measured},
        },
        "budgets_ms": question.budgets_ms,
        "seeds": list(question.seeds),
        "search": SEARCH.model_dump(mode="json"),
        "short": SHORT.model_dump(mode="json"),
        "costs_in_training_images": costs(),
        "trials": trials(),
        "methods": {
            method: {
                "name": name,
                "chosen": [
                    [chosen.found[f"{method}/{seed}/{limit}"]["chosen"] for seed in question.seeds]
                    for limit in BUDGETS
                ],
            }
            for method, name in NAMES.items()
        },
        "cpu_seconds": {
            method: statistics.fmean(
                value["cpu_seconds"] for key, value in chosen.found.items() if key.split("/")[0] == method
            )
            for method in NAMES
        },
    }
    write(summary, stem.with_name(f"{stem.name}_{date}"))


def main() -> None:
    """One stage, for about so many seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=["truth", "choose", "result", "page"])
    parser.add_argument("--space", choices=list(QUESTIONS), default="small")
    parser.add_argument("--data", type=Path, help="CamVid's folder.")
    parser.add_argument("--work", type=Path, default=Path("runs/search_quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--part", default="0/1", help="0/2 and 1/2: two processes share a stage.")
    parser.add_argument("--of", type=Path, help="The result file to make page and plot of.")
    options = parser.parse_args()
    if options.stage == "page":
        if options.of is None:
            parser.error("page wants a result file: --of FILE.json")
        write_again(options.of)
        return
    torch.set_num_threads(1)
    question, work = QUESTIONS[options.space], options.work / options.space
    place, of = map(int, options.part.split("/"))
    if not 0 <= place < of:
        parser.error("--part wants I/N, I from 0 to N - 1")
    share = Share(place, of, time.monotonic() + options.seconds)
    trained, chosen = Cache(work / "truth.jsonl"), Cache(work / "chosen.jsonl")
    if options.stage == "result":
        result(question, trained, chosen, options.out / f"search_quality_{options.space}_cpu")
        return
    data = load(options.data, question.space.input_shape()[1:])
    if options.stage == "choose":
        done = choose(question, data, chosen, work, share)
    else:
        done = truth(question, data, to_train(question, chosen.found), trained, share)
    print("all of this part is there" if done else "not yet all there", flush=True)


if __name__ == "__main__":
    main()
