"""Arguments that come from text or a file: as a constructor is annotated that is to take them, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from hwnas.errors import InvalidInput


def checked_arguments(kind: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    """``arguments`` as the types that the constructor of ``kind`` is annotated with.

    Those without an annotation, or of a type that only Python can pass, are left as they are.

    Args:
        kind: a class.
        arguments: name → value, as JSON has it.
        what: the class, as an error calls it.

    Raises:
        InvalidInput: a value of another type.
    """
    try:
        hints = get_type_hints(kind.__init__)
    except NameError:  # annotations that only a type checker can read
        return dict(arguments)
    checked = dict(arguments)
    for name in arguments.keys() & hints.keys():
        try:
            checked[name] = TypeAdapter(hints[name]).validate_python(arguments[name])
        except PydanticSchemaGenerationError:  # no type of JSON
            continue
        except ValidationError as error:
            wrong = f"{error.errors()[0]['msg']} (got {arguments[name]!r})"
            raise InvalidInput(f"{what} refuses the option {name}: {wrong}") from error
    return checked


def refuse_text(name: str, value: object, kind: str, mend: str, *, dataset: bool = False) -> None:
    """Raise if ``value`` is a text or a path, as the command line takes it, where Python takes an object.

    Args:
        name: of the argument.
        value: of the argument.
        kind: what it is to be.
        mend: the call that makes one.
        dataset: whether the text may be meant as a data set, which the message then tells how to open.

    Raises:
        InvalidInput: it is.
    """
    if not isinstance(value, (str, PurePath)):
        return
    opened = (
        f'; loader = hwnas.segmentation.training_loader(hwnas.segmentation.open_dataset("{value}"), '
        "batch_size=8)"
        if dataset
        else ""
    )
    what = "text" if isinstance(value, str) else "path"
    raise InvalidInput(f'{name} must be {kind}, got the {what} "{value}": pass {mend}{opened}.')
