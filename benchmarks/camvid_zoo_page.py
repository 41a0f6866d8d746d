"""What benchmarks/camvid_zoo.py tells of the networks that it measured and packed: page and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwnas.core import figures
from hwnas.zoo.cards import Latency
from hwnas.zoo.entry import Entry

PUBLISHED = {
    "enet": (51.3, "CGNet's paper, arXiv 1811.08201"),
    "espnet": (55.6, "CGNet's paper, arXiv 1811.08201"),
    "cgnet": (65.6, "its paper, arXiv 1811.08201"),
    "dabnet": (66.4, "its paper, arXiv 1907.11357"),
}
"""mIoU on CamVid's test split at 360×480 as published, and where."""


def described(
    entry: Entry, latency: Latency, target_ms: float | None = None, predicted_ms: float | None = None
) -> dict[str, Any]:
    """What the page says of one of the three."""
    card = entry.card
    return {
        "entry": card.name,
        "about": card.about,
        "genotype": card.genotype,
        "depths": {name: value for name, value in entry.genotype.choices.items() if "depth" in name},
        "parameters": card.parameters,
        "bytes_fp16": card.size_bytes,
        "target_ms": target_ms,
        "predicted_ms": predicted_ms,
        "latency": latency.model_dump(mode="json"),
        "trained_on": f"{card.data}, {card.split}",
        "training_device": card.training_device,
        "training_seconds": card.training_seconds,
        "fp16_agreement_percent": card.fp16_agreement_percent,
        "twin_val": next(
            (score.model_dump(mode="json") for score in card.scores if score.data is None), None
        ),
    }


def described_peer(name: str, latency: Latency) -> dict[str, Any]:
    """What the page says of a network of somebody else's."""
    miou, source = PUBLISHED.get(name, (None, None))
    return {"latency": latency.model_dump(mode="json"), "published_miou": miou, "published_in": source}


def page(summary: dict[str, Any], picture: str) -> str:
    """The result as a page."""
    networks, peers = summary["networks"], summary["peers"]
    base = peers["cgnet"]["latency"]["median_ms"] if "cgnet" in peers else None

    def times(latency: dict[str, Any]) -> str:
        ratio = f"{latency['median_ms'] / base:.2f}" if base else "-"
        return f"{latency['median_ms']:.2f} ± {latency['spread_ms']:.2f} | {ratio}"

    lines = [
        f"# {summary['question']}",
        "",
        f"{summary['device']['name']}, {summary['backend']}, {summary['date']}. All measured in the same",
        "rounds. What each was trained on and how, its card says. Seconds are wall time of all",
        "stages, the teacher's among them, which one training serves all with.",
        *([f"The milliseconds are those of {summary['measured']}."] if summary.get("measured") else []),
        *([summary["remark"]] if summary["remark"] else []),
        "",
        "| network | ms | of CGNet | asked ms | predicted ms | depths | parameters M | MiB fp16 | trained on "
        "| s | fp16 agrees % | val mIoU % of its twin (trained on train alone) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    for net in networks.values():
        twin = f"{net['twin_val']['miou']:.1f}" if net["twin_val"] else "not trained"
        lines.append(
            f"| {net['entry']} | {times(net['latency'])} "
            f"| {shown(net['target_ms'])} | {shown(net['predicted_ms'])} "
            f"| {', '.join(net['depths'].values())} | {net['parameters'] / 1e6:.2f} "
            f"| {net['bytes_fp16'] / 2**20:.2f} | {net['training_device']} | {net['training_seconds']:.0f} "
            f"| {net['fp16_agreement_percent']:.2f} | {twin} |"
        )
    lines += [
        "",
        "| others, definitions of their authors | ms | of CGNet | test mIoU % **as published** | in |",
        "|---|---|---|---|---|",
    ]
    for name, peer in sorted(peers.items(), key=lambda item: item[1]["latency"]["median_ms"]):
        miou = f"{peer['published_miou']}" if peer["published_miou"] else "-"
        lines.append(f"| {name} | {times(peer['latency'])} | {miou} | {peer['published_in'] or '-'} |")
    lines += [
        "",
        f"![mIoU against milliseconds]({picture})",
        "",
        "Val is one street filmed at 15 Hz and no test set: a twin's score beside a published test score",
        "says how far a training got, not which network is better. The networks' test scores are unknown.",
        "",
        "Written by benchmarks/camvid_zoo.py.",
        "",
    ]
    return "\n".join(lines)


def plot(summary: dict[str, Any], path: Path) -> None:
    """Plot mIoU against measured milliseconds; what is published is marked as such."""
    with figures.styled():
        figure = figures.figure(7.0, 4.2)
        _draw(figure.add_subplot(), summary)
    figures.save_png(figure, path)


def _draw(axes: Any, summary: dict[str, Any]) -> None:
    def line(name: str, ms: float, colour: str) -> None:
        axes.axvline(ms, color=colour, linewidth=0.8)
        axes.annotate(
            name, (ms, 0.03), xycoords=("data", "axes fraction"), rotation=90, fontsize=7, ha="right"
        )

    for name, peer in sorted(summary["peers"].items(), key=lambda item: item[1]["latency"]["median_ms"]):
        ms, miou = peer["latency"]["median_ms"], peer["published_miou"]
        if miou is None:
            line(name, ms, "#bbbbbb")
            continue
        axes.plot(ms, miou, "o", mfc="none", color="#888888")
        axes.annotate(
            f"{name}, test, published",
            (ms, miou),
            xytext=(-6, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    for net in summary["networks"].values():
        ms, twin = net["latency"]["median_ms"], net["twin_val"]
        if twin is None:
            line(net["entry"], ms, figures.LINES[0])
            continue
        axes.plot(ms, twin["miou"], "s", color=figures.LINES[0])
        axes.annotate(
            f"{net['entry']}, its twin on val",
            (ms, twin["miou"]),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("measured milliseconds at 360×480, ONNX Runtime, one thread")
    axes.set_ylabel("mIoU on CamVid [%]")
    axes.set_xlim(left=0)
    axes.margins(y=0.12)
