"""``hwnas search --algorithm …`` and ``--seeds N``."""

import json

import pytest

from hwnas import Stability
from hwnas.cli.app import EXIT_BUDGET
from hwnas.cli.baseline import baseline_config
from hwnas.core.genotype import Genotype
from hwnas.core.space import Preset
from hwnas.latency.table import LatencyTable

from .conftest import hwnas, said, settings

FAST = settings(data__length=4, trials=3)


def searching(table, out, *options):
    return ("search", "autortnet", "--lut", table, "--out", out, "--batch", "2", *options)


@pytest.mark.parametrize("algorithm", ["random", "evolution"])
@pytest.mark.parametrize("scoring", ["shared", "trained"])
def test_a_baseline_runs_and_later_verbs_follow(table, tmp_path, algorithm, scoring):
    out = tmp_path / "run"
    # What trains is the search's config, or the training's.
    own = settings(epochs=1, algorithm__population=2) if algorithm == "evolution" else settings(epochs=1)
    options = ("--algorithm", algorithm, "--scoring", scoring, "--target-ms", "3")
    found = said(*searching(table, out, *options, *FAST, *own))
    genotype = Genotype.load(out / "genotype.json")
    assert found["genotype"] == genotype.short_id
    assert found["asked_ms"] == 3.0
    assert found["predicted_ms"] <= 3.0
    assert set(found["val"]) >= {"miou", "loss"}
    kept = json.loads((out / "baseline.json").read_text())["config"]
    assert kept["algorithm"]["form"] == algorithm
    assert kept["scoring"]["form"] == scoring
    training = kept["scoring"]["supernet" if scoring == "shared" else "fit"]
    assert training["epochs"] == 1
    assert hwnas("derive", out).exit_code == 0
    report = hwnas("report", out)
    assert report.exit_code == 0, report.output
    page = (out / "report.html").read_text()
    assert "the target of the search" in page
    assert "search.trials" in page


def test_a_finished_baseline_resumes_with_nothing_but_its_folder(table, tmp_path):
    out = tmp_path / "run"
    first = said(*searching(table, out, "--algorithm", "random", *FAST, *settings(epochs=1)))
    again = said("search", "--out", out, "--resume")
    assert again["genotype"] == first["genotype"]
    assert again["val"] == first["val"]
    result = hwnas("search", "--out", out, "--resume", "--algorithm", "evolution")
    assert result.exit_code == 2
    assert "the run to resume is of --algorithm random --scoring shared" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--algorithm", "random", "--latency-weight", "1"), "--latency-weight and --penalty mean nothing"),
        (
            ("--algorithm", "random", "--set", "search.target_ms=3"),
            "scoring.supernet has a budget (target_ms=3), and the baseline none",
        ),
        (("--scoring", "trained"), "give --algorithm random or evolution as well"),
        (("--algorithm", "random", *settings(arch_epochs=3)), 'knows no "arch_epochs"'),
        (
            ("--algorithm", "random", *settings(trials=0)),
            "trials: Input should be greater than or equal to 1",
        ),
        (("--seeds", "1"), "1 is not in the range x>=2"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(table, tmp_path, options, message):
    result = hwnas(*searching(table, tmp_path / "run", *options, *settings(data__length=4)))
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("algorithm", ["differentiable", "random", "evolution"])
@pytest.mark.parametrize("asked", [("--target-ms", "0.0001"), ("--max-params", "1")])
def test_a_budget_that_no_network_keeps_is_refused_alike_by_all(table, tmp_path, algorithm, asked):
    result = hwnas(*searching(table, tmp_path / "run", "--algorithm", algorithm, *asked))
    assert result.exit_code == EXIT_BUDGET
    assert "InfeasibleBudget: no network of autortnet keeps this budget" in result.stderr
    assert "The nearest network is" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_baseline_keeps_the_ceilings_that_a_search_keeps(table, tmp_path):
    ranges = said("spaces", "show", "autortnet", "--lut", table)
    most = ranges["params"]["median"]
    options = ("--algorithm", "random", "--max-params", str(most), *FAST, *settings(epochs=1))
    found = said(*searching(table, tmp_path, *options))
    assert found["asked"] == {"params": most}
    assert said("derive", tmp_path)["parameters"] == found["costs"]["params"] <= most
    assert json.loads((tmp_path / "baseline.json").read_text())["config"]["budget"]["max_params"] == most
    assert said("search", "--out", tmp_path, "--resume") == found


def test_the_budget_of_a_preset_is_the_baselines():
    preset = Preset(about="", search={"epochs": 3, "target_ms": 4, "budget": {"max_macs": 5}})
    for scoring in ("shared", "trained"):
        config = baseline_config("random", scoring, preset, {}, None, {"max_params": 6})
        assert config.target_ms == 4
        assert (config.budget.max_macs, config.budget.max_params) == (5, 6)
    assert baseline_config("random", "shared", preset, {}, None, {}).scoring.supernet.epochs == 3


def test_the_folder_of_a_search_is_not_taken(run, table):
    result = hwnas(*searching(table, run, "--algorithm", "random", *FAST))
    assert result.exit_code == 2
    assert "holds a search already" in result.stderr


def test_seeds_are_compared(table, tmp_path):
    out = tmp_path / "runs"
    options = ("--seeds", "2", *settings(epochs=1, depth_from_epoch=0, data__length=4, seed=4))
    found = said(*searching(table, out, *options))
    assert [one["seed"] for one in found["seeds"]] == [4, 5]
    report = Stability.model_validate_json((out / "stability.json").read_text())
    assert found["mean_agreement"] == report.mean_agreement
    for seed in (4, 5):
        folder = out / f"seed-{seed}"
        assert Genotype.load(folder / "genotype.json") == report.results[seed - 4].genotype
        assert (folder / "table.json").is_file()
        assert json.loads((folder / "search.json").read_text())["config"]["seed"] == seed
    # Later verbs take each of them.
    assert hwnas("derive", out / "seed-5").exit_code == 0
    # Which seeds they were, the folder says, where it is not said again.
    result = hwnas("search", "--out", out, "--resume", "--seeds", "2")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.glob("seed-*")) == ["seed-4", "seed-5"]
    result = hwnas("search", "--out", out, "--resume", "--seeds", "2", "--set", "seed=4")
    assert result.exit_code == 0, result.output
    assert "different networks; choices decided alike in" in result.stdout
    assert f"next:  hwnas fit {out}/seed-{report.best.seed} " in result.stdout


def test_with_a_target_what_each_seed_finds_is_measured(table, tmp_path):
    target_ms = said("spaces", "show", "autortnet", "--lut", table)["latency_ms"]["median"]
    options = ("--seeds", "2", "--target-ms", str(target_ms), *settings(epochs=1, data__length=4))
    found = said(*searching(table, tmp_path / "met", *options))
    for seed in found["seeds"]:
        assert seed["met"] and seed["measured_ms"] == pytest.approx(seed["predicted_ms"], rel=1e-4)
    # By a table of a ninth of what the device takes: nothing keeps the target, and the exit code says so.
    slow = LatencyTable.load(table)
    slow.rows = {
        key: timing.model_copy(update={"median_ms": timing.median_ms / 9})
        for key, timing in slow.rows.items()
    }
    slow.save(tmp_path / "slow.json")
    result = hwnas(
        *searching(
            tmp_path / "slow.json",
            tmp_path / "missed",
            "--seeds",
            "2",
            "--target-ms",
            str(target_ms / 9),
            *settings(epochs=1, data__length=4),
        )
    )
    assert result.exit_code == EXIT_BUDGET, result.output
    assert "budget not met" in result.stdout


def test_baselines_are_compared_over_seeds_too(table, tmp_path):
    out = tmp_path / "runs"
    options = ("--algorithm", "random", "--seeds", "2", *FAST, *settings(epochs=1))
    found = said(*searching(table, out, *options))
    assert [one["seed"] for one in found["seeds"]] == [0, 1]
    assert found["score"]["mean"] >= 0
