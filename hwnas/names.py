"""From the names in files and on the command line to search spaces and latency backends."""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from inspect import isabstract
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hwnas.core.genotype import Genotype
from hwnas.core.space import SearchSpace
from hwnas.errors import GenotypeError, InvalidInput, refusals
from hwnas.lookup import imported, meant

if TYPE_CHECKING:
    from hwnas.latency.backend import LatencyBackend

# So that names hold in a source tree that was never installed. pyproject.toml offers the same as entry
# points, as other packages offer theirs; a test holds both together.
_SPACES = {
    "autortnet": "hwnas.search_spaces.autortnet:AutoRTNet",
    "chain": "hwnas.search_spaces.chain:Chain",
}
_BACKENDS = {
    "torch": "hwnas.latency.torch:TorchBackend",
    "torch-compile": "hwnas.latency.torch_compile:TorchCompileBackend",
    "onnxruntime": "hwnas.latency.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "hwnas.latency.tensorrt:TensorRTBackend",
    "fake": "hwnas.latency.fake:FakeBackend",
}


def known_spaces() -> dict[str, str]:
    """Name → ``package.module:Class`` of the spaces: built-in, and those that other packages offer."""
    return _SPACES | {point.name: point.value for point in entry_points(group="hwnas.search_spaces")}


def known_backends() -> dict[str, str]:
    """Name → ``package.module:Class`` of the backends: built-in, and those that other packages offer."""
    return _BACKENDS | {point.name: point.value for point in entry_points(group="hwnas.latency_backends")}


def in_file_names(name: str) -> str:
    """A space's name as the names of its tables and folders have it."""
    return name.replace(":", ".")


def find_space(name: str) -> type[SearchSpace]:
    """The search space that ``name`` names.

    Raises:
        InvalidInput: there is none; the class is no search space; or it calls itself by a name that would not
            lead back to it from the files that name it.
    """
    found = _find("search space", name, known_spaces())
    if not isinstance(found, type) or not issubclass(found, SearchSpace):
        raise InvalidInput(f'"{name}" names {found!r}, which is not a SearchSpace.')
    if isabstract(found):
        raise InvalidInput(f'"{name}" is abstract: name a class that has input_shape and supernet.')
    if found.name != name and not _leads_to(found):
        raise InvalidInput(
            f'{name} calls itself "{found.name}", a name by which no file that it is written into would find '
            "it. Leave name out of the class, which then is called package.module:Class; or offer "
            f'{name} under that name as an entry point ("hwnas.search_spaces").'
        )
    return found


def _leads_to(space: type[SearchSpace]) -> bool:
    """Whether a space is found by the name that it gives itself."""
    try:
        return _find("search space", space.name, known_spaces()) is space
    except InvalidInput:
        return False


def find_backend(name: str) -> type[LatencyBackend]:
    """The latency backend that ``name`` names.

    Raises:
        InvalidInput: there is none, or the class is no latency backend.
    """
    from hwnas.latency.backend import LatencyBackend

    found = _find("latency backend", name, known_backends())
    if not isinstance(found, type) or not issubclass(found, LatencyBackend):
        raise InvalidInput(f'"{name}" names {found!r}, which is not a LatencyBackend.')
    return found


def space_of(genotype: Genotype, *, may_import: bool = True) -> SearchSpace:
    """The space that a genotype was found in, rebuilt from what the genotype says.

    Args:
        genotype: names its space, by a known name or as ``package.module:Class``.
        may_import: whether a module that only the genotype names may be imported, which executes it. Not for
            a genotype from elsewhere.

    Raises:
        GenotypeError: its fields do not fit that space; or it names a module that may not be imported.
    """
    module_name, names_class, _ = genotype.space.partition(":")
    if (
        not may_import
        and names_class
        and module_name not in sys.modules
        and genotype.space not in known_spaces().values()
    ):
        raise GenotypeError(
            f"the genotype names {genotype.space}, and no file from elsewhere decides what is imported, "
            f"which is to execute it. If you trust {module_name}, import it first, or offer its space as an "
            f'entry point ("hwnas.search_spaces"). Known: {", ".join(sorted(known_spaces()))}'
        )
    try:
        return _made(genotype.space, json.dumps(genotype.fields, sort_keys=True))
    except ValidationError as error:
        raise GenotypeError(
            f"the genotype's fields do not fit {genotype.space}:\n{refusals(error, genotype.fields)}\n"
            "Was it found with another version of this space? Use that version, or search anew."
        ) from error


# A space remembers what it recorded of its supernet, which takes a second: one object serves all of a verb.
@lru_cache(maxsize=4)
def _made(name: str, fields: str) -> SearchSpace:
    return find_space(name)(**json.loads(fields))


def _find(what: str, name: str, known: dict[str, str]) -> Any:
    module_name, _, attribute = known.get(name, name).partition(":")
    try:
        return imported(module_name, attribute)
    except LookupError as error:
        reason = f": {error}" if str(error) else ""
        raise InvalidInput(
            f'no {what} is called "{name}"{reason}{meant(name, known)}. Known: {", ".join(sorted(known))}; '
            "or write package.module:Class."
        ) from None
