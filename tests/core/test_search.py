import itertools
import json

import pytest
import torch

from hwnas import (
    ArchParameters,
    ExpectedLatency,
    FakeBackend,
    Genotype,
    SearchConfig,
    SearchData,
    search,
)
from hwnas.core.blindness import BlindnessMonitor
from hwnas.core.penalty import HingePenalty, LinearPenalty, LogPenalty, TargetPenalty
from hwnas.core.prune import ThresholdPruner
from hwnas.core.relaxation import ExponentialSchedule, GumbelSoftmax, Softmax
from hwnas.core.runlog import read_log
from hwnas.core.score import ScoreFunction
from hwnas.core.scoring import shared_scores
from hwnas.core.search_loss import StepLoss
from hwnas.core.searched import Searched
from hwnas.errors import InfeasibleBudget, InvalidInput, MissingLatency, NonFiniteLoss, TableMismatch
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.chain import Chain

from .nets import ChoiceInDepth, Planted, all_assignments, images, planted_batches, planted_table, table_of

TAU = ExponentialSchedule(start=2.0, end=0.3)
RELAXATIONS = {
    "hard": GumbelSoftmax(tau=TAU),
    "soft": GumbelSoftmax(hard=False, tau=TAU),
    "softmax": Softmax(tau=TAU),
}


def config(**values):
    return SearchConfig(**{"device": "cpu", "epochs": 12, "arch_lr": 0.1, "weight_lr": 0.01, **values})


@pytest.mark.parametrize("relaxation", RELAXATIONS.values(), ids=RELAXATIONS.keys())
def test_a_planted_optimum_is_found(relaxation):
    result = search(
        Planted(),
        planted_table(),
        SearchData(planted_batches()),
        config(relaxation=relaxation, penalty=LinearPenalty(weight=0.05)),
    )
    # Of the two factors that do the task the fast one, and two cells of three.
    assert result.genotype.choices == {"factor": "one", "cells": "2"}
    assert result.predicted_ms == pytest.approx(3.0)  # factor 1 ms, two cells 1 ms each
    assert result.probabilities["factor"][1] > 0.6


def test_it_is_found_with_alphas_on_data_of_their_own():
    data = SearchData(planted_batches(), arch=planted_batches(7, seed=1))
    result = search(Planted(), planted_table(), data, config(penalty=LinearPenalty(weight=0.05)))
    assert result.genotype.choices == {"factor": "one", "cells": "2"}


def test_it_is_found_without_a_table():
    result = search(Planted(), None, SearchData(planted_batches()), config())
    assert result.genotype.choices["factor"] in ("one", "one_slow")
    assert result.genotype.choices["cells"] == "2"
    assert result.predicted_ms is None
    assert result.expected_ms is None


@pytest.mark.parametrize("penalty_on", ["draw", "probabilities"])
def test_a_heavier_penalty_gives_a_faster_network(penalty_on):
    expected = []
    for weight in (0.0, 0.05, 100.0):
        result = search(
            Planted(),
            planted_table(),
            SearchData(planted_batches()),
            config(penalty=LinearPenalty(weight=weight), penalty_on=penalty_on),
        )
        expected.append(result.expected_ms)
    assert expected[0] > expected[1] > expected[2]
    assert expected[2] == pytest.approx(2.0, abs=0.2)  # any fast factor and one cell


@pytest.mark.parametrize("relaxation", RELAXATIONS.values(), ids=RELAXATIONS.keys())
@pytest.mark.parametrize(
    ("target_ms", "choices"),
    [
        # Both guesses right take 3 ms, 7 ms with the slow factor; 2 ms have room for one cell only, whose
        # guess is wrong.
        (2.0, {"factor": "one", "cells": "1"}),
        (3.0, {"factor": "one", "cells": "2"}),
        (7.0, {"factor": "one_slow", "cells": "2"}),
    ],
)
def test_a_target_is_kept_used_and_left_to_the_task_otherwise(relaxation, target_ms, choices):
    result = search(
        Planted(),
        planted_table(),
        SearchData(planted_batches()),
        # A penalty that would shrink everything, if it did not rest.
        config(relaxation=relaxation, penalty=LinearPenalty(weight=100.0), target_ms=target_ms),
    )
    assert result.genotype.choices == choices
    assert result.predicted_ms == target_ms
    assert result.expected_ms == pytest.approx(0.97 * target_ms, rel=0.05)
    assert result.budget.asked == result.budget.costs == {"latency_ms": target_ms}
    assert (result.budget.measured_ms, result.budget.met) == (None, None)


def test_a_target_is_kept_with_alphas_on_data_of_their_own():
    data = SearchData(planted_batches(), arch=planted_batches(7, seed=1))
    result = search(Planted(), planted_table(), data, config(target_ms=3.0))
    assert result.genotype.choices == {"factor": "one", "cells": "2"}


def test_what_is_found_for_a_target_is_measured_and_found_again(tmp_path):
    def formula(key):
        return 1.25 * planted_table().latency_ms(key)  # the device is slower than the table says

    def found(out, **how):
        result = search(
            Planted(),
            planted_table(),
            SearchData(planted_batches(3)),
            config(epochs=1, target_ms=4.0),
            out=out,
            **how,
        )
        kept = json.loads((out / "result.json").read_text())
        assert kept["budget"] == result.budget.model_dump(mode="json")
        assert kept["predicted_ms"] == result.predicted_ms
        assert Genotype.load(out / "genotype.json") == result.genotype
        return result.budget

    measured = found(tmp_path / "backend", backend=FakeBackend(formula))
    # 4 ms by the table are 5 measured. By a prediction of 1.25 times the table 3 ms are the most that 4 ms
    # have room for.
    assert [attempt.measured_ms for attempt in measured.attempts] == pytest.approx([5.0, 3.75])
    assert (measured.met, measured.correction) == (True, pytest.approx(1.25))
    assert (measured.costs["latency_ms"], measured.predicted_ms) == (3.0, pytest.approx(3.75))
    assert found(tmp_path / "measure", measure=lambda genotype: 5.0).met is False


def test_other_costs_are_kept_without_a_table():
    space = CHAIN
    most = {"max_params": 900, "max_macs": 13000}
    result = search(space, None, SearchData(images(4)), config(epochs=2, budget=most))
    assert result.budget.costs["params"] <= 900
    assert result.budget.costs["macs"] <= 13000
    network = space.build(result.genotype)
    assert sum(p.numel() for p in network.parameters()) == result.budget.costs["params"]


def test_a_target_survives_pruning():
    result = search(
        Planted(),
        planted_table(),
        SearchData(planted_batches()),
        config(target_ms=2.0, pruner=ThresholdPruner(share=0.9)),
    )
    assert result.predicted_ms == 2.0


def test_a_target_that_no_network_keeps_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(InfeasibleBudget, match=r"2 \(min\), 4 \(median\), 8 \(max\)"):
        search(Planted(), planted_table(), SearchData([]), config(target_ms=1.9), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InvalidInput, match="target_ms needs a latency table"):
        search(Planted(), None, SearchData([]), config(target_ms=3.0))
    with pytest.raises(InvalidInput, match="give target_ms"):
        search(Planted(), planted_table(), SearchData([]), config(), measure=lambda genotype: 1.0)
    with pytest.raises(TableMismatch, match="threads: 1 against 2"):
        backend = FakeBackend(threads=2)
        search(Planted(), planted_table(), SearchData([]), config(target_ms=3.0), backend=backend)


def test_latency_reaches_the_gradient_of_every_choice_that_costs():
    """Defect of aw_nas and NNI (#3113): their latency objective adds nothing to the loss."""
    space = ChoiceInDepth()
    for hard in (True, False):
        arch = ArchParameters(space.supernet())
        cost = ExpectedLatency(space.record(), arch.choices, table_of(space))
        draw = arch.draw(GumbelSoftmax(hard=hard), 1.0, torch.Generator().manual_seed(1))
        LogPenalty(weight=0.1)(cost.penalised(draw.weights)).backward()
        assert bool((arch.matrices["depth"].grad[:, :3] != 0).all())
        assert float(arch.matrices["op"].grad.abs().sum()) > 0


def test_the_penalty_is_part_of_the_loss():
    data = SearchData(planted_batches(3))
    losses = {}
    for weight in (0.0, 10.0):
        values = []
        search(
            Planted(),
            planted_table(),
            data,
            config(epochs=2, penalty=LinearPenalty(weight=weight), arch_from_epoch=1),
            on_progress=lambda progress, values=values: values.append(progress.values),
        )
        losses[weight] = values
    # Before anything moves but the bias, there is nothing to penalise.
    for free, dear in zip(losses[0.0][:3], losses[10.0][:3], strict=True):
        assert free == dear
        assert free["loss"] == free["task_loss"]
    # Both see the same draw in the first step of the epoch after; the third value closes the one before.
    free, dear = losses[0.0][4], losses[10.0][4]
    assert free["task_loss"] == dear["task_loss"]
    assert dear["loss"] == pytest.approx(free["loss"] + 10.0 * dear["penalised_ms"], rel=1e-5)


def test_a_table_without_a_row_is_refused_before_anything_is_trained():
    space = Planted()
    keys = space.record().keys()
    table = fake_table(keys[1:], input_shape=(4,))
    with pytest.raises(MissingLatency, match=r"test\.scale\(factor=0\.0\)"):
        search(space, table, SearchData(planted_batches()), config())


def test_a_table_of_another_resolution_is_refused():
    table = fake_table(Planted().record().keys(), input_shape=(5,))
    with pytest.raises(TableMismatch):
        search(Planted(), table, SearchData(planted_batches()), config())


def test_alphas_and_depths_stay_until_their_epochs():
    logits = []

    def watch(progress):
        if progress.end_of_epoch:
            logits.append(progress.values["probabilities"])

    search(
        Planted(),
        planted_table(),
        SearchData(planted_batches(5)),
        config(epochs=4, arch_from_epoch=1, depth_from_epoch=3),
        on_progress=watch,
    )
    even = {"factor": [0.25] * 4, "cells": [pytest.approx(1 / 3)] * 3}
    assert logits[0] == even
    assert logits[1]["factor"] != even["factor"]
    assert logits[2]["cells"] == even["cells"]
    assert logits[3]["cells"] != even["cells"]


def test_one_seed_gives_one_result_and_another_another():
    def probabilities(seed):
        result = search(
            Planted(), planted_table(), SearchData(planted_batches(5)), config(epochs=2, seed=seed)
        )
        return result.probabilities

    assert probabilities(0) == probabilities(0)
    assert probabilities(0) != probabilities(1)


def test_options_pruned_stay_dead():
    died = []
    result = search(
        Planted(),
        planted_table(),
        SearchData(planted_batches()),
        config(pruner=ThresholdPruner(share=0.5)),
        on_progress=lambda p: died.extend(p.values["pruned"]) if p.end_of_epoch else None,
    )
    assert len(died) > 0
    assert len({tuple(pair) for pair in died}) == len(died)
    for name, option in died:
        options = Planted().choices()[name].options
        assert result.probabilities[name][options.index(option)] == 0.0


def test_a_run_folder_explains_itself(tmp_path):
    seen = []
    result = search(
        Planted(),
        planted_table(),
        SearchData(planted_batches(4)),
        config(epochs=2, penalty=HingePenalty(target_ms=3.0)),
        out=tmp_path,
        on_progress=seen.append,
    )
    assert Genotype.load(tmp_path / "genotype.json") == result.genotype
    assert json.loads((tmp_path / "result.json").read_text())["predicted_ms"] == result.predicted_ms
    identity = json.loads((tmp_path / "search.json").read_text())
    assert identity["space"] == "planted"
    assert identity["config"]["penalty"] == {"form": "hinge", "weight": 1.0, "target_ms": 3.0}
    assert identity["table"] == planted_table().checksum
    events = read_log(tmp_path / "search.log.jsonl")
    assert [event["event"] for event in events] == [*["step"] * 4, "epoch", *["step"] * 4, "epoch", "end"]
    assert [progress.end_of_epoch for progress in seen] == [*[False] * 4, True] * 2
    epoch = events[-2]
    assert epoch["depth"]["cells"]["argmax"] == int(result.genotype.choices["cells"])
    assert epoch["expected_ms"] == pytest.approx(result.expected_ms)
    assert epoch["argmax_ms"] == pytest.approx(result.predicted_ms)


CHAIN = Chain(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3))


def test_steps_that_are_not_finite_are_skipped_and_healed():
    skipped = []
    result = search(
        CHAIN,
        table_of(CHAIN),
        SearchData(images(6, bad=(1, 3)), val=images(2)),
        config(epochs=1),
        on_progress=lambda p: skipped.append(p.values["skipped_steps"]) if p.end_of_epoch else None,
    )
    assert skipped == [2]
    for name, value in result.supernet.state_dict().items():
        assert bool(torch.isfinite(value).all()), name
    assert all(0 <= p <= 1 for row in result.probabilities.values() for p in row)


def test_a_search_that_diverges_for_good_stops_with_advice():
    with pytest.raises(NonFiniteLoss, match=r"21 steps in a row.*Lower the learning rate"):
        search(CHAIN, None, SearchData(images(25, bad=range(25))), config(epochs=1))


def test_validation_measures_the_most_likely_architecture():
    values = []
    search(
        CHAIN,
        table_of(CHAIN),
        SearchData(images(2), val=images(2)),
        config(epochs=3, validate_every=2),
        on_progress=lambda p: values.append(p.values.get("val")) if p.end_of_epoch else None,
    )
    assert values[0] is None
    assert set(values[1]) == set(values[2]) == {"accuracy", "loss"}


def test_validation_without_a_metric_goes_by_the_loss():
    values = []
    data = SearchData(planted_batches(1), val=planted_batches(1))
    found = search(
        Planted(), None, data, config(epochs=1, candidates=2),
        on_progress=lambda p: values.append(p.values.get("val")) if p.end_of_epoch else None,
    )  # fmt: skip
    assert values[0].keys() == found.scores.keys() == {"loss"}


def test_data_that_yield_nothing_are_refused():
    with pytest.raises(InvalidInput, match=r"SearchData\.train yields no batches"):
        search(Planted(), None, SearchData([]), config(epochs=1))
    with pytest.raises(InvalidInput, match=r"SearchData\.train yields no batches"):
        search(Planted(), None, SearchData(iter(planted_batches(1))), config(epochs=2))
    # Seen as no loss at all, the second network scored would be the best possible one.
    data = SearchData(planted_batches(1), val=iter(planted_batches(1)))
    with pytest.raises(InvalidInput, match="to evaluate on yield no batches"):
        search(Planted(), None, data, config(epochs=1, candidates=2))


def test_an_epoch_of_two_levels_in_which_some_steps_were_taken_goes_on():
    """Two steps a batch: half of the batches' skipped ones are as many as all batches."""
    batches = planted_batches(4)
    half = [*batches[:2], *((x * float("nan"), y) for x, y in batches[2:])]
    found = search(Planted(), None, SearchData(half, arch=half), config(epochs=1))
    assert found.genotype.choices["factor"] in ("zero", "one", "one_slow", "minus")


def test_steps_of_the_weights_alone_leave_the_choices_without_a_gradient():
    """Bilevel: it would be computed for nobody."""
    settings = config()
    searched = Searched.prepared(CHAIN, None, SearchData(images(1)), settings)
    net, arch = searched.net, searched.arch
    score = ScoreFunction(arch, settings.score_kinds, searched.recording)
    monitor = BlindnessMonitor(arch, settings.score_kinds)
    step_loss = StepLoss(searched, score, monitor, torch.Generator().manual_seed(0), None)
    (batch,) = images(1)
    loss, _, _ = step_loss(batch, 1.0, choices_learn=False)
    loss.backward()
    assert all(matrix.grad is None for matrix in arch.parameters())
    assert any(parameter.grad is not None for parameter in net.parameters())


def test_an_epoch_in_which_nothing_is_finite_ends_the_search():
    bad = [(x * float("nan"), y) for x, y in planted_batches(2)]
    with pytest.raises(NonFiniteLoss, match="all of an epoch"):
        search(Planted(), None, SearchData(bad), config(epochs=2))


def test_a_loader_must_yield_pairs():
    with pytest.raises(InvalidInput, match=r"must yield \(inputs, targets\), got Tensor"):
        search(Planted(), None, SearchData([torch.zeros(8, 4)]), config(epochs=1))


def test_an_unknown_device_is_refused():
    with pytest.raises(InvalidInput, match='"abacus" is no torch device'):
        search(Planted(), None, SearchData([]), config(device="abacus"))


def test_bf16_and_channels_last_run():
    result = search(
        CHAIN,
        None,
        SearchData(images(2)),
        config(epochs=1, precision="bf16", channels_last=True),
    )
    assert result.genotype.choices["s1.kernel"] in ("conv_1x1", "conv_3x3")


def test_the_weights_of_the_result_go_on_into_the_network():
    result = search(CHAIN, None, SearchData(images(2)), config(epochs=1))
    network = CHAIN.build(result.genotype, result.supernet)
    torch.testing.assert_close(network[0].conv.weight, result.supernet[0].conv.weight)


@pytest.mark.parametrize("arch", [[], iter(planted_batches(1))], ids=["empty", "used up"])
def test_data_for_the_architecture_must_not_run_out(arch):
    with pytest.raises(InvalidInput, match=r"SearchData\.arch yields no batches \(or none the second time"):
        search(Planted(), None, SearchData(planted_batches(3), arch=arch), config(epochs=1))


OPTIONS = {
    "relaxation": [GumbelSoftmax(), GumbelSoftmax(hard=False), Softmax()],
    "penalty": [
        LogPenalty(weight=0.1),
        LinearPenalty(weight=0.1),
        TargetPenalty(target_ms=2.0),
        HingePenalty(target_ms=2.0),
    ],
    "penalty_on": ["draw", "probabilities"],
    "levels": [1, 2],
}


@pytest.mark.parametrize(
    "values",
    [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())],
    ids=lambda values: "-".join(str(getattr(value, "form", value)) for value in values.values()),
)
@pytest.mark.parametrize("lut", ["table", "none"])
def test_every_combination_of_settings_searches(values, lut):
    values = dict(values)
    arch = planted_batches(2, seed=1) if values.pop("levels") == 2 else None
    table = planted_table() if lut == "table" else None
    seen = []
    result = search(
        Planted(),
        table,
        SearchData(planted_batches(8), arch=arch),
        config(epochs=1, **values),
        on_progress=lambda progress: seen.append(progress.values),
    )
    moved = [p for row in result.probabilities.values() for p in row]
    assert moved != pytest.approx([0.25] * 4 + [1 / 3] * 3, abs=1e-3)
    assert all("penalised_ms" in step for step in seen[:-1]) == (table is not None)
    assert (result.expected_ms is None) == (result.predicted_ms is None) == (table is None)


def even(space):
    return {
        name: [pytest.approx(1 / len(choice.options))] * len(choice.options)
        for name, choice in space.choices().items()
    }


def test_weights_explore_while_the_architecture_learns_from_its_own_draws():
    """With all weights' steps uniform, the architecture's own steps find the planted optimum."""
    drawn = []

    class Watched(Planted):
        def loss(self, outputs, targets):
            drawn.append((torch.is_grad_enabled(), outputs.detach()[:, 0, 0] * targets[0, 0]))
            return super().loss(outputs, targets)

    data = SearchData(planted_batches(), arch=planted_batches(seed=1))
    result = search(Watched(), planted_table(), data, config(explore=1.0, penalty=LinearPenalty(weight=0.05)))
    assert result.genotype.choices == {"factor": "one", "cells": "2"}
    # The last two epochs: 20 weights' steps each, uniform over the factors (two of four are right) …
    late = [products for grad, products in drawn if grad][-40:]
    right = sum(float(product[0]) > 0.5 for product in late)
    assert 10 <= right <= 30
    # … while nearly all of the architecture's own draws are right by now; these need no derivative.
    late = [products for grad, products in drawn if not grad][-40:]
    assert sum(float(product[0]) > 0.5 for product in late) > 30


def test_explored_steps_teach_the_architecture_nothing():
    result = search(
        Planted(), planted_table(), SearchData(planted_batches(5)), config(epochs=1, explore=0.999)
    )
    assert result.probabilities == even(Planted())


def test_exploring_all_the_time_needs_data_for_the_architecture():
    with pytest.raises(InvalidInput, match=r"explore=1 leaves no step .* \(SearchData\.arch\)"):
        search(Planted(), None, SearchData(planted_batches(1)), config(explore=1.0))


def test_the_candidate_with_the_least_loss_is_the_result():
    """Probabilities stay even, so that the likeliest is the first option of all; the weights know better."""
    frozen = config(epochs=3, arch_from_epoch=3, weight_lr=0.05)
    data = SearchData(images(6), val=images(6))
    first = search(CHAIN, table_of(CHAIN), data, frozen)
    assert set(first.genotype.choices.values()) == {"conv_1x1", "1"}
    many = search(CHAIN, table_of(CHAIN), data, frozen.model_copy(update={"candidates": 100}))
    losses = {}
    for number in range(CHAIN.cardinality()):
        depths = {f"s{s + 1}.depth": number >> s & 1 for s in range(2)}
        kernels = {f"s{s + 1}.kernel": number >> (2 + s) & 1 for s in range(2)}
        genotype = CHAIN.genotype({**depths, **kernels})
        scores = shared_scores(
            CHAIN, many.supernet, genotype, images(6), images(6), statistics_batches=16,
            device=torch.device("cpu"),
        )  # fmt: skip
        losses[genotype.short_id] = scores["loss"]
    assert many.genotype.short_id == min(losses, key=losses.get)
    assert many.scores["loss"] == pytest.approx(min(losses.values()))
    assert many.genotype != first.genotype


def test_under_a_budget_the_candidate_with_the_least_loss_is_the_result():
    table = table_of(CHAIN)
    latency_ms = {
        genotype.short_id: table.predict_ms(CHAIN.record().count(CHAIN.assignment(genotype)))
        for genotype in map(CHAIN.genotype, all_assignments(CHAIN))
    }
    target_ms = sorted(latency_ms.values())[-3]
    frozen = config(epochs=3, arch_from_epoch=3, weight_lr=0.05, target_ms=target_ms)
    data = SearchData(images(6), val=images(6))
    wide = {"budget": {"below": 0.9}}  # whatever is not below a tenth of the target uses it
    found = {
        count: search(CHAIN, table, data, SearchConfig(**frozen.model_dump() | wide | {"candidates": count}))
        for count in (1, 100)
    }
    losses = {}
    for genotype in map(CHAIN.genotype, all_assignments(CHAIN)):
        if latency_ms[genotype.short_id] <= target_ms:
            losses[genotype.short_id] = shared_scores(
                CHAIN, found[100].supernet, genotype, images(6), images(6), statistics_batches=16,
                device=torch.device("cpu"),
            )["loss"]  # fmt: skip
    assert len(losses) > 8
    assert found[100].genotype.short_id == min(losses, key=losses.get)
    assert found[100].scores["loss"] == pytest.approx(min(losses.values()))
    assert found[100].genotype != found[1].genotype


def test_several_candidates_need_validation_data():
    with pytest.raises(InvalidInput, match=r"candidates=2 compares networks on validation data"):
        search(Planted(), None, SearchData(planted_batches(1)), config(candidates=2))


def test_with_an_entropy_weight_logits_settle_at_the_differences_of_losses():
    """Losses by hand: softplus(∓2) where a guess is right or wrong, half of each of two guesses."""
    right, wrong, nothing = (float(torch.nn.functional.softplus(torch.tensor(x))) for x in (-2.0, 2.0, 0.0))
    weight = 0.5
    result = search(
        Planted(),
        None,
        SearchData(planted_batches(200)),
        config(
            epochs=8, weight_lr=1e-9, weight_lr_end=0.0, arch_lr=0.02, arch_betas=(0.9, 0.999),
            arch_weight_decay=0.0, entropy_weight=weight,
        ),
    )  # fmt: skip
    losses = {"factor": [nothing, right, right, wrong], "cells": [wrong, right, wrong]}
    for name, by_option in losses.items():
        wanted = torch.softmax(-torch.tensor(by_option) / 2 / weight, dim=0)
        assert result.probabilities[name] == pytest.approx(wanted.tolist(), abs=0.08)
