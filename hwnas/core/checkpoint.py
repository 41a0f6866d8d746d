"""Checkpoints: all that a run needs to go on as if it had never stopped; they cannot execute code."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas.errors import CheckpointError
from hwnas.files import write_atomically

SCHEMA_VERSION = 1


def random_state() -> dict[str, Any]:
    """The state of every global random generator that data may use: torch (all devices), numpy, random."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is meant
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "random": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every global random generator back to what :func:`random_state` read."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    legacy = ("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached)
    np.random.set_state(legacy)  # noqa: NPY002 - the global one is meant


def seed_all(seed: int) -> None:
    """Seed every global random generator that :func:`random_state` reads."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one is meant


@contextmanager
def reseeded(seed: int) -> Iterator[None]:
    """Seed every global random generator for the body, and put them back where they were."""
    before = random_state()
    seed_all(seed)
    try:
        yield
    finally:
        restore_random_state(before)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) to ``path``, atomically."""
    buffer = io.BytesIO()
    torch.save({"schema_version": SCHEMA_VERSION, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, to the CPU; only tensors and plain values are admitted.

    Raises:
        CheckpointError: no such file, a damaged one, or one of a newer schema.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; without one there is nothing to resume.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = int(state["schema_version"])
    except Exception as error:  # torch raises whatever the damaged bytes lead it to
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {error}\nStart again without --resume, in another --out."
        ) from error
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint schema {version}, this hwnas reads up to {SCHEMA_VERSION}: upgrade hwnas."
        )
    loaded: dict[str, Any] = state
    return loaded
