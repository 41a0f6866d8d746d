"""What ``hwnas sweep`` prints in the end, and what ``hwnas report`` makes of a sweep: one page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from hwnas.cli.console import result
from hwnas.cli.folder import RunFolder
from hwnas.cli.page import section, write_page
from hwnas.core.figures import as_svg, save_png
from hwnas.core.sweep_page import pareto, remarks_of, rows_of, where_of
from hwnas.core.sweep_result import SweepResult


def report_sweep(found: SweepResult, out: Path, *, as_json: bool) -> None:
    """Print what a sweep found."""
    best = out / (found.front[-1] if found.front else found.points[-1]).folder
    lines = [
        *_aligned(rows_of(found)),
        *remarks_of(found),
        f"next:  hwnas fit {best} && hwnas eval {best} && hwnas measure {best} && hwnas report {best}",
    ]
    values = {
        "run": str(out),
        **found.conditions,
        "swept": found.swept,
        "shared_epochs": found.shared_epochs,
        "met": found.met,
        "points": [
            {
                "value": point.value,
                "run": str(out / point.folder),
                "genotype": point.genotype.short_id,
                "predicted_ms": point.predicted_ms,
                "measured_ms": point.measured_ms,
                "met": point.met,
                "val": point.scores,
                "on_front": point.on_front,
            }
            for point in found.points
        ],
    }
    result(values, lines, as_json=as_json)


def is_sweep(out: Path) -> bool:
    """Whether this is the folder of a sweep, begun or done."""
    return any((out / name).is_file() for name in ("sweep.json", "pareto.json"))


def write_sweep_page(
    found: SweepResult, out: Path, reports: Mapping[str, Path], png: Path | None = None
) -> Path:
    """Write ``OUT/report.html``: the table, with links to the points' own reports, and the plot.

    Args:
        found: what the sweep has found so far.
        out: its folder.
        reports: by the name of a point's folder, its report in ``out``; a point without one has no link.
        png: folder for the plot as a PNG file.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    drawn = pareto(found)
    plot = ""
    if drawn is not None:
        plot = section("Latency and quality", as_svg(drawn, "pareto"))
        if png is not None:
            save_png(drawn, png / "pareto.png")
    remarks = "".join(f"<li>{html.escape(line)}</li>" for line in [*_undone(found, out), *remarks_of(found)])
    sections = [section("", f"<p>{html.escape(where_of(found))}</p>" + _html_table(found, out, reports))]
    sections += [f"<ul>{remarks}</ul>", plot]
    return write_page(out / "report.html", "Pareto sweep", sections)


def _html_table(found: SweepResult, out: Path, reports: Mapping[str, Path]) -> str:
    heading, *rows = rows_of(found)
    lines = ["".join(f"<th>{html.escape(cell)}</th>" for cell in heading)]
    for point, row in zip(found.points, rows, strict=True):
        cells = [html.escape(cell) for cell in row]
        if point.folder in reports:
            link = quote(reports[point.folder].relative_to(out).as_posix())
            cells[-1] = f'<a href="{link}">{cells[-1]}</a>'
        lines.append("".join(f'<td class="n">{cell}</td>' for cell in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _undone(found: SweepResult, out: Path) -> list[str]:
    asked = RunFolder(out).read("sweep.json").get("values", [])
    if len(found.points) >= len(asked):
        return []
    done = f"{len(found.points)} of {len(asked)} points are done"
    return [f"{done}; for the rest:  hwnas sweep --out {out} --resume"]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
