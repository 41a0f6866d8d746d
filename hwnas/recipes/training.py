"""From a genotype and a recipe to a trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.fit import Loss, fit
from hwnas.core.genotype import Genotype
from hwnas.core.progress import Progress
from hwnas.core.run import differences
from hwnas.core.space import SearchSpace, for_classes
from hwnas.core.training import torch_device
from hwnas.core.weights import digest, transfer_weights
from hwnas.errors import CheckpointError, InvalidInput, listing
from hwnas.files import write_json
from hwnas.processes import as_one, processes, told_by_first
from hwnas.recipes.images import LabelledImages
from hwnas.recipes.recipe import TARGET, Recipe, Stage, TeacherStage
from hwnas.recipes.teacher import imagenet_weights, pretrained_teacher
from hwnas.segmentation.dataset import SegmentationDataset
from hwnas.segmentation.loaders import evaluation_loader, training_loader
from hwnas.segmentation.losses import OhemCrossEntropy
from hwnas.segmentation.metrics import named_metric
from hwnas.segmentation.registry import open_dataset

StageProgress = Callable[[Stage, Progress], None]
"""Called after each step and each epoch of a stage."""


@dataclass(frozen=True)
class PlannedStage:
    """A stage with the data that were found for it.

    Attributes:
        stage: what is to be done.
        place: where its data lie.
        split: the part of them that trains.
        options: what else their class takes, :attr:`Stage.size` among it; empty for a classifier's.
        val: the split that is evaluated, or None.
        images: how many of them train.
        num_classes: how many they tell apart.
        folder: for its log, checkpoint and weights.
    """

    stage: Stage
    place: str
    split: str
    options: Mapping[str, Any]
    val: str | None
    images: int
    num_classes: int
    folder: Path

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.images // self.stage.batch


@as_one
def train(
    space: SearchSpace,
    genotype: Genotype,
    recipe: Recipe,
    places: Mapping[str, str],
    *,
    out: str | Path,
    splits: Mapping[str, str] | None = None,
    val: str | None = "val",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    teacher: nn.Module | None = None,
    workers: int = 0,
    resume: bool = False,
    on_stage: Callable[[PlannedStage], None] | None = None,
    on_progress: StageProgress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the network of ``genotype`` by ``recipe``; the network, and its last evaluation on the target.

    Each stage but the last has a folder of its own in ``out``; the last one's files (``fit.json``,
    ``fit.log.jsonl``, ``weights.pt`` …) lie in ``out`` itself, with ``recipe.json``. Data of all stages are
    looked at before the first begins. Several processes train as one, as in :func:`hwnas.fit`.

    Args:
        space: whose genotype it is; for stages with other classes it must have the field ``num_classes``.
        genotype: the architecture.
        recipe: what to do.
        places: where each data set lies that the recipe names, as on the command line:
            ``{"target": "camvid:DIR", "idd_lite": "idd_lite:DIR"}``.
        out: folder.
        splits: by data set, the split to train on; "train" where nothing is said.
        val: the target's split that is evaluated, or None.
        options: by segmentation data set, what else its class takes; a stage's own size goes before ``size``,
            and ``cache`` before a stage's own.
        teacher: see :func:`hwnas.fit`; teaches in the stages whose ``distillation_weight`` is not 0, where
            the recipe has no teacher of its own.
        workers: processes that load images.
        resume: go on in ``out``; stages that are done are not repeated.
        on_stage: called as each stage begins.
        on_progress: called with the stage after each of its steps and epochs.

    Raises:
        InvalidInput: what :func:`plan` and :func:`hwnas.fit` raise; ``out`` holds a training and ``resume``
            is false; there is no teacher where one is to teach, or there are two.
        MissingExtra: the recipe has a teacher, and the weights that it begins with are not installed.
        DataError: what lies in a place is not such a data set.
        CheckpointError: ``out`` holds a training by another recipe.
    """
    out = Path(out)
    planned = plan(space, genotype, recipe, places, out=out, splits=splits, val=val, options=options)
    if teacher is not None and recipe.teacher is not None:
        raise InvalidInput("there are two teachers, the recipe's and the one that was passed: pass none.")
    taught = [stage.name for stage in recipe.stages if stage.fit.distillation_weight]
    if teacher is None and recipe.teacher is None and taught:
        raise InvalidInput(
            f"in stage {taught[0]} a teacher teaches (distillation_weight), and there is none: give the "
            'recipe a "teacher", as "taught" has (hwnas recipes taught).'
        )
    told_by_first(lambda: _begin(out, recipe, planned, resume))
    start: nn.Module | None = None
    for each in planned:
        if on_stage is not None:
            on_stage(each)
        network, found = _train_stage(
            space,
            genotype,
            each,
            start=start,
            teacher=teacher,
            workers=workers,
            resume=resume,
            on_progress=on_progress,
        )
        if isinstance(each.stage, TeacherStage):
            teacher = network
        else:
            start = network
    return network, found


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
    """What :func:`train` would do; the data are found and counted, and nothing is written.

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
        given: dict[str, Any] = {}
        if stage.task == "segmentation":
            given = dict((options or {}).get(stage.data, {}))
            given["size"] = stage.size or given.pop("size", None)
            if given["size"] is None:
                del given["size"]
        images = _opened(stage, place, split, {**given, "cache": False})
        if stage.batch > len(images):
            raise InvalidInput(
                f"stage {stage.name} wants batches of {stage.batch}, and the split {split} of {place} has "
                f"{len(images)} images."
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
            held_out = open_dataset(place, scored, **{**given, "cache": False})
            named_metric(theirs, held_out)  # is there one?
        folder = Path(out) if stage is recipe.stages[-1] else Path(out) / stage.name
        planned.append(
            PlannedStage(stage, place, split, given, scored, len(images), images.num_classes, folder)
        )
    return planned


def _opened(
    stage: Stage, place: str, split: str, options: Mapping[str, Any]
) -> SegmentationDataset | LabelledImages:
    """The images that a stage trains on."""
    if stage.task == "classification":
        return LabelledImages(place, split, crop=stage.augmentation.crop, flip=stage.augmentation.flip)
    return open_dataset(place, split, augment=stage.augmentation, **options)


def _begin(out: Path, recipe: Recipe, planned: Sequence[PlannedStage], resume: bool) -> None:
    """Refuse a folder that holds another training, before hours go into a stage; else write the recipe."""
    path = out / "recipe.json"
    kept = Recipe.load(path) if path.is_file() else None
    # Of the recipe that is kept, too: it may have been stopped in a stage that this one does not have.
    earlier = [stage for stage in kept.all_stages if stage is not kept.stages[-1]] if kept is not None else []
    folders = [out / stage.name for stage in earlier] + [each.folder for each in planned]
    begun = [folder for folder in dict.fromkeys(folders) if (folder / "fit.json").is_file()]
    lines = differences(_by_stage(kept), _by_stage(recipe)) if kept is not None else []
    if lines and begun:
        raise CheckpointError(
            f"{out} holds a training by another recipe:\n{listing(lines)}\n"
            "Resume with the same, or start anew in another folder (--out)."
        )
    if begun and not resume:
        raise InvalidInput(
            f"{begun[0]} holds a training already. Go on with it (--resume), or name another folder (--out)."
        )
    if out in begun and kept is None:
        raise CheckpointError(
            f"{out} holds a training without a recipe: go on with it without one, or start anew in another "
            "folder (--out)."
        )
    write_json(path, recipe)


def _by_stage(recipe: Recipe) -> dict[str, Any]:
    # Whether images are kept in memory changes nothing that is learnt.
    stages = {
        stage.name: stage.model_dump(mode="json", exclude={"name", "cache"}) for stage in recipe.all_stages
    }
    return {"stages": " ".join(stages), **stages}


def _train_stage(
    space: SearchSpace,
    genotype: Genotype,
    planned: PlannedStage,
    *,
    start: nn.Module | None,
    teacher: nn.Module | None,
    workers: int,
    resume: bool,
    on_progress: StageProgress | None,
) -> tuple[nn.Module, dict[str, Any]]:
    stage, place = planned.stage, planned.place
    options = {"cache": stage.cache, **planned.options}
    device = torch_device(stage.fit.device)
    loading: dict[str, Any] = {"num_workers": workers, "pin_memory": device.type == "cuda"}
    space, genotype = for_classes(space, genotype, planned.num_classes)
    images = _opened(stage, place, planned.split, options)
    loss: Loss = space.fit_loss if stage.task == "segmentation" else classification_loss
    if stage.class_weight_offset is not None and isinstance(images, SegmentationDataset):
        weights = class_weights(images, stage.class_weight_offset)
        loss = OhemCrossEntropy(class_weights=weights).to(device)
    scored, metric = None, None
    if planned.val is not None:
        dataset = open_dataset(place, planned.val, **options)
        # Images that keep their sizes may differ in them.
        scored = evaluation_loader(dataset, 4 if "size" in options else 1, **loading)
        metric = named_metric(space, dataset)
    torch.manual_seed(stage.fit.seed)
    if isinstance(stage, TeacherStage):
        network: nn.Module = pretrained_teacher(planned.num_classes)
    else:
        network = space.build(genotype)
    # From memory: what the first process has written need not be on this process's disk.
    started = None if start is None else start.state_dict()
    if started is not None:
        transfer_weights(network, started)
    found = fit(
        network,
        training_loader(images, stage.batch, **loading),
        loss=loss,
        config=stage.fit,
        val=scored,
        metric=metric,
        teacher=teacher if stage.fit.distillation_weight else None,
        auxiliary=space.auxiliary_heads(network) if stage.auxiliary else None,
        description={
            # How images are loaded does not matter; "pictures" is what runs of old have it under.
            "stage": stage.model_dump(mode="json", exclude={"fit", "cache"}),
            "data": place.partition(":")[0],
            "options": {name: value for name, value in planned.options.items() if name != "cache"},
            "split": planned.split,
            "pictures": len(images),
            "start": None if started is None else digest(started),
        },
        out=planned.folder,
        resume=resume,
        on_progress=None if on_progress is None else partial(on_progress, stage),
    )
    return network, found


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of a network that gives maps of logits, as a classifier: the mean over the map decides.

    So all of a network is pre-trained, whatever it is made of, and nothing has to be told apart or cut off.

    Args:
        logits: ``[N, classes, H, W]``.
        targets: ``[N]``.
    """
    return functional.cross_entropy(logits.float().mean(dim=(2, 3)), targets)


def class_weights(images: SegmentationDataset, offset: float) -> Tensor:
    """``1 / ln(offset + share)`` for each class, of all labelled pixels of ``images``.

    Paszke et al., "ENet", arXiv 1606.02147, section 5.2.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for index in range(len(images)):
        _, label = images.stored(index)
        counts += torch.bincount(label.flatten(), minlength=256)
    labelled = counts[: images.num_classes].double()
    return (1 / (offset + labelled / labelled.sum()).log()).float()
