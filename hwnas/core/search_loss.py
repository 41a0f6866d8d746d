"""What one step of a search minimises: the task's loss, and what choices learn by besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hwnas.core.arch import assigned
from hwnas.core.blindness import BlindnessMonitor, network_side
from hwnas.core.distributed import global_loss
from hwnas.core.graphed import GraphedTask
from hwnas.core.relaxation import Draw
from hwnas.core.score import ScoreFunction
from hwnas.core.searched import Searched
from hwnas.core.space import Metric
from hwnas.core.training import autocast, batch_to


@dataclass(frozen=True)
class StepLoss:
    """What a step of weights, of choices or of both minimises, on one draw of the choices."""

    searched: Searched
    score: ScoreFunction
    monitor: BlindnessMonitor
    generator: torch.Generator
    graphed: GraphedTask | None

    def __call__(
        self,
        batch: Any,
        temperature: float,
        *,
        weights_learn: bool = True,
        choices_learn: bool = True,
        uniform: bool = False,
        metric: Metric | None = None,
    ) -> tuple[torch.Tensor, float, float | None]:
        """The loss with all that choices learn by, the task's part of it, and the milliseconds penalised.

        Args:
            batch: inputs and targets.
            temperature: of the relaxation.
            weights_learn: whether the network's weights want a gradient.
            choices_learn: whether choices do; without, there are no penalised milliseconds.
            uniform: whether all options are drawn alike.
            metric: is shown the outputs.
        """
        arch, config = self.searched.arch, self.searched.config
        draw = arch.draw(config.relaxation, temperature, self.generator, uniform=uniform)
        if choices_learn:
            seen = network_side(self.score.seen_by_network(draw))
        else:
            # Nothing flows back to where nobody learns. (Graphs take what they were captured with.)
            seen = draw if self.graphed is not None else Draw(draw.weights.detach(), draw.index)
        loss, outputs, targets = self._task(batch, seen, weights_learn=weights_learn)
        if metric is not None:
            metric.update(outputs.detach().float(), targets)
        task = float(loss.detach())
        if not choices_learn:
            return loss, task, None
        self.monitor.watch(seen, task)
        loss = loss + self.score.term(task, draw)
        if config.entropy_weight:
            loss = loss - config.entropy_weight * arch.entropy()
        cost = self.searched.cost
        if cost is None:
            return loss, task, None
        latency_ms = cost.penalised(draw.weights if config.penalty_on == "draw" else arch.probabilities())
        # With a target, the budget's multiplier moves the logits, and nothing else is to pull at them. Before
        # any choice learns there is nothing to pull at.
        pulls = config.target_ms is None and latency_ms.requires_grad
        penalty = config.penalty(latency_ms) if pulls else 0.0
        return loss + penalty, task, float(latency_ms.detach())

    def _task(
        self, batch: Any, seen: Draw, *, weights_learn: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The task's loss, the outputs and the targets."""
        space, config = self.searched.space, self.searched.config
        device = self.searched.device
        inputs, targets = batch_to(device, batch, config.channels_last)
        if self.graphed is not None:
            return *self.graphed(inputs, targets, seen.weights), targets
        gradient = seen.weights.requires_grad
        # Where all choices learn by the score, a step of theirs alone needs no derivative of the network.
        with (
            torch.set_grad_enabled(weights_learn or gradient),
            assigned(self.searched.net, self.searched.arch, seen, gradient=gradient),
            autocast(device, config.precision),
        ):
            outputs = self.searched.net(inputs)
            return global_loss(space.loss(outputs, targets), space.loss_weight(targets)), outputs, targets
