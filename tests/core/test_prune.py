import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hwnas import ArchParameters, Choice
from hwnas.core.prune import AnyPruner, NoPruning, ThresholdPruner

OPS = Choice(name="op", options=("x", "y", "z", "w"))
DEPTH = Choice(name="deep", options=("1", "2"), kind="depth")


def arch(op=(0.9, 0.06, 0.03, 0.01), deep=(0.99, 0.01)):
    parameters = ArchParameters([OPS, DEPTH])
    parameters.set_logits({"op": torch.tensor(op).log().tolist(), "deep": torch.tensor(deep).log().tolist()})
    return parameters


def test_options_below_a_share_of_an_even_share_die():
    parameters = arch()
    # 0.1 of a quarter is 0.025: w dies. 0.1 of a half is 0.05: depth 2 dies.
    assert ThresholdPruner(share=0.1).prune(parameters, 0) == [("op", "w"), ("deep", "2")]
    assert parameters.alive.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_the_share_is_of_the_options_that_live():
    parameters = arch()
    pruner = ThresholdPruner(share=0.1, kinds=("op",))
    assert pruner.prune(parameters, 0) == [("op", "w")]
    # Now three live: 0.1 / 3 = 0.033, and z has 0.03 / 0.99 = 0.0303.
    assert pruner.prune(parameters, 1) == [("op", "z")]


def test_the_most_likely_option_stays():
    parameters = arch(op=(0.25, 0.25, 0.25, 0.25))
    for epoch in range(10):
        ThresholdPruner(share=0.99).prune(parameters, epoch)
    assert bool(parameters.alive.any(dim=1).all())


def test_only_the_kinds_named_are_pruned():
    parameters = arch()
    assert ThresholdPruner(kinds=("depth",)).prune(parameters, 0) == [("deep", "2")]


def test_nothing_dies_before_its_epoch():
    pruner = ThresholdPruner(from_epoch=2)
    parameters = arch()
    assert pruner.prune(parameters, 1) == []
    assert pruner.prune(parameters, 2) != []


def test_what_is_dead_is_not_reported_again():
    parameters = arch()
    ThresholdPruner().prune(parameters, 0)
    assert ("op", "w") not in ThresholdPruner().prune(parameters, 1)


def test_no_pruning():
    parameters = arch()
    assert NoPruning().prune(parameters, 9) == []
    assert int(parameters.alive.sum()) == 6


def test_settings_are_checked():
    with pytest.raises(ValidationError, match="less than 1"):
        ThresholdPruner(share=1.0)
    adapter = TypeAdapter(AnyPruner)
    assert adapter.validate_python({"form": "threshold", "share": 0.2}) == ThresholdPruner(share=0.2)
