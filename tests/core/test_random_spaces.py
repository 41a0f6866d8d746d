"""The three views agree on supernets that nobody thought of: nested at random, choices shared at random."""

import itertools
import math
from typing import ClassVar

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hwnas import (
    ArchParameters,
    Choice,
    ChoiceBlock,
    DepthBlock,
    ExpectedLatency,
    SearchSpace,
    assigned,
    record,
)

from .nets import Scale, table_of

# A tree: a number is an op; ("row", parts), ("choice", name, (a, b)) and ("depth", name, (a, b)) hold trees.
# Choices and depths have two options each and few names, so that names meet again at any depth.
NAMES = st.sampled_from(["p", "q", "r"])
TREES = st.recursive(
    st.sampled_from([2.0, 3.0, 5.0, 7.0]),
    lambda inner: st.one_of(
        st.tuples(st.just("row"), st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.tuples(st.just("choice"), NAMES, st.tuples(inner, inner)),
        st.tuples(st.just("depth"), NAMES.map(str.upper), st.tuples(inner, inner)),
    ),
    max_leaves=8,
)


def module_of(tree):
    if isinstance(tree, float):
        return Scale(tree)
    if tree[0] == "row":
        return nn.Sequential(*map(module_of, tree[1]))
    parts = [module_of(part) for part in tree[2]]
    if tree[0] == "choice":
        choice = Choice(name=tree[1], options=("a", "b"))
        return ChoiceBlock(choice, dict(zip(choice.options, parts, strict=True)))
    return DepthBlock(Choice(name=tree[1], options=("1", "2"), kind="depth"), parts)


class Grown(SearchSpace):
    name: ClassVar[str] = "grown"
    tree: object

    def input_shape(self):
        return (2,)

    def supernet(self):
        # A choice at the root, so that there is something to search in every tree.
        root = ("choice", "p", (self.tree, 11.0))
        return module_of(root)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(TREES)
def test_the_three_views_agree_and_the_expectation_is_exact(tree):
    space = Grown(tree=tree)
    supernet = space.supernet().eval()
    arch = ArchParameters(supernet)
    table = table_of(space)
    cost = ExpectedLatency(space.record(), arch.choices, table)
    arch.set_logits({choice.name: [0.0, 0.2 + row] for row, choice in enumerate(arch.choices)})
    probabilities = arch.probabilities().detach().double()
    x = torch.ones(1, 2)
    expectation, outputs = 0.0, {}
    for values in itertools.product((0, 1), repeat=len(arch.choices)):
        assignment = dict(zip(arch.rows, values, strict=True))
        genotype = space.genotype(assignment)
        network = space.build(genotype, supernet)
        with assigned(supernet, arch, arch.one_hot(assignment)):
            assert torch.equal(supernet(x), network(x))
        ms = sum(table.latency_ms(use.key) for use in record(network, [x]).ops)
        assert math.isclose(cost.total(arch.one_hot(assignment).weights), ms, rel_tol=1e-5)
        assert torch.equal(outputs.setdefault(genotype.short_id, network(x)), network(x))
        expectation += ms * math.prod(float(probabilities[row, value]) for row, value in enumerate(values))
    assert math.isclose(cost.total(probabilities), expectation, rel_tol=1e-6)
    assert len(outputs) == space.cardinality()
