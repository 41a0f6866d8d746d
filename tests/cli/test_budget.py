"""Budgets as a user asks for them: search, what it prints, and its exit codes."""

import json

import pytest

from hwnas import SearchConfig
from hwnas.cli.app import EXIT_BUDGET, EXIT_ERROR
from hwnas.cli.asking import search_config
from hwnas.cli.folder import RunFolder
from hwnas.core.genotype import Genotype
from hwnas.errors import InvalidInput
from hwnas.latency.fake import FakeBackend, default_formula
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import in_ms
from tests.cli.conftest import TINY, hwnas, said, settings

FAST = ("--batch", "2", *settings(epochs=1, data__length=4, depth_from_epoch=0))


@pytest.fixture(scope="session")
def ranges(table):
    """What the networks of the tiny space cost."""
    return said("spaces", "show", "autortnet", "--lut", table)


def search(table, out, *options):
    return hwnas("search", "autortnet", "--lut", table, "--out", out, *FAST, *map(str, options))


def test_a_space_shows_what_its_networks_cost(table, ranges):
    assert set(ranges["latency_ms"]) == {"min", "median", "max"}
    for name in ("latency_ms", "params", "macs"):
        assert 0 < ranges[name]["min"] < ranges[name]["median"] < ranges[name]["max"]
    assert ranges["activation_mib"]["min"] <= ranges["activation_mib"]["max"]
    lines = hwnas("spaces", "show", "autortnet", "--lut", table).output
    assert f"latency_ms     {in_ms(ranges['latency_ms']['min'])} min" in lines
    # Without a table there are no milliseconds; a table of another resolution is refused.
    assert "latency_ms" not in said("spaces", "show", "chain")
    result = hwnas("spaces", "show", "autortnet", "--lut", table, *settings(height=64))
    assert result.exit_code == EXIT_ERROR
    assert "input_shape" in result.stderr


def test_a_target_is_kept_measured_and_reported(table, ranges, tmp_path):
    target_ms = ranges["latency_ms"]["median"]
    result = search(table, tmp_path / "run", "--target-ms", target_ms, "--json")
    assert result.exit_code == 0, result.output
    assert "what is found will be measured here: fake" in result.stderr
    found = json.loads(result.stdout)
    assert found["asked_ms"] == target_ms
    assert 0.94 * target_ms <= found["predicted_ms"] <= target_ms
    assert found["measured_ms"] == pytest.approx(found["predicted_ms"], rel=1e-4)
    assert (found["met"], found["measured_networks"]) == (True, 1)
    assert found["correction"] == pytest.approx(1.0, rel=1e-4)
    table_ms = LatencyTable.load(tmp_path / "run/table.json").predict_ms(counted(tmp_path / "run"))
    assert table_ms == pytest.approx(found["predicted_ms"])
    # What comes after knows what was asked.
    measured = said("measure", tmp_path / "run", *settings(rounds=1))
    assert measured["asked_ms"] == target_ms
    assert measured["predicted_ms"] == found["predicted_ms"]
    again = said("search", "--out", tmp_path / "run", "--resume")
    assert again == found
    assert hwnas("report", tmp_path / "run").exit_code == 0


def test_a_first_network_that_is_taken_after_others_was_not_corrected(tmp_path):
    def corrected(predicted_ms, attempts):
        budget = {"predicted_ms": predicted_ms, "costs": {"latency_ms": 3.0}, "attempts": attempts}
        (tmp_path / "result.json").write_text(json.dumps({"budget": budget}))
        return RunFolder(tmp_path).corrected

    assert not corrected(3.0, [])
    assert not corrected(3.0, [{}, {}])
    assert corrected(3.3, [{}, {}])
    (tmp_path / "result.json").write_text(json.dumps({"budget": None}))
    assert not RunFolder(tmp_path).corrected


def counted(run):
    folder = RunFolder(run)
    return folder.space.record().count(folder.space.assignment(folder.genotype))


def test_asked_predicted_and_measured_for_people(table, ranges, tmp_path):
    target_ms = ranges["latency_ms"]["median"]
    lines = search(
        table, tmp_path / "run", "--target-ms", target_ms, "--max-params", 2000
    ).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "found",
        "params",
        "asked",
        "predicted",
        "measured",
        "next:",
    ]
    assert f"asked      {in_ms(target_ms):>8} ms" in lines
    assert "of at most 2000" in lines[1]
    assert lines[3].endswith(" ms   (by the table)")


def test_other_costs_need_no_table(ranges, tmp_path):
    most = {"params": ranges["params"]["median"], "macs": ranges["macs"]["median"]}
    options = ["--max-params", most["params"], "--max-macs", most["macs"], "--max-activation-mib", 8]
    begin = ("search", "autortnet", "--lut", "none", "--out", tmp_path, "--json")
    result = hwnas(*begin, *FAST, *map(str, options), *settings(**TINY))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["asked"] == {**most, "activation_mib": 8}
    assert all(found["costs"][name] <= value for name, value in found["asked"].items())
    assert said("derive", tmp_path)["parameters"] == found["costs"]["params"]
    assert found["measured_ms"] is None


def test_a_target_that_cannot_be_kept_is_refused_before_anything_is_written(table, ranges, tmp_path):
    latency = ranges["latency_ms"]
    result = search(table, tmp_path / "run", "--target-ms", 0.9 * latency["min"])
    assert result.exit_code == EXIT_BUDGET
    assert "InfeasibleBudget: no network of autortnet keeps this budget" in result.stderr
    assert (
        f"{latency['min']:.4g} (min), {latency['median']:.4g} (median), {latency['max']:.4g} (max)"
        in result.stderr
    )
    assert "The nearest network is" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ceiling", ["--target-ms", "--max-params", "--max-macs", "--max-activation-mib"])
@pytest.mark.parametrize("bad", ["inf", "nan", "-1"])
def test_a_ceiling_is_a_number(table, tmp_path, ceiling, bad):
    result = search(table, tmp_path / "run", ceiling, bad)
    assert result.exit_code == EXIT_ERROR
    assert ceiling.removeprefix("--").replace("-", "_") in result.stderr.replace("-", "_")
    assert not (tmp_path / "run").exists()


def test_a_search_whose_choices_never_learn_says_so(table, tmp_path):
    result = search(table, tmp_path / "run", *settings(arch_from_epoch=9))
    assert result.exit_code == 0, result.output
    assert "the choices will not learn: arch_from_epoch=9 leaves them none of" in result.stderr


def test_a_search_whose_depths_never_learn_says_that_its_budget_steers_nothing(table, ranges, tmp_path):
    never = settings(depth_from_epoch=9)
    held = "nothing is held at the budget while searching"
    result = search(table, tmp_path / "run", "--target-ms", ranges["latency_ms"]["median"], *never)
    assert result.exit_code == 0, result.output
    assert f"the depths will not learn: depth_from_epoch=9 leaves them none of 1 epochs; {held}" in (
        result.stderr
    )
    assert "choices of kind depth never learnt" in result.stdout
    result = search(table, tmp_path / "free", *never)
    assert "the depths will not learn" in result.stderr
    assert held not in result.stderr


class Slow(FakeBackend):
    """A device that has become slower by a fifth than its table says."""

    def __init__(self, **conditions):
        super().__init__(lambda key: 1.2 * default_formula(key), **conditions)


def test_a_target_that_is_not_met_when_measured_ends_with_exit_code_3(table, ranges, tmp_path, monkeypatch):
    monkeypatch.setattr("hwnas.cli.machine.find_backend", lambda _: Slow)
    latency = ranges["latency_ms"]
    result = search(table, tmp_path / "run", "--target-ms", 1.05 * latency["min"])
    assert result.exit_code == EXIT_BUDGET
    name = Genotype.load(tmp_path / "run/genotype.json").short_id
    assert f"the budget was not met: {name} is the nearest network that was found" in result.stdout
    assert f"measured   {in_ms(1.2 * latency['min']):>8} ms, after 2 networks were" in result.stdout
    # The second was chosen after the first had taught that all takes 1.2 times what the table says.
    least = in_ms(latency["min"])
    predicted = f"predicted  {in_ms(1.2 * latency['min']):>8} ms   (by the table, {least}, corrected by the"
    assert predicted in result.stdout
    kept = json.loads((tmp_path / "run/result.json").read_text())
    assert kept["predicted_ms"] == pytest.approx(1.2 * kept["budget"]["costs"]["latency_ms"], rel=1e-3)
    # With more room it is met, by a network that the table alone would not have chosen.
    target_ms = 1.2 * latency["median"]
    found = json.loads(search(table, tmp_path / "other", "--target-ms", target_ms, "--json").stdout)
    assert found["met"] is True
    assert 0.92 * target_ms <= found["measured_ms"] <= 1.02 * target_ms
    assert found["correction"] == pytest.approx(1.2, rel=1e-3)


def test_a_table_of_another_device_is_searched_by_and_not_measured(table, ranges, tmp_path):
    kept = LatencyTable.load(table)
    header = kept.header.model_copy(update={"threads": 7, "backend": "nosuch"})
    LatencyTable(header, kept.rows).save(tmp_path / "there.json")
    target_ms = ranges["latency_ms"]["median"]
    result = search(tmp_path / "there.json", tmp_path / "run", "--target-ms", target_ms)
    assert result.exit_code == 0, result.output
    assert "what is found cannot be measured here (no latency backend is called" in result.stderr
    assert f"run  hwnas measure {tmp_path / 'run'}  where it can" in result.stderr
    assert "measured" not in result.stdout


def test_a_soft_target_is_still_a_penalty(table, tmp_path):
    result = search(table, tmp_path / "run", "--target-ms", 3, "--penalty", "hinge", "--json")
    found = json.loads(result.stdout)
    assert found["asked_ms"] == 3
    assert "met" not in found
    config = json.loads((tmp_path / "run/search.json").read_text())["config"]
    assert (config["target_ms"], config["penalty"]["target_ms"]) == (None, 3)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"latency_weight": 1.0}, "--latency-weight"),
        ({"penalty": "log"}, "--penalty log"),
        ({"penalty": "hinge", "target_ms": 3.0}, "--penalty hinge"),
    ],
)
def test_a_penalty_beside_a_hard_target_is_refused_wherever_that_comes_from(options, named):
    for config, given in ((SearchConfig(target_ms=4), {}), (SearchConfig(), {"target_ms": 4})):
        with pytest.raises(InvalidInput, match=rf"target_ms=4 \(of --set, a preset .* leave {named} out"):
            search_config(config, given, **options)
    # As it says, the target may go instead.
    found = search_config(SearchConfig(target_ms=4), {"target_ms": None}, **options)
    assert found.target_ms is None
