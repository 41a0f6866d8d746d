"""Recording: which ops a network runs, and under which decisions each of them runs.

A supernet is ordinary PyTorch. While a recording is active, its blocks run every alternative once (on meta
tensors, so nothing is computed) inside :meth:`Recorder.under`, and each op that is called is noted with the
decisions that then hold: its *condition*. From that, for an assignment Z of probabilities to options,

    latency(Z) = Σ over op uses of t(key) · Π over the choices in its condition of Σ over its options of Z,

which is the exact expectation for independent choices, and the additive latency of one network at one-hot.

Limits. Conditions are lexical: an op that runs is charged even if a later block throws its output away.
Shapes must not depend on choices within one use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hwnas.errors import SpaceError
from hwnas.ops import Op, OpKey

Condition = tuple[tuple[str, frozenset[int]], ...]
"""For each choice named, sorted by name, the options under which something runs. Empty: always."""


def holds(condition: Condition, assignment: Mapping[str, int]) -> bool:
    """Whether ``condition`` is met by a one-hot assignment (choice name → option index).

    A choice that the assignment leaves out meets no condition on it.
    """
    return all(assignment.get(name, -1) in options for name, options in condition)


def both(first: Condition, second: Condition) -> Condition | None:
    """The condition that is met where both are, or None where that can never be."""
    merged = dict(first)
    for name, options in second:
        merged[name] = merged[name] & options if name in merged else options
    return None if frozenset() in merged.values() else tuple(sorted(merged.items()))


@dataclass(frozen=True)
class OpUse:
    """One place where an op is called: its latency key, its condition, and its path in the module tree."""

    key: OpKey
    condition: Condition
    path: str


@dataclass(frozen=True)
class BlockUse:
    """One place where a choice is consulted, its condition, and the shapes that the block is called with."""

    choice: str
    condition: Condition
    input_shapes: tuple[tuple[int, ...], ...]


@dataclass
class Recording:
    """What a network runs: every op use and every consultation of a choice, in execution order."""

    ops: list[OpUse] = field(default_factory=list)
    blocks: list[BlockUse] = field(default_factory=list)

    def keys(self) -> list[OpKey]:
        """Each distinct op key once, in order of first use: the rows a table must have."""
        return list(dict.fromkeys(use.key for use in self.ops))

    def count(self, assignment: Mapping[str, int]) -> Counter[OpKey]:
        """How often each op key runs in the network that a one-hot assignment (name → index) selects."""
        return Counter(use.key for use in self.ops if holds(use.condition, assignment))

    def live_choices(self, assignment: Mapping[str, int]) -> list[str]:
        """Names of the choices that matter under ``assignment``, in order of first use.

        A choice whose every block is cut away (a cell behind the exit of its hyper-cell) is not among them.
        """
        return list(dict.fromkeys(use.choice for use in self.blocks if holds(use.condition, assignment)))


class Recorder:
    """The pass in progress: blocks tell it which decisions hold, ops are noted under them."""

    def __init__(self) -> None:
        self.recording = Recording()
        self._held: dict[str, frozenset[int]] = {}
        self._op_depth = 0

    @contextmanager
    def under(self, choice: str, options: frozenset[int]) -> Iterator[bool]:
        """Hold ``choice`` to ``options`` for the body; yields False where that can never be.

        The same choice held twice is held to the intersection. On False the caller must not run the body's
        network part: there is no architecture in which it executes.
        """
        before = self._held.get(choice)
        held = options if before is None else before & options
        if not held:
            yield False
            return
        self._held[choice] = held
        try:
            yield True
        finally:
            if before is None:
                del self._held[choice]
            else:
                self._held[choice] = before

    def consult(self, choice: str, inputs: Sequence[Tensor]) -> None:
        """Note that a block reads ``choice`` here, and what it is called with."""
        shapes = tuple(tuple(x.shape) for x in inputs)
        self.recording.blocks.append(BlockUse(choice, self._condition(), shapes))

    def _condition(self) -> Condition:
        return tuple(sorted(self._held.items()))

    def _enter_op(self, path: str, op: Op, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        # An op inside an op is part of it: only the outermost has a row.
        if self._op_depth == 0:
            tensors = [value for value in inputs if isinstance(value, Tensor)]
            if len(tensors) != len(inputs) or named:
                kinds = ", ".join(
                    [
                        *(type(value).__name__ for value in inputs),
                        *(f"{name}={type(value).__name__}" for name, value in named.items()),
                    ]
                )
                raise SpaceError(
                    f"{op.spec} at {path} was called with ({kinds}); an op takes positional tensors only, "
                    "because its latency row is identified by their shapes. "
                    "Pass other values to its constructor."
                )
            shapes = tuple(tuple(value.shape) for value in tensors)
            key = OpKey(spec=op.spec, input_shapes=shapes)
            self.recording.ops.append(OpUse(key, self._condition(), path))
        self._op_depth += 1

    def _leave_op(self) -> None:
        self._op_depth -= 1


_ACTIVE: ContextVar[Recorder | None] = ContextVar("hwnas_recorder", default=None)


def active_recorder() -> Recorder | None:
    """The recorder of the pass in progress, or None outside of one. For authors of blocks."""
    return _ACTIVE.get()


def record(network: nn.Module, inputs: Sequence[Tensor]) -> Recording:
    """Run ``network`` once on ``inputs`` and list the ops it calls with their conditions.

    Works for a supernet (every alternative is visited) and for a derived network (every condition is empty).
    Put both on the meta device to record without computing. The network is left as it was found: its training
    flags are restored, and no statistics are updated.

    Args:
        network: any module; the ops in it are those that derive from :class:`hwnas.ops.Op`.
        inputs: positional tensors for ``network``, batch first.

    Raises:
        SpaceError: an op was called with something else than tensors, or a recording is under way already.
    """
    if _ACTIVE.get() is not None:
        raise SpaceError("a recording is under way already; recordings do not nest.")
    recorder = Recorder()
    training = {module: module.training for module in network.modules()}
    handles = []
    for path, module in network.named_modules():
        if isinstance(module, Op):

            def enter(op: nn.Module, args: tuple[Any, ...], named: dict[str, Any], path: str = path) -> None:
                assert isinstance(op, Op)
                recorder._enter_op(path, op, args, named)

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda *_: recorder._leave_op()))
    token = _ACTIVE.set(recorder)
    try:
        network.eval()
        with torch.no_grad():
            network(*inputs)
    finally:
        _ACTIVE.reset(token)
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return recorder.recording
