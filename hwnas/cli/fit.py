"""``hwnas fit``: train the network that a search found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hwnas.cli.console import note, result, watching
from hwnas.cli.data import DataChoice, image_shape, require_maps
from hwnas.cli.folder import RunFolder, RunSetup
from hwnas.cli.nets import is_of_the_zoo, refuse_zoo
from hwnas.cli.settings import changed, parse, sort_out, validated
from hwnas.core.checkpoint import seed_all
from hwnas.core.fit import FitConfig, fit
from hwnas.core.weights import digest, transfer_weights
from hwnas.errors import InvalidInput
from hwnas.processes import as_one, told_by_first
from hwnas.recipes.presets import find_recipe
from hwnas.segmentation.metrics import named_metric

if TYPE_CHECKING:
    from torch import nn

    from hwnas.core.progress import Progress
    from hwnas.recipes import Recipe, Stage
    from hwnas.recipes.planning import PlannedStage


@click.command("fit")
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option("--preset", help="Settings for training [default: the search's preset].")
@click.option("--recipe", "recipe_name", metavar="NAME|FILE.json",
              help="Train in stages instead; hwnas recipes lists them.")  # fmt: skip
@click.option("--place", "places", multiple=True, metavar="NAME:DIR",
              help="Where a data set of the recipe lies; repeatable.")  # fmt: skip
@click.option("--data", metavar="NAME[:DIR]", help="What the network is for [default: the search's data].")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Make another run of the architecture there, for --data, and train that.")  # fmt: skip
@click.option("--pretrained", is_flag=True,
              help="Begin with the weights of RUN, as far as layers agree; with --out.")  # fmt: skip
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A field of FitConfig, or STAGE.FIELD of the recipe's, or data.NAME.",
)
@click.option("--resume", is_flag=True, help="Go on with the training in RUN, or in --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@as_one
def command(
    run: Path,
    preset: str | None,
    recipe_name: str | None,
    places: Sequence[str],
    data: str | None,
    out: Path | None,
    pretrained: bool,
    settings: Sequence[str],
    resume: bool,
    as_json: bool,
) -> None:
    """Train the network of RUN/genotype.json; writes RUN/weights.pt and RUN/fit.log.jsonl.

    From scratch, or with --pretrained from RUN's own weights. With --out, RUN may be a network of the zoo,
    too: --pretrained --data folders:DIR --out MINE fine-tunes it on images of your own.
    """
    from hwnas import zoo

    if pretrained and out is None:
        raise InvalidInput(
            f"--pretrained begins another run with the weights of {run}, and the weights there would be "
            "overwritten: name a folder for it (--out DIR)."
        )
    if out is None:
        refuse_zoo(run)
    given = parse(settings)
    folder = RunFolder(zoo.find(str(run)).folder if is_of_the_zoo(str(run)) else run)
    start, began_with = None, None
    if pretrained:
        start = zoo.load(folder.path) if folder.is_of_the_zoo else folder.network()
        began_with = _learnt(folder)
        note(f"begins with the weights of {began_with}: images among those would be no test")
    into = out or run
    if resume and not [*into.glob("fit.checkpoint.pt"), *into.glob("*/fit.checkpoint.pt")]:
        note(f"no training was begun in {into}: there is nothing to resume, and it starts anew")
    if recipe_name is None:
        if places:
            raise InvalidInput(f"--place {places[0]} says where a recipe finds its data: give --recipe, too.")
        homes = sort_out(given, {"fit": list(FitConfig.model_fields), "data": None})
        setup = RunSetup.load(run)
        preset = preset or (setup.preset if setup else None)
        base = validated(FitConfig, folder.space.preset(preset).fit if preset else {}).model_dump()
        config = validated(FitConfig, changed(base, homes["fit"]))
        if config.distillation_weight:
            raise InvalidInput(
                f"distillation_weight is {config.distillation_weight:g}, and teachers come with recipes: "
                f"hwnas fit {run} --recipe taught"
            )
        images = folder.data(data, homes["data"])
        found = run_fit(_into(folder, out, images, began_with), images, config, start=start, resume=resume)
    else:
        if preset is not None:
            raise InvalidInput("--recipe and --preset both say how to train: give one of them.")
        recipe, of_data = adjusted(find_recipe(recipe_name), given)
        images = folder.data(data, of_data)
        into_folder = _into(folder, out, images, began_with)
        found = run_recipe(into_folder, images, recipe, places, start=start, resume=resume)
    weights = (out or run) / "weights.pt"
    lines = [f"{weights}: nothing was held out to score it on"]
    if found:
        lines = [f"{weights}: {next(iter(found))} {next(iter(found.values())):.1f} % on validation images"]
    result(found, lines, as_json=as_json)


def _learnt(folder: RunFolder) -> str:
    """Whose weights these are, and what they were trained on, for people."""
    if folder.is_of_the_zoo:
        from hwnas import zoo

        card = zoo.card(folder.path)
        return f"{card.name}, trained on {card.data}, {card.split}"
    setup = RunSetup.load(folder.path)
    if setup is None:
        return f"{folder.path.resolve().name}, trained on what it does not say"
    # Where the data lie on this machine is nobody's business.
    before = f", begun with {setup.began_with}" if setup.began_with else ""
    name = setup.data.name.partition(":")[0]
    return f"{folder.path.resolve().name}, trained on {name}, {setup.data.train}{before}"


def _into(folder: RunFolder, out: Path | None, images: DataChoice, began_with: str | None) -> RunFolder:
    if out is None:
        ours, theirs = getattr(folder.space, "num_classes", None), images.class_count()
        if ours is not None and ours != theirs:
            raise InvalidInput(
                f"the network of {folder.path} tells {ours} classes apart, {images.name} has {theirs}: train "
                "one of the same architecture for them in a folder of its own (--out DIR)."
            )
    into = folder if out is None else told_by_first(lambda: folder.transferred(out, images))
    told_by_first(lambda: into.begin_with(began_with))
    return into


def run_fit(
    folder: RunFolder,
    images: DataChoice,
    config: FitConfig,
    *,
    start: nn.Module | None = None,
    resume: bool,
) -> dict[str, Any]:
    """Train, watched; the last evaluation, empty where no images are held out."""
    space = folder.space
    size = image_shape(space)[1:]
    train = images.training(images.train, size, config.device)
    dataset: Any = train.dataset
    require_maps(space, dataset.num_classes)
    held_out = _held_out(images)
    seed_all(config.seed)
    network = folder.network(trained=False)
    began: dict[str, Any] = {}
    if start is not None:
        weights = start.state_dict()
        transfer_weights(network, weights)
        began = {"start": digest(weights)}
    with watching("fit", len(train)) as on_progress:
        return fit(
            network,
            train,
            loss=space.fit_loss,
            config=config,
            val=None if held_out is None else images.evaluation(held_out, size, config.device),
            metric=named_metric(space, dataset),
            description=images.description() | began,
            out=folder.path,
            resume=resume,
            on_progress=on_progress,
        )


def run_recipe(
    folder: RunFolder,
    images: DataChoice,
    recipe: Recipe,
    places: Sequence[str],
    *,
    start: nn.Module | None = None,
    resume: bool,
) -> dict[str, Any]:
    """Train by a recipe, each stage watched; the last evaluation, empty where no images are held out."""
    from hwnas.recipes import train
    from hwnas.recipes.recipe import TARGET

    space = folder.space
    require_maps(space, images.class_count())
    names = [stage.name for stage in recipe.all_stages]
    with ExitStack() as bar:
        show: list[Any] = []

        def on_stage(planned: PlannedStage) -> None:
            stage = planned.stage
            others = ""
            if planned.drawn:
                others = f", {planned.drawn} in an epoch of {', '.join(stage.unlabelled)} without labels"
            note(
                f"stage {names.index(stage.name) + 1}/{len(names)} {stage.name}: {stage.task} on "
                f"{planned.place}, split {planned.split}: {planned.images} images of {planned.num_classes} "
                f"classes{others}, {stage.fit.epochs} epochs of {planned.steps} steps"
            )
            bar.close()
            show[:] = [bar.enter_context(watching(stage.name, planned.steps))]

        def on_progress(stage: Stage, progress: Progress) -> None:
            show[0](progress)

        _, found = train(
            space,
            folder.genotype,
            recipe,
            _places(recipe, places) | {TARGET: images.name},
            out=folder.path,
            splits={TARGET: images.train},
            val=_held_out(images),
            options={TARGET: {**images.options, "size": image_shape(space)[1:]}},
            start=start,
            workers=images.workers,
            on_device=images.on_device,
            resume=resume,
            on_stage=on_stage,
            on_progress=on_progress,
        )
    return found


def adjusted(recipe: Recipe, settings: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """A recipe with settings such as ``target.fit.epochs``; and those that are of the data.

    Raises:
        InvalidInput: a setting that is no stage's, or that a recipe decides, or a value that is refused.
    """
    fields = {
        stage.name: [name for name in type(stage).model_fields if name != "name"]
        for stage in recipe.all_stages
    }
    # By name: a stage has a field "data" too.
    of_data = {key[5:]: value for key, value in settings.items() if key.startswith("data.")}
    rest = {key: value for key, value in settings.items() if not key.startswith("data.")}
    homes = sort_out(rest, fields)
    if decided := sorted({"batch", "augment"} & of_data.keys()):
        field = {"batch": "batch=…", "augment": "augmentation.flip=…"}[decided[0]]
        stage = recipe.stages[-1].name
        raise InvalidInput(f"data.{decided[0]} is the recipe's to say, for each stage: --set {stage}.{field}")
    stages = [
        validated(type(stage), changed(stage.model_dump(), homes[stage.name])) for stage in recipe.all_stages
    ]
    teacher = None if recipe.teacher is None else stages.pop(0)
    return validated(type(recipe), {"about": recipe.about, "stages": stages, "teacher": teacher}), of_data


def _places(recipe: Recipe, places: Sequence[str]) -> dict[str, str]:
    """Where each data set lies that a recipe names; "synthetic" lies nowhere.

    Raises:
        InvalidInput: a place of something else.
    """
    found = {"synthetic": "synthetic"}
    for place in places:
        names = [name for name in recipe.other_data if place == name or place.startswith(f"{name}:")]
        if not names:
            others = ", ".join(recipe.other_data) or "no data but the target"
            raise InvalidInput(f"--place {place} is not needed: besides --data the recipe has {others}.")
        found[names[0]] = place
    return found


def _held_out(images: DataChoice) -> str | None:
    """The split to score on, or none, and then it is said why."""
    if images.held_out is None:
        note(f'the split "{images.val}" is trained on ("{images.train}"), so nothing is scored')
    return images.held_out
