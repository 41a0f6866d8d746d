"""A sweep finds what its searches find alone, however often it was killed on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwnas import FakeBackend, Genotype, NoPlotWarning, SearchConfig, SearchData, SweepResult, sweep
from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.prune import NoPruning
from hwnas.core.runlog import read_log
from hwnas.core.search import common_epochs
from hwnas.core.sweep import folder_name
from hwnas.core.sweep_result import SweepPoint, with_front
from hwnas.errors import CheckpointError, InfeasibleBudget, Interrupted, InvalidInput, MeasurementFailed
from hwnas.latency.timing import in_ms

from . import resumable
from .nets import images
from .resumable import same

TARGETS = (0.0142, 0.016)
WEIGHTS = (0.001, 1.0)
NO_PRUNING = {"pruner": {"form": "none"}}
SWEEPS = {
    # Each searches for 3 epochs of 4 steps.
    "targets": {"targets_ms": TARGETS, "arch_from_epoch": 1},
    "targets, depths later": {"targets_ms": TARGETS, "depth_from_epoch": 2, **NO_PRUNING},
    "weights": {"latency_weights": WEIGHTS, "arch_from_epoch": 1},
    "bilevel": {"targets_ms": TARGETS, "arch_from_epoch": 1, "arch_batches": 2, "explore": 0.5},
    "ceilings": {"latency_weights": WEIGHTS, "arch_from_epoch": 1, "budget": {"max_params": 750}},
    "soft": {"targets_ms": TARGETS, "arch_from_epoch": 2, "relaxation": {"form": "gumbel", "hard": False}},
    "nothing shared": {"targets_ms": TARGETS},
    "no steering": {"targets_ms": TARGETS, "arch_from_epoch": 1, "budget": {"steers": False}, **NO_PRUNING},
}
SHARED = {"targets, depths later": 2, "soft": 2, "nothing shared": 0, "no steering": 3}


def alone(name, value, out):
    """The search that a point is, by itself."""
    settings = {
        key: part for key, part in SWEEPS[name].items() if key not in ("targets_ms", "latency_weights")
    }
    own = (
        {"target_ms": value}
        if "targets_ms" in SWEEPS[name]
        else {"penalty": {"form": "log", "weight": value}}
    )
    return resumable.run(out, 1, **settings, **own)


def values_of(name):
    return SWEEPS[name].get("targets_ms") or SWEEPS[name]["latency_weights"]


def assert_same_run(mine, theirs):
    """All that two finished runs leave agrees: weights, choices, optimisers, random states, log, result."""
    mine_state, state = (load_checkpoint(run / "search.checkpoint.pt") for run in (mine, theirs))
    assert mine_state.keys() == state.keys()
    for key in state.keys() - {"log_position"}:  # what the clock says may be longer
        assert same(mine_state[key], state[key]), key
    # What the clock says, and the metric of an epoch that was seen in two parts, may differ.
    mine_log, log = (
        [
            {key: value for key, value in event.items() if key not in ("seconds", "train")}
            for event in read_log(run / "search.log.jsonl")
        ]
        for run in (mine, theirs)
    )
    assert mine_log == log
    for name in ("search.json", "genotype.json", "result.json"):
        assert (mine / name).read_text() == (theirs / name).read_text(), name


@pytest.mark.parametrize("name", SWEEPS)
def test_each_point_is_bit_for_bit_the_search_that_it_would_be_alone(tmp_path, name):
    steps = []
    found = resumable.run_sweep(
        tmp_path / "sweep", 1, on_progress=lambda value, progress: steps.append(value), **SWEEPS[name]
    )
    shared = SHARED.get(name, 1)
    values = values_of(name)
    assert found.shared_epochs == shared
    # A step each, and the end of each epoch; the second search has no shared epochs to do.
    assert [steps.count(value) for value in values] == [15, 15 - 5 * shared]
    assert (tmp_path / "sweep/warm-up").exists() == bool(shared)
    for value, point in zip(values, found.points, strict=True):
        result = alone(name, value, tmp_path / str(value))
        assert_same_run(tmp_path / "sweep" / point.folder, tmp_path / str(value))
        assert (point.genotype, point.predicted_ms) == (result.genotype, result.predicted_ms)
        assert point.scores == result.scores
    # Otherwise nothing was tested.
    first, second = (
        load_checkpoint(tmp_path / "sweep" / point.folder / "search.checkpoint.pt") for point in found.points
    )
    if shared < 3:
        assert not same(first["parts"]["arch"], second["parts"]["arch"])
    else:
        assert found.points[0].genotype != found.points[1].genotype


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted sweeps, each made when it is first asked for."""
    made = {}

    def make(name):
        if name not in made:
            out = tmp_path_factory.mktemp("whole")
            made[name] = resumable.run_sweep(out, 1, **SWEEPS[name]), out
        return made[name]

    return make


def assert_same_sweep(found, out, whole):
    result, folder = whole
    assert found == result
    for point in result.points:
        assert_same_run(out / point.folder, folder / point.folder)
    for name in ("sweep.json", "pareto.json"):
        assert (out / name).read_text() == (folder / name).read_text()


class Broken(Exception):
    """What ends a sweep like a kill: nothing is saved on the way out."""


def break_after(steps):
    done = 0

    def watch(value, progress):
        nonlocal done
        if not progress.end_of_epoch:
            if done == steps:
                raise Broken
            done += 1

    return watch


# In the warm-up (steps 0 to 3) and after it, in the first point's last step, the second's first, and later.
@pytest.mark.parametrize(
    ("name", "after"),
    [
        *(("targets", after) for after in (0, 2, 4, 11, 12, 17)),
        *(("weights", after) for after in (3, 14)),
        *(("bilevel", after) for after in (2, 6, 13)),
        ("soft", 5),
        ("nothing shared", 13),
    ],
)
def test_broken_and_resumed_it_ends_as_if_it_was_not(tmp_path, whole, name, after):
    with pytest.raises(Broken):
        resumable.run_sweep(tmp_path, 1, on_progress=break_after(after), **SWEEPS[name])
    shared = SHARED.get(name, 1)
    assert (tmp_path / "warm-up/search.checkpoint.pt").exists() == (0 < 4 * shared <= after)
    assert (tmp_path / "pareto.json").exists() == (after >= 12)
    found = resumable.run_sweep(tmp_path, 1, resume=True, **SWEEPS[name])
    assert_same_sweep(found, tmp_path, whole(name))


@pytest.mark.parametrize("kill_at", [2, 17], ids=["in the warm-up", "in the second point"])
def test_killed_and_resumed_it_ends_as_if_it_was_not(tmp_path, whole, kill_at):
    arguments = [resumable.__file__, tmp_path, 1, kill_at, int(signal.SIGKILL), json.dumps(SWEEPS["targets"])]
    killed = subprocess.run([sys.executable, *map(str, arguments)], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    found = resumable.run_sweep(tmp_path, 1, resume=True, **SWEEPS["targets"])
    assert_same_sweep(found, tmp_path, whole("targets"))


def test_stopped_again_and_again(tmp_path, whole):
    resume = False
    for steps in (1, 3, 4, 2):
        with pytest.raises(Interrupted, match="go on with --resume"):
            resumable.run_sweep(
                tmp_path, 1, resume=resume, on_progress=resumable.signal_after(steps, signal.SIGTERM),
                **SWEEPS["targets"],
            )  # fmt: skip
        resume = True
    found = resumable.run_sweep(tmp_path, 1, resume=True, **SWEEPS["targets"])
    assert_same_sweep(found, tmp_path, whole("targets"))


def test_killed_between_the_last_shared_step_and_keeping_it(tmp_path, whole, monkeypatch):
    """The checkpoint of the run is there, that of the warm-up is not yet."""

    def save(path, state):
        if path.parent.name == "warm-up":
            raise Broken
        before(path, state)

    from hwnas.core import run

    before = run.save_checkpoint
    monkeypatch.setattr(run, "save_checkpoint", save)
    with pytest.raises(Broken):
        resumable.run_sweep(tmp_path, 1, **SWEEPS["targets"])
    monkeypatch.undo()
    assert not (tmp_path / "warm-up/search.checkpoint.pt").exists()
    found = resumable.run_sweep(tmp_path, 1, resume=True, **SWEEPS["targets"])
    assert (tmp_path / "warm-up/search.checkpoint.pt").exists()
    assert_same_sweep(found, tmp_path, whole("targets"))


def test_points_that_are_done_are_not_done_again(tmp_path, whole):
    result, _ = whole("targets")
    resumable.run_sweep(tmp_path, 1, **SWEEPS["targets"])
    seen = []
    again = resumable.run_sweep(
        tmp_path, 1, resume=True, on_progress=lambda *said: seen.append(said), **SWEEPS["targets"]
    )
    assert again == result
    assert not seen


def test_what_was_never_begun_is_not_resumed(tmp_path):
    with pytest.raises(InvalidInput, match=r"there is no sweep in .*: expected its sweep\.json there"):
        resumable.run_sweep(tmp_path / "typo", 0, resume=True, **SWEEPS["targets"])
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("taken", "resume"),
    [
        ("search", False),
        ("baseline", False),
        ("0.016ms/search", False),
        ("0.016ms/baseline", False),
        ("0.016ms/baseline", True),
    ],
)
def test_a_folder_that_is_taken_is_refused_before_any_point_is_trained(tmp_path, taken, resume):
    path = tmp_path / f"{taken}.json"
    path.parent.mkdir(exist_ok=True)
    begun = [path, tmp_path / "sweep.json"] if resume else [path]
    for file in begun:
        file.write_text("{}")
    with pytest.raises(InvalidInput, match=f"{path.parent} holds a {path.stem} already"):
        resumable.run_sweep(tmp_path, 0, resume=resume, **SWEEPS["targets"])
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == set(begun)


def test_a_search_does_not_begin_in_the_folder_of_a_sweep(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(InvalidInput, match="holds a sweep already; name another folder"):
        resumable.run(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_it_leaves_a_table_and_a_plot(tmp_path, whole, monkeypatch):
    result, out = whole("targets")
    page = (out / "sweep.md").read_text()
    for point in result.points:
        front = "\\*" if point.on_front else ""
        cells = [f"{point.value:g}", in_ms(point.predicted_ms), "–", f"{point.score:.1f}", front]
        assert f"| {' | '.join(cells)} | {point.genotype.short_id} | {point.folder} |" in page
    assert any(point.on_front for point in result.points)
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    for name in ("sweep.md", "pareto.png"):
        (tmp_path / name).unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(NoPlotWarning, match=r"no pareto\.png: matplotlib is not installed") as warned:
        resumable.run_sweep(tmp_path, 1, resume=True, **SWEEPS["targets"])
    assert warned[0].filename == resumable.__file__  # the caller's line, not the library's
    assert not (tmp_path / "pareto.png").exists()
    assert (tmp_path / "sweep.md").read_text() == page


def test_a_signal_in_a_measurement_stops_the_sweep_after_the_point(tmp_path):
    """The search has no step left that it could stop after."""
    measured = []

    def measure(genotype):
        measured.append(genotype)
        if len(measured) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0141

    with pytest.raises(Interrupted, match=r"sweep\.checkpoint\.pt"):
        resumable.run_sweep(tmp_path, 0, measure=measure, **SWEEPS["targets"])
    assert len(SweepResult.model_validate_json((tmp_path / "pareto.json").read_text()).points) == 1
    before = len(measured)
    found = resumable.run_sweep(tmp_path, 0, measure=measure, resume=True, **SWEEPS["targets"])
    assert [point.measured_ms for point in found.points] == [0.0141, 0.0141]
    assert measured[before:] and found.points[0].met


def test_data_that_draw_from_any_global_generator_are_the_same_for_every_point(tmp_path):
    class Numpy(resumable.Noisy):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + float(np.random.rand()) + random.random(), label  # noqa: NPY002 - the global one

    loader = torch.utils.data.DataLoader(Numpy(), batch_size=4, shuffle=True)
    data = SearchData(loader, val=images(1))
    settings = resumable.config(0, arch_from_epoch=1)
    sweep(resumable.SPACE, resumable.table(), data, settings, targets_ms=TARGETS, out=tmp_path / "there")
    np.random.seed(7)  # noqa: NPY002 - whatever was drawn before must not matter
    random.seed(7)
    sweep(resumable.SPACE, resumable.table(), data, settings, targets_ms=TARGETS[::-1], out=tmp_path / "back")
    for target in TARGETS:
        name = folder_name("target_ms", target)
        assert_same_run(tmp_path / "there" / name, tmp_path / "back" / name)


def test_what_was_done_on_another_machine_is_measured_on_a_resume(tmp_path):
    settings = SWEEPS["targets"]
    found = resumable.run_sweep(tmp_path, 0, **settings)
    assert [point.met for point in found.points] == [None, None]

    def measure(genotype):
        os.kill(os.getpid(), signal.SIGTERM)
        return 0.0141

    # Stopped after each point, what was measured is kept.
    for _ in range(2):
        with pytest.raises(Interrupted):
            resumable.run_sweep(tmp_path, 0, resume=True, measure=measure, **settings)
    found = resumable.run_sweep(tmp_path, 0, resume=True, measure=lambda _: 9.0, **settings)
    assert [point.measured_ms for point in found.points] == [0.0141, 0.0141]
    assert found.met


def test_a_target_that_is_missed_does_not_end_the_sweep(tmp_path):
    found = resumable.run_sweep(tmp_path, 0, measure=lambda _: 0.0155, **SWEEPS["targets"])
    assert [point.met for point in found.points] == [False, True]
    assert not found.met
    assert SweepResult.model_validate_json((tmp_path / "pareto.json").read_text()) == found


def test_latency_weights_are_measured_too_once(tmp_path):
    measured = []

    def measure(genotype):
        measured.append(genotype.short_id)
        if len(measured) == 2:
            raise MeasurementFailed("the machine was busy")
        return 0.02

    found = resumable.run_sweep(tmp_path, 0, measure=measure, **SWEEPS["weights"])
    assert measured == [point.genotype.short_id for point in found.points]
    assert [point.measured_ms for point in found.points] == [0.02, None]
    assert [point.met for point in found.points] == [None, None]
    assert found.points[1].remarks == ("the machine was busy",)
    assert found.points[1].latency_ms == found.points[1].predicted_ms
    again = resumable.run_sweep(tmp_path, 0, resume=True, measure=lambda _: 0.03, **SWEEPS["weights"])
    assert [point.measured_ms for point in again.points] == [0.02, 0.03]


def test_a_backend_measures(tmp_path):
    space, table = resumable.SPACE, resumable.table()
    # What the table was made by.
    found = sweep(
        space, table, SearchData(images(2), val=images(1)), SearchConfig(device="cpu", epochs=1),
        latency_weights=(0, 0.1), out=tmp_path, backend=FakeBackend(),
    )  # fmt: skip
    for point in found.points:
        assert point.measured_ms == pytest.approx(point.predicted_ms, rel=1e-4)


def test_without_validation_data_nothing_is_said_of_a_front(tmp_path):
    space = resumable.SPACE
    found = sweep(
        space, resumable.table(), SearchData(images(2)), SearchConfig(device="cpu", epochs=1),
        latency_weights=(0, 0.1), out=tmp_path,
    )  # fmt: skip
    assert [(point.score, point.on_front) for point in found.points] == [(None, None)] * 2
    assert found.front == ()
    assert found.metric is None


def point(number, predicted_ms, score, measured_ms=None):
    return SweepPoint(
        value=number + 1.0,
        folder=str(number),
        genotype=Genotype(space="chain", fields={}, choices={}),
        predicted_ms=predicted_ms,
        measured_ms=measured_ms,
        scores=None if score is None else {"miou": score, "loss": 1.0},
    )


def test_a_front_worked_by_hand():
    points = [
        point(0, 4.0, 30.0),
        point(1, 6.0, 45.0, measured_ms=6.5),  # on it: nothing is as fast and as good
        point(2, 6.2, 40.0),  # predicted faster than the one before was measured: on it
        point(3, 6.5, 45.0),  # as fast and as good as the second: both are
        point(4, 7.0, 45.0),  # slower and no better
        point(5, 9.0, None),
        point(6, 9.0, float("nan")),  # the worst there is
    ]
    assert [one.on_front for one in with_front(points)] == [True, True, True, True, False, None, False]


def test_a_score_that_is_not_finite_is_on_no_front():
    """Not even as the fastest, which nothing beats in both."""
    points = [point(0, 4.0, float("nan")), point(1, 6.0, 45.0), point(2, 9.0, float("-inf"))]
    assert [one.on_front for one in with_front(points)] == [False, True, False]


COORDINATES = st.tuples(st.integers(1, 6), st.integers(0, 6), st.none() | st.integers(1, 6))


@given(st.lists(COORDINATES, max_size=8))
def test_the_front_is_what_no_combination_of_weights_and_no_pair_contradicts(drawn):
    """Against its definition, pair by pair: dominated is who is nowhere better and somewhere worse."""
    points = [point(number, *values) for number, values in enumerate(drawn)]
    for one, told in zip(points, with_front(points), strict=True):
        dominated = False
        for other in points:
            better = (other.latency_ms < one.latency_ms, other.score > one.score)
            worse = (other.latency_ms > one.latency_ms, other.score < one.score)
            dominated = dominated or (any(better) and not any(worse))
        assert told.on_front is not dominated
        assert told.model_copy(update={"on_front": None}) == one


def test_the_front_is_sorted_by_latency(tmp_path):
    points = with_front([point(0, 9.0, 50.0), point(1, 4.0, 30.0), point(2, 5.0, 20.0)])
    found = SweepResult(swept="target_ms", shared_epochs=0, epochs=1, conditions={}, points=points)
    assert [one.value for one in found.front] == [2.0, 1.0]
    assert found.metric == "miou"


@pytest.mark.parametrize(
    ("settings", "targets", "weights"),
    [
        # What differs is the target, which acts when all kinds of choice learn, or what weights act on.
        ({}, 0, 0),
        ({"arch_from_epoch": 2}, 2, 2),
        ({"depth_from_epoch": 3}, 3, 0),
        ({"arch_from_epoch": 2, "depth_from_epoch": 3}, 3, 2),
        ({"arch_from_epoch": 3, "depth_from_epoch": 2}, 3, 3),
        # A pruner asks the budget what to spare.
        ({"arch_from_epoch": 2, "depth_from_epoch": 3, "pruner": {"form": "threshold"}}, 2, 2),
        ({"arch_from_epoch": 9}, 5, 5),
    ],
)
def test_how_many_epochs_are_shared(settings, targets, weights):
    config = SearchConfig(epochs=5, **settings)
    kinds = ["op", "depth", "input"]
    assert common_epochs(config.model_copy(update={"target_ms": 4.0}), kinds) == targets
    assert common_epochs(config, kinds) == weights


def test_depths_make_no_difference_to_a_space_without():
    config = SearchConfig(epochs=5, depth_from_epoch=3, target_ms=4.0)
    assert isinstance(config.pruner, NoPruning)
    assert common_epochs(config, ["op"]) == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one of them"),
        ({"targets_ms": (4, 6), "latency_weights": (1, 2)}, "give one of them"),
        ({"targets_ms": ()}, "at least two values, all different"),
        ({"targets_ms": (4,)}, "at least two values, all different"),
        ({"latency_weights": (0.1, 0.2, 0.1)}, "at least two values, all different"),
        ({"targets_ms": (4, 0)}, "a target_ms must be a number above 0, got 0"),
        ({"latency_weights": (1, -1)}, "a latency_weight must be a number of at least 0, got -1"),
        ({"latency_weights": (1, float("nan"))}, "at least 0, got nan"),
        ({"latency_weights": (1, 2), "target_ms": 4.0}, "the penalty rests"),
    ],
)
def test_what_cannot_be_swept_is_refused(tmp_path, asked, message):
    with pytest.raises(InvalidInput, match=message):
        resumable.run_sweep(tmp_path / "sweep", 0, **asked)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_needs_a_table(tmp_path):
    with pytest.raises(InvalidInput, match="give a latency table"):
        sweep(resumable.SPACE, None, SearchData([]), targets_ms=(4, 6), out=tmp_path)


def test_a_target_that_no_network_keeps_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InfeasibleBudget, match=r"asked for at most 0\.001; its networks take .* \(median\)"):
        resumable.run_sweep(tmp_path / "sweep", 0, targets_ms=(0.016, 0.001))
    assert not (tmp_path / "sweep").exists()


def test_another_sweep_is_refused_with_the_differences(tmp_path):
    resumable.run_sweep(tmp_path, 0, **SWEEPS["targets"])
    with pytest.raises(InvalidInput, match="holds a sweep already"):
        resumable.run_sweep(tmp_path, 0, **SWEEPS["targets"])
    other = {**SWEEPS["targets"], "targets_ms": (0.0142, 0.017), "seed": 1}
    with pytest.raises(
        CheckpointError, match=r"config\.seed: .*\n.*values: checkpoint \[0\.0142, 0\.016\], asked"
    ):
        resumable.run_sweep(tmp_path, 0, resume=True, **other)


def test_another_sweep_is_refused_in_the_first_point_too(tmp_path):
    with pytest.raises(Broken):
        resumable.run_sweep(tmp_path, 0, on_progress=break_after(1), **SWEEPS["targets"])
    other = {**SWEEPS["targets"], "targets_ms": (0.0142, 0.017)}
    with pytest.raises(CheckpointError, match=r"values: checkpoint \[0\.0142, 0\.016\], asked"):
        resumable.run_sweep(tmp_path, 0, resume=True, **other)


def test_a_warm_up_of_other_settings_is_refused_with_the_differences(tmp_path):
    settings = {"arch_from_epoch": 1, "warm_up": tmp_path / "warm-up"}
    run_sharing(tmp_path / "4", target_ms=0.0142, **settings)
    with pytest.raises(CheckpointError, match=r"warm-up(.|\n)*config\.arch_lr: checkpoint 0\.05, asked 0\.1"):
        run_sharing(tmp_path / "6", target_ms=0.016, arch_lr=0.1, **settings)
    # Nothing that could be resumed was written.
    assert not (tmp_path / "6").exists()
    # One without a target has another warm-up than those with one.
    with pytest.raises(CheckpointError, match=r"config\.penalty\.weight: checkpoint 0\.01, asked None"):
        run_sharing(tmp_path / "w", **settings)
    with pytest.raises(InvalidInput, match="need a folder of the run"):
        run_sharing(None, target_ms=0.016, **settings)


def run_sharing(out, *, warm_up, **values):
    return resumable.search(
        resumable.SPACE, resumable.table(), resumable.data(), resumable.config(0, **values),
        out=out, warm_up=warm_up,
    )  # fmt: skip
