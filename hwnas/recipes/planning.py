"""What a recipe's stages will train on: their data are found and counted before the first begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwnas.core.genotype import Genotype
from hwnas.core.space import SearchSpace, for_classes
from hwnas.core.training import torch_device
from hwnas.errors import InvalidInput
from hwnas.processes import processes
from hwnas.recipes.images import LabelledImages
from hwnas.recipes.recipe import TARGET, Recipe, Stage, TeacherStage
from hwnas.recipes.teacher import imagenet_weights
from hwnas.segmentation.dataset import SegmentationDataset
from hwnas.segmentation.metrics import named_metric
from hwnas.segmentation.registry import open_dataset


@dataclass(frozen=True)
class PlannedImages:
    """A data set of :attr:`Stage.unlabelled`.

    Attributes:
        place: where it lies.
        split: the part of it that is learnt from.
        options: what else its class takes.
        images: how many there are.
    """

    place: str
    split: str
    options: Mapping[str, Any]
    images: int


@dataclass(frozen=True)
class PlannedStage:
    """A stage with the data that were found for it.

    Attributes:
        stage: what is to be done.
        place: where its data lie.
        split: the part of them that trains.
        options: what else their class takes, :attr:`Stage.size` among it; empty for a classifier's.
        val: the split that is evaluated, or None.
        unlabelled: what is found of :attr:`Stage.unlabelled`.
        images: how many of the stage's own train.
        drawn: how many of those without labels are drawn for each epoch.
        num_classes: how many they tell apart.
        folder: for its log, checkpoint and weights.
    """

    stage: Stage
    place: str
    split: str
    options: Mapping[str, Any]
    val: str | None
    unlabelled: tuple[PlannedImages, ...]
    images: int
    drawn: int
    num_classes: int
    folder: Path

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return (self.images + self.drawn) // self.stage.batch


def plan(
    space: SearchSpace,
    genotype: Genotype,
    recipe: Recipe,
    places: Mapping[str, str],
    *,
    out: str | Path,
    splits: Mapping[str, str] | None = None,
    val: str | None = "val",
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PlannedStage]:
    """What :func:`hwnas.recipes.train` would do; the data are found and counted, and nothing is written.

    For the arguments see there.

    Raises:
        InvalidInput: a data set of the recipe has no place or too few images, or the space cannot tell its
            classes apart, has no auxiliary heads or no metric; ``val`` is trained on; a stage's device is
            not here, or its batch cannot be divided among the processes.
        DataError: what lies in a place is not such a data set.
        MissingExtra: the recipe has a teacher, and the weights that it begins with are not installed.
    """
    lacking = [name for name in (*recipe.other_data, TARGET) if name not in places]
    if lacking:
        raise InvalidInput(
            f"the recipe trains on {', '.join((*recipe.other_data, TARGET))}, and nothing says where "
            f"{', '.join(lacking)} is; name a place for each (--place {lacking[0]}:DIR)."
        )
    planned = []
    for stage in recipe.all_stages:
        if isinstance(stage, TeacherStage):
            imagenet_weights()  # is it there?
        torch_device(stage.fit.device)  # is it there?
        processes().share(range(stage.batch), f"stage {stage.name}: a batch")
        place, split = places[stage.data], (splits or {}).get(stage.data, "train")
        given = _options(stage, stage.data, options) if stage.task == "segmentation" else {}
        images = open_images(stage, place, split, {**given, "cache": False})
        unlabelled = tuple(
            _unlabelled(stage, name, places[name], splits, options) for name in stage.unlabelled
        )
        drawn = 0
        if unlabelled:
            share = stage.unlabelled_share
            drawn = max(1, round(len(images) * share / (1 - share)))
        if stage.batch > len(images) + drawn:
            without = f", and {drawn} without labels are drawn" if drawn else ""
            raise InvalidInput(
                f"stage {stage.name} wants batches of {stage.batch}, and the split {split} of {place} has "
                f"{len(images)} images{without}."
            )
        theirs, _ = for_classes(space, genotype, images.num_classes)
        if stage.auxiliary and type(theirs).auxiliary_heads is SearchSpace.auxiliary_heads:
            raise InvalidInput(f"stage {stage.name} wants auxiliary heads, and {space.name} has none.")
        scored = val if stage.data == TARGET and stage.task == "segmentation" else None
        if scored is not None:
            if scored in split.split("+"):
                raise InvalidInput(
                    f'the split "{scored}" is trained on ("{split}"), and a score on it would mean nothing; '
                    "evaluate another, or none (val=None)."
                )
            learnt = [each for each in unlabelled if each.place == place and scored in each.split.split("+")]
            if learnt:
                raise InvalidInput(
                    f'the split "{scored}" of {place} is learnt from without its labels, and a score on it '
                    "would mean nothing; evaluate another, or none (val=None)."
                )
            held_out = open_dataset(place, scored, **{**given, "cache": False})
            named_metric(theirs, held_out)  # is there one?
        folder = Path(out) if stage is recipe.stages[-1] else Path(out) / stage.name
        planned.append(
            PlannedStage(
                stage, place, split, given, scored, unlabelled, len(images), drawn, images.num_classes, folder
            )
        )
    return planned


def _unlabelled(
    stage: Stage,
    name: str,
    place: str,
    splits: Mapping[str, str] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
) -> PlannedImages:
    if processes().size > 1:
        # A process whose share of a batch has no label would count as one that has.
        raise InvalidInput(
            f"stage {stage.name} learns from {name} without labels, which one process alone can do: start it "
            "without torchrun, or leave unlabelled out."
        )
    split = (splits or {}).get(name, "train")
    given = dict((options or {}).get(name, {}))
    if stage.unlabelled_size is not None:
        given["size"] = stage.unlabelled_size
    found = open_unlabelled(stage, place, split, {**given, "cache": False})
    return PlannedImages(place, split, given, len(found))


def _options(stage: Stage, name: str, options: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """What the class of a segmentation data set takes in a stage, whose own size goes before."""
    given = dict((options or {}).get(name, {}))
    size = stage.size or given.pop("size", None)
    return given if size is None else {**given, "size": size}


def open_images(
    stage: Stage, place: str, split: str, options: Mapping[str, Any]
) -> SegmentationDataset | LabelledImages:
    """The images that a stage trains on, augmented as it says.

    Args:
        stage: what is to be done.
        place: where its data lie.
        split: the part of them that trains.
        options: what else their class takes.
    """
    if stage.task == "classification":
        return LabelledImages(
            place,
            split,
            crop=stage.augmentation.crop,
            least_share=stage.least_share,
            flip=stage.augmentation.flip,
            **options,
        )
    return open_dataset(place, split, augment=stage.augmentation, **options)


def open_unlabelled(stage: Stage, place: str, split: str, options: Mapping[str, Any]) -> SegmentationDataset:
    """A data set of :attr:`Stage.unlabelled`, cropped as the stage's own images are.

    For the arguments see :func:`open_images`.
    """
    # Rare classes are the target's; here their numbers mean something else.
    augmentation = replace(stage.augmentation, rare=(), rare_share=0.0)
    return open_dataset(place, split, augment=augmentation, **options)
