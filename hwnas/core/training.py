"""What search and fit share of training: where it runs, in which precision, and the guarded step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from hwnas.errors import InvalidInput, NonFiniteLoss
from hwnas.processes import average, processes

TrainingPrecision = Literal["fp32", "bf16"]
"""In what matrix work is trained; what latency is measured in is another matter (and another set)."""


def torch_device(name: str) -> torch.device:
    """The torch device that ``name`` means; ``"auto"`` is the first CUDA device, or the CPU.

    Of several processes on one machine, each has a CUDA device of its own: "cuda" and "auto" mean that one.

    Raises:
        InvalidInput: a CUDA device is asked for and torch sees none, or the name means nothing.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInput(
            f'"{name}" is no torch device; expected "auto", "cpu", "cuda" or "cuda:N".'
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            f'training on "{name}" was asked for, but torch sees no CUDA device here; use "cpu".'
        )
    here = processes()
    if device.type == "cuda" and here.size > 1:
        if ":" in name:
            raise InvalidInput(
                f'{here.size} processes cannot all train on "{name}"; expected "cuda": each takes its own.'
            )
        device = torch.device("cuda", here.local_rank)
    return device


def autocast(device: torch.device, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    """A context in which matrix work runs in bf16, or one that changes nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class GuardedStep:
    """Optimiser steps that are skipped, not taken, when the loss or a gradient is not finite.

    Of several processes all step by the mean of their gradients, or none does.

    Low precision overflows now and then, and one NaN in a running statistic or a momentum buffer spoils all
    that follows. Statistics that the bad forward pass spoiled begin anew.

    Args:
        network: whose weights are clipped and whose batch norms are watched.
        clip: largest norm of the weights' gradient; None: unlimited.
        patience: how many skipped steps in a row are borne.
    """

    def __init__(self, network: nn.Module, *, clip: float | None, patience: int = 20) -> None:
        self.network = network
        self.clip = clip
        self.patience = patience
        self._weights = list(network.parameters())
        self._is_weight = {id(parameter) for parameter in self._weights}
        self.skipped_in_a_row = 0
        self.skipped = 0
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """The counts of skipped steps, and of those taken in this epoch."""
        return {"skipped_in_a_row": self.skipped_in_a_row, "skipped": self.skipped, "taken": self._taken}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the counts back."""
        self.skipped_in_a_row = state_dict["skipped_in_a_row"]
        self.skipped = state_dict["skipped"]
        self._taken = state_dict.get(
            "taken", 0
        )  # earlier checkpoints, of the ends of epochs mostly, have none

    def __call__(self, loss: Tensor, *optimisers: torch.optim.Optimizer) -> bool:
        """Clear the gradients, back-propagate ``loss`` and step; True if the step was taken.

        Raises:
            NonFiniteLoss: more than ``patience`` steps in a row were not finite.
        """
        stepped = [
            parameter
            for optimiser in optimisers
            for group in optimiser.param_groups
            for parameter in group["params"]
        ]
        # All of the network's, too, where only architecture parameters step: what an earlier loss left must
        # not count.
        for parameter in (*self._weights, *stepped):
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        weights: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in stepped:
            if parameter.grad is not None:
                (weights if id(parameter) in self._is_weight else others).append(parameter.grad)
        # A step of single-path sampling reaches few of the weights, the same ones in all processes.
        average([*weights, *others])
        norm = nn.utils.get_total_norm(weights)
        size = loss.detach() + norm.to(loss.device) + nn.utils.get_total_norm(others).to(loss.device)
        if bool(torch.isfinite(size)):
            if self.clip is not None:
                moved = [parameter for parameter in self._weights if parameter.grad is not None]
                nn.utils.clip_grads_with_norm_(moved, self.clip, norm)
            for optimiser in optimisers:
                optimiser.step()
            self.skipped_in_a_row = 0
            self._taken += 1
            return True
        self.skipped_in_a_row += 1
        self.skipped += 1
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and module.running_var is not None:
                statistics = torch.stack([module.running_mean, module.running_var])  # type: ignore[list-item]
                if not bool(torch.isfinite(statistics).all()):
                    module.reset_running_stats()
        if self.skipped_in_a_row > self.patience:
            raise self._diverged(f" (last loss: {float(loss.detach()):.4g})")
        return False

    def end_epoch(self, batches: int) -> None:
        """Refuse an epoch of so many batches in which no step was taken: nothing was learnt.

        Steps are counted, not batches: one batch may have two, of weights and of choices.

        Raises:
            NonFiniteLoss: there was none, and there were batches.
        """
        if batches and not self._taken:
            raise self._diverged(", all of an epoch")
        self._taken = 0

    def _diverged(self, detail: str) -> NonFiniteLoss:
        return NonFiniteLoss(
            f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row{detail}. "
            "Lower the learning rate, train in fp32 (--set precision=fp32), or look for NaN among the inputs."
        )


def reestimate_statistics(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device,
    precision: TrainingPrecision = "fp32",
    channels_last: bool = False,
) -> None:
    """Set the running statistics of every batch norm to the plain mean over ``batches``, in place.

    Those of a supernet are a mixture over all the networks that were drawn, which fits none of them: a
    network that takes its weights from there is worth little before this. Weights and the training flag
    stay.

    Args:
        network: a derived network on ``device``.
        batches: of training data, ``(inputs, targets)``; without any, nothing changes.
        device: where to compute.
        precision: "bf16" for bfloat16 matrix work.
        channels_last: keep images in NHWC memory order.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    training = network.training
    # Batch norms alone: torch's update_bn would switch on dropout, which disturbs what they see.
    network.eval()
    first = True
    try:
        for batch in batches if norms else ():
            if first:
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # a plain mean instead of an exponential one
                    norm.train()
                first = False
            inputs, _ = batch_to(device, batch, channels_last)
            with torch.no_grad(), autocast(device, precision):
                network(inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(training)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the parameters and buffers of ``network``, by torch's own class.

    In its update t (from 1 on) it keeps ``min(decay, (1 + t) / (10 + t))`` of itself: early weights, far from
    trained, are forgotten soon.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Tensor | int) -> None:
        t = int(updates)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + t) / (10 + t)))
        else:  # batch norms' counts of batches
            torch._foreach_copy_(averaged, current)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def batch_to(device: torch.device, batch: Any, channels_last: bool) -> tuple[Tensor, Tensor]:
    """A loader's ``(inputs, targets)`` on ``device``.

    Raises:
        InvalidInput: the batch is not a pair, or has soft targets.
    """
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise InvalidInput(f"a loader must yield (inputs, targets), got {type(batch).__name__}.")
    inputs, targets = batch
    if isinstance(targets, tuple):
        raise InvalidInput(
            f"a loader must yield (inputs, targets), got targets of type {type(targets).__name__}; soft "
            "targets are for fit(has_soft_targets=True)."
        )
    inputs = inputs.to(device, non_blocking=True)
    if channels_last and inputs.dim() == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    return inputs, targets.to(device, non_blocking=True)
