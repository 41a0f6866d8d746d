"""From the text ``package.module`` and ``Class`` to the class."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any


def imported(module_name: str, attribute: str) -> Any:
    """What a module calls ``attribute``; the module is imported, which executes it.

    Raises:
        LookupError: the texts are no names, or there is no such module or attribute; its text is the reason,
            empty where the texts are no names. What the module itself fails to import is passed on as it is.
    """
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise LookupError("")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # The named module, or a package around it, is missing; what it imports itself is another matter.
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise LookupError(f"there is no {error.name}") from None
        raise
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise LookupError(f"{module_name} has no {attribute}") from None


def meant(name: str, known: Iterable[str]) -> str:
    """To follow a name that is not known: ``" (did you mean camvid?)"``, or nothing where none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
