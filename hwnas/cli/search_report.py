"""What ``hwnas search`` prints in the end: of one search, and of several seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.cli.console import result
from hwnas.core.baseline_config import BaselineConfig
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_result import SearchResult, conditions
from hwnas.core.stability import Stability
from hwnas.latency.timing import in_ms

if TYPE_CHECKING:
    from hwnas.core.confirm import BudgetOutcome
    from hwnas.latency.table import LatencyTable


def report_search(
    found: SearchResult,
    out: Path,
    config: SearchConfig | BaselineConfig,
    table: LatencyTable | None,
    *,
    as_json: bool,
) -> None:
    """Print what a search found."""
    penalty = config.penalty if isinstance(config, SearchConfig) else None
    asked_ms = config.target_ms or getattr(penalty, "target_ms", None)
    budget = found.budget
    values: dict[str, Any] = {
        "run": str(out),
        "genotype": found.genotype.short_id,
        "asked_ms": asked_ms,
        "predicted_ms": found.predicted_ms,
        "expected_ms": found.expected_ms,
        "val": found.scores,
    }
    line = f"found {found.genotype.short_id}"
    if table is not None and found.predicted_ms is not None:
        header = table.header
        values |= conditions(header)
        under = f"{header.device.name}, {header.backend} {header.precision}, batch {header.batch}"
        line += f": {in_ms(found.predicted_ms)} ms predicted on {under}"
        line += f", asked for {asked_ms:g} ms" if asked_ms is not None else ""
    lines = [line]
    if budget is not None:
        values |= {
            "measured_ms": budget.measured_ms,
            "met": budget.met,
            "correction": budget.correction,
            "measured_networks": len(budget.attempts),
            "asked": budget.asked,
            "costs": budget.costs,
        }
        lines += _budget_lines(found.genotype.short_id, budget, config.target_ms)
    lines.append(f"next:  hwnas fit {out} && hwnas eval {out} && hwnas measure {out} && hwnas report {out}")
    result(values, lines, as_json=as_json)


def _budget_lines(name: str, budget: BudgetOutcome, target_ms: float | None) -> list[str]:
    """Asked, predicted and measured, for people."""
    lines = [
        f"{cost:<14} {budget.costs[cost]:12.6g}   of at most {most:.6g}"
        for cost, most in budget.asked.items()
        if cost != "latency_ms"
    ]
    if target_ms is None:
        return lines
    lines.append(f"asked      {in_ms(target_ms):>8} ms")
    if budget.predicted_ms is not None:
        table_ms = budget.costs["latency_ms"]
        # The first network that is measured is chosen by the table as it is.
        by = "the table"
        if not math.isclose(budget.predicted_ms, table_ms):
            by = f"the table, {in_ms(table_ms)}, corrected by the measurements before"
        lines.append(f"predicted  {in_ms(budget.predicted_ms):>8} ms   (by {by})")
    if budget.measured_ms is None:
        return [*lines, *budget.remarks]
    networks = len(budget.attempts)
    tried = f", after {networks} networks were" if networks > 1 else ""
    lines.append(f"measured   {in_ms(budget.measured_ms):>8} ms{tried}")
    if networks > 1:
        lines.append(f"measured ÷ predicted by the table: {budget.correction:.3f} on average")
    if not budget.met:
        lines.append(f"the budget was not met: {name} is the nearest network that was found")
    return [*lines, *budget.remarks]


def report_seeds(found: Stability, out: Path, *, as_json: bool) -> None:
    """Print how far searches with different seeds agree."""
    lines = []
    for seed in found.results:
        ms = "" if seed.predicted_ms is None else f"  {in_ms(seed.predicted_ms)} ms predicted"
        if seed.measured_ms is not None:
            ms += f", {in_ms(seed.measured_ms)} measured" + ("" if seed.met else ", budget not met")
        score = "" if seed.score is None else f"  validation {seed.score:.2f}"
        lines.append(f"seed {seed.seed}: {seed.genotype.short_id}{ms}{score}")
    lines.append(
        f"{found.networks} different networks; choices decided alike in {100 * found.mean_agreement:.0f} % "
        f"of pairs of seeds (random networks: {100 * found.by_chance:.0f} %)"
    )
    if (latency := found.predicted_ms) is not None:
        lines.append(f"predicted ms: {in_ms(latency.mean)} ± {in_ms(latency.deviation, 2)}")
    if (quality := found.score) is not None:
        lines.append(f"validation: {quality.mean:.2f} ± {quality.deviation:.2f}")
    best = out / f"seed-{found.best.seed}"
    lines.append(
        f"next:  hwnas fit {best} && hwnas eval {best} && hwnas measure {best} && hwnas report {best}"
    )
    values = {
        "run": str(out),
        **found.model_dump(mode="json", exclude={"results"}),
        "mean_agreement": found.mean_agreement,
        "networks": found.networks,
        "seeds": [
            {
                "seed": seed.seed,
                "genotype": seed.genotype.short_id,
                "predicted_ms": seed.predicted_ms,
                "measured_ms": seed.measured_ms,
                "met": seed.met,
                "score": seed.score,
            }
            for seed in found.results
        ],
    }
    result(values, lines, as_json=as_json)
