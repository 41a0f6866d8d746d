"""``--set name=value``: from the command line into the fields of a search space, a config or a data set."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from hwnas.errors import InvalidInput, refusals

_Model = TypeVar("_Model", bound=BaseModel)


def parse(settings: Sequence[str]) -> dict[str, Any]:
    """``("epochs=3", "relaxation.hard=false")`` as names and values; a value is JSON, or else a string.

    Raises:
        InvalidInput: one of them has no "=".
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise InvalidInput(f'--set wants name=value, got "{setting}".')
        try:
            values[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip()] = text
    return values


def sort_out(
    settings: Mapping[str, Any], homes: Mapping[str, Sequence[str] | None]
) -> dict[str, dict[str, Any]]:
    """Give each setting to the one home that has such a field.

    Args:
        settings: names (dotted for a field of a field) and values.
        homes: home → its fields, or None for one that takes anything, but only by its full name. A setting
            may name its home (``data.length``), and must where several have the field.

    Raises:
        InvalidInput: a name that no home has, or that several have.
    """
    sorted_out: dict[str, dict[str, Any]] = {home: {} for home in homes}
    for name, value in settings.items():
        head, _, rest = name.partition(".")
        own = [home for home, fields in homes.items() if fields is not None and head in fields]
        if not own and head in homes and rest:
            fields = homes[head]
            if fields is None or rest.partition(".")[0] in fields:
                sorted_out[head][rest] = value
                continue
        if len(own) == 1:
            sorted_out[own[0]][name] = value
            continue
        if own:
            both = " or ".join(f"{home}.{name}" for home in own)
            raise InvalidInput(f"--set {name} is ambiguous: write {both}.")
        lines = [f"  {home}: {', '.join(fields)}" for home, fields in homes.items() if fields]
        raise InvalidInput(f'--set knows no "{name}". Known names:\n' + "\n".join(lines))
    return sorted_out


def changed(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with values set under dotted names; a new ``form`` clears the fields of the old one."""
    values = copy.deepcopy(dict(base))
    for name, value in sorted(settings.items(), key=lambda item: not item[0].endswith(".form")):
        *path, last = name.split(".")
        place = values
        for part in path:
            inner = place.get(part)
            place[part] = inner if isinstance(inner, dict) else {}
            place = place[part]
        if last == "form" and path:
            place.clear()
        place[last] = value
    return values


def validated(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """A model made of values.

    Raises:
        InvalidInput: the values do not fit; the message names each one that does not.
    """
    try:
        return model(**values)
    except ValidationError as error:
        lines = [refusals(error, values), *_known_beside(model, error)]
        raise InvalidInput(f"{model.__name__} refuses these values:\n" + "\n".join(lines)) from error


def _known_beside(model: type[BaseModel], error: ValidationError) -> list[str]:
    """For each name that a model inside ``model`` does not have, those that it has."""
    lines = []
    for wrong in error.errors(include_url=False):
        if wrong["type"] == "extra_forbidden":
            models = [model]
            for part in wrong["loc"][:-1]:
                models = _inner(models, part)
            names = dict.fromkeys(name for each in models for name in each.model_fields)
            if names:
                lines.append(f"Known beside {wrong['loc'][-1]}: {', '.join(names)}")
    return lines


def _inner(models: Sequence[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    """The models that stand in a field of ``models``; or, of these themselves, the one that a tag names."""
    name = str(part)
    fields = [each.model_fields[name] for each in models if name in each.model_fields]
    if fields:
        return [inner for field in fields for inner in _models_in(field.annotation)]
    tagged = [
        each for each in models if "form" in each.model_fields and each.model_fields["form"].default == name
    ]
    return tagged or list(models)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _models_in(argument)]
