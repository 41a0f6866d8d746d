"""Is the searched network better than random ones of its milliseconds, trained alike, as in Table 3?

That is a table of the AutoRTNet paper. A network of the zoo, and random architectures of its space whose
predicted latency is within 5 % of its own, are trained on CamVid's train split from scratch by one recipe,
the stage "crops" of camvid_zoo.py, with several seeds, and scored on val, in whose street part of train was
filmed. All are measured in the same rounds.

    python benchmarks/searched_and_random.py --data DIR --network c
    python benchmarks/searched_and_random.py --data DIR --network c --report     (of what is done so far)

DIR holds the folder camvid; the table is the packaged one of the zoo's space unless --lut names another. A
training that is done is a line in WORK/NETWORK/trained.jsonl; started again, also after Ctrl-C or SIGTERM,
the benchmark goes on where it stopped. Two processes may share the work: --part 0/2 and 1/2, then --report.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from camvid_zoo import SPACE, TARGETS_MS, say
from camvid_zoo_recipes import CPU_RECIPES, cpu_recipe
from intervals import half_width
from result_files import append_line, read_lines, slug, today, write_result_files

from hwnas import Genotype, LatencyTable, OnnxRuntimeBackend
from hwnas.core.runlog import read_log
from hwnas.errors import Interrupted
from hwnas.latency.device import Device
from hwnas.latency.measuring import measure_all
from hwnas.latency.subjects import ModuleSubject, plausible_inputs
from hwnas.names import space_of
from hwnas.recipes import Recipe, train
from hwnas.zoo import find

TABLE = "autortnet-dense-360x480-xeon-onnxruntime"
SEARCHED = "searched"
NEAR = 0.05
"""Relative difference in predicted latency that counts as none."""


def recipe_for(network: str, seed: int, epochs: int) -> Recipe:
    """The stage on CamVid's crops alone, without a teacher."""
    stages = {stage.name: stage for stage in cpu_recipe(**{**CPU_RECIPES[network], "crops": epochs}).stages}
    fit = stages["crops"].fit.model_copy(update={"seed": seed})
    return Recipe(
        about="crops of the target alone", stages=(stages["crops"].model_copy(update={"fit": fit}),)
    )


def random_genotypes(
    table: LatencyTable, wanted_ms: float, count: int, *, seed: int = 0, most_draws: int = 100_000
) -> list[tuple[Genotype, float]]:
    """The first random architectures within :data:`NEAR` of ``wanted_ms``, with their predicted latency."""
    generator = torch.Generator().manual_seed(seed)
    recording = SPACE.record()
    found: dict[str, tuple[Genotype, float]] = {}
    for _ in range(most_draws):
        assignment = SPACE.random_assignment(generator)
        ms = table.predict_ms(recording.count(assignment))
        if abs(ms / wanted_ms - 1) <= NEAR:
            genotype = SPACE.genotype(assignment)
            found.setdefault(genotype.short_id, (genotype, ms))
        if len(found) == count:
            return list(found.values())
    raise SystemExit(
        f"{len(found)} of {count} random architectures within {NEAR:.0%} of {wanted_ms:.2f} ms in "
        f"{most_draws} draws"
    )


def networks(options: argparse.Namespace) -> dict[str, tuple[Genotype, float]]:
    """By name: the searched one and the random ones, with their predicted latency."""
    table = LatencyTable.load(options.lut)
    genotype = find(f"autortnet-{options.network}-camvid").genotype
    ms = table.predict_ms(space_of(genotype).record().count(space_of(genotype).assignment(genotype)))
    drawn = random_genotypes(table, ms, options.random)
    return {SEARCHED: (genotype, ms)} | {f"random-{number}": each for number, each in enumerate(drawn)}


def trained(name: str, genotype: Genotype, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network with one seed, and score it."""
    folder = options.work / options.network / f"{name}-{seed}"
    _, found = train(
        space_of(genotype),
        genotype,
        recipe_for(options.network, seed, options.epochs),
        {"target": f"camvid:{options.data / 'camvid'}"},
        out=folder,
        resume=(folder / "recipe.json").exists(),
        on_progress=lambda stage, progress: say(f"{name} {seed}")(progress),
    )
    events = read_log(folder / "fit.log.jsonl")
    return {
        "network": name,
        "seed": seed,
        "genotype": genotype.short_id,
        "epochs": options.epochs,
        "miou": found["miou"],
        "per_class": found["per_class"],
        "seconds": round(sum(event["seconds"] for event in events if event["event"] == "epoch"), 1),
    }


def refuse_others(lines: list[dict[str, Any]], found: dict[str, Any], options: argparse.Namespace) -> None:
    """End where the work folder holds trainings of other networks, or of another length."""
    for line in lines:
        genotype = found[line["network"]][0] if line["network"] in found else None
        if genotype is None or (genotype.short_id, options.epochs) != (line["genotype"], line["epochs"]):
            raise SystemExit(
                f"{options.work} holds {line['network']} as {line['genotype']}, {line['epochs']} epochs: use "
                "another --work"
            )


def measured(found: dict[str, tuple[Genotype, float]]) -> dict[str, dict[str, float]]:
    """Milliseconds of all, in the same rounds, on one thread of ONNX Runtime."""
    example = tuple(plausible_inputs([(1, *SPACE.input_shape())]))
    torch.manual_seed(0)
    subjects = {
        name: ModuleSubject(space_of(genotype).build(genotype).eval(), example)
        for name, (genotype, _) in found.items()
    }
    timings = measure_all(subjects, OnnxRuntimeBackend("cpu", threads=1)).timings
    return {
        name: {"median_ms": timing.median_ms, "spread_ms": timing.spread_ms}
        for name, timing in timings.items()
    }


def report(found: dict[str, tuple[Genotype, float]], options: argparse.Namespace) -> None:
    """Measure, and write the result file and its page."""
    lines = read_lines(options.work / options.network / "trained.jsonl")
    times = measured(found)
    by = {(line["network"], line["seed"]): line["miou"] for line in lines}
    others = [name for name in found if name != SEARCHED]
    seeds = sorted(seed for seed in {seed for _, seed in by} if all((name, seed) in by for name in found))
    gains = [by[SEARCHED, seed] - statistics.fmean(by[name, seed] for name in others) for seed in seeds]
    device = Device.find("auto")
    summary = {
        "question": f"Is autortnet-{options.network}-camvid better than random networks of its milliseconds?",
        "device": device.model_dump(mode="json"),
        "torch": torch.__version__,
        "date": today(),
        "target_ms": TARGETS_MS[options.network],
        "epochs": options.epochs,
        "networks": {
            name: {
                "genotype": genotype.short_id,
                "predicted_ms": ms,
                "parameters": sum(p.numel() for p in space_of(genotype).build(genotype).parameters()),
                **times[name],
                "miou": {str(seed): by[name, seed] for seed in seeds},
            }
            for name, (genotype, ms) in found.items()
        },
        "gains": dict(zip(map(str, seeds), gains, strict=True)),
        "runs": lines,
    }
    stem = options.results / f"searched_and_random_{options.network}_{slug(device.name)}_{summary['date']}"
    write_result_files(stem, summary, page(summary, gains))


def page(summary: dict[str, Any], gains: list[float]) -> str:
    """The result as a page."""
    seeds = list(summary["gains"])
    rows = []
    for name, net in summary["networks"].items():
        scores = " | ".join(f"{net['miou'][seed]:.1f}" for seed in seeds)
        rows.append(
            f"| {name} | {net['parameters'] / 1e6:.2f} | {net['predicted_ms']:.2f} "
            f"| {net['median_ms']:.2f} ± {net['spread_ms']:.2f} | {scores} |"
        )
    titles = [f"seed {seed}" for seed in seeds]
    half = half_width(gains)
    said = "No seed has been trained for all of them."
    if gains:
        said = f"Searched less the mean of the random ones: {statistics.fmean(gains):+.2f} mIoU" + (
            f" ± {half:.2f} (95 %, {len(gains)} seeds)." if half is not None else " (one seed)."
        )
    return "\n".join(
        [
            f"# {summary['question']}",
            "",
            f"{summary['device']['name']}, torch {summary['torch']}, {summary['date']}; "
            f"{summary['epochs']} epochs of CamVid train in crops, from scratch, scored on val.",
            "",
            f"| network | parameters M | predicted ms | measured ms | {' | '.join(titles)} |",
            "|---" * (4 + len(seeds)) + "|",
            *rows,
            "",
            said,
            "",
            "Val is one street, and part of train was filmed in it. Written by "
            "benchmarks/searched_and_random.py.",
            "",
        ]
    )


def main() -> None:
    """All trainings that are not done yet; with --report, or where none is left, the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", choices=sorted(TARGETS_MS), default="c")
    parser.add_argument("--lut", default=TABLE, help="a file, or the name of a packaged table")
    parser.add_argument("--random", type=int, default=3, help="how many random networks")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--part", default="0/1", help="K/N: every N-th training, from the K-th on")
    parser.add_argument("--work", type=Path, default=Path("runs/searched_and_random"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = networks(options)
    wanted = [(name, seed) for seed in range(options.seeds) for name in found]
    refuse_others(read_lines(options.work / options.network / "trained.jsonl"), found, options)
    first, step = map(int, options.part.split("/"))
    path = options.work / options.network / "trained.jsonl"
    known = {(line["network"], line["seed"]) for line in read_lines(path)}
    for name, seed in () if options.report else wanted[first::step]:
        if (name, seed) in known:
            continue
        try:
            append_line(path, trained(name, found[name][0], seed, options))
        except Interrupted as error:
            raise SystemExit(f"{error} Start again to go on.") from None
    if options.report or step == 1:
        report(found, options)


if __name__ == "__main__":
    main()
