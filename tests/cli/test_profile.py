"""``hwnas profile`` for a device without torch and hwnas: a bundle goes, results come back."""

import subprocess
import sys

import pytest

from hwnas.cli.app import EXIT_ERROR
from hwnas.latency.bundle_files import load_manifest
from hwnas.latency.table import LatencyTable
from hwnas.search_spaces.chain import Chain
from tests.cli.conftest import hwnas, said, settings

FIELDS = {"size": 8, "stages": 1, "channels": 2}
READ = {"rounds": 1, "rule__max_seconds": 0, "rule__min_seconds": 0}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A bundle of the chain space, measured here by its own runner."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("edge") / "b"
    found = said("profile", "chain", "--export-bundle", folder, *settings(**FIELDS, **READ))
    # Six ops, and the four networks from which all others follow.
    assert found == {"bundle": str(folder), "id": load_manifest(folder).bundle_id, "models": 10}
    subprocess.run([sys.executable, "-I", folder / "run.py"], check=True, capture_output=True, timeout=120)
    return folder


def test_a_bundle_becomes_a_table(measured, tmp_path):
    found = said("profile", "--import-bundle", measured, "--out", tmp_path / "t.json")
    table = LatencyTable.load(tmp_path / "t.json")
    keys = Chain(**FIELDS).record().keys()
    assert list(table.rows) == keys and found["rows"] == len(keys)
    assert table.header.space == {"name": "chain", **Chain(**FIELDS).model_dump(mode="json")}
    assert {row.rounds for row in table.isolated.values()} == {1}
    assert table.header.protocol == "probe" and len(table.networks) == 4
    assert (
        "all 6 of chain" in hwnas("table", "check", tmp_path / "t.json", "chain", *settings(**FIELDS)).output
    )


def test_the_export_says_what_to_do_next(tmp_path):
    folder = tmp_path / "b"
    result = hwnas("profile", "chain", "--export-bundle", folder, *settings(**FIELDS))
    assert "python3 b/run.py" in result.stdout
    assert f"hwnas profile --import-bundle {folder} --out TABLE" in result.stdout


def test_results_of_the_device_and_space_asked_for_are_taken(measured, tmp_path):
    asked = ("--device", "cpu", "--backend", "onnxruntime", "--precision", "fp32", "--threads", "1")
    result = hwnas(
        "profile", "chain", *settings(**FIELDS), *asked, "--import-bundle", measured,
        "--results", measured / "results.json", "--out", tmp_path / "t.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "titanxp"], 'against "titanxp"'),
        (["--precision", "fp16"], "precision: fp32 against fp16"),
        (["--threads", "4"], "threads: 1 against 4"),
        (["--backend", "torch"], "backend: onnxruntime against torch"),
        (["chain", *settings(**FIELDS, depth=1)], None),
        (["chain", *settings(**{**FIELDS, "size": 16})], "lacks 6 of the 6 ops of chain with these fields"),
        (settings(size=8), "describe a SPACE to compare the bundle with: name it"),
        (["--results", "nosuch.json"], "there is no nosuch.json"),
        (["--export-bundle", "other"], "give one of both options"),
    ],
)
def test_results_of_another_kind_are_refused(measured, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hwnas("profile", *arguments, "--import-bundle", measured, "--out", "t.json")
    if message is None:  # another depth, the same ops
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert not (tmp_path / "t.json").exists()


def test_a_table_that_is_there_is_not_replaced(measured, tmp_path):
    (tmp_path / "t.json").write_text("mine")
    result = hwnas("profile", "--import-bundle", measured, "--out", tmp_path / "t.json")
    assert result.exit_code == EXIT_ERROR
    assert "t.json is there already. Give another file (--out), or delete that one." in result.stderr
    assert (tmp_path / "t.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--import-bundle", "b"], "say where the table goes"),
        (["--results", "r.json"], "--results belongs to --import-bundle DIR"),
        (["chain", "--export-bundle", "b", "--device", "orin"], "leave --device, --backend"),
        (["chain", "--export-bundle", "b", "--set", "backend.provider=cuda"], "leave --device, --backend"),
        (["chain", "--export-bundle", "b", "--precision", "bf16"], "a bundle is in fp32 or fp16"),
        (
            ["chain", "--backend", "fake", "--set", "backend.threads=x"],
            "threads is an option by itself: --threads x",
        ),
        (
            ["chain", "--backend", "fake", "--set", "backend.formula=3"],
            "backend fake refuses the option formula: Input should be callable (got 3)",
        ),
        (
            ["chain", "--backend", "torch", "--set", "backend.cuda_graph=perhaps"],
            "backend torch refuses the option cuda_graph: Input should be a valid boolean",
        ),
    ],
)
def test_options_that_make_no_sense(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = hwnas("profile", *arguments)
    assert result.exit_code == EXIT_ERROR
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
