"""A cell: a graph of two inputs and some nodes, with a choice of op on every edge."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwnas import Add, Choice, ChoiceBlock, Concat, Conv
from hwnas.search_spaces.autortnet.ops import CELL_OPS


def edges(nodes: int) -> list[tuple[int, int]]:
    """The edges ``(source, target)`` of a cell: each node reads both inputs (0, 1) and all nodes before it.

    Two nodes give five edges: 0→2, 1→2, 0→3, 1→3, 2→3.
    """
    return [(source, target) for target in range(2, 2 + nodes) for source in range(target)]


def edge_choices(prefix: str, nodes: int, ops: Sequence[str]) -> list[Choice]:
    """One choice among ``ops`` for each edge of a cell, named ``<prefix>.e<source>-<target>``."""
    options = tuple(ops)
    return [Choice(name=f"{prefix}.e{source}-{target}", options=options) for source, target in edges(nodes)]


class Cell(nn.Module):
    """A cell (Section 3.1): nodes ``x_j = Σ_{i<j} Σ_k Z^k_ij · O^k_ij(x_i)``, concatenated.

    Both inputs are first brought to the node width by a 1×1 convolution, the older one to the younger one's
    resolution as well. In a reduction cell the edges from the inputs have stride 2.

    Args:
        c_in: channels of the older and of the younger input.
        width: channels of a node; the output has ``nodes · width``.
        choices: one for each edge, in the order of :func:`edges`.
        older_stride: 2 where the older input is twice as large as the younger one, else 1.
        reduction: whether the cell halves height and width.
    """

    def __init__(
        self,
        c_in: tuple[int, int],
        width: int,
        choices: Sequence[Choice],
        *,
        nodes: int,
        older_stride: int,
        reduction: bool,
    ) -> None:
        super().__init__()
        self.older = Conv(c_in[0], width, kernel=1, stride=older_stride)
        self.younger = Conv(c_in[1], width, kernel=1)
        self.pairs = edges(nodes)
        blocks: list[nn.Module] = []
        for (source, _), choice in zip(self.pairs, choices, strict=True):
            stride = 2 if reduction and source < 2 else 1
            blocks.append(
                ChoiceBlock(choice, {name: CELL_OPS[name](width, stride) for name in choice.options})
            )
        self.edges = nn.ModuleList(blocks)
        self.add = nn.ModuleList(Add() for _ in range(nodes))
        self.concat = Concat()

    def forward(self, older_NCHW: Tensor, younger_NCHW: Tensor) -> Tensor:
        """The cell's output from the outputs of the two cells before it."""
        states = [self.older(older_NCHW), self.younger(younger_NCHW)]
        for node, add in enumerate(self.add):
            arriving = [
                edge(states[source])
                for (source, target), edge in zip(self.pairs, self.edges, strict=True)
                if target == node + 2
            ]
            states.append(add(*arriving))
        result: Tensor = self.concat(*states[2:])
        return result
