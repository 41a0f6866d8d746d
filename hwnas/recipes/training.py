"""From a genotype and a recipe to a trained network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.fit import Loss, fit, transfer_weights
from hwnas.core.genotype import Genotype
from hwnas.core.progress import Progress
from hwnas.core.run import differences
from hwnas.core.space import SearchSpace
from hwnas.core.training import torch_device
from hwnas.errors import CheckpointError, InvalidInput, listing
from hwnas.files import write_atomically
from hwnas.processes import as_one, told_by_first
from hwnas.recipes.pictures import LabelledPictures
from hwnas.recipes.recipe import TARGET, Recipe, Stage, TeacherStage
from hwnas.recipes.teacher import imagenet_weights, pretrained_teacher
from hwnas.segmentation.dataset import SegmentationDataset
from hwnas.segmentation.loaders import evaluation_loader, training_loader
from hwnas.segmentation.losses import OhemCrossEntropy
from hwnas.segmentation.metrics import MeanIoU
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
        options: what else their class takes, :attr:`Stage.size` among it; empty for pictures.
        pictures: how many of them there are.
        classes: how many they tell apart.
        folder: for its log, checkpoint and weights.
    """

    stage: Stage
    place: str
    split: str
    options: Mapping[str, Any]
    pictures: int
    classes: int
    folder: Path

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.pictures // self.stage.batch


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
        options: by segmentation data set, what else its class takes; a stage's own size goes before ``size``.
        teacher: see :func:`hwnas.fit`; teaches in the stages whose ``distillation_weight`` is not 0, where
            the recipe has no teacher of its own.
        workers: processes that load pictures.
        resume: go on in ``out``; stages that are done are not repeated.
        on_stage: called as each stage begins.
        on_progress: called with the stage after each of its steps and epochs.

    Raises:
        InvalidInput: a data set of the recipe has no place or too few pictures, or the space cannot tell its
            classes apart; ``val`` is trained on; ``out`` holds a training and ``resume`` is false; there is
            no teacher where one is to teach, or there are two; what :func:`hwnas.fit` raises.
        MissingExtra: the recipe has a teacher, and the weights that it begins with are not installed.
        DataError: what lies in a place is not such a data set.
        CheckpointError: ``out`` holds a training by another recipe.
    """
    out = Path(out)
    planned = plan(space, genotype, recipe, places, out=out, splits=splits, options=options)
    if val is not None and val in planned[-1].split.split("+"):
        raise InvalidInput(
            f'the split "{val}" is trained on ("{planned[-1].split}"), and a score on it would mean nothing; '
            "evaluate another, or none (val=None)."
        )
    if teacher is not None and recipe.teacher is not None:
        raise InvalidInput("there are two teachers, the recipe's and the one that was passed: pass none.")
    taught = [stage.name for stage in recipe.stages if stage.fit.distillation_weight]
    if teacher is None and recipe.teacher is None and taught:
        raise InvalidInput(
            f"in stage {taught[0]} a teacher teaches (distillation_weight), and there is none."
        )
    told_by_first(lambda: _begin(out, recipe, planned, resume))
    start: Path | None = None
    for each in planned:
        if on_stage is not None:
            on_stage(each)
        network, found = _train_stage(
            space,
            genotype,
            each,
            val=val if each.stage.data == TARGET else None,
            start=start,
            teacher=teacher,
            workers=workers,
            resume=resume,
            on_progress=on_progress,
        )
        if isinstance(each.stage, TeacherStage):
            teacher = network
        else:
            start = each.folder / "weights.pt"
    return network, found


def plan(
    space: SearchSpace,
    genotype: Genotype,
    recipe: Recipe,
    places: Mapping[str, str],
    *,
    out: str | Path,
    splits: Mapping[str, str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PlannedStage]:
    """What :func:`train` would do; the data are found and counted, and nothing is written.

    For the arguments see there.

    Raises:
        InvalidInput: a data set of the recipe has no place or too few pictures, or the space cannot tell its
            classes apart, or has no auxiliary heads.
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
        place, split = places[stage.data], (splits or {}).get(stage.data, "train")
        pictures: SegmentationDataset | LabelledPictures
        given: dict[str, Any] = {}
        if stage.task == "classification":
            pictures = LabelledPictures(place, split)
        else:
            given = {"size": None, **(options or {}).get(stage.data, {})}
            given["size"] = stage.size or given["size"]
            if given["size"] is None:
                del given["size"]
            pictures = open_dataset(place, split, **{**given, "cache": False})
        if stage.batch > len(pictures):
            raise InvalidInput(
                f"stage {stage.name} wants batches of {stage.batch}, and the split {split} of {place} has "
                f"{len(pictures)} pictures."
            )
        theirs, _ = for_classes(space, genotype, pictures.num_classes)
        if stage.auxiliary and type(theirs).auxiliary_heads is SearchSpace.auxiliary_heads:
            raise InvalidInput(f"stage {stage.name} wants auxiliary heads, and {space.name} has none.")
        folder = Path(out) if stage is recipe.stages[-1] else Path(out) / stage.name
        planned.append(PlannedStage(stage, place, split, given, len(pictures), pictures.num_classes, folder))
    return planned


def _begin(out: Path, recipe: Recipe, planned: Sequence[PlannedStage], resume: bool) -> None:
    """Refuse a folder that holds another training, before hours go into a stage; else write the recipe."""
    begun = [each.folder for each in planned if (each.folder / "fit.json").is_file()]
    path = out / "recipe.json"
    if begun and not resume:
        raise InvalidInput(
            f"{begun[0]} holds a training already. Go on with it (--resume), or name another folder (--out)."
        )
    if out in begun and not path.is_file():
        raise CheckpointError(
            f"{out} holds a training without a recipe: go on with it without one, or start anew in another "
            "folder (--out)."
        )
    if begun and path.is_file() and (lines := differences(_by_stage(Recipe.load(path)), _by_stage(recipe))):
        raise CheckpointError(
            f"{out} holds a training by another recipe:\n{listing(lines)}\n"
            "Resume with the same, or start anew in another folder (--out)."
        )
    write_atomically(path, (recipe.model_dump_json(indent=1) + "\n").encode())


def _by_stage(recipe: Recipe) -> dict[str, Any]:
    stages = {stage.name: stage.model_dump(mode="json", exclude={"name"}) for stage in recipe.all_stages}
    return {"stages": " ".join(stages), **stages}


def for_classes(space: SearchSpace, genotype: Genotype, classes: int) -> tuple[SearchSpace, Genotype]:
    """The space and the architecture that tell so many classes apart, otherwise the same.

    Raises:
        InvalidInput: the space's own number is another, and it has no field ``num_classes``.
    """
    own = getattr(space, "num_classes", None)
    if own == classes:
        return space, genotype
    if own is None:
        raise InvalidInput(
            f"the data have {classes} classes, and {space.name} has no field num_classes to set to that."
        )
    other = _with_classes(space, classes)
    return other, genotype.model_copy(update={"fields": other.model_dump(mode="json")})


# A space remembers what it recorded of its supernet, which takes a second: one object serves all stages.
@lru_cache(maxsize=8)
def _with_classes(space: SearchSpace, classes: int) -> SearchSpace:
    return type(space)(**{**space.model_dump(), "num_classes": classes})


def _train_stage(
    space: SearchSpace,
    genotype: Genotype,
    planned: PlannedStage,
    *,
    val: str | None,
    start: Path | None,
    teacher: nn.Module | None,
    workers: int,
    resume: bool,
    on_progress: StageProgress | None,
) -> tuple[nn.Module, dict[str, Any]]:
    stage, place = planned.stage, planned.place
    scored, metric = None, None
    pictures: SegmentationDataset | LabelledPictures
    loss: Loss
    if stage.task == "classification":
        crop = stage.augmentation.crop
        pictures = LabelledPictures(place, planned.split, crop=crop, flip=stage.augmentation.flip)
        loss = classification_loss
    else:
        options = {"cache": True, **planned.options}
        pictures = open_dataset(place, planned.split, augment=stage.augmentation, **options)
        loss = space.fit_loss
        if stage.class_weight_offset is not None:
            weights = class_weights(pictures, stage.class_weight_offset)
            loss = OhemCrossEntropy(class_weights=weights).to(torch_device(stage.fit.device))
        if val is not None:
            dataset = open_dataset(place, val, **options)
            # Pictures that keep their sizes may differ in them.
            scored = evaluation_loader(dataset, 4 if "size" in options else 1, num_workers=workers)
            metric = MeanIoU(dataset.num_classes, names=dataset.classes)
    space, genotype = for_classes(space, genotype, planned.classes)
    torch.manual_seed(stage.fit.seed)
    if isinstance(stage, TeacherStage):
        network: nn.Module = pretrained_teacher(planned.classes)
    else:
        network = space.build(genotype)
    if start is not None:
        transfer_weights(network, start)
    found = fit(
        network,
        training_loader(pictures, stage.batch, num_workers=workers),
        loss=loss,
        config=stage.fit,
        val=scored,
        metric=metric,
        teacher=teacher if stage.fit.distillation_weight else None,
        auxiliary=space.auxiliary_heads(network) if stage.auxiliary else None,
        description={
            "stage": stage.model_dump(mode="json", exclude={"fit"}),
            "data": place.partition(":")[0],
            "options": {name: value for name, value in planned.options.items() if name != "cache"},
            "split": planned.split,
            "pictures": len(pictures),
            "start": start and _digest(start),
        },
        out=planned.folder,
        resume=resume,
        on_progress=None if on_progress is None else partial(on_progress, stage),
    )
    # The other processes read the weights of this stage next: not before the first has written them.
    told_by_first(lambda: None)
    return network, found


def classification_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of a network that gives maps of logits, as a classifier: the mean over the map decides.

    So all of a network is pre-trained, whatever it is made of, and nothing has to be told apart or cut off.

    Args:
        logits: ``[N, classes, H, W]``.
        targets: ``[N]``.
    """
    return functional.cross_entropy(logits.float().mean(dim=(2, 3)), targets)


def class_weights(pictures: SegmentationDataset, offset: float) -> Tensor:
    """``1 / ln(offset + share)`` for each class, of all labelled pixels of ``pictures``.

    Paszke et al., "ENet", arXiv 1606.02147, section 5.2.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for index in range(len(pictures)):
        _, label = pictures.stored(index)
        counts += torch.bincount(label.flatten(), minlength=256)
    labelled = counts[: pictures.num_classes].double()
    return (1 / (offset + labelled / labelled.sum()).log()).float()


def _digest(weights: Path) -> str:
    """What tells one file of weights from another, whenever it was written."""
    digest = hashlib.sha256()
    for name, tensor in load_checkpoint(weights)["weights"].items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
