"""Latency tables: what is refused, what is said, and that nothing is altered on the way to disk and back."""

import json
import math
import pickle

import pytest
from pydantic import ValidationError

from hwnas.errors import CorruptTable, InvalidInput, MissingLatency, MissingTable, TableMismatch
from hwnas.latency import table_file
from hwnas.latency.device import Device, DeviceState
from hwnas.latency.fake import FakeBackend, fake_table
from hwnas.latency.header import TableHeader
from hwnas.latency.solve import NetworkTiming
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import Timing
from hwnas.latency.verification import Calibration, Scores, Verification
from hwnas.ops import OpKey, OpSpec

TITAN = Device(kind="cuda", name="NVIDIA TITAN Xp", cores=30)
HEADER = TableHeader(
    device=TITAN,
    backend="tensorrt",
    precision="fp16",
    input_shape=(3, 360, 480),
    space={"name": "autortnet", "num_classes": 11},
    versions={"tensorrt": "10.3"},
    created="2026-11-23T11:00:00+00:00",
    before=DeviceState(seconds=1.5),
)


def key(channels, batch=1):
    spec = OpSpec(kind="test.conv", attributes=(("c_in", channels), ("ratio", 0.5), ("sizes", (1, 2))))
    return OpKey(spec=spec, input_shapes=((batch, channels, 45, 60),))


ROWS = {
    key(8): Timing.from_rounds([[0.1, 0.125, 0.15], [0.12, 0.12, 0.13]]),
    key(16): Timing.from_rounds([[1 / 3, 0.4]]),
}


@pytest.fixture
def table():
    return LatencyTable(HEADER, ROWS)


@pytest.fixture
def path(table, tmp_path):
    table.save(tmp_path / "x.json")
    return tmp_path / "x.json"


def rewrite(path, change, *, sign=True):
    """Change the content of a table file; with ``sign``, as someone who knows about the checksum would."""
    content = json.loads(path.read_text())
    change(content)
    if sign:
        parts = [content[name] for name in table_file._PARTS if name in content]
        content["checksum"] = table_file._digest(parts)
    path.write_text(json.dumps(content))


# --- to disk and back ---------------------------------------------------------------------------------


def test_a_copy_is_not_what_is_said_of_the_table(table, path):
    loaded = LatencyTable.load(path)
    loaded.save_copy(path.with_name("copy.json"))
    assert LatencyTable.load(path.with_name("copy.json")) == loaded
    # What mends a table is to be done to the user's file; a run's copy of it may not change.
    assert loaded.path == path


def test_what_is_saved_is_what_is_loaded(table, path):
    loaded = LatencyTable.load(path)
    assert loaded == table
    assert list(loaded.rows) == list(table.rows)
    assert loaded.checksum == table.checksum == json.loads(path.read_text())["checksum"]
    assert loaded.path == path
    content = json.loads(path.read_text())
    assert [sorted(row) for row in content["rows"]] == [["key", "timing"]] * 2


def test_a_file_of_the_first_schema_is_read(table, path):
    """Version 1 had its version in the header, and no isolated ops, networks or verification."""

    def older(content):
        for name in ("isolated", "networks", "verification"):
            del content[name]
        for name in ("residual_percent", "left_out_percent"):
            del content["header"][name]
        for row in content["rows"]:
            del row["timing"]["rounds_by_process"]
        content["header"]["schema_version"] = content["schema_version"] = 1

    rewrite(path, older)
    assert LatencyTable.load(path) == table


def test_saving_again_gives_the_same_bytes(path, tmp_path):
    LatencyTable.load(path).save(tmp_path / "again" / "y.json")
    assert (tmp_path / "again" / "y.json").read_bytes() == path.read_bytes()


def test_checksum_covers_header_and_rows(table):
    other = LatencyTable(HEADER.model_copy(update={"precision": "fp32"}), ROWS)
    fewer = LatencyTable(HEADER, {key(8): ROWS[key(8)]})
    assert len({table.checksum, other.checksum, fewer.checksum}) == 3
    assert table.checksum.startswith("sha256:") and len(table.checksum) == 7 + 64


def test_a_file_without_a_later_optional_field_is_not_altered(path):
    """As a file of an older hwnas looks to a newer one that knows one more optional field."""
    rewrite(path, lambda content: content["header"].pop("remarks"))
    assert LatencyTable.load(path).header == HEADER


def test_failed_and_partial_rows_survive_and_are_no_latency(path, table):
    table.with_rows(
        {
            key(24): Timing.failed("no kernel"),
            key(32): Timing.from_rounds([[1.0]], status="partial"),
        }
    ).save(path)
    loaded = LatencyTable.load(path)
    assert len(loaded) == 4 and key(24) not in loaded and key(32) not in loaded
    assert str(loaded) == f"{path}: 2 rows (NVIDIA TITAN Xp, tensorrt fp16, batch 1, input 3x360x480)"
    with pytest.raises(MissingLatency) as caught:
        loaded.require([key(24), key(32)])
    assert "(failed: no kernel)" in str(caught.value)
    assert "(only 1 rounds were measured before an interruption)" in str(caught.value)


# --- files that cannot be trusted ---------------------------------------------------------------------


def test_absent(tmp_path):
    with pytest.raises(MissingTable, match=r"no table at .*x\.json\. Measure one:  hwnas profile --out "):
        LatencyTable.load(tmp_path / "x.json")


@pytest.mark.parametrize("kept", [0, 10, 300, -3])
def test_truncated(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        CorruptTable, match=r"is not complete JSON \(line \d+\): was it truncated\? Restore it"
    ):
        LatencyTable.load(path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": []}', "3"])
def test_json_of_something_else(path, content):
    path.write_text(content)
    with pytest.raises(CorruptTable, match="is JSON, but not a latency table of hwnas"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["rows"][0]["timing"].update(median_ms=0.01),
        lambda content: content["rows"].pop(),
        lambda content: content["rows"].reverse(),
        lambda content: content["header"].update(precision="fp32"),
        lambda content: content["header"]["device"].update(name="NVIDIA H200"),
    ],
)
def test_altered(path, change):
    rewrite(path, change, sign=False)
    with pytest.raises(CorruptTable, match="was altered after it was written: its checksum says sha256:"):
        LatencyTable.load(path)


def test_field_defect_negative_latencies_shipped(path):
    rewrite(path, lambda content: content["rows"][1]["timing"].update(median_ms=-0.5))
    with pytest.raises(
        CorruptTable, match=r"what no measurement gives: rows\.1\.timing\.median_ms \(row 2: .*got -0\.5"
    ):
        LatencyTable.load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_not_a_number(path, number):
    path.write_text(path.read_text().replace('"median_ms":0.121666667', f'"median_ms":{number}'))
    assert number in path.read_text()
    with pytest.raises(CorruptTable, match=f"holds {number} where a number must stand"):
        LatencyTable.load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_not_a_number_in_quotes(path, number):
    rewrite(path, lambda content: content["rows"][0]["timing"].update(median_ms=number))
    with pytest.raises(CorruptTable, match=r"must be finite and not negative|greater than or equal to 0"):
        LatencyTable.load(path)


def test_overflowing_number(path):
    path.write_text(path.read_text().replace('"median_ms":0.121666667', '"median_ms":1e999'))
    with pytest.raises(CorruptTable, match="must be finite and not negative"):
        LatencyTable.load(path)


def test_newer_schema(path):
    rewrite(path, lambda content: content.update(schema_version=4, invention="of the future"))
    with pytest.raises(CorruptTable) as caught:
        LatencyTable.load(path)
    assert str(caught.value) == (
        f"{path} was written by a newer hwnas: its schema version is 4, this hwnas reads up to 3. "
        "Upgrade:  pip install --upgrade hwnas"
    )


@pytest.mark.parametrize("version", [0, "1", None])
def test_senseless_schema(path, version):
    rewrite(path, lambda content: content.update(schema_version=version))
    with pytest.raises(CorruptTable, match="expected a whole number"):
        LatencyTable.load(path)


def test_two_rows_for_one_key(path):
    rewrite(path, lambda content: content["rows"].append(content["rows"][0]))
    with pytest.raises(CorruptTable, match="has two rows for one op key"):
        LatencyTable.load(path)


def test_rows_of_another_batch_size_in_a_file(path):
    rewrite(path, lambda content: content["header"].update(batch=4))
    with pytest.raises(CorruptTable, match=r"the table is for batch 4, but test.conv"):
        LatencyTable.load(path)


def test_unknown_field(path):
    rewrite(path, lambda content: content["header"].update(mood="good"))
    with pytest.raises(CorruptTable, match="mood: Extra inputs are not permitted"):
        LatencyTable.load(path)


def test_field_defect_table_loaded_through_pickle_or_eval(path, tmp_path):
    """A file that would run code in another tool is only refused here."""
    witness = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (open, (str(witness), "w"))

    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CorruptTable):
        LatencyTable.load(path)
    path.write_text(f"open({str(witness)!r}, 'w')")
    with pytest.raises(CorruptTable):
        LatencyTable.load(path)
    assert not witness.exists()


# --- rows that are missing ----------------------------------------------------------------------------


def test_field_defect_missing_op_is_never_zero(path):
    table = LatencyTable.load(path)
    with pytest.raises(MissingLatency) as caught:
        table.latency_ms(key(48))
    assert str(caught.value) == (
        f"1 of 1 op keys have no row in {path} (NVIDIA TITAN Xp, tensorrt fp16):\n"
        "  test.conv(c_in=48, ratio=0.5, sizes=(1, 2)) @ 1x48x45x60\n"
        "Measure them on that device (with the --preset and --set of your space, if any):  "
        "hwnas profile autortnet --device titanxp --backend tensorrt --precision fp16 --batch 1 --threads 1 "
        f"--protocol isolated --out {path}"
    )


def test_ten_missing_keys_are_listed_and_the_rest_counted(table):
    wanted = [key(channels) for channels in range(8, 8 + 15)]
    with pytest.raises(MissingLatency) as caught:
        table.require([*wanted, *wanted])
    lines = str(caught.value).splitlines()
    # 15 keys of which 8 and 16 are there: 13 are missing, 10 listed.
    assert lines[0].startswith("13 of 15 op keys have no row in the table (")
    assert sum(line.startswith("  test.conv") for line in lines) == 10
    assert lines[11] == "  … and 3 more"


def test_present_rows(table):
    table.require(ROWS)
    assert table.latency_ms(key(16)) == round((0.333333 + 0.4) / 2, 9)
    assert len(table) == 2 and key(8) in table and "key" not in table


# --- conditions ---------------------------------------------------------------------------------------


def test_check_accepts_what_the_table_is(table):
    table.check()
    table.check(
        device=TITAN, backend="tensorrt", precision="fp16", batch=1, threads=7, input_shape=(3, 360, 480)
    )
    table.check(device="TitanXp")


def test_mismatch_prints_each_difference(path):
    with pytest.raises(TableMismatch) as caught:
        LatencyTable.load(path).check(
            device=Device(kind="cuda", name="NVIDIA H200", cores=132),
            backend="torch",
            precision="fp32",
            batch=4,
            input_shape=(3, 512, 1024),
        )
    assert str(caught.value) == (
        f"{path} was measured under other conditions than those asked for (table against asked):\n"
        "  device name: NVIDIA TITAN Xp against NVIDIA H200\n"
        "  device SMs: 30 against 132\n"
        "  backend: tensorrt against torch\n"
        "  precision: fp16 against fp32\n"
        "  batch: 1 against 4\n"
        "  input_shape: 3x360x480 against 3x512x1024\n"
        "Use a table of these conditions, or measure one (with the --preset and --set of your space, if any)"
        ":  hwnas profile SPACE --device h200 "
        "--backend torch --precision fp32 --batch 4 --threads 1 --protocol isolated --out FILE"
    )


def test_mismatch_with_a_device_by_its_short_name(table):
    with pytest.raises(TableMismatch) as caught:
        table.check(device="v100")
    assert 'device: NVIDIA TITAN Xp (titanxp) against "v100"' in str(caught.value)
    assert "hwnas profile autortnet --device v100 " in str(caught.value)


def test_switches_are_part_of_the_command_where_they_make_sense():
    settings = {"cuda_graph": "False", "tf32": "allowed", "timing_cache": "True"}
    table = LatencyTable(HEADER.model_copy(update={"settings": settings}), ROWS)
    switches = "--set backend.cuda_graph=False --set backend.timing_cache=True --protocol"
    with pytest.raises(MissingLatency, match=switches):
        table.require([key(48)])
    with pytest.raises(TableMismatch, match=switches):
        table.check(precision="fp32")
    for other in ({"backend": "torch"}, {"device": "cpu"}, {"device": Device(kind="cpu", name="x")}):
        with pytest.raises(TableMismatch, match="--threads 1 --protocol"):
            table.check(**other)


def test_threads_matter_on_a_cpu_only():
    cpu = LatencyTable(HEADER.model_copy(update={"device": Device(kind="cpu", name="x")}), ROWS)
    with pytest.raises(TableMismatch, match="threads: 1 against 2"):
        cpu.check(threads=2)


def test_check_against_a_backend_compares_its_versions():
    table = fake_table(ROWS)
    table.check(backend=FakeBackend())
    with pytest.raises(TableMismatch, match="precision: fp32 against fp16"):
        table.check(backend=FakeBackend(precision="fp16"))


def test_field_defect_units_per_batch_and_per_sample_mixed(table):
    """A row is for the whole batch: another batch size is another key, and refused in one table."""
    with pytest.raises(
        InvalidInput, match=r"the table is for batch 1, but test.conv.* has batch 4\. Latencies"
    ):
        table.with_rows({key(8, batch=4): ROWS[key(8)]})
    with pytest.raises(MissingLatency):
        table.latency_ms(key(8, batch=4))
    with pytest.raises(TableMismatch, match="batch: 1 against 4"):
        table.check(batch=4)


def test_with_rows_is_a_copy(table):
    more = table.with_rows({key(24): ROWS[key(8)]})
    assert key(24) in more and key(24) not in table and more.header is table.header


def test_header_refuses_nonsense():
    for field, value in {"batch": 0, "threads": 0, "precision": "fp12", "mood": "good"}.items():
        with pytest.raises(ValidationError, match=field):
            TableHeader(**{**HEADER.model_dump(), field: value})


def test_frame(table):
    frame = table.frame
    assert list(frame["median_ms"]) == [table.latency_ms(key(8)), table.latency_ms(key(16))]
    assert list(frame["inputs"]) == ["1x8x45x60", "1x16x45x60"]
    assert set(frame["device"]) == {"NVIDIA TITAN Xp"}
    assert list(LatencyTable(HEADER).frame.columns) == list(frame.columns)
    assert not math.isnan(frame["spread_ms"].sum())


# --- what whole networks said -----------------------------------------------------------------------------


def verified(table):
    scores = Scores(networks=3, rmspe_percent=1, within_5=100, within_10=100, kendall_tau=1, bias=1)
    table.verification = Verification(
        created="now",
        rows=table.rows_digest,
        uncalibrated=scores,
        calibrated=scores,
        calibration=Calibration(scale=2.0, networks=5),
    )
    return table


def test_a_verification_goes_to_disk_and_back(table, tmp_path):
    verified(table).save(tmp_path / "v.json")
    loaded = LatencyTable.load(tmp_path / "v.json")
    assert loaded.current_verification == table.verification
    assert loaded.predict_ms({key(16): 1}) == 2 * table.latency_ms(key(16))
    assert loaded.doubts() == []


def test_a_verification_of_other_rows_is_not_current(table):
    changed = verified(table)
    changed.rows[key(16)] = Timing(median_ms=9.0, spread_ms=0.0, count=1)
    assert changed.current_verification is None
    assert changed.predict_ms({key(16): 1}) == 9.0
    assert "was never tested on whole networks" in changed.doubts()[0]


def test_the_ops_alone_are_a_table_of_their_own(table):
    networks = [NetworkTiming.of("n", {key(8): 1, key(16): 2}, Timing.from_rounds([[1.0]]))]
    header = HEADER.model_copy(update={"protocol": "probe"})
    probed = LatencyTable(header, isolated=ROWS, networks=networks)
    probed.solve(list(ROWS))
    alone = probed.as_isolated()
    assert alone.rows == ROWS
    assert (alone.header.protocol, alone.header.left_out_percent) == ("isolated", None)
    # 0.1225 + 2 · 0.3667 = 0.856 ms alone are 1 ms together: the rows are raised to that.
    assert probed.predict_ms({key(8): 1, key(16): 2}) == pytest.approx(1.0, rel=1e-6)
