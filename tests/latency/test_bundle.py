"""A bundle on its way: exported, measured without torch and hwnas, imported; and all that can go wrong."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from hwnas.errors import (
    CorruptTable,
    ExportError,
    InvalidInput,
    MeasurementFailed,
    MissingLatency,
    MissingTable,
    TableMismatch,
)
from hwnas.latency import bundle, edge_runner
from hwnas.latency.bundle import export_bundle, import_bundle
from hwnas.latency.bundle_files import load_manifest
from hwnas.latency.export import onnx_bytes
from hwnas.latency.measuring import ProfileSettings
from hwnas.latency.onnxruntime import OnnxRuntimeBackend
from hwnas.latency.profile import NetworkSubject, profile_keys
from hwnas.latency.stopping import StoppingRule
from hwnas.latency.subjects import ModuleSubject, OpSubject, plausible_inputs
from hwnas.latency.table import LatencyTable
from hwnas.latency.timing import Timing
from hwnas.layers import Add, Conv
from hwnas.ops import OpKey, OpSpec
from hwnas.search_spaces.chain import Chain

# Two rounds of three readings and one of warm-up.
QUICK = ProfileSettings(
    rounds=2,
    rule=StoppingRule(warmup_readings=1, min_readings=3, max_readings=3, min_seconds=0, max_seconds=0),
    save_every_seconds=0,
    processes=1,
    busy="remark",
)
SHAPE = (3, 8, 8)
KEYS = [
    OpKey(spec=Conv(3, 2).spec, input_shapes=((1, *SHAPE),)),
    OpKey(spec=Conv(3, 4).spec, input_shapes=((1, *SHAPE),)),
    OpKey(spec=Add().spec, input_shapes=((1, 2, 4, 4), (1, 2, 4, 4))),
]
SPACE = Chain(size=8, stages=1, channels=2, depth=2)


def whole(module, counts):
    return NetworkSubject(ModuleSubject(module, (torch.empty(1, *SHAPE),)), counts)


def export(folder, **arguments):
    return export_bundle(folder, KEYS, **{"input_shape": SHAPE, "settings": QUICK, **arguments})


class FakeRuntime:
    """Readings that say which model they are of: milliseconds are the index of the entry plus one."""

    backend, threads, settings = "onnxruntime", 1, {"provider": "cpu", "clock": "wall"}
    device = {"kind": "cpu", "name": "Cortex-A76", "cores": 4}  # noqa: RUF012

    def __init__(self, folder, *, stop_after=None, fail=(), bad=None, name="Cortex-A76"):
        self.versions = {"onnxruntime": "1.19.2 (onnxruntime)", "onnx_opset": "17"}
        self.device = {**self.device, "name": name}
        models = [(folder / entry.file).read_bytes() for entry in load_manifest(folder).entries]
        self.prices = {model: float(index + 1) for index, model in enumerate(models)}
        self.stop_after, self.fail, self.bad = stop_after, fail, bad
        self.loaded, self.readings = [], 0

    def reader(self, model, inputs):
        price = self.prices[model]
        if price in self.fail:
            raise RuntimeError("no kernel for it")
        self.loaded.append(price)

        def read():
            self.readings += 1
            if self.stop_after is not None and self.readings > self.stop_after:
                raise KeyboardInterrupt
            return self.bad if self.bad is not None and price == 2 else price

        return read

    def remarks(self):
        return []


@pytest.fixture
def measure(monkeypatch):
    """Runs a bundle's runner in this process with fake readings; gives its exit code and the runtime."""

    def run(folder, *arguments, **behaviour):
        runtime = FakeRuntime(folder, **behaviour)
        options = edge_runner.parsed(arguments)
        with monkeypatch.context() as patch:
            patch.setattr(edge_runner, "OnnxRuntime", lambda manifest, provider, threads: runtime)
            return edge_runner.run(options, folder), runtime

    return run


@pytest.fixture
def exported(tmp_path):
    export(tmp_path / "b")
    return tmp_path / "b"


@pytest.fixture
def measured(exported, measure):
    assert measure(exported)[0] == 0
    return exported


def rewritten(path, change):
    """Alter a results file and give it the checksum that fits, as no accident would."""
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    path.write_text(json.dumps({"checksum": edge_runner.digest(content), **content}))


# Export


def test_a_bundle_holds_the_models_that_hwnas_itself_would_time(exported):
    manifest = load_manifest(exported)
    assert [entry.key for entry in manifest.entries] == KEYS
    for entry, key in zip(manifest.entries, KEYS, strict=True):
        expected = onnx_bytes(OpSubject(key, QUICK.seed).build(), plausible_inputs(key.input_shapes))
        assert (exported / entry.file).read_bytes() == expected
        assert tuple(x.shape for x in entry.inputs) == key.input_shapes
        assert entry.about == str(key)
    assert [x.name for x in manifest.entries[2].inputs] == ["input_0", "input_1"]
    assert (manifest.precision, manifest.batch, manifest.opset, manifest.settings) == ("fp32", 1, 17, QUICK)
    assert sorted(path.name for path in exported.iterdir()) == ["manifest.json", "models", "run.py"]


def test_the_same_bundle_has_the_same_id(tmp_path):
    first = export(tmp_path / "a")
    assert export(tmp_path / "b").bundle_id == first.bundle_id
    assert export(tmp_path / "c", precision="fp16").bundle_id != first.bundle_id
    assert first.bundle_id == edge_runner.load_manifest(tmp_path / "a")["bundle_id"]


def test_fp16_is_in_the_models_and_the_inputs(tmp_path):
    manifest = export(tmp_path / "b", precision="fp16")
    assert {x.dtype for entry in manifest.entries for x in entry.inputs} == {"float16"}
    op = OpSubject(KEYS[0]).build()
    expected = onnx_bytes(op, plausible_inputs(KEYS[0].input_shapes), precision="fp16")
    assert (tmp_path / "b" / manifest.entries[0].file).read_bytes() == expected


def test_doubles_count_once_and_the_callers_random_state_stays(tmp_path):
    state = torch.random.get_rng_state()
    manifest = export_bundle(tmp_path / "b", [KEYS[0], KEYS[0]], input_shape=SHAPE)
    assert len(manifest.entries) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(InvalidInput, match=r'a bundle is in fp32 or fp16, .* got "bf16"'):
        export(tmp_path / "b", precision="bf16")
    with pytest.raises(InvalidInput, match=r"the table is for batch 2, but .* has batch 1"):
        export(tmp_path / "b", batch=2)
    with pytest.raises(InvalidInput, match=r"the table is for batch 1, but .* has batch 2"):
        two = OpKey(spec=KEYS[0].spec, input_shapes=((2, *SHAPE),))
        export(tmp_path / "b", networks={"net": whole(Conv(3, 2), {two: 1})})
    unknown = OpKey(spec=OpSpec(kind="nobody.op"), input_shapes=((1, 1),))
    with pytest.raises(InvalidInput, match=r'no op is registered as "nobody.op"'):
        export_bundle(tmp_path / "b", [unknown], input_shape=SHAPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(InvalidInput, match=r"full is not an empty folder. Give a new one"):
        export(tmp_path / "full")


class Unexportable(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real


def test_an_export_that_failed_is_no_bundle(tmp_path):
    with pytest.raises(ExportError, match="Unexportable cannot be exported"):
        export(tmp_path / "b", networks={"net": whole(Unexportable(), {KEYS[0]: 1})})
    with pytest.raises(edge_runner.Refused, match=r"there is no .*manifest.json. Copy the whole folder"):
        edge_runner.load_manifest(tmp_path / "b")
    with pytest.raises(MissingTable, match=r"there is no .*manifest.json"):
        load_manifest(tmp_path / "b")


# There and back


def test_results_become_an_ordinary_table(exported, measure, tmp_path):
    code, runtime = measure(exported)
    assert code == 0 and runtime.loaded == [1, 2, 3]
    # Equal readings are enough at the fewest: (1 warm-up + 3) · 2 rounds · 3 entries.
    assert runtime.readings == 24
    found = import_bundle(exported)
    assert found.table.networks == []
    assert {key: found.table.latency_ms(key) for key in KEYS} == {KEYS[0]: 1, KEYS[1]: 2, KEYS[2]: 3}
    assert all(
        row == Timing.from_rounds([[float(i)] * 3] * 2) for i, row in enumerate(found.table.rows.values(), 1)
    )
    header = found.table.header
    assert (header.device.name, header.backend, header.precision) == ("Cortex-A76", "onnxruntime", "fp32")
    assert (header.batch, header.threads, header.input_shape) == (1, 1, SHAPE)
    assert header.settings == {"provider": "cpu", "clock": "wall"}
    assert header.versions.keys() == {"hwnas", "onnxruntime", "onnx_opset", "python"}
    assert header.before is not None and header.after is not None and header.processes == 1
    found.table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == found.table


class Both(nn.Module):
    """The first op twice and the second once."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.second = Conv(3, 2), Conv(3, 2), Conv(3, 4)

    def forward(self, x):
        return torch.cat([self.first(x), self.again(x), self.second(x)], dim=1)


def test_rows_are_solved_where_whole_networks_were_measured_too(tmp_path, measure):
    manifest = export(tmp_path / "b", networks={"a0b1": whole(Both(), {KEYS[0]: 2, KEYS[1]: 1})})
    assert manifest.entries[3].about == "a0b1"
    assert measure(tmp_path / "b")[0] == 0
    table = import_bundle(tmp_path / "b").table
    assert table.header.protocol == "probe"
    assert [timing.median_ms for timing in table.isolated.values()] == [1, 2, 3]
    (network,) = table.networks
    assert network.counter == {KEYS[0]: 2, KEYS[1]: 1} and network.timing.median_ms == 4.0
    # 2 · 1 + 2 ms alone are the 4 ms of the network: nothing to correct.
    assert table.predict_ms(network.counter) == pytest.approx(4.0, rel=1e-6)


def test_results_may_lie_elsewhere(exported, measure, tmp_path):
    path = tmp_path / "pi.json"
    assert measure(exported, "--results", str(path))[0] == 0
    assert not (exported / "results.json").exists()
    assert import_bundle(exported, path).table.header.device.name == "Cortex-A76"
    with pytest.raises(MissingTable, match=r"there is no .*results.json. Bring the file from the device"):
        import_bundle(exported)


def test_measuring_goes_on_where_it_stopped(exported, measure):
    # A round takes 3 · 4 = 12 readings; after it one visit of the second, and half of the third.
    code, _ = measure(exported, stop_after=18)
    assert code == 130
    with pytest.raises(MissingLatency, match=r"2 of 3 models were not measured to the end \(2 rounds\)"):
        import_bundle(exported)
    code, rest = measure(exported)
    # Two visits are left, of two entries.
    assert code == 0 and len(rest.loaded) == 2 and rest.readings == 8
    found = import_bundle(exported)
    assert {row.rounds for row in found.table.rows.values()} == {2}
    assert found.table.header.processes == 2
    content = (exported / "results.json").read_bytes()
    code, nothing = measure(exported)
    assert code == 0 and (nothing.loaded, nothing.readings) == ([], 0)
    assert (exported / "results.json").read_bytes() == content


def test_an_interruption_between_a_round_and_its_count_parts_nothing(exported, measure, monkeypatch):
    class Rounds(list):
        def append(self, readings):
            super().append(readings)
            raise KeyboardInterrupt

    class Results(edge_runner.Results):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.entries["op-0001"]["rounds_ms"] = Rounds()

    with monkeypatch.context() as patch:
        patch.setattr(edge_runner, "Results", Results)
        assert measure(exported)[0] == 130
    assert measure(exported)[0] == 0
    row = import_bundle(exported).table.rows[KEYS[1]]
    assert (row.rounds, row.rounds_by_process) == (2, (1, 1))


def test_rounds_may_be_asked_for_there(exported, measure):
    assert measure(exported, "--rounds", "1")[0] == 0
    assert {row.rounds for row in import_bundle(exported).table.rows.values()} == {1}
    assert measure(exported, "--rounds", "3")[1].readings == 2 * 3 * 4
    assert {row.rounds for row in import_bundle(exported).table.rows.values()} == {3}
    # Fewer than are there are there already.
    assert measure(exported, "--rounds", "2")[1].readings == 0
    assert json.loads((exported / "results.json").read_text())["rounds"] == 2


def test_too_few_rounds_to_tell_how_well_entries_are_known_are_remarked(exported, measure):
    assert measure(exported, "--rounds", "1")[0] == 0
    said = "Rounds of an entry: 1. Fewer than 4 do not tell how well it is known."
    assert import_bundle(exported).table.header.remarks == (said,)
    assert measure(exported, "--rounds", "4")[0] == 0
    assert import_bundle(exported).table.header.remarks == ()


def test_an_estimate_measures_nothing(exported, measure, capsys):
    code, runtime = measure(exported, "--estimate")
    # One visit of each of the three.
    assert code == 0 and runtime.readings == 12
    assert not (exported / "results.json").exists()
    assert "about 0:01 to load and measure them, judged by 3" in capsys.readouterr().err


# What goes wrong


def test_a_model_that_fails_is_named_and_the_others_go_on(exported, measure, capsys):
    code, _ = measure(exported, fail=[2])
    assert code == 2
    said = capsys.readouterr().err
    assert "1 of 3 models gave no number" in said
    assert f"op-0001 ({KEYS[1]}): RuntimeError: no kernel for it" in said
    with pytest.raises(MeasurementFailed, match=r"(?s)1 of 3 models gave no number on Cortex-A76.*no kernel"):
        import_bundle(exported)
    # The others have their rounds; the failed one is tried again.
    code, again = measure(exported)
    assert code == 0 and again.loaded == [2]
    assert len(import_bundle(exported).table) == 3


@pytest.mark.parametrize("bad", [float("nan"), -1.0, 0.0])
def test_a_reading_that_is_none_fails_its_entry(exported, measure, bad, capsys):
    assert measure(exported, bad=bad)[0] == 2
    assert f"the runtime gave {bad!r}" in capsys.readouterr().err
    with pytest.raises(MeasurementFailed, match="a reading must be finite and above 0 ms"):
        import_bundle(exported)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(float("nan"), "finite number"), (-0.5, "greater than 0, got -0.5"), (0, "greater than 0")],
)
def test_a_reading_that_is_none_is_not_imported(measured, bad, message):
    path = measured / "results.json"
    rewritten(path, lambda content: content["entries"]["op-0001"]["rounds_ms"][1].__setitem__(2, bad))
    with pytest.raises(CorruptTable, match=rf"op-0001.rounds_ms.1.2: Input should be a? ?{message}"):
        import_bundle(measured)


def test_an_empty_round_is_not_imported(measured):
    rewritten(
        measured / "results.json", lambda content: content["entries"]["op-0001"]["rounds_ms"][1].clear()
    )
    with pytest.raises(CorruptTable, match=r"op-0001.rounds_ms.1: Tuple should have at least 1 item"):
        import_bundle(measured)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1, 2], r"op-0001: .*rounds_by_run adds up to 3 rounds, and rounds_ms holds 2\. Bring the file"),
        ([1], r"op-0001: .*rounds_by_run adds up to 1 rounds, and rounds_ms holds 2\. Bring the file"),
        ([3, -1], r"op-0001.rounds_by_run.1: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_runs_whose_rounds_are_not_those_that_are_there_are_not_imported(measured, shares, message):
    path = measured / "results.json"
    rewritten(path, lambda content: content["entries"]["op-0001"].update(rounds_by_run=shares))
    with pytest.raises(CorruptTable, match=message):
        import_bundle(measured)


def test_results_that_do_not_say_who_measured_which_rounds_are_imported(measured):
    def without(content):
        for entry in content["entries"].values():
            del entry["rounds_by_run"]

    rewritten(measured / "results.json", without)
    assert {row.rounds for row in import_bundle(measured).table.rows.values()} == {2}


def test_truncated_results_are_refused(measured, measure):
    path = measured / "results.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptTable, match=r"results.json is not complete JSON .*was it truncated\?.*run.py"):
        import_bundle(measured)
    with pytest.raises(edge_runner.Refused, match=r"results.json is not complete JSON .*truncated"):
        measure(measured)


def test_altered_results_are_refused(measured, measure):
    path = measured / "results.json"
    path.write_text(path.read_text().replace("2.0", "1.5", 1))
    with pytest.raises(CorruptTable, match=r"results.json was altered after it was written"):
        import_bundle(measured)
    with pytest.raises(edge_runner.Refused, match=r"results.json was altered after it was written"):
        measure(measured)


def test_an_altered_model_is_refused(measured, measure):
    model = measured / "models" / "op-0002.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(CorruptTable, match=r"op-0002.onnx \(hwnas.add.*its checksum differs"):
        import_bundle(measured)
    with pytest.raises(edge_runner.Refused, match=r"op-0002.onnx is not the model that hwnas exported"):
        edge_runner.load_manifest(measured)


def test_a_missing_model_is_refused(measured):
    (measured / "models" / "op-0002.onnx").unlink()
    with pytest.raises(CorruptTable, match=r"the bundle is incomplete: there is no .*op-0002.onnx"):
        import_bundle(measured)
    with pytest.raises(edge_runner.Refused, match=r"the bundle is incomplete: there is no .*op-0002.onnx"):
        edge_runner.load_manifest(measured)


def test_an_altered_manifest_is_refused(measured):
    path = measured / "manifest.json"
    path.write_text(path.read_text().replace('"batch": 1', '"batch":2').replace('"batch":1', '"batch":2'))
    with pytest.raises(CorruptTable, match=r"manifest.json was altered after it was written"):
        import_bundle(measured)
    with pytest.raises(edge_runner.Refused, match=r"manifest.json was altered after it was written"):
        edge_runner.load_manifest(measured)


@pytest.mark.parametrize("name", ["manifest.json", "results.json"])
def test_another_schema_is_refused(measured, name):
    path = measured / name
    content = {**json.loads(path.read_text()), "schema_version": 2}
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptTable, match=rf"{name} has schema version 2; this hwnas reads 1"):
        import_bundle(measured)
    with pytest.raises(edge_runner.Refused, match=rf"{name} is not of schema 1"):
        edge_runner.load_json(path)


@pytest.mark.parametrize("file", ["../../.ssh/config", "/etc/passwd", "models/../x.onnx"])
def test_a_manifest_names_files_of_its_folder_alone(measured, file):
    path = measured / "manifest.json"
    path.write_text(path.read_text().replace("models/op-0000.onnx", file))
    with pytest.raises(CorruptTable, match=r"entries.0.file: String should match pattern"):
        import_bundle(measured)


def test_results_of_another_bundle_are_refused(measured, measure, tmp_path):
    export(tmp_path / "other", batch=1, settings=QUICK.model_copy(update={"seed": 1}))
    path = measured / "results.json"
    with pytest.raises(TableMismatch, match=r"was measured with another bundle .* than this one"):
        import_bundle(tmp_path / "other", path)
    with pytest.raises(edge_runner.Refused, match=r"holds readings of another bundle .* than this one"):
        measure(tmp_path / "other", "--results", str(path))


def test_another_device_does_not_go_on(measured, measure):
    with pytest.raises(edge_runner.Refused, match=r"device name: Cortex-A76 against Cortex-A72"):
        measure(measured, "--rounds", "4", name="Cortex-A72")
    assert import_bundle(measured).table.header.device.name == "Cortex-A76"


def test_results_with_other_entries_are_refused(measured):
    rewritten(measured / "results.json", lambda content: content["entries"].pop("op-0001"))
    with pytest.raises(CorruptTable, match="has other entries than the bundle"):
        import_bundle(measured)


def slow_second_round(content):
    for entry in content["entries"].values():
        entry["rounds_ms"][1] = [2 * value for value in entry["rounds_ms"][1]]


def test_an_unsteady_machine_is_remarked_or_refused(tmp_path, measure):
    for name, busy in (("remark", "remark"), ("refuse", "refuse")):
        export(tmp_path / name, settings=QUICK.model_copy(update={"busy": busy}))
        assert measure(tmp_path / name)[0] == 0
        rewritten(tmp_path / name / "results.json", slow_second_round)
    remarks = import_bundle(tmp_path / "remark").table.header.remarks
    assert remarks[0].startswith("Rounds ran at unequal speed, as a ratio to the usual: 1.00, 2.00")
    with pytest.raises(MeasurementFailed, match=r"the machine was not steady: Rounds.*on Cortex-A76"):
        import_bundle(tmp_path / "refuse")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "What disturbed it does not show."),
        ({"cpu_mhz": 1500.0}, "Likely causes: the CPU's clock went from 2400 to 1500 MHz."),
        ({"cpu_mhz": 3600.0}, "What disturbed it does not show."),
        ({"involuntary_switches": 810}, "Likely causes: run.py was pushed off its core 80 times a second."),
        ({"involuntary_switches": 810, "processes": 2}, "What disturbed it does not show."),
        (
            {"cpu_mhz": 2000.0, "load_average": 9.0},
            "Likely causes: the CPU's clock went from 2400 to 2000 MHz; the load average was 9.0 on 4 cores.",
        ),
    ],
)
def test_what_the_devices_states_show_of_an_unsteady_machine_is_named(tmp_path, measure, changes, said):
    before = {"seconds": 0.0, "cpu_mhz": 2400.0, "involuntary_switches": 10, "load_average": 1.0}
    after = {**before, "seconds": 10.0, **changes}
    processes = after.pop("processes", 1)

    def disturbed(content):
        slow_second_round(content)
        content.update(before=before, after=after, processes=processes)

    export(tmp_path / "b", settings=QUICK.model_copy(update={"busy": "refuse"}))
    assert measure(tmp_path / "b")[0] == 0
    rewritten(tmp_path / "b" / "results.json", disturbed)
    with pytest.raises(MeasurementFailed, match=re.escape(f"{said} End what else runs on Cortex-A76")):
        import_bundle(tmp_path / "b")
    assert import_bundle(tmp_path / "b", allow_busy=True).table.header.remarks[1] == said


def test_two_quick_rounds_of_ten_do_not_condemn_the_others(tmp_path, measure):
    def quick_in_two_rounds(content):
        for entry in content["entries"].values():
            for place in (3, 7):
                entry["rounds_ms"][place] = [0.7 * value for value in entry["rounds_ms"][place]]

    export(tmp_path / "b", settings=QUICK.model_copy(update={"rounds": 10, "busy": "refuse"}))
    assert measure(tmp_path / "b")[0] == 0
    rewritten(tmp_path / "b" / "results.json", quick_in_two_rounds)
    assert import_bundle(tmp_path / "b").table.header.remarks == ()


def test_many_entries_that_stay_unknown_are_refused(tmp_path, measure):
    """Fault: every core of the device is hogged, so that no round is quiet."""

    def half_of_the_visits_are_slow(content):
        for place, entry in enumerate(content["entries"].values()):
            rounds = enumerate(entry["rounds_ms"])
            entry["rounds_ms"] = [[v * (1 + 0.5 * ((n + place) % 2)) for v in values] for n, values in rounds]

    keys = [OpKey(spec=Conv(3, channels).spec, input_shapes=((1, *SHAPE),)) for channels in range(1, 25)]
    settings = QUICK.model_copy(update={"rounds": 4, "busy": "refuse"})
    export_bundle(tmp_path / "b", keys, input_shape=SHAPE, settings=settings)
    assert measure(tmp_path / "b")[0] == 0
    rewritten(tmp_path / "b" / "results.json", half_of_the_visits_are_slow)
    with pytest.raises(MeasurementFailed, match=r"not steady: A typical entry is known to .*on Cortex-A76"):
        import_bundle(tmp_path / "b")
    remark, _ = import_bundle(tmp_path / "b", allow_busy=True).table.header.remarks
    assert remark.endswith(" % only, where 1.25 % are wanted: visits to it differed.")


# In a process of its own, in ONNX Runtime

ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    known = sorted({"torch", "hwnas", "pydantic"} & sys.modules.keys())
    sys.exit(f"imported {known}" if known else end.code)
"""


def alone(folder, *arguments):
    """Run a bundle's runner isolated: no current folder, no PYTHONPATH; nothing of hwnas may be imported."""
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder.parent)


def test_the_runner_needs_neither_torch_nor_hwnas(exported):
    pytest.importorskip("onnxruntime")
    ran = alone(exported)
    assert ran.returncode == 0, ran.stderr
    assert "3 of 3 models are to be measured, 2 rounds" in ran.stderr and "done: " in ran.stderr
    found = import_bundle(exported, allow_busy=True).table
    assert list(found.rows) == KEYS and all(row.count == 6 for row in found.rows.values())
    # On this machine both ways of measuring stand under the same conditions: their rows may be in one table.
    theirs = profile_keys(KEYS, OnnxRuntimeBackend("cpu"), input_shape=SHAPE, settings=QUICK)
    assert theirs.header.differences(found.header) == []
    assert theirs.merged(found).header.processes == 2


def test_a_model_that_does_not_load_is_failed_and_the_others_go_on(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        bundle,
        "onnx_bytes",
        lambda module, inputs, **how: b"?" if isinstance(module, Add) else onnx_bytes(module, inputs, **how),
    )
    export(tmp_path / "b")
    ran = alone(tmp_path / "b")
    assert ran.returncode == 2
    assert "op-0002 (hwnas.add() @ 1x2x4x4, 1x2x4x4): " in ran.stderr
    entries = json.loads((tmp_path / "b" / "results.json").read_text())["entries"]
    assert [len(entry["rounds_ms"]) for entry in entries.values()] == [2, 2, 0]
    with pytest.raises(MeasurementFailed, match=r"1 of 3 models gave no number.*\n  hwnas.add\(\) @ 1x2x4x4"):
        import_bundle(tmp_path / "b")


def test_a_folder_for_the_results_must_be_there(exported, measure):
    with pytest.raises(edge_runner.Refused, match=r"no folder .*nosuch for the results. Make it, or mend"):
        measure(exported, "--results", str(exported / "nosuch" / "r.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(exported):
    pytest.importorskip("onnxruntime")
    exported.chmod(0o500)
    ran = alone(exported)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "Permission denied" in ran.stderr and "(--results)" in ran.stderr


def test_what_the_runner_refuses_it_says_in_a_sentence(exported):
    pytest.importorskip("onnxruntime")
    (exported / "models" / "op-0000.onnx").write_bytes(b"")
    ran = alone(exported)
    assert ran.returncode == 2
    assert "op-0000.onnx is not the model that hwnas exported" in ran.stderr
    assert "Traceback" not in ran.stderr


# In an environment without torch


@pytest.mark.slow
def test_killed_on_the_way_in_an_environment_without_torch(tmp_path):
    """Measure a space where neither torch nor hwnas is installed; be killed; go on; make the table."""
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    try:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "numpy", "onnxruntime"],
            check=True, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no environment with numpy and onnxruntime could be made: {error}")
    for package in ("torch", "hwnas"):
        assert subprocess.run([python, "-I", "-c", f"import {package}"], stderr=subprocess.DEVNULL).returncode

    folder, keys = tmp_path / "b", SPACE.record().keys()
    # Each of 30 rounds lasts 10 ms an entry, and each visit is saved.
    rule = StoppingRule(min_seconds=0.01, max_seconds=0.01, max_readings=10**6)
    settings = ProfileSettings(rounds=30, rule=rule, save_every_seconds=0)
    export_bundle(folder, keys, input_shape=SPACE.input_shape(), space={"name": "chain"}, settings=settings)
    results = folder / "results.json"
    command = [python, "-I", folder / "run.py"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        while first.poll() is None:
            if results.exists():
                os.kill(first.pid, signal.SIGKILL)
                first.wait()
    assert first.returncode == -signal.SIGKILL
    before = json.loads(results.read_text())["entries"]
    done = sum(len(entry["rounds_ms"]) for entry in before.values())
    assert 0 < done < 30 * len(keys)
    with pytest.raises(MissingLatency, match="were not measured to the end"):
        import_bundle(folder)

    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    after = json.loads(results.read_text())["entries"]
    for name, entry in before.items():
        assert after[name]["rounds_ms"][: len(entry["rounds_ms"])] == entry["rounds_ms"]
    found = import_bundle(folder, allow_busy=True).table
    assert list(found.rows) == keys and found.header.processes == 2
    assert {row.rounds for row in found.rows.values()} == {30}
