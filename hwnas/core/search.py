"""The search: one loop that trains a supernet's weights and its architecture parameters together."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hwnas.core.arch import ArchParameters, depth_summary
from hwnas.core.candidates import WithinBudget, best_candidate, validate
from hwnas.core.checkpoint import seed_all
from hwnas.core.choice import ChoiceKind
from hwnas.core.confirm import Attempt, BudgetOutcome, Measure, confirmed, earlier_attempts, measurer_of_first
from hwnas.core.distributed import add_up_metric, trained_as_one
from hwnas.core.expected import LatencyTableLike
from hwnas.core.given import refuse_backend, refuse_data, refuse_space, refuse_table
from hwnas.core.graphed import GraphedTask, refuse_graphs
from hwnas.core.identity import identity_of
from hwnas.core.monitors import Monitors
from hwnas.core.progress import Progress
from hwnas.core.prune import NoPruning
from hwnas.core.run import Averages, Beginning, GeneratorState, Run, Stateful, refuse_other, require_begun
from hwnas.core.score import ScoreFunction
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_data import SearchData
from hwnas.core.search_loss import StepLoss
from hwnas.core.search_result import SearchResult, save_result
from hwnas.core.searched import Searched
from hwnas.core.space import Metric, SearchSpace
from hwnas.core.training import GuardedStep
from hwnas.errors import HwnasWarning, InvalidInput
from hwnas.latency.backend import LatencyBackend
from hwnas.processes import as_one, begin_epoch, processes, told_by_first

LATER_SETTINGS = {"cuda_graph": False, "budget.steers": True}
"""Settings that there have not always been; see :func:`hwnas.core.identity.as_ever`."""


class UnverifiedTableWarning(HwnasWarning):
    """A search goes by a table that was not tested on whole networks, or failed that test."""


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
    warm_up: str | Path | None = None,
) -> SearchResult:
    """Search ``space`` for a network that does the task well and is fast by ``lut``.

    Minimises ``task loss + penalty(expected latency)`` (Eq. 8 of the AutoRTNet paper) over weights and
    architecture parameters, with one draw of all choices in each step. The result is the most likely
    architecture, or the best of the ``candidates`` most likely. With ``target_ms`` or other costs in the
    config, these are kept instead of penalised (:class:`hwnas.core.budget.Budget`), and the result is the
    best within them.

    Started in several processes, by torchrun say, they search as one (docs/scale.md): each calls this with
    the same arguments and gets the result; the first writes the files and reports.

    Args:
        space: what can be chosen.
        lut: milliseconds of every op, or None to search without latency.
        data: one loader (single-level) or two (bilevel), and optionally validation data.
        config: settings; default ``SearchConfig()``.
        out: folder for config, log, checkpoint and genotype; None keeps nothing on disk.
        resume: go on with the search in ``out``, given the same space, table, data and config: where it
            stopped, or, where it is finished, without training; the result is that of a search that was never
            stopped. What was measured is not measured again.
        on_progress: called after each step and each epoch.
        backend: measures what was found for ``target_ms``, under the table's conditions, and finds again what
            is not within it (:func:`hwnas.core.confirm.confirmed`).
        measure: the same by any function from a genotype to milliseconds, instead of ``backend``.
        warm_up: folder of the epochs that this search has in common with others (:func:`common_epochs`),
            which must differ from it in ``target_ms`` alone or, without one, in ``penalty`` alone. The first
            of them does these epochs and keeps them there, the others start after them, and all find what
            they would find alone. Needs ``out``.

    Warns:
        UnverifiedTableWarning: ``lut`` was never tested on whole networks, or failed that test.
        BlindChoiceWarning: a choice gets no gradient from the task; see ``score_kinds``. Said once, and in
            the log.
        CollapseWarning: choices end in skips and zeros, are decided too early, or do not move. Each is said
            once, and in the log.

    Raises:
        InvalidInput: an argument is a name or a path where an object is wanted; no such torch device here;
            ``out`` holds a search already and ``resume`` is false, or none and it is true, or a baseline or a
            sweep; ``resume`` or ``warm_up`` without ``out``; a description that is not JSON; batches that are
            no pairs, or none at all; several candidates without validation data; ``explore=1`` without
            ``data.arch``; a target without a table; ``backend`` or ``measure`` without a target, or both;
            batches that several processes cannot share; ``cuda_graph`` where steps cannot be captured.
        BackendUnavailable: ``backend`` cannot run here.
        InfeasibleBudget: no network of the space keeps the budget; raised before anything is trained.
        SpaceError: the supernet breaks a rule of the recording, has nothing to choose, or computes outside of
            its ops where costs are asked for.
        MissingLatency: the table lacks rows of this space.
        TableMismatch: the table was measured at another resolution, or under other conditions than
            ``backend``'s.
        CheckpointError: what is to be resumed, or what is in ``warm_up``, is damaged, or is another run; the
            message lists the differences.
        NonFiniteLoss: the search diverged.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    refuse_space(space)
    refuse_table(lut)
    refuse_data(data)
    refuse_backend(backend)
    config = config or SearchConfig()
    out = Path(out) if out is not None else None
    _refuse(data, config, out, resume=resume)
    if lut is not None:
        table = lut
        # By the first process, which alone measures: another's node may lack the backend.
        told_by_first(lambda: table.check(backend=backend, input_shape=space.input_shape()))
        warn_of_doubts(lut)
    if told_by_first(lambda: backend is not None or measure is not None):
        if config.target_ms is None or lut is None:
            raise InvalidInput(
                "backend and measure are there to confirm a target: give target_ms, and a table to predict "
                "by."
            )
        measure = measurer_of_first(space, lut, backend, measure, config.budget.processes)
    seed_all(config.seed)
    searched = Searched.prepared(space, lut, data, config)
    net, arch, budget, device = searched.net, searched.arch, searched.budget, searched.device
    graphed = None
    if config.cuda_graph:
        is_soft = not config.relaxation.is_hard
        refuse_graphs(soft=is_soft, recompute=config.recompute, device=device, process_count=processes().size)
        graphed = GraphedTask(space, net, arch, config.precision)
    weights = torch.optim.SGD(
        net.parameters(), lr=config.weight_lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    alphas = torch.optim.Adam(
        arch.parameters(), lr=config.arch_lr, betas=config.arch_betas, weight_decay=config.arch_weight_decay
    )
    generator = torch.Generator().manual_seed(config.seed)
    averages, step = Averages(), GuardedStep(net, clip=config.gradient_clip)
    score, monitors = ScoreFunction(arch, config.score_kinds, searched.recording), Monitors(searched)
    metric = space.metric()
    parts: dict[str, Stateful] = {
        "net": net, "arch": arch, "weights": weights, "alphas": alphas,
        "gumbel": GeneratorState(generator), "averages": averages, "guard": step,
        "score": score, "monitor": monitors.blindness, "collapse": monitors.collapse,
    }  # fmt: skip
    if budget is not None:
        parts["budget"] = budget
    beginning = None
    if warm_up is not None:
        apart = "config.penalty" if config.target_ms is None else "config.target_ms"
        kinds = [choice.kind for choice in arch.choices]
        beginning = Beginning(Path(warm_up), common_epochs(config, kinds), (apart,))
    report = on_progress if on_progress and processes().is_first else lambda progress: None
    step_loss = StepLoss(searched, score, monitors.blindness, generator, graphed)
    every = config.checkpoint_every_steps
    identity = search_identity(space, lut, data, config)
    run = Run(out, "search", identity, parts, resume=resume, every_steps=every, beginning=beginning)
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
                if arch_batch is not None and arch.moves():
                    loss, task, ms = step_loss(arch_batch, temperature, weights_learn=False)
                    step(loss, alphas)
                    loss = loss.detach()  # a graph's memory hangs on it
                uniform = config.explore > 0 and float(torch.rand((), generator=generator)) < config.explore
                teaches = arch_batch is None and not uniform
                loss, task, ms_now = step_loss(
                    batch, temperature, choices_learn=teaches, uniform=uniform, metric=metric
                )
                step(loss, *([weights, alphas] if teaches and arch.moves() else [weights]))
                loss = loss.detach()
                ms = ms_now if arch_batch is None else ms
                if budget is not None:
                    budget.step(arch)
                values: dict[str, Any] = {"loss": float(loss), "task_loss": task}
                if ms is not None:
                    values["penalised_ms"] = ms
                averages.add(**values)
                scored += 1
                run.log.write("step", epoch=epoch, step=run.step, temperature=temperature, **values)
                report(
                    Progress(epoch, config.epochs, run.step, False, {"temperature": temperature, **values})
                )
            steps = averages.count("loss")
            step.end_epoch(steps)
            died = config.pruner.prune(arch, epoch)
            if budget is not None:
                died = budget.spare(arch, died)
            # After a resume in mid-epoch the metric has seen a part of the epoch only: no number then.
            whole = metric if scored == steps and add_up_metric(metric, device) else None
            values = _epoch_values(searched, epoch, averages, whole, monitors)
            values |= {"skipped_steps": step.skipped, "pruned": [list(pair) for pair in died]}
            values |= {"temperature": temperature, "seconds": time.perf_counter() - began}
            run.log.write("epoch", epoch=epoch, step=run.step, **values)
            for choices, text, category in monitors.end_epoch(epoch, steps):
                run.log.write("warning", epoch=epoch, choices=choices, text=text)
                _warn(text, category)
            averages.clear()
            report(Progress(epoch, config.epochs, run.step, True, values))
        # By the first: it alone has the file, and writes it anew meanwhile.
        earlier = told_by_first(lambda: earlier_attempts(out)) if resume else ()
        result = _result(searched, out, measure, earlier, run)
        run.log.write("end", genotype=result.genotype.short_id, predicted_ms=result.predicted_ms)
    return result


def _refuse(data: SearchData, config: SearchConfig, out: Path | None, *, resume: bool) -> None:
    """Refuse what a search cannot do with its data or in its folder."""
    told_by_first(lambda: refuse_other(out, "baseline"))
    if resume:
        told_by_first(lambda: require_begun(out, "search"))
    if config.explore == 1 and data.arch is None:
        raise InvalidInput(
            "explore=1 leaves no step for α and β to learn from: pass data of their own (SearchData.arch), "
            "or set explore below 1."
        )
    if config.candidates > 1 and data.val is None:
        raise InvalidInput(
            f"candidates={config.candidates} compares networks on validation data: pass SearchData(val=…)."
        )


def search_identity(
    space: SearchSpace, lut: LatencyTableLike | None, data: SearchData, config: SearchConfig
) -> dict[str, Any]:
    """What a search is, as JSON: what a checkpoint must agree with to be resumed."""
    return {
        **identity_of(space, lut, data, config, LATER_SETTINGS),
        "levels": 1 if data.arch is None else 2,
    }


def common_epochs(config: SearchConfig, kinds: Iterable[ChoiceKind]) -> int:
    """After how many epochs searches part that differ in ``target_ms`` alone or, without one, in ``penalty``.

    A penalty acts once any kind of choice learns. A target rests until all kinds do, or to the end where it
    does not steer; but a pruner asks it which options the budget needs, as soon as probabilities move.

    Args:
        config: of one of them; whether it has a target says in what they differ.
        kinds: of the choices of the supernet.
    """
    begins = [_learns_from(config, kind) for kind in kinds]
    rests = config.target_ms is not None and isinstance(config.pruner, NoPruning)
    if rests and not config.budget.steers:
        return config.epochs
    return min(config.epochs, max(begins) if rests else min(begins))


def warn_of_doubts(lut: LatencyTableLike) -> None:
    """Warn the caller of a search, or of a baseline, of a table that should not be relied on."""
    for doubt in lut.doubts():
        _warn(doubt, UnverifiedTableWarning, frames=5)


def _warn(text: str, category: type[HwnasWarning], frames: int = 4) -> None:
    """Warn, in the first process, whoever called the search: this, the search and ``as_one`` lie between."""
    if processes().is_first:
        warnings.warn(text, category, stacklevel=frames)


def _epoch_values(
    searched: Searched, epoch: int, averages: Averages, metric: Metric | None, monitors: Monitors
) -> dict[str, Any]:
    """What an epoch's line of the log says of the networks; validates the likeliest where it is time to."""
    arch, cost, config = searched.arch, searched.cost, searched.config
    probabilities = arch.probabilities()
    values: dict[str, Any] = {**averages.means()}
    if cost is not None:
        values["expected_ms"] = cost.total(probabilities)
        values["argmax_ms"] = cost.at(arch.argmax())
    if metric is not None:
        values["train"] = dict(metric.compute())
    values["depth"] = depth_summary(arch)
    values["probabilities"] = arch.by_name(probabilities)
    values |= monitors.values()
    if searched.budget is not None:
        values["budget"] = searched.budget.values(arch)
    is_time = (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs
    if searched.data.val is not None and is_time:
        values["val"] = validate(searched, arch.argmax())
    return values


def _result(
    searched: Searched, out: Path | None, measure: Measure | None, earlier: Sequence[Attempt], run: Run
) -> SearchResult:
    arch, cost, budget = searched.arch, searched.cost, searched.budget
    expected_ms = cost.total(arch.probabilities()) if cost is not None else None
    probabilities = arch.by_name(arch.probabilities())

    def found(
        best: Mapping[str, int], outcome: BudgetOutcome | None, scores: Mapping[str, Any] | None = None
    ) -> SearchResult:
        predicted_ms = cost.at(best) if cost is not None else None
        if outcome is not None and outcome.predicted_ms is not None:
            predicted_ms = outcome.predicted_ms
        result = SearchResult(
            searched.space.genotype(best), predicted_ms, expected_ms, probabilities, searched.net, out,
            scores, outcome,
        )  # fmt: skip
        save_result(result, searched.lut)
        return result

    if budget is None:
        best, scores = best_candidate(searched)
        result = found(best, None, scores)
    else:
        choose = WithinBudget(searched, budget)
        best, outcome = confirmed(
            budget,
            arch,
            measure,
            earlier=earlier,
            keep=found,
            choose=choose,
            between=partial(run.stop_if_asked, doing="while networks were measured for the target,"),
        )
        result = found(best, outcome, choose.scores(best) if searched.data.val is not None else None)
    searched.net.cpu()
    return result


def _cosine(config: SearchConfig, epoch: int) -> float:
    swing = (config.weight_lr - config.weight_lr_end) / 2
    return config.weight_lr_end + swing * (1 + math.cos(math.pi * epoch / config.epochs))


def _set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _thaw(arch: ArchParameters, epoch: int, config: SearchConfig) -> None:
    # A matrix without requires_grad gets no gradient, and Adam leaves parameters without one alone.
    for kind, matrix in arch.matrices.items():
        matrix.requires_grad_(epoch >= _learns_from(config, kind))


def _learns_from(config: SearchConfig, kind: str) -> int:
    """The first epoch in which choices of a kind move."""
    return max(config.arch_from_epoch, config.depth_from_epoch if kind == "depth" else 0)
