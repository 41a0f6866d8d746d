"""Measuring in several processes: rounds divided, failures told, nothing measured twice."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from hwnas.errors import InvalidInput, MeasurementFailed
from hwnas.latency import measuring_process
from hwnas.latency.fake import FakeBackend
from hwnas.latency.measuring import (
    ProfileSettings,
    estimate_seconds,
    measure_network,
    measure_subjects,
    one_of_each_kind,
)
from hwnas.latency.measuring_process import measure_here
from hwnas.latency.onnx_backend import OnnxBackend
from hwnas.latency.stopping import StoppingRule
from hwnas.latency.subjects import ModuleSubject, OpSubject, Subject
from hwnas.latency.timing import Timing
from hwnas.layers import Add, Conv
from hwnas.ops import OpKey, OpSpec

RULE = StoppingRule(warmup_readings=0, min_readings=2, max_readings=2, min_seconds=0, max_seconds=0)
# A formula that varies is disturbed by nothing, but the canary of a busy test machine is.
SETTINGS = ProfileSettings(rounds=4, processes=2, rule=RULE, tolerance=1e9)
SHAPE = (1, 3, 8, 8)


def key(c_out):
    return OpKey(spec=Conv(3, c_out).spec, input_shapes=(SHAPE,))


def formula(op_key):
    return float(dict(op_key.spec.attributes).get("c_out", 1))


class Varying(FakeBackend):
    """A formula that claims to vary, and writes down which process prepared what.

    In processes of its own, the canary does not hear what else the machine does.
    """

    varies = True

    def __init__(self, notes, fail_read=0):
        super().__init__(formula)
        self.notes = str(notes)
        self.parent = os.getpid()
        self.fail_read = fail_read

    def prepare(self, module, inputs):
        if os.getpid() != self.parent:
            measuring_process.canary = lambda clock: lambda: 1.0
        with Path(self.notes).open("a") as file:
            file.write(f"{os.getpid()} {type(module).__name__}\n")
        reader = super().prepare(module, inputs)
        if reader() != self.fail_read:
            return reader

        def lost():
            raise RuntimeError("CUDA error: device lost")

        return lost


@dataclass(frozen=True)
class Dying(Subject):
    """Takes its process with it."""

    def build(self):
        os._exit(7)

    def inputs(self):
        return []


@dataclass(frozen=True)
class Chatty(Subject):
    """Prints to stdout as runtimes do."""

    def build(self):
        print("a runtime's banner", flush=True)
        os.write(1, b"{not json}\n")
        return Conv(3, 4).eval()

    def inputs(self):
        return [torch.ones(SHAPE)]


BOTH = {"four": OpSubject(key(4)), "eight": OpSubject(key(8))}


def notes_of(path):
    return [line.split() for line in path.read_text().splitlines()]


def test_the_rounds_are_divided_among_processes_that_prepare_anew(tmp_path):
    notes = tmp_path / "notes"
    seen, progress = [], []
    found = measure_subjects(
        BOTH,
        Varying(notes),
        SETTINGS,
        on_visit=lambda name, timing: seen.append((name, timing.rounds, timing.status)),
        on_progress=lambda *state: progress.append(state),
    )
    assert {name: timing.median_ms for name, timing in found.timings.items()} == {"four": 4.0, "eight": 8.0}
    for timing in found.timings.values():
        assert (timing.rounds, timing.rounds_by_process, timing.count) == (4, (2, 2), 8)
    processes = [pid for pid, _ in notes_of(notes)]
    assert len(processes) == 4 and len(set(processes)) == 2 and str(os.getpid()) not in processes
    assert found.processes == 2
    assert ("four", 1, "partial") in seen and ("four", 4, "ok") in seen
    assert [(done, total) for done, total, _ in progress] == [(n + 1, 8) for n in range(8)]


def test_a_few_entries_are_worth_fewer_processes():
    """Starting one takes longer than reading a few networks in it."""
    settings, varying = ProfileSettings(), Varying(None)
    assert [settings.processes_for(varying, entries) for entries in (1, 19, 20, 200)] == [4, 4, 8, 8]
    assert ProfileSettings(processes=6).processes_for(varying, 1) == 6
    assert settings.processes_for(FakeBackend(formula), 200) == 1
    compiling = Varying(None)
    compiling.processes = 2
    assert [settings.processes_for(compiling, entries) for entries in (1, 200)] == [2, 2]


def test_a_formula_needs_one_process():
    found = measure_subjects({"four": OpSubject(key(4))}, FakeBackend(formula), SETTINGS)
    assert (found.processes, found.timings["four"].rounds, found.timings["four"].rounds_by_process) == (
        1,
        4,
        (),
    )


def test_what_another_process_cannot_import_is_measured_here(tmp_path):
    backend = Varying(tmp_path / "notes")
    backend.formula = lambda op_key: 3.0
    found = measure_subjects({"four": OpSubject(key(4))}, backend, SETTINGS)
    assert found.timings["four"].median_ms == 3.0
    assert found.timings["four"].rounds == 4
    assert [pid for pid, _ in notes_of(tmp_path / "notes")] == [str(os.getpid())]
    assert found.remarks[0].startswith("Measured in one process")


class Threaded(Varying):
    """Writes down with how many threads it prepares."""

    def prepare(self, module, inputs):
        Path(f"{self.notes}.threads").write_text(str(torch.get_num_threads()))
        return super().prepare(module, inputs)


def test_a_process_prepares_with_the_threads_that_it_times_with(tmp_path):
    backend = Threaded(tmp_path / "n")
    backend.threads = 3
    measure_subjects({"two": OpSubject(key(2))}, backend, SETTINGS)
    assert (tmp_path / "n.threads").read_text() == "3"


def test_only_missing_rounds_are_measured(tmp_path):
    earlier = {"four": Timing.from_rounds([[1.0], [1.0], [1.0]], status="partial")}
    found = measure_subjects(
        BOTH,
        Varying(tmp_path / "n"),
        SETTINGS,
        earlier=earlier,
    )
    assert found.timings["four"].readings_ms == ((1.0,), (1.0,), (1.0,), (4.0, 4.0))
    assert found.timings["four"].rounds_by_process == (3, 1)
    assert found.timings["eight"].rounds_by_process == (2, 2)
    # The first process had nothing to do for the one of which three rounds were there.
    assert len(notes_of(tmp_path / "n")) == 3


def test_a_process_that_dies_is_an_error_that_says_at_what(tmp_path):
    """Fault: the runtime crashes, or the device is lost with the process."""
    with pytest.raises(MeasurementFailed, match="ended with exit code 7 while preparing deadly, and gave no"):
        measure_subjects({"deadly": Dying()}, Varying(tmp_path / "n"), SETTINGS)


def test_a_device_lost_in_the_middle_gives_no_number(tmp_path):
    found = measure_subjects(
        BOTH,
        Varying(tmp_path / "n", fail_read=8.0),
        SETTINGS,
    )
    assert found.timings["four"].status == "ok"
    assert found.timings["eight"].status == "failed"
    assert found.timings["eight"].error == "the reader failed: RuntimeError: CUDA error: device lost"


def test_what_a_runtime_prints_disturbs_nothing(tmp_path):
    found = measure_subjects({"chatty": Chatty()}, Varying(tmp_path / "n"), SETTINGS)
    assert found.timings["chatty"].median_ms == 4.0


def test_an_unknown_op_is_refused_from_within_a_process(tmp_path):
    unknown = OpKey(spec=OpSpec(kind="nobody.knows"), input_shapes=(SHAPE,))
    with pytest.raises(InvalidInput, match=r'no op is registered as "nobody\.knows"'):
        measure_subjects({"x": OpSubject(unknown)}, Varying(tmp_path / "n"), SETTINGS)


def test_an_op_that_cannot_be_prepared_is_failed_and_the_others_go_on():
    nothing = OpKey(spec=Add().spec, input_shapes=((1, 2), (1, 3)))
    found = measure_subjects(
        {"good": OpSubject(key(4)), "bad": OpSubject(nothing)}, FakeBackend(formula), SETTINGS
    )
    assert found.timings["good"].status == "ok"
    assert "does not run on inputs" in found.timings["bad"].error


def test_a_whole_network_is_measured_in_two_processes(tmp_path):
    network = nn.Sequential(Conv(3, 4), Conv(4, 8))
    timing = measure_network(network, [torch.ones(SHAPE)], Varying(tmp_path / "n"), SETTINGS)
    assert (timing.median_ms, timing.rounds_by_process) == (12.0, (2, 2))


def test_an_estimate_scales_a_sample_up(monkeypatch):
    ticks = iter(float(n) for n in range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    # Every look at the clock is a second later: preparing takes 1, and a visit 1.
    preparing, measuring = estimate_seconds(
        {n: OpSubject(key(4)) for n in range(24)}, FakeBackend(formula), SETTINGS, sample=6
    )
    assert preparing == 24 * 1.0
    assert measuring == 24 * 4 * 1.0


def test_fewer_rounds_than_were_begun_with_complete_a_timing(tmp_path):
    earlier = {"four": Timing.from_rounds([[1.0]] * 3, status="partial")}
    fewer = SETTINGS.model_copy(update={"rounds": 2})
    found = measure_subjects({"four": OpSubject(key(4))}, Varying(tmp_path / "n"), fewer, earlier=earlier)
    assert (found.timings["four"].status, found.timings["four"].rounds) == ("ok", 3)
    assert not (tmp_path / "n").exists()


def test_a_network_that_is_given_is_not_changed(tmp_path):
    network = nn.Sequential(Conv(3, 4)).train()
    measure_network(network, [torch.ones(SHAPE)], FakeBackend(formula), SETTINGS)
    assert network.training and network[0].training


class Exporting(OnnxBackend):
    """Reads "models" that say how often they were exported and loaded."""

    name = "exporting"

    def __init__(self, notes):
        super().__init__("cpu")
        self.notes = str(notes)

    def check(self):
        pass

    def export(self, module, inputs):
        with Path(self.notes).open("a") as file:
            file.write(f"{os.getpid()} export\n")
        return str(float(module.weight.shape[0])).encode()

    def prepare_model(self, model, inputs, name="the model"):
        with Path(self.notes).open("a") as file:
            file.write(f"{os.getpid()} load {name}\n")
        return lambda: float(model.decode())


def test_a_model_is_exported_once_and_loaded_by_each_process(tmp_path):
    subjects = {"five": ModuleSubject(nn.Linear(1, 5), (torch.ones(1, 1),))}
    found = measure_subjects(subjects, Exporting(tmp_path / "n"), SETTINGS)
    assert found.timings["five"].median_ms == 5.0
    assert [what for _, *what in notes_of(tmp_path / "n")] == [["export"], ["load", "five"], ["load", "five"]]
    assert len({pid for pid, *_ in notes_of(tmp_path / "n")}) == 2


class Moody(Varying):
    """The second process runs at half speed, and so does none after it."""

    def prepare(self, module, inputs):
        reader = super().prepare(module, inputs)
        slow = len({pid for pid, _ in notes_of(Path(self.notes))}) == 2
        return lambda: reader() * (2 if slow else 1)


def test_a_process_that_ran_slow_is_measured_again_by_another(tmp_path):
    settings = SETTINGS.model_copy(update={"tolerance": 1.5, "extra_rounds": 0, "busy": "remark"})
    subjects = {n: OpSubject(key(n)) for n in range(1, 21)}
    found = measure_subjects(subjects, Moody(tmp_path / "n"), settings)
    assert {n: timing.median_ms for n, timing in found.timings.items()} == {n: float(n) for n in subjects}
    assert {timing.rounds_by_process for timing in found.timings.values()} == {(2, 2)}
    assert found.timings[1].readings_ms == ((1.0, 1.0),) * 4
    assert "Disturbed rounds that were measured again: 2." in found.remarks
    assert len({pid for pid, _ in notes_of(tmp_path / "n")}) == 3


def test_rounds_of_an_interrupted_run_are_judged_too(tmp_path):
    """They are no better than those of this run, and nobody else will look at them."""
    settings = SETTINGS.model_copy(update={"tolerance": 1.5, "extra_rounds": 0})
    earlier = {n: Timing.from_rounds([[3.0 * n], [1.0 * n]], status="partial") for n in range(1, 21)}
    subjects = {n: OpSubject(key(n)) for n in range(1, 21)}
    found = measure_subjects(subjects, Varying(tmp_path / "n"), settings, earlier=earlier)
    assert found.timings[4].readings_ms == ((4.0,), (4.0, 4.0), (4.0, 4.0), (4.0, 4.0))
    assert found.timings[4].rounds_by_process == (1, 2, 1)


def test_a_few_quick_rounds_do_not_make_the_others_be_measured_again(tmp_path):
    """Three of sixteen are an eighth quicker: what to level by, and no reason to throw the others away."""
    settings = SETTINGS.model_copy(update={"rounds": 16, "tolerance": 1.1, "relative_error": 0.5})
    rounds = [1.12] * 13 + [1.0] * 3
    earlier = {
        n: Timing.from_rounds([[speed * n] for speed in rounds], status="partial") for n in range(1, 21)
    }
    subjects = {n: OpSubject(key(n)) for n in earlier}
    found = measure_subjects(subjects, Varying(tmp_path / "n"), settings, earlier=earlier)
    assert found.busy == [] and not (tmp_path / "n").exists()
    assert found.timings[4].median_ms == pytest.approx(4.0) and found.timings[4].rounds == 16


class Restless(Varying):
    """Takes twice as long in every other visit."""

    def prepare(self, module, inputs):
        reader, readings = super().prepare(module, inputs), itertools.count()
        return lambda: reader() * (1 + next(readings) // RULE.max_readings % 2)


@pytest.mark.parametrize(
    ("most", "error", "shares"),
    [(16, 0.15, (2, 2, 2, 2)), (5, 0.01, (2, 2, 1)), (16, 0.5, (2, 2))],
)
def test_further_rounds_are_measured_until_entries_are_known_well_enough(most, error, shares, tmp_path):
    settings = SETTINGS.model_copy(update={"most_rounds": most, "relative_error": error})
    progress = []
    found = measure_subjects(
        BOTH, Restless(tmp_path / "n"), settings, on_progress=lambda *state: progress.append(state)
    )
    for timing in found.timings.values():
        assert (timing.status, timing.rounds_by_process) == ("ok", shares)
    assert len({pid for pid, _ in notes_of(tmp_path / "n")}) == len(shares)
    rounds = sum(shares)
    assert [done for done, *_ in progress] == list(range(1, 2 * rounds + 1))
    assert progress[-1][1] == 2 * rounds
    further = f"Visits to one entry differed much: {rounds - 4} further rounds were measured."
    assert (further in found.remarks) == (rounds > 4)
    left = [remark for remark in found.remarks if remark.startswith("A typical entry is known to ")]
    assert len(left) == (rounds == most)


@pytest.mark.parametrize(("entries", "refused"), [(24, True), (4, False)])
def test_entries_that_stay_unknown_are_refused_where_they_are_many(entries, refused, tmp_path):
    """Fault: every core is hogged. All rounds are alike then, and none of them is good."""
    settings = SETTINGS.model_copy(update={"most_rounds": 1})

    def half_of_the_visits_are_slow(n):
        return Timing.from_rounds([[n * (1.0 + 0.5 * ((n + visit) % 2))] for visit in range(4)])

    earlier = {n: half_of_the_visits_are_slow(n) for n in range(1, entries + 1)}
    subjects = {n: OpSubject(key(n)) for n in earlier}
    found = measure_subjects(subjects, Varying(tmp_path / "n"), settings, earlier=earlier)
    told = [line for line in found.busy if line.startswith("A typical entry is known to ")]
    remarked = [line for line in found.remarks if line.startswith("A typical entry is known to ")]
    assert (len(told), len(remarked)) == ((1, 0) if refused else (0, 1))
    if refused:
        assert told[0].endswith(" % only, where 1.25 % are wanted: visits to it differed.")
        with pytest.raises(MeasurementFailed, match=r"the machine was not steady: A typical entry is known"):
            found.require_quiet(settings, "Nothing was kept.")
    found.require_quiet(settings.model_copy(update={"busy": "remark"}), "")


def test_few_rounds_do_not_tell_whether_further_ones_are_needed(tmp_path):
    settings = SETTINGS.model_copy(update={"rounds": 3})
    found = measure_subjects(BOTH, Restless(tmp_path / "n"), settings)
    assert [timing.rounds for timing in found.timings.values()] == [3, 3]
    assert found.remarks == []


def test_further_rounds_that_were_interrupted_are_completed(tmp_path):
    earlier = {
        "four": Timing.from_rounds([[4.0]] * 6, status="partial"),
        "eight": Timing.from_rounds([[8.0]] * 4, status="partial"),
    }
    found = measure_subjects(BOTH, Varying(tmp_path / "n"), SETTINGS, earlier=earlier)
    assert [(timing.status, timing.rounds) for timing in found.timings.values()] == [("ok", 6), ("ok", 6)]
    assert [name for _, name in notes_of(tmp_path / "n")] == ["Conv"]


class Lengthening(FakeBackend):
    """Readings that are longer than a visit, each a millisecond longer than the one before."""

    first_counts = False

    def prepare(self, module, inputs):
        return itertools.count(31.0).__next__


@pytest.mark.parametrize(("first_counts", "kept"), [(False, [32.0, 34.0]), (True, [31.0, 32.0])])
def test_a_backend_says_whether_the_first_reading_counts(first_counts, kept):
    backend = Lengthening()
    backend.first_counts = first_counts
    subjects = {"net": ModuleSubject(nn.ReLU(), (torch.ones(1, 1, 2, 2),))}
    rule = StoppingRule(warmup_readings=1, max_readings=1)
    found = measure_subjects(subjects, backend, ProfileSettings(rounds=2, processes=1, rule=rule))
    assert [reading for (reading,) in found.timings["net"].readings_ms] == kept


@pytest.fixture
def processes_here(monkeypatch):
    """Measuring processes without the processes: their jobs; and, by number, what their canaries read."""
    jobs, canary_ms = [], {}

    def measured(job, visited, progressed):
        jobs.append(job)
        reading = canary_ms.get(len(jobs), 1.0)
        monkeypatch.setattr(measuring_process, "canary", lambda clock: lambda: reading)
        return measure_here(job, visited, progressed)

    monkeypatch.setattr("hwnas.latency.measuring.measure_apart", measured)
    monkeypatch.setattr("hwnas.latency.steadiness.busy_processes", list)
    return jobs, canary_ms


DEFAULT = ProfileSettings(rule=RULE)


@pytest.mark.parametrize(("entries", "processes", "share"), [(20, 8, 1), (3, 4, 2)])
def test_by_default_a_process_whose_canary_is_slow_is_measured_again(
    entries, processes, share, processes_here, tmp_path
):
    jobs, canary_ms = processes_here
    canary_ms[3] = 1.2
    subjects = {n: OpSubject(key(n)) for n in range(1, entries + 1)}
    found = measure_subjects(subjects, Varying(tmp_path / "n"), DEFAULT)
    assert (found.processes, found.busy, len(jobs)) == (processes, [], processes + 1)
    assert {len(rounds) for rounds in jobs[-1].earlier} == {8 - share}
    assert {timing.rounds_by_process for timing in found.timings.values()} == {(share,) * processes}
    assert found.remarks == [f"Disturbed rounds that were measured again: {share}."]


@pytest.mark.parametrize("entries", [20, 3])
def test_by_default_canaries_that_stay_slow_are_a_refusal(entries, processes_here, tmp_path):
    canary_ms = processes_here[1]
    canary_ms |= dict.fromkeys(range(3, 20), 1.2)
    subjects = {n: OpSubject(key(n)) for n in range(1, entries + 1)}
    found = measure_subjects(subjects, Varying(tmp_path / "n"), DEFAULT)
    assert found.busy[0].startswith("Rounds ran at unequal speed") and found.busy[0].endswith(" 1.20.")
    with pytest.raises(MeasurementFailed, match="the machine was not steady: Rounds ran at unequal speed"):
        found.require_quiet(DEFAULT, "Nothing was kept.")


class Numbered(Varying):
    """Takes a millisecond longer in each process than in the one before."""

    def prepare(self, module, inputs):
        reader = super().prepare(module, inputs)
        number = len(notes_of(Path(self.notes)))
        return lambda: reader() + number


def test_the_canary_tells_which_round_was_slow_after_earlier_and_repeated_ones(processes_here, tmp_path):
    canary_ms = processes_here[1]
    # Two rounds are an earlier run's. The third process's is read again by the eleventh; two others follow.
    canary_ms |= {3: 1.2, 13: 1.3}
    settings = DEFAULT.model_copy(update={"processes": 12, "rounds": 12, "most_rounds": 14})
    found = measure_subjects(
        {"four": BOTH["four"]},
        Numbered(tmp_path / "n"),
        settings,
        earlier={"four": Timing.from_rounds([[4.0], [4.0]], status="partial")},
    )
    visits = found.timings["four"].round_medians_ms
    assert visits == (4, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18)


class Tiring(Varying):
    """Takes twice as long from its second round in a process on."""

    def prepare(self, module, inputs):
        reader, readings = super().prepare(module, inputs), itertools.count()
        return lambda: reader() * (1 + (next(readings) >= RULE.max_readings))


def test_by_default_unequal_rounds_of_a_few_entries_are_a_refusal(processes_here, tmp_path):
    subjects = {n: OpSubject(key(n)) for n in range(1, 16)}
    found = measure_subjects(subjects, Tiring(tmp_path / "n"), DEFAULT)
    assert found.processes == 4
    assert found.busy[0].startswith("Rounds ran at unequal speed, as a ratio to the usual: 1.00, 1.33, 1.00")
    with pytest.raises(MeasurementFailed, match="the machine was not steady: Rounds ran at unequal speed"):
        found.require_quiet(DEFAULT, "Nothing was kept.")


class Ailing(Varying):
    """Loses the device while it reads eight channels, from the second process on."""

    def prepare(self, module, inputs):
        notes = Path(self.notes)
        is_first = not notes.exists() or len(notes_of(notes)) < len(BOTH)
        self.fail_read = 0 if is_first else 8.0
        return super().prepare(module, inputs)


def test_what_other_processes_read_of_an_entry_that_fails_is_kept(processes_here, tmp_path):
    """Fault: the device is lost in the second of two processes."""
    seen = []
    found = measure_subjects(
        BOTH,
        Ailing(tmp_path / "n"),
        SETTINGS,
        on_visit=lambda name, timing: seen.append((name, timing.rounds, timing.status)),
    )
    assert (found.timings["four"].status, found.timings["eight"].status) == ("ok", "failed")
    assert found.kept.keys() == {"eight"} and seen[-1] == ("eight", 2, "partial")
    assert (found.kept["eight"].status, found.kept["eight"].readings_ms) == ("partial", ((8.0, 8.0),) * 2)
    again = measure_subjects(
        {"eight": BOTH["eight"]}, Varying(tmp_path / "m"), SETTINGS, earlier=dict(found.kept)
    )
    assert (again.timings["eight"].status, again.timings["eight"].rounds_by_process) == ("ok", (2, 2))
    assert len(notes_of(tmp_path / "m")) == 1


class Remarking(Varying):
    """Has a remark to make in each process, with another count."""

    def __init__(self, notes):
        super().__init__(notes)
        self.counts = iter((3, 12, 4, 5))

    def remarks(self):
        return [f"{next(self.counts)} of 20 modules were launch-bound.", "conv2 is folded."]


def test_of_remarks_that_differ_in_their_counts_one_is_kept(processes_here, tmp_path):
    found = measure_subjects(BOTH, Remarking(tmp_path / "n"), DEFAULT)
    assert found.remarks == ["12 of 20 modules were launch-bound.", "conv2 is folded."]
    named = ["conv2 is folded.", "conv3 is folded."]
    assert one_of_each_kind(named) == named


def test_an_estimate_exports_once_and_starts_and_loads_for_each_process(monkeypatch, tmp_path):
    ticks = iter(float(n) for n in range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    monkeypatch.setattr("hwnas.latency.measuring.measure_apart", lambda *job: "an outcome")
    subjects = {n: ModuleSubject(nn.Linear(1, n), (torch.ones(1, 1),)) for n in range(1, 6)}
    preparing, measuring = estimate_seconds(subjects, Exporting(tmp_path / "n"), SETTINGS)
    # Every look at the clock is a second later: starting, exporting, loading and a visit take 1 each.
    assert preparing == 2 * 1.0 + 5 * (1.0 + 2 * 1.0)
    assert measuring == 5 * 4 * 1.0


def test_an_estimate_tries_each_kind_of_subject(monkeypatch, tmp_path):
    monkeypatch.setattr("hwnas.latency.measuring.measure_apart", lambda *job: "an outcome")
    ops = {n: OpSubject(key(n)) for n in range(1, 21)}
    network = ModuleSubject(nn.Sequential(Conv(3, 4), Conv(4, 8)), (torch.ones(SHAPE),))
    estimate_seconds({**ops, "network": network}, Varying(tmp_path / "n"), SETTINGS, sample=2)
    assert [name for _, name in notes_of(tmp_path / "n")] == ["Conv", "Conv", "Sequential"]
