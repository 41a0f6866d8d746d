"""What all plots have in common: matplotlib, where it is installed, a style, and how figures become files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import MissingExtra
from hwnas.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with colour blindness tell apart."""

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Text stays text: smaller files, and it can be searched in the page.
    "svg.fonttype": "none",
    "svg.hashsalt": "hwnas",
}


def figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches, bound to no window.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "draw a report") from error
    return Figure(figsize=(width, height), layout="constrained")


def styled() -> Any:
    """A context in which figures are made and saved in the report's style.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "draw a report") from error
    return matplotlib.rc_context(_STYLE)


def as_svg(drawn: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element to stand in a page, beside others of other names."""
    buffer = io.StringIO()
    with styled():
        drawn.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # Without the XML prolog. The page's style lets it shrink: it has a viewBox. Matplotlib numbers from 1 in
    # every file, and ids are of the whole page.
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])


def save_png(drawn: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically."""
    buffer = io.BytesIO()
    with styled():
        drawn.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
