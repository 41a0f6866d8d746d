"""From a genotype and a recipe to a trained network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.fit import Loss, fit, transfer_weights
from hwnas.core.genotype import Genotype
from hwnas.core.progress import Progress
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput
from hwnas.files import write_atomically
from hwnas.recipes.pictures import LabelledPictures
from hwnas.recipes.recipe import TARGET, Recipe, Stage
from hwnas.segmentation.dataset import SegmentationDataset
from hwnas.segmentation.loaders import evaluation_loader, training_loader
from hwnas.segmentation.losses import OhemCrossEntropy
from hwnas.segmentation.metrics import MeanIoU
from hwnas.segmentation.registry import open_dataset

StageProgress = Callable[[Stage, Progress], None]


def train(
    space: SearchSpace,
    genotype: Genotype,
    recipe: Recipe,
    places: Mapping[str, str],
    *,
    out: str | Path,
    splits: Mapping[str, str] | None = None,
    val: str | None = "val",
    teacher: nn.Module | None = None,
    workers: int = 0,
    resume: bool = False,
    on_progress: StageProgress | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the network of ``genotype`` by ``recipe``; the network, and its last evaluation on the target.

    Each stage but the last has a folder of its own in ``out``; the last one's files (``fit.json``,
    ``fit.log.jsonl``, ``weights.pt`` …) lie in ``out`` itself, with ``recipe.json``.

    Args:
        space: whose genotype it is; for stages with other classes it must have the field ``num_classes``.
        genotype: the architecture.
        recipe: what to do.
        places: where each data set lies that the recipe names, as on the command line:
            ``{"target": "camvid:DIR", "idd_lite": "idd_lite:DIR"}``.
        out: folder.
        splits: by data set, the split to train on; "train" where nothing is said.
        val: the target's split that is evaluated, or None.
        teacher: see :func:`hwnas.fit`; teaches in the stages whose ``distillation_weight`` is not 0.
        workers: processes that load pictures.
        resume: go on in ``out``; stages that are done are not repeated.
        on_progress: called with the stage after each of its steps and epochs.

    Raises:
        InvalidInput: a data set of the recipe has no place, or the space cannot tell its classes apart; what
            :func:`hwnas.fit` raises.
        DataError: what lies in a place is not such a data set.
        CheckpointError: ``out`` holds a training by another recipe.
    """
    out = Path(out)
    lacking = [name for name in (*recipe.other_data, TARGET) if name not in places]
    if lacking:
        raise InvalidInput(
            f"the recipe trains on {', '.join((*recipe.other_data, TARGET))}, and nothing says where "
            f"{', '.join(lacking)} is; expected a place for each, such as idd_lite:DIR."
        )
    write_atomically(out / "recipe.json", (recipe.model_dump_json(indent=1) + "\n").encode())
    start: Path | None = None
    for stage in recipe.stages:
        is_last = stage is recipe.stages[-1]
        folder = out if is_last else out / stage.name
        network, found = _train_stage(
            space,
            genotype,
            stage,
            places[stage.data],
            split=(splits or {}).get(stage.data, "train"),
            val=val if is_last else None,
            start=start,
            folder=folder,
            teacher=teacher,
            workers=workers,
            # Whatever stage was interrupted: what is done before it is found done.
            resume=resume and (folder / "fit.json").is_file(),
            on_progress=on_progress,
        )
        start = folder / "weights.pt"
    return network, found


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
    other = type(space)(**{**space.model_dump(), "num_classes": classes})
    return other, other.genotype(space.assignment(genotype))


def _train_stage(
    space: SearchSpace,
    genotype: Genotype,
    stage: Stage,
    place: str,
    *,
    split: str,
    val: str | None,
    start: Path | None,
    folder: Path,
    teacher: nn.Module | None,
    workers: int,
    resume: bool,
    on_progress: StageProgress | None,
) -> tuple[nn.Module, dict[str, Any]]:
    scored, metric = None, None
    pictures: SegmentationDataset | LabelledPictures
    loss: Loss
    if stage.task == "classification":
        pictures = LabelledPictures(place, split, crop=stage.augmentation.crop, flip=stage.augmentation.flip)
        loss = classification_loss
    else:
        pictures = open_dataset(place, split, size=stage.size, augment=stage.augmentation, cache=True)
        offset = stage.class_weight_offset
        loss = (
            space.fit_loss
            if offset is None
            else OhemCrossEntropy(class_weights=class_weights(pictures, offset))
        )
        if val is not None:
            dataset = open_dataset(place, val, size=stage.size, cache=True)
            scored = evaluation_loader(dataset, 4, num_workers=workers)
            metric = MeanIoU(dataset.num_classes, names=dataset.classes)
    space, genotype = for_classes(space, genotype, pictures.num_classes)
    torch.manual_seed(stage.fit.seed)
    network = space.build(genotype)
    if start is not None:
        transfer_weights(network, start)
    auxiliary = space.auxiliary_heads(network) if stage.auxiliary else None
    if stage.auxiliary and not auxiliary:
        raise InvalidInput(f"stage {stage.name} wants auxiliary heads, and {space.name} has none.")
    found = fit(
        network,
        training_loader(pictures, stage.batch, num_workers=workers),
        loss=loss,
        config=stage.fit,
        val=scored,
        metric=metric,
        teacher=teacher if stage.fit.distillation_weight else None,
        auxiliary=auxiliary,
        description={
            "stage": stage.model_dump(mode="json", exclude={"fit"}),
            "data": place.partition(":")[0],
            "split": split,
            "pictures": len(pictures),
            "start": None if start is None else _digest(start),
        },
        out=folder,
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
