"""What a sweep leaves for people: its table, in ``OUT/sweep.md``, and its plot, ``OUT/pareto.png``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.core.figures import LINES, figure, save_png, styled
from hwnas.core.sweep_result import SweepPoint, SweepResult
from hwnas.errors import HwnasWarning, MissingExtra
from hwnas.files import write_atomically
from hwnas.latency.timing import in_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NoPlotWarning(HwnasWarning):
    """There is something to plot, and matplotlib is not installed."""


def write_table_and_plot(found: SweepResult, out: Path) -> str | None:
    """Write ``sweep.md`` and, where points have scores, ``pareto.png``; returns why that was not drawn."""
    write_atomically(out / "sweep.md", ("\n".join(_page(found)) + "\n").encode())
    try:
        drawn = pareto(found)
    except MissingExtra as error:
        return f"no pareto.png: {error}"
    if drawn is not None:
        save_png(drawn, out / "pareto.png")
    return None


def rows_of(found: SweepResult) -> list[tuple[str, ...]]:
    """The table, its heading first."""
    asked = "asked [ms]" if found.swept == "target_ms" else "latency weight"
    quality = (quality_label(found), "front") if found.metric else ()
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


def remarks_of(found: SweepResult) -> list[str]:
    """What a reader of the table should know, a line each."""
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


def where_of(found: SweepResult) -> str:
    """Under which conditions the milliseconds hold, as a sentence."""
    return f"Milliseconds on {', '.join(f'{name} {value}' for name, value in found.conditions.items())}."


def _page(found: SweepResult) -> list[str]:
    """The same as Markdown."""
    heading, *rows = rows_of(found)
    return [
        "# Pareto sweep",
        "",
        where_of(found),
        "",
        "| " + " | ".join(heading) + " |",
        "|" + "---|" * len(heading),
        *("| " + " | ".join(row).replace("*", "\\*") + " |" for row in rows),
        "",
        *(f"- {line}".replace("- * ", "- \\* ") for line in remarks_of(found)),
    ]


def pareto(found: SweepResult) -> Figure | None:
    """Quality against latency, each point predicted (hollow) and measured (full), the Pareto front ringed."""
    scores = {
        point.folder: score
        for point in found.points
        if (score := point.score) is not None and math.isfinite(score)
    }
    if not scores:
        return None
    points = [point for point in found.points if point.folder in scores]
    predicted = [(point.predicted_ms, scores[point.folder]) for point in points]
    measured = [
        (point.measured_ms, scores[point.folder]) for point in points if point.measured_ms is not None
    ]
    front = [(point.latency_ms, scores[point.folder]) for point in found.front if point.folder in scores]
    with styled():
        drawn = figure(6.4, 3.8)
        axes = drawn.add_subplot()
        axes.plot(
            *zip(*front, strict=True), "o-", color=LINES[1], linewidth=1.4, drawstyle="steps-post",
            markersize=11, fillstyle="none", label="Pareto front",
        )  # fmt: skip
        for point in points:
            ends = [point.predicted_ms, point.latency_ms]
            axes.plot(ends, [scores[point.folder]] * 2, color=LINES[0], linewidth=0.8)
        axes.plot(*zip(*predicted, strict=True), "o", color=LINES[0], fillstyle="none", label="predicted")
        if measured:
            axes.plot(*zip(*measured, strict=True), "o", color=LINES[0], label="measured")
        for point in points:
            place = (point.latency_ms, scores[point.folder])
            axes.annotate(point.folder, place, xytext=(4, 5), textcoords="offset points", fontsize=7)
        axes.set_xlabel("latency [ms]")
        axes.set_ylabel(f"{quality_label(found)}, shared weights")
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return drawn


def quality_label(found: SweepResult) -> str:
    """What points of a sweep are compared by, with its unit."""
    names = {"miou": "mIoU [%]", "accuracy": "accuracy [%]"}
    return names.get(found.metric or "", found.metric or "")
