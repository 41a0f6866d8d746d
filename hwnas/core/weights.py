"""Weights of a network: in a file, in another network, and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hwnas.core.checkpoint import load_checkpoint, save_checkpoint
from hwnas.errors import CheckpointError
from hwnas.ops import Op


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights of ``network`` to ``path``, atomically."""
    save_checkpoint(path, {"weights": network.state_dict(), "network": signature(network)})


def load_weights(network: nn.Module, path: Path) -> None:
    """Put weights that :func:`save_weights` wrote into ``network``.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of another architecture.
    """
    state = load_checkpoint(path)
    try:
        if state["network"] != signature(network):
            raise CheckpointError(
                f"{path} holds the weights of another network: shapes may agree, the layers do not. "
                "Use the genotype that it was trained with."
            )
        network.load_state_dict(state["weights"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds the weights of another network: {error}") from error


def transfer_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Begin ``network``, in place, with the weights of another training that agree in name and shape.

    So a network starts from one of the same architecture that tells other classes apart: all but the last
    layer agree.

    Args:
        network: to be trained.
        weights: another network's ``state_dict``.

    Returns:
        Names of the network's tensors that were not found there, and stay as they were.

    Raises:
        CheckpointError: less than half of the tensors agree.
    """
    ours = network.state_dict()
    taken = {
        name: weights[name]
        for name, tensor in ours.items()
        if name in weights and weights[name].shape == tensor.shape
    }
    if 2 * len(taken) < len(ours):
        raise CheckpointError(
            f"of the network's {len(ours)} tensors only {len(taken)} agree with those that it is to begin "
            "with: these are of another architecture. Use those of the same genotype."
        )
    network.load_state_dict(taken, strict=False)
    return [name for name in ours if name not in taken]


def signature(network: nn.Module) -> str:
    """What tells one architecture from another, whatever its weights."""
    # Shapes alone are not enough: two dilations of one convolution share them.
    specs = [str(module.spec) for module in network.modules() if isinstance(module, Op)]
    return hashlib.sha256(f"{network}{specs}".encode()).hexdigest()[:16]


def digest(weights: Mapping[str, Tensor]) -> str:
    """What tells one network's weights from another's: a hash of a ``state_dict``, on whatever device."""
    found = hashlib.sha256()
    for name, tensor in weights.items():
        found.update(name.encode())
        # As bytes: numpy has no bfloat16.
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
