"""Cross-entropy over the hard pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.segmentation.labels import VOID


class OhemCrossEntropy(nn.Module):
    """Cross-entropy over the pixels that the network finds hard ("online bootstrapping").

    Kept are the pixels whose true class has a probability under ``threshold``, and in any case the
    ``min_kept_fraction`` hardest of the batch's labelled pixels. The loss is the mean over what is kept
    (weighted by ``class_weights``, if there are any, as torch's own cross-entropy weights its mean).

    Wu, Shen and van den Hengel, "Bridging Category-level and Instance-level Semantic Image Segmentation",
    arXiv 1605.06885, section 3. We share the count over the batch, not per image.

    Args:
        threshold: probability in (0, 1]; 1 keeps every pixel.
        min_kept_fraction: part of the labelled pixels that is always kept, in [0, 1]; one pixel at least.
        ignore_index: target value of pixels that do not count.
        class_weights: one non-negative weight a class.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept_fraction: float = 1 / 16,
        ignore_index: int = VOID,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise InvalidInput(f"threshold is a probability in (0, 1]; got {threshold}")
        if not 0 <= min_kept_fraction <= 1:
            raise InvalidInput(
                f"min_kept_fraction is a part of the pixels, in [0, 1]; got {min_kept_fraction}"
            )
        self.threshold = threshold
        self.min_kept_fraction = min_kept_fraction
        self.ignore_index = ignore_index
        weights = None if class_weights is None else torch.as_tensor(class_weights, dtype=torch.float32)
        if weights is not None and (weights.ndim != 1 or bool((weights < 0).any())):
            raise InvalidInput(f"class_weights is one non-negative number a class; got {class_weights}")
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar.

        A batch without a labelled pixel costs exactly 0 and still has a graph.

        Args:
            logits: ``[N, C, H, W]``; computed on in float32, whatever they come in.
            targets: ``[N, H, W]`` int64.

        Raises:
            InvalidInput: other shapes.
        """
        if logits.ndim != 4 or targets.shape != (logits.shape[0], *logits.shape[2:]):
            raise InvalidInput(
                "logits must be [N, C, H, W] and targets [N, H, W] of the same N, H and W; "
                f"got {list(logits.shape)} and {list(targets.shape)}"
            )
        is_labelled = targets != self.ignore_index
        # Over the classes of maps in NHWC memory order torch's softmax is slower on the CPU.
        losses = functional.cross_entropy(
            logits.float().contiguous(), targets, ignore_index=self.ignore_index, reduction="none"
        )
        labelled = int(is_labelled.sum())
        if labelled == 0:
            return logits.float()[:0].sum()
        with torch.no_grad():
            is_kept = is_labelled if self.threshold == 1 else self._hard(losses, is_labelled, labelled)
        # Masked sums over whole maps, not picked pixels, whose gradients would have to be put back.
        if self.class_weights is None:
            return losses.where(is_kept, 0).sum() / is_kept.sum()
        weights = self.class_weights[targets.where(is_kept, 0)].where(is_kept, 0)
        # A batch whose kept pixels all have weight 0 costs 0, like one without labels.
        return (losses.where(is_kept, 0) * weights).sum() / weights.sum().clamp_min(
            torch.finfo(weights.dtype).tiny
        )

    def _hard(self, losses: Tensor, is_labelled: Tensor, labelled: int) -> Tensor:
        # Written as "not easy", so that a NaN is kept and seen instead of being dropped as easy.
        is_kept = is_labelled & ~(losses <= -math.log(self.threshold))
        at_least = max(1, math.ceil(self.min_kept_fraction * labelled))
        if int(is_kept.sum()) >= at_least:
            return is_kept
        hardest = losses.where(is_labelled, -math.inf).flatten().topk(at_least, sorted=False).indices
        is_kept = torch.zeros_like(is_kept)
        is_kept.view(-1)[hardest] = True
        return is_kept
