"""The multi-scale head: local and global context, then the classifier; the paper leaves its form open."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas import Concat, Conv, Op, register_op


@register_op("autortnet.context_conv")
class ContextConv(Op):
    """Depthwise dilated 3×3, pointwise 1×1, batch norm, ReLU: one rate of the multi-scale head."""

    def __init__(self, c_in: int, c_out: int, dilation: int) -> None:
        super().__init__(c_in=c_in, c_out=c_out, dilation=dilation)
        self.depthwise = nn.Conv2d(c_in, c_in, 3, 1, dilation, dilation, groups=c_in, bias=False)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Apply all layers."""
        return functional.relu(self.norm(self.pointwise(self.depthwise(x_NCHW))))


@register_op("autortnet.image_pool")
class ImagePool(Op):
    """The image's mean feature through a 1×1 convolution and ReLU, spread over the whole map.

    It has a bias and no batch norm: there is one value for each image and channel, too few to normalise over.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in=c_in, c_out=c_out)
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """``(N, c_in, H, W) → (N, c_out, H, W)``, constant over height and width."""
        pooled = functional.relu(self.conv(x_NCHW.mean(dim=(2, 3), keepdim=True)))
        return pooled.expand(-1, -1, x_NCHW.shape[2], x_NCHW.shape[3])


@register_op("autortnet.classifier")
class Classifier(Op):
    """Dropout and a 1×1 convolution to class logits."""

    def __init__(self, c_in: int, classes: int, dropout: float) -> None:
        super().__init__(c_in=c_in, classes=classes, dropout=dropout)
        self.dropout = dropout
        self.conv = nn.Conv2d(c_in, classes, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Class logits for every position."""
        logits: Tensor = self.conv(functional.dropout2d(x_NCHW, self.dropout, self.training))
        return logits


class MultiScaleHead(nn.Module):
    """A 1×1 branch, dilated branches and the image's mean, concatenated, fused and classified.

    Args:
        c_in: channels of the aggregated features.
        width: channels of each branch and of the fused features.
        classes: number of classes.
        dilations: rates of the dilated branches.
        dropout: share of channels dropped before the classifier while training.
    """

    def __init__(self, c_in: int, width: int, classes: int, dilations: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                Conv(c_in, width, kernel=1),
                *(ContextConv(c_in, width, dilation) for dilation in dilations),
                ImagePool(c_in, width),
            ]
        )
        self.concat = Concat()
        self.fuse = Conv(len(self.branches) * width, width, kernel=1)
        self.classify = Classifier(width, classes, dropout)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Class logits at the resolution of the features."""
        logits: Tensor = self.classify(self.fuse(self.concat(*(branch(x_NCHW) for branch in self.branches))))
        return logits


def initialise(network: nn.Module) -> None:
    """He initialisation of every convolution, in place (He et al. 2015, fan out)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                with torch.no_grad():
                    module.bias.zero_()
