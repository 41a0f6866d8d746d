import pytest
from pydantic import BaseModel

from hwnas.cli.settings import changed, parse, sort_out, validated
from hwnas.errors import InvalidInput


def test_values_are_json_or_else_strings():
    parsed = parse(["epochs=3", "cells=[1,2,2]", "aggregation=paper", "data.cache=true", "name=a=b"])
    assert parsed == {
        "epochs": 3,
        "cells": [1, 2, 2],
        "aggregation": "paper",
        "data.cache": True,
        "name": "a=b",
    }


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(InvalidInput, match='--set wants name=value, got "epochs"'):
        parse(["epochs"])


def test_settings_go_to_the_home_that_has_the_field():
    homes = {"space": ["height"], "search": ["epochs", "relaxation"], "data": None}
    found = sort_out({"height": 32, "relaxation.hard": False, "data.length": 4, "search.epochs": 2}, homes)
    assert found == {
        "space": {"height": 32},
        "search": {"relaxation.hard": False, "epochs": 2},
        "data": {"length": 4},
    }


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InvalidInput, match=r'--set knows no "hight"(.|\n)*space: height, width'):
        sort_out({"hight": 3}, {"space": ["height", "width"], "data": None})


def test_a_name_of_two_homes_must_be_told_apart():
    with pytest.raises(InvalidInput, match=r"ambiguous: write space.depth or search.depth"):
        sort_out({"depth": 3}, {"space": ["depth"], "search": ["depth"]})
    found = sort_out({"search.depth": 3}, {"space": ["depth"], "search": ["depth"]})
    assert found == {"space": {}, "search": {"depth": 3}}


def test_a_dotted_name_changes_one_value_and_leaves_its_neighbours():
    base = {"relaxation": {"form": "gumbel", "hard": True, "tau": {"start": 3.0}}}
    found = changed(base, {"relaxation.tau.start": 5.0})
    assert found == {"relaxation": {"form": "gumbel", "hard": True, "tau": {"start": 5.0}}}
    assert base["relaxation"]["tau"]["start"] == 3.0


def test_a_new_form_drops_the_fields_of_the_old_one():
    found = changed(
        {"penalty": {"form": "log", "weight": 0.05}}, {"penalty.target_ms": 3, "penalty.form": "hinge"}
    )
    assert found == {"penalty": {"form": "hinge", "target_ms": 3}}


def test_values_that_do_not_fit_are_named():
    class Config(BaseModel):
        epochs: int

    with pytest.raises(InvalidInput, match=r"Config refuses these values:\n  epochs: .* \(got 'many'\)"):
        validated(Config, {"epochs": "many"})
