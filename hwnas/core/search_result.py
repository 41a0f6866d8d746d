"""What a search gives: the network found, and its files in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hwnas.core.confirm import BudgetOutcome
from hwnas.core.expected import LatencyTableLike
from hwnas.core.genotype import Genotype
from hwnas.files import write_json
from hwnas.processes import processes


@dataclass(frozen=True, repr=False)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the most likely architecture, or the best of the ``candidates`` most likely (that keep the
            budget, where there is one), canonical.
        predicted_ms: its latency by the table, whole network; None without a table. Where measurements of
            other networks for a target had corrected the table's, what was predicted with the correction: the
            table's own is then ``budget.costs["latency_ms"]``.
        expected_ms: the expectation over the final probabilities; None without a table.
        probabilities: of every option, by choice.
        supernet: the trained supernet, on the CPU; ``space.build(genotype, supernet)`` keeps its weights.
            None where no weights were shared.
        out: the run's folder, if it has one.
        scores: of ``genotype`` on the validation data, with the shared weights; None without such data.
        budget: what was asked, predicted and measured; None where no budget was given.
    """

    genotype: Genotype
    predicted_ms: float | None
    expected_ms: float | None
    probabilities: dict[str, list[float]]
    supernet: nn.Module | None
    out: Path | None
    scores: Mapping[str, Any] | None = None
    budget: BudgetOutcome | None = None

    def __repr__(self) -> str:
        said = [f"{self.genotype.space} {self.genotype.short_id}", *self._milliseconds()]
        said += [f"{name} {value:.4g}" for name, value in (self.scores or {}).items() if _is_number(value)]
        said += [f"in {self.out}"] if self.out is not None else []
        return f"<{type(self).__name__}: {', '.join(said)}>"

    def _milliseconds(self) -> list[str]:
        outcome = self.budget
        found = [f"{self.predicted_ms:.4g} ms predicted"] if self.predicted_ms is not None else []
        if outcome is not None and outcome.measured_ms is not None:
            found.append(f"{outcome.measured_ms:.4g} ms measured")
        if outcome is not None and "latency_ms" in outcome.asked:
            found.append(f"at most {outcome.asked['latency_ms']:g} ms asked")
        return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def conditions(header: Any) -> dict[str, Any]:
    """Under which conditions a table's milliseconds hold, as JSON: what must travel with them."""
    return {
        "device": header.device.name,
        "backend": header.backend,
        "precision": header.precision,
        "batch": header.batch,
        "threads": header.threads,
    }


def save_result(result: SearchResult, lut: LatencyTableLike | None, **values: Any) -> None:
    """Write ``genotype.json`` and ``result.json``, with ``values`` in it, into the run's folder, if any.

    Of several processes the first does.
    """
    if result.out is None or not processes().is_first:
        return
    result.genotype.save(result.out / "genotype.json")
    budget = result.budget
    found = {
        "genotype": result.genotype.short_id,
        "predicted_ms": result.predicted_ms,
        "expected_ms": result.expected_ms,
        **(conditions(lut.header) if lut is not None else {}),
        **({"budget": budget.model_dump(mode="json")} if budget is not None else {}),
        "val": result.scores,
        **values,
        "probabilities": result.probabilities,
    }
    write_json(result.out / "result.json", found)
