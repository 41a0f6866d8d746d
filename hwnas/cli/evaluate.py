"""``hwnas eval``: how good a trained network is, or a file that was exported of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.console import note, result
from hwnas.cli.data import DataChoice, evenly_spread, image_shape, require_maps
from hwnas.cli.folder import RunFolder
from hwnas.cli.nets import data_for, find_net, is_of_the_zoo, is_run
from hwnas.cli.settings import parse, sort_out
from hwnas.core.evaluation import evaluate
from hwnas.core.space import Metric
from hwnas.core.weights import digest
from hwnas.files import write_json
from hwnas.segmentation.labels import Labelling
from hwnas.segmentation.metrics import MeanIoU, named_metric

if TYPE_CHECKING:
    from torch import nn


@click.command("eval")
@click.argument("net")
@click.option("--data", metavar="NAME[:DIR]", help="[default: the run's data]")
@click.option("--split", help="Split to evaluate on [default: the data's validation split].")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="data.NAME: see hwnas search.")
@click.option("--device", default="auto", show_default=True, help="Where torch computes: auto, cpu, cuda:N.")
@click.option(
    "--pictures", type=click.IntRange(0), default=4, show_default=True, help="Predictions of a run to draw."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    net: str,
    data: str | None,
    split: str | None,
    settings: Sequence[str],
    device: str,
    pictures: int,
    as_json: bool,
) -> None:
    """Evaluate NET: a run's weights, an exported file, or one of the zoo.

    Images of another size, and their labels, are brought to the network's, and scored there.

    Of a run, RUN/eval.json and RUN/predictions/ are written; of a file, FILE.onnx.eval.json beside it.
    """
    images = data_for(net, data, sort_out(parse(settings), {"data": None})["data"])
    split = split or images.val
    if seen := _seen(net, images, split):
        note(f"{net} was trained on {seen} of these data: its score there says nothing of other images")
    if is_run(net):
        found = run_eval(RunFolder(Path(net)), images, split, device=device, pictures=pictures)
    else:
        found = net_eval(net, images, split, device=device)
    lines = [
        *(
            f"{name:<16} {'-' if value is None else f'{value:.1f}':>6}"
            for name, value in found.get("per_class", {}).items()
        ),
        f"{found['headline']:<16} {found[found['headline']]:>6.1f}   % of {found['images']} images, "
        f"at {found['size'][0]}x{found['size'][1]} (height x width)",
    ]
    result(found, lines, as_json=as_json)


def _seen(net: str, images: DataChoice, split: str) -> str:
    """The part of a split that a network was trained on, as "train+val"; empty where nothing says so."""
    if is_of_the_zoo(net):
        from hwnas import zoo

        card = zoo.card(net)
        # The zoo's own cards say more of their data than the name that they begin with.
        data, trained = card.data, card.split
    elif is_run(net) and (Path(net) / "fit.json").is_file():
        from hwnas.zoo.packing import trained_on

        data, trained = (said or "" for said in trained_on(net))
    else:
        return ""
    if not data.lower().startswith(images.name.partition(":")[0].lower()):
        return ""
    return "+".join(part for part in split.split("+") if part in trained.split("+"))


def run_eval(
    folder: RunFolder, images: DataChoice, split: str, *, device: str = "auto", pictures: int = 4
) -> dict[str, Any]:
    """Evaluate, draw ``pictures`` predictions, and keep both in the folder."""
    from hwnas.core.training import torch_device
    from hwnas.segmentation.predictions import save_predictions

    space = folder.space
    size = image_shape(space)[1:]
    loader = images.evaluation(split, size, device)
    dataset: Any = loader.dataset
    require_maps(space, dataset.num_classes)
    network = folder.network()
    found = {
        **_scores(network, loader, named_metric(space, dataset), images, split, size, device),
        "weights": digest(network.state_dict()),
    }
    folder.write("eval.json", found)
    if indices := evenly_spread(pictures, len(dataset)):
        where = torch_device(device)
        save_predictions(network.to(where), dataset, folder.path / "predictions", indices, device=where)
    return found


def net_eval(name: str, images: DataChoice, split: str, *, device: str = "auto") -> dict[str, Any]:
    """Evaluate an exported file or a network of the zoo; kept beside the file.

    Raises:
        InvalidInput: it tells other classes apart than the data have, or wants pictures normalised otherwise.
    """
    net = find_net(name)
    size = net.input_shape[1:]
    loader = images.evaluation(split, size, device)
    dataset: Any = loader.dataset
    net.require_own(Labelling.of(dataset), name, images.name)
    # Any: its update takes tensors, and a Metric's anything.
    metric: Any = MeanIoU(dataset.num_classes, dataset.ignore_index, dataset.classes)
    found = _scores(net.network, loader, metric, images, split, size, device)
    path = Path(name)
    if path.is_file():
        write_json(path.with_name(f"{path.name}.eval.json"), found)
    return found


def _scores(
    network: nn.Module,
    loader: Any,
    metric: Metric,
    images: DataChoice,
    split: str,
    size: Sequence[int],
    device: str,
) -> dict[str, Any]:
    found = evaluate(network, loader, metric, device=device)
    return {
        **found,
        "headline": next(iter(found)),
        "images": len(loader.dataset),
        "size": list(size),
        "split": split,
        "data": images.name,
    }
