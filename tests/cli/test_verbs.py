"""The verbs on the smallest settings, as a user types them."""

import json
import re
import shutil
import warnings

import pytest
from click.testing import CliRunner

from hwnas import BlindChoiceWarning, Stability, zoo
from hwnas.cli import main
from hwnas.cli.app import EXIT_ERROR, EXIT_INTERRUPTED
from hwnas.cli.machine import Machine
from hwnas.cli.measure import _recorded
from hwnas.cli.search import _note_scores_left_out
from hwnas.cli.spaces import _field_docs
from hwnas.core.genotype import Genotype
from hwnas.core.stability import SeedResult
from hwnas.latency.fake import FAKE_DEVICE, FakeBackend
from hwnas.latency.table import LatencyTable
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Chain
from tests.cli.conftest import TINY, hwnas, said, settings


def test_every_verb_explains_itself():
    verbs = re.findall(r"^  (\w+)  ", hwnas("--help").output.partition("Commands:")[2], re.MULTILINE)
    assert " ".join(verbs) == (
        "demo devices spaces doctor profile verify search sweep derive recipes fit eval export measure "
        "predict zoo table report"
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


def test_fields_are_told_without_the_marks_of_markup():
    assert not [text for text in _field_docs(AutoRTNet).values() if "`" in text]


def test_a_table_is_shown_and_checked(table):
    assert said("table", "show", table)["header"]["backend"] == "fake"
    fields = settings(**TINY)
    assert "sound" in hwnas("table", "check", table, "autortnet", *fields).output
    result = hwnas("table", "check", table, "--backend", "torch")
    assert result.exit_code == EXIT_ERROR
    assert "TableMismatch" in result.stderr


def test_profiling_again_measures_nothing_and_says_the_same(table):
    before = table.read_bytes()
    again = ("--backend", "fake", "--protocol", "isolated", "--out", table)
    found = said("profile", "autortnet", *again, *settings(**TINY, rounds=1))
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


def test_a_network_of_the_zoo_is_derived_by_its_name(monkeypatch):
    # Without the seconds that its whole space takes.
    sizes = {"parameters": 1, "ops": 1, "outside_of_ops": []}
    monkeypatch.setattr("hwnas.cli.derive.describe", lambda found: {"genotype": found.short_id, **sizes})
    assert said("derive", "autortnet-c-camvid")["genotype"] == zoo.card("autortnet-c-camvid").genotype


def test_a_truncated_genotype_is_refused_with_what_mends_it(tmp_path):
    (tmp_path / "genotype.json").write_text('{"schema_version": 1')
    assert "delimiter: line 1 column 21 (char 20). Restore it from a copy" in hwnas("derive", tmp_path).stderr


def test_resuming_a_fit_that_was_not_begun_says_so(run, tmp_path):
    for name in ("genotype.json", "run.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    again = ("fit", tmp_path, "--resume", *settings(epochs=1))
    said_first = hwnas(*again)
    assert said_first.exit_code == 0, said_first.output
    assert f"no training was begun in {tmp_path}: there is nothing to resume" in said_first.stderr
    assert "nothing to resume" not in hwnas(*again).stderr


def test_eval_names_the_classes(run):
    found = json.loads((run / "eval.json").read_text())
    assert 0 <= found["miou"] <= 100
    assert set(found["per_class"]) >= {"road", "sky", "person"}
    assert found["size"] == [32, 64]
    assert len(list((run / "predictions").glob("*.png"))) == 2


def test_eval_brings_images_of_another_size_to_the_networks(run, tmp_path):
    from PIL import Image

    names = list(json.loads((run / "eval.json").read_text())["per_class"])
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / "data" / kind / "val").mkdir(parents=True)
        Image.new(mode, (50, 70)).save(tmp_path / "data" / kind / "val" / "a.png")
    (tmp_path / "data/classes.json").write_text(json.dumps({"names": names}))
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    result = hwnas("eval", copy, "--data", f"folders:{tmp_path / 'data'}", "--split", "val")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith(" % of 1 images, at 32x64 (height x width)")


def test_a_run_is_not_overwritten(run, table):
    result = hwnas(
        "search", "autortnet", "--lut", table, "--out", run, *settings(data__length=4), "--batch", "2"
    )
    assert result.exit_code == EXIT_ERROR
    assert "holds a search already" in result.stderr


def test_a_run_is_not_overwritten_and_that_is_said_before_anything_is_measured(run, monkeypatch):
    monkeypatch.setattr("hwnas.cli.asking.profile_space", lambda *_, **__: pytest.fail("measured"))
    for method in ((), ("--algorithm", "random")):
        result = hwnas("search", "autortnet", "--backend", "fake", "--out", run, *method)
        assert result.exit_code == EXIT_ERROR
        assert f"{run} holds a search already. Go on with it (--resume; resume=True)" in result.stderr


def test_the_folders_of_all_seeds_are_looked_at_before_any_is_trained_or_anything_measured(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr("hwnas.cli.asking.profile_space", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "seed-1").mkdir()
    shutil.copy(run / "search.json", tmp_path / "seed-1")
    result = hwnas("search", "autortnet", "--backend", "fake", "--out", tmp_path, "--seeds", "2")
    assert result.exit_code == EXIT_ERROR
    assert f"{tmp_path / 'seed-1'} holds a search already" in result.stderr
    result = hwnas("search", "autortnet", "--backend", "fake", "--out", run, "--seeds", "2")
    assert result.exit_code == EXIT_ERROR
    assert f"{run} holds a search already" in result.stderr
    assert not (tmp_path / "seed-0").exists() and not (run / "seed-0").exists()


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_single_search_is_not_begun_beside_those_of_several_seeds(run, table, tmp_path, resume):
    for seed in (4, 5, 6):
        (tmp_path / f"seed-{seed}").mkdir()
        shutil.copy(run / "run.json", tmp_path / f"seed-{seed}")
    result = hwnas("search", "autortnet", "--lut", table, "--out", tmp_path, *resume)
    assert result.exit_code == EXIT_ERROR
    assert (
        f"{tmp_path} holds a search with each of several seeds: go on with  hwnas search --seeds 3 "
        f"--out {tmp_path} --resume, or name another folder" in result.stderr
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-4", "seed-5", "seed-6"]


def test_a_score_that_is_not_finite_is_said_beside_the_mean_of_the_others(tmp_path, capsys):
    genotype = Chain().random()
    results = [
        SeedResult(seed=seed, genotype=genotype, predicted_ms=None, score=score)
        for seed, score in ((3, 1.0), (4, float("-inf")))
    ]
    _note_scores_left_out(Stability.of(Chain(), results))
    assert "the validation score of seed 4 is not finite" in capsys.readouterr().err
    _note_scores_left_out(Stability.of(Chain(), [results[0], results[0]]))
    assert not capsys.readouterr().err


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
    for setting in ("data.cache=false", "data.on_device=true"):
        assert hwnas("search", "--out", run, "--resume", "--set", setting).exit_code == 0


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
        (["search", "--penalty", "log", "--target-ms", "3"], "knows no target"),
        (["search", "--latency-weight", "1", "--target-ms", "3"], "which has no weight"),
        (["search", "--latency-weight", "1", "--set", "target_ms=3"], "leave --latency-weight out, or the"),
        (["search", "--target-ms", "3", "--lut", "none", "--data", "nosuch"], "--target-ms needs a latency"),
        (["search", "--lut", "nosuch.json"], "nosuch.json"),
        (["search", "--lut", "none", "--data", "nosuch"], 'no data set is called "nosuch"'),
        (["search", "chain", "--lut", "none", "--out", "x"], "The command line trains on segmentation data"),
        (["derive", "nosuch"], "hwnas search SPACE --out nosuch"),
        (
            ["fit", "autortnet-c-camvid"],
            "a trained network of the zoo, and no run: hwnas eval, predict, export",
        ),
        (["report", "autortnet-c-camvid"], "a trained network of the zoo, and no run: hwnas eval, predict"),
        (["table", "show", "nosuch.json"], "MissingTable: no table at nosuch.json. Measure one"),
        (["fit", "nosuch"], "no genotype at"),
        (["report", "nosuch"], "no genotype at"),
        (["measure"], "Missing argument 'NET'"),
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


def test_a_folder_in_which_no_search_was_begun_is_begun_in(tmp_path, table):
    """So that the command which an interrupted one names does, however early that was."""
    for verb, options in (("search", ()), ("sweep", ("--latency-weights", "0.1,1"))):
        out = tmp_path / verb
        out.mkdir()
        fast = ("--batch", "2", *settings(epochs=1, data__length=4))
        result = hwnas(verb, "--lut", table, "--out", out, "--resume", *fast, *options)
        assert result.exit_code == 0, result.output
        assert (
            f"no {verb} was begun in {out}: there is nothing to resume, and it starts anew" in result.stderr
        )


def test_a_path_that_cannot_be_written_is_a_message_before_anything_is_measured(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("hwnas.cli.machine.profile", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    outcome = CliRunner().invoke(
        main, ["profile", "chain", "--backend", "fake", "--out", str(tmp_path / "file" / "t.json")]
    )
    assert outcome.exit_code == 2
    path = tmp_path / "file" / "t.json"
    assert f"{path}; name a path that can be read and written" in outcome.output
    run = tmp_path / "file" / "run"
    searched = hwnas("search", "--out", run, "--batch", "2", *settings(**TINY, data__length=4))
    assert searched.exit_code == 2
    assert f"{run / 'table.json'}; name a path that can be read and written" in searched.output


def test_our_warnings_are_sentences_without_the_line_of_code(monkeypatch):
    def here():
        warnings.warn("look out", BlindChoiceWarning, stacklevel=1)
        return []

    monkeypatch.setattr("hwnas.latency.device.here", here)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert hwnas("devices").stderr == "BlindChoiceWarning: look out\n"


def test_a_run_without_a_table_is_not_resumed_with_one(table, tmp_path):
    begin = ("search", "--lut", "none", "--out", tmp_path / "run", "--batch", "2")
    tiny = settings(**TINY, epochs=1, data__length=4, depth_from_epoch=0)
    assert hwnas(*begin, *tiny).exit_code == 0
    result = hwnas("search", "--out", tmp_path / "run", "--resume", "--lut", table)
    assert result.exit_code == EXIT_ERROR
    assert f"was started without a latency table, so it cannot go on with {table}" in result.stderr
    assert hwnas("search", "--out", tmp_path / "run", "--resume", "--lut", "none").exit_code == 0


def test_a_table_of_another_device_is_said_to_be_one(table, tmp_path, monkeypatch):
    tiny = settings(epochs=1, data__length=4, depth_from_epoch=0)
    arguments = ("search", "autortnet", "--lut", table, "--batch", "2", *tiny)
    result = hwnas(*arguments, "--out", tmp_path / "there", "--json")
    assert "latency is meant for fake device, fake fp32, batch 1" in result.stderr
    assert "not for this machine" in result.stderr
    meant = {"device": "fake device", "backend": "fake", "precision": "fp32", "batch": 1, "threads": 1}
    assert json.loads(result.stdout).items() >= meant.items()
    assert json.loads((tmp_path / "there/result.json").read_text()).items() >= meant.items()
    monkeypatch.setattr("hwnas.latency.device.here", lambda: [FAKE_DEVICE])
    assert "not for this machine" not in hwnas(*arguments, "--out", tmp_path / "here").stderr


def test_data_are_opened_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hwnas("search", "--backend", "fake", "--data", f"camvid:{tmp_path / 'nosuch'}")
    assert result.exit_code == EXIT_ERROR
    assert "DataError: no folder" in result.stderr
    assert "latency of the" not in result.stderr
    assert not list(tmp_path.iterdir())


class Switched(FakeBackend):
    """A fake backend with switches of its constructor that decide its numbers."""

    def __init__(self, *, provider="plain", cuda_graph=False, calls=1, **conditions):
        super().__init__(**conditions)
        self.switches = {"provider": provider, "cuda_graph": cuda_graph, "calls": calls}

    def settings(self):
        return {name: str(value) for name, value in self.switches.items()} | {"clock": "none"}


@pytest.fixture
def switched(run, tmp_path, monkeypatch):
    """A run whose table was measured with other switches than the constructor's defaults."""
    monkeypatch.setattr("hwnas.cli.machine.find_backend", lambda _: Switched)
    for name in ("genotype.json", "result.json", "run.json", "search.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    kept = LatencyTable.load(run / "table.json")
    backend = Switched(provider="fast", cuda_graph=True, calls=3)
    header = kept.header.model_copy(update={"settings": backend.settings(), "versions": backend.versions()})
    LatencyTable(header, kept.rows).save(tmp_path / "table.json")
    return tmp_path


def test_measure_uses_the_very_switches_of_the_table(switched):
    found = said("measure", switched, *settings(rounds=1))
    assert found["settings"] == {"provider": "fast", "cuda_graph": "True", "calls": "3", "clock": "none"}
    assert found["predicted_ms"] is not None


def test_measure_with_another_switch_says_what_differs(switched):
    result = hwnas("measure", switched, *settings(rounds=1, backend__cuda_graph="false"), "--json")
    assert json.loads(result.stdout)["settings"]["cuda_graph"] == "False"
    assert json.loads(result.stdout)["predicted_ms"] is None
    assert "(table against here):\n  cuda_graph: True against False\n" in result.stderr


def test_switches_are_not_carried_to_another_device(switched):
    header = LatencyTable.load(switched / "table.json").header
    assert _recorded(header, Machine(device="fake")) == {
        "provider": "fast",
        "cuda_graph": True,
        "calls": 3,
    }
    assert _recorded(header, Machine(device="cuda")) == {}
    assert _recorded(header, Machine(backend="torch")) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["profile", "--backend", "fake", "--set", "height=tall"],
            "refuses these values:\n  height:",
        ),
        (
            ["profile", "--backend", "fake", "--set", "cells=3"],
            "  cells: Input should be a valid tuple (got",
        ),
        (["spaces", "show", "autortnet", "--set", "cells=5,10,10"], "(got '5,10,10'; write [5,10,10])"),
        (["spaces", "show", "chain", "--set", "kernels=[2]"], "  kernels: kernels must be odd, positive"),
        (["search", "--lut", "none", "--set", "height=1"], "  height: Input should be greater than or equal"),
        (
            ["search", "--lut", "none", "--set", "relaxation.tau.strt=5"],
            "  relaxation.tau.strt: Extra inputs are not permitted (got 5)\nKnown beside strt: form, start",
        ),
        (["search", "--lut", "none", "--set", "relaxation.tau.start=-1"], "  relaxation.tau.start: Input"),
        (["search", "--target-ms", "-3"], "  target_ms: Input should be greater"),
        (["search", "--lut", "none", "--max-params", "0"], "  budget.max_params: Input should be greater"),
        (["search", "--lut", "none", "--set", "data.seed=x"], "synthetic refuses the option seed: Input"),
        (["search", "--lut", "none", "--set", "data.cache=x"], "synthetic refuses the option cache: Input"),
        (["search", "--lut", "none", "--set", "data.nosuch=1"], "synthetic has no option nosuch"),
        (["fit", "RUN", "--set", "lr=-1"], "FitConfig refuses these values:\n  lr: Input"),
        (
            ["fit", "RUN", "--set", "data.size=[8,8]"],
            "data.size is not to be set: images are brought to the size",
        ),
        (["fit", "RUN", "--set", "data.batch=x"], "DataChoice refuses these values:\n  batch: Input"),
        (["fit", "RUN", "--set", "data.length=x"], "synthetic refuses the option length: Input"),
        (["eval", "RUN", "--set", "data.length=[1]"], "synthetic refuses the option length: Input"),
        (["measure", "RUN", "--set", "rounds=x"], "ProfileSettings refuses these values:\n  rounds: Input"),
    ],
)
def test_a_bad_value_is_named_in_the_words_of_the_command(arguments, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hwnas(*(str(run) if argument == "RUN" else argument for argument in arguments))
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert "pydantic" not in result.stderr
    assert "For further information" not in result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("genotype.json", "is not a genotype:\n  choices: Input should be a valid dictionary (got 3)"),
        ("run.json", "does not describe a run:\n  choices: Extra inputs are not permitted (got 3)"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, message, run, tmp_path):
    for kept in ("genotype.json", "run.json"):
        (tmp_path / kept).write_bytes((run / kept).read_bytes())
    found = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**found, "choices": 3}))
    result = hwnas("fit", tmp_path)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert "pydantic" not in result.stderr
