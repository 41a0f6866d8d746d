import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.core.checkpoint import (
    SCHEMA_VERSION,
    load_checkpoint,
    random_state,
    reseeded,
    restore_random_state,
    save_checkpoint,
)
from hwnas.errors import CheckpointError


def draws():
    legacy = float(np.random.rand())  # noqa: NPY002 - the global one is meant
    return random.random(), random.gauss(0, 1), legacy, float(torch.rand(()))


def test_every_global_generator_goes_on_where_it_was(tmp_path):
    random.gauss(0, 1)  # leaves a second number in store
    save_checkpoint(tmp_path / "c.pt", {"random": random_state()})
    expected = draws()
    assert draws() != expected
    restore_random_state(load_checkpoint(tmp_path / "c.pt")["random"])
    assert draws() == expected


def test_reseeding_holds_for_the_body_only():
    before = random_state()
    undisturbed = draws()
    restore_random_state(before)
    inside = []
    for seed in (5, 5, 2**61):
        with reseeded(seed):
            inside.append(draws())
    assert inside[0] == inside[1] != inside[2]
    assert draws() == undisturbed


def test_state_comes_back_equal(tmp_path):
    state = {"x": torch.arange(3.0), "n": 3, "s": "text", "list": [1, 2.5, None], "deep": {"a": {"b": True}}}
    save_checkpoint(tmp_path / "c.pt", state)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.pop("x"), state.pop("x"))
    assert loaded == {"schema_version": SCHEMA_VERSION, **state}


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_code_is_not_executed(tmp_path):
    """Defect of FasterSeg and others: what is loaded can run code."""
    touched = tmp_path / "touched"
    torch.save({"schema_version": 1, "parts": Trap(touched)}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match=r"c\.pt cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    assert not touched.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*c\.pt"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"nonsense" * 99])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"x": torch.zeros(100)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_file_without_a_schema_is_refused(tmp_path):
    torch.save({"x": 1}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="schema_version"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_newer_schema_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.pt", {"schema_version": 99})
    with pytest.raises(CheckpointError, match="checkpoint schema 99, this hwnas reads up to 1: upgrade"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"n": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"n": 2})
    assert load_checkpoint(path)["n"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]
