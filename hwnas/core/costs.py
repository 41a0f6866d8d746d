"""What a network costs beside milliseconds: parameters, multiply-accumulates, peak activation memory.

Each is read off the supernet's recording, so it holds for any space, and equals what is counted on the
derived network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwnas.core.choice import Block, Choice
from hwnas.core.derive import kept_under
from hwnas.core.expected import ExpectedCost, Terms
from hwnas.core.space import SearchSpace
from hwnas.errors import SpaceError
from hwnas.ops import OpKey, build_op
from hwnas.record import Condition, Recording, both, holds

MEBIBYTE = 2**20

_LARGEST_UNION = 4096  # terms that one shared parameter may take


def parameters(space: SearchSpace, choices: Sequence[Choice]) -> ExpectedCost:
    """The parameters of the derived network, as it is trained: batch norms with their scale and shift.

    By what derivation keeps, not by what runs: a parameter counts once, however often and under however many
    conditions its module is called, and one outside of any op counts too.

    Raises:
        SpaceError: a module is shared in more ways than can be counted.
    """
    owners: dict[int, tuple[int, dict[Condition, None]]] = {}
    for module, conditions in kept_under(space.skeleton()):
        if isinstance(module, Block):
            continue
        owned = {id(value): value.numel() for value in module._parameters.values() if value is not None}
        if isinstance(module, _BatchNorm) and not module.affine:
            owned[id(module)] = 2 * module.num_features
        for identity, count in owned.items():
            owners.setdefault(identity, (count, {}))[1].update(dict.fromkeys(conditions))
    terms = [
        (condition, sign * float(count))
        for count, conditions in owners.values()
        for condition, sign in any_of(conditions)
    ]
    return ExpectedCost(terms, choices)


def macs(space: SearchSpace, choices: Sequence[Choice]) -> ExpectedCost:
    """Multiply-accumulates of one inference on one sample: those of convolutions and matrix products.

    Each op is built from its key on the meta device and counted by torch's FlopCounterMode, which counts two
    operations for one of these and leaves out what has no products (pooling, resizing, adding).
    """
    return ExpectedCost([(use.condition, op_macs(use.key)) for use in space.record().charged()], choices)


def activation_mib(recording: Recording, bytes_per_value: int = 4) -> list[tuple[Condition, float]]:
    """The working set of each op use, in MiB: the inputs that it reads and its output; with its condition.

    A network's peak is the largest of those that run, a maximum and no sum. What is kept for later readers
    meanwhile, and what an op allocates inside of itself, is in no recording: the peak of a runtime is higher.
    """
    return [
        (use.condition, op_activations(use.key) * bytes_per_value / MEBIBYTE) for use in recording.charged()
    ]


def peak(uses: Terms, assignment: Mapping[str, int]) -> float:
    """The largest amount of those that hold; 0 where none does."""
    return max((amount for condition, amount in uses if holds(condition, assignment)), default=0.0)


@lru_cache(maxsize=4096)
def op_macs(key: OpKey) -> float:
    """Multiply-accumulates of one call of an op, by its key."""
    from torch.utils.flop_counter import FlopCounterMode

    op, inputs = _on_meta(key)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        op(*inputs)
    return float(counter.get_total_flops()) / 2


@lru_cache(maxsize=4096)
def op_activations(key: OpKey) -> int:
    """Numbers in an op's output and those of its inputs that it reads (not the shape alone), by its key."""
    op, inputs = _on_meta(key)
    with _Reads() as reads, torch.no_grad():
        output = op(*inputs)
    return int(output.numel() + sum(x.numel() for x in inputs if id(x) in reads.seen))


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Notes which tensors any operation is called on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.update(id(leaf) for leaf in tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


def _on_meta(key: OpKey) -> tuple[nn.Module, list[torch.Tensor]]:
    with torch.device("meta"):
        op = build_op(key.spec).eval()
        return op, [torch.empty(shape) for shape in key.input_shapes]


def any_of(conditions: Iterable[Condition]) -> list[tuple[Condition, int]]:
    """The indicator of "at least one of these holds" as a signed sum of conditions (inclusion and exclusion).

    Raises:
        SpaceError: the sum has too many terms.
    """
    # What another condition implies adds nothing; broad ones first, so that most of them go.
    kept: list[Condition] = []
    for condition in sorted(conditions, key=lambda condition: (len(condition), condition_key(condition))):
        if not any(both(condition, other) == condition for other in kept):
            kept.append(condition)
    signed: dict[Condition, int] = {}
    for condition in kept:
        # 1 − (1 − A)(1 − B) = A + B − AB
        added = {condition: 1}
        for other, sign in signed.items():
            together = both(condition, other)
            if together is not None:
                added[together] = added.get(together, 0) - sign
        for term, sign in added.items():
            signed[term] = signed.get(term, 0) + sign
        signed = {term: sign for term, sign in signed.items() if sign}
        if len(signed) > _LARGEST_UNION:
            raise SpaceError(
                f"a module is used under {len(kept)} conditions that overlap in too many ways for its "
                "parameters to be counted: leave max_params out, or share less."
            )
    return list(signed.items())


def condition_key(condition: Condition) -> list[tuple[str, int, list[int]]]:
    """An order of conditions: by names, broad ones first."""
    return [(name, -len(options), sorted(options)) for name, options in condition]
