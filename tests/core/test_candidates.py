import itertools

import pytest
import torch

from hwnas import ArchParameters, Choice
from hwnas.core.candidates import likeliest

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
