import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas import ArchParameters, Choice, ChoiceBlock, DepthBlock, SearchConfig, SearchData, record
from hwnas.core import candidates
from hwnas.core.budget import Found
from hwnas.core.candidates import WithinBudget, likeliest
from hwnas.core.searched import Searched

from .nets import Scale
from .test_random_spaces import TREES, Grown

CHOICES = [
    Choice(name="a", options=("0", "1", "2")),
    Choice(name="b", options=("0", "1", "2", "3"), kind="depth"),
    Choice(name="c", options=("0",)),
    Choice(name="d", options=("0", "1")),
]


def arch_of(seed):
    arch = ArchParameters(CHOICES)
    generator = torch.Generator().manual_seed(seed)
    for choice in arch.choices:
        arch.set_logits({choice.name: torch.randn(len(choice.options), generator=generator).tolist()})
    return arch


def log_likelihood(arch, assignment):
    log_p = arch.probabilities().log().tolist()
    return sum(log_p[arch.rows[name]][option] for name, option in assignment.items())


@pytest.mark.parametrize("seed", range(5))
def test_all_come_once_in_the_order_of_brute_force(seed):
    arch = arch_of(seed)
    found = list(likeliest(arch))
    sizes = {choice.name: len(choice.options) for choice in arch.choices}
    everything = [
        dict(zip(sizes, values, strict=True)) for values in itertools.product(*map(range, sizes.values()))
    ]
    everything.sort(key=lambda assignment: -log_likelihood(arch, assignment))
    assert found == everything
    assert found[0] == arch.argmax()


def test_dead_options_never_come():
    arch = arch_of(0)
    arch.alive[arch.rows["b"], 1:3] = False
    found = list(likeliest(arch))
    assert len(found) == 3 * 2 * 1 * 2
    assert {assignment["b"] for assignment in found} == {0, 3}


def test_of_equals_the_first_options_come_first():
    arch = ArchParameters(CHOICES)
    assert next(likeliest(arch)) == arch.argmax() == {"a": 0, "b": 0, "c": 0, "d": 0}


def test_it_is_lazy():
    many = [Choice(name=f"c{n}", options=tuple("abcdefgh")) for n in range(60)]
    found = list(itertools.islice(likeliest(ArchParameters(many)), 500))
    assert len({tuple(assignment.values()) for assignment in found}) == 500


@settings(max_examples=40, deadline=None, derandomize=True)
@given(TREES, st.integers(0, 9))
def test_each_architecture_comes_once_in_spaces_nobody_thought_of(tree, seed):
    """Against every assignment: what differs where it cannot matter is one architecture."""
    space = Grown(tree=tree)
    arch = ArchParameters(space.supernet())
    generator = torch.Generator().manual_seed(seed)
    logits = {choice.name: torch.randn(2, generator=generator).tolist() for choice in arch.choices}
    arch.set_logits(logits)
    recording = space.record()
    lost = {}
    for values in itertools.product((0, 1), repeat=len(arch.choices)):
        full = dict(zip(arch.rows, values, strict=True))
        losses = [max(logits[name]) - logits[name][full[name]] for name in recording.live_choices(full)]
        lost[space.genotype(full).short_id] = sum(losses)
    found = [space.genotype(assignment).short_id for assignment in likeliest(arch, recording)]
    assert sorted(found) == sorted(lost)
    assert [lost[name] for name in found] == pytest.approx(sorted(lost.values()))


def test_what_is_cut_away_does_not_stand_in_the_way():
    """Forty choices behind an exit have 2^40 settings of one architecture: the next must come at once."""
    deep = Choice(name="deep", options=("1", "2"), kind="depth")
    cells = [ChoiceBlock(Choice(name=f"c{n}", options=("a", "b")), {"a": Scale(1.0), "b": Scale(2.0)})
             for n in range(40)]  # fmt: skip
    net = nn.Sequential(DepthBlock(deep, [Scale(3.0), nn.Sequential(*cells)]))
    arch = ArchParameters(net)
    arch.set_logits({"deep": [2.0, 0.0]})
    found = list(itertools.islice(likeliest(arch, record(net, [torch.ones(1, 2)])), 2))
    assert [assignment["deep"] for assignment in found] == [0, 1]


class Listed:
    """A budget whose networks are one choice's options, in a given order of likelihood."""

    def __init__(self, *found):
        self.found = found
        self.programme = self

    def live(self, assignment):
        return dict(assignment)

    def likeliest(self, arch, *, correction, without):
        return next((found for found in self.found if found.assignment not in without), None)


def compared(monkeypatch, losses, *found, count):
    """What chooses among these networks, whose losses are given, and those that it has validated."""
    validated = []

    def validate(searched, assignment):
        validated.append(assignment["a"])
        return {"loss": losses[assignment["a"]]}

    monkeypatch.setattr(candidates, "validate", validate)
    data, config = SearchData([], val=[]), SearchConfig(candidates=count)
    searched = Searched(None, None, arch_of(0), None, None, None, None, data, config)
    return WithinBudget(searched, Listed(*found)), validated


def test_a_network_that_wastes_the_target_is_not_compared_with_those_that_use_it(monkeypatch):
    near = [Found({"a": number}, near=True) for number in (0, 1)]
    choose, validated = compared(monkeypatch, [3, 2, 1], *near, Found({"a": 2}, near=False), count=9)
    assert choose().assignment == {"a": 1}
    assert validated == [0, 1]
    # Where none uses it, those that do not are compared.
    assert choose(1.0, [found.assignment for found in near]).assignment == {"a": 2}


def test_each_network_is_validated_once_whatever_is_corrected(monkeypatch):
    found = [Found({"a": number}, near=True) for number in range(4)]
    choose, validated = compared(monkeypatch, [4, 1, 3, 2], *found, count=3)
    assert choose().assignment == {"a": 1}
    assert validated == [0, 1, 2]
    assert choose(1.1, [{"a": 1}]).assignment == {"a": 3}
    assert choose.scores({"a": 3}) == {"loss": 2}
    assert validated == [0, 1, 2, 3]


def test_a_single_candidate_is_not_validated(monkeypatch):
    choose, validated = compared(monkeypatch, [1], Found({"a": 0}, near=True), count=1)
    assert choose().assignment == {"a": 0}
    assert choose(1.0, [{"a": 0}]) is None
    assert validated == []
