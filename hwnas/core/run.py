"""A run: its folder, its checkpoints and its log; the part of a long loop that is not about learning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch

from hwnas.core.checkpoint import (
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    seed_all,
)
from hwnas.core.identity import as_json, refuse_another, without
from hwnas.core.interrupt import stoppable
from hwnas.core.runlog import RunLog
from hwnas.errors import CheckpointError, Interrupted, InvalidInput
from hwnas.files import write_atomically, write_json
from hwnas.processes import any_of_them, processes, told_by_all, told_by_first

_Batch = TypeVar("_Batch")

FINDERS = ("search", "baseline", "sweep")
"""Kinds of run of which a folder holds one: each has a table.json and a run.json of its own there."""


def refuse_begun(out: Path, name: str) -> None:
    """Refuse a folder in which a run of that name was begun.

    Raises:
        InvalidInput: there is one, finished or not.
    """
    if (out / f"{name}.json").exists():
        raise InvalidInput(
            f"{out} holds a {name} already. Go on with it (--resume; resume=True), or name another folder "
            "(--out; out=…)."
        )


def refuse_other(out: Path | None, other: str) -> None:
    """Refuse a folder in which another kind of run was begun; without a folder, say nothing.

    Raises:
        InvalidInput: there is one, finished or not.
    """
    if out is not None and (out / f"{other}.json").exists():
        raise InvalidInput(f"{out} holds a {other} already; name another folder (--out; out=…).")


def refuse_taken(out: Path, name: str) -> None:
    """Refuse a folder in which a run of that name was begun, or of another kind of the :data:`FINDERS`.

    Raises:
        InvalidInput: there is one, finished or not.
    """
    refuse_begun(out, name)
    if name in FINDERS:
        for other in FINDERS:
            if other != name:
                refuse_other(out, other)


def require_begun(out: Path | None, name: str) -> None:
    """Refuse to resume in a folder in which no run of that name was begun; without a folder, say nothing.

    Raises:
        InvalidInput: there is none.
    """
    if out is not None and not (out / f"{name}.json").is_file():
        raise InvalidInput(
            f"there is no {name} in {out} to resume: expected its {name}.json there. Start one (without "
            "--resume; resume=False), or name the folder of the one that was begun (--out; out=…)."
        )


class Stateful(Protocol):
    """Whatever can be saved and put back: modules, optimisers, scalers."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take over a state."""
        ...


class GeneratorState:
    """A torch generator as something stateful."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put its state back."""
        self.generator.set_state(state_dict["state"])


class Averages:
    """Running means by name over an epoch; part of the checkpoint, so that a resumed epoch logs the same."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, **values: float) -> None:
        """Take in one value for each name."""
        for name, value in values.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += value
            total[1] += 1.0

    def means(self) -> dict[str, float]:
        """The means, by name."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def count(self, name: str) -> int:
        """How many values of ``name`` were taken in."""
        return int(self._sums[name][1]) if name in self._sums else 0

    def clear(self) -> None:
        """Begin a new epoch."""
        self._sums.clear()

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        return {name: list(total) for name, total in self._sums.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put its state back."""
        self._sums = {name: list(total) for name, total in state_dict.items()}


@dataclass(frozen=True)
class Beginning:
    """First epochs that are the same in several runs: the first of these does them, the others start after.

    Attributes:
        folder: where their checkpoint and log are kept, under the names that they have in a run's folder.
        epochs: how many.
        apart: dotted names of the parts of the identity in which the runs differ, and which these epochs do
            not depend on. What is kept leaves them out.
    """

    folder: Path
    epochs: int
    apart: tuple[str, ...]


class Run:
    """A resumable loop over epochs and batches.

    ::

        with Run(out, "search", identity, parts, resume=resume) as run:
            for epoch in run.epochs(config.epochs):
                for batch in run.batches(loader):
                    ...

    A checkpoint is written at the end of each epoch, after every ``every_steps`` steps, and when Ctrl-C or
    SIGTERM asks the run to stop (then :class:`Interrupted` is raised). Resuming restores ``parts`` and every
    global random generator, and skips the batches of a begun epoch that were done: a resumed run goes on bit
    for bit as the uninterrupted one, provided the loader's order comes from the global generators (as torch's
    DataLoader's does).

    Several processes (:mod:`hwnas.processes`) go through it together: the first writes all files; all begin
    an epoch with its random state, so that loaders draw one order, and part once the first batch is there;
    when one of them is asked to stop, all stop after the same step.

    Args:
        out: the run's folder, or None to keep nothing on disk.
        name: names the files: ``<name>.json`` (identity), ``<name>.log.jsonl``, ``<name>.checkpoint.pt``.
        identity: what the run is, JSON; a checkpoint of another identity is refused. Its entry ``"data"`` is
            compared only where both have one: who did not describe the data has said nothing about them.
        parts: everything with a state.
        resume: go on from the checkpoint in ``out`` if there is one.
        every_steps: steps between checkpoints; 0 for epochs only.
        beginning: epochs shared with other runs. Whatever has no checkpoint of its own yet starts after them
            where they are done; else they are kept for the others once this run has done them.

    Raises:
        InvalidInput: ``out`` holds a run already (:func:`refuse_taken`) and ``resume`` is false,
            ``resume`` or ``beginning`` without ``out``, or an identity that is not JSON.
        CheckpointError: the checkpoint, or that of the beginning, is damaged, of another run or number of
            processes, or by a hwnas whose runs had other parts.
    """

    def __init__(
        self,
        out: Path | None,
        name: str,
        identity: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        *,
        resume: bool,
        every_steps: int = 0,
        beginning: Beginning | None = None,
    ) -> None:
        if beginning is not None and out is None:
            raise InvalidInput("epochs shared with other runs need a folder of the run: pass out=...")
        self.out = out
        self.name = name
        self.step = 0
        """Batches done since the beginning of the run."""
        self._identity = as_json(identity)
        self._parts = dict(parts)
        self._every_steps = every_steps
        self._beginning = beginning if beginning is not None and beginning.epochs else None
        self._epoch = 0
        self._step_in_epoch = 0
        self._epoch_random: dict[str, Any] | None = None
        self._random: dict[str, Any] | None = None
        self._stack = ExitStack()
        log_position = self._begin(resume)
        kept = out if processes().is_first else None
        self.log = RunLog(kept / f"{name}.log.jsonl" if kept else None, resume_at=log_position)

    @property
    def checkpoint_path(self) -> Path | None:
        """Where the checkpoint lies, or None without a folder."""
        return self._checkpoint_in(self.out) if self.out else None

    def epochs(self, total: int) -> Iterator[int]:
        """The epochs still to do, counted from 0; a checkpoint is written after the body of each."""
        # One that was killed in between has saved the last shared epoch, and not yet kept it for the others.
        self._keep_beginning()
        if self._epoch >= total and told_by_first(self._lacks_checkpoint):
            # All epochs were another run's: from now on this one is resumed by its own.
            self.save()
        while self._epoch < total:
            yield self._epoch
            self._epoch += 1
            self._step_in_epoch = 0
            self._epoch_random = None
            self.save()
            self._keep_beginning()
            self.stop_if_asked()

    def batches(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """The batches of this epoch to do; after each one's body a step is counted, and maybe saved."""
        if self._epoch_random is None:
            self._epoch_random = told_by_first(random_state)
        restore_random_state(self._epoch_random)
        iterator = iter(batches)
        for _ in range(self._step_in_epoch):
            next(iterator, None)
        if self._random is not None:
            restore_random_state(self._random)
            self._random = None
        rank = processes().rank
        for batch in iterator:
            if rank and not self._step_in_epoch:
                # The order of the epoch is drawn; dropout must not be the same in all processes.
                seed_all(int(torch.randint(2**62, ())) + rank)
            yield batch
            self.step += 1
            self._step_in_epoch += 1
            if self._every_steps and self.step % self._every_steps == 0:
                self.save()
            self.stop_if_asked(save=True)

    def save(self) -> None:
        """Write a checkpoint."""
        if self.checkpoint_path is None:
            return
        state = self._state()
        if processes().is_first:
            save_checkpoint(self.checkpoint_path, state)

    def stop_if_asked(self, *, save: bool = False, doing: str | None = None) -> None:
        """Raise :class:`Interrupted` if Ctrl-C or SIGTERM came; with ``save``, after a checkpoint.

        ``doing`` says what the run is at; None: its epochs.
        """
        if not any_of_them(self._stop.requested):
            return
        if save:
            self.save()
        saved = (
            f"{self.checkpoint_path}; go on with --resume (resume=True)"
            if self.out
            else "nowhere: the run has no folder"
        )
        where = f"in epoch {self._epoch + 1}" if doing is None else doing
        raise Interrupted(f"stopped {where} after {self.step} steps; saved in {saved}.")

    def __enter__(self) -> Self:
        self._stop = self._stack.enter_context(stoppable())
        self._stack.enter_context(self.log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _begin(self, resume: bool) -> int | None:
        state = told_by_first(lambda: self._found(resume))
        if state is None:
            return None
        if lacking := sorted(self._parts.keys() - state["parts"].keys()):
            raise CheckpointError(
                f"{self.checkpoint_path} says nothing about {', '.join(lacking)}: another version of hwnas "
                "wrote it. Resume with that version, or start anew in another folder (--out)."
            )
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self.step = state["step"]
        self._epoch = state["epoch"]
        self._step_in_epoch = state["step_in_epoch"]
        self._epoch_random = state["epoch_random"]
        self._random = [state["random"], *state.get("random_of_others", [])][processes().rank]
        if self._epoch_random is None:
            restore_random_state(self._random)
            self._random = None
        position: int = state["log_position"]
        return position

    def _found(self, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None where a run begins, whose folder then says what it is."""
        if self.out is None:
            if resume:
                raise InvalidInput("resume=True needs the folder of the run to resume: pass out=...")
            return None
        path = self.out / f"{self.name}.json"
        checkpoint = self.checkpoint_path
        assert checkpoint is not None
        if not resume:
            refuse_taken(self.out, self.name)
        if not resume or not checkpoint.is_file():
            # Stopped before the first checkpoint, there is nothing to go on from, and nothing to lose.
            state = self._begun_by_another()
            write_json(path, self._identity)
            return state
        return self._fitting(checkpoint, self._identity)

    def _begun_by_another(self) -> dict[str, Any] | None:
        """The state after the shared epochs, and their log in this run's folder; None: not done yet."""
        beginning = self._beginning
        if beginning is None or not self._checkpoint_in(beginning.folder).is_file():
            return None
        shared = without(self._identity, beginning.apart)
        state = self._fitting(self._checkpoint_in(beginning.folder), shared)
        assert self.out is not None
        write_atomically(self._log_in(self.out), self._log_in(beginning.folder).read_bytes())
        return state

    def _lacks_checkpoint(self) -> bool:
        return self.checkpoint_path is not None and not self.checkpoint_path.is_file()

    def _keep_beginning(self) -> None:
        """Keep the shared epochs for other runs, if they were the last ones done and nobody has kept them."""
        beginning = self._beginning
        if beginning is None or (self._epoch, self._step_in_epoch) != (beginning.epochs, 0):
            return
        kept = self._checkpoint_in(beginning.folder)
        if told_by_first(kept.is_file):
            return
        state = self._state()
        if not processes().is_first:
            return
        assert self.out is not None
        shared = without(self._identity, beginning.apart)
        log = self._log_in(self.out).read_bytes()[: state["log_position"]]
        write_json(beginning.folder / f"{self.name}.json", shared)
        write_atomically(self._log_in(beginning.folder), log)
        # Last: where it is, the others are.
        save_checkpoint(kept, {**state, "identity": shared})

    def _fitting(self, checkpoint: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds, if it is of this identity and number of processes."""
        state = load_checkpoint(checkpoint)
        refuse_another(state["identity"], identity, checkpoint)
        then, now = state.get("processes", 1), processes().size
        if then != now:
            raise CheckpointError(
                f"{checkpoint} was written by {then} processes, and there are {now} now: each goes on with a "
                f"random state of its own. Resume with {then} (torchrun's --nproc-per-node times --nnodes), "
                "or start anew in another folder (--out)."
            )
        if self._identity.get("data") is None and "data" in state["identity"]:
            self._identity["data"] = state["identity"]["data"]
        return state

    def _checkpoint_in(self, folder: Path) -> Path:
        return folder / f"{self.name}.checkpoint.pt"

    def _log_in(self, folder: Path) -> Path:
        return folder / f"{self.name}.log.jsonl"

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; all processes ask for it together."""
        random, *random_of_others = told_by_all(random_state())
        return {
            "identity": self._identity,
            "processes": processes().size,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "step": self.step,
            "epoch": self._epoch,
            "step_in_epoch": self._step_in_epoch,
            "epoch_random": self._epoch_random,
            "random": random,
            "random_of_others": random_of_others,
            "log_position": self.log.position(),
        }
