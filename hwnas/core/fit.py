"""Training a derived network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hwnas.core.checkpoint import seed_all
from hwnas.core.distributed import global_loss, trained_as_one
from hwnas.core.evaluation import evaluate_with
from hwnas.core.given import refuse_network
from hwnas.core.guidance import AuxiliaryHeads, SoftTargets, distillation_loss, frozen_teacher
from hwnas.core.progress import Progress
from hwnas.core.run import Averages, Run, Stateful
from hwnas.core.search_data import refuse_batches
from hwnas.core.space import Metric
from hwnas.core.training import (
    GuardedStep,
    TrainingPrecision,
    autocast,
    batch_to,
    moving_average,
    torch_device,
)
from hwnas.core.weights import digest, save_weights, signature
from hwnas.errors import InvalidInput
from hwnas.processes import as_one, begin_epoch, processes, told_by_first
from hwnas.processes import shared as share_of

Loss = Callable[[Tensor, Tensor], Tensor]


class FitConfig(BaseModel):
    """How to train a derived network. The defaults are the AutoRTNet paper's where it states them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(200, ge=1)
    """Passes over the training data."""
    seed: int = 0
    """Of the data's order and of dropout."""
    device: str = "auto"
    """Where to train: "auto", "cpu", "cuda" or "cuda:N"."""
    precision: TrainingPrecision = "fp32"
    """"bf16" runs matrix work in bfloat16; steps that are not finite are skipped."""
    channels_last: bool = False
    """Keep images and weights in NHWC memory order."""
    compiled: bool = False
    """Train through ``torch.compile``, a teacher that is asked in each step too: a minute or two of compiling
    first, for shorter steps then. Wants one size of images, no auxiliary heads, and on the CPU a C++
    compiler. The results differ by rounding. Tried in one process only."""
    lr: float = Field(0.01, gt=0)
    """SGD's base learning rate; in each step ``lr · (1 − done)^power`` after the warm-up."""
    power: float = Field(0.9, gt=0)
    """Exponent of the "poly" policy."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs over which the learning rate rises from 0 to ``lr``."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """SGD's weight decay."""
    gradient_clip: float | None = 10.0
    """Largest norm of the gradient; null: unlimited."""
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of weights and running statistics, which is what is evaluated
    and kept in the end; 0: none. In step t it is at most (1 + t) / (10 + t)."""
    distillation_weight: float = Field(0.0, ge=0)
    """What the divergence from a teacher's outputs adds to the loss; needs a teacher, or soft targets."""
    distillation_temperature: float = Field(1.0, gt=0)
    """Softens teacher and network alike; their divergence is multiplied by its square."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """What the loss of each auxiliary head adds to the loss, where there are any."""
    validate_every: int = Field(5, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between checkpoints within an epoch; 0: at the ends of epochs only."""


@as_one
def fit(
    network: nn.Module,
    train: Iterable[Any],
    *,
    loss: Loss,
    config: FitConfig | None = None,
    val: Iterable[Any] | None = None,
    metric: Metric | None = None,
    teacher: nn.Module | None = None,
    has_soft_targets: bool = False,
    auxiliary: Mapping[str, nn.Module] | None = None,
    description: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train ``network`` in place and return its last evaluation (empty without ``val``).

    Started in several processes, by torchrun say, they train as one (docs/scale.md): each calls this with the
    same arguments; the first writes the files and reports. The loss of a step is then the mean of theirs.

    Args:
        network: a derived network; moved to the device, trained, and brought back to the CPU in eval mode.
        train: yields ``(inputs, targets)`` batches; its length must be known (``len``). Nothing is resized:
            any size that the network itself takes will do, another one than the space's, too, or one in
            ``train`` (crops, say) and another in ``val``. Scores then hold for the size of ``val``, and
            milliseconds for ``space.input_shape()`` as ever.
        loss: from outputs and targets to a scalar; ``space.fit_loss`` for a space's own.
        config: settings; default ``FitConfig()``.
        val: data to evaluate on; needs ``metric``.
        metric: what to evaluate.
        teacher: a trained network with outputs of the same shape, classes along dimension 1, from which
            ``network`` learns as well as from the targets (``config.distillation_weight``; Hinton et al.,
            arXiv 1503.02531). Moved to the device and into the images' memory order, frozen, and left in eval
            mode.
        has_soft_targets: ``train`` yields ``(inputs, SoftTargets)``, with what a teacher said before, in the
            place of a ``teacher`` that is asked in each step.
        auxiliary: heads, by the name of the module of ``network`` whose output they read; each gives outputs
            that ``loss`` takes. Trained along (``config.auxiliary_weight``), in place, and part of nothing
            that is evaluated or kept.
        description: what the data are, as JSON; see :class:`hwnas.SearchData`. One with a ``"stage"`` says
            that a recipe (:func:`hwnas.recipes.train`) calls this.
        out: folder for log, checkpoint and ``weights.pt``; None keeps nothing on disk.
        resume: go on with the training in ``out``.
        on_progress: called after each step and each epoch.

    Raises:
        InvalidInput: the network or its data are a text; ``val`` without ``metric``; a ``train`` that is
            empty or of unknown length, or whose batches are no pairs; no such torch device here; ``out``
            holds a training already and ``resume`` is false; ``out`` holds a recipe's training, begun or
            done, and no recipe calls this; ``resume`` without ``out``; a description that is not JSON; a
            teacher or soft targets without a weight or the reverse, both of them, or with outputs of another
            shape; batches without soft targets where there are to be any, or with some where not; an
            auxiliary head on a module that is not there, or any in a compiled training.
        CheckpointError: what is to be resumed is damaged, or is another training; the message lists the
            differences.
        NonFiniteLoss: the training diverged.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    refuse_network(network)
    refuse_batches(train=train, val=val)
    config = config or FitConfig()
    out = Path(out) if out is not None else None
    if val is not None and metric is None:
        raise InvalidInput("fit() got validation data but no metric to evaluate: pass metric=space.metric().")
    if teacher is not None and has_soft_targets:
        raise InvalidInput("there is a teacher, and the batches have soft targets: expected one of the two.")
    if (teacher is not None or has_soft_targets) != (config.distillation_weight > 0):
        if has_soft_targets:
            there_is = "there are soft targets"
        else:
            there_is = "there is no teacher" if teacher is None else "there is a teacher"
        raise InvalidInput(
            f"distillation_weight is {config.distillation_weight:g}, and {there_is}: expected a "
            "weight above 0 with a teacher or soft targets, and 0 without."
        )
    if config.compiled and auxiliary:
        raise InvalidInput(
            "auxiliary heads read inside of the network, which torch.compile does not show them: train with "
            "compiled=False, or without the heads."
        )
    if out is not None and "stage" not in (description or {}):
        told_by_first(partial(_refuse_recipe, out))
    steps = len(train) if isinstance(train, Sized) else 0
    if steps == 0:
        raise InvalidInput("fit() got no training batches; is the data set smaller than one batch?")
    seed_all(config.seed)
    device = torch_device(config.device)
    network.to(device)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = AuxiliaryHeads(network, auxiliary or {}).to(device)
    trained = nn.ModuleDict({"network": network, "heads": heads}) if auxiliary else network
    optimiser = torch.optim.SGD(
        trained.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    forward: Callable[[Tensor], Tensor] = (
        torch.compile(network, dynamic=False) if config.compiled else network
    )
    averages, step = Averages(), GuardedStep(trained, clip=config.gradient_clip)
    parts: dict[str, Stateful] = {
        "network": trained,
        "optimiser": optimiser,
        "averages": averages,
        "guard": step,
    }
    kept = network
    averaged = moving_average(network, config.average_decay) if config.average_decay else None
    if averaged is not None:
        parts["averaged"] = averaged
        kept = averaged.module
    guide: Callable[[Tensor], Tensor] | None = teacher
    if teacher is not None:
        frozen_teacher(teacher, device, channels_last=config.channels_last)
        guide = torch.compile(teacher, dynamic=False) if config.compiled else teacher
    identity = {
        "network": signature(trained),
        "config": config.model_dump(mode="json"),
        "data": description,
        **({"teacher": digest(teacher.state_dict())} if teacher is not None else {}),
        **({"auxiliary": sorted(auxiliary)} if auxiliary else {}),
    }
    scores = partial(
        evaluate_with,
        device=device,
        precision=config.precision,
        channels_last=config.channels_last,
        shared=True,
    )
    report = on_progress if on_progress and processes().is_first else lambda progress: None
    found: dict[str, Any] = {}
    every = config.checkpoint_every_steps
    run = Run(out, "fit", identity, parts, resume=resume, every_steps=every)
    with run, trained_as_one(trained), heads.reading():
        for epoch in run.epochs(config.epochs):
            began = time.perf_counter()
            begin_epoch(epoch, train)
            network.train()
            for batch in run.batches(share_of(train)):
                for group in optimiser.param_groups:
                    group["lr"] = _poly(config, run.step, steps)
                teacher_outputs, is_known = None, None
                if has_soft_targets:
                    batch, teacher_outputs, is_known = _taken_apart(batch, device)
                inputs, targets = batch_to(device, batch, config.channels_last)
                with autocast(device, config.precision):
                    outputs = forward(inputs)
                    value = loss(outputs, targets)
                    for output in heads(outputs):
                        value = value + config.auxiliary_weight * loss(output, targets)
                    if guide is not None:
                        with torch.no_grad():
                            teacher_outputs = guide(inputs)
                    if teacher_outputs is not None:
                        value = value + config.distillation_weight * distillation_loss(
                            outputs, teacher_outputs, config.distillation_temperature, is_known
                        )
                    value = global_loss(value, 1.0)
                if step(value, optimiser) and averaged is not None:
                    averaged.update_parameters(network)
                values: dict[str, Any] = {"loss": float(value.detach())}
                averages.add(**values)
                run.log.write(
                    "step", epoch=epoch, step=run.step, lr=optimiser.param_groups[0]["lr"], **values
                )
                report(Progress(epoch, config.epochs, run.step, False, values))
            step.end_epoch(averages.count("loss"))
            values = {**averages.means(), "skipped_steps": step.skipped}
            last = epoch + 1 == config.epochs
            if val is not None and metric is not None and (last or (epoch + 1) % config.validate_every == 0):
                found = scores(kept, val, metric)
                values["val"] = found
            values["seconds"] = time.perf_counter() - began
            run.log.write("epoch", epoch=epoch, step=run.step, **values)
            averages.clear()
            report(Progress(epoch, config.epochs, run.step, True, values))
        if not found and val is not None and metric is not None:
            # Resumed after its last epoch: there was nothing left to train, but the caller asked for scores.
            found = scores(kept, val, metric)
    if averaged is not None:
        network.load_state_dict(averaged.module.state_dict())
    network.cpu().eval()
    if out is not None and processes().is_first:
        save_weights(network, out / "weights.pt")
    return found


def _refuse_recipe(out: Path) -> None:
    """Refuse a folder with a ``recipe.json``, which would tell of weights that were not trained so."""
    path = out / "recipe.json"
    if path.is_file():
        raise InvalidInput(
            f"{path} says that the network there is trained by a recipe. Go on with that "
            f"(--recipe {path} --resume), or train without one in another folder (--out)."
        )


def _taken_apart(batch: Any, device: torch.device) -> tuple[Any, Tensor, Tensor]:
    """A batch with soft targets as one with targets alone; the teacher's logits, and where they are known."""
    inputs, soft = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
    if not isinstance(soft, SoftTargets):
        raise InvalidInput(
            "has_soft_targets says that the batches are (inputs, SoftTargets(targets, teacher_logits, "
            f"is_known)); got {type(batch).__name__} with {type(soft).__name__}."
        )
    targets, *rest = soft
    logits, is_known = (tensor.to(device, non_blocking=True) for tensor in rest)
    return (inputs, targets), logits, is_known


def _poly(config: FitConfig, step: int, steps_in_epoch: int) -> float:
    warmup = config.warmup_epochs * steps_in_epoch
    if step < warmup:
        return config.lr * (step + 1) / math.ceil(warmup)
    done = (step - warmup) / max(1.0, config.epochs * steps_in_epoch - warmup)
    return config.lr * math.pow(1.0 - done, config.power)
