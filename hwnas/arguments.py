"""Arguments that come from text or a file, as the constructor is annotated that is to take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
