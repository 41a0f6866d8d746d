"""How should a calibration be fitted on ten networks? Rules side by side, on networks measured before.

Takes the evidence in results of table_fidelity.py: some eighty networks, each predicted and measured. Ten of
them, one of each tenth of the range, are drawn over and over; each rule is fitted on these and judged by the
others. Nothing is measured.

    python benchmarks/calibration.py benchmarks/results/table_fidelity_*_amd-epyc_2026-12-01.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from result_files import today, write_result_files

from hwnas.files import read_json
from hwnas.latency.verification import fit_calibration

Numbers = npt.NDArray[np.float64]
Rule = Callable[[Numbers, Numbers, Numbers], Numbers]
"""Sums, ops and measured milliseconds → scale, offset in ms, ms of an op."""

DRAWS = 200
NETWORKS = 10


def nothing(sums: Numbers, ops: Numbers, measured: Numbers) -> Numbers:
    """The bare table."""
    return np.array([1.0, 0.0, 0.0])


def free(terms: int) -> Rule:
    """Least squares of the relative error, of the first so many terms."""

    def fitted(sums: Numbers, ops: Numbers, measured: Numbers) -> Numbers:
        return _line(_design(sums, ops, measured, terms))

    return fitted


def chosen(sums: Numbers, ops: Numbers, measured: Numbers) -> Numbers:
    """As many terms as foretell networks left out better by 5 % than fewer do."""
    best, best_error = np.array([float(np.median(measured / sums)), 0.0, 0.0]), math.inf
    for terms in (1, 2, 3):
        design = _design(sums, ops, measured, terms)
        line = _line(design)
        leverage = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
        left_out = (1.0 - design @ line[:terms]) / np.maximum(1.0 - leverage, 1e-9)
        error = float(np.sqrt(np.mean(left_out**2)))
        if line[0] > 0 and error < 0.95 * best_error:
            best, best_error = line, error
    return best


def ours(sums: Numbers, ops: Numbers, measured: Numbers) -> Numbers:
    """What hwnas does."""
    found = fit_calibration(list(sums), [int(count) for count in ops], list(measured))
    return np.array([found.scale, found.offset_ms, found.per_op_ms])


def _design(sums: Numbers, ops: Numbers, measured: Numbers, terms: int) -> Numbers:
    design: Numbers = np.stack([sums, np.ones(len(sums)), ops], axis=1)[:, :terms] / measured[:, None]
    return design


def _line(design: Numbers) -> Numbers:
    solved = np.linalg.lstsq(design, np.ones(len(design)), rcond=None)[0]
    return np.concatenate([solved, np.zeros(3 - len(solved))])


RULES: dict[str, Rule] = {
    "none": nothing,
    "a scale": free(1),
    "a scale and an offset": free(2),
    "both and a cost an op": free(3),
    "as many as help networks left out": chosen,
    "all, small by a prior (ours)": ours,
}


def compared(evidence: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each rule's RMSPE over the draws: the mean, and what one draw in twenty is worse than."""
    sums, ops, measured = (
        np.array([network[name] for network in evidence], dtype=float)
        for name in ("sum_ms", "ops", "measured_ms")
    )
    tenths = np.array_split(np.argsort(sums), NETWORKS)
    generator = np.random.default_rng(0)
    errors: dict[str, list[float]] = {name: [] for name in RULES}
    for _ in range(DRAWS):
        fitted = np.array([generator.choice(tenth) for tenth in tenths])
        others = np.setdiff1d(np.arange(len(sums)), fitted)
        for name, rule in RULES.items():
            scale, offset, per_op = rule(sums[fitted], ops[fitted], measured[fitted])
            predicted = scale * sums[others] + offset + per_op * ops[others]
            off = predicted / measured[others] - 1.0
            errors[name].append(100 * float(np.sqrt(np.mean(off**2))))
    return {
        name: {
            "mean_percent": round(float(np.mean(values)), 3),
            "p95_percent": round(float(np.quantile(values, 0.95)), 3),
        }
        for name, values in errors.items()
    }


def page(summary: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# calibrations fitted on ten networks",
        "",
        f"Written by benchmarks/calibration.py, {summary['date']}. Ten networks of each result, one of",
        f"each tenth of the range, drawn {DRAWS} times; RMSPE in percent of those left: the mean over the",
        "draws (and what one draw in twenty is worse than). Nothing was measured for this.",
        "",
        "| result | networks | " + " | ".join(RULES) + " |",
        "|---" * (len(RULES) + 2) + "|",
    ]
    for case in summary["cases"]:
        cells = [
            f"{found['mean_percent']:.2f} ({found['p95_percent']:.2f})" for found in case["rules"].values()
        ]
        lines.append(
            f"| {case['result']}, {case['protocol']} | {case['networks']} | " + " | ".join(cells) + " |"
        )
    means = [np.mean([case["rules"][name]["mean_percent"] for case in summary["cases"]]) for name in RULES]
    lines.append("| mean | | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fidelity", type=Path, nargs="+", help="Results (.json) of table_fidelity.py.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    cases = []
    for path in options.fidelity:
        result = read_json(path)
        for protocol in ("isolated", "probe"):
            evidence = result.get(protocol, {}).get("evidence")
            if evidence is None:
                print(f"{path}: {protocol} has no evidence, and is left out")
                continue
            cases.append(
                {
                    "result": path.stem,
                    "protocol": protocol,
                    "networks": len(evidence),
                    "rules": compared(evidence),
                }
            )
    if not cases:
        parser.error("none of these results has evidence; table_fidelity.py writes it")
    date = today()
    summary = {"question": "how a calibration is fitted on ten networks", "date": date, "cases": cases}
    write_result_files(options.results / f"calibration_{date}", summary, page(summary))


if __name__ == "__main__":
    main()
