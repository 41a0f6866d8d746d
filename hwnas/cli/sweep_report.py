"""What ``hwnas sweep`` leaves: a table, on the console and in ``OUT/sweep.md``, and ``OUT/pareto.png``."""

from __future__ import annotations

from pathlib import Path

from hwnas.cli import drawing
from hwnas.cli.console import note, result
from hwnas.core.sweep import SweepPoint, SweepResult
from hwnas.errors import MissingExtra
from hwnas.files import write_atomically
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
        measured = "–" if point.measured_ms is None else f"{point.measured_ms:.4g}"
        missed = " (missed)" if point.met is False else ""
        rows.append(
            (
                f"{point.value:.12g}",
                f"{point.predicted_ms:.4g}",
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
    where = ", ".join(f"{name} {value}" for name, value in found.conditions.items())
    return [
        "# Pareto sweep",
        "",
        f"Milliseconds on {where}.",
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
        *("| " + " | ".join(row).replace("*", "\\*") + " |" for row in rows),
        "",
        *(f"- {line}".replace("- * ", "- \\* ") for line in _remarks(found)),
    ]
