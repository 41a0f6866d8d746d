"""What can be timed: how to make a module and its inputs, in whichever process."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwnas.errors import InvalidInput
from hwnas.ops import OpKey, build_op, registered_ops


class Subject(ABC):
    """Something to time. Picklable; the same in every process that makes it."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The module in evaluation mode. The caller's random state is left alone."""

    @abstractmethod
    def inputs(self) -> list[Tensor]:
        """Its inputs, on the CPU in fp32."""

    def modules(self) -> set[str]:
        """Names of Python modules that must be imported before :meth:`build`."""
        return set()


def plausible_inputs(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    """Values as they follow a ReLU (half of them zero, the rest half-normal), one tensor for each shape.

    Never constants, on which a max-pool is much quicker.
    """
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).relu_() for shape in shapes]


@dataclass(frozen=True)
class OpSubject(Subject):
    """One op alone, rebuilt from its key with fresh weights."""

    key: OpKey
    seed: int = 0

    def build(self) -> nn.Module:
        """The op."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return build_op(self.key.spec).eval()

    def inputs(self) -> list[Tensor]:
        """Plausible inputs; two inputs of one op are two tensors with other values."""
        return [
            plausible_inputs([shape], self.seed + slot)[0] for slot, shape in enumerate(self.key.input_shapes)
        ]

    def modules(self) -> set[str]:
        """The module that registers the op."""
        known = registered_ops().get(self.key.spec.kind)
        return set() if known is None else {known.__module__}


@dataclass(frozen=True)
class ModuleSubject(Subject):
    """A module that is there already, with its inputs."""

    module: nn.Module
    tensors: tuple[Tensor, ...]

    def build(self) -> nn.Module:
        """A copy in evaluation mode."""
        return copy.deepcopy(self.module).eval()

    def inputs(self) -> list[Tensor]:
        """The tensors that it was given."""
        return list(self.tensors)


@dataclass(frozen=True)
class ModelSubject(Subject):
    """A serialised ONNX model, which is timed as it is; for runtimes that read ONNX."""

    model: bytes
    tensors: tuple[Tensor, ...]

    def build(self) -> nn.Module:
        """Refused.

        Raises:
            InvalidInput: always; a model is not turned back into a module.
        """
        raise InvalidInput(
            "an ONNX file is timed by a runtime that reads ONNX: use --backend onnxruntime or tensorrt."
        )

    def inputs(self) -> list[Tensor]:
        """The tensors that it was given."""
        return list(self.tensors)
