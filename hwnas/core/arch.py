"""The architecture parameters of a supernet, and putting one draw of them into its blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from hwnas.core.choice import Assignment, Block, Choice, ChoiceKind, blocks, choices_of
from hwnas.core.relaxation import Draw, Relaxation, masked
from hwnas.errors import GenotypeError, InvalidInput


class ArchParameters(nn.Module):
    """All logits of a supernet (log α, log β), beside it: ``supernet.parameters()`` are weights only.

    The logits of each kind of choice are one padded matrix, so that a kind can be frozen or given an
    optimiser setting of its own. All matrices together are :attr:`logits`, ``[choices, options]``, with
    :attr:`alive` marking the options that exist and have not been pruned. Logits begin at zero: every option
    equally likely.

    Args:
        supernet: a module with blocks in it, or its choices.
    """

    alive: Tensor

    def __init__(self, supernet: nn.Module | Iterable[Choice]) -> None:
        super().__init__()
        found = choices_of(supernet).values() if isinstance(supernet, nn.Module) else supernet
        kinds: dict[ChoiceKind, list[Choice]] = {}
        for choice in found:
            kinds.setdefault(choice.kind, []).append(choice)
        self.choices: tuple[Choice, ...] = tuple(choice for group in kinds.values() for choice in group)
        self.rows = {choice.name: row for row, choice in enumerate(self.choices)}
        width = max(len(choice.options) for choice in self.choices)
        # One by one: given a dict, ParameterDict sorts it, and rows would no longer be those of the choices.
        self.matrices = nn.ParameterDict()
        for kind, group in kinds.items():
            self.matrices[kind] = nn.Parameter(torch.zeros(len(group), width))
        alive = torch.zeros(len(self.choices), width, dtype=torch.bool)
        for row, choice in enumerate(self.choices):
            alive[row, : len(choice.options)] = True
        self.register_buffer("alive", alive)
        self._alive_options: tuple[Tensor, int, list[tuple[int, ...]]] | None = None

    @property
    def logits(self) -> Tensor:
        """The log α of every choice, shape ``[choices, options]``; padding has no meaning."""
        return torch.cat(list(self.matrices.values()))

    def alive_options(self) -> list[tuple[int, ...]]:
        """The live options of each choice, by :attr:`alive`, which is read only where it has changed."""
        known = self._alive_options
        if known is None or known[0] is not self.alive or known[1] != self.alive._version:
            rows = [tuple(k for k, live in enumerate(row) if live) for row in self.alive.tolist()]
            self._alive_options = known = (self.alive, self.alive._version, rows)
        return known[2]

    def probabilities(self) -> Tensor:
        """The softmax of the logits over the live options, shape ``[choices, options]``, differentiable."""
        return torch.softmax(masked(self.logits, self.alive), dim=-1)

    def entropy(self) -> Tensor:
        """The sum over choices of the entropy of their probabilities, in nats; a differentiable scalar."""
        log_p = torch.log_softmax(masked(self.logits, self.alive), dim=-1)
        # Dead options have p = 0 and log p = −∞; their gradient must not become NaN.
        return -(log_p.exp() * log_p.masked_fill(~self.alive, 0.0)).sum()

    def draw(
        self,
        relaxation: Relaxation,
        temperature: float,
        generator: torch.Generator | None = None,
        *,
        uniform: bool = False,
    ) -> Draw:
        """One assignment of all choices; one synchronisation with the device, however many they are.

        With ``uniform`` every live option is as likely as another, whatever the logits.
        """
        logits = torch.zeros_like(self.logits) if uniform else self.logits
        return relaxation.draw(logits, self.alive, temperature, generator)

    def argmax(self) -> dict[str, int]:
        """The most likely live option of every choice, by name; the first of equals."""
        best = masked(self.logits.detach(), self.alive).argmax(dim=-1).tolist()
        return {choice.name: index for choice, index in zip(self.choices, best, strict=True)}

    def moves(self) -> bool:
        """Whether any of the logits is trained now."""
        return any(matrix.requires_grad for matrix in self.parameters())

    def one_hot(self, assignment: Mapping[str, int]) -> Draw:
        """A draw that is exactly ``assignment`` (choice name → option index), with no gradient.

        Choices left out take their first option: they must not matter.

        Raises:
            InvalidInput: an index out of range, or a choice that does not exist.
        """
        unknown = set(assignment) - set(self.rows)
        if unknown:
            raise InvalidInput(
                f"no such choice: {', '.join(sorted(unknown))}. Known: {', '.join(self.rows)}."
            )
        index = []
        for choice in self.choices:
            option = assignment.get(choice.name, 0)
            if not 0 <= option < len(choice.options):
                raise InvalidInput(
                    f'choice "{choice.name}" has options 0 to {len(choice.options) - 1}, got {option}.'
                )
            index.append(option)
        rows = torch.arange(len(index))
        weights = torch.zeros(self.alive.shape, device=self.alive.device)
        weights[rows, torch.tensor(index)] = 1.0
        return Draw(weights, tuple(index))

    def set_logits(self, logits: Mapping[str, Iterable[float]]) -> None:
        """Overwrite the logits of the choices named, for starting a search from a prior.

        Raises:
            InvalidInput: an unknown choice, or a wrong number of values.
        """
        unknown = set(logits) - set(self.rows)
        if unknown:
            raise InvalidInput(
                f"no such choice: {', '.join(sorted(unknown))}. Known: {', '.join(self.rows)}."
            )
        offset = 0
        with torch.no_grad():
            for matrix in self.matrices.values():
                for row in range(len(matrix)):
                    choice = self.choices[offset + row]
                    if choice.name in logits:
                        values = torch.tensor(list(logits[choice.name]), dtype=matrix.dtype)
                        if len(values) != len(choice.options):
                            raise InvalidInput(
                                f'choice "{choice.name}" has {len(choice.options)} options, '
                                f"got {len(values)} logits."
                            )
                        matrix[row, : len(values)] = values
                offset += len(matrix)

    def shift(self, by: Tensor) -> None:
        """Add ``by`` ``[choices, options]`` to the logits, in place and without a gradient."""
        with torch.no_grad():
            sizes = [len(matrix) for matrix in self.matrices.values()]
            for matrix, part in zip(self.matrices.values(), torch.split(by, sizes), strict=True):
                matrix += part

    def by_name(self, values: Tensor) -> dict[str, list[float]]:
        """A matrix ``[choices, options]`` as lists by choice name, padding cut off; for logs."""
        rows = values.detach().cpu().tolist()
        return {
            choice.name: row[: len(choice.options)] for choice, row in zip(self.choices, rows, strict=True)
        }

    def extra_repr(self) -> str:
        """Number of choices and options, for printing."""
        return f"choices={len(self.choices)}, options={int(self.alive.sum())}"


@contextmanager
def assigned(
    supernet: nn.Module, arch: ArchParameters, draw: Draw, *, gradient: bool = True
) -> Iterator[None]:
    """Give every block of ``supernet`` its share of ``draw`` for the body, and take it away again.

    Blocks are looked up when a supernet is first seen here; one that it gets later is not found.

    Args:
        supernet: the module whose blocks read the draw.
        arch: the parameters that the draw came from (they know which row is whose).
        draw: one assignment.
        gradient: whether block outputs are multiplied by their weights, so that gradients reach the logits.
            False saves that work in evaluation; it needs a drawn index.

    Raises:
        GenotypeError: a block's choice is not among ``arch``'s.
    """
    # One scalar for each option, whatever blocks share it, from one operation: selecting them one by one
    # would cost a zero-filled matrix each in back-propagation.
    index = draw.index
    scalars = draw.weights.flatten().unbind() if gradient or index is None else ()
    width = draw.weights.shape[1]
    shares = [
        Assignment(
            scalars[row * width : (row + 1) * width] if scalars else None,
            None if index is None else index[row],
            alive,
        )
        for row, alive in enumerate(arch.alive_options())
    ]
    found = _blocks_once(supernet)
    try:
        for block in found:
            row = arch.rows.get(block.choice.name)
            if row is None:
                raise GenotypeError(
                    f'the supernet has the choice "{block.choice.name}", the architecture parameters do not: '
                    "they were made for another supernet."
                )
            block.assign(shares[row])
        yield
    finally:
        for block in found:
            block.assign(None)


_BLOCKS: WeakKeyDictionary[nn.Module, list[ref[Block]]] = WeakKeyDictionary()


def _blocks_once(supernet: nn.Module) -> list[Block]:
    """The blocks of a supernet, remembered: looking through all its modules takes a part of a hard step."""
    if supernet not in _BLOCKS:
        _BLOCKS[supernet] = [ref(block) for block in blocks(supernet)]
    return [block for known in _BLOCKS[supernet] if (block := known()) is not None]


def depth_summary(arch: ArchParameters) -> dict[str, dict[str, float]]:
    """For each depth choice the argmax and the expected number of steps (Figure 5 of the AutoRTNet paper)."""
    probabilities = arch.by_name(arch.probabilities())
    best = arch.argmax()
    summary: dict[str, dict[str, float]] = {}
    for choice in arch.choices:
        if choice.kind == "depth":
            row: list[Any] = probabilities[choice.name]
            expected = sum((steps + 1) * p for steps, p in enumerate(row))
            summary[choice.name] = {"argmax": best[choice.name] + 1, "expected": expected}
    return summary
