"""The aggregation cell: features of three resolutions brought together by searched ops."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hwnas import Add, Choice, ChoiceBlock, Concat, Conv, Resize, SpaceError
from hwnas.search_spaces.autortnet.ops import AGGREGATION_OPS


class Wiring(BaseModel):
    """The graph of an aggregation cell, as data.

    A node's level says at which hyper-cell's resolution it lies (1, 2 or 3). An edge to the same level has
    stride 1, one to the next level stride 2, and one to an earlier level is followed by a bilinear resize.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    """One line that says what it is."""
    levels: dict[str, int]
    """Level of each node; the inputs ``x1``, ``x2``, ``x3`` lie at 1, 2, 3."""
    edges: tuple[tuple[str, str], ...]
    """``(source, target)``, every source computed before it is read."""
    outputs: tuple[str, ...]
    """Nodes that are concatenated, each resized to ``output_level`` where it lies elsewhere."""
    output_level: int
    """Level of the cell's output."""


WIRINGS: dict[str, Wiring] = {
    "paper": Wiring(
        about="all edges keep or halve the resolution; ends at the third hyper-cell's",
        levels={"x1": 1, "x2": 2, "x3": 3, "m": 2, "y1": 3, "y2": 3, "y3": 3},
        edges=(("x1", "m"), ("x2", "m"), ("m", "y1"), ("x2", "y2"), ("m", "y2"), ("x3", "y2"), ("x3", "y3")),
        outputs=("y1", "y2", "y3"),
        output_level=3,
    ),
    "upsample": Wiring(
        about="deep features go back up; ends at the first hyper-cell's resolution, for thin classes",
        levels={"x1": 1, "x2": 2, "x3": 3, "m": 2, "y1": 1, "y2": 2, "y3": 3},
        edges=(("x3", "m"), ("x2", "m"), ("m", "y1"), ("x1", "y1"), ("m", "y2"), ("x2", "y2"), ("x3", "y3")),
        outputs=("y1", "y2", "y3"),
        output_level=1,
    ),
}
"""Seven nodes and seven edges each. The figure is lost: "paper" meets every fact that the text states."""


class AggregationCell(nn.Module):
    """The aggregation cell (Section 3.3): each node the sum of its edges' ops, the output a concatenation.

    The inputs are first brought to a common width by 1×1 convolutions. Its choices bear no latency penalty,
    as in the paper; its milliseconds count in every prediction.

    Args:
        c_in: channels of the three hyper-cells' outputs.
        width: channels of a node.
        wiring: the graph.
        ops: names of the candidates on each edge.

    Raises:
        SpaceError: an edge would have to skip a level downwards.
    """

    def __init__(self, c_in: Sequence[int], width: int, wiring: Wiring, ops: Sequence[str]) -> None:
        super().__init__()
        self.wiring = wiring
        self.project = nn.ModuleList(Conv(channels, width, kernel=1) for channels in c_in)
        blocks: list[nn.Module] = []
        for source, target in wiring.edges:
            down = wiring.levels[target] - wiring.levels[source]
            if down > 1:
                raise SpaceError(
                    f"edge {source}→{target} goes down {down} levels; an op halves the size at most once."
                )
            stride = 2 if down == 1 else 1
            choice = Choice(name=f"agg.{source}-{target}", options=tuple(ops), penalised=False)
            options = {name: AGGREGATION_OPS[name](width, stride) for name in ops}
            blocks.append(ChoiceBlock(choice, options))
        self.edges = nn.ModuleList(blocks)
        targets = [node for node in wiring.levels if sum(target == node for _, target in wiring.edges) > 1]
        self.add = nn.ModuleDict({node: Add() for node in targets})
        self.resize = Resize()
        self.concat = Concat()

    def forward(self, *xs_NCHW: Tensor) -> Tensor:
        """Aggregate the three outputs into ``(N, outputs · width, H_level, W_level)``."""
        levels = self.wiring.levels
        states = {
            f"x{i + 1}": project(x) for i, (project, x) in enumerate(zip(self.project, xs_NCHW, strict=True))
        }
        at_level = {levels[name]: state for name, state in states.items()}
        for node in (name for name in levels if name not in states):
            arriving = []
            for (source, target), edge in zip(self.wiring.edges, self.edges, strict=True):
                if target == node:
                    value = edge(states[source])
                    up = levels[target] < levels[source]
                    arriving.append(self.resize(value, at_level[levels[target]]) if up else value)
            states[node] = self.add[node](*arriving) if len(arriving) > 1 else arriving[0]
        goal = self.wiring.output_level
        outputs = [
            states[node] if levels[node] == goal else self.resize(states[node], at_level[goal])
            for node in self.wiring.outputs
        ]
        result: Tensor = self.concat(*outputs)
        return result
