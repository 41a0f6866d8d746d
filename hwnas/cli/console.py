"""What a verb says while it works (on stderr) and what it found (on stdout, as text or JSON).

Of several processes only the first says anything.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from hwnas.core.progress import Progress
from hwnas.files import plain
from hwnas.latency.timing import in_ms
from hwnas.processes import processes


def note(text: str) -> None:
    """Say something on the way: to stderr, so that stdout holds results only."""
    if processes().is_first:
        click.echo(text, err=True)


def result(values: Mapping[str, Any], lines: Sequence[str], *, as_json: bool) -> None:
    """Print what a verb found, to stdout: ``values`` as one JSON object, or ``lines`` for people."""
    if not processes().is_first:
        return
    if as_json:
        click.echo(json.dumps(plain(values), indent=1))
        return
    for line in lines:
        click.echo(line)


def headline(values: Mapping[str, Any]) -> str:
    """The numbers of a moment that people follow, in one line."""
    shown = []
    for name, label, unit, digits in _NUMBERS:
        value = _value(values, name)
        if value is not None:
            number = in_ms(value) if digits is None else f"{value:.{digits}f}"
            shown.append(f"{label} {number}{unit}")
    return "  ".join(shown)


_NUMBERS = (
    ("loss", "loss", "", 3),
    ("train.miou", "train mIoU", " %", 1),
    ("val.miou", "val mIoU", " %", 1),
    ("train.accuracy", "train accuracy", " %", 1),
    ("val.accuracy", "val accuracy", " %", 1),
    ("expected_ms", "E[latency]", " ms", None),
    ("argmax_ms", "argmax", " ms", None),
    ("temperature", "τ", "", 2),
)


def _value(values: Mapping[str, Any], name: str) -> float | None:
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


@contextmanager
def watching(what: str, steps_per_epoch: int) -> Iterator[Callable[[Progress], None]]:
    """A callback for search and fit: a live bar on a terminal, a line an epoch elsewhere.

    Args:
        what: the verb, to begin lines with.
        steps_per_epoch: batches of one epoch, for the bar and the time left.
    """
    if not sys.stderr.isatty() or not processes().is_first:
        yield _Lines(what, steps_per_epoch)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(what, total=None, numbers="")
        standing: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            standing.update(progress.values)
            bar.update(
                task,
                description=f"{what} epoch {progress.epoch + 1}/{progress.epochs}",
                total=progress.epochs * steps_per_epoch,
                completed=progress.step + (0 if progress.end_of_epoch else 1),
                numbers=headline(standing),
            )

        yield show


class _Lines:
    """A line at the end of each epoch, with the time left by the pace so far."""

    def __init__(self, what: str, steps_per_epoch: int) -> None:
        self._what = what
        self._steps_per_epoch = steps_per_epoch
        self._began = time.monotonic()
        self._first_step: int | None = None

    def __call__(self, progress: Progress) -> None:
        if self._first_step is None:
            # Not before: a resumed run has batches to skip first, which tell nothing of its pace.
            self._first_step, self._began = progress.step, time.monotonic()
        if not progress.end_of_epoch:
            return
        done = max(1, progress.step - self._first_step)
        seconds = time.monotonic() - self._began
        left = max(0, progress.epochs * self._steps_per_epoch - progress.step) * seconds / done
        note(
            f"{self._what} epoch {progress.epoch + 1}/{progress.epochs}  {headline(progress.values)}  "
            f"{_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A callback ``(done, total, what)``: a live bar on a terminal, a line at each quarter elsewhere."""
    if not sys.stderr.isatty():
        said: set[int] = set()

        def say(done: int, total: int, item: str) -> None:
            quarter = 4 * done // max(1, total)
            if quarter not in said and quarter > 0:
                said.add(quarter)
                note(f"{what} {done}/{total}")

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(what), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, item: bar.update(task, total=total, completed=done)
