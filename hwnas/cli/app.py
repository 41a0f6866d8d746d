"""The group of all verbs; an error becomes a sentence on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from hwnas.cli.console import note
from hwnas.errors import HwnasError, HwnasWarning, InfeasibleBudget, Interrupted, InvalidInput
from hwnas.processes import launched

EXIT_ERROR = 2
EXIT_BUDGET = 3
EXIT_NOT_GOOD = 4
"""Done, and the answer is that a table predicts worse than a search should go by."""
EXIT_INTERRUPTED = 130

_VERBS = {
    "demo": "demo",
    "devices": "devices",
    "spaces": "spaces",
    "doctor": "doctor",
    "profile": "profile",
    "verify": "verify",
    "search": "search",
    "sweep": "sweep",
    "derive": "derive",
    "recipes": "recipes",
    "fit": "fit",
    "eval": "evaluate",
    "export": "export",
    "measure": "measure",
    "predict": "predict",
    "zoo": "zoo",
    "table": "table",
    "report": "report",
}
"""Verb → the module of hwnas.cli that has it, as ``command``; imported when the verb is used."""
_RESUMABLE = ("search", "sweep", "fit")
"""Verbs that take --resume, and that several processes share."""


class Verbs(click.Group):
    """Verbs that are imported when they are used, and whose errors end in an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order in which one meets them."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name."""
        if cmd_name not in _VERBS:
            return None
        if launched() > 1 and cmd_name not in _RESUMABLE:
            raise InvalidInput(
                f"hwnas {cmd_name} runs in one process: start it without torchrun. Only "
                f"{', '.join(_RESUMABLE[:-1])} and {_RESUMABLE[-1]} share their work."
            )
        command: click.Command = import_module(f"hwnas.cli.{_VERBS[cmd_name]}").command
        return command

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """Run; the arguments are kept, so that an interrupted verb can say how to go on."""
        self._arguments = list(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; hwnas's own errors become a message and an exit code."""
        try:
            with _warnings_as_notes():
                return super().invoke(ctx)
        except (Interrupted, KeyboardInterrupt) as error:
            # All processes of a run stop together, and one says so.
            if not _rank():
                click.echo(f"Interrupted: {error}" if str(error) else "Interrupted.", err=True)
                click.echo(f"Go on with:  {self._resuming()}", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except HwnasError as error:
            click.echo(f"{_process()}{type(error).__name__}: {error}", err=True)
            ctx.exit(EXIT_BUDGET if isinstance(error, InfeasibleBudget) else EXIT_ERROR)
        except OSError as error:
            if error.filename is None:
                raise
            click.echo(
                f"{_process()}{error.strerror}: {error.filename}; name a path that can be read and written.",
                err=True,
            )
            ctx.exit(EXIT_ERROR)

    def _resuming(self) -> str:
        arguments = list(self._arguments)
        if arguments and arguments[0] in _RESUMABLE and "--resume" not in arguments:
            arguments.append("--resume")
        launcher = "torchrun (as before) -m " if launched() > 1 else ""
        return launcher + shlex.join(["hwnas", *arguments])


def _rank() -> int:
    # Not of the group: an error has ended that already.
    return int(os.environ["RANK"]) if launched() > 1 else 0


def _process() -> str:
    """Which process an error comes from, where it is not the first."""
    return f"process {_rank()}: " if _rank() else ""


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Hwnas's own warnings as a sentence on stderr, without the line of code that they came from."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **extra: Any) -> None:
            if issubclass(category, HwnasWarning):
                note(f"{category.__name__}: {message}")
            else:
                others(message, category, *rest, **extra)

        warnings.showwarning = show
        yield


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hwnas")
def main() -> None:
    """Hardware-aware neural architecture search: from a device's milliseconds to a network within them."""
