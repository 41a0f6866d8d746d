"""Mean intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hwnas.errors import InvalidInput
from hwnas.segmentation.labels import VOID

if TYPE_CHECKING:
    from hwnas.core.space import Metric, SearchSpace
    from hwnas.segmentation.dataset import SegmentationDataset


def class_numbers(outputs: Tensor) -> Tensor:
    """Class numbers ``[N, H, W]`` of logits, floating ``[N, classes, H, W]``; class numbers stay."""
    # max's indices are argmax's, found five times as fast on the CPU.
    return outputs.max(dim=1).indices if outputs.is_floating_point() and outputs.ndim == 4 else outputs


class MeanIoU:
    """Mean intersection over union from one confusion matrix over the whole set.

    IoU of a class = true positives / (true positives + false positives + false negatives), summed over all
    images first: the mean of per-image scores is another number. Classes that occur neither in the targets
    nor in the predictions are left out of the mean. The matrix is counted by torchmetrics.

    Args:
        num_classes: how many classes are scored.
        ignore_index: target value of pixels that are not.
        names: one name a class; by default their numbers.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = VOID, names: Sequence[str] | None = None
    ) -> None:
        if num_classes < 2:
            raise InvalidInput(f"num_classes must be at least 2; got {num_classes}")
        if names is not None and (len(names) != num_classes or len(set(names)) != num_classes):
            raise InvalidInput(f"names must be {num_classes} different names; got {list(names)}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.names = tuple(names) if names is not None else tuple(map(str, range(num_classes)))
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        self._confusion: Tensor | None = None

    @property
    def confusion(self) -> Tensor:
        """Pixel counts, int64 ``[classes, classes]``: rows are the truth, columns the prediction."""
        if self._confusion is None:
            return torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        return self._confusion

    def sums(self) -> Tensor:
        """The pixel counts, to be added to those of another process."""
        return self.confusion

    def take_sums(self, sums: Tensor) -> None:
        """Replace the pixel counts."""
        self._confusion = sums

    @torch.no_grad()
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch.

        Args:
            logits: ``[N, C, H, W]`` floating, or class numbers ``[N, H, W]`` integer.
            targets: ``[N, H, W]`` int64.

        Raises:
            InvalidInput: if the shapes do not fit, or a target is neither a class nor ``ignore_index``.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix  # 0.5 s to import

        predictions = class_numbers(logits)
        if predictions.shape != targets.shape or predictions.is_floating_point():
            raise InvalidInput(
                f"expected logits [N, {self.num_classes}, H, W] or class numbers [N, H, W], and targets "
                f"[N, H, W]; got {list(logits.shape)} ({logits.dtype}) and {list(targets.shape)}"
            )
        for what, numbers in (("target", targets[targets != self.ignore_index]), ("prediction", predictions)):
            if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.num_classes:
                raise InvalidInput(
                    f"a {what} must lie in 0…{self.num_classes - 1}; "
                    f"got values from {int(numbers.min())} to {int(numbers.max())}"
                )
        # validate_args would look for stray values too, by sorting all pixels: three times as slow.
        counts: Tensor = multiclass_confusion_matrix(
            predictions, targets, self.num_classes, ignore_index=self.ignore_index, validate_args=False
        )
        self._confusion = counts if self._confusion is None else self._confusion + counts.to(self._confusion)

    def compute(self) -> dict[str, Any]:
        """The scores of everything counted so far, in percent.

        ``"miou"``: mean over the classes that occur; ``"per_class"``: a score by name, None where a class is
        neither labelled nor predicted; ``"pixel_accuracy"``: part of the labelled pixels that is right.

        Raises:
            InvalidInput: if no labelled pixel has been counted.
        """
        confusion = self.confusion.cpu().double()
        labelled = float(confusion.sum())
        if labelled == 0:
            raise InvalidInput("no labelled pixel has been counted; call update(logits, targets) first")
        hits = confusion.diagonal()
        unions = confusion.sum(0) + confusion.sum(1) - hits
        per_class = {
            name: 100 * float(hit / union) if union > 0 else None
            for name, hit, union in zip(self.names, hits, unions, strict=True)
        }
        occurring = [value for value in per_class.values() if value is not None]
        return {
            "miou": sum(occurring) / len(occurring),
            "per_class": per_class,
            "pixel_accuracy": 100 * float(hits.sum()) / labelled,
        }

    def table(self) -> str:
        """The scores as text, a class a line, to print."""
        scores = self.compute()
        width = max(len(name) for name in (*self.names, "pixel accuracy"))
        rows = [
            f"{name:<{width}}  {'-' if value is None else f'{value:.1f}':>5}"
            for name, value in scores["per_class"].items()
        ]
        rows.append(f"{'mIoU':<{width}}  {scores['miou']:>5.1f}")
        rows.append(f"{'pixel accuracy':<{width}}  {scores['pixel_accuracy']:>5.1f}")
        return "\n".join(rows)


def named_metric(space: SearchSpace, dataset: SegmentationDataset) -> Metric:
    """The space's metric; a mean IoU speaks of the data set's classes by name.

    Raises:
        InvalidInput: the space has no metric.
    """
    metric = space.metric()
    if metric is None:
        raise InvalidInput(
            f"{space.name} has no metric, so there is nothing to evaluate: give it a metric()."
        )
    if isinstance(metric, MeanIoU):
        return MeanIoU(metric.num_classes, metric.ignore_index, dataset.classes)
    return metric
