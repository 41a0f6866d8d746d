"""Reading a run's log back."""

import shutil
import threading
from pathlib import Path

import pytest

from hwnas.core.runlog import RunLog, read_log
from hwnas.errors import DataError, HwnasWarning


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path, tensorboard=False) as log:
        log.write("step", loss=1.0)
    with path.open("ab") as file:
        file.write(b'{"event": "st')
    assert read_log(path) == [{"event": "step", "loss": 1.0}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"event": "step"}\n{"epoch":\n')
    with pytest.raises(DataError, match=r"line 2 of .*log\.jsonl is damaged"):
        read_log(path)


class Failing:
    """A TensorBoard writer whose folder was removed under it."""

    def __init__(self, log_dir, purge_step):
        self.tries = 0
        TRIES.append(self)

    def add_scalar(self, *_):
        self.tries += 1
        raise FileNotFoundError("no such folder")

    def close(self):
        raise FileNotFoundError("no such folder")


TRIES: list[Failing] = []


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = event_accumulator.EventAccumulator(str(folder)).Reload()
    return [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]


def test_a_resumed_curve_has_each_step_once_and_two_runs_in_a_folder_have_two(tmp_path: Path) -> None:
    with RunLog(tmp_path / "search.log.jsonl") as log:
        log.write("step", step=0, loss=2.0)
        position = log.position()
        log.write("step", step=1, loss=1.5)
        log.write("step", step=2, loss=1.4)
    with RunLog(tmp_path / "search.log.jsonl", resume_at=position) as log:
        log.write("step", step=1, loss=1.0)
    with RunLog(tmp_path / "fit.log.jsonl") as log:
        log.write("step", step=0, loss=9.0)
    assert curve(tmp_path / "tensorboard" / "search", "step/loss") == [(0, 2.0), (1, 1.0)]
    assert curve(tmp_path / "tensorboard" / "fit", "step/loss") == [(0, 9.0)]


def test_a_tensorboard_that_fails_is_one_warning_and_then_silence(tmp_path: Path, monkeypatch) -> None:
    board = pytest.importorskip("torch.utils.tensorboard")
    monkeypatch.setattr(board, "SummaryWriter", Failing)
    with RunLog(tmp_path / "log.jsonl") as log:
        with pytest.warns(HwnasWarning, match=r"no longer written \(FileNotFoundError: no such folder\)"):
            log.write("step", step=0, loss=2.0)
        log.write("step", step=1, loss=1.0)
    assert TRIES.pop().tries == 1
    assert [event["loss"] for event in read_log(tmp_path / "log.jsonl")] == [2.0, 1.0]


def test_a_tensorboard_that_cannot_begin_or_end_does_not_end_the_run(tmp_path: Path, monkeypatch) -> None:
    board = pytest.importorskip("torch.utils.tensorboard")
    (tmp_path / "tensorboard").write_text("a file, where its folder should be")
    with pytest.warns(HwnasWarning, match="no longer written"), RunLog(tmp_path / "log.jsonl") as log:
        log.write("step", step=0, loss=2.0)
    monkeypatch.setattr(board, "SummaryWriter", Failing)
    with pytest.warns(HwnasWarning, match="no longer written"), RunLog(tmp_path / "log.jsonl"):
        pass


def test_a_tensorboard_folder_that_is_removed_does_not_end_the_run(tmp_path: Path, capfd) -> None:
    pytest.importorskip("tensorboard")
    hook = threading.excepthook
    with (
        pytest.warns(HwnasWarning, match="no longer written") as caught,
        RunLog(tmp_path / "log.jsonl") as log,
    ):
        log.write("step", step=0, loss=2.0)
        shutil.rmtree(tmp_path / "tensorboard")
        for step in range(1, 4):
            log.write("step", step=step, loss=1.0)
    assert len(caught) == 1
    assert len(read_log(tmp_path / "log.jsonl")) == 4
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook
