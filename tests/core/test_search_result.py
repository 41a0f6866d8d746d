"""What a result is called where it is printed."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from hwnas import BaselineResult, Genotype, SearchResult
from hwnas.core.confirm import BudgetOutcome

GENOTYPE = Genotype(space="chain", fields={"size": 8}, choices={"s1.depth": "2"})
RESULT = SearchResult(
    genotype=GENOTYPE,
    predicted_ms=3.21456,
    expected_ms=3.0,
    probabilities={"s1.depth": [0.25, 0.75]},
    supernet=nn.Linear(100, 100),
    out=None,
)


def test_a_result_is_told_in_a_line():
    assert repr(RESULT) == f"<SearchResult: chain {GENOTYPE.short_id}, 3.215 ms predicted>"


def test_with_what_was_asked_measured_and_scored():
    budget = BudgetOutcome(asked={"latency_ms": 4.0, "params": 1e6}, costs={}, measured_ms=3.3)
    scores = {"miou": 61.2345, "per_class": {"road": 90.0}, "pixel_accuracy": 88}
    result = replace(RESULT, budget=budget, scores=scores, out=Path("runs/x"))
    assert repr(result) == (
        f"<SearchResult: chain {GENOTYPE.short_id}, 3.215 ms predicted, 3.3 ms measured, at most 4 ms asked, "
        "miou 61.23, pixel_accuracy 88, in runs/x>"
    )


def test_without_a_table_there_are_no_milliseconds():
    assert repr(replace(RESULT, predicted_ms=None)) == f"<SearchResult: chain {GENOTYPE.short_id}>"


def test_a_baseline_is_told_alike():
    result = BaselineResult(GENOTYPE, 2.0, None, {}, nn.Linear(100, 100), None)
    assert repr(result) == f"<BaselineResult: chain {GENOTYPE.short_id}, 2 ms predicted>"
