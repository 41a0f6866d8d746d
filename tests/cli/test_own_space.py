"""A space of a user's own module goes through all verbs by the name that it was given first."""

import torch

from hwnas.latency.table import LatencyTable
from tests.cli.conftest import TINY, hwnas, said, settings
from tests.cli.own_space import Sloppy

NAME = "tests.cli.own_space:Own"


def test_a_space_without_a_name_is_searched_and_all_later_verbs_find_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profiled = said(
        "profile", NAME, "--backend", "fake", "--protocol", "isolated", *settings(**TINY, rounds=1)
    )
    (table,) = (tmp_path / "tables").glob("*.json")
    assert table.name.startswith("tests.cli.own_space.Own-")
    assert LatencyTable.load(table).header.space["name"] == NAME
    assert profiled["rows"] == len(LatencyTable.load(table).rows)
    asked = settings(epochs=1, data__length=4)
    result = hwnas("search", NAME, "--lut", table, "--out", "run", "--batch", "2", *asked)
    assert result.exit_code == 0, result.output
    assert said("derive", "run")["parameters"] > 0
    for verb in (("fit", "run", *settings(epochs=1)), ("eval", "run", "--pictures", "0"), ("export", "run")):
        result = hwnas(*verb)
        assert result.exit_code == 0, result.output
    assert said("verify", table, NAME, "--samples", "10")["networks"] == 10


def test_classes_that_drawn_scenes_set_are_said(tmp_path):
    fast = ("--backend", "fake", "--protocol", "isolated", "--out", tmp_path / "t.json")
    small = {"height": 32, "width": 64, "rounds": 1}
    other = hwnas("profile", NAME.replace(":Own", ":Four"), *fast, *settings(**TINY | small))
    assert "assuming num_classes 8, which that data have" in other.stderr
    told = settings(**TINY | small, num_classes=4)
    other = hwnas("profile", NAME.replace(":Own", ":Four"), *fast, "--force", *told)
    assert "which that data have" not in other.stderr


def test_derive_tells_what_no_prediction_has_in_it(tmp_path):
    space = Sloppy(cells=(1, 1, 1), height=32, width=64)
    space.random(torch.Generator().manual_seed(0)).save(tmp_path / "genotype.json")
    assert said("derive", tmp_path)["outside_of_ops"] == ["Doubled: mul"]
    shown = hwnas("derive", tmp_path).output
    assert shown.endswith("computed outside of ops, in no count and no prediction:\nDoubled: mul\n")
