"""``hwnas eval``: how good the trained network is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hwnas.cli.console import result
from hwnas.cli.data import DataChoice, image_shape, require_maps
from hwnas.cli.folder import RunFolder
from hwnas.cli.settings import parse, sort_out
from hwnas.core.fit import evaluate
from hwnas.core.space import Metric, SearchSpace
from hwnas.errors import InvalidInput
from hwnas.segmentation.metrics import MeanIoU


@click.command("eval")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", metavar="NAME[:DIR]", help="[default: the search's data]")
@click.option("--split", help="Split to evaluate on [default: the data's validation split].")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="data.NAME: see hwnas search.")
@click.option("--device", default="auto", show_default=True, help="Where torch computes: auto, cpu, cuda:N.")
@click.option("--pictures", type=click.IntRange(0), default=4, show_default=True, help="Predictions to draw.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    run: Path,
    data: str | None,
    split: str | None,
    settings: Sequence[str],
    device: str,
    pictures: int,
    as_json: bool,
) -> None:
    """Evaluate RUN/weights.pt; writes RUN/eval.json and RUN/predictions/."""
    folder = RunFolder(run)
    images = folder.data(data, sort_out(parse(settings), {"data": None})["data"])
    found = run_eval(folder, images, split or images.val, device=device, pictures=pictures)
    lines = [
        *(
            f"{name:<16} {'-' if value is None else f'{value:.1f}':>6}"
            for name, value in found.get("per_class", {}).items()
        ),
        f"{found['headline']:<16} {found[found['headline']]:>6.1f}   % of {found['images']} images",
    ]
    result(found, lines, as_json=as_json)


def run_eval(
    folder: RunFolder, images: DataChoice, split: str, *, device: str = "auto", pictures: int = 4
) -> dict[str, Any]:
    """Evaluate, draw ``pictures`` predictions, and keep both in the folder."""
    from hwnas.core.training import torch_device
    from hwnas.segmentation.predictions import save_predictions

    space = folder.space
    loader = images.evaluation(split, image_shape(space)[1:])
    dataset: Any = loader.dataset
    require_maps(space, dataset.num_classes)
    network = folder.network()
    found = evaluate(network, loader, named_metric(space, dataset), device=device)
    found = {
        **found,
        "headline": next(iter(found)),
        "images": len(dataset),
        "split": split,
        "data": images.name,
    }
    folder.write("eval.json", found)
    count = min(pictures, len(dataset))
    if count:
        where = torch_device(device)
        indices = [round(position * (len(dataset) - 1) / max(1, count - 1)) for position in range(count)]
        save_predictions(network.to(where), dataset, folder.path / "predictions", indices, device=where)
    return found


def named_metric(space: SearchSpace, dataset: Any) -> Metric:
    """The space's metric; a mean IoU speaks of the data set's classes by name.

    Raises:
        InvalidInput: the space has no metric.
    """
    metric: Any = space.metric()
    if metric is None:
        raise InvalidInput(
            f"{space.name} has no metric, so there is nothing to evaluate: give it a metric()."
        )
    if isinstance(metric, MeanIoU):
        named: Any = MeanIoU(metric.num_classes, metric.ignore_index, dataset.classes)
        metric = named
    found: Metric = metric
    return found
