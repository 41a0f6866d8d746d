"""A search that was killed at any step and resumed ends bit for bit as one that was not."""

import json
import random
import signal
import subprocess
import sys

import pytest
import torch

from hwnas.core.runlog import read_log
from hwnas.errors import CheckpointError, Interrupted, InvalidInput

from . import resumable


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return resumable.run(out, 0), read_log(out / "search.log.jsonl")


def assert_same(resumed, whole):
    result, log = whole
    assert resumed.genotype == result.genotype
    assert resumed.probabilities == result.probabilities
    assert (resumed.predicted_ms, resumed.expected_ms) == (result.predicted_ms, result.expected_ms)
    for name, value in resumed.supernet.state_dict().items():
        assert torch.equal(value, result.supernet.state_dict()[name]), name
    again = read_log(resumed.out / "search.log.jsonl")
    assert len(again) == len(log)
    for mine, theirs in zip(again, log, strict=True):
        # What the clock says, and the metric of an epoch that was seen in two parts, may differ.
        assert {k: v for k, v in mine.items() if k not in ("seconds", "train")} == {
            k: v for k, v in theirs.items() if k not in ("seconds", "train")
        }


@pytest.mark.parametrize("every_steps", [1, 2, 3])
def test_killed_at_a_random_step(tmp_path, whole, every_steps):
    kill_at = random.Random(every_steps).randrange(1, resumable.EPOCHS * resumable.BATCHES)
    arguments = [sys.executable, resumable.__file__, tmp_path, every_steps, kill_at, int(signal.SIGKILL)]
    killed = subprocess.run([str(argument) for argument in arguments], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "genotype.json").exists()
    # checkpoint_every_steps is part of what the run is, so it is resumed with the same.
    assert_same(resumable.run(tmp_path, every_steps, resume=True), whole)


@pytest.mark.parametrize("stop_at", [2, 4, 7])
def test_stopped_by_sigterm(tmp_path, whole, stop_at):
    with pytest.raises(Interrupted, match="go on with --resume"):
        resumable.run(tmp_path, 0, on_progress=resumable.signal_at(stop_at, signal.SIGTERM))
    assert_same(resumable.run(tmp_path, 0, resume=True), whole)


def test_a_finished_search_gives_its_result_again(tmp_path):
    options = {"target_ms": 0.0142, "candidates": 2}
    found = resumable.run(tmp_path, 0, measure=lambda _: 0.0155, **options)
    assert found.budget.attempts
    log, seen = read_log(tmp_path / "search.log.jsonl"), []

    def measure(genotype):
        raise AssertionError("it was measured")

    again = resumable.run(tmp_path, 0, resume=True, on_progress=seen.append, measure=measure, **options)
    assert not seen
    assert_same(again, (found, log[: len(read_log(tmp_path / "search.log.jsonl"))]))
    assert (again.scores, again.budget) == (found.scores, found.budget)


def test_what_was_never_begun_is_not_resumed(tmp_path):
    with pytest.raises(InvalidInput, match=r"there is no search in .*: expected its search\.json there"):
        resumable.run(tmp_path / "typo", 0, resume=True)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_it_does_not_begin_in_the_folder_of_a_baseline(tmp_path, resume):
    (tmp_path / "baseline.json").write_text("{}")
    with pytest.raises(InvalidInput, match="holds a baseline already; name another folder"):
        resumable.run(tmp_path, 0, resume=resume)


def test_stopped_again_and_again(tmp_path, whole):
    resume = False
    for stop_at in range(1, 12, 3):
        with pytest.raises(Interrupted):
            resumable.run(
                tmp_path, 0, resume=resume, on_progress=resumable.signal_at(stop_at, signal.SIGTERM)
            )
        resume = True
    assert_same(resumable.run(tmp_path, 0, resume=True), whole)


# Data for the architecture that last an epoch, that begin again in it, and more than once.
@pytest.mark.parametrize("arch_batches", [resumable.BATCHES, 2, 1])
@pytest.mark.parametrize("stop_at", [5, 6, 7])
def test_with_alphas_on_data_of_their_own(tmp_path, arch_batches, stop_at):
    space = resumable.Dropping(**resumable.SPACE.model_dump())
    options = {"space": space, "arch_batches": arch_batches}
    whole = resumable.run(tmp_path / "whole", 0, **options)
    with pytest.raises(Interrupted):
        resumable.run(
            tmp_path / "stopped", 0, on_progress=resumable.signal_at(stop_at, signal.SIGTERM), **options
        )
    resumed = resumable.run(tmp_path / "stopped", 0, resume=True, **options)
    assert_same(resumed, (whole, read_log(tmp_path / "whole/search.log.jsonl")))


KINDS = {
    "hard": {},
    "hard, straight-through": {"score_kinds": []},
    "soft": {"relaxation": {"form": "gumbel", "hard": False}},
    "mixture": {"relaxation": {"form": "softmax"}},
    "bilevel": {"arch_batches": 2},
    "exploring": {"explore": 0.5, "entropy_weight": 0.02, "candidates": 3, "arch_lr": 0.3},
    "all at once": {
        "arch_batches": 3,
        "explore": 0.5,
        "arch_lr": 0.3,
        "target_ms": 0.016,
        "budget": {"max_params": 750},
    },
}


class Broken(Exception):
    """What ends a search like a kill: nothing is saved on the way out."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken_at", [6, 10], ids=["before pruning", "after pruning"])
def test_broken_whatever_is_searched_by(tmp_path, kind, broken_at):
    """One or two steps after a checkpoint; options die at the end of the second epoch, after 8 steps."""

    def stop(progress):
        if progress.step == broken_at and not progress.end_of_epoch:
            raise Broken

    whole = resumable.run(tmp_path / "whole", 3, **KINDS[kind])
    log = read_log(tmp_path / "whole/search.log.jsonl")
    epochs = [event for event in log if event["event"] == "epoch"]
    assert [bool(event["pruned"]) for event in epochs[:2]] == [False, True]
    out = tmp_path / "broken"
    with pytest.raises(Broken):
        resumable.run(out, 3, on_progress=stop, **KINDS[kind])
    assert_same(resumable.run(out, 3, resume=True, **KINDS[kind]), (whole, log))


BUDGETS = {
    "target": {"target_ms": 0.0142},
    "several": {"target_ms": 0.016, "budget": {"max_params": 750, "max_macs": 12000}},
}


@pytest.mark.parametrize("arch_batches", [0, 2], ids=["single-level", "bilevel"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_killed_under_a_budget(tmp_path, budget, arch_batches):
    config = BUDGETS[budget] | {"arch_batches": arch_batches}
    whole = resumable.run(tmp_path / "whole", 1, **config)
    log = read_log(tmp_path / "whole/search.log.jsonl")
    assert any(log[-2]["budget"]["multipliers"].values())
    assert whole.predicted_ms <= config["target_ms"]
    for kill_at in (4, 9):
        out = tmp_path / str(kill_at)
        arguments = [
            sys.executable,
            resumable.__file__,
            out,
            1,
            kill_at,
            int(signal.SIGKILL),
            json.dumps(config),
        ]
        killed = subprocess.run([str(argument) for argument in arguments], timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert_same(resumable.run(out, 1, resume=True, **config), (whole, log))


def test_stopped_while_measuring_for_a_target(tmp_path):
    """What was measured is kept, and a finished run that is resumed finds the same."""
    measured = []

    def measure(genotype):
        measured.append(genotype.short_id)
        return 0.017 if len(measured) == 1 else 0.014

    def broken(genotype):
        if measured:
            raise KeyboardInterrupt
        return measure(genotype)

    with pytest.raises(KeyboardInterrupt):
        resumable.run(tmp_path, 0, target_ms=0.0142, measure=broken)
    found = resumable.run(tmp_path, 0, target_ms=0.0142, measure=measure, resume=True)
    assert [attempt.measured_ms for attempt in found.budget.attempts] == [0.017, 0.014]
    again = resumable.run(tmp_path, 0, target_ms=0.0142, measure=broken, resume=True)
    assert (again.genotype, again.budget) == (found.genotype, found.budget)
    assert len(measured) == 2


def test_asked_to_stop_while_measuring_for_a_target(tmp_path):
    def measure(genotype):
        signal.raise_signal(signal.SIGTERM)
        return 0.017

    with pytest.raises(Interrupted, match=r"stopped while networks were measured for the target, after"):
        resumable.run(tmp_path, 0, target_ms=0.0142, measure=measure)
    found = resumable.run(tmp_path, 0, target_ms=0.0142, measure=lambda genotype: 0.014, resume=True)
    assert [attempt.measured_ms for attempt in found.budget.attempts] == [0.017, 0.014]


def test_another_config_is_refused_with_the_difference(tmp_path):
    with pytest.raises(Interrupted):
        resumable.run(tmp_path, 0, on_progress=resumable.signal_at(2, signal.SIGTERM))
    with pytest.raises(CheckpointError, match=r"config\.seed: checkpoint 0, asked 1"):
        resumable.run(tmp_path, 0, resume=True, seed=1)


def test_other_data_are_refused_with_the_difference(tmp_path):
    with pytest.raises(Interrupted):
        resumable.run(
            tmp_path,
            0,
            on_progress=resumable.signal_at(2, signal.SIGTERM),
            description={"name": "noise", "batch": 4},
        )
    with pytest.raises(CheckpointError, match=r"data\.batch: checkpoint 4, asked 8"):
        resumable.run(tmp_path, 0, resume=True, description={"name": "noise", "batch": 8})
