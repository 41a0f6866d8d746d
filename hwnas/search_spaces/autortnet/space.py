"""The search space of AutoRTNet: its fields, its presets and its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional

from hwnas import VOID, Conv, MeanIoU, Metric, OhemCrossEntropy, Preset, Resize, SearchSpace
from hwnas.search_spaces.autortnet.aggregation import WIRINGS, AggregationCell, Wiring
from hwnas.search_spaces.autortnet.head import Classifier, MultiScaleHead, initialise
from hwnas.search_spaces.autortnet.hypercell import HyperCell
from hwnas.search_spaces.autortnet.ops import AGGREGATION_OPS, CELL_OPS


class AutoRTNetwork(nn.Module):
    """Stem → three hyper-cells → aggregation cell → multi-scale head → logits at the input's size.

    ``(N, 3, H, W) → (N, classes, H, W)`` for any height and width.
    """

    def __init__(self, space: AutoRTNet) -> None:
        super().__init__()
        first, second = space.stem_channels
        self.stem = nn.ModuleList(
            [Conv(3, first, stride=space.stem_strides[0]), Conv(first, second, stride=space.stem_strides[1])]
        )
        c_in = (first, second)
        older_stride = space.stem_strides[1]
        hypercells: list[HyperCell] = []
        widths: list[int] = []
        for index, cells in enumerate(space.cells):
            width = space.init_channels * space.channel_multiplier ** (index + 1)
            hypercells.append(
                HyperCell(
                    f"h{index + 1}",
                    cells=cells,
                    c_in=c_in,
                    width=width,
                    nodes=space.nodes,
                    ops=space.cell_ops,
                    older_stride=older_stride,
                    last=index + 1 == len(space.cells),
                )
            )
            widths.append(space.nodes * width)
            c_in, older_stride = (widths[-1], widths[-1]), 1
        self.hypercells = nn.ModuleList(hypercells)
        wiring = space.wiring()
        self.aggregation = AggregationCell(widths, space.aggregation_width, wiring, space.aggregation_ops)
        self.head = MultiScaleHead(
            len(wiring.outputs) * space.aggregation_width,
            space.head_width,
            space.num_classes,
            space.head_dilations,
            space.dropout,
        )
        self.resize = Resize()
        initialise(self)

    def coarse_logits(self, x_N3HW: Tensor) -> Tensor:
        """Class logits at the resolution of the aggregated features."""
        first = self.stem[0](x_N3HW)
        state = (first, self.stem[1](first))
        outputs = []
        for hypercell in self.hypercells:
            state = hypercell(*state)
            outputs.append(state[-1])
        logits: Tensor = self.head(self.aggregation(*outputs))
        return logits

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Class logits for every pixel."""
        logits: Tensor = self.resize(self.coarse_logits(x_N3HW), x_N3HW)
        return logits


class ImageClassifier(nn.Module):
    """An :class:`AutoRTNetwork` without its last resizing, which changes little of the logits' mean.

    Of two hundred classes it would be most of the work.
    """

    def __init__(self, network: AutoRTNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Class logits at the resolution of the aggregated features."""
        return self.network.coarse_logits(x_N3HW)


class AutoRTNet(SearchSpace):
    """Real-time segmentation networks after AutoRTNet (Sun et al., arXiv 2003.14226).

    Searched together: the op on each edge of the cells, the number of cells of each hyper-cell (and with it
    where the network downsamples), and the ops that aggregate features of three resolutions. Node widths are
    ``init_channels · channel_multiplier^h`` in hyper-cell h.
    """

    name: ClassVar[str] = "autortnet"
    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset(
            about="the paper's space and search settings (16 GPUs for 16 hours there)",
            fields={"cells": (5, 10, 10), "aggregation": "paper"},
            search={
                "epochs": 150,
                "depth_from_epoch": 50,
                "relaxation": {
                    "form": "gumbel",
                    "hard": False,
                    "tau": {"form": "linear", "start": 3.0, "end": 0.03},
                },
                "penalty": {"form": "log", "weight": 0.01},
            },
            fit={"epochs": 200},
            batch=16,
        ),
        "small": Preset(
            about="a space and settings for two CPU cores and minutes, not hours",
            fields={
                "cells": (2, 3, 3),
                "init_channels": 4,
                "channel_multiplier": 2,
                "stem_channels": (8, 12),
                "aggregation_width": 16,
                "head_width": 24,
                "height": 96,
                "width": 192,
            },
            search={
                "epochs": 12,
                "depth_from_epoch": 4,
                "arch_lr": 0.02,
                "weight_lr": 0.05,
                "penalty": {"form": "log", "weight": 0.05},
            },
            fit={"epochs": 8, "lr": 0.05, "validate_every": 4},
            batch=8,
        ),
    }

    num_classes: int = Field(11, ge=2)
    """Number of classes; targets hold 0 … num_classes − 1, and 255 for void."""
    height: int = Field(360, ge=32)
    """Height of the image that latency is meant for, any number."""
    width: int = Field(480, ge=32)
    """Width of the image that latency is meant for, any number."""
    cells: tuple[PositiveInt, PositiveInt, PositiveInt] = (5, 10, 10)
    """The most cells that each hyper-cell may have, its reduction cell included."""
    nodes: int = Field(2, ge=1, le=4)
    """Nodes of a cell."""
    cell_ops: tuple[str, ...] = tuple(CELL_OPS)
    """The candidates on the edges of a cell: some of :data:`CELL_OPS`. Fewer where a device, or the training
    that is to follow, is bad at some: depthwise convolutions on one, dense ones on another."""
    aggregation_ops: tuple[str, ...] = tuple(AGGREGATION_OPS)
    """The candidates on the edges of the aggregation cell: some of :data:`AGGREGATION_OPS`."""
    init_channels: int = Field(8, ge=1)
    """Channels before the first reduction; a node of hyper-cell h has ``init_channels · multiplier^h``."""
    channel_multiplier: int = Field(3, ge=1)
    """Factor of the channels at each reduction."""
    stem_channels: tuple[PositiveInt, PositiveInt] = (24, 24)
    """Channels of the two convolutions before the first hyper-cell."""
    stem_strides: tuple[Literal[1, 2], Literal[1, 2]] = (2, 2)
    """Strides of the two convolutions before the first hyper-cell."""
    aggregation: Literal["upsample", "paper"] = "upsample"
    """Wiring of the aggregation cell: the paper's ends at 1/32 of the input, "upsample" at 1/8."""
    aggregation_width: int = Field(64, ge=1)
    """Channels of a node of the aggregation cell."""
    head_width: int = Field(64, ge=1)
    """Channels of a branch of the multi-scale head."""
    head_dilations: tuple[PositiveInt, ...] = (4, 8, 12)
    """Rates of the head's dilated branches."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of channels dropped before the classifier while training."""

    @field_validator("cell_ops", "aggregation_ops")
    @classmethod
    def _known_ops(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = CELL_OPS if info.field_name == "cell_ops" else AGGREGATION_OPS
        if not names or len(set(names)) < len(names) or not set(names) <= set(known):
            raise ValueError(f"expected one or more of {', '.join(known)}, each once; got {list(names)}")
        return names

    def input_shape(self) -> tuple[int, int, int]:
        """``(3, height, width)``."""
        return (3, self.height, self.width)

    def supernet(self) -> AutoRTNetwork:
        """The network with all its choices."""
        return AutoRTNetwork(self)

    def wiring(self) -> Wiring:
        """The graph of the aggregation cell."""
        return WIRINGS[self.aggregation]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the pixels that are not void (the first term of Eq. 8)."""
        # NCHW: in NHWC memory order torch's softmax is slower on the CPU.
        return functional.cross_entropy(outputs.float().contiguous(), targets, ignore_index=VOID)

    def loss_weight(self, targets: Tensor) -> Tensor:
        """The number of pixels that are not void."""
        return (targets != VOID).sum()

    def fit_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the hard pixels only ("online bootstrapping"), for retraining."""
        value: Tensor = OhemCrossEntropy(ignore_index=VOID)(outputs.float(), targets)
        return value

    def auxiliary_heads(self, network: nn.Module) -> Mapping[str, nn.Module]:
        """A 3×3 convolution and a classifier on what the second and the third hyper-cell give."""
        heads: dict[str, nn.Module] = {}
        for index in (1, 2):
            width = self.nodes * self.init_channels * self.channel_multiplier ** (index + 1)
            head = nn.Sequential(
                Conv(width, self.head_width), Classifier(self.head_width, self.num_classes, self.dropout)
            )
            initialise(head)
            heads[f"hypercells.{index}"] = head
        return heads

    def image_classifier(self, network: nn.Module) -> nn.Module:
        """The network without its last resizing."""
        return ImageClassifier(cast(AutoRTNetwork, network))

    def metric(self) -> Metric:
        """Mean intersection over union, void left out."""
        return MeanIoU(self.num_classes, ignore_index=VOID)
