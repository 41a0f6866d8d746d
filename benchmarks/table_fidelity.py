"""Are a table's predictions what whole networks take? AutoRTNet at 360×480, one thread, on this CPU.

For each runtime two tables are built independently of one another, in processes of their own, and networks
that are in no fit are measured end to end. Both protocols come from the same tables: the ops timed alone
(isolated), and the rows solved from whole networks besides (probe).

    python benchmarks/table_fidelity.py --backend onnxruntime
    python benchmarks/table_fidelity.py --backend torch
    python benchmarks/table_fidelity.py --backend openvino
    python benchmarks/table_fidelity.py --backend onnxruntime --hogs 2    (every core hogged meanwhile)

Each stage leaves a file in the work folder and is not repeated when the script is run again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_files import slug, today, write_result_files
from table_fidelity_page import page

from hwnas import ExpectedLatency, LatencyTable, profile
from hwnas.cli import drawing
from hwnas.cli.machine import Machine
from hwnas.core import figures
from hwnas.core.genotype import Genotype
from hwnas.core.probing import network_subjects
from hwnas.core.verification import drawn, judged
from hwnas.errors import MeasurementFailed
from hwnas.files import read_json, write_atomically, write_json
from hwnas.latency.measuring import ProfileSettings, measure_subjects
from hwnas.latency.timing import Timing, lower_tercile
from hwnas.latency.verification import kendall_tau, repeat_kendall_tau
from hwnas.search_spaces.autortnet import AutoRTNet


def _spin() -> None:
    while True:
        sum(range(10_000))


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """That many processes that use a core each, for the body."""
    processes = [
        multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def built(
    space: AutoRTNet, backend: Any, path: Path, settings: ProfileSettings
) -> tuple[LatencyTable, float]:
    """The table at ``path``, measured if it is not there, and the seconds that it took."""
    took = path.with_suffix(".seconds")
    if not took.exists():
        began = time.perf_counter()
        profile(space, backend, path=path, settings=settings)
        write_atomically(took, f"{time.perf_counter() - began:.1f}\n".encode())
    return LatencyTable.load(path), float(took.read_text())


def of_one_depth(space: AutoRTNet, table: LatencyTable, count: int) -> list[Genotype]:
    """Networks that all have the middle depth everywhere, spread over their latencies."""
    recording = space.record()
    used = {network.name for network in table.networks}
    depths = {
        name: len(choice.options) // 2 for name, choice in space.choices().items() if choice.kind == "depth"
    }
    generator = torch.Generator().manual_seed(11)
    pool: dict[str, tuple[float, Genotype]] = {}
    for _ in range(20 * count):
        assignment = space.random_assignment(generator) | depths
        genotype = space.genotype(assignment)
        if genotype.short_id not in used:
            pool[genotype.short_id] = (table.predict_ms(recording.count(assignment)), genotype)
    ordered = [genotype for _, genotype in sorted(pool.values(), key=lambda pair: pair[0])]
    return ordered[:: max(1, len(ordered) // count)][:count]


def ranks_within(
    space: AutoRTNet, table: LatencyTable, group: list[Genotype], timings: Any
) -> dict[str, Any]:
    """How well a table orders networks of one depth, beside how well the measurements order them again."""
    recording = space.record()
    predicted = [table.predict_ms(recording.count(space.assignment(genotype))) for genotype in group]
    measured = [timings[genotype.short_id] for genotype in group]
    return {
        "networks": len(group),
        "kendall_tau": kendall_tau(predicted, [timing.median_ms for timing in measured]),
        "repeat_kendall_tau": repeat_kendall_tau([timing.process_medians_ms for timing in measured]),
        "range_ms": [round(min(predicted), 3), round(max(predicted), 3)],
    }


def measured_networks(
    space: AutoRTNet, genotypes: list[Genotype], backend: Any, path: Path, settings: ProfileSettings
) -> dict[str, Timing]:
    """Timings of networks by short id, kept at ``path``."""
    if not path.exists():
        subjects = network_subjects(space, genotypes)
        found = measure_subjects({n: s.subject for n, s in subjects.items()}, backend, settings)
        found.require_quiet(settings, "The networks were not kept.")
        content = {name: timing.model_dump(mode="json") for name, timing in found.timings.items()}
        write_json(path, content, indent=None)
    kept = read_json(path)
    return {name: Timing.model_validate(timing) for name, timing in kept.items()}


def isolated_measuring_seconds(
    space: AutoRTNet, backend: Any, path: Path, settings: ProfileSettings
) -> float | None:
    """Seconds of measuring that the ops alone take, in a table of their own; None where that failed."""
    try:
        table = profile(space, backend, protocol="isolated", path=path, settings=settings)
    except MeasurementFailed as error:
        print(f"ops alone, for their seconds: {error}", file=sys.stderr)
        return None
    return table.header.measuring_seconds


def agreement(first: LatencyTable, second: LatencyTable) -> dict[str, float]:
    """How far two builds lie apart, and how often the first's intervals hold the second's rows.

    Besides, how far they lie apart as a whole (the machine was slower), and how far beyond that.
    """
    off, ratios, held, widths = [], [], [], []
    intervals = first.intervals()
    for key, timing in first.rows.items():
        other = second.latency_ms(key)
        if timing.median_ms > 0:
            off.append(abs(other / timing.median_ms - 1) * 100)
            ratios.append(other / timing.median_ms)
            low, high = intervals.of(timing)
            held.append(low <= other <= high)
            widths.append((high - low) / 2 / timing.median_ms * 100)
    whole = statistics.median(ratios)
    beyond = [abs(ratio / whole - 1) * 100 for ratio in ratios]
    return {
        "entries": len(off),
        "as_a_whole_percent": round(100 * (whole - 1), 3),
        "beyond_median_percent": round(statistics.median(beyond), 3),
        "beyond_p95_percent": round(float(np.quantile(beyond, 0.95)), 3),
        "median_percent": round(statistics.median(off), 3),
        "p95_percent": round(float(np.quantile(off, 0.95)), 3),
        "intervals_hold_percent": round(100 * statistics.fmean(held), 1),
        "interval_half_width_percent": round(statistics.median(widths), 3),
    }


def scatter(table: LatencyTable) -> dict[str, float | None]:
    """Of ops alone, in percent: how readings differ within a visit, visits within a process, and processes.

    Half of the central 68 % each, the median over the ops; of processes also the 95th percentile over the
    ops of how far the slowest is above the quickest. Visits: None where each process had one.
    """
    within, visits, processes, apart = [], [], [], []
    for timing in table.isolated.values():
        within += [_half_width(values) for values in timing.readings_ms if len(values) >= 5]
        medians, rounds = timing.process_medians_ms, iter(timing.round_medians_ms)
        visits.append(
            _half_width(
                [
                    next(rounds) / median
                    for median, count in zip(medians, timing.rounds_by_process, strict=True)
                    for _ in range(count)
                ]
            )
        )
        processes.append(_half_width(medians))
        apart.append(100 * (max(medians) / min(medians) - 1))
    return {
        "within_a_visit_percent": round(statistics.median(within), 2),
        "between_visits_percent": round(statistics.median(visits), 2) if any(visits) else None,
        "between_processes_percent": round(statistics.median(processes), 2),
        "processes_apart_p95_percent": round(float(np.quantile(apart, 0.95)), 2),
    }


def _pseudomedian(values: Sequence[float]) -> float:
    """The median of the means of all pairs, of each value with itself too (Hodges and Lehmann, 1963)."""
    return statistics.median((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "lower tercile (ours)": lower_tercile,
    "minimum": min,
    "median": statistics.median,
    "Hodges and Lehmann's": _pseudomedian,
    "mean": statistics.fmean,
}


def by_statistic(first: LatencyTable, second: LatencyTable) -> dict[str, dict[str, float]]:
    """How far two builds' ops alone lie apart, beyond the whole, by what is made of the same rounds."""
    found = {}
    for name, statistic in STATISTICS.items():
        ratios = np.array(
            [
                statistic(second.isolated[key].round_medians_ms) / statistic(timing.round_medians_ms)
                for key, timing in first.isolated.items()
            ]
        )
        off = 100 * np.abs(ratios / np.median(ratios) - 1)
        found[name] = {
            "median_percent": round(float(np.median(off)), 3),
            "p95_percent": round(float(np.quantile(off, 0.95)), 3),
        }
    return found


def _half_width(values: Sequence[float]) -> float:
    low, middle, high = np.quantile(values, (0.16, 0.5, 0.84))
    return float(50 * (high - low) / middle)


def network_agreement(space: AutoRTNet, first: LatencyTable, second: LatencyTable) -> dict[str, float]:
    """How far two builds' predictions of random networks lie apart."""
    recording = space.record()
    generator = torch.Generator().manual_seed(3)
    off = []
    for _ in range(200):
        counts = recording.count(space.assignment(space.random(generator)))
        off.append(abs(second.predict_ms(counts) / first.predict_ms(counts) - 1) * 100)
    return {"median_percent": round(statistics.median(off), 3), "max_percent": round(max(off), 3)}


def prediction_seconds(space: AutoRTNet, table: LatencyTable, networks: int = 1_000_000) -> float:
    """Seconds that predicting so many networks takes, on one thread."""
    torch.set_num_threads(1)
    cost = ExpectedLatency(space.record(), list(space.choices().values()), table)
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack(
        [torch.randint(len(c.options), (networks,), generator=generator) for c in space.choices().values()],
        dim=1,
    )
    cost.predict_many(indices[:10])
    began = time.perf_counter()
    cost.predict_many(indices)
    return round(time.perf_counter() - began, 3)


def main() -> None:
    """Build, measure, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--hogs", type=int, default=0)
    parser.add_argument("--label", help="Part of the names of work folder and result: what was special.")
    parser.add_argument("--work", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    space = AutoRTNet(height=360, width=480)
    backend = Machine(device="cpu", backend=options.backend, threads=1).make()
    settings = ProfileSettings()
    suffix = (f"-{options.label}" if options.label else "") + (f"-hogs{options.hogs}" if options.hogs else "")
    work = options.work / f"{options.backend}{suffix}"
    date = today()
    refusal = None
    try:
        with hogs(options.hogs):
            first, first_seconds = built(space, backend, work / "first.json", settings)
            second, second_seconds = built(space, backend, work / "second.json", settings)
    except MeasurementFailed as error:
        if not options.hogs:
            raise
        refusal = str(error)
    summary: dict[str, Any] = {
        "question": "predicted against measured latency, and one build of a table against another",
        "space": space.model_dump(mode="json"),
        "backend": str(backend),
        "versions": backend.versions(),
        "settings": settings.model_dump(mode="json"),
        "date": date,
        "hogged_cores": options.hogs,
        "device": backend.device.model_dump(mode="json"),
    }
    if refusal is not None:
        summary["refused"] = refusal
    else:
        # The files have the rows, and not what they were solved by.
        solutions = [table.solve(list(table.rows)) for table in (first, second)]
        summary["builds"] = {
            "seconds": [first_seconds, second_seconds],
            "measuring_seconds": [first.header.measuring_seconds, second.header.measuring_seconds],
            "isolated_measuring_seconds": isolated_measuring_seconds(
                space, backend, work / "isolated.json", settings
            ),
            "begun": [first.header.created, second.header.created],
            "remarks": list(first.header.remarks),
            "left_out_percent": first.header.left_out_percent,
            "level": [dataclasses.asdict(solution.level) for solution in solutions],
            "rounds": [max(timing.rounds for timing in table.isolated.values()) for table in (first, second)],
            "scatter": scatter(first),
            "by_statistic": by_statistic(first, second),
            "isolated": agreement(first.as_isolated(), second.as_isolated()),
            "probe": agreement(first, second),
            "networks_isolated": network_agreement(space, first.as_isolated(), second.as_isolated()),
            "networks_probe": network_agreement(space, first, second),
        }
    if refusal is None and not options.hogs:
        summary["million_predictions_seconds"] = prediction_seconds(space, first)
        fitted, tested = drawn(first, space, samples=options.samples, calibrate=10, seed=7)
        group = of_one_depth(space, first, 20)
        try:
            timings = measured_networks(
                space, [*fitted, *tested, *group], backend, work / "networks.json", settings
            )
        except MeasurementFailed as error:
            summary["networks_refused"] = str(error)
    if "million_predictions_seconds" in summary and "networks_refused" not in summary:
        # A machine's speed changes over hours: how old the tables were then belongs to the result.
        measured = datetime.fromtimestamp((work / "networks.json").stat().st_mtime, UTC)
        summary["networks_measured"] = measured.isoformat(timespec="seconds")
        for name, table in (("isolated", first.as_isolated()), ("probe", first)):
            said = judged(table, space, fitted, tested, timings)
            summary[name] = said.model_dump(mode="json", exclude={"evidence"})
            summary[name]["of_one_depth"] = ranks_within(space, table, group, timings)
            # What benchmarks/calibration.py reads: every network, those of one depth too.
            known = {genotype.short_id: genotype for genotype in (*tested, *group)}
            whole = judged(table, space, fitted, list(known.values()), timings)
            summary[name]["evidence"] = [
                network.model_dump(mode="json", exclude={"processes_ms", "group"})
                for network in whole.evidence
            ]
            plot = f"table_fidelity_{options.backend}{suffix}_{slug(backend.device.name)}_{date}_{name}.png"
            figures.save_png(
                drawing.predicted_against_measured(said, f"{backend}: {name}"), options.results / plot
            )
    stem = options.results / f"table_fidelity_{options.backend}{suffix}_{slug(backend.device.name)}_{date}"
    write_result_files(stem, summary, page(summary))


if __name__ == "__main__":
    main()
