"""Choices, and the blocks that read them: the only modules of a supernet that know of decisions.

A :class:`Choice` is a categorical architecture variable. Blocks that name the same choice share its decision.
Before a supernet is called, :func:`hwnas.core.arch.assigned` hands every block its share of one draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from hwnas.core.mixing import straight_through, weighted_sum
from hwnas.core.recompute import recomputed
from hwnas.errors import SpaceError
from hwnas.record import Recorder, active_recorder

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""What flows between modules: a tensor, or a tuple of them."""

ChoiceKind = Literal["op", "depth", "input"]


class Choice(BaseModel):
    """A categorical architecture variable: a name and its options. Frozen, hashable, plain data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Unique in a supernet; dots group it: ``"h1.normal.e3"``."""
    options: tuple[str, ...]
    """Names of the options, at least one, all different."""
    kind: ChoiceKind = "op"
    """What is decided: an op, a depth, or an input. Search may treat kinds differently (freeze, prune)."""
    penalised: bool = True
    """Whether the latency penalty may move this choice. Its milliseconds count in every prediction anyway."""

    @field_validator("options")
    @classmethod
    def _distinct(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        if not options or len(set(options)) != len(options):
            raise ValueError(f"a choice needs at least one option and no two alike, got {options}")
        return options


@dataclass(frozen=True)
class Assignment:
    """One block's share of a draw.

    ``weights`` is the row Z of its choice, one scalar an option, or None where no gradient is wanted;
    ``index`` is the drawn option, or None for a soft mixture over the ``alive`` options.
    """

    weights: Sequence[Tensor] | Tensor | None
    index: int | None
    alive: tuple[int, ...]


class Block(nn.Module):
    """Base of the blocks: holds a choice, and the assignment of the step in progress."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.choice = choice
        self._assignment: Assignment | None = None

    def assign(self, assignment: Assignment | None) -> None:
        """Take over (or, with None, forget) this block's share of a draw."""
        self._assignment = assignment

    @property
    def assignment(self) -> Assignment:
        """The share of the draw in force.

        Raises:
            SpaceError: the supernet was called outside of ``assigned(...)``.
        """
        if self._assignment is None:
            raise SpaceError(
                f'the supernet was called, but choice "{self.choice.name}" has no assignment. '
                "Call it inside `with assigned(supernet, arch, draw):`, or derive a network with "
                "space.build(genotype)."
            )
        return self._assignment

    def extra_repr(self) -> str:
        """Name of the choice, for printing."""
        return self.choice.name


class ChoiceBlock(Block):
    """One of several modules: ``y = Σ_k Z^k · O^k(x)`` (Eq. 2 of the AutoRTNet paper).

    With a drawn index only that option is computed; its output is multiplied by its straight-through weight,
    which is exactly 1 and carries the gradient. With a soft assignment all live options are computed and
    mixed.

    Args:
        choice: the architecture variable.
        options: one module for each option of ``choice``, by name. All take the same inputs and give outputs
            of one shape.

    Raises:
        SpaceError: the names differ from those of the choice.
    """

    def __init__(self, choice: Choice, options: Mapping[str, nn.Module]) -> None:
        super().__init__(choice)
        if tuple(options) != choice.options:
            raise SpaceError(
                f'choice "{choice.name}" has the options {choice.options}, its block got {tuple(options)}; '
                "they must agree in name and order."
            )
        self.options = nn.ModuleList(options.values())
        self.recomputes = False
        """Whether activations are computed again in back-propagation; :func:`recompute` sets it."""

    def forward(self, *inputs: Tensor) -> State:
        """Run the drawn option, or the mixture of all live ones."""
        recorder = active_recorder()
        if recorder is not None:
            return self._record(recorder, inputs)
        given = self.assignment
        if self.recomputes:
            ops = [self.options[k] for k in (given.alive if given.index is None else (given.index,))]
            return recomputed(partial(self._run, given), ops, inputs)
        return self._run(given, *inputs)

    def _run(self, given: Assignment, *inputs: Tensor) -> State:
        if given.index is not None:
            return _scaled(self.options[given.index](*inputs), given, given.index)
        return _mixed([(k, self.options[k](*inputs)) for k in given.alive], given)

    def _record(self, recorder: Recorder, inputs: tuple[Tensor, ...]) -> State:
        recorder.consult(self.choice.name, inputs)
        outputs: dict[str, State] = {}
        for k, (name, option) in enumerate(zip(self.choice.options, self.options, strict=True)):
            with recorder.under(self.choice.name, frozenset({k})) as possible:
                if possible:
                    outputs[name] = option(*inputs)
        return _agreeing(self.choice, outputs)


class DepthBlock(Block):
    """How many of these steps run: ``y = Σ_i Z^i · exit_i(s_i)``, ``s_i = step_i(s_{i-1})`` (Eq. 5).

    Option ``i`` of the choice means that the first ``i + 1`` steps run. With a drawn index the steps behind
    the exit are not computed; with a soft assignment all up to the last live exit are.

    Args:
        choice: the architecture variable, of kind ``"depth"``.
        steps: modules applied in order; each takes the state (unpacked) and returns the next one.
        exits: for each step the module that turns its state into the block's output; None where the state
            itself is the output. Outputs of all exits have one shape. Default: no exits.

    Raises:
        SpaceError: the number of steps or exits differs from the number of options.
    """

    def __init__(
        self,
        choice: Choice,
        steps: Sequence[nn.Module],
        exits: Sequence[nn.Module | None] | None = None,
    ) -> None:
        super().__init__(choice)
        exits = [None] * len(steps) if exits is None else exits
        if not len(steps) == len(exits) == len(choice.options):
            raise SpaceError(
                f'choice "{choice.name}" has {len(choice.options)} options, '
                f"its block got {len(steps)} steps and {len(exits)} exits; the three numbers must be equal."
            )
        self.steps = nn.ModuleList(steps)
        self.exits = nn.ModuleList(nn.Identity() if leave is None else leave for leave in exits)
        self._plain = tuple(leave is None for leave in exits)

    def forward(self, *state: Tensor) -> State:
        """Run to the drawn exit, or mix all live exits."""
        recorder = active_recorder()
        if recorder is not None:
            return self._record(recorder, state)
        given = self.assignment
        if given.index is not None:
            reached = run_steps(self.steps[: given.index + 1], state)
            return _scaled(self._leave(given.index, reached), given, given.index)
        outputs: list[tuple[int, State]] = []
        for i in range(max(given.alive) + 1):
            state = run_steps(self.steps[i : i + 1], state)
            if i in given.alive:
                outputs.append((i, self._leave(i, state)))
        return _mixed(outputs, given)

    def exit_of(self, index: int) -> nn.Module | None:
        """The exit module of option ``index``, or None where the state itself leaves."""
        return None if self._plain[index] else self.exits[index]

    def _leave(self, index: int, state: tuple[Tensor, ...]) -> State:
        leave = self.exit_of(index)
        output: State = leave(*state) if leave is not None else unpacked(state)
        return output

    def _record(self, recorder: Recorder, state: tuple[Tensor, ...]) -> State:
        recorder.consult(self.choice.name, state)
        outputs: dict[str, State] = {}
        count = len(self.steps)
        for i, name in enumerate(self.choice.options):
            with recorder.under(self.choice.name, frozenset(range(i, count))) as possible:
                if not possible:
                    break
                state = run_steps(self.steps[i : i + 1], state)
            with recorder.under(self.choice.name, frozenset({i})) as possible:
                if possible:
                    outputs[name] = self._leave(i, state)
        return _agreeing(self.choice, outputs)


class InputBlock(Block):
    """Which of several inputs goes on: ``y = Σ_k Z^k · x_k``. It holds no modules and costs no time.

    Limit: whatever computes the inputs runs, and is charged, whichever is chosen.
    """

    def forward(self, *inputs: Tensor) -> Tensor:
        """Pass on the drawn input, or the mixture of the live ones.

        Raises:
            SpaceError: the number of inputs differs from the number of options.
        """
        if len(inputs) != len(self.choice.options):
            raise SpaceError(
                f'choice "{self.choice.name}" has {len(self.choice.options)} options, '
                f"its block got {len(inputs)} inputs."
            )
        recorder = active_recorder()
        if recorder is not None:
            recorder.consult(self.choice.name, inputs)
            named: dict[str, State] = dict(zip(self.choice.options, inputs, strict=True))
            output = _agreeing(self.choice, named)
        else:
            given = self.assignment
            if given.index is not None:
                output = _scaled(inputs[given.index], given, given.index)
            else:
                output = _mixed([(k, inputs[k]) for k in given.alive], given)
        assert isinstance(output, Tensor)
        return output


def blocks(supernet: nn.Module) -> Iterator[Block]:
    """All blocks of a supernet, outer ones first, each once."""
    return (module for module in supernet.modules() if isinstance(module, Block))


def recompute(supernet: nn.Module) -> None:
    """Make the choices of ops keep their inputs alone, and compute all else again in back-propagation.

    Only those that hold no further blocks: these are gone from the draw when gradients are computed.
    """
    for block in blocks(supernet):
        if isinstance(block, ChoiceBlock):
            block.recomputes = not any(isinstance(module, Block) for module in block.options.modules())


def choices_of(supernet: nn.Module) -> dict[str, Choice]:
    """The choices of a supernet by name, in order of first appearance.

    Raises:
        SpaceError: there are none, or two blocks give one name to different choices.
    """
    found: dict[str, Choice] = {}
    for block in blocks(supernet):
        known = found.setdefault(block.choice.name, block.choice)
        if known != block.choice:
            raise SpaceError(
                f'two blocks name the choice "{known.name}" but mean different ones: {known.options} '
                f"({known.kind}) and {block.choice.options} ({block.choice.kind})."
            )
    if not found:
        raise SpaceError("this supernet has no choice in it: there is nothing to search.")
    return found


def run_steps(steps: Sequence[nn.Module] | nn.ModuleList, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Pass ``state`` through ``steps`` in order, unpacking it for each."""
    for step in steps:
        output: State = step(*state)
        state = (output,) if isinstance(output, Tensor) else output
    return state


def unpacked(state: tuple[Tensor, ...]) -> State:
    """A one-tuple as its tensor; any other tuple as it is."""
    return state[0] if len(state) == 1 else state


def _scaled(output: State, given: Assignment, index: int) -> State:
    if given.weights is None:
        return output
    weight = given.weights[index]
    if isinstance(output, Tensor):
        return straight_through(output, weight)
    return tuple(straight_through(tensor, weight) for tensor in output)


def _mixed(outputs: Sequence[tuple[int, State]], given: Assignment) -> State:
    assert given.weights is not None
    weights = [given.weights[k] for k, _ in outputs]
    states = [output for _, output in outputs]
    if isinstance(states[0], Tensor):
        return weighted_sum([state for state in states if isinstance(state, Tensor)], weights)
    columns = zip(*(state for state in states if not isinstance(state, Tensor)), strict=True)
    return tuple(weighted_sum(column, weights) for column in columns)


def _shapes(state: State) -> tuple[torch.Size, ...]:
    return (state.shape,) if isinstance(state, Tensor) else tuple(tensor.shape for tensor in state)


def _agreeing(choice: Choice, outputs: Mapping[str, State]) -> State:
    if not outputs:
        raise SpaceError(f'choice "{choice.name}" is used where none of its options can hold.')
    shapes = {name: [tuple(shape) for shape in _shapes(output)] for name, output in outputs.items()}
    first = next(iter(shapes.values()))
    if any(shape != first for shape in shapes.values()):
        listed = "\n".join(f"  {name}: {shape}" for name, shape in shapes.items())
        raise SpaceError(f'the options of choice "{choice.name}" give outputs of different shapes:\n{listed}')
    return next(iter(outputs.values()))
