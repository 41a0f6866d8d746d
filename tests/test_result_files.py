"""What the benchmarks write, benchmarks/result_files.py."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from result_files import append_line, read_lines, slug, write_result_files


@pytest.mark.parametrize(
    ("name", "part"), [("AMD EPYC", "amd-epyc"), ("Intel(R) Core(TM) i7", "intel-r-core-tm-i7"), ("(a)", "a")]
)
def test_names_become_parts_of_file_names(name, part):
    assert slug(name) == part


def test_a_result_is_a_file_and_a_page_whatever_dots_its_name_has(tmp_path, capsys):
    write_result_files(tmp_path / "results/net_v1.5", {"miou": float("nan")}, "# Page\n")
    assert json.loads((tmp_path / "results/net_v1.5.json").read_text()) == {"miou": None}
    assert (tmp_path / "results/net_v1.5.md").read_text() == "# Page\n"
    assert capsys.readouterr().out == "# Page\n\n"


def test_lines_are_read_as_they_were_appended(tmp_path):
    path = tmp_path / "work/runs.jsonl"
    assert read_lines(path) == []
    values = [{"key": "a"}, ["b", 1.5]]
    for value in values:
        append_line(path, value)
    assert path.read_text() == '{"key": "a"}\n["b", 1.5]\n'
    assert read_lines(path) == values


@pytest.mark.parametrize("rest", ['{"key": "b", "mi', '{"key": "b"}'])
def test_a_line_that_was_cut_off_is_left_out_and_gives_way(rest, tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    append_line(path, {"key": "a"})
    with path.open("a") as file:
        file.write(rest)
    assert read_lines(path) == [{"key": "a"}]
    assert "runs.jsonl: the last line was cut off" in capsys.readouterr().err
    append_line(path, {"key": "c"})
    assert read_lines(path) == [{"key": "a"}, {"key": "c"}]
    assert capsys.readouterr().err == ""


def test_a_first_line_that_was_cut_off_gives_way_too(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"key"')
    append_line(path, 1)
    assert read_lines(path) == [1]


def test_a_damaged_line_before_the_last_is_an_error(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"key"\n1\n')
    with pytest.raises(json.JSONDecodeError):
        read_lines(tmp_path / "runs.jsonl")
