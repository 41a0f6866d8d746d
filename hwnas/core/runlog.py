"""The log of a run: one JSON object a line, and TensorBoard beside it where that is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from hwnas.errors import DataError, HwnasWarning
from hwnas.files import plain


class RunLog:
    """An append-only file of events, ``{"event": "epoch", "epoch": 3, …}``, flushed line by line.

    Args:
        path: the file; its folder is made. None keeps no log.
        resume_at: length in bytes of what is to be kept: what an interrupted run wrote after its last
            checkpoint will be written again. None begins a new file.
        tensorboard: also write numbers as TensorBoard scalars into ``<folder>/tensorboard/<run>``, where
            what is to be written again is taken back, too.
    """

    def __init__(self, path: Path | None, *, resume_at: int | None = None, tensorboard: bool = True) -> None:
        self._file: BinaryIO | None = None
        self._board: Any = None
        self._stack = ExitStack()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_at is None:
            self._file = path.open("wb")
        else:
            self._file = path.open("r+b" if path.exists() else "wb")
            self._file.truncate(min(resume_at, path.stat().st_size))
            self._file.seek(0, os.SEEK_END)
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            with self._board_may_fail():
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(
                    # Runs of one folder, such as a search and a training, count their steps each from 0.
                    log_dir=str(path.parent / "tensorboard" / path.name.partition(".")[0]),
                    purge_step=None if resume_at is None else _steps_in(path),
                )
                self._stack.enter_context(_silent_writer_thread())

    def write(self, event: str, **values: Any) -> None:
        """Append one event. Numbers that JSON has no word for (NaN, infinity) are written as null."""
        if self._file is None:
            return
        line = json.dumps({"event": event, **plain(values)}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if self._board is not None and "step" in values:
            with self._board_may_fail():
                for name, value in _scalars(values):
                    if name not in ("step", "epoch"):
                        self._board.add_scalar(f"{event}/{name}", value, values["step"])

    def position(self) -> int:
        """Bytes written so far, for a checkpoint."""
        return 0 if self._file is None else self._file.tell()

    def close(self) -> None:
        """Finish both files."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            with self._board_may_fail():
                self._board.close()
            self._board = None
        self._stack.close()

    @contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """A warning and no more TensorBoard, instead of the end of a run whose log is whole without it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - its writer passes on whatever its thread ran into
            board, self._board = self._board, None
            with suppress(Exception):
                board.close()
            warnings.warn(
                f"TensorBoard's files are no longer written ({type(error).__name__}: {error}); the run goes "
                "on, and its .log.jsonl has all numbers.",
                HwnasWarning,
                stacklevel=4,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _silent_writer_thread() -> Iterator[None]:
    """What ends TensorBoard's writer thread comes out of its next call; the thread prints nothing."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def read_log(path: Path) -> list[dict[str, Any]]:
    """The events of a log, in order; a last line that was cut off is left out.

    Raises:
        DataError: a line is not JSON.
    """
    if not path.is_file():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"line {number} of {path} is damaged: {error}; restore it, or delete the log."
            ) from error
        events.append(event)
    return events


def _steps_in(path: Path) -> int:
    """One more than the last step that the log names; 0 where it names none."""
    # Beside the log TensorBoard is a convenience: what cannot be read here is said where the log is read.
    with suppress(DataError):
        return max((int(event["step"]) + 1 for event in read_log(path) if "step" in event), default=0)
    return 0


def _scalars(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found.append((f"{prefix}{name}", float(value)))
        elif isinstance(value, Mapping):
            found.extend(_scalars(value, f"{prefix}{name}/"))
    return found
