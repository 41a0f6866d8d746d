import math
import types

import pytest
import torch

from hwnas.core.checkpoint import random_state
from hwnas.core.distributed import Additive
from hwnas.core.scoring import LossBeside, by_loss, headline, shared_scores
from hwnas.search_spaces.chain import Chain

from .nets import Planted, images, with_statistics

CPU = torch.device("cpu")
CHAIN = Chain(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3))


def test_the_loss_stands_beside_the_metric_and_counts_by_images():
    beside = LossBeside(CHAIN)
    right, wrong = torch.tensor([[0.0, 100.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0, 0.0]] * 3)
    beside.update(right, torch.tensor([1]))
    beside.update(wrong, torch.tensor([0, 0, 0]))
    one = math.log(math.exp(2.0) + 3.0)
    assert beside.compute() == {"accuracy": 25.0, "loss": pytest.approx(3 * one / 4, rel=1e-6)}
    beside.reset()
    assert beside.compute() == {"accuracy": 0.0, "loss": 0.0}


class Known(Planted):
    """Targets of 0 are not known, and do not count."""

    def loss_weight(self, targets):
        return targets.abs().sum()

    def loss(self, outputs, targets):
        return super().loss(outputs[targets != 0], targets[targets != 0])


def test_batches_count_by_what_the_loss_is_a_mean_over():
    """A batch in which nothing counts has a loss of 0/0, which must not spoil the others'."""
    beside = LossBeside(Known())
    for guess, truth in ((0.5, [1, 0]), (0.0, [1, 1]), (0.0, [1, 1]), (5.0, [0, 0])):
        beside.update(torch.full((2,), guess), torch.tensor(truth, dtype=torch.float))
    alone = math.log(1 + math.exp(-1.0))
    assert beside.compute() == {"loss": pytest.approx((alone + 4 * math.log(2)) / 5)}


@pytest.mark.parametrize("space", [CHAIN, Planted()])
def test_halves_add_up_to_the_whole(space):
    whole, halves = LossBeside(space), [LossBeside(space), LossBeside(space)]
    assert isinstance(whole, Additive)
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        outputs = torch.randn(3 + number, 4, generator=generator)
        targets = torch.arange(3 + number) % 4 if space is CHAIN else outputs.sign()
        for beside in (whole, halves[number % 2]):
            beside.update(outputs, targets)
    halves[0].take_sums(halves[0].sums() + halves[1].sums())
    assert halves[0].compute() == pytest.approx(whole.compute())


def test_a_metric_that_cannot_be_added_up_is_not_shared():
    class Whole(Chain):
        def metric(self):
            return types.SimpleNamespace(
                reset=lambda: None, update=lambda *_: None, compute=lambda: {"m": 1.0}
            )

    beside = LossBeside(Whole(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3)))
    assert not isinstance(beside, Additive)
    assert list(beside.compute()) == ["m", "loss"]


def test_a_space_without_a_metric_has_the_loss_alone():
    beside = LossBeside(Planted())
    beside.update(torch.zeros(2, 8, 4), torch.ones(8, 4))
    assert beside.compute() == {"loss": pytest.approx(math.log(2))}


@pytest.mark.parametrize(
    ("scores", "best", "least"),
    [
        ({"miou": 40.0, "loss": 0.5}, 40.0, -0.5),
        ({"loss": 0.5}, -0.5, -0.5),
        ({"miou": math.nan, "loss": math.inf}, -math.inf, -math.inf),
    ],
)
def test_higher_is_better(scores, best, least):
    assert headline(scores) == best
    assert by_loss(scores) == least


def test_no_scores_are_the_worst():
    assert headline({}) == -math.inf


def test_a_network_is_scored_with_statistics_of_its_own():
    """By hand: derive, take the statistics, evaluate. The supernet's own statistics are another network's."""
    torch.manual_seed(0)
    supernet = with_statistics(CHAIN.supernet())
    genotype = CHAIN.random(torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    state = random_state()
    scores = shared_scores(CHAIN, supernet, genotype, images(9), images(2), statistics_batches=3, device=CPU)
    assert torch.equal(random_state()["torch"], state["torch"])
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name])

    network = CHAIN.build(genotype, supernet).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for x, _ in images(3):
            network(x)
        network.eval()
        losses = [CHAIN.loss(network(x), y) for x, y in images(2)]
    assert scores["loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    mixed = shared_scores(CHAIN, supernet, genotype, images(9), images(2), statistics_batches=0, device=CPU)
    assert mixed["loss"] != pytest.approx(scores["loss"], rel=1e-3)
