"""``hwnas fit``: train the network that a search found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hwnas.cli.console import result, watching
from hwnas.cli.data import DataChoice, image_shape, require_maps
from hwnas.cli.evaluate import named_metric
from hwnas.cli.folder import RunFolder, RunSetup
from hwnas.cli.settings import changed, parse, sort_out, validated
from hwnas.core.fit import FitConfig, fit
from hwnas.processes import as_one


@click.command("fit")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--preset", help="Settings for training [default: the search's preset].")
@click.option("--data", metavar="NAME[:DIR]", help="[default: the search's data]")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A field of FitConfig, or data.NAME."
)
@click.option("--resume", is_flag=True, help="Go on with the training in RUN.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@as_one
def command(
    run: Path, preset: str | None, data: str | None, settings: Sequence[str], resume: bool, as_json: bool
) -> None:
    """Train the network of RUN/genotype.json from scratch; writes RUN/weights.pt and RUN/fit.log.jsonl."""
    folder = RunFolder(run)
    homes = sort_out(parse(settings), {"fit": list(FitConfig.model_fields), "data": None})
    space = folder.space
    setup = RunSetup.load(run)
    preset = preset or (setup.preset if setup else None)
    base = validated(FitConfig, space.preset(preset).fit if preset else {}).model_dump()
    config = validated(FitConfig, changed(base, homes["fit"]))
    found = run_fit(folder, folder.data(data, homes["data"]), config, resume=resume)
    lines = [
        f"{run / 'weights.pt'}: {next(iter(found))} {next(iter(found.values())):.1f} % on validation images"
    ]
    result(found, lines, as_json=as_json)


def run_fit(folder: RunFolder, images: DataChoice, config: FitConfig, *, resume: bool) -> dict[str, Any]:
    """Train, watched; the last evaluation."""
    import torch

    space = folder.space
    size = image_shape(space)[1:]
    train = images.training(images.train, size)
    val = images.evaluation(images.val, size)
    require_maps(space, val.dataset.num_classes)  # type: ignore[attr-defined]  # DataLoader forgets which data set
    torch.manual_seed(config.seed)
    network = folder.network(trained=False)
    with watching("fit", len(train)) as on_progress:
        return fit(
            network,
            train,
            loss=space.fit_loss,
            config=config,
            val=val,
            metric=named_metric(space, val.dataset),
            description=images.description(),
            out=folder.path,
            resume=resume,
            on_progress=on_progress,
        )
