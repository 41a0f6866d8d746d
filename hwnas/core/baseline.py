"""What a search has to beat: random search and ageing evolution, through the same interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwnas.core.baseline_config import AgeingEvolution, BaselineConfig, SharedWeights
from hwnas.core.budget import Budget
from hwnas.core.budget_config import BudgetConfig, asked_costs
from hwnas.core.checkpoint import seed_all
from hwnas.core.confirm import predicted_outcome
from hwnas.core.expected import ExpectedLatency, LatencyTableLike
from hwnas.core.fit import fit
from hwnas.core.given import refuse_data, refuse_space, refuse_table
from hwnas.core.identity import identity_of
from hwnas.core.progress import Progress
from hwnas.core.prune import NoPruning
from hwnas.core.relaxation import GumbelSoftmax
from hwnas.core.run import GeneratorState, Run, Stateful, refuse_other, require_begun
from hwnas.core.scoring import LossBeside, by_loss, headline, shared_scores
from hwnas.core.search import LATER_SETTINGS, search, warn_of_doubts
from hwnas.core.search_data import SearchData
from hwnas.core.search_result import SearchResult, save_result
from hwnas.core.space import SearchSpace
from hwnas.core.training import torch_device
from hwnas.errors import InvalidInput, NonFiniteLoss, in_short
from hwnas.processes import as_one, processes, told_by_first

_DRAWS = 10_000
"""Random networks drawn in vain before the space counts as exhausted."""
_LATER = {
    "budget": BudgetConfig().model_dump(mode="json"),
    **{f"scoring.supernet.{name}": value for name, value in LATER_SETTINGS.items()},
}
"""Settings that there have not always been; see :func:`hwnas.core.identity.as_ever`."""


@dataclass(frozen=True)
class Trial:
    """One network that was tried.

    Attributes:
        assignment: its option indices by choice; choices that do not matter to it included.
        genotype: its short id.
        predicted_ms: by the table; None without one.
        scores: metric and loss; empty where its training diverged.
        score: what trials are compared by, the higher the better.
    """

    assignment: dict[str, int]
    genotype: str
    predicted_ms: float | None
    scores: dict[str, Any]
    score: float


@dataclass(frozen=True, repr=False)
class BaselineResult(SearchResult):
    """What a baseline found: the best network of those tried.

    ``expected_ms`` is None and ``probabilities`` is empty: there is no distribution. ``supernet`` is None
    where networks were trained one by one.

    Attributes:
        trials: every network tried, in order.
    """

    trials: tuple[Trial, ...] = ()


class _History:
    """The trials so far, and the population; part of the checkpoint."""

    def __init__(self) -> None:
        self.trials: dict[str, Trial] = {}
        self.population: list[str] = []

    def best(self) -> Trial:
        """The trial with the best score; the first of equals."""
        return max(self.trials.values(), key=lambda trial: trial.score)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "trials": [dict(vars(trial)) for trial in self.trials.values()],
            "population": list(self.population),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        self.trials = {values["genotype"]: Trial(**values) for values in state_dict["trials"]}
        self.population = list(state_dict["population"])


@as_one
def baseline(
    space: SearchSpace,
    lut: LatencyTableLike | None,
    data: SearchData,
    config: BaselineConfig | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> BaselineResult:
    """Try networks of ``space``, one after the other, and return the one that scores best.

    The arguments are those of :func:`hwnas.search`, and so are the files in ``out``, with ``baseline.…`` in
    place of ``search.…``, so that whatever comes after a search comes after this alike.

    Args:
        space: what can be chosen.
        lut: milliseconds of every op; None only without ``config.target_ms``.
        data: ``train`` trains weights, ``val`` (or, without it, ``arch``) scores networks.
        config: settings; default ``BaselineConfig()``.
        out: folder for config, log, checkpoint and genotype; None keeps nothing on disk.
        resume: go on with the baseline in ``out``, as of :func:`hwnas.search`; no trial is done again.
        on_progress: called after each trial, and in the training of the shared weights.

    Warns:
        UnverifiedTableWarning: ``lut`` was never tested on whole networks, or failed that test.

    Raises:
        InvalidInput: an argument is a name or a path where an object is wanted; nothing to score on; a target
            without a table; some networks keep the budget, but so few that none was drawn (before anything is
            trained, too); ``out`` holds a baseline already and ``resume`` is false, or none and it is true,
            or a search; ``resume`` without ``out``.
        InfeasibleBudget: no network of the space keeps the budget; raised before anything is trained.
        SpaceError: the space computes outside of its ops where costs are asked for.
        MissingLatency: the table lacks rows of this space.
        TableMismatch: the table was measured at another resolution.
        CheckpointError: what is to be resumed is damaged, or is another run; the message lists the
            differences.
        NonFiniteLoss: the training of the shared weights diverged.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    refuse_space(space)
    refuse_table(lut)
    refuse_data(data)
    config = config or BaselineConfig()
    out = Path(out) if out is not None else None
    if data.held_out is None:
        raise InvalidInput(
            "a baseline compares networks on images that trained none of them: pass SearchData(val=…)."
        )
    if lut is not None:
        lut.check(input_shape=space.input_shape())
        warn_of_doubts(lut)
    told_by_first(lambda: refuse_other(out, "search"))
    if resume:
        told_by_first(lambda: require_begun(out, "baseline"))
    torch_device(config.device)  # refused before anything is written, if it is not here
    predict = _predictor(space, lut)
    budget = Budget.asked(space, list(space.choices().values()), lut, config.target_ms, config.budget)
    if not resume:
        refuse_hopeless(space, config, budget)
    history = _History()
    generator = torch.Generator().manual_seed(config.seed)
    identity = identity_of(space, lut, data, config, _LATER)
    report = on_progress if on_progress and processes().is_first else lambda progress: None
    parts: dict[str, Stateful] = {"history": history, "proposals": GeneratorState(generator)}
    supernet: nn.Module | None = None
    with Run(out, "baseline", identity, parts, resume=resume) as run:
        proposals = _proposals(space, config, history, budget, generator)
        if isinstance(config.scoring, SharedWeights):
            supernet = _shared_weights(space, data, config.scoring, out, on_progress)
        for number in run.epochs(config.trials):
            began = time.perf_counter()
            assignment = next(proposals, None)
            if assignment is None:
                run.log.write("exhausted", trials=number)
                break
            trial = _tried(space, data, config, assignment, predict, supernet, out)
            history.trials[trial.genotype] = trial
            history.population.append(trial.genotype)
            best = history.best()
            values = {
                "genotype": trial.genotype,
                "choices": space.genotype(assignment).choices,
                "predicted_ms": trial.predicted_ms,
                "val": trial.scores,
                "best": best.genotype,
                "best_score": best.score,
                "seconds": time.perf_counter() - began,
            }
            run.log.write("trial", step=number, **values)
            report(Progress(number, config.trials, number + 1, True, values))
        best = history.best()
        result = BaselineResult(
            genotype=space.genotype(best.assignment),
            predicted_ms=best.predicted_ms,
            expected_ms=None,
            probabilities={},
            supernet=supernet,
            out=out,
            scores=best.scores,
            budget=None if budget is None else predicted_outcome(budget, best.assignment),
            trials=tuple(history.trials.values()),
        )
        save_result(result, lut, trials=len(history.trials))
        run.log.write("end", genotype=result.genotype.short_id, predicted_ms=result.predicted_ms)
    return result


Predictor = Callable[[Mapping[str, int]], float | None]


def refuse_hopeless(space: SearchSpace, config: BaselineConfig, budget: Budget | None) -> None:
    """Refuse a baseline that would find nothing, before anything is written or trained.

    Args:
        space: what can be chosen.
        config: of the baseline.
        budget: what ``config`` asks for, on its table.

    Raises:
        InvalidInput: the supernet has a budget that is not the baseline's; or some networks keep the budget,
            but so few that none was drawn.
    """
    if isinstance(config.scoring, SharedWeights):
        supernet = config.scoring.supernet
        ours = asked_costs(config.target_ms, config.budget)
        theirs = asked_costs(supernet.target_ms, supernet.budget)
        if not theirs.items() <= ours.items():
            instead = f"another ({_in_words(ours)})" if ours else "none"
            raise InvalidInput(
                f"scoring.supernet has a budget ({_in_words(theirs)}), and the baseline {instead}. The "
                "supernet is trained for all networks; it is the baseline's that says which are tried: give "
                "it the same target_ms and budget, or take them out of scoring.supernet."
            )
    # The first network of the run to come, drawn once more than is needed.
    next(_proposals(space, config, _History(), budget, torch.Generator().manual_seed(config.seed)))


def _predictor(space: SearchSpace, lut: LatencyTableLike | None) -> Predictor:
    """From an assignment to the table's milliseconds, or to None without a table."""
    if lut is None:
        return lambda assignment: None
    choices = list(space.choices().values())
    return ExpectedLatency(space.record(batch=lut.header.batch), choices, lut).at


def _shared_weights(
    space: SearchSpace,
    data: SearchData,
    scoring: SharedWeights,
    out: Path | None,
    on_progress: Callable[[Progress], None] | None,
) -> nn.Module:
    """A supernet trained on uniformly drawn networks: a search whose architecture parameters never move."""
    config = scoring.supernet.model_copy(
        update={
            "relaxation": GumbelSoftmax(),
            "arch_from_epoch": scoring.supernet.epochs,
            "pruner": NoPruning(),
            "explore": 0.0,
            "candidates": 1,
            # Of soft steps only, and these are hard.
            "cuda_graph": False,
            # The baseline keeps it, by which networks are tried.
            "target_ms": None,
            "budget": BudgetConfig(),
        }
    )
    folder = out / "supernet" if out is not None else None
    found = search(
        space,
        None,
        SearchData(train=data.train, description=data.description),
        config,
        out=folder,
        resume=told_by_first(lambda: folder is not None and (folder / "search.json").exists()),
        on_progress=on_progress,
    )
    assert found.supernet is not None
    return found.supernet


def _proposals(
    space: SearchSpace,
    config: BaselineConfig,
    history: _History,
    budget: Budget | None,
    generator: torch.Generator,
) -> Iterator[dict[str, int]]:
    """Networks within the budget that were not tried yet, until none is found."""

    def admissible(assignment: Mapping[str, int]) -> bool:
        return budget is None or budget.keeps(assignment)

    while True:
        child = None
        if isinstance(config.algorithm, AgeingEvolution):
            child = _child(space, config.algorithm, history, admissible, generator)
        if child is not None:
            yield child
            continue
        for _ in range(_DRAWS):
            drawn = space.random_assignment(generator)
            # What is cheaper is asked first, once there is anything to ask of.
            if history.trials and space.genotype(drawn).short_id in history.trials:
                continue
            if admissible(drawn):
                yield drawn
                break
        else:
            if not history.trials:
                asked = _in_words(asked_costs(config.target_ms, config.budget))
                raise InvalidInput(
                    f"networks within the budget ({asked}) are rare: none of {_DRAWS} random ones is. Allow "
                    "more, or search with hwnas.search (--algorithm differentiable), which finds them."
                )
            return


def _in_words(costs: Mapping[str, float]) -> str:
    return in_short(f"{name}={most:g}" for name, most in costs.items())


def _child(
    space: SearchSpace,
    evolution: AgeingEvolution,
    history: _History,
    admissible: Callable[[Mapping[str, int]], bool],
    generator: torch.Generator,
) -> dict[str, int] | None:
    """A mutation of a good member; None while the population grows, or where no new one is found.

    A child that was tried before joins the population with the score it has, which costs nothing.
    """

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    if len(history.trials) < evolution.population:
        return None
    choices = space.choices()
    for _ in range(_DRAWS // 10):
        del history.population[: -evolution.population]
        members = [history.trials[history.population[below(len(history.population))]]
                   for _ in range(evolution.tournament)]  # fmt: skip
        parent = max(members, key=lambda trial: trial.score).assignment
        live = [name for name in space.record().live_choices(parent) if len(choices[name].options) > 1]
        if not live:
            return None
        name = live[below(len(live))]
        other = below(len(choices[name].options) - 1)
        child = {**parent, name: other + (other >= parent[name])}
        if not admissible(child):
            continue
        known = space.genotype(child).short_id
        if known not in history.trials:
            return child
        history.population.append(known)
    return None


def _tried(
    space: SearchSpace,
    data: SearchData,
    config: BaselineConfig,
    assignment: dict[str, int],
    predict: Predictor,
    supernet: nn.Module | None,
    out: Path | None,
) -> Trial:
    """Score one network."""
    genotype = space.genotype(assignment)
    val = data.held_out
    assert val is not None
    scores: dict[str, Any]
    if isinstance(config.scoring, SharedWeights):
        assert supernet is not None
        how = config.scoring.supernet
        scores = shared_scores(
            space, supernet, genotype, data.train, val,
            statistics_batches=config.scoring.statistics_batches,
            device=torch_device(how.device), seed=how.seed, precision=how.precision,
            channels_last=how.channels_last,
        )  # fmt: skip
    else:
        how_fit = config.scoring.fit
        folder = out / "trials" / genotype.short_id if out is not None else None
        seed_all(how_fit.seed)
        network = space.build(genotype)
        begun = told_by_first(lambda: folder is not None and (folder / "fit.json").exists())
        try:
            scores = fit(
                network, data.train, loss=space.fit_loss, config=how_fit, val=val,
                metric=LossBeside(space), description=data.description, out=folder,
                resume=begun,
            )  # fmt: skip
        except NonFiniteLoss:
            scores = {}  # the worst of all, and no reason to end
        computed = scores
        scores = told_by_first(lambda: computed)
    score = by_loss(scores) if isinstance(config.scoring, SharedWeights) else headline(scores)
    return Trial(dict(assignment), genotype.short_id, predict(assignment), scores, score)
