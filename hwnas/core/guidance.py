"""What guides a training besides its targets: auxiliary heads, and a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.layers import bilinear


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
                output = bilinear(output, (like.shape[2], like.shape[3]))
            outputs.append(output)
        self._features = [None] * len(self._features)
        return outputs


class Taught(NamedTuple):
    """Targets, and what a teacher said of the same inputs before the training began."""

    targets: Tensor
    """As the loss takes them."""
    answers: Tensor
    """The teacher's logits, ``[N, classes, …]``; of maps, they may have fewer rows and columns than the
    network's outputs."""
    is_known: Tensor
    """Bool, ``[N, …]``: where there is an answer."""


def distillation_loss(
    outputs: Tensor, teacher_outputs: Tensor, temperature: float, is_known: Tensor | None = None
) -> Tensor:
    """``T² · KL(softmax(teacher_outputs / T) ‖ softmax(outputs / T))``, the mean over examples and positions.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.

    Args:
        outputs: logits ``[N, classes, …]``.
        teacher_outputs: the teacher's, of the same shape.
        temperature: T > 0.
        is_known: bool, ``[N, …]`` as ``teacher_outputs``; the mean is over what is true. Maps may then have
            fewer rows and columns than ``outputs``, which are averaged to theirs. None: all is known.

    Raises:
        InvalidInput: the shapes differ otherwise.
    """
    if is_known is not None and outputs.dim() == 4 == teacher_outputs.dim():
        rows, columns = teacher_outputs.shape[2:]
        if outputs.shape[2:] != (rows, columns):
            outputs = functional.adaptive_avg_pool2d(outputs, (rows, columns))
    if outputs.shape != teacher_outputs.shape:
        raise InvalidInput(
            f"the teacher gives {list(teacher_outputs.shape)}, the network {list(outputs.shape)}: "
            "they must be alike."
        )
    # Over the classes of maps in NHWC memory order torch's softmax is slower on the CPU.
    log_ours = functional.log_softmax(outputs.float().contiguous() / temperature, 1)
    log_theirs = functional.log_softmax(teacher_outputs.float().contiguous() / temperature, 1)
    divergence = functional.kl_div(log_ours, log_theirs, reduction="none", log_target=True).sum(1)
    if is_known is None:
        return temperature**2 * divergence.mean()
    return temperature**2 * divergence.where(is_known, 0).sum() / is_known.sum().clamp_min(1)
