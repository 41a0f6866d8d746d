"""The hyper-cell: a reduction cell and normal cells, and the choice of the cell whose output leaves it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwnas import Choice, Conv, DepthBlock
from hwnas.search_spaces.autortnet.cells import Cell, edge_choices


class CellStep(nn.Module):
    """A cell as a step of the hyper-cell: ``(C_{i-2}, C_{i-1}) → (C_{i-1}, C_i)``."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, older_NCHW: Tensor, younger_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Shift the two newest outputs by one cell."""
        return younger_NCHW, self.cell(older_NCHW, younger_NCHW)


class FirstExit(nn.Module):
    """The exit behind the reduction cell: the hyper-cell's own input, C_{i-1}, is brought to C_i's shape."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.bring = Conv(c_in, c_out, kernel=1, stride=2)

    def forward(self, older_NCHW: Tensor, younger_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the older tensor to the younger one's shape."""
        return self.bring(older_NCHW), younger_NCHW


class NewestOnly(nn.Module):
    """The exit of the last hyper-cell: nothing follows that would read the older tensor."""

    def forward(self, older_NCHW: Tensor, younger_NCHW: Tensor) -> Tensor:
        """The younger tensor."""
        return younger_NCHW


class HyperCell(nn.Module):
    """A hyper-cell (Section 3.2): cells in a row; β decides after how many of them it is left (Eq. 5).

    The next hyper-cell's inputs are the output of the cell at the exit and that of the cell before it, both
    mixed with the same weights. The normal cells share their choices; the reduction cell has its own.

    Args:
        name: prefix of its choices: ``<name>.depth``, ``<name>.reduction.…``, ``<name>.normal.…``.
        cells: the most cells it may have, at least 1 (the reduction cell, which always stays).
        c_in: channels of its older and its younger input.
        width: channels of a node.
        nodes: nodes of a cell.
        ops: names of the candidates on each edge.
        older_stride: 2 where the older input is twice as large as the younger one.
        last: whether no hyper-cell follows, so that only the younger output is wanted.
    """

    def __init__(
        self,
        name: str,
        *,
        cells: int,
        c_in: tuple[int, int],
        width: int,
        nodes: int,
        ops: Sequence[str],
        older_stride: int,
        last: bool,
    ) -> None:
        super().__init__()
        c_out = nodes * width
        normal = edge_choices(f"{name}.normal", nodes, ops)
        steps: list[nn.Module] = []
        for index in range(cells):
            older, younger = [(c_in[0], c_in[1]), (c_in[1], c_out), (c_out, c_out)][min(index, 2)]
            cell = Cell(
                (older, younger),
                width,
                edge_choices(f"{name}.reduction", nodes, ops) if index == 0 else normal,
                nodes=nodes,
                # The second cell's older input is the hyper-cell's own, from before the reduction.
                older_stride=older_stride if index == 0 else 2 if index == 1 else 1,
                reduction=index == 0,
            )
            steps.append(CellStep(cell))
        exits: list[nn.Module | None] = [FirstExit(c_in[1], c_out), *[None] * (cells - 1)]
        if last:
            exits = [NewestOnly() for _ in range(cells)]
        depth = Choice(name=f"{name}.depth", options=tuple(str(n + 1) for n in range(cells)), kind="depth")
        self.cells = DepthBlock(depth, steps, exits)

    def forward(self, older_NCHW: Tensor, younger_NCHW: Tensor) -> tuple[Tensor, ...]:
        """``(C_{i-1}, C_i)`` at the exit i; ``(C_i,)`` from the last hyper-cell."""
        leaving = self.cells(older_NCHW, younger_NCHW)
        return (leaving,) if isinstance(leaving, Tensor) else tuple(leaving)
