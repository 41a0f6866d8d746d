"""The verbs on the smallest settings, as a user types them."""

import json
import re
import warnings

import pytest
from click.testing import CliRunner

from hwnas import BlindChoiceWarning
from hwnas.cli import main
from hwnas.cli.app import EXIT_ERROR, EXIT_INTERRUPTED
from hwnas.core.genotype import Genotype
from tests.cli.conftest import TINY, hwnas, said, settings


def test_every_verb_explains_itself():
    verbs = re.findall(r"^  (\w+)  ", hwnas("--help").output.partition("Commands:")[2], re.MULTILINE)
    assert " ".join(verbs) == (
        "demo devices spaces doctor profile search derive fit eval export measure table report"
    )
    assert all(hwnas(verb, "--help").exit_code == 0 for verb in verbs)


def test_devices_always_end_with_the_cpu():
    assert said("devices")["devices"][-1]["kind"] == "cpu"


def test_spaces_are_listed():
    assert "autortnet" in hwnas("spaces").output


def test_a_space_shows_its_fields_and_sizes():
    shown = said("spaces", "show", "chain")
    # 3 kernels and 3 depths in each of 2 stages: (3 · 3)^2 networks; the kernel matters at every depth.
    assert shown["cardinality"] == 81
    assert shown["choices"]["s1.kernel"] == ["conv_1x1", "conv_3x3", "conv_5x5"]
    assert "Number of stages." in hwnas("spaces", "show", "chain").output


def test_doctor_says_what_works():
    found = said("doctor")
    assert found["packages"]["torch"]
    assert found["backends"]["fake on cpu"] == "ok"


def test_a_table_is_shown_and_checked(table):
    assert said("table", "show", table)["header"]["backend"] == "fake"
    fields = settings(**TINY)
    assert "sound" in hwnas("table", "check", table, "autortnet", *fields).output
    result = hwnas("table", "check", table, "--backend", "torch")
    assert result.exit_code == EXIT_ERROR
    assert "TableMismatch" in result.stderr


def test_profiling_again_measures_nothing_and_says_the_same(table):
    before = table.read_bytes()
    found = said("profile", "autortnet", "--backend", "fake", "--out", table, *settings(**TINY, rounds=1))
    assert found["table"] == str(table)
    assert table.read_bytes() == before


def test_a_run_holds_what_the_documentation_says(run):
    names = {path.name for path in run.iterdir()} - {"tensorboard"}
    assert names >= {
        "run.json", "search.json", "search.log.jsonl", "table.json", "genotype.json", "result.json",
        "fit.log.jsonl", "weights.pt", "eval.json", "net.onnx", "measure.json", "predictions",
    }  # fmt: skip


def test_prediction_and_measurement_agree_where_latency_is_a_formula(run):
    measured = json.loads((run / "measure.json").read_text())
    # The fake backend's network is the sum of its ops, and so is the prediction; rows are rounded.
    assert measured["median_ms"] == pytest.approx(measured["predicted_ms"], rel=1e-4)
    assert measured["asked_ms"] == 3


def test_derive_counts_what_was_found(run):
    found = said("derive", run)
    assert found["genotype"] == Genotype.load(run / "genotype.json").short_id
    assert found["ops"] == len(found["layers"])
    assert "parameters" in hwnas("derive", run / "genotype.json").output


def test_eval_names_the_classes(run):
    found = json.loads((run / "eval.json").read_text())
    assert 0 <= found["miou"] <= 100
    assert set(found["per_class"]) >= {"road", "sky", "person"}
    assert len(list((run / "predictions").glob("*.png"))) == 2


def test_a_run_is_not_overwritten(run, table):
    result = hwnas(
        "search", "autortnet", "--lut", table, "--out", run, *settings(data__length=4), "--batch", "2"
    )
    assert result.exit_code == EXIT_ERROR
    assert "holds a search already" in result.stderr


def test_resuming_a_finished_run_finds_the_same(run):
    found = said("search", "--out", run, "--resume")
    assert found["genotype"] == Genotype.load(run / "genotype.json").short_id
    assert found["asked_ms"] == 3


def test_resuming_with_other_settings_is_refused(run):
    result = hwnas("search", "--out", run, "--resume", *settings(epochs=3))
    assert result.exit_code == EXIT_ERROR
    assert "config.epochs: checkpoint 2, asked 3" in result.stderr


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--set", "data.length=6"], "data.options.length: checkpoint 4, asked 6"),
        (["--batch", "4"], "data.batch: checkpoint 2, asked 4"),
        (["--set", "data.augment=false"], "data.augment: checkpoint True, asked False"),
    ],
)
def test_resuming_with_other_data_is_refused(run, options, difference):
    result = hwnas("search", "--out", run, "--resume", *options)
    assert result.exit_code == EXIT_ERROR
    assert difference in result.stderr
    if "--batch" not in options:
        result = hwnas("fit", run, "--resume", *settings(epochs=1), *options)
        assert result.exit_code == EXIT_ERROR
        assert difference in result.stderr


def test_how_images_are_loaded_may_change_on_a_resume(run):
    assert hwnas("search", "--out", run, "--resume", "--set", "data.cache=false").exit_code == 0


def test_a_run_that_begins_anew_records_its_data_anew(run, tmp_path):
    for name in ("run.json", "search.json", "table.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    # Stopped before its first checkpoint, so there is nothing that other data could contradict.
    result = hwnas("search", "--out", tmp_path, "--resume", "--set", "data.length=6")
    assert result.exit_code == 0, result.output
    for name, place in (("run.json", "data"), ("search.json", "data")):
        assert json.loads((tmp_path / name).read_text())[place]["options"]["length"] == 6


def test_an_interrupted_search_says_how_to_go_on(tmp_path, table, monkeypatch):
    from hwnas.errors import Interrupted

    def stop(*_, **__):
        raise Interrupted("stopped in epoch 0 after 1 steps")

    monkeypatch.setattr("hwnas.cli.search.search", stop)
    out = tmp_path / "run"
    result = hwnas("search", "--lut", table, "--out", out, "--batch", "2", *settings(data__length=4))
    assert result.exit_code == EXIT_INTERRUPTED
    assert f"hwnas search --lut {table} --out {out}" in result.stderr
    assert result.stderr.rstrip().endswith("--resume")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "--device", "titanxp"], 'DeviceNotFound: no "titanxp" in this machine'),
        (["profile", "--backend", "nosuch"], 'InvalidInput: no latency backend is called "nosuch"'),
        (["search", "nosuch"], 'InvalidInput: no search space is called "nosuch"'),
        (["search", "--preset", "nosuch", "--lut", "none"], 'has no preset "nosuch"; it has: paper, small'),
        (["search", "--set", "nosuch=1"], '--set knows no "nosuch"'),
        (["search", "--penalty", "hinge", "--lut", "none"], "give --target-ms X as well"),
        (["search", "--penalty", "log", "--target-ms", "3", "--lut", "none"], "knows no target"),
        (["search", "--lut", "nosuch.json"], "nosuch.json"),
        (["search", "--lut", "none", "--data", "nosuch"], "no data set is called 'nosuch'"),
        (["search", "chain", "--lut", "none", "--out", "x"], "The command line trains on segmentation data"),
        (["derive", "nosuch"], "no genotype at"),
        (["fit", "nosuch"], "no genotype at"),
        (["report", "nosuch"], "no genotype at"),
        (["measure"], "Missing argument 'RUN'"),
        (["nosuch"], "No such command 'nosuch'"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hwnas(*arguments)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_table_of_other_conditions_is_refused(table, tmp_path):
    result = hwnas("search", "--lut", table, "--out", tmp_path / "x", "--precision", "fp16")
    assert result.exit_code == EXIT_ERROR
    assert "TableMismatch" in result.stderr
    assert "precision: fp32 against fp16" in result.stderr


def test_fitting_needs_weights_before_evaluation(tmp_path, run):
    Genotype.load(run / "genotype.json").save(tmp_path / "genotype.json")
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    result = hwnas("eval", tmp_path)
    assert result.exit_code == EXIT_ERROR
    assert f"hwnas fit {tmp_path}" in result.stderr


def test_resuming_a_run_that_is_not_there_is_refused(tmp_path) -> None:
    outcome = CliRunner().invoke(main, ["search", "--out", str(tmp_path / "typo"), "--resume"])
    assert outcome.exit_code == 2
    assert "there is no run at" in outcome.output


def test_a_path_that_cannot_be_written_is_a_message_not_a_traceback(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    outcome = CliRunner().invoke(
        main, ["profile", "chain", "--backend", "fake", "--out", str(tmp_path / "file" / "t.json")]
    )
    assert outcome.exit_code == 2
    assert "name a path that can be read and written" in outcome.output


def test_our_warnings_are_sentences_without_the_line_of_code(monkeypatch):
    def here():
        warnings.warn("look out", BlindChoiceWarning, stacklevel=1)
        return []

    monkeypatch.setattr("hwnas.latency.device.here", here)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert hwnas("devices").stderr == "BlindChoiceWarning: look out\n"
