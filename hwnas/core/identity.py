"""What a run is, as JSON: what a checkpoint must agree with to be gone on from."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hwnas.core.expected import LatencyTableLike
from hwnas.core.search_data import SearchData
from hwnas.core.space import SearchSpace
from hwnas.errors import CheckpointError, InvalidInput


def identity_of(
    space: SearchSpace,
    lut: LatencyTableLike | None,
    data: SearchData,
    config: BaseModel,
    later: Mapping[str, Any],
) -> dict[str, Any]:
    """What a search, or what it is compared with, is.

    Args:
        space: what can be chosen.
        lut: milliseconds of every op, or None.
        data: by their description.
        config: all settings.
        later: of these settings, those that there have not always been; see :func:`as_ever`.
    """
    return {
        "space": space.name,
        "fields": space.model_dump(mode="json"),
        "config": as_ever(config.model_dump(mode="json"), later),
        "table": getattr(lut, "checksum", None),
        "data": data.description,
    }


def as_ever(settings: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` as JSON without those that there have not always been, where they change nothing.

    A run that was begun before there were is then still the same run, and can be resumed.

    Args:
        settings: what a run is told; left as it is.
        later: by dotted name, the value that does what was done before there was the setting; of names that
            are not among the settings nothing is said.
    """
    kept = copy.deepcopy(dict(settings))
    for name, value in later.items():
        *path, last = name.split(".")
        place = kept
        for part in path:
            place = place.get(part, {})
        if last in place and place[last] == value:
            del place[last]
    return kept


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is as plain JSON, as a checkpoint has it.

    Raises:
        InvalidInput: it is not JSON.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(identity))
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"what a run is must be JSON, so that a checkpoint can be compared with it: {error}. "
            "Describe data by names and numbers."
        ) from error
    return plain


def without(identity: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """An identity less the parts of these dotted names."""
    kept: dict[str, Any] = copy.deepcopy(dict(identity))
    for name in names:
        *path, last = name.split(".")
        place = kept
        for part in path:
            place = place[part]
        place.pop(last)
    return kept


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """What tells two descriptions apart, a line for each dotted name: what was kept, what is asked now."""
    kept, asked = _flat(theirs), _flat(mine)
    return [
        f"{key}: checkpoint {kept.get(key)!r}, asked {asked.get(key)!r}"
        for key in sorted(kept.keys() | asked.keys())
        if kept.get(key) != asked.get(key)
    ]


def refuse_another(theirs: Mapping[str, Any], mine: Mapping[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint of another run; data are compared where both say something of them.

    Raises:
        CheckpointError: lists the differences.
    """
    mine, theirs = dict(mine), dict(theirs)
    if mine.get("data") is None or theirs.get("data") is None:
        mine.pop("data", None)
        theirs.pop("data", None)
    if mine == theirs:
        return
    lines = "".join(f"  {line}\n" for line in differences(theirs, mine))
    raise CheckpointError(
        f"{checkpoint} belongs to another run:\n{lines}"
        "Resume with the same settings, or start anew in another folder (--out)."
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            key: item for name, part in value.items() for key, item in _flat(part, f"{prefix}{name}.").items()
        }
    return {prefix.rstrip("."): value}
