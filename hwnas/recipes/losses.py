"""What a stage's training minimises, where it is not the space's own loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hwnas.segmentation.dataset import SegmentationDataset


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
