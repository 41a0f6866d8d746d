"""``hwnas report``: a run as one page that needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli import drawing
from hwnas.cli.derive import describe
from hwnas.cli.diagram import architecture
from hwnas.cli.folder import RunFolder
from hwnas.cli.nets import refuse_zoo
from hwnas.cli.page import section, write_page
from hwnas.cli.sweep_report import is_sweep, write_sweep_page
from hwnas.core.figures import as_svg, save_png
from hwnas.core.sweep_result import SweepResult
from hwnas.latency.timing import in_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@click.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--png",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write the plots as PNG into this folder.",
)
def command(runs: Sequence[Path], png: Path | None) -> None:
    """Write report.html into each of RUNS: curves, architecture, scores, predictions, milliseconds.

    Of a sweep's folder: its table and its plot, with links to a report of each point.
    """
    for run in runs:
        refuse_zoo(run)
        plots_in = png / run.name if png and len(runs) > 1 else png
        written = _of_sweep(run, plots_in) if is_sweep(run) else [write_report(RunFolder(run), plots_in)]
        for path in written:
            click.echo(str(path))


def _of_sweep(out: Path, png: Path | None) -> list[Path]:
    """Write the sweep's page and a report in each point's folder that is there; the paths, the page first."""
    found = SweepResult.load(out)
    names = [point.folder for point in found.points if (out / point.folder / "genotype.json").is_file()]
    reports = {name: write_report(RunFolder(out / name), png / name if png else None) for name in names}
    return [write_sweep_page(found, out, reports, png), *reports.values()]


def write_report(folder: RunFolder, png: Path | None = None) -> Path:
    """Write ``RUN/report.html`` from whatever the folder holds; returns its path.

    Args:
        folder: a run with at least a genotype.
        png: folder for the plots as PNG files.

    Raises:
        GenotypeError: the run has found nothing yet.
        MissingExtra: matplotlib is not installed.
    """
    figures = plots(folder)
    if png is not None:
        for name, (_, drawn) in figures.items():
            save_png(drawn, png / f"{name}.png")
    sections = [_numbers(folder), _architecture_text(folder)]
    sections += [section(title, as_svg(drawn, name)) for name, (title, drawn) in figures.items()]
    sections += [_milliseconds(folder), _scores(folder), _predictions(folder), _conditions(folder)]
    title = f"{folder.genotype.space} {folder.genotype.short_id}"
    return write_page(folder.path / "report.html", title, sections)


def plots(folder: RunFolder) -> dict[str, tuple[str, Figure]]:
    """Every plot that the folder holds data for: file name → (title, figure)."""
    genotype, space = folder.genotype, folder.space
    choices = space.choices()
    searched, fitted = folder.epochs("search"), folder.epochs("fit")
    probabilities = searched[-1].get("probabilities", {}) if searched else {}
    depths = {name: len(choice.options) for name, choice in choices.items() if choice.kind == "depth"}
    options = {name: choice.options for name, choice in choices.items()}
    measured = folder.read("measure.json")
    # A measurement under other conditions than the table's has no place in the table's plot.
    measured_ms = measured.get("median_ms") if measured.get("predicted_ms") is not None else None
    makers: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "architecture": (
            "The network that was found",
            lambda: architecture(
                {name: genotype.choices[name] for name in choices if name in genotype.choices},
                {name: most for name, most in depths.items() if name in genotype.choices},
            ),
        ),
        "depth": ("Number of cells during the search", lambda: drawing.depth_curves(searched)),
        "latency": (
            "Predicted latency during the search",
            lambda: drawing.latency_curve(searched, folder.target_ms, measured_ms),
        ),
        "search_quality": ("Quality during the search", lambda: drawing.quality_curve(searched, "supernet")),
        "fit_quality": ("Quality during training", lambda: drawing.quality_curve(fitted, "derived network")),
        "probabilities": (
            "Probabilities at the end of the search",
            lambda: drawing.probability_map(options, probabilities),
        ),
    }
    made = {name: (title, make()) for name, (title, make) in makers.items()}
    return {name: (title, drawn) for name, (title, drawn) in made.items() if drawn is not None}


def _numbers(folder: RunFolder) -> str:
    measured = folder.read("measure.json")
    predicted = folder.read("result.json").get("predicted_ms")
    scores = folder.read("eval.json")
    rows = []
    if folder.target_ms is not None:
        rows.append(("asked", f"{folder.target_ms:g} ms", "the target of the search"))
    if predicted is not None:
        by = "sum of the latency table's rows" + (", corrected by measurements" if folder.corrected else "")
        rows.append(("predicted", f"{in_ms(predicted)} ms", by))
    if measured:
        where = (
            f"{measured['device']}, {measured['backend']} {measured['precision']}, batch {measured['batch']}"
        )
        if measured["predicted_ms"] is None and predicted is not None:
            where += " (other conditions than the table's)"
        rows.append(
            (
                "measured",
                f"{in_ms(measured['median_ms'])} ± {in_ms(measured['spread_ms'], 2)} ms",
                f"{where}; {measured['count']} readings",
            )
        )
    if scores:
        name = scores["headline"]
        label = "mIoU" if name == "miou" else name
        rows.append(
            (
                label,
                f"{scores[name]:.1f} %",
                f"{scores['images']} images of {scores['data']}, split {scores['split']}",
            )
        )
    size = describe(folder.genotype)
    rows.append(("parameters", f"{size['parameters']:,}", f"{size['ops']} ops"))
    return _table("In numbers", rows)


def _architecture_text(folder: RunFolder) -> str:
    choices = folder.genotype.choices
    lines = "\n".join(f"{name:<24} {option}" for name, option in choices.items())
    return f"<details><summary>Genotype</summary><pre>{html.escape(lines)}</pre></details>"


def _scores(folder: RunFolder) -> str:
    per_class = folder.read("eval.json").get("per_class")
    if not per_class:
        return ""
    rows = [
        (name, "–" if value is None else f"{value:.1f}", value or 0.0) for name, value in per_class.items()
    ]
    return section("Intersection over union by class [%]", _bars(rows))


def _milliseconds(folder: RunFolder) -> str:
    """What of the predicted milliseconds which part of the network takes, and which kind of op."""
    table = folder.table()
    if table is None:
        return ""
    # torch is slow to import, and a report of a sweep needs none of it.
    from hwnas.core.arch import ArchParameters
    from hwnas.core.expected import ExpectedLatency

    arch = ArchParameters(folder.space.choices().values())
    cost = ExpectedLatency(folder.space.record(batch=table.header.batch), arch.choices, table)
    network = arch.one_hot(folder.space.assignment(folder.genotype)).weights
    interval = cost.interval_ms(network)
    shown = ""
    if interval is not None:
        low, high = map(in_ms, interval)
        shown = f"<p>{in_ms(cost.total(network))} ms in all by the table (95 %: {low} to {high} ms)</p>"
    for title, shares in (("part", cost.by_block(network)), ("kind of op", cost.by_kind(network))):
        total = sum(shares.values())
        ordered = sorted(((ms, name) for name, ms in shares.items() if ms > 0), reverse=True)
        bars = _bars([(name, f"{in_ms(ms)} ms", 100 * ms / total) for ms, name in ordered])
        shown += f"<h3>By {title}</h3>{bars}"
    return section("Where the predicted milliseconds go", shown)


def _bars(rows: Sequence[tuple[str, str, float]]) -> str:
    """A table of names, values as text, and bars of so many percent."""
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{value}</td>'
        f'<td class="w"><div class="bar" style="width:{percent:.1f}%"></div></td></tr>'
        for name, value, percent in rows
    )
    return f"<table>{cells}</table>"


def _predictions(folder: RunFolder) -> str:
    pictures = sorted((folder.path / "predictions").glob("*.png"))
    if not pictures:
        return ""
    shown = "".join(
        f'<figure><img alt="{html.escape(path.stem)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{html.escape(path.stem)}</figcaption></figure>'
        for path in pictures
    )
    return section("Image, truth and prediction", shown)


def _conditions(folder: RunFolder) -> str:
    table = folder.table()
    config = folder.search_config
    rows = []
    if table is not None:
        header = table.header
        where = f"{header.device.name}, batch {header.batch}, threads {header.threads}"
        about = f"{where}, {len(table.rows)} rows, {header.created}"
        rows.append(("latency table", f"{header.backend} {header.precision}", about))
    rows += [(f"search.{name}", str(value), "") for name, value in config.items()]
    rows += [
        (f"{folder.genotype.space}.{name}", str(value), "") for name, value in folder.genotype.fields.items()
    ]
    return "<details><summary>Conditions and settings</summary>" + _table("", rows) + "</details>"


def _table(title: str, rows: Sequence[tuple[str, Any, str]]) -> str:
    cells = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(str(value))}</td>'
        f"<td>{html.escape(note)}</td></tr>"
        for name, value, note in rows
    )
    return section(title, f"<table>{cells}</table>")
