"""The soft mixture of a search step as one writes it in plain PyTorch, for benchmarks/search_cost.py.

Mixed layers that hold their candidates and sum them by their weights, and nothing of hwnas's blocks, draws or
steps. The candidates are the supernet's own modules, so that the same convolutions run in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hwnas.core.choice import ChoiceBlock, DepthBlock


class MixedLayer(nn.Module):
    """``Σ w_k · candidate_k(x)``."""

    def __init__(self, candidates: nn.ModuleList, name: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.candidates = candidates
        self.name = name
        self.weights = weights

    def forward(self, *x: Tensor) -> Tensor:
        """Sum all candidates."""
        weights = self.weights[self.name]
        return sum(w * candidate(*x) for w, candidate in zip(weights, self.candidates, strict=True))


class MixedDepth(nn.Module):
    """``Σ w_i · exit_i(s_i)``, ``s_i = step_i(s_{i-1})``."""

    def __init__(
        self, steps: nn.ModuleList, exits: nn.ModuleList, plain: list[bool], name: str, weights: dict
    ) -> None:
        super().__init__()
        self.steps, self.exits, self.plain = steps, exits, plain
        self.name = name
        self.weights = weights

    def forward(self, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run all steps, and sum what leaves them."""
        outputs = []
        for step, leave, is_plain in zip(self.steps, self.exits, self.plain, strict=True):
            state = step(*state)
            left = state if is_plain else leave(*state)
            outputs.append(left if isinstance(left, tuple) else (left,))
        weights = self.weights[self.name]
        mixed = tuple(
            sum(w * output for w, output in zip(weights, column, strict=True))
            for column in zip(*outputs, strict=True)
        )
        return mixed[0] if len(mixed) == 1 else mixed


class DeepestOnly(nn.Module):
    """All steps, and the last exit."""

    def __init__(self, steps: nn.ModuleList, leave: nn.Module | None) -> None:
        super().__init__()
        self.steps, self.leave = steps, leave

    def forward(self, *state: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run all steps."""
        for step in self.steps:
            state = step(*state)
        return state if self.leave is None else self.leave(*state)


def replaced(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """``module``, in which what ``make`` gives for a module (inner ones first) takes its place."""
    for name, child in module.named_children():
        setattr(module, name, replaced(child, make))
    return make(module) or module


class Twin(nn.Module):
    """A supernet with its blocks replaced by plain mixed layers, and its architecture parameters.

    Args:
        supernet: taken apart.
    """

    def __init__(self, supernet: nn.Module) -> None:
        super().__init__()
        self.alphas = nn.ParameterDict()
        self.weights: dict[str, Tensor] = {}
        self.network = replaced(supernet, self._mixed)

    def _mixed(self, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, ChoiceBlock | DepthBlock):
            return None
        name = module.choice.name.replace(".", "_")
        if name not in self.alphas:
            self.alphas[name] = nn.Parameter(torch.zeros(len(module.choice.options)))
        if isinstance(module, ChoiceBlock):
            return MixedLayer(module.options, name, self.weights)
        plain = [module.exit_of(i) is None for i in range(len(module.steps))]
        return MixedDepth(module.steps, module.exits, plain, name, self.weights)

    def forward(self, x: Tensor, tau: float) -> Tensor:
        """Mix by one Gumbel-softmax sample of each choice."""
        for name, alpha in self.alphas.items():
            self.weights[name] = nn.functional.gumbel_softmax(alpha, tau=tau)
        return self.network(x)


def deepest(supernet: nn.Module, mixed: Callable[[ChoiceBlock], nn.Module]) -> nn.Module:
    """``supernet`` with all its cells, and ``mixed(block)`` for every choice of an op: for peers."""

    def make(module: nn.Module) -> nn.Module | None:
        if isinstance(module, ChoiceBlock):
            return mixed(module)
        if isinstance(module, DepthBlock):
            return DeepestOnly(module.steps, module.exit_of(len(module.steps) - 1))
        return None

    return replaced(supernet, make)
