"""Every error that hwnas raises on purpose, in one family.

::

    HwnasError
    ├── InvalidInput          a value given by the caller is out of range or of the wrong kind
    ├── MissingExtra          an optional package is not installed
    ├── SpaceError            a search space or supernet breaks a rule of the recording
    ├── GenotypeError         a genotype does not fit the space it is used with
    ├── InfeasibleBudget      no network of the space costs as little as was asked for
    ├── TableError
    │   ├── MissingTable      no table, or bundle of one, where one was named
    │   ├── CorruptTable      a table file that cannot be trusted: truncated, altered, from the future
    │   ├── TableMismatch     a table of another device, backend, precision, batch, threads or resolution
    │   └── MissingLatency    op keys without a row
    ├── DeviceNotFound        the device asked for is not in this machine
    ├── BackendError
    │   ├── BackendUnavailable  the runtime is not here, or not in the form asked for
    │   └── MeasurementFailed   a measurement that yielded no number that can be believed
    ├── ExportError           a module could not be exported, or computes something else once exported
    ├── DataError             a data set that is missing, incomplete or mislabelled
    ├── CheckpointError       a checkpoint that is absent, damaged or of another run
    ├── NonFiniteLoss         training diverged: the loss or a gradient is NaN or infinite
    └── Interrupted           stopped by Ctrl-C or SIGTERM; what was done is saved

A message holds what was expected, what came, and the command or call that mends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class HwnasError(Exception):
    """Base of the family: ``except hwnas.HwnasError`` catches whatever hwnas raises on purpose."""


class HwnasWarning(UserWarning):
    """Base of what hwnas warns of; the command line prints it as a sentence."""


class InvalidInput(HwnasError, ValueError):
    """A value given by the caller is out of range or of the wrong kind."""


class MissingExtra(HwnasError, ImportError):
    """An optional package is needed and not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of hwnas that brings it.
        purpose: what it is needed for, to complete "needed to …".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is not installed; it is needed to {purpose}.\n"
            f"Install it with:  pip install 'hwnas[{extra}]'"
        )


class SpaceError(HwnasError):
    """A search space or its supernet breaks a rule that recording relies on."""


class GenotypeError(HwnasError):
    """A genotype does not fit the search space it is used with."""


class InfeasibleBudget(HwnasError):
    """No network of the search space costs as little as was asked for; the message names the nearest."""


class TableError(HwnasError):
    """A latency table cannot be used."""


class MissingTable(TableError):
    """There is no table, or no bundle of one, where one was named."""


class CorruptTable(TableError):
    """A table file cannot be trusted: truncated, altered, holding impossible rows, or of a newer schema."""


class TableMismatch(TableError):
    """A table was measured under other conditions than those asked for; the message lists each difference."""


class MissingLatency(TableError):
    """Op keys of a search space have no row in the table."""


class DeviceNotFound(HwnasError):
    """The device asked for is not in this machine."""


class BackendError(HwnasError):
    """A latency backend cannot do what was asked."""


class BackendUnavailable(BackendError):
    """A runtime is not installed, or would silently run somewhere else than asked."""


class MeasurementFailed(BackendError):
    """A measurement yielded no number that can be believed."""


class ExportError(HwnasError):
    """A module could not be exported, or the exported one computes something else."""


class DataError(HwnasError):
    """A data set is missing, incomplete or mislabelled."""


class CheckpointError(HwnasError):
    """A checkpoint is absent, damaged, or belongs to another run."""


class NonFiniteLoss(HwnasError):
    """Training diverged: the loss or a gradient is NaN or infinite, too often to skip over."""


class Interrupted(HwnasError):
    """A run was stopped by Ctrl-C or SIGTERM; its state is saved and it can be resumed."""


def refusals(error: ValidationError, values: Any = None) -> str:
    """What a model refused, a line each: the field's dotted name, what was expected, and what came.

    Args:
        error: what pydantic raised.
        values: what the model was made from. With them, names are as one writes them: without the tag that
            pydantic puts between a field of several forms and the form's own fields.
    """
    lines = []
    for wrong in error.errors(include_url=False):
        name = ".".join(_written(wrong["loc"], values)) or "the whole"
        came = "" if wrong["type"] == "missing" or not wrong["loc"] else f" (got {wrong['input']!r})"
        if wrong["type"] in ("tuple_type", "list_type") and isinstance(wrong["input"], str):
            came = f" (got {wrong['input']!r}; write [{wrong['input'].strip('()[] ')}])"
        lines.append(f"  {name}: {wrong['msg'].removeprefix('Value error, ')}{came}")
    return "\n".join(lines)


def _written(loc: tuple[int | str, ...], values: Any) -> list[str]:
    names = []
    for position, part in enumerate(loc):
        is_tag = isinstance(values, Mapping) and part not in values and position + 1 < len(loc)
        if not is_tag:
            names.append(str(part))
            values = values.get(part) if isinstance(values, Mapping) else None
    return names


def in_short(names: Iterable[str], most: int = 8) -> str:
    """Names within a sentence; how many there are beyond ``most`` is said."""
    every = list(names)
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def listing(lines: Iterable[str], most: int = 10) -> str:
    """Lines of an error message, indented; what is beyond ``most`` is counted."""
    every = [f"  {line}" for line in lines]
    rest = [f"  … and {len(every) - most} more"] if len(every) > most else []
    return "\n".join(every[:most] + rest)
