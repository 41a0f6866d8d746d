"""Two processes search and train as one does."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.runlog import read_log
from hwnas.core.weights import load_weights
from hwnas.errors import CheckpointError, InvalidInput
from hwnas.processes import ALONE, Processes, launched, processes, shared

from . import together
from .resumable import same

_PATIENCE_SECONDS = 400
"""Only a deadlock takes so long, whatever else the machine does."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(task, folder, size=2):
    """Processes as torchrun starts them."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning:hwnas", together.__file__, task, str(folder)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(children, task, folder):
    try:
        for child in children:
            _, said = child.communicate(timeout=_PATIENCE_SECONDS)
            assert child.returncode == 0, said
    finally:
        for child in children:
            child.kill()
    return [torch.load(folder / f"{task}.{rank}.pt", weights_only=True) for rank in range(len(children))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def both(folder):
    """What each of two processes found."""
    return finish(start("all", folder), "all", folder)


@pytest.fixture(scope="module")
def alone():
    return {each.__name__: each(None) for each in together.TASKS}


@pytest.mark.parametrize("task", ["seen", "hard", "soft", "bilevel", "dropped"])
def test_alphas_and_weights_are_bit_for_bit_the_same_in_both(both, task):
    first, second = (found[task] for found in both)
    assert first["probabilities"] == second["probabilities"]
    assert first["genotype"] == second["genotype"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_the_budget_of_that_search_steered_meanwhile(both, folder):
    """So its multiplier moved the logits of both alike: they are compared above."""
    epochs = [event for event in read_log(folder / "whole/search.log.jsonl") if event["event"] == "epoch"]
    assert all(event["budget"]["multipliers"]["latency_ms"] != 0.0 for event in epochs)


@pytest.mark.parametrize("task", ["seen", "hard", "soft", "bilevel", "fitted", "distilled"])
def test_the_losses_are_those_of_one_process_on_the_same_batches(both, alone, task):
    losses = torch.tensor(alone[task]["losses"])
    assert len(losses) == {"seen": 4, "hard": 24, "soft": 12, "distilled": 12}.get(task, 10)
    torch.testing.assert_close(torch.tensor(both[0][task]["losses"]), losses, rtol=2e-4, atol=2e-5)
    # The first step, before rounding has had time to grow.
    assert both[0][task]["losses"][0] == pytest.approx(alone[task]["losses"][0], rel=2e-6)


def test_what_a_teacher_said_is_learnt_alike_by_both(both, alone):
    """Also from a batch of which nothing is known: its loss is a number, or the step would be skipped."""
    first, second = (found["distilled"] for found in both)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        torch.testing.assert_close(value, alone["distilled"]["weights"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["seen", "hard", "soft", "bilevel"])
def test_the_search_ends_where_one_process_does(both, alone, task):
    mine, theirs = both[0][task], alone[task]
    for name, row in theirs["probabilities"].items():
        assert mine["probabilities"][name] == pytest.approx(row, abs=1e-3)
    assert mine["genotype"] == theirs["genotype"]
    torch.testing.assert_close(
        torch.tensor(mine["totals"]), torch.tensor(theirs["totals"]), rtol=2e-4, atol=2e-5
    )
    # Afterwards the supernet is what it was before: of plain batch norms.
    assert mine["classes"] == theirs["classes"]


def test_a_budget_is_confirmed_by_all_and_measured_by_the_first(both, alone):
    first, second = (found["budgeted"] for found in both)
    assert first["measured"] == first["attempts"] == alone["budgeted"]["measured"]
    assert len(first["attempts"]) >= 1
    assert second == {**first, "measured": []}
    assert first["genotype"] == alone["budgeted"]["genotype"]
    assert first["loss"] == pytest.approx(alone["budgeted"]["loss"], rel=1e-3)


def test_candidates_are_compared_by_the_statistics_of_whole_batches(both, alone):
    assert both[0]["bilevel"]["scores"] == both[1]["bilevel"]["scores"]
    assert both[0]["bilevel"]["scores"]["loss"] == pytest.approx(alone["bilevel"]["scores"]["loss"], rel=1e-3)


def test_metrics_tell_of_all_images(both, alone):
    for mine, theirs in zip(both[0]["seen"]["epochs"], alone["seen"]["epochs"], strict=True):
        for part in ("train", "val"):
            assert mine[part]["miou"] == pytest.approx(theirs[part]["miou"], abs=0.5)


def test_what_a_metric_without_sums_says_is_of_all_images_too(both, alone):
    assert both[0]["fitted"]["found"] == both[1]["fitted"]["found"] == alone["fitted"]["found"]


def test_a_network_is_trained_as_the_first_process_has_it(both, alone, folder):
    first, second = (found["fitted"] for found in both)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        torch.testing.assert_close(value, alone["fitted"]["weights"][name], rtol=1e-3, atol=1e-4)
    assert first["classes"] == alone["fitted"]["classes"]
    load_weights(together.CHAIN.build(together.GENOTYPE), folder / "fit/weights.pt")


def test_only_the_first_reports(both):
    assert both[0]["hard"]["losses"]
    assert not both[1]["hard"]["losses"]
    assert not both[1]["fitted"]["losses"]


def test_batch_norms_are_those_of_the_whole_batch(both, alone):
    """torch's own in one process is the brute-force twin."""
    own = alone["norms"]
    for step, rows in enumerate(own["rows"]):
        parts = torch.cat([found["norms"]["rows"][step] for found in both])
        torch.testing.assert_close(parts, rows, rtol=1e-4, atol=1e-5)
    for found in both:
        for name, value in own["state"].items():
            torch.testing.assert_close(found["norms"]["state"][name], value)
        for mine, theirs in zip(found["norms"]["gradients"], own["gradients"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found["norms"]["eval"], own["eval"])


def test_errors_come_in_both(both):
    first, second = (found["refused"] for found in both)
    assert first == second
    assert first["first"].startswith("MissingExtra: onnx is not installed; it is needed to say no")
    assert "a batch of 3 cannot be divided among 2 processes in equal parts" in first["odd"]
    assert "a batch that 2 processes divide must be of tensors; it holds a list" in first["names"]
    assert "holds a search already" in first["taken"]


def test_killed_or_stopped_and_resumed(both, folder):
    """Bit for bit the run that was not interrupted, a budget and dropout masks of each process included."""
    killed = start("killed", folder)
    try:
        assert killed[0].wait(timeout=_PATIENCE_SECONDS) == -signal.SIGKILL
    finally:
        for child in killed:
            child.kill()  # the other one waits for the first, as torchrun would find out
            child.wait()
            child.stderr.close()
    stopped = finish(start("stopped", folder), "stopped", folder)
    # Only the first was told; both stopped after the same step.
    assert stopped[0] == stopped[1]
    assert stopped[0]["error"].startswith("Interrupted: stopped in epoch 2 after 9 steps")
    resumed = finish(start("resumed", folder), "resumed", folder)
    for name in ("killed", "stopped"):
        for mine, whole in zip(resumed, both, strict=True):
            for found in ("probabilities", "genotype", "scores"):
                assert mine[name][found] == whole["dropped"][found], found
            for key, value in whole["dropped"]["weights"].items():
                assert torch.equal(mine[name]["weights"][key], value), key
        logs = [read_log(folder / of / "search.log.jsonl") for of in ("whole", name)]
        steps = [[(e["step"], e["loss"]) for e in log if e["event"] == "step"] for log in logs]
        assert steps[0] == steps[1]
        assert len(steps[0]) == 12


def test_points_of_a_sweep_are_the_searches_that_they_would_be_alone(both, folder):
    """Dropout masks of each process included, whose random states go through the shared warm-up."""
    first, second = (found["swept"] for found in both)
    assert first == second
    # Done where nothing could be measured, and measured on a resume by the first alone, which has the device.
    assert [point["measured_ms"] for point in first["points"]] == [1.0, 1.0]
    point, alone = (
        load_checkpoint(folder / run / "search.checkpoint.pt") for run in ("sweep/weight-1", "beside")
    )
    assert len(point["random_of_others"]) == 1
    for key in point.keys() - {"log_position"}:
        assert same(point[key], alone[key]), key


def test_another_number_of_processes_is_refused(both, folder):
    with pytest.raises(CheckpointError, match=r"written by 2 processes, and there are 1 now.*Resume with 2"):
        together.dropped(folder / "whole", resume=True)


def test_alone_everything_is_as_it_was(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert processes() == ALONE
    assert launched() == 1
    batches = [1, 2]
    assert shared(batches) is batches


def test_shares_are_equal_and_in_order():
    items = torch.arange(6)
    parts = [Processes(rank, 3).share(items) for rank in range(3)]
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InvalidInput, match="a batch of 6 cannot be divided among 4 processes"):
        Processes(0, 4).share(items)
    with pytest.raises(InvalidInput, match="a batch of 0 cannot"):
        Processes(0, 4).share([])
