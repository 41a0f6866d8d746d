"""Recording: which ops a network runs, and under which decisions each of them runs.

A supernet is ordinary PyTorch. While a recording is active, its blocks run every alternative once (on meta
tensors, so nothing is computed) inside :meth:`Recorder.under`, and each op that is called is noted with the
decisions that then hold: its *condition*. From that, for an assignment Z of probabilities to options,

    latency(Z) = Σ over op uses of t(key) · Π over the choices in its condition of Σ over its options of Z,

which is the exact expectation for independent choices, and the additive latency of one network at one-hot.

What is computed outside of any op is noted too. It has no latency row, so nothing could charge for it: costs
cannot be told of a recording that has any (:meth:`Recording.charged`). Views, what is made of constants and
parameters alone, and what evaluation mode leaves out (dropout) compute nothing.

Limits. Conditions are lexical: an op that runs is charged even if a later block throws its output away.
Shapes must not depend on choices within one use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from hwnas.errors import SpaceError, listing
from hwnas.ops import Op, OpKey

Work: TypeAlias = tuple[str, ...]
"""What an op has torch compute, in order: each function, with the shapes and whole numbers that it is given.

Not with other numbers, nor with vectors: an affine batch norm takes as long as a plain one. Views compute
nothing.
"""

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
    work: Work = ()


@dataclass(frozen=True)
class Uncharged:
    """A function of torch that a module calls outside of any op: no latency row charges for it."""

    function: str
    module: str
    """Class of the innermost module around it."""
    path: str
    condition: Condition

    def __str__(self) -> str:
        where = f"{self.path} ({self.module})" if self.path else self.module
        choices = ", ".join(f'"{name}"' for name, _ in self.condition)
        return f"{where}: {self.function}" + (f", under the choice {choices}" if choices else "")


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
    uncharged: list[Uncharged] = field(default_factory=list)
    """What is computed outside of any op, each once."""

    def charged(self) -> list[OpUse]:
        """Every op use, as what costs are summed over: nothing else is computed.

        Raises:
            SpaceError: something is computed outside of any op.
        """
        if self.uncharged:
            raise SpaceError(
                "what is computed outside of any op is in no cost: it has no latency row, and would take 0 "
                f"ms in every prediction:\n{listing(map(str, self.uncharged))}\n"
                "Make an op of it, a subclass of hwnas.Op under @hwnas.register_op (docs/new-space.md), or "
                "use one that is there: hwnas.Add, Concat, Conv, PoolLinear, Resize."
            )
        return self.ops

    def keys(self) -> list[OpKey]:
        """Each distinct op key once, in order of first use: the rows a table must have.

        Raises:
            SpaceError: something is computed outside of any op.
        """
        return list(dict.fromkeys(use.key for use in self.charged()))

    def count(self, assignment: Mapping[str, int]) -> Counter[OpKey]:
        """How often each op key runs in the network that a one-hot assignment (name → index) selects.

        Raises:
            SpaceError: something is computed outside of any op.
        """
        return Counter(use.key for use in self.charged() if holds(use.condition, assignment))

    def live_choices(self, assignment: Mapping[str, int]) -> list[str]:
        """Names of the choices that matter under ``assignment``, in order of first use.

        A choice whose every block is cut away (a cell behind the exit of its hyper-cell) is not among them.
        """
        return list(dict.fromkeys(use.choice for use in self.blocks if holds(use.condition, assignment)))


class Recorder:
    """The pass in progress: blocks tell it which decisions hold, ops are noted under them."""

    def __init__(self, network: nn.Module) -> None:
        self.recording = Recording()
        self._held: dict[str, frozenset[int]] = {}
        self._around: list[tuple[str, nn.Module]] = [("", network)]
        self._op_depth = 0
        self._work: list[str] = []

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

    def _enter(
        self, path: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._around.append((path, module))
        if not isinstance(module, Op):
            return inputs, named
        # An op inside an op is part of it: only the outermost has a row.
        self._op_depth += 1
        if self._op_depth == 1:
            if named or not all(isinstance(value, Tensor) for value in inputs):
                kinds = ", ".join(
                    [
                        *(type(value).__name__ for value in inputs),
                        *(f"{name}={type(value).__name__}" for name, value in named.items()),
                    ]
                )
                raise SpaceError(
                    f"{module.spec} at {path} was called with ({kinds}); an op takes positional tensors "
                    "only, because its latency row is identified by their shapes. "
                    "Pass other values to its constructor."
                )
            # In one memory order, as it is timed: what torch does goes by that too, and a key does not tell.
            inputs = tuple(value.contiguous() for value in inputs)
            self._work = []
        return inputs, named

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        path, _ = self._around.pop()
        if not isinstance(module, Op):
            return
        self._op_depth -= 1
        if self._op_depth == 0:
            key = OpKey(spec=module.spec, input_shapes=tuple(tuple(value.shape) for value in inputs))
            self.recording.ops.append(OpUse(key, self._condition(), path, tuple(self._work)))

    def _note(self, function: str, given: Iterable[Any]) -> None:
        if self._op_depth > 0:
            self._work.append(f"{function}({', '.join(_told(given))})")
            return
        path, module = self._around[-1]
        found = Uncharged(function, type(module).__name__, path, self._condition())
        if found not in self.recording.uncharged:
            self.recording.uncharged.append(found)


class _Computed(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Tells a recorder of each function of torch that computes something of the network's inputs.

    What is computed of constants and parameters alone is a constant too, which a runtime folds.
    """

    def __init__(self, recorder: Recorder, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self._derived: MutableMapping[Tensor, None] = WeakTensorKeyDictionary()
        self._derive(inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = (*args, *kwargs.values())
        reads = not _is_constant(func) and any(tensor in self._derived for tensor in _tensors(given))
        if reads and not _is_free(func):
            self.recorder._note(func.overloadpacket.__name__, given)
        found = func(*args, **kwargs)
        if reads:
            self._derive((found,))
        return found

    def _derive(self, values: Iterable[Any]) -> None:
        for tensor in _tensors(values):
            self._derived[tensor] = None


@cache
def _is_constant(func: Any) -> bool:
    """Whether a function reads no more of a tensor than its shape."""
    name: str = func.overloadpacket.__name__
    return name.endswith("_like") or name.startswith("new_")


_FREE = ("_assert_async", "_local_scalar_dense", "_unsafe_view")
"""Functions that compute nothing, though their schema does not tell."""


@cache
def _is_free(func: Any) -> bool:
    """Whether a function computes nothing: a view."""
    returns = func._schema.returns
    is_view = bool(returns) and all(
        returned.alias_info is not None and not returned.alias_info.is_write for returned in returns
    )
    return is_view or func.overloadpacket.__name__ in _FREE


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _told(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Tensor):
            if value.dim() > 1:
                yield "x".join(map(str, value.shape))
        elif isinstance(value, int):
            yield str(value)
        elif isinstance(value, (list, tuple)):
            yield from _told(value)


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
    recorder = Recorder(network)
    training = {module: module.training for module in network.modules()}
    handles = []
    for path, module in _hooked(network):
        handles.append(module.register_forward_pre_hook(partial(recorder._enter, path), with_kwargs=True))
        handles.append(
            module.register_forward_hook(lambda module, inputs, _: recorder._leave(module, inputs))
        )
    token = _ACTIVE.set(recorder)
    try:
        network.eval()
        with torch.no_grad(), _Computed(recorder, inputs):
            network(*inputs)
    finally:
        _ACTIVE.reset(token)
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return recorder.recording


def _hooked(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module but what ops are made of, which is most of them and asks nothing of a recorder."""
    within = {id(part) for op in network.modules() if isinstance(op, Op) for part in op.modules()}
    for path, module in network.named_modules():
        if isinstance(module, Op) or id(module) not in within:
            yield path, module
