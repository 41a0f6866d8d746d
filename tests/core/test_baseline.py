import itertools
import json
from typing import ClassVar

import pytest
import torch

import hwnas.core.baseline as module
from hwnas import (
    AgeingEvolution,
    BaselineConfig,
    FitConfig,
    Genotype,
    RandomSearch,
    SearchConfig,
    SearchData,
    SharedWeights,
    ShortTraining,
    baseline,
    search,
)
from hwnas.core.baseline import Trial
from hwnas.core.budget import Budget
from hwnas.core.budget_config import BudgetConfig
from hwnas.core.cost_ranges import ranges
from hwnas.core.fit import fit
from hwnas.core.runlog import read_log
from hwnas.errors import CheckpointError, InfeasibleBudget, InvalidInput, MissingLatency, NonFiniteLoss
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.chain import Chain

from .nets import ChoiceInDepth, Planted, images, planted_batches, planted_table, table_of

CHAIN = Chain(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3))
SHARED = SharedWeights(supernet=SearchConfig(epochs=1, device="cpu"), statistics_batches=2)
TRAINED = ShortTraining(fit=FitConfig(epochs=1, device="cpu"))
ALGORITHMS = [RandomSearch(), AgeingEvolution(population=3, tournament=2)]


def data(**parts):
    return SearchData(**{"train": images(), "val": images(2), **parts})


def config(**values):
    return BaselineConfig(**{"scoring": SHARED, "trials": 6, **values})


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.form)
@pytest.mark.parametrize("scoring", [SHARED, TRAINED], ids=lambda scoring: scoring.form)
def test_the_best_of_different_networks_is_found(algorithm, scoring):
    result = baseline(CHAIN, table_of(CHAIN), data(), config(algorithm=algorithm, scoring=scoring))
    assert len(result.trials) == len({trial.genotype for trial in result.trials}) == 6
    best = max(result.trials, key=lambda trial: trial.score)
    assert result.genotype.short_id == best.genotype
    assert result.scores == best.scores
    assert set(result.scores) == {"accuracy", "loss"}
    assert (result.supernet is None) == (scoring is TRAINED)
    # What the table says of the network, summed another way.
    table = table_of(CHAIN)
    assert result.predicted_ms == pytest.approx(
        table.predict_ms(CHAIN.record().count(CHAIN.assignment(result.genotype)))
    )


def test_shared_weights_are_compared_by_loss_and_trained_ones_by_the_metric():
    shared = baseline(CHAIN, None, data(), config())
    assert [trial.score for trial in shared.trials] == [-trial.scores["loss"] for trial in shared.trials]
    trained = baseline(CHAIN, None, data(), config(scoring=TRAINED, trials=2))
    assert [trial.score for trial in trained.trials] == [trial.scores["accuracy"] for trial in trained.trials]


def test_a_planted_optimum_is_found_in_a_space_without_a_metric():
    planted = SharedWeights(supernet=SearchConfig(epochs=1, device="cpu", weight_lr=0.01))
    batches = planted_batches(4)
    result = baseline(
        Planted(), planted_table(), SearchData(batches, val=batches), config(scoring=planted, trials=12)
    )
    assert len(result.trials) == 12  # all there are
    assert result.genotype.choices["factor"] in ("one", "one_slow")
    assert result.genotype.choices["cells"] == "2"


def test_a_budget_among_the_settings_of_the_shared_weights_is_the_baselines():
    """Their settings may be those of a search: what is compared with it keeps the same budget."""
    asked = SearchConfig(epochs=1, device="cpu", target_ms=3.0, budget={"max_params": 2})
    scoring = SharedWeights(supernet=asked, statistics_batches=2)
    same = config(scoring=scoring, target_ms=3.0, budget=asked.budget, trials=50)
    batches = planted_batches(2)
    result = baseline(Planted(), planted_table(), SearchData(batches, val=batches), same)
    bare = same.model_copy(update={"scoring": SHARED})
    alone = baseline(Planted(), planted_table(), SearchData(batches, val=batches), bare)
    assert result.trials == alone.trials
    parts = SearchData(batches, val=batches)
    for other in ({}, {"target_ms": 3.0}, {"target_ms": 2.5, "budget": {"max_params": 2}}):
        with pytest.raises(InvalidInput) as caught:
            baseline(Planted(), planted_table(), parts, config(scoring=scoring, **other))
        assert "scoring.supernet has a budget (target_ms=3, max_params=2), and the baseline" in str(
            caught.value
        )
        assert ("another (target_ms=" if other else "none. The supernet") in str(caught.value)
    # The baseline may be asked for more than the search.
    more = config(
        scoring=SHARED.model_copy(update={"supernet": asked}),
        target_ms=3.0,
        budget={"max_params": 2, "max_macs": 1e9},
    )
    assert baseline(Planted(), planted_table(), parts, more).trials


def test_settings_that_came_later_do_not_part_a_baseline_from_one_begun_before(tmp_path):
    """Neither the baseline's own nor its supernet's are told, where they say what was done ever."""
    baseline(CHAIN, None, data(), config(trials=1), out=tmp_path / "shared")
    kept = json.loads((tmp_path / "shared" / "baseline.json").read_text())["config"]
    supernet = kept["scoring"]["supernet"]
    assert "budget" not in kept and "cuda_graph" not in supernet and "steers" not in supernet["budget"]
    baseline(CHAIN, None, data(), config(trials=1, scoring=TRAINED), out=tmp_path / "trained")


def test_a_supernet_for_soft_steps_as_graphs_is_trained_by_hard_ones():
    """A search's settings serve its baseline too: what is of its soft steps alone is left out."""
    soft = SearchConfig(epochs=1, device="cpu", cuda_graph=True, relaxation={"form": "softmax"})
    found = baseline(CHAIN, None, data(), config(trials=1, scoring=SharedWeights(supernet=soft)))
    assert len(found.trials) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.form)
def test_no_network_over_the_limit_is_tried(algorithm):
    # The two parts of a planted network: factor 1 ms or 5 ms, cells 1 ms each.
    batches = planted_batches(2)
    result = baseline(
        Planted(),
        planted_table(),
        SearchData(batches, val=batches),
        config(scoring=SharedWeights(supernet=SearchConfig(epochs=1, device="cpu")), algorithm=algorithm,
               target_ms=3.0, trials=50),
    )  # fmt: skip
    assert all(trial.predicted_ms <= 3.0 for trial in result.trials)
    # Three fast factors with one cell or two, and nothing else: the space is exhausted before its 50 trials.
    assert len(result.trials) == 6


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.form)
def test_no_network_over_any_ceiling_is_tried(algorithm):
    ceilings = {name: found.median for name, found in ranges(CHAIN).items()}
    asked = {f"max_{name}": most for name, most in ceilings.items()}
    result = baseline(CHAIN, None, data(), config(algorithm=algorithm, budget=asked, trials=50))
    assert result.budget.asked == ceilings
    costs = Budget(CHAIN, list(CHAIN.choices().values()), None, None, BudgetConfig(**asked)).costs
    tried = [costs(trial.assignment) for trial in result.trials]
    assert all(found[name] <= most for found in tried for name, most in ceilings.items())
    assert result.budget.costs == costs(CHAIN.assignment(result.genotype))
    # Fewer than the space has, and all that there are.
    every = {
        CHAIN.genotype(network).short_id
        for network in _networks(CHAIN)
        if all(costs(network)[name] <= most for name, most in ceilings.items())
    }
    assert {trial.genotype for trial in result.trials} == every


class NeverRead:
    """Training data of which nothing is read."""

    def __iter__(self):
        raise AssertionError("something was trained")


@pytest.mark.parametrize("scoring", [SHARED, TRAINED], ids=lambda scoring: scoring.form)
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"target_ms": 1.5}, r"latency_ms: asked for at most 1\.5; its networks take 2 \(min\)"),
        ({"budget": {"max_params": 0.5}}, r"params: asked for at most 0\.5; its networks take"),
    ],
)
def test_a_budget_that_no_network_keeps_is_refused_as_by_a_search(scoring, asked, told, tmp_path):
    parts = SearchData(NeverRead(), val=planted_batches(2))
    with pytest.raises(InfeasibleBudget, match=told) as caught:
        baseline(Planted(), planted_table(), parts, config(scoring=scoring, **asked), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InfeasibleBudget) as of_search:
        search(Planted(), planted_table(), parts, SearchConfig(device="cpu", **asked))
    assert str(caught.value) == str(of_search.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.form)
def test_a_budget_that_no_draw_keeps_is_refused_before_anything_is_trained(algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_DRAWS", 3)
    monkeypatch.setattr(Chain, "random_assignment", lambda self, generator: slowest)
    slowest = {name: len(choice.options) - 1 for name, choice in CHAIN.choices().items()}
    table = table_of(CHAIN)
    target_ms = ranges(CHAIN, table)["latency_ms"].min
    with pytest.raises(
        InvalidInput, match=r"within the budget \(target_ms=.*\) are rare: none of 3 random ones is"
    ):
        asked = config(algorithm=algorithm, target_ms=target_ms)
        baseline(CHAIN, table, data(train=NeverRead()), asked, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_there_were_ceilings_is_still_the_same(tmp_path, monkeypatch):
    """It has no "budget", and that of its supernet could be any: it played no part."""
    batches = planted_batches(2)
    given = (Planted(), planted_table(), SearchData(batches, val=batches))
    supernet = SearchConfig(epochs=1, device="cpu", target_ms=3.0)
    asked = config(scoring=SharedWeights(supernet=supernet, statistics_batches=2), trials=3)
    tried, calls = module._tried, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return tried(*arguments)

    with monkeypatch.context() as before:
        before.setattr(module, "refuse_hopeless", lambda *_: None)
        whole = baseline(*given, asked)
        before.setattr(module, "_tried", interrupted)
        with pytest.raises(KeyboardInterrupt):
            baseline(*given, asked, out=tmp_path)
    assert "budget" not in json.loads((tmp_path / "baseline.json").read_text())["config"]
    assert baseline(*given, asked, out=tmp_path, resume=True).trials == whole.trials


@pytest.mark.parametrize(
    ("parts", "lut", "target_ms", "message"),
    [
        ({"val": None}, None, None, r"pass SearchData\(val="),
        ({}, None, 3.0, "target_ms needs a latency table"),
    ],
)
def test_what_is_missing_is_said(parts, lut, target_ms, message):
    with pytest.raises(InvalidInput, match=message):
        baseline(CHAIN, lut, data(**parts), config(target_ms=target_ms))


def test_a_table_without_a_row_is_refused_before_anything_is_trained():
    table = fake_table(CHAIN.record().keys()[1:], input_shape=CHAIN.input_shape())
    with pytest.raises(MissingLatency):
        baseline(CHAIN, table, SearchData(train=None, val=images(1)), config())


def test_one_seed_gives_one_result_and_another_another():
    def tried(seed):
        return [trial.genotype for trial in baseline(CHAIN, None, data(), config().with_seed(seed)).trials]

    assert tried(0) == tried(0)
    assert tried(0) != tried(1)
    assert config(scoring=TRAINED).with_seed(5).seed == 5


class Scored:
    """Scores by a formula instead of weights: the number of right choices."""

    def __init__(self, space, monkeypatch):
        self.space = space
        self.tried = []
        monkeypatch.setattr(module, "_tried", self)
        monkeypatch.setattr(module, "_shared_weights", lambda *arguments: torch.nn.Identity())

    def __call__(self, space, data, config, assignment, predict, supernet, out):
        self.tried.append(assignment)
        known = space.genotype(assignment).short_id
        score = -sum(abs(value - 1) for value in assignment.values())
        return Trial(dict(assignment), known, predict(assignment), {"loss": -score}, float(score))


WIDE = Chain(size=8, channels=4, num_classes=4, stages=4, depth=6, kernels=(1, 3, 5, 7, 9, 11))


def test_evolution_changes_one_choice_of_a_member_at_a_time(monkeypatch):
    scored = Scored(WIDE, monkeypatch)
    evolution = AgeingEvolution(population=5, tournament=3)
    baseline(WIDE, None, data(), config(algorithm=evolution, trials=40))
    for place, child in enumerate(scored.tried[5:], start=5):
        # The members alive then: in so large a space no child comes twice, so they are the last five tried.
        members = scored.tried[place - 5 : place]
        assert min(sum(child[name] != other[name] for name in child) for other in members) == 1


def test_evolution_climbs_where_random_search_strolls(monkeypatch):
    """1.7 million networks, the best one a sum of eight choices: a hundred trials of either."""
    best = {}
    for algorithm in (RandomSearch(), AgeingEvolution(population=20, tournament=8)):
        found = []
        for seed in range(3):
            Scored(WIDE, monkeypatch)
            settings = config(algorithm=algorithm, trials=100).with_seed(seed)
            found.append(max(trial.score for trial in baseline(WIDE, None, data(), settings).trials))
        best[algorithm.form] = sum(found) / 3
    assert best["evolution"] >= -2.0
    assert best["evolution"] > best["random"] + 1.0


def test_the_population_ages():
    """The first member is the best by far and still dies: nothing is its child after that."""
    history = module._History()
    space = CHAIN
    assignments = list(itertools.islice(_networks(space), 4))
    for number, (assignment, score) in enumerate(zip(assignments, [9.0, 1.0, 2.0, 3.0], strict=True)):
        trial = Trial(assignment, f"g{number}", None, {"loss": -score}, score)
        history.trials[trial.genotype] = trial
        history.population.append(trial.genotype)
    generator = torch.Generator().manual_seed(0)
    evolution = AgeingEvolution(population=3, tournament=50)
    for _ in range(20):
        child = module._child(space, evolution, history, lambda assignment: True, generator)
        assert "g0" not in history.population
        # Of the three alive, the last one is the best, and fifty draws of three surely hold it.
        assert sum(child[name] != assignments[3][name] for name in child) == 1


def _networks(space):
    choices = space.choices()
    for values in itertools.product(*(range(len(choice.options)) for choice in choices.values())):
        yield dict(zip(choices, values, strict=True))


def test_choices_that_do_not_matter_make_no_new_network(monkeypatch):
    space = ChoiceInDepth()
    Scored(space, monkeypatch)
    result = baseline(space, None, data(), config(algorithm=AgeingEvolution(population=4), trials=100))
    assert len(result.trials) == space.cardinality() == 14


def test_a_training_that_diverges_is_the_worst_trial_and_no_end(monkeypatch):
    calls = []

    def diverging(network, *arguments, **named):
        calls.append(network)
        if len(calls) == 1:
            raise NonFiniteLoss("diverged")
        return fit(network, *arguments, **named)

    monkeypatch.setattr(module, "fit", diverging)
    result = baseline(CHAIN, None, data(), config(scoring=TRAINED, trials=3))
    assert result.trials[0].scores == {}
    assert result.trials[0].score == float("-inf")
    assert result.genotype.short_id != result.trials[0].genotype


@pytest.mark.parametrize("scoring", [SHARED, TRAINED], ids=lambda scoring: scoring.form)
def test_a_run_folder_explains_itself(tmp_path, scoring):
    seen = []
    table = table_of(CHAIN)
    result = baseline(
        CHAIN, table, data(), config(scoring=scoring, trials=3), out=tmp_path, on_progress=seen.append
    )
    assert Genotype.load(tmp_path / "genotype.json") == result.genotype
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["predicted_ms"] == result.predicted_ms
    assert written["val"] == result.scores
    assert written["trials"] == 3
    identity = json.loads((tmp_path / "baseline.json").read_text())
    assert identity["table"] == table.checksum
    assert identity["config"]["trials"] == 3
    events = read_log(tmp_path / "baseline.log.jsonl")
    assert [event["event"] for event in events] == ["trial", "trial", "trial", "end"]
    assert events[1]["val"] == result.trials[1].scores
    assert events[-2]["best"] == result.genotype.short_id
    trials = [progress for progress in seen if "best" in progress.values]
    assert [(progress.epoch, progress.epochs) for progress in trials] == [(0, 3), (1, 3), (2, 3)]
    with pytest.raises(InvalidInput, match="holds a baseline already"):
        baseline(CHAIN, table, data(), config(scoring=scoring, trials=3), out=tmp_path)


def test_it_does_not_begin_in_the_folder_of_a_search(tmp_path):
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(InvalidInput, match="holds a search already"):
        baseline(CHAIN, None, data(), config(), out=tmp_path)


def test_what_was_never_begun_is_not_resumed(tmp_path):
    with pytest.raises(InvalidInput, match=r"there is no baseline in .*: expected its baseline\.json there"):
        baseline(CHAIN, None, data(), config(), out=tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


class Stop(Exception):
    pass


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.form)
@pytest.mark.parametrize("scoring", [SHARED, TRAINED], ids=lambda scoring: scoring.form)
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_stopped_run_goes_on_as_the_whole_one(tmp_path, algorithm, scoring, after):
    settings = config(algorithm=algorithm, scoring=scoring)
    whole = baseline(CHAIN, table_of(CHAIN), data(), settings)
    trials = 0

    def stop(progress):
        nonlocal trials
        trials += "best" in progress.values
        if trials > after:
            raise Stop

    with pytest.raises(Stop):
        baseline(CHAIN, table_of(CHAIN), data(), settings, out=tmp_path, on_progress=stop)
    resumed = baseline(CHAIN, table_of(CHAIN), data(), settings, out=tmp_path, resume=True)
    assert resumed.trials == whole.trials
    assert resumed.genotype == whole.genotype
    events = [event for event in read_log(tmp_path / "baseline.log.jsonl") if event["event"] == "trial"]
    assert [event["genotype"] for event in events] == [trial.genotype for trial in whole.trials]


def test_another_config_is_refused_with_the_difference(tmp_path):
    baseline(CHAIN, None, data(), config(trials=1), out=tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.trials: checkpoint 1, asked 2"):
        baseline(CHAIN, None, data(), config(trials=2), out=tmp_path, resume=True)


class Counting(list):
    """Batches that count how often they are gone through."""

    passes: ClassVar[int] = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_the_shared_weights_are_trained_once(tmp_path):
    train = Counting(images())
    found = baseline(CHAIN, None, data(train=train), config(trials=4), out=tmp_path)
    # One epoch of the supernet; once for the statistics of each trial's batch norms.
    assert train.passes == 1 + 4
    again = baseline(CHAIN, None, data(train=train), config(trials=4), out=tmp_path, resume=True)
    assert train.passes == 1 + 4
    # Finished, it gives its result again.
    assert (again.genotype, again.trials, again.scores) == (found.genotype, found.trials, found.scores)
