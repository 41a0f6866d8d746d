"""What a network is worth: a metric over a whole data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hwnas.core.distributed import Additive, add_up_metric
from hwnas.core.given import refuse_network
from hwnas.core.search_data import refuse_batches
from hwnas.core.space import Metric
from hwnas.core.training import TrainingPrecision, autocast, batch_to, torch_device
from hwnas.errors import InvalidInput
from hwnas.processes import ALONE, is_divided, processes


def evaluate(
    network: nn.Module,
    data: Iterable[Any],
    metric: Metric,
    *,
    device: str = "auto",
    precision: TrainingPrecision = "fp32",
) -> dict[str, Any]:
    """The metric of ``network`` over ``data``, in eval mode; the network returns to the CPU.

    Args:
        network: a derived network.
        data: yields ``(inputs, targets)`` batches.
        metric: reset first.
        device: where to compute.
        precision: "bf16" for bfloat16 matrix work.

    Raises:
        InvalidInput: the network or the data are a text, no such torch device here, batches that are no
            pairs, or none at all.
    """
    refuse_network(network)
    refuse_batches(data=data)
    where = torch_device(device)
    found = evaluate_with(network.to(where), data, metric, device=where, precision=precision)
    network.cpu()
    return found


def evaluate_with(
    network: nn.Module,
    data: Iterable[Any],
    metric: Metric,
    *,
    device: torch.device,
    precision: TrainingPrecision = "fp32",
    channels_last: bool = False,
    shared: bool = False,
) -> dict[str, Any]:
    """:func:`evaluate` for a network that lies on ``device`` already; its training flag is restored.

    With ``shared``, all processes call this, each computes every so-many-th batch, and all get the result; a
    metric whose sums cannot be added up sees all batches in each of them.

    Raises:
        InvalidInput: what :func:`evaluate` raises; or several processes share data that are divided already.
    """
    if shared and processes().size > 1 and is_divided(data):
        raise InvalidInput(
            "the validation data are divided among the processes by their loader, as a training_loader or a "
            "DistributedSampler does: pass a loader of all of them (evaluation_loader), which will be shared."
        )
    metric.reset()
    number = -1
    here = processes() if shared and isinstance(metric, Additive) else ALONE
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(), autocast(device, precision):
            for number, batch in enumerate(data):
                if number % here.size == here.rank:
                    inputs, targets = batch_to(device, batch, channels_last)
                    outputs = network(inputs)
                    # An exported network may give class numbers, which stay what they are.
                    metric.update(outputs.float() if outputs.is_floating_point() else outputs, targets)
    finally:
        network.train(training)
    if number < 0:
        raise InvalidInput(
            "the data to evaluate on yield no batches (or none any more: an iterator is used up); pass a "
            "DataLoader or a list, with at least one batch."
        )
    if here.size > 1:
        add_up_metric(metric, device)
    return dict(metric.compute())
