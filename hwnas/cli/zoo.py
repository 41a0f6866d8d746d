"""``hwnas zoo``: trained networks that come with hwnas, and how one is packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.console import note, result
from hwnas.cli.data import image_shape
from hwnas.cli.folder import RunFolder, RunSetup
from hwnas.errors import InvalidInput
from hwnas.latency.timing import in_ms

if TYPE_CHECKING:
    from hwnas.zoo.cards import Card, Score

_SAMPLES = 16
"""Images on which the packed weights are compared with the trained ones."""


@click.group("zoo", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the trained networks (hwnas zoo list), show one's card, or pack one of a run."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name → card.")
def list_(as_json: bool = False) -> None:
    """List the networks that come with hwnas: what each scores, and how long it takes."""
    from hwnas import zoo

    cards = {name: zoo.card(name) for name in zoo.names()}
    if not cards:
        note("no network comes with this hwnas; hwnas zoo pack makes one of a run")
    lines = [
        f"{name:<24} {_score(card):<30} {_latency(card):<28} {card.about}" for name, card in cards.items()
    ]
    result({name: card.model_dump(mode="json") for name, card in cards.items()}, lines, as_json=as_json)


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The card as it is.")
def show(name: str, as_json: bool) -> None:
    """Show one network's card: data, recipe, scores, latency."""
    from hwnas import zoo

    card = zoo.card(name)
    result(card.model_dump(mode="json"), lines(card), as_json=as_json)


@command.command("pack")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.argument("name")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("zoo"),
              show_default=True, help="Folder that gets the folder NAME.")  # fmt: skip
@click.option("--about", required=True, help="One line that says what the network is.")
@click.option("--licence", required=True, help="Under what terms the training data are to be had.")
@click.option("--data", metavar="NAME[:DIR]", help="[default: the run's data]")
@click.option("--split", help="What was trained on [default: the data's training split].")
@click.option("--twin", type=click.Path(file_okay=False, path_type=Path),
              help="Run of the same architecture whose eval.json is the score [default: RUN].")  # fmt: skip
@click.option("--training-device", help="What it was trained on [default: this machine].")
@click.option("--json", "as_json", is_flag=True, help="The card as it is.")
def pack(
    run: Path,
    name: str,
    out: Path,
    about: str,
    licence: str,
    data: str | None,
    split: str | None,
    twin: Path | None,
    training_device: str | None,
    as_json: bool,
) -> None:
    """Pack RUN's trained network as NAME: fp16 weights, genotype and card; its eval and measure go along."""
    from hwnas.latency.device import Device
    from hwnas.zoo.packing import pack as packed
    from hwnas.zoo.packing import trained_on, twin_score

    folder = RunFolder(run)
    scores = [] if twin is None else [twin_score(run, twin)]
    images = folder.data(data, {})
    trained_data, trained_split = trained_on(run)
    if trained_data not in (None, images.name.partition(":")[0]):
        raise InvalidInput(
            f"{run} was trained on {trained_data}, not on {images.name}: name its data  "
            f"(--data {trained_data}:DIR)."
        )
    if training_device is None:
        training_device = Device.find("auto").name
        note(f"taken as trained on {training_device}; say otherwise with --training-device")
    setup = RunSetup.load(run)
    # Where the data lie on this machine is nobody's business.
    learnt = images.name.partition(":")[0]
    if setup is not None and setup.began_with is not None:
        learnt += f"; began with the weights of {setup.began_with}"
    entry = packed(
        run,
        name,
        out=out,
        about=about,
        data=learnt,
        split=split or trained_split or images.train,
        data_licence=licence,
        labelling=images.labelling(),
        samples=images.samples(images.val, image_shape(folder.space)[1:], _SAMPLES),
        scores=scores,
        training_device=training_device,
    )
    result(entry.card.model_dump(mode="json"), [f"{entry.folder}:", *lines(entry.card)], as_json=as_json)


def lines(card: Card) -> list[str]:
    """A card for people."""
    shown = [
        f"{card.name}: {card.about}",
        f"{card.parameters:,} parameters, {card.size_bytes / 2**20:.2f} MiB in fp16, images of "
        f"{card.input_shape[1]}x{card.input_shape[2]}, genotype {card.genotype}",
        f"trained on {card.data}, {card.split}, seed {card.seed}, for {card.training_seconds:.0f} s on "
        f"{card.training_device}; data: {card.data_licence}",
    ]
    for score in card.scores:
        images = f"{score.images} images of " if score.images else ""
        shown.append(f"mIoU {score.miou:.1f} % on {images}{_where(score)}, trained on {score.trained_on}")
        shown += [
            f"  {name:<16} {'-' if value is None else f'{value:.1f}':>6}"
            for name, value in score.per_class.items()
        ]
    if card.latency is not None:
        shown.append(f"{_latency(card)} on {card.latency.device}, batch {card.latency.batch}")
    shown.append(
        f"fp16 weights name the trained ones' class for {card.fp16_agreement_percent:.2f} % of the pixels of "
        f"{card.fp16_agreement_images} images"
    )
    return shown


def _score(card: Card) -> str:
    return f"mIoU {card.scores[0].miou:.1f} % on {_where(card.scores[0])}" if card.scores else "no score"


def _where(score: Score) -> str:
    return score.split if score.data is None else f"{score.data} {score.split}"


def _latency(card: Card) -> str:
    found: Any = card.latency
    if found is None:
        return "not measured"
    return f"{in_ms(found.median_ms)} ms ({found.backend} {found.precision}, threads {found.threads})"
