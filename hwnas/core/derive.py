"""Derivation: folding a supernet by an assignment into the plain network that is trained and exported."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.core.choice import Block, ChoiceBlock, DepthBlock, InputBlock, State, run_steps, unpacked
from hwnas.errors import GenotypeError
from hwnas.record import Condition, both, holds


class Steps(nn.Module):
    """A folded :class:`DepthBlock`: the steps that remain, and the exit taken."""

    def __init__(self, steps: nn.ModuleList, leave: nn.Module | None) -> None:
        super().__init__()
        self.steps = steps
        self.leave = leave

    def forward(self, *state: Tensor) -> State:
        """Run all steps, then the exit."""
        state = run_steps(self.steps, state)
        if self.leave is None:
            return unpacked(state)
        output: State = self.leave(*state)
        return output


class Pick(nn.Module):
    """A folded :class:`InputBlock`: one of the inputs."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, *inputs: Tensor) -> Tensor:
        """The input that was chosen."""
        return inputs[self.index]


def derive(supernet: nn.Module, assignment: Mapping[str, int], *, affine: bool = True) -> nn.Module:
    """Fold every block of ``supernet`` by ``assignment``: a plain network with copies of the weights.

    The result computes what the supernet computes in eval mode under that one-hot assignment, holds none of
    the ops that were not chosen, and needs no hwnas to be traced, exported or trained.

    Args:
        supernet: left untouched.
        assignment: choice name → option index; choices in parts that are cut away may be missing.
        affine: give batch norms built without scale and shift theirs (ones and zeros, the same function), so
            that training can move them. The papers search without and retrain with.

    Raises:
        GenotypeError: a choice that matters is missing, or its index is out of range.
    """
    kept: set[int] = set()
    _keep(supernet, assignment, kept)
    # Copying is most of the work: what falls away is replaced by a placeholder in the copy.
    placeholder = nn.Identity()
    memo: dict[int, object] = {id(m): placeholder for m in supernet.modules() if id(m) not in kept}
    network = _fold(copy.deepcopy(supernet, memo), assignment, {})
    if affine:
        make_batchnorm_affine(network)
    return network


def make_batchnorm_affine(network: nn.Module) -> None:
    """Give every batch norm without scale and shift a scale of ones and a shift of zeros, in place."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and not module.affine:
            module.affine = True
            device = module.running_mean.device if module.running_mean is not None else None
            module.weight = nn.Parameter(torch.ones(module.num_features, device=device))
            module.bias = nn.Parameter(torch.zeros(module.num_features, device=device))


def kept_under(supernet: nn.Module) -> list[tuple[nn.Module, list[Condition]]]:
    """Every module that some derived network keeps, once, with the conditions of which one must be met.

    A module that is reached in several ways has several conditions.
    """
    found: dict[int, tuple[nn.Module, dict[Condition, None]]] = {}
    waiting: list[tuple[nn.Module, Condition]] = [(supernet, ())]
    while waiting:
        module, condition = waiting.pop()
        conditions = found.setdefault(id(module), (module, {}))[1]
        if condition in conditions:
            continue
        conditions[condition] = None
        for child, held in _children(module):
            together = both(condition, held)
            if together is not None:
                waiting.append((child, together))
    return [(module, list(conditions)) for module, conditions in found.values()]


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, Condition]]:
    """The modules inside of ``module``, and the condition on its own choice under which each is kept."""
    if isinstance(module, ChoiceBlock):
        name = module.choice.name
        yield from ((option, ((name, frozenset({k})),)) for k, option in enumerate(module.options))
    elif isinstance(module, DepthBlock):
        name, count = module.choice.name, len(module.steps)
        yield from ((step, ((name, frozenset(range(i, count))),)) for i, step in enumerate(module.steps))
        yield from ((leave, ((name, frozenset({i})),)) for i, leave in enumerate(module.exits))
    else:
        yield from ((child, ()) for child in module.children())


def _keep(module: nn.Module, assignment: Mapping[str, int], kept: set[int]) -> None:
    """Collect the ids of the modules that ``assignment`` reaches."""
    if id(module) in kept:
        return
    kept.add(id(module))
    if isinstance(module, Block):
        _index(module, assignment)
    # The lists that hold a block's parts stay, whichever parts do.
    if isinstance(module, ChoiceBlock):
        kept.add(id(module.options))
    elif isinstance(module, DepthBlock):
        kept.update((id(module.steps), id(module.exits)))
    for child, condition in _children(module):
        if holds(condition, assignment):
            _keep(child, assignment, kept)


def _fold(module: nn.Module, assignment: Mapping[str, int], done: dict[int, nn.Module]) -> nn.Module:
    # A module used in two places is folded once, so that it stays shared.
    if id(module) in done:
        return done[id(module)]
    folded: nn.Module
    if isinstance(module, ChoiceBlock):
        folded = _fold(module.options[_index(module, assignment)], assignment, done)
    elif isinstance(module, DepthBlock):
        index = _index(module, assignment)
        steps = nn.ModuleList(_fold(step, assignment, done) for step in module.steps[: index + 1])
        leave = module.exit_of(index)
        folded = Steps(steps, None if leave is None else _fold(leave, assignment, done))
    elif isinstance(module, InputBlock):
        folded = Pick(_index(module, assignment))
    else:
        # Not named_children(): it leaves out the second name of a child that has two.
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = _fold(child, assignment, done)
        folded = module
    done[id(module)] = folded
    return folded


def _index(block: Block, assignment: Mapping[str, int]) -> int:
    choice = block.choice
    index = assignment.get(choice.name)
    if index is None:
        raise GenotypeError(f'the genotype decides nothing about "{choice.name}", which this network needs.')
    if not 0 <= index < len(choice.options):
        raise GenotypeError(
            f'choice "{choice.name}" has options 0 to {len(choice.options) - 1}, got {index}.'
        )
    return index
