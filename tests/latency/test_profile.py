"""Filling tables: nothing valid is read twice, no table of other conditions reused, no failure a number."""

import json

import pytest
import torch
from torch import nn

from hwnas.errors import BackendUnavailable, Interrupted, InvalidInput, MeasurementFailed, TableMismatch
from hwnas.latency.fake import FakeBackend
from hwnas.latency.measuring import ProfileSettings, measure_network, measure_networks
from hwnas.latency.measuring_process import measure_here
from hwnas.latency.profile import profile_keys
from hwnas.latency.stopping import StoppingRule
from hwnas.latency.subjects import plausible_inputs
from hwnas.latency.table import LatencyTable
from hwnas.layers import Add, Conv
from hwnas.ops import Op, OpKey, OpSpec, build_op, register_op

# Two rounds of three readings and one of warm-up: 2 · (1 + 3) = 8 readings an entry.
QUICK = ProfileSettings(
    rounds=2,
    rule=StoppingRule(warmup_readings=1, min_readings=3, max_readings=3, min_seconds=0, max_seconds=0),
)
READINGS = 8
SHAPE = (3, 16, 16)


def conv_key(c_out, batch=1):
    return OpKey(spec=Conv(3, c_out).spec, input_shapes=((batch, *SHAPE),))


KEYS = [conv_key(4), conv_key(8), OpKey(spec=Add().spec, input_shapes=((1, 4, 8, 8), (1, 4, 8, 8)))]


def price(key):
    return float(dict(key.spec.attributes).get("c_out", 1))


class Counting(FakeBackend):
    """A formula's milliseconds that counts preparations and readings, and can fail or be stopped."""

    def __init__(self, fail=(), stop_after=None, read_fail=(), **arguments):
        super().__init__(price, **arguments)
        self.fail, self.read_fail, self.stop_after = fail, read_fail, stop_after
        self.prepared, self.readings, self.inputs = [], 0, []

    def prepare(self, module, inputs):
        assert not module.training
        kind = module.kind if isinstance(module, Op) else type(module).__name__
        self.prepared.append(kind)
        self.inputs.append(inputs)
        if kind in self.fail:
            raise MeasurementFailed("no kernel for it")
        reader = super().prepare(module, inputs)

        def read():
            self.readings += 1
            if self.stop_after is not None and self.readings > self.stop_after:
                raise KeyboardInterrupt
            return float("nan") if kind in self.read_fail else reader()

        return read


def profile(backend, path=None, keys=KEYS, **arguments):
    arguments = {"input_shape": SHAPE, "settings": QUICK, **arguments}
    return profile_keys(keys, backend, path=path, **arguments)


def test_every_key_has_its_row_in_the_keys_order(tmp_path):
    backend = Counting()
    table = profile(backend, tmp_path / "t.json", keys=[*KEYS, KEYS[0]], space={"name": "some", "depth": 3})
    assert {key: table.latency_ms(key) for key in KEYS} == {KEYS[0]: 4.0, KEYS[1]: 8.0, KEYS[2]: 1.0}
    assert list(table.rows) == KEYS
    assert len(backend.prepared) == 3 and backend.readings == 3 * READINGS
    assert all((row.rounds, row.count) == (2, 6) for row in table.rows.values())
    loaded = LatencyTable.load(tmp_path / "t.json")
    assert loaded == table
    header = loaded.header
    assert (header.backend, header.batch, header.input_shape) == ("fake", 1, SHAPE)
    assert header.space == {"name": "some", "depth": 3}
    assert header.created and header.before is not None and header.after is not None


def test_a_table_without_a_path_stays_in_memory():
    table = profile(Counting())
    assert table.path is None and len(table) == 3


def test_complete_rows_are_never_read_again(tmp_path):
    path = tmp_path / "t.json"
    profile(Counting(), path, keys=KEYS[:2])
    content = path.read_bytes()
    again = Counting()
    profile(again, path, keys=KEYS[:2])
    assert (again.prepared, again.readings) == ([], 0)
    assert path.read_bytes() == content
    more = Counting()
    table = profile(more, path)
    assert (more.prepared, more.readings) == (["hwnas.add"], READINGS)
    assert list(table.rows) == KEYS


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "t.json"
    # The first round of three entries takes 3 · 4 = 12 readings, and two visits of the second 8 more.
    with pytest.raises(Interrupted, match=r"2 of 3 entries are complete, and 1 are still missing.*t\.json"):
        profile(Counting(stop_after=20), path)
    # Complete or not, nobody has judged yet whether the machine was quiet.
    assert [row.status for row in LatencyTable.load(path).rows.values()] == ["partial"] * 3
    rest = Counting()
    table = profile(rest, path)
    # One visit is left: one round of one entry.
    assert len(rest.prepared) == 1 and rest.readings == 4
    assert all((row.status, row.rounds) == ("ok", 2) for row in table.rows.values())
    assert list(table.rows) == KEYS
    # The entry that was interrupted has a round from each of two processes.
    assert sorted(row.rounds_by_process for row in table.rows.values()) == [(), (), (1, 1)]
    assert table.header.processes == 2


def test_an_interrupt_without_a_path_passes_through():
    with pytest.raises(KeyboardInterrupt):
        profile(Counting(stop_after=5))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"precision": "fp16"}, "precision: fp32 against fp16"),
        ({"threads": 2}, "threads: 1 against 2"),
        ({"input_shape": (3, 32, 32)}, "input_shape: 3x16x16 against 3x32x32"),
        ({"batch": 2, "keys": [conv_key(4, batch=2)]}, "batch: 1 against 2"),
    ],
)
def test_a_table_of_other_conditions_is_refused_and_kept(tmp_path, changes, text):
    path = tmp_path / "t.json"
    profile(Counting(), path)
    content = path.read_bytes()
    backend = Counting(**{name: value for name, value in changes.items() if name in ("precision", "threads")})
    rest = {name: value for name, value in changes.items() if name not in ("precision", "threads")}
    with pytest.raises(TableMismatch, match=text):
        profile(backend, path, **rest)
    assert backend.readings == 0
    assert path.read_bytes() == content


def test_a_runtime_of_another_version_is_refused(tmp_path):
    class Newer(Counting):
        def versions(self):
            return {"runtime": "2"}

    profile(Counting(), tmp_path / "t.json")
    with pytest.raises(TableMismatch, match=r"runtime: none against 2.*\s.*--out"):
        profile(Newer(), tmp_path / "t.json")


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (Counting(fail=["hwnas.add"]), "no kernel for it"),
        (Counting(read_fail=["hwnas.add"]), "a reading must be finite and above 0 ms; the backend gave nan"),
    ],
)
def test_a_failed_op_is_an_error_that_names_it_and_never_a_number(tmp_path, backend, text):
    path = tmp_path / "t.json"
    with pytest.raises(
        MeasurementFailed, match=rf"1 of 3 entries could not be measured(.|\n)*{KEYS[2].spec.kind}.*{text}"
    ):
        profile(backend, path)
    table = LatencyTable.load(path)
    assert KEYS[0] in table and KEYS[1] in table and KEYS[2] not in table
    assert table.rows[KEYS[2]].status == "failed"
    # Tried again by the next run, alone.
    mended = Counting()
    profile(mended, path)
    assert (mended.prepared, mended.readings) == (["hwnas.add"], READINGS)


def test_rounds_of_an_earlier_run_outlive_a_failure(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(Interrupted):
        profile(Counting(stop_after=3 * READINGS // 2), path)
    with pytest.raises(MeasurementFailed, match="1 of 3 entries could not be measured"):
        profile(Counting(read_fail=["hwnas.add"]), path)
    row = LatencyTable.load(path).rows[KEYS[2]]
    assert (row.status, row.rounds) == ("partial", 1)
    mended = Counting()
    table = profile(mended, path)
    assert (mended.prepared, mended.readings) == (["hwnas.add"], READINGS // 2)
    assert table.rows[KEYS[2]].rounds_by_process == (1, 1)


@pytest.mark.parametrize(("prepared", "rounds"), [(len(KEYS), [1, 1, 1]), (0, None)])
def test_what_was_measured_is_saved_whatever_ends_the_run(prepared, rounds, tmp_path, monkeypatch):
    """Fault: the device is gone when the second process comes to it; or from the first on."""
    monkeypatch.setattr("hwnas.latency.measuring.measure_apart", measure_here)

    class Lost(Counting):
        varies = True

        def prepare(self, module, inputs):
            if len(self.prepared) == prepared:
                raise BackendUnavailable("no CUDA device is left")
            return super().prepare(module, inputs)

    path = tmp_path / "t.json"
    settings = QUICK.model_copy(update={"processes": 2, "save_every_seconds": 3600})
    with pytest.raises(BackendUnavailable, match="no CUDA device is left"):
        profile(Lost(), path, settings=settings)
    # An empty table would be in the way of a run with another precision, say.
    assert path.exists() == (rounds is not None)
    if rounds is not None:
        assert [row.rounds for row in LatencyTable.load(path).rows.values()] == rounds


def test_a_key_of_another_batch_size_is_refused():
    with pytest.raises(InvalidInput, match=r"the table is for batch 1, but .* has batch 4"):
        profile(Counting(), keys=[conv_key(4, batch=4)])


def test_an_op_that_nobody_registered_is_refused():
    with pytest.raises(InvalidInput, match=r'no op is registered as "nobody\.knows"'):
        profile(Counting(), keys=[OpKey(spec=OpSpec(kind="nobody.knows"), input_shapes=((1, 3, 8, 8),))])


class Throttled(Counting):
    """Twice as slow from the second round on, and never quiet again."""

    varies = True
    slow_from = 3 * READINGS / 2

    def prepare(self, module, inputs):
        reader = super().prepare(module, inputs)
        return lambda: reader() * (2 if self.readings > self.slow_from else 1)


BUSY = QUICK.model_copy(update={"processes": 1, "extra_rounds": 0, "busy": "refuse"})


def test_a_machine_that_is_not_steady_is_refused_and_nothing_of_the_run_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", lambda: ["cc1plus (412, 98 %)"])
    path = tmp_path / "t.json"
    with pytest.raises(MeasurementFailed) as caught:
        profile(Throttled(), path, settings=BUSY)
    text = str(caught.value)
    assert text.startswith("the machine was not steady: Rounds ran at unequal speed, as a ratio to the usual")
    assert "other processes are at work: cc1plus (412, 98 %)" in text
    assert "--allow-busy" in text
    # Calling again does not get round it: every entry is still missing.
    assert len(LatencyTable.load(path)) == 0
    with pytest.raises(MeasurementFailed, match="not steady"):
        profile(Throttled(), path, settings=BUSY)


def test_an_unsteady_machine_can_be_accepted_and_the_header_says_so(monkeypatch):
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", list)
    table = profile(Throttled(), settings=BUSY.model_copy(update={"busy": "remark"}))
    assert len(table) == 3
    assert any("unequal speed" in remark for remark in table.header.remarks)


def test_a_refused_run_leaves_what_was_there_before(tmp_path, monkeypatch):
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", list)
    path = tmp_path / "t.json"
    before = profile(Counting(), path, keys=KEYS[:1])
    with pytest.raises(MeasurementFailed, match="not steady"):
        profile(Throttled(), path, keys=[*KEYS, conv_key(5), conv_key(6)], settings=BUSY)
    assert LatencyTable.load(path).rows == before.rows


def test_an_interruption_does_not_get_round_the_refusal(tmp_path, monkeypatch):
    """Rounds that were complete when Ctrl-C came are judged by the run that goes on."""
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", list)
    path, keys = tmp_path / "t.json", [conv_key(channels) for channels in range(1, 22)]
    visit = READINGS // 2
    # All of the first round, and all but one visit of the second, at half speed.
    slow = Throttled(stop_after=(2 * len(keys) - 1) * visit)
    slow.slow_from = len(keys) * visit
    with pytest.raises(Interrupted, match="20 of 21 entries are complete, and 1 are still missing"):
        profile(slow, path, keys=keys, settings=BUSY)
    quick = Counting()
    quick.varies = True
    with pytest.raises(MeasurementFailed, match="not steady"):
        profile(quick, path, keys=keys, settings=BUSY)
    assert len(quick.prepared) == 1
    assert not any(key in LatencyTable.load(path) for key in keys)


def test_remarks_of_several_runs_that_differ_in_their_counts_are_one(tmp_path):
    for number, count in ((1, 3), (2, 12), (3, 5)):
        backend = Counting()
        backend.remarks = lambda count=count: [f"{count} of 20 modules were launch-bound."]
        table = profile(backend, tmp_path / "t.json", keys=KEYS[:number])
    assert table.header.remarks == ("12 of 20 modules were launch-bound.",)


def test_progress_is_told_after_each_visit():
    seen = []
    profile(Counting(), on_progress=lambda *state: seen.append(state))
    assert [(done, total) for done, total, _ in seen] == [(n + 1, 6) for n in range(6)]
    assert {text for *_, text in seen} == set(map(str, KEYS))


def test_inputs_are_plausible_and_never_constant():
    first, second = plausible_inputs([(1, 4, 8, 8), (1, 4, 8, 8)])
    for x in (first, second):
        assert x.dtype == torch.float32 and x.min() == 0 and x.unique().numel() > 50
    assert not torch.equal(first, second)
    assert torch.equal(first, plausible_inputs([(1, 4, 8, 8)])[0])
    backend = Counting()
    profile(backend)
    # Two inputs of one op are two tensors, also where they have one shape.
    left, right = backend.inputs[2]
    assert left is not right and not torch.equal(left, right)


def test_the_callers_random_state_is_left_alone():
    before = torch.get_rng_state()
    profile(Counting())
    assert torch.equal(torch.get_rng_state(), before)


@register_op("test.profile.norm")
class Norm(Op):
    """Takes its mode seriously: two samples at least while training."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x)


def test_ops_are_timed_in_evaluation_mode_on_a_real_backend():
    from hwnas.latency.torch import TorchBackend

    key = OpKey(spec=Norm().spec, input_shapes=((1, 3),))
    assert build_op(key.spec).training
    once = QUICK.model_copy(update={"rounds": 1, "busy": "remark"})
    table = profile(TorchBackend("cpu"), keys=[key, *KEYS], settings=once)
    assert all(table.latency_ms(key) > 0 for key in [key, *KEYS])


def test_a_saved_table_is_plain_json(tmp_path):
    profile(Counting(), tmp_path / "t.json")
    assert {"schema_version", "checksum", "header", "rows"} <= json.loads(
        (tmp_path / "t.json").read_text()
    ).keys()


def test_whole_networks_are_timed_like_tables():
    net, x = nn.Sequential(Conv(3, 4), Conv(4, 8)), torch.rand(1, *SHAPE)
    backend = Counting()
    net.eval()
    # 4 + 8 ms; two rounds of three readings.
    timing = measure_network(net, [x], backend, QUICK)
    assert (timing.median_ms, timing.count, backend.readings) == (12.0, 6, READINGS)
    both = measure_networks({"a": (net, [x]), "b": (net[0].eval(), [x])}, backend, QUICK).timings
    assert {name: value.median_ms for name, value in both.items()} == {"a": 12.0, "b": 4.0}


def test_a_network_without_a_number_is_an_error():
    net = Conv(3, 4).eval()
    with pytest.raises(MeasurementFailed, match=r"Conv could not be measured with fake fp32.*nan"):
        measure_network(net, [torch.rand(1, *SHAPE)], Counting(read_fail=["hwnas.conv"]), QUICK)
