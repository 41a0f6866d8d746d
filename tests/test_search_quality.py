"""What search_quality.py's page computes from its numbers."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import search_quality_page as benchmark

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def test_a_truth_without_noise_knows_the_best_network():
    found = benchmark.found_by_knowing({"a": 1.0, "b": 3.0, "c": 2.0}, [["a", "b", "c"], ["a", "c"]], 0.0)
    assert found == {"rank": 0.0, "regret": 0.0, "by_budget": [{"rank": 0.0, "regret": 0.0}] * 2}


def test_networks_that_noise_alone_tells_apart_are_a_throw_of_a_coin():
    # Of two equal networks either is read as better: half of the networks are, half of the time, by
    # E max(0, x), where x is normal with deviation 2 √2.
    found = benchmark.found_by_knowing({"a": 5.0, "b": 5.0}, [["a", "b"]], 2.0, draws=200_000)
    assert found["rank"] == pytest.approx(25.0, abs=0.3)
    assert found["regret"] == pytest.approx(2.0 * math.sqrt(2) / math.sqrt(2 * math.pi), rel=0.01)


@pytest.mark.parametrize("space", ["small", "large"])
def test_the_page_that_is_kept_is_what_its_numbers_give(space, tmp_path):
    (kept,) = RESULTS.glob(f"search_quality_{space}_*.json")
    shown = tmp_path / kept.name
    shown.write_bytes(kept.read_bytes())
    benchmark.write_again(shown)
    ours, theirs = (json.loads(path.read_text()) for path in (shown, kept))
    for one, other in zip(
        *(summary.pop("found_by_knowing")["by_budget"] for summary in (ours, theirs)), strict=True
    ):
        assert one == pytest.approx(other)
    assert ours == theirs
    assert shown.with_suffix(".md").read_text() == kept.with_suffix(".md").read_text()
    assert shown.with_suffix(".png").is_file()


def test_a_choice_that_breaks_its_budget_is_no_result():
    truth = {"miou": {"a": 1.0, "b": 3.0}, "ms": {"a": 1.0, "b": 2.0}, "sampled": ["a", "b"]}
    summary = {"truth": truth, "budgets_ms": [1.5], "methods": {"search": {"chosen": [["a", "b"]]}}}
    with pytest.raises(ValueError, match=r"search chose \['b'\] under a budget of 1.5 ms"):
        benchmark.compared(summary, "search")


def test_regret_and_rank_are_against_the_sample_within_the_budget():
    quality = {"a": 1.0, "b": 3.0, "c": 4.0, "d": 2.0}
    truth = {"miou": quality, "ms": {"a": 1.0, "b": 1.0, "c": 9.0, "d": 1.0}, "sampled": ["a", "b", "c"]}
    summary = {"truth": truth, "budgets_ms": [2.0], "methods": {"search": {"chosen": [["a", "b", "d"]]}}}
    # Within 2 ms the sample has a and b.
    assert benchmark.compared(summary, "search") == [{"regret": [2.0, 0.0, 1.0], "rank": [50.0, 0.0, 50.0]}]
