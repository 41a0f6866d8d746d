"""The found architecture as a picture: graphs of cells, an op on each edge (the paper's Figure 7)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.core.figures import figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EDGE = re.compile(r"(?P<graph>.+)\.e?(?P<source>\w+)-(?P<target>\w+)$")
"""A choice that sits on an edge: ``h1.normal.e0-2``, ``agg.x1-m``."""

_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c564b", "#7f3c8d", "#11733c",
    "#bcbd22", "#b2182b", "#4d4d4d", "#17becf", "#fb9a99", "#6a3d9a",
)  # fmt: skip

Edges = dict[tuple[str, str], str]


def graphs_of(choices: Mapping[str, str]) -> dict[str, Edges]:
    """The choices that sit on edges, by the graph they belong to: ``{graph: {(source, target): op}}``."""
    graphs: dict[str, Edges] = {}
    for name, option in choices.items():
        match = _EDGE.match(name)
        if match:
            graphs.setdefault(match["graph"], {})[match["source"], match["target"]] = option
    return graphs


def ranks(edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The column of each node: sources in the first, every other node one right of the last that it reads."""
    nodes = dict.fromkeys(node for edge in edges for node in edge)
    rank = dict.fromkeys(nodes, 0)
    # As often as there are nodes: no path has more edges. A circle, which no cell has, would end too.
    for _ in nodes:
        for source, target in edges:
            rank[target] = min(len(nodes), max(rank[target], rank[source] + 1))
    return rank


def architecture(choices: Mapping[str, str], depths: Mapping[str, int]) -> Figure:
    """Draw a genotype: a strip of cells for each depth, below it every graph with its ops as colours.

    Args:
        choices: choice → option of the genotype.
        depths: depth choice → the most cells there could have been.
    """
    graphs = graphs_of(choices)
    rest = [name for name in choices if not _EDGE.match(name) and name not in depths]
    ops = sorted(
        {op for edges in graphs.values() for op in edges.values()} | {choices[name] for name in rest}
    )
    colours = {op: "#b5b5b5" if op == "zero" else _COLOURS[k % len(_COLOURS)] for k, op in enumerate(ops)}
    columns = 4
    rows = -(-len(graphs) // columns)
    with styled():
        drawn = figure(9.6, 0.9 + 0.22 * len(depths) + 2.0 * rows + (0.25 * len(rest) if rest else 0))
        grid = drawn.add_gridspec(
            2 + rows,
            columns,
            height_ratios=[0.12 + 0.22 * max(1, len(depths)), *[2.0] * rows, 0.01 + 0.25 * len(rest)],
        )
        _strips(drawn.add_subplot(grid[0, :]), choices, depths)
        for index, (name, edges) in enumerate(graphs.items()):
            axes = drawn.add_subplot(grid[1 + index // columns, index % columns])
            _graph(axes, edges, colours)
            axes.set_title(f"{name}{_repeats(name, choices)}", fontsize=8, loc="left")
        last = drawn.add_subplot(grid[1 + rows, :])
        last.set_axis_off()
        for line, name in enumerate(rest):
            last.text(0, 1 - (line + 1) / max(1, len(rest)), f"{name}: {choices[name]}", fontsize=8)
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=colours[op], linewidth=2.5, linestyle=_line(op), label=op) for op in ops
        ]
        if handles:
            drawn.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7.5)
    return drawn


def _line(op: str) -> str:
    return ":" if op == "zero" else "-"


def _repeats(graph: str, choices: Mapping[str, str]) -> str:
    """How often a graph runs, where the genotype tells: the normal cell of a hyper-cell of 3 runs twice."""
    prefix, _, kind = graph.rpartition(".")
    depth = choices.get(f"{prefix}.depth", "")
    if not depth.isdigit() or kind not in ("normal", "reduction"):
        return ""
    return f"  × {int(depth) - 1 if kind == 'normal' else 1}"


def _strips(axes: Any, choices: Mapping[str, str], depths: Mapping[str, int]) -> None:
    from matplotlib.patches import Rectangle

    for row, (name, most) in enumerate(depths.items()):
        kept = int(choices[name]) if choices.get(name, "").isdigit() else 0
        for step in range(most):
            face = "white" if step >= kept else "#0072B2" if step == 0 else "#9ecae1"
            edge = "#cccccc" if step >= kept else "#33566b"
            axes.add_patch(Rectangle((step, -row), 0.85, 0.7, facecolor=face, edgecolor=edge, linewidth=0.8))
        axes.text(
            -0.15,
            -row + 0.35,
            f"{name} {choices.get(name, '')} of {most}",
            ha="right",
            va="center",
            fontsize=8,
        )
    longest = max(depths.values(), default=1)
    axes.set_xlim(-4, max(12, longest))
    axes.set_ylim(-max(0, len(depths) - 1) - 0.1, 0.8)
    axes.set_axis_off()


def _graph(axes: Any, edges: Edges, colours: Mapping[str, str]) -> None:
    rank = ranks(list(edges))
    by_rank: dict[int, list[str]] = {}
    for node, column in sorted(rank.items()):
        by_rank.setdefault(column, []).append(node)
    place = {
        node: (float(column), (len(nodes) - 1) / 2 - position + 0.18 * (column % 2))
        for column, nodes in by_rank.items()
        for position, node in enumerate(nodes)
    }
    for (source, target), op in edges.items():
        # A long edge bows outwards, so that it does not run into the nodes and edges that it passes.
        bend = 0.22 if rank[target] - rank[source] > 1 else 0.0
        bend = -bend if place[source][1] >= place[target][1] else bend
        axes.annotate(
            "",
            xy=place[target],
            xytext=place[source],
            arrowprops={
                "arrowstyle": "-|>",
                "color": colours[op],
                "linewidth": 2,
                "linestyle": _line(op),
                "shrinkA": 8,
                "shrinkB": 8,
                "connectionstyle": f"arc3,rad={bend}",
            },
        )
    for node, (x, y) in place.items():
        circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "#555555"}
        axes.text(x, y, node, ha="center", va="center", fontsize=7, bbox=circle)
    axes.set_xlim(-0.4, max(by_rank) + 0.4)
    heights = [y for _, y in place.values()]
    axes.set_ylim(min(heights) - 0.6, max(heights) + 0.6)
    axes.set_axis_off()
