"""Reading a run's log back."""

from pathlib import Path

import pytest

from hwnas.core.runlog import RunLog, read_log
from hwnas.errors import DataError


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
