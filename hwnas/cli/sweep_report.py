"""What ``hwnas sweep`` leaves: a table, on the console and in ``OUT/sweep.md``, and ``OUT/pareto.png``.

Both together, as ``hwnas report`` writes them, are ``OUT/report.html``.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from hwnas.cli import drawing
from hwnas.cli.console import note, result
from hwnas.cli.folder import RunFolder
from hwnas.cli.page import section, write_page
from hwnas.core.sweep import SweepPoint, SweepResult
from hwnas.errors import MissingExtra
from hwnas.files import write_atomically
from hwnas.latency.timing import in_ms
from hwnas.processes import processes


def report_sweep(found: SweepResult, out: Path, *, as_json: bool) -> None:
    """Print what a sweep found, and write its table and its plot."""
    if processes().is_first:
        write_atomically(out / "sweep.md", ("\n".join(_page(found)) + "\n").encode())
        _plot(found, out / "pareto.png")
    best = out / (found.front[-1] if found.front else found.points[-1]).folder
    lines = [
        *_aligned(_rows(found)),
        *_remarks(found),
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
    drawn = drawing.pareto(found)
    plot = ""
    if drawn is not None:
        plot = section("Latency and quality", drawing.as_svg(drawn, "pareto"))
        if png is not None:
            drawing.save_png(drawn, png / "pareto.png")
    remarks = "".join(f"<li>{html.escape(line)}</li>" for line in [*_undone(found, out), *_remarks(found)])
    sections = [section("", f"<p>{html.escape(_where(found))}</p>" + _html_table(found, out, reports))]
    sections += [f"<ul>{remarks}</ul>", plot]
    return write_page(out / "report.html", "Pareto sweep", sections)


def _html_table(found: SweepResult, out: Path, reports: Mapping[str, Path]) -> str:
    heading, *rows = _rows(found)
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


def _where(found: SweepResult) -> str:
    return f"Milliseconds on {', '.join(f'{name} {value}' for name, value in found.conditions.items())}."


def _plot(found: SweepResult, path: Path) -> None:
    try:
        drawn = drawing.pareto(found)
    except MissingExtra as error:
        note(f"no {path.name}: {error}")
        return
    if drawn is not None:
        drawing.save_png(drawn, path)


def _rows(found: SweepResult) -> list[tuple[str, ...]]:
    """The table, its heading first."""
    asked = "asked [ms]" if found.swept == "target_ms" else "latency weight"
    quality = (drawing.quality_label(found), "front") if found.metric else ()
    rows: list[tuple[str, ...]] = [(asked, "predicted [ms]", "measured [ms]", *quality, "network", "run")]
    for point in found.points:
        measured = "–" if point.measured_ms is None else in_ms(point.measured_ms)
        missed = " (missed)" if point.met is False else ""
        rows.append(
            (
                f"{point.value:.12g}",
                in_ms(point.predicted_ms),
                measured + missed,
                *(_quality(point) if found.metric else ()),
                point.genotype.short_id,
                point.folder,
            )
        )
    return rows


def _quality(point: SweepPoint) -> tuple[str, str]:
    return "–" if point.score is None else f"{point.score:.1f}", "*" if point.on_front else ""


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _remarks(found: SweepResult) -> list[str]:
    shared = f"the first {found.shared_epochs} of {found.epochs} epochs were trained once for all"
    nothing = (
        "nothing was shared: choices learn from the first epoch on (--set arch_from_epoch=… says otherwise)"
    )
    lines = [shared if found.shared_epochs else nothing]
    if found.metric:
        where = "measured where they were, otherwise predicted"
        lines.append(f"* on the Pareto front of milliseconds ({where}) and {found.metric} on val")
        lines.append("quality is with the shared weights; hwnas fit trains a network's own")
    else:
        lines.append("without validation data nothing is known of quality, so no front is marked")
    missed = [point.folder for point in found.points if point.met is False]
    if missed:
        lines.append(f"the budget was not met by {', '.join(missed)}: the nearest networks found are shown")
    lines += [f"{point.folder}: {remark}" for point in found.points for remark in point.remarks]
    return lines


def _page(found: SweepResult) -> list[str]:
    """The same as Markdown."""
    heading, *rows = _rows(found)
    return [
        "# Pareto sweep",
        "",
        _where(found),
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
        *("| " + " | ".join(row).replace("*", "\\*") + " |" for row in rows),
        "",
        *(f"- {line}".replace("- * ", "- \\* ") for line in _remarks(found)),
    ]
