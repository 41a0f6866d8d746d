"""profile, verify and table on a device that is a formula."""

import json

import pytest

from hwnas.cli.app import EXIT_ERROR, EXIT_NOT_GOOD
from hwnas.cli.verify import lines
from hwnas.latency import packaged
from hwnas.latency.device import Device
from hwnas.latency.fake import FakeBackend, default_formula
from hwnas.latency.packaged import packaged_tables
from hwnas.latency.table import LatencyTable
from hwnas.latency.table_file import SCHEMA_VERSION
from tests.cli.conftest import TINY, hwnas, said, settings

SMALL = settings(size=16, channels=4, stages=3)


@pytest.fixture
def probed(tmp_path):
    """A table of a small chain, solved from whole networks."""
    path = tmp_path / "chain.json"
    result = hwnas("profile", "chain", "--backend", "fake", "--out", path, *SMALL)
    assert result.exit_code == 0, result.output
    assert f"hwnas verify {path}" in result.stdout
    return path


def test_the_default_protocol_solves_rows_from_networks(probed):
    table = LatencyTable.load(probed)
    assert table.header.protocol == "probe"
    assert len(table.networks) > 5 and len(table.isolated) == len(table.rows)
    # A formula is additive: rows alone and rows solved predict the same.
    counts = dict(table.networks[0].counts)
    assert table.predict_ms(counts) == pytest.approx(table.as_isolated().predict_ms(counts), rel=1e-6)


def test_verify_prints_what_programs_read_and_keeps_the_evidence(probed, tmp_path):
    found = said(
        "verify", probed, "chain", "--samples", "8", "--calibrate", "4", "--plot", tmp_path / "p.png"
    )
    assert found["networks"] == 8
    for kind in ("uncalibrated", "calibrated"):
        assert found[kind]["rmspe_percent"] < 0.1
        assert found[kind]["within_5"] == found[kind]["within_10"] == 100
        assert found[kind]["kendall_tau"] == pytest.approx(1.0)
        assert found[kind]["bias"] == pytest.approx(1.0)
    assert (tmp_path / "p.png").stat().st_size > 1000
    table = LatencyTable.load(probed)
    off = table.verification.calibrated.model_copy(update={"rmspe_percent": 9.0})
    told = lines(table.verification.model_copy(update={"calibrated": off}))
    assert any(line.startswith("not good enough to search by (calibrated: RMSPE") for line in told)
    assert table.verification is not None and len(table.verification.evidence) == 12
    shown = hwnas("table", "show", probed).output
    assert "8 networks: RMSPE 0.0" in shown
    # What is complete is not measured again, and what was tested is said.
    again = hwnas("profile", "chain", "--backend", "fake", "--out", probed, *SMALL).output
    assert "tested:          RMSPE 0.0" in again and "test it" not in again
    assert LatencyTable.load(probed).verification == table.verification
    # The space may be left out: the table says which it is for.
    shown = hwnas("verify", probed, "--samples", "4", "--calibrate", "3").output
    assert "\ngood enough to search by (calibrated: RMSPE of at most 5 %, Kendall tau of at least" in shown


class Other(FakeBackend):
    """A device of which the table knows nothing: it takes its time for what the table finds quick."""

    def __init__(self, **conditions):
        super().__init__(lambda key: 1e-5 / default_formula(key), **conditions)


def test_a_table_that_fails_its_verification_ends_in_exit_code_4(probed, monkeypatch):
    checked = hwnas("table", "check", probed)
    assert checked.exit_code == 0 and f"verified: never; hwnas verify {probed}\n" in checked.stdout
    monkeypatch.setattr("hwnas.cli.machine.find_backend", lambda _: Other)
    result = hwnas("verify", probed, "--samples", "8", "--calibrate", "3")
    assert result.exit_code == EXIT_NOT_GOOD
    assert "\nnot good enough to search by (calibrated: RMSPE" in result.stdout
    # What was found is kept, and checking says it again.
    said_so = LatencyTable.load(probed).current_verification
    assert said_so is not None and not said_so.is_good
    checked = hwnas("table", "check", probed)
    assert checked.exit_code == EXIT_NOT_GOOD
    assert ": sound, " in checked.stdout
    assert "its predictions are not good enough to search by" in checked.stdout
    # Another mistake comes first.
    assert hwnas("table", "check", probed, "--backend", "torch").exit_code == EXIT_ERROR


def test_verifying_what_cannot_be_verified_is_refused(probed):
    result = hwnas("verify", probed, "chain", *settings(size=32), "--samples", "4")
    assert result.exit_code == EXIT_ERROR
    assert "input_shape: 3x16x16 against 3x32x32" in result.stderr


def test_an_estimate_measures_a_sample_and_writes_nothing(tmp_path):
    path = tmp_path / "t.json"
    found = said("profile", "chain", "--backend", "fake", "--out", path, "--estimate", *SMALL)
    assert found["preparing_seconds"] > 0 and found["measuring_seconds"] > 0
    assert not path.exists()


@pytest.mark.parametrize("protocol", ["probe", "isolated"])
def test_an_estimate_leaves_out_what_is_there(protocol, tmp_path):
    table = ("chain", "--backend", "fake", "--protocol", protocol, "--out", tmp_path / "t.json", *SMALL)
    hwnas("profile", *table)
    assert said("profile", *table, "--estimate") == {"preparing_seconds": 0, "measuring_seconds": 0}
    path = tmp_path / "t.json"
    shown = hwnas("profile", *table, "--estimate").stdout
    assert shown.startswith(f"{path} is complete: nothing is left to measure on fake")
    begun = LatencyTable.load(path)
    timings = begun.isolated if protocol == "probe" else begun.rows
    key = next(iter(timings))
    timings[key] = timings[key].model_copy(update={"status": "partial"})
    begun.save(path)
    assert min(said("profile", *table, "--estimate").values()) > 0
    assert " s to measure" in hwnas("profile", *table, "--estimate").stdout
    other = "isolated" if protocol == "probe" else "probe"
    refused = hwnas("profile", *table, "--estimate", "--protocol", other)
    assert refused.exit_code == EXIT_ERROR and "other conditions" in refused.stderr


class Dearer(FakeBackend):
    """The same device, when it was half as quick."""

    def __init__(self, **conditions):
        super().__init__(lambda key: 2 * default_formula(key), **conditions)


def test_two_tables_are_compared_and_merged(probed, tmp_path, monkeypatch):
    isolated = tmp_path / "isolated.json"
    hwnas("profile", "chain", "--backend", "fake", "--protocol", "isolated", "--out", isolated, *SMALL)
    same = said("table", "diff", probed, probed)
    assert same["verdict"] == "same" and same["ratio"] == 1.0 and not same["conditions"]
    assert (
        "other conditions: protocol: probe against isolated"
        in hwnas("table", "diff", probed, isolated).output
    )
    rows = len(same["rows"])
    assert (
        f"… and {rows - 1} more rows (--rows N)"
        in hwnas("table", "diff", probed, probed, "--rows", "1").output
    )
    other, merged = tmp_path / "other.json", tmp_path / "merged.json"
    monkeypatch.setattr("hwnas.cli.machine.find_backend", lambda _: Dearer)
    hwnas("profile", "chain", "--backend", "fake", "--out", other, *SMALL)
    assert said("table", "diff", probed, other)["verdict"] == "slower"
    result = hwnas("table", "merge", probed, other, "--out", merged)
    assert result.exit_code == 0, result.output
    found = LatencyTable.load(merged)
    assert len(found) == len(LatencyTable.load(probed)) and found.header.processes == 2
    assert "exists" in hwnas("table", "merge", probed, other, "--out", merged).stderr


def test_a_table_is_not_merged_with_itself(probed, tmp_path):
    result = hwnas("table", "merge", probed, probed, "--out", tmp_path / "m.json")
    assert result.exit_code == EXIT_ERROR
    assert "both tables hold the very same measurement of hwnas.conv" in result.stderr
    assert not (tmp_path / "m.json").exists()


def test_tables_of_other_conditions_are_not_merged(probed, tmp_path):
    isolated = tmp_path / "isolated.json"
    hwnas("profile", "chain", "--backend", "fake", "--protocol", "isolated", "--out", isolated, *SMALL)
    result = hwnas("table", "merge", probed, isolated, "--out", tmp_path / "m.json")
    assert result.exit_code == EXIT_ERROR
    assert "protocol: probe against isolated" in result.stderr
    assert not (tmp_path / "m.json").exists()


def test_profile_says_everything_as_json(tmp_path):
    found = said("profile", "chain", "--backend", "fake", "--out", tmp_path / "t.json", *SMALL)
    assert found["protocol"] == "probe" and found["networks"] > 5
    assert json.loads((tmp_path / "t.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_a_table_is_gone_on_with_for_the_space_that_it_says(tmp_path):
    """The command that a missing row names has no --set: the file knows them."""
    path = tmp_path / "t.json"
    fake = ("profile", "chain", "--backend", "fake", "--protocol", "isolated", "--out", path)
    before = said(*fake, *SMALL)
    assert said(*fake)["rows"] == before["rows"]


def test_a_table_for_other_classes_is_refused_in_words(table, tmp_path):
    fake = ("--backend", "fake", "--protocol", "isolated", "--out", tmp_path / "t.json")
    hwnas("profile", "autortnet", *fake, *settings(**TINY, num_classes=5))
    result = hwnas("search", "autortnet", "--lut", tmp_path / "t.json", "--out", tmp_path / "run")
    assert result.exit_code == EXIT_ERROR
    assert "the table is for 5 classes, and synthetic has 8: give the --data that" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_data(run):
    result = hwnas("search", "--out", run, "--resume", "--data", "folders:elsewhere")
    assert result.exit_code == EXIT_ERROR
    assert "learns from synthetic, so it cannot go on with folders:elsewhere" in result.stderr


def test_tables_that_come_along_are_listed_and_taken_by_name(tmp_path):
    listed = said("table", "list")
    assert list(listed) == list(packaged_tables())
    name = next(iter(listed))
    assert said("table", "show", name)["header"] == listed[name]["header"]
    verified = f"verified: never; hwnas verify {name}"
    checked = hwnas("table", "check", name).stdout
    assert checked == f"{name}: sound, {listed[name]['rows']} rows\n{verified}\n"
    # Of one table it is a copy.
    assert hwnas("table", "merge", name, "--out", tmp_path / "mine.json").exit_code == 0
    assert LatencyTable.load(tmp_path / "mine.json") == LatencyTable.load(name)
    missing = hwnas("table", "show", name[:-1])
    assert missing.exit_code == EXIT_ERROR
    assert f"(did you mean {name}?)" in missing.stderr and "hwnas table list" in missing.stderr


def test_nothing_is_written_into_a_table_that_came_along(probed, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "_SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    shipped = tmp_path / "shipped/mine.json"
    shipped.write_bytes(probed.read_bytes())
    result = hwnas("verify", "mine", "--samples", "4", "--calibrate", "3")
    assert result.exit_code == 0
    assert "mine comes with hwnas and is not written to" in result.stderr
    assert "hwnas table merge mine --out FILE" in result.stderr
    assert shipped.read_bytes() == probed.read_bytes()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()  # a folder of that name is in nobody's way
    assert hwnas("table", "show", "mine").exit_code == 0
    assert "mine is a folder; expected a table's file" in hwnas("table", "show", tmp_path / "mine").stderr
    (tmp_path / "mine").rmdir()
    (tmp_path / "mine").write_text("{}")  # a file goes before
    assert "is JSON, but not a latency table" in hwnas("table", "show", "mine").stderr


@pytest.fixture
def doubtful(table, tmp_path):
    """A table that was never verified, of a device that is no formula: of those there is nothing to doubt."""
    found = LatencyTable.load(table)
    found.header = found.header.model_copy(update={"device": Device(kind="cpu", name="some CPU")})
    found.save(tmp_path / "doubtful.json")
    return tmp_path / "doubtful.json"


@pytest.mark.parametrize("verb", [("search",), ("sweep", "--latency-weights", "0.001,10")])
def test_what_is_to_be_doubted_of_a_table_is_said_once(verb, doubtful, tmp_path):
    fast = ("--batch", "2", *settings(epochs=2, depth_from_epoch=0, data__length=4))
    result = hwnas(*verb, "autortnet", "--lut", doubtful, "--out", tmp_path / "run", *fast)
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"{doubtful} was never tested on whole networks") == 1
