"""The search: one loop that trains a supernet's weights and its architecture parameters together."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from hwnas.core.arch import ArchParameters, assigned, depth_summary
from hwnas.core.blindness import BlindChoiceWarning, BlindnessMonitor, network_side
from hwnas.core.budget import Budget, BudgetConfig
from hwnas.core.candidates import likeliest
from hwnas.core.checkpoint import reseeded
from hwnas.core.choice import ChoiceKind, recompute
from hwnas.core.collapse import CollapseMonitor, CollapseWarning, passive_options
from hwnas.core.confirm import Attempt, BudgetOutcome, Measure, confirmed, earlier_attempts, measurer
from hwnas.core.distributed import add_up_metric, global_loss, trained_as_one
from hwnas.core.expected import ExpectedLatency, LatencySource
from hwnas.core.genotype import Genotype
from hwnas.core.penalty import AnyPenalty, LogPenalty
from hwnas.core.progress import Progress
from hwnas.core.prune import AnyPruner, NoPruning
from hwnas.core.relaxation import AnyRelaxation, GumbelSoftmax
from hwnas.core.run import Averages, GeneratorState, Run, Stateful
from hwnas.core.score import ScoreFunction
from hwnas.core.scoring import by_loss, shared_scores
from hwnas.core.space import Metric, SearchSpace
from hwnas.core.training import GuardedStep, TrainingPrecision, autocast, batch_to, torch_device
from hwnas.errors import HwnasWarning, InvalidInput
from hwnas.files import write_atomically
from hwnas.latency.backend import LatencyBackend
from hwnas.processes import as_one, begin_epoch, processes, shared, told_by_first


class SearchConfig(BaseModel):
    """How to search. The defaults are the AutoRTNet paper's where it states them, for a run of 50 epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(50, ge=1)
    """Passes over the training data."""
    seed: int = 0
    """Of the weights' initialisation, the data's order and the Gumbel noise."""
    device: str = "auto"
    """Where to train: "auto", "cpu", "cuda" or "cuda:N". What latency is meant for, the table knows."""
    precision: TrainingPrecision = "fp32"
    """"bf16" runs matrix work in bfloat16; steps that are not finite are skipped."""
    channels_last: bool = False
    """Keep images and weights in NHWC memory order."""
    recompute: bool = False
    """Compute candidate ops again in back-propagation instead of keeping what they computed: less memory."""
    relaxation: AnyRelaxation = GumbelSoftmax()
    """How logits become an assignment in each step."""
    score_kinds: tuple[ChoiceKind, ...] = ("op", "depth", "input")
    """Kinds of choice that learn from hard draws by the score function. The others learn straight-through,
    with less noise, but blind where a batch norm follows: :class:`hwnas.core.score.ScoreFunction`."""
    penalty: AnyPenalty = LogPenalty()
    """What expected latency adds to the loss."""
    penalty_on: Literal["draw", "probabilities"] = "draw"
    """Whether the penalty sees the latency of the step's draw (the paper) or of the probabilities."""
    target_ms: float | None = Field(None, gt=0)
    """A hard budget: milliseconds that the network must keep, and should use. ``penalty`` rests meanwhile."""
    budget: BudgetConfig = BudgetConfig()
    """What else the network may cost at most, and how the budget is met."""
    entropy_weight: float = Field(0.0, ge=0)
    """What each nat of the choices' entropy takes off the loss. Above 0, logits do not grow without end: two
    options' settle at the difference of their losses over this, so that the likelihood of a network says how
    good it is, and the likeliest ones under a budget are good ones."""
    pruner: AnyPruner = NoPruning()
    """Which options die, when."""
    weight_lr: float = Field(0.025, gt=0)
    """SGD's learning rate in the first epoch; it follows a cosine to ``weight_lr_end``."""
    weight_lr_end: float = Field(0.001, ge=0)
    """What SGD's learning rate approaches: its value after the last epoch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(1e-3, ge=0)
    """SGD's weight decay."""
    gradient_clip: float | None = 5.0
    """Largest norm of the weights' gradient; null: unlimited."""
    arch_lr: float = Field(1e-3, gt=0)
    """Adam's learning rate for α and β."""
    arch_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates for α and β."""
    arch_weight_decay: float = Field(1e-4, ge=0)
    """Adam's weight decay for α and β."""
    explore: float = Field(0.0, ge=0, le=1)
    """Share of the weights' steps that draw uniformly from the live options, not by α and β, so that all are
    trained alike and can be compared. α and β learn from other steps: 1 needs ``SearchData.arch``."""
    arch_from_epoch: int = Field(0, ge=0)
    """Epochs before which no architecture parameter moves."""
    depth_from_epoch: int = Field(0, ge=0)
    """Epochs before which the depths (β) do not move, while weights and α train."""
    validate_every: int = Field(1, ge=1)
    """Epochs between evaluations of the most likely architecture, if there are validation data."""
    statistics_batches: int = Field(16, ge=0)
    """Training batches from which batch norms take their statistics before a network is evaluated with the
    shared weights; 0: what they saw in training, a mixture over all networks drawn."""
    candidates: int = Field(1, ge=1)
    """How many of the likeliest architectures are evaluated so in the end, of which the one with the least
    loss is the result; 1: the likeliest is. More need validation data. Under a budget the likeliest within
    it is the result, whatever this says."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between checkpoints within an epoch; 0: at the ends of epochs only."""


Batches = Iterable[Any]


@dataclass(frozen=True)
class SearchData:
    """The data of a search: anything iterable that yields ``(inputs, targets)`` batches, such as DataLoaders.

    Several processes share each batch, see :func:`hwnas.processes.shared`.

    Attributes:
        train: trains the weights, and, when ``arch`` is None, α and β in the same back-propagation
            (single-level).
        arch: trains α and β in steps of their own (bilevel).
        val: evaluates the most likely architecture after an epoch.
        description: what the data are, as JSON: names, splits, batch size, augmentation. Part of what the run
            is: resuming with data that are described otherwise is refused. None: hwnas cannot tell.
    """

    train: Batches
    arch: Batches | None = None
    val: Batches | None = None
    description: Mapping[str, Any] | None = None

    def steps(self) -> Iterator[tuple[Any, Any]]:
        """One epoch of ``(train batch, arch batch or None)``; a shorter ``arch`` begins again.

        What it yields depends on the global random state at its beginning alone, provided that loaders draw
        their order when they begin; so the batches of a begun epoch can be passed over after a resume.

        Raises:
            InvalidInput: ``arch`` yields nothing, or nothing the second time.
        """
        if self.arch is None:
            for batch in shared(self.train):
                yield batch, None
            return
        # By the time ``arch`` begins again, training (dropout) has moved the global state, which replaying
        # the epoch after a resume does not: that pass takes its order from seeds drawn beforehand.
        seeds = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        second = iter(shared(self.arch))
        for batch in shared(self.train):
            other = next(second, None)
            if other is None:
                with reseeded(int(torch.randint(2**62, (), generator=seeds))):
                    second = iter(shared(self.arch))
                    other = next(second, None)
            if other is None:
                raise InvalidInput(
                    "SearchData.arch yields no batches (or none the second time: an iterator is used up); "
                    "pass a DataLoader or a list, with at least one batch."
                )
            yield batch, other


class LatencyTableLike(LatencySource, Protocol):
    """A latency table as the search needs it."""

    def check(
        self, *, backend: LatencyBackend | None = None, input_shape: tuple[int, ...] | None = None
    ) -> None:
        """Raise TableMismatch if the table was measured under other conditions, or at another resolution."""
        ...

    def doubts(self) -> list[str]:
        """Why its predictions should not be relied on, in sentences."""
        ...

    @property
    def header(self) -> Any:
        """Under which conditions the table was measured."""
        ...


class UnverifiedTableWarning(HwnasWarning):
    """A search goes by a table that was not tested on whole networks, or failed that test."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the most likely architecture (that keeps the budget, where there is one), canonical.
        predicted_ms: its latency by the table, whole network; None without a table. Where measurements for a
            target corrected the table, what was predicted with the correction.
        expected_ms: the expectation over the final probabilities; None without a table.
        probabilities: of every option, by choice.
        supernet: the trained supernet, on the CPU; ``space.build(genotype, supernet)`` keeps its weights.
            None where no weights were shared.
        out: the run's folder, if it has one.
        scores: of ``genotype`` on the validation data, with the shared weights; None without such data.
        budget: what was asked, predicted and measured; None where no budget was given.
    """

    genotype: Genotype
    predicted_ms: float | None
    expected_ms: float | None
    probabilities: dict[str, list[float]]
    supernet: nn.Module | None
    out: Path | None
    scores: Mapping[str, Any] | None = None
    budget: BudgetOutcome | None = None


@as_one
def search(
    space: SearchSpace,
    lut: LatencyTableLike | None,
    data: SearchData,
    config: SearchConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    backend: LatencyBackend | None = None,
    measure: Measure | None = None,
) -> SearchResult:
    """Search ``space`` for a network that does the task well and is fast by ``lut``.

    Minimises ``task loss + penalty(expected latency)`` (Eq. 8 of the AutoRTNet paper) over weights and
    architecture parameters, with one draw of all choices in each step. The result is the most likely
    architecture. With ``target_ms`` or other costs in the config, these are kept instead of penalised
    (:class:`hwnas.core.budget.Budget`), and the result is the most likely architecture within them.

    Started in several processes, by torchrun say, they search as one (docs/scale.md): each calls this with
    the same arguments and gets the result; the first writes the files and reports.

    Args:
        space: what can be chosen.
        lut: milliseconds of every op, or None to search without latency.
        data: one loader (single-level) or two (bilevel), and optionally validation data.
        config: settings; default ``SearchConfig()``.
        out: folder for config, log, checkpoint and genotype; None keeps nothing on disk.
        resume: go on with the run in ``out``.
        on_progress: called after each step and each epoch.
        backend: measures what was found for ``target_ms``, under the table's conditions, and finds again what
            is not within it (:func:`hwnas.core.confirm.confirmed`).
        measure: the same by any function from a genotype to milliseconds, instead of ``backend``.

    Warns:
        UnverifiedTableWarning: ``lut`` was never tested on whole networks, or failed that test.
        BlindChoiceWarning: a choice gets no gradient from the task; see ``score_kinds``. Said once, and in
            the log.
        CollapseWarning: choices end in skips and zeros, are decided too early, or do not move. Each is said
            once, and in the log.

    Raises:
        InvalidInput: no such torch device here; ``out`` holds a search already and ``resume`` is false;
            ``resume`` without ``out``; a description that is not JSON; batches that are no pairs, or none
            from ``data.arch``; validation data for a space without a metric; several candidates without
            validation data; ``explore=1`` without ``data.arch``; a target without a table;
            ``backend`` or ``measure`` without a target, or both.
        InfeasibleBudget: no network of the space keeps the budget; raised before anything is trained.
        SpaceError: the supernet breaks a rule of the recording, or has nothing to choose.
        MissingLatency: the table lacks rows of this space.
        TableMismatch: the table was measured at another resolution, or under other conditions than
            ``backend``'s.
        CheckpointError: what is to be resumed is damaged, or is another run; the message lists the
            differences.
        NonFiniteLoss: the search diverged.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    config = config or SearchConfig()
    out = Path(out) if out is not None else None
    if config.explore == 1 and data.arch is None:
        raise InvalidInput(
            "explore=1 leaves no step for α and β to learn from: pass data of their own (SearchData.arch), "
            "or set explore below 1."
        )
    if config.candidates > 1 and data.val is None:
        raise InvalidInput(
            f"candidates={config.candidates} compares networks on validation data: pass SearchData(val=…)."
        )
    if lut is not None:
        lut.check(backend=backend, input_shape=space.input_shape())
        warn_of_doubts(lut)
    if backend is not None or measure is not None:
        measure = measurer(space, lut, config.target_ms, backend, measure, config.budget.processes)
    torch.manual_seed(config.seed)
    device = torch_device(config.device)
    net = space.supernet().to(device)
    if config.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.recompute:
        recompute(net)
    arch = ArchParameters(net).to(device)
    recording = space.record(batch=lut.header.batch if lut is not None else 1)
    cost = ExpectedLatency(recording, arch.choices, lut).to(device) if lut is not None else None
    budget = Budget.asked(space, arch.choices, lut, config.target_ms, config.budget)
    weights = torch.optim.SGD(
        net.parameters(), lr=config.weight_lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    alphas = torch.optim.Adam(
        arch.parameters(), lr=config.arch_lr, betas=config.arch_betas, weight_decay=config.arch_weight_decay
    )
    generator = torch.Generator().manual_seed(config.seed)
    averages, step = Averages(), GuardedStep(net, clip=config.gradient_clip)
    score = ScoreFunction(arch, config.score_kinds, recording)
    monitor = BlindnessMonitor(arch, config.score_kinds)
    metric = space.metric()
    parts: dict[str, Stateful] = {
        "net": net, "arch": arch, "weights": weights, "alphas": alphas,
        "gumbel": GeneratorState(generator), "averages": averages, "guard": step,
        "score": score, "monitor": monitor,
    }  # fmt: skip
    if budget is not None:
        budget.to(device).switch_off(arch)
        parts["budget"] = budget
    # After the budget's first cut, which is no move of the search's.
    collapse = CollapseMonitor(arch, recording, passive_options(net, recording))
    parts["collapse"] = collapse
    identity = {
        "space": space.name,
        "fields": space.model_dump(mode="json"),
        "config": config.model_dump(mode="json"),
        "table": getattr(lut, "checksum", None),
        "levels": 1 if data.arch is None else 2,
        "data": data.description,
    }
    report = on_progress if on_progress and processes().is_first else lambda progress: None
    learning = (score, monitor)
    every = config.checkpoint_every_steps
    run = Run(out, "search", identity, parts, resume=resume, every_steps=every)
    with run, trained_as_one(net):
        for epoch in run.epochs(config.epochs):
            began = time.perf_counter()
            begin_epoch(epoch, data.train, data.arch)
            temperature = config.relaxation.temperature.at(epoch, config.epochs)
            _set_learning_rate(weights, _cosine(config, epoch))
            _thaw(arch, epoch, config)
            net.train()
            scored = 0
            if metric is not None:
                metric.reset()
            for batch, arch_batch in run.batches(data.steps()):
                ms = None
                if arch_batch is not None and arch_moves(arch):
                    loss, task, ms = _loss(
                        space, net, arch, cost, learning, config, temperature, generator, arch_batch, None,
                        weights_learn=False,
                    )  # fmt: skip
                    step(loss, alphas)
                uniform = config.explore > 0 and float(torch.rand((), generator=generator)) < config.explore
                teaches = arch_batch is None and not uniform
                penalised, taught = (cost, learning) if teaches else (None, None)
                loss, task, ms_now = _loss(
                    space, net, arch, penalised, taught, config, temperature, generator, batch, metric,
                    weights_learn=True, uniform=uniform,
                )  # fmt: skip
                step(loss, *([weights, alphas] if teaches and arch_moves(arch) else [weights]))
                ms = ms_now if arch_batch is None else ms
                if budget is not None:
                    budget.step(arch)
                values: dict[str, Any] = {"loss": float(loss.detach()), "task_loss": task}
                if ms is not None:
                    values["penalised_ms"] = ms
                averages.add(**values)
                scored += 1
                run.log.write("step", epoch=epoch, step=run.step, temperature=temperature, **values)
                report(
                    Progress(epoch, config.epochs, run.step, False, {"temperature": temperature, **values})
                )
            died = config.pruner.prune(arch, epoch)
            if budget is not None:
                died = budget.spare(arch, died)
            # After a resume in mid-epoch the metric has seen a part of the epoch only: no number then.
            whole = metric if scored == averages.count("loss") and add_up_metric(metric, device) else None
            values = _epoch_values(arch, cost, averages, whole, temperature)
            values |= {"skipped_steps": step.skipped, "pruned": [list(pair) for pair in died]}
            values |= {"task_gradient": monitor.means(), "collapse": collapse.values()}
            if budget is not None:
                values["budget"] = budget.values(arch)
            if data.val is not None and (
                (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs
            ):
                values["val"] = _validate(space, net, arch.argmax(), data, device, config)
            values["seconds"] = time.perf_counter() - began
            run.log.write("epoch", epoch=epoch, step=run.step, **values)
            if arch_moves(arch) and (blind := monitor.newly_blind()):
                run.log.write("warning", epoch=epoch, choices=blind, text=monitor.advice(blind))
                _warn(monitor.advice(blind), BlindChoiceWarning)
            done = (epoch + 1 - config.arch_from_epoch) / max(1, config.epochs - config.arch_from_epoch)
            seen = collapse.newly_seen(averages.count("loss"), done) if arch_moves(arch) else ()
            for sign, names in seen:
                run.log.write("warning", epoch=epoch, choices=names, text=collapse.advice(sign, names))
                _warn(collapse.advice(sign, names), CollapseWarning)
            averages.clear()
            monitor.clear()
            report(Progress(epoch, config.epochs, run.step, True, values))
        earlier = earlier_attempts(out) if resume else ()
        result = _result(space, net, arch, lut, cost, data, config, out, budget, measure, earlier)
        run.log.write("end", genotype=result.genotype.short_id, predicted_ms=result.predicted_ms)
    return result


def warn_of_doubts(lut: LatencyTableLike) -> None:
    """Warn the caller of a search, or of a baseline, of a table that should not be relied on."""
    for doubt in lut.doubts():
        _warn(doubt, UnverifiedTableWarning, frames=5)


def _warn(text: str, category: type[HwnasWarning], frames: int = 4) -> None:
    """Warn, in the first process, whoever called the search: this, the search and ``as_one`` lie between."""
    if processes().is_first:
        warnings.warn(text, category, stacklevel=frames)


def arch_moves(arch: ArchParameters) -> bool:
    """Whether any architecture parameter is trained in this epoch."""
    return any(matrix.requires_grad for matrix in arch.parameters())


def _loss(
    space: SearchSpace,
    net: nn.Module,
    arch: ArchParameters,
    cost: ExpectedLatency | None,
    learning: tuple[ScoreFunction, BlindnessMonitor] | None,
    config: SearchConfig,
    temperature: float,
    generator: torch.Generator,
    batch: Any,
    metric: Metric | None,
    *,
    weights_learn: bool,
    uniform: bool = False,
) -> tuple[torch.Tensor, float, float | None]:
    device = arch.alive.device
    inputs, targets = batch_to(device, batch, config.channels_last)
    draw = arch.draw(config.relaxation, temperature, generator, uniform=uniform)
    seen = network_side(draw if learning is None else learning[0].seen_by_network(draw))
    gradient = seen.weights.requires_grad
    # Where all choices learn by the score, a step of theirs alone needs no derivative of the network.
    with (
        torch.set_grad_enabled(weights_learn or gradient),
        assigned(net, arch, seen, gradient=gradient),
        autocast(device, config.precision),
    ):
        outputs = net(inputs)
        loss = global_loss(space.loss(outputs, targets), space.loss_weight(targets))
    if metric is not None:
        metric.update(outputs.detach().float(), targets)
    task = float(loss.detach())
    if learning is not None:
        score, monitor = learning
        monitor.watch(seen, task)
        loss = loss + score.term(task, draw)
        if config.entropy_weight:
            loss = loss - config.entropy_weight * arch.entropy()
    if cost is None:
        return loss, task, None
    latency_ms = cost.penalised(draw.weights if config.penalty_on == "draw" else arch.probabilities())
    # With a target, the budget's multiplier moves the logits, and nothing else is to pull at them.
    penalty = config.penalty(latency_ms) if config.target_ms is None else 0.0
    return loss + penalty, task, float(latency_ms.detach())


def _epoch_values(
    arch: ArchParameters,
    cost: ExpectedLatency | None,
    averages: Averages,
    metric: Metric | None,
    temperature: float,
) -> dict[str, Any]:
    probabilities = arch.probabilities()
    values: dict[str, Any] = {**averages.means(), "temperature": temperature}
    if cost is not None:
        values["expected_ms"] = cost.total(probabilities)
        values["argmax_ms"] = cost.total(arch.one_hot(arch.argmax()).weights)
    if metric is not None:
        values["train"] = dict(metric.compute())
    values["depth"] = depth_summary(arch)
    values["probabilities"] = arch.by_name(probabilities)
    return values


def _validate(
    space: SearchSpace,
    net: nn.Module,
    assignment: Mapping[str, int],
    data: SearchData,
    device: torch.device,
    config: SearchConfig,
) -> dict[str, Any]:
    """The metric of one network with the shared weights."""
    assert data.val is not None
    if space.metric() is None:
        raise InvalidInput(
            f'{type(space).__name__} has no metric, so validation data mean nothing to it: leave "val" out, '
            "or give the space a metric()."
        )
    return shared_scores(
        space, net, space.genotype(assignment), data.train, data.val,
        statistics_batches=config.statistics_batches, device=device, seed=config.seed,
        precision=config.precision, channels_last=config.channels_last,
    )  # fmt: skip


def best_candidate(
    space: SearchSpace,
    net: nn.Module,
    arch: ArchParameters,
    data: SearchData,
    config: SearchConfig,
    keeps: Callable[[Mapping[str, int]], bool] = lambda assignment: True,
) -> tuple[dict[str, int], dict[str, Any] | None]:
    """The best of the ``config.candidates`` likeliest networks, and its scores on the validation data.

    Probabilities are learnt from single batches, and choice by choice; what a network as a whole is worth,
    the shared weights say better. Without validation data, the likeliest network and None.

    Args:
        space: whose networks.
        net: the supernet.
        arch: whose likeliest networks.
        data: for batch norms' statistics, and to validate on.
        config: how many, and how.
        keeps: whether a network may be taken, such as one that keeps a budget.

    Raises:
        InvalidInput: no network may be taken.
    """
    device = arch.alive.device
    best: tuple[dict[str, int], dict[str, Any] | None] | None = None
    compared = 0
    for assignment in likeliest(arch, space.record()):
        if not keeps(assignment):
            continue
        if data.val is None:
            return assignment, None
        compared += 1
        scores = _validate(space, net, assignment, data, device, config)
        if best is None or best[1] is None or by_loss(scores) > by_loss(best[1]):
            best = assignment, scores
        if compared == config.candidates:
            break
    if best is None:
        raise InvalidInput("no network may be taken.")
    return best


def conditions(header: Any) -> dict[str, Any]:
    """Under which conditions a table's milliseconds hold, as JSON: what must travel with them."""
    return {
        "device": header.device.name,
        "backend": header.backend,
        "precision": header.precision,
        "batch": header.batch,
        "threads": header.threads,
    }


def _result(
    space: SearchSpace,
    net: nn.Module,
    arch: ArchParameters,
    lut: LatencyTableLike | None,
    cost: ExpectedLatency | None,
    data: SearchData,
    config: SearchConfig,
    out: Path | None,
    budget: Budget | None,
    measure: Measure | None,
    earlier: Sequence[Attempt],
) -> SearchResult:
    expected_ms = cost.total(arch.probabilities()) if cost is not None else None
    probabilities = arch.by_name(arch.probabilities())

    def found(
        best: Mapping[str, int], outcome: BudgetOutcome | None, scores: Mapping[str, Any] | None = None
    ) -> SearchResult:
        predicted_ms = cost.total(arch.one_hot(best).weights) if cost is not None else None
        if outcome is not None and outcome.predicted_ms is not None:
            predicted_ms = outcome.predicted_ms
        result = SearchResult(
            space.genotype(best), predicted_ms, expected_ms, probabilities, net, out, scores, outcome
        )
        save_result(result, lut)
        return result

    if budget is None:
        best, scores = best_candidate(space, net, arch, data, config)
        result = found(best, None, scores)
    else:
        # One process measures: several at once would be in each other's way.
        best, outcome = told_by_first(lambda: confirmed(budget, arch, measure, earlier=earlier, keep=found))
        kept = _validate(space, net, best, data, arch.alive.device, config) if data.val is not None else None
        result = found(best, outcome, kept)
    net.cpu()
    return result


def save_result(result: SearchResult, lut: LatencyTableLike | None, **values: Any) -> None:
    """Write ``genotype.json`` and ``result.json``, with ``values`` in it, into the run's folder, if any.

    Of several processes the first does.
    """
    if result.out is None or not processes().is_first:
        return
    result.genotype.save(result.out / "genotype.json")
    budget = result.budget
    found = {
        "genotype": result.genotype.short_id,
        "predicted_ms": result.predicted_ms,
        "expected_ms": result.expected_ms,
        **(conditions(lut.header) if lut is not None else {}),
        **({"budget": budget.model_dump(mode="json")} if budget is not None else {}),
        "val": result.scores,
        **values,
        "probabilities": result.probabilities,
    }
    write_atomically(result.out / "result.json", (json.dumps(found, indent=1) + "\n").encode())


def _cosine(config: SearchConfig, epoch: int) -> float:
    swing = (config.weight_lr - config.weight_lr_end) / 2
    return config.weight_lr_end + swing * (1 + math.cos(math.pi * epoch / config.epochs))


def _set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _thaw(arch: ArchParameters, epoch: int, config: SearchConfig) -> None:
    # A matrix without requires_grad gets no gradient, and Adam leaves parameters without one alone.
    for kind, matrix in arch.matrices.items():
        matrix.requires_grad_(
            epoch >= config.arch_from_epoch and (kind != "depth" or epoch >= config.depth_from_epoch)
        )
