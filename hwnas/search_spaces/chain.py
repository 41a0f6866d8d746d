"""A small classification space: a row of stages, each with a choice of op and a depth."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator
from torch import nn

from hwnas import Accuracy, Choice, ChoiceBlock, Conv, DepthBlock, PoolLinear, SearchSpace


class Chain(SearchSpace):
    """Image classifiers: stages that halve the image, each of one to ``depth`` layers of a chosen kernel.

    The layers of a stage share their choice, so a stage is decided by one kernel and one depth.
    """

    name: ClassVar[str] = "chain"
    num_classes: int = Field(10, ge=2)
    """Number of classes."""
    size: int = Field(32, ge=4)
    """Height and width of the image that latency is meant for."""
    stages: int = Field(2, ge=1)
    """Number of stages."""
    depth: int = Field(3, ge=1)
    """The most layers of a stage."""
    channels: int = Field(16, ge=1)
    """Channels of the first stage; each further stage doubles them."""
    kernels: tuple[int, ...] = (1, 3, 5)
    """Kernel sides to choose from, odd."""

    @field_validator("kernels")
    @classmethod
    def _odd(cls, kernels: tuple[int, ...]) -> tuple[int, ...]:
        distinct = len(set(kernels)) == len(kernels)
        if not kernels or not distinct or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels must be odd, positive and all different, at least one; got {kernels}")
        return kernels

    def input_shape(self) -> tuple[int, int, int]:
        """``(3, size, size)``."""
        return (3, self.size, self.size)

    def supernet(self) -> nn.Module:
        """The network with all its choices."""
        layers: list[nn.Module] = [Conv(3, self.channels)]
        c_in = self.channels
        for stage in range(self.stages):
            c_out = self.channels * 2**stage
            layers.append(Conv(c_in, c_out, stride=2))
            layers.append(self._stage(f"s{stage + 1}", c_out))
            c_in = c_out
        return nn.Sequential(*layers, PoolLinear(c_in, self.num_classes))

    def metric(self) -> Accuracy:
        """Share of images whose most likely class is right."""
        return Accuracy()

    def _stage(self, name: str, channels: int) -> DepthBlock:
        kernel = Choice(name=f"{name}.kernel", options=tuple(f"conv_{k}x{k}" for k in self.kernels))
        depth = Choice(
            name=f"{name}.depth", options=tuple(str(n + 1) for n in range(self.depth)), kind="depth"
        )
        layers = [
            ChoiceBlock(kernel, {f"conv_{k}x{k}": Conv(channels, channels, kernel=k) for k in self.kernels})
            for _ in range(self.depth)
        ]
        return DepthBlock(depth, layers)
