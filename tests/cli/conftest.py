"""A finished run of the smallest kind, made once through the command line itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hwnas.cli import main

TINY = {
    "cells": "[1,2,2]", "init_channels": "1", "channel_multiplier": "2", "stem_channels": "[2,2]",
    "aggregation_width": "2", "head_width": "4", "head_dilations": "[2]", "height": "32", "width": "64",
}  # fmt: skip
"""Fields of an AutoRTNet that trains in a blink."""


def settings(**values: Any) -> list[str]:
    """``--set name=value`` for each; a double underscore stands for a dot."""
    return [
        part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")
    ]


def hwnas(*arguments: str | Path) -> Result:
    """Run the command line; whatever it raises beyond an exit code is a bug and raised here."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(*arguments: str | Path) -> Any:
    """The JSON that a verb prints with --json."""
    result = hwnas(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the tiny space by the fake backend."""
    path = tmp_path_factory.mktemp("table") / "fake.json"
    fast = ("--backend", "fake", "--protocol", "isolated")
    result = hwnas("profile", "autortnet", *fast, "--out", path, *settings(**TINY, rounds=1))
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """A searched, trained, evaluated, exported and measured run."""
    path = tmp_path_factory.mktemp("run") / "run"
    search = settings(epochs=2, depth_from_epoch=0, data__length=4)
    for verb in (
        ("search", "autortnet", "--lut", table, "--out", path, "--batch", "2", "--target-ms", "3", *search),
        ("fit", path, *settings(epochs=1)),
        ("eval", path, "--pictures", "2"),
        ("export", path),
        ("measure", path, *settings(rounds=1)),
    ):
        result = hwnas(*verb)
        assert result.exit_code == 0, result.output
    return path
