"""What guides a training besides its targets: auxiliary heads, and a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwnas.core.distributed import global_loss
from hwnas.errors import InvalidInput
from hwnas.layers import bilinear_onto


class AuxiliaryHeads(nn.Module):
    """Heads on modules inside of a network, which make it learn better and are gone afterwards.

    Args:
        network: whose modules are read; not mutated, but hooked while :meth:`reading`.
        heads: by the name of the module (``network.get_submodule``) whose output each reads.

    Raises:
        InvalidInput: the network has no module of that name.
    """

    def __init__(self, network: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads.values())
        modules = dict(network.named_modules())
        if missing := [name for name in heads if name not in modules]:
            raise InvalidInput(
                f"an auxiliary head reads {missing[0]!r}, and the network has no such module; "
                f"it has {', '.join(name for name in modules if name.count('.') < 2)}."
            )
        # Not as submodules: they are the network's.
        self._read = [[modules[name]] for name in heads]
        self._features: list[Tensor | None] = [None] * len(self._read)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """For the body, keep what the modules put out in each training step."""
        hooks = [
            module.register_forward_hook(self._keep(position))
            for position, (module,) in enumerate(self._read)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, position: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if module.training:
                self._features[position] = output[-1] if isinstance(output, tuple) else output

        return hook

    def forward(self, like: Tensor) -> list[Tensor]:
        """The outputs of all heads for the network's last forward pass in training.

        Args:
            like: the network's own outputs; where these are maps ``[N, C, H, W]``, those of the heads are
                brought to their height and width, bilinearly.
        """
        outputs = []
        for head, features in zip(self.heads, self._features, strict=True):
            output = head(features)
            if like.dim() == 4 and output.shape[2:] != like.shape[2:]:
                output = bilinear_onto(output, (like.shape[2], like.shape[3]))
            outputs.append(output)
        self._features = [None] * len(self._features)
        return outputs


class SoftTargets(NamedTuple):
    """Targets, and what a teacher said of the same inputs before the training began."""

    targets: Tensor
    """As the loss takes them."""
    teacher_logits: Tensor
    """``[N, classes, …]``; of maps, they may have fewer rows and columns than the network's outputs."""
    is_known: Tensor
    """Bool, ``[N, …]`` as ``teacher_logits``: where there are any."""


def frozen_teacher(teacher: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """``teacher`` itself: moved to ``device``, in eval mode, without gradients, in NHWC order if wanted."""
    teacher.to(device).eval().requires_grad_(False)
    if channels_last:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher


def distillation_loss(
    outputs: Tensor, teacher_outputs: Tensor, temperature: float, is_known: Tensor | None = None
) -> Tensor:
    """``T² · KL(softmax(teacher_outputs / T) ‖ softmax(outputs / T))``, the mean over examples and positions.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    Of several processes, the mean is over what is known in all of them.

    Args:
        outputs: logits ``[N, classes, …]``.
        teacher_outputs: the teacher's, of the same shape.
        temperature: T > 0.
        is_known: bool, ``[N, …]`` as ``teacher_outputs``; the mean is over what is true. Maps may then have
            fewer rows and columns than ``outputs``, which are averaged to theirs. None: all is known.

    Raises:
        InvalidInput: the shapes differ otherwise.
    """
    if is_known is not None and _is_coarser(teacher_outputs, outputs):
        rows, columns = teacher_outputs.shape[2:]
        outputs = functional.adaptive_avg_pool2d(outputs.float(), (rows, columns))
    if outputs.shape != teacher_outputs.shape:
        raise InvalidInput(
            f"the teacher gives {list(teacher_outputs.shape)}, the network {list(outputs.shape)}: "
            "they must be alike."
        )
    positions = (teacher_outputs.shape[0], *teacher_outputs.shape[2:])
    if is_known is not None and is_known.shape != positions:
        raise InvalidInput(
            f"is_known must be {list(positions)}, as the teacher's maps; got {list(is_known.shape)}."
        )
    log_ours = functional.log_softmax(_class_planes(outputs) / temperature, 1)
    log_theirs = functional.log_softmax(_class_planes(teacher_outputs) / temperature, 1)
    divergence = functional.kl_div(log_ours, log_theirs, reduction="none", log_target=True).sum(1)
    if is_known is None:
        return global_loss(temperature**2 * divergence.mean(), divergence.numel())
    known = is_known.sum()
    return global_loss(temperature**2 * divergence.where(is_known, 0).sum() / known.clamp_min(1), known)


def _is_coarser(maps: Tensor, than: Tensor) -> bool:
    """Whether maps have fewer rows or columns, and more of neither."""
    if not maps.dim() == than.dim() == 4 or maps.shape[2:] == than.shape[2:]:
        return False
    return all(few <= many for few, many in zip(maps.shape[2:], than.shape[2:], strict=True))


def _class_planes(logits: Tensor) -> Tensor:
    """Logits in float32. On the CPU in NCHW memory order: over the classes of others softmax is slower."""
    return logits.float().contiguous() if logits.device.type == "cpu" else logits.float()
