"""From a genotype and a recipe to a trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from hwnas.core.checkpoint import seed_all
from hwnas.core.fit import Loss, fit
from hwnas.core.genotype import Genotype
from hwnas.core.identity import as_ever
from hwnas.core.progress import Progress
from hwnas.core.space import SearchSpace, for_classes
from hwnas.core.training import torch_device
from hwnas.core.weights import digest, save_weights, transfer_weights
from hwnas.errors import InvalidInput
from hwnas.processes import as_one, processes, told_by_first
from hwnas.recipes.folder import begin_folder
from hwnas.recipes.losses import class_weights, classification_loss
from hwnas.recipes.planning import PlannedStage, open_images, open_unlabelled, plan
from hwnas.recipes.recipe import Recipe, Stage, TeacherStage
from hwnas.recipes.soft_targets import WithSoftTargets
from hwnas.recipes.teacher import pretrained_teacher
from hwnas.segmentation.dataset import SegmentationDataset, WithUnlabelled
from hwnas.segmentation.loaders import evaluation_loader, training_loader
from hwnas.segmentation.losses import OhemCrossEntropy
from hwnas.segmentation.metrics import named_metric
from hwnas.segmentation.registry import open_dataset

StageProgress = Callable[[Stage, Progress], None]
"""Called after each step and each epoch of a stage."""


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
    start: nn.Module | None = None,
    teacher: nn.Module | None = None,
    workers: int = 0,
    on_device: bool = False,
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
        start: a network whose weights the first stage begins with, as far as layers agree, such as one of the
            zoo's; left as it is. None: fresh weights.
        teacher: see :func:`hwnas.fit`; teaches in the stages whose ``distillation_weight`` is not 0, where
            the recipe has no teacher of its own.
        workers: processes that load images; none in stages with ``soft_targets``.
        on_device: whether images are kept, decoded, on the device that trains, and augmented there; without
            workers.
        resume: go on in ``out``; stages that are done are not repeated.
        on_stage: called as each stage begins.
        on_progress: called with the stage after each of its steps and epochs.

    Raises:
        InvalidInput: what :func:`hwnas.recipes.planning.plan` and :func:`hwnas.fit` raise; ``out`` holds a
            training and ``resume`` is false; there is no teacher where one is to teach, or there are two.
        MissingExtra: the recipe has a teacher, and the weights that it begins with are not installed.
        DataError: what lies in a place is not such a data set.
        CheckpointError: ``out`` holds a training by another recipe.
    """
    out = Path(out)
    if on_device and workers:
        raise InvalidInput(f"on_device leaves nothing for workers to load: workers must be 0; got {workers}")
    planned = plan(space, genotype, recipe, places, out=out, splits=splits, val=val, options=options)
    if teacher is not None and recipe.teacher is not None:
        raise InvalidInput("there are two teachers, the recipe's and the one that was passed: pass none.")
    taught = [stage.name for stage in recipe.stages if stage.fit.distillation_weight]
    if teacher is None and recipe.teacher is None and taught:
        raise InvalidInput(
            f"in stage {taught[0]} a teacher teaches (distillation_weight), and there is none: give the "
            'recipe a "teacher", as "taught" has (hwnas recipes taught).'
        )
    told_by_first(lambda: begin_folder(out, recipe, planned, resume))
    for each in planned:
        if on_stage is not None:
            on_stage(each)
        network, found = _train_stage(
            space,
            genotype,
            each,
            start=None if isinstance(each.stage, TeacherStage) else start,
            teacher=teacher,
            workers=workers,
            on_device=on_device,
            resume=resume,
            on_progress=on_progress,
        )
        if isinstance(each.stage, TeacherStage):
            teacher = network
        else:
            start = network
    return network, found


def _train_stage(
    space: SearchSpace,
    genotype: Genotype,
    planned: PlannedStage,
    *,
    start: nn.Module | None,
    teacher: nn.Module | None,
    workers: int,
    on_device: bool,
    resume: bool,
    on_progress: StageProgress | None,
) -> tuple[nn.Module, dict[str, Any]]:
    stage, place = planned.stage, planned.place
    options = {"cache": stage.cache, **planned.options}
    device = torch_device(stage.fit.device)
    loading: dict[str, Any] = {
        "num_workers": workers,
        "pin_memory": device.type == "cuda" and not on_device,
    }
    space, genotype = for_classes(space, genotype, planned.num_classes)
    images = open_images(stage, place, planned.split, options)
    loss: Loss = space.fit_loss if stage.task == "segmentation" else classification_loss
    if stage.class_weight_offset is not None and isinstance(images, SegmentationDataset):
        weights = class_weights(images, stage.class_weight_offset)
        loss = OhemCrossEntropy(class_weights=weights).to(device)
    scored, metric = None, None
    if planned.val is not None:
        dataset = open_dataset(place, planned.val, **options)
        # Images that keep their sizes may differ in them.
        if on_device:
            dataset.to(device)
        scored = evaluation_loader(dataset, 4 if "size" in options else 1, **loading)
        metric = named_metric(space, dataset)
    others: list[SegmentationDataset] = []
    if planned.unlabelled:
        kept = {"cache": options["cache"]}
        others = [
            open_unlabelled(stage, each.place, each.split, {**kept, **each.options})
            for each in planned.unlabelled
        ]
    if on_device:
        for each in (images, *others):
            each.to(device)
    parts: list[Dataset[Any]] = [images, *others]
    asking = teacher if stage.soft_targets is not None else None
    if asking is not None:
        parts = _with_soft_targets([images, *others], stage, asking, device)
    seen: Dataset[Any] = WithUnlabelled(parts[0], parts[1:], planned.drawn) if others else parts[0]
    seed_all(stage.fit.seed)
    if isinstance(stage, TeacherStage):
        network: nn.Module = pretrained_teacher(planned.num_classes, frozen=stage.frozen)
    else:
        network = space.build(genotype)
    # From memory: what the first process has written need not be on this process's disk.
    started = None if start is None else start.state_dict()
    if started is not None:
        transfer_weights(network, started)
    learning = space.image_classifier(network) if stage.task == "classification" else network
    found = fit(
        learning,
        # Workers would each ask the teacher for themselves.
        training_loader(seen, stage.batch, **loading | ({} if asking is None else {"num_workers": 0})),
        loss=loss,
        config=stage.fit,
        val=scored,
        metric=metric,
        teacher=teacher if stage.fit.distillation_weight and asking is None else None,
        has_soft_targets=asking is not None,
        auxiliary=space.auxiliary_heads(network) if stage.auxiliary else None,
        description={
            # How images are loaded does not matter; "pictures" is what runs of old have it under.
            "stage": _described(stage),
            "data": place.partition(":")[0],
            "options": {name: value for name, value in planned.options.items() if name != "cache"},
            "split": planned.split,
            "pictures": len(images),
            # Not there where there are none, as in runs that were begun before there could be.
            **({"unlabelled": _told(planned)} if planned.unlabelled else {}),
            **({"teacher": digest(asking.state_dict())} if asking is not None else {}),
            "start": None if started is None else digest(started),
        },
        out=planned.folder,
        resume=resume,
        on_progress=None if on_progress is None else partial(on_progress, stage),
    )
    if learning is not network and processes().is_first:
        # fit() has kept those of the classifier, whose names the network does not know.
        save_weights(network, planned.folder / "weights.pt")
    return network, found


def _with_soft_targets(
    parts: Sequence[Dataset[Any]], stage: Stage, teacher: nn.Module, device: torch.device
) -> list[Dataset[Any]]:
    """Each data set with what the teacher says of its images, as the stage wants it."""
    found: list[Dataset[Any]] = []
    for part in parts:
        # A recipe sees to both: soft targets are a teacher's, and a teacher teaches to segment.
        assert isinstance(part, SegmentationDataset) and stage.soft_targets is not None
        found.append(
            WithSoftTargets(
                part,
                teacher,
                stage.soft_targets,
                device=device,
                precision=stage.fit.precision,
                channels_last=stage.fit.channels_last,
            )
        )
    return found


_LATER = {
    "least_share": 0.08,
    "unlabelled": [],
    "unlabelled_share": 0.5,
    "unlabelled_size": None,
    "soft_targets": None,
    "frozen": 0,
}
"""Fields that stages have not always had; see :func:`hwnas.core.identity.as_ever`."""


def _described(stage: Stage) -> dict[str, Any]:
    """A stage as the identity of its run has it."""
    return as_ever(stage.model_dump(mode="json", exclude={"fit", "cache"}), _LATER)


def _told(planned: PlannedStage) -> list[dict[str, Any]]:
    """What is learnt from without labels, for the description of the data."""
    return [
        {
            "data": each.place.partition(":")[0],
            "split": each.split,
            "options": {name: value for name, value in each.options.items() if name != "cache"},
            "pictures": each.images,
        }
        for each in planned.unlabelled
    ]
