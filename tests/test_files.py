"""Files are written whole or not at all, and JSON is JSON."""

import json
import math
import os

import pytest
from pydantic import BaseModel

from hwnas.errors import DataError
from hwnas.files import plain, read_json, try_place, write_atomically, write_json


class Model(BaseModel):
    name: str = "für"
    score: float = math.nan


def stop(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "write", [lambda path: write_atomically(path, b"new"), lambda path: write_json(path, {})]
)
def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(write, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write(path)
    assert path.read_text() != "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_ends_with_a_newline_and_folders_are_made(tmp_path):
    path = tmp_path / "a/b/x.json"
    content = {"name": "für", "rows": [(1, 2.5)], "none": None}
    write_json(path, content)
    assert path.read_text() == json.dumps(content, indent=1) + "\n"
    write_json(path, content, indent=None)
    assert path.read_text() == json.dumps(content) + "\n"
    assert read_json(path) == {"name": "für", "rows": [[1, 2.5]], "none": None}


def test_a_model_is_written_as_it_writes_itself(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, Model(score=0.5))
    assert path.read_text(encoding="utf-8") == Model(score=0.5).model_dump_json(indent=1) + "\n"
    assert read_json(path) == {"name": "für", "score": 0.5}


def test_numbers_that_json_has_no_word_for_are_null(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": math.nan, "b": {"c": [math.inf, 1.0]}, "d": (-math.inf,)})
    assert read_json(path) == {"a": None, "b": {"c": [None, 1.0]}, "d": [None]}
    write_json(path, Model())
    assert read_json(path)["score"] is None
    assert plain({1: True, "x": (1, "y")}) == {"1": True, "x": [1, "y"]}


def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no .*x\.json"),
        (b'{"a": ', r"x\.json is damaged: "),
        (b'{"a": "\xff"}', r"x\.json is damaged: "),
        (b"[1]", r"x\.json is damaged: expected a JSON object, got list"),
    ],
)
def test_what_is_no_json_object_is_named(content, message, tmp_path):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(path)


def test_a_place_is_tried_and_left_as_it_is(tmp_path):
    path = tmp_path / "new" / "x.json"
    try_place(path)
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/x\.json"):
        try_place(tmp_path / "file" / "x.json")
