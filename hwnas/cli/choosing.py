"""From a verb's options to a search space, its preset and its data; what is assumed is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from hwnas.cli.data import class_count
from hwnas.core.space import Preset, SearchSpace
from hwnas.names import find_space

_Function = TypeVar("_Function", bound=Callable[..., Any])

DEFAULT_SPACE = "autortnet"
DEFAULT_PRESET = "small"
DEFAULT_DATA = "synthetic"


def space_options(function: _Function) -> _Function:
    """The options that choose a space: --preset, --data and --set."""
    about = "A field of the space, of the config, or data.NAME; repeatable."
    function = click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help=about)(function)
    about = "synthetic, camvid:DIR, cityscapes:DIR, idd_lite:DIR, folders:DIR [default: synthetic]"
    function = click.option("--data", metavar="NAME[:DIR]", help=about)(function)
    return click.option("--preset", help="Named starting point of the space.")(function)


@dataclass(frozen=True)
class Chosen:
    """A search space, the preset it came from, the data it is for, and what was assumed."""

    space: SearchSpace
    preset: Preset | None
    preset_name: str | None
    data: str
    assumed: tuple[str, ...]


def choose_space(
    name: str | None,
    preset: str | None,
    fields: Mapping[str, Any],
    data: str | None,
    *,
    split: str = "train",
    given_fields: Mapping[str, Any] | None = None,
) -> Chosen:
    """The space that the options name.

    Args:
        name: of the space; None: autortnet.
        preset: None: "small" where the space has it.
        fields: set by hand; they win.
        data: text of the data set, whose number of classes becomes the space's; None: synthetic scenes.
        split: of these data, the one that is there to be asked for their classes.
        given_fields: the fields that a table, or a run to resume, was made for; a preset overrides them.
    """
    assumed = []
    if name is None:
        name = DEFAULT_SPACE
        assumed.append(f"space {name}")
    kind = find_space(name)
    values: dict[str, Any] = {}
    if preset is None:
        values.update(given_fields or {})
        if DEFAULT_PRESET in kind.presets:
            preset = DEFAULT_PRESET
            assumed.append(f"preset {preset} ({kind.preset(preset).about})")
    # Which classes there are, a table or a run says better than data that nobody asked for.
    assumes_data = data is None
    told = assumes_data and "num_classes" in values
    if data is None:
        data = DEFAULT_DATA
        assumed.append(
            f"data {data} (drawn street scenes: numbers say whether it learns, not how it does outside)"
        )
    asks = "num_classes" in kind.model_fields and "num_classes" not in fields
    if asks and not told and _tells_classes(name, data):
        values["num_classes"] = class_count(data, split)
        if assumes_data:
            assumed.append(f"num_classes {values['num_classes']}, which that data have")
    space = kind.from_preset(preset, **{**values, **fields})
    return Chosen(space, kind.preset(preset) if preset else None, preset, data, tuple(assumed))


def _tells_classes(space: str, data: str) -> bool:
    # The chain space classifies whole images: street scenes say nothing about its classes.
    return not (space == "chain" and data == DEFAULT_DATA)
