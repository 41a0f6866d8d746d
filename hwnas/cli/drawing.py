"""The plots of a report: curves over epochs and the probabilities of options, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.core.figures import LINES, figure, styled
from hwnas.latency.timing import in_ms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwnas.latency.verification import Verification

Epochs = Sequence[Mapping[str, Any]]
"""The epoch events of a run's log."""


def depth_curves(epochs: Epochs) -> Figure | None:
    """The cells of each hyper-cell against the epoch, argmax and expected (the paper's Figure 5)."""
    names = list(epochs[-1].get("depth", {})) if epochs else []
    if not names:
        return None
    with styled():
        drawn = figure(6.4, 3.2)
        axes = drawn.add_subplot()
        xs = [event["epoch"] + 1 for event in epochs]
        for name, colour in zip(names, LINES * len(names), strict=False):
            axes.step(xs, [event["depth"][name]["argmax"] for event in epochs], where="mid", color=colour,
                      linewidth=1.8, label=f"{name}: most likely")  # fmt: skip
            axes.plot(xs, [event["depth"][name]["expected"] for event in epochs], "--", color=colour,
                      linewidth=1.2, label=f"{name}: expected")  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(_whole())
        _finish(drawn, axes, "cells")
    return drawn


def latency_curve(epochs: Epochs, target_ms: float | None, measured_ms: float | None) -> Figure | None:
    """Predicted milliseconds against the epoch: of the most likely network, and the expectation over all."""
    told = [event for event in epochs if event.get("expected_ms") is not None]
    if not told:
        return None
    with styled():
        drawn = figure(6.4, 3.2)
        axes = drawn.add_subplot()
        xs = [event["epoch"] + 1 for event in told]
        axes.plot(
            xs,
            [event["argmax_ms"] for event in told],
            color=LINES[0],
            linewidth=1.8,
            label="most likely network",
        )
        axes.plot(
            xs,
            [event["expected_ms"] for event in told],
            "--",
            color=LINES[0],
            linewidth=1.2,
            label="expected",
        )
        if target_ms is not None:
            axes.axhline(target_ms, color=LINES[1], linewidth=1.2, label=f"asked: {target_ms:g} ms")
        if measured_ms is not None:
            axes.plot(
                [xs[-1]],
                [measured_ms],
                "o",
                color=LINES[2],
                label=f"measured: {in_ms(measured_ms)} ms",
            )
        axes.set_ylim(bottom=0)
        _finish(drawn, axes, "latency [ms]")
    return drawn


def predicted_against_measured(said: Verification, conditions: str) -> Figure:
    """Each network of a verification: predicted against measured, before and after calibration."""
    with styled():
        drawn = figure(4.8, 4.6)
        axes = drawn.add_subplot()
        tested = [network for network in said.evidence if not network.fitted]
        measured = [network.measured_ms for network in tested]
        corrected = [said.calibration(network.sum_ms, network.ops) for network in tested]
        sums = [network.sum_ms for network in tested]
        low, high = min([*measured, *sums]) * 0.95, max([*measured, *sums]) * 1.05
        axes.fill_between([low, high], [0.95 * low, 0.95 * high], [1.05 * low, 1.05 * high], color="#eeeeee")
        axes.plot([low, high], [low, high], color="#888888", linewidth=0.8)
        axes.plot(
            measured,
            sums,
            "o",
            color=LINES[5],
            markersize=3.5,
            label=f"rows: {said.uncalibrated.rmspe_percent:.1f} %",
        )
        axes.plot(
            measured, corrected, "o", color=LINES[0], markersize=3.5,
            label=f"calibrated: {said.calibrated.rmspe_percent:.1f} %",
        )  # fmt: skip
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="measured [ms]", ylabel="predicted [ms]")
        axes.set_title(conditions, fontsize=7)
        axes.legend(title="RMSPE; band: ±5 %")
    return drawn


def quality_curve(epochs: Epochs, title: str) -> Figure | None:
    """The headline metric against the epoch, on the training batches and on the validation images."""
    if not epochs:
        return None
    with styled():
        drawn = figure(6.4, 3.2)
        axes = drawn.add_subplot()
        unit = ""
        for part, label, style in (("train", "training batches", "--"), ("val", "validation", "-o")):
            told = [event for event in epochs if event.get(part)]
            if told:
                unit = next(iter(told[0][part]))
                xs = [event["epoch"] + 1 for event in told]
                ys = [event[part][unit] for event in told]
                axes.plot(xs, ys, style, color=LINES[0], markersize=3, linewidth=1.5, label=label)
        if not unit:
            return None
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylim(bottom=0)
        _finish(drawn, axes, f"{'mIoU' if unit == 'miou' else unit} [%]")
    return drawn


def _whole() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def _finish(drawn: Figure, axes: Any, label: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(_whole())
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def probability_map(
    options: Mapping[str, Sequence[str]], probabilities: Mapping[str, Sequence[float]]
) -> Figure | None:
    """Probability of every option, a row a choice, the likeliest marked; like choices share a map."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in probabilities:
        if name in options:
            groups.setdefault(tuple(options[name]), []).append(name)
    if not groups:
        return None
    highest = max(max(values) for values in probabilities.values())
    heights = [len(names) + 3.5 for names in groups.values()]
    with styled():
        drawn = figure(7.4, 0.21 * sum(heights) + 0.4)
        panels = drawn.subplots(len(groups), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)
        image: Any = None
        for axes, (columns, names) in zip(panels[:, 0], groups.items(), strict=True):
            values = [list(probabilities[name]) for name in names]
            image = axes.imshow(values, cmap="Blues", vmin=0, vmax=highest, aspect="auto")
            for row, value in enumerate(values):
                axes.plot([value.index(max(value))], [row], marker="s", color=LINES[1], markersize=4)
            axes.set_xticks(range(len(columns)), columns, rotation=25, ha="right", fontsize=7)
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.grid(visible=False)
        drawn.colorbar(image, ax=panels[:, 0].tolist(), label="probability", fraction=0.03)
    return drawn
