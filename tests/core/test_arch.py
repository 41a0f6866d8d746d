import gc
import math
import weakref

import pytest
import torch

from hwnas import ArchParameters, Choice, assigned
from hwnas.core.arch import depth_summary
from hwnas.core.choice import blocks
from hwnas.core.relaxation import GumbelSoftmax
from hwnas.errors import InvalidInput

from .nets import ChoiceInChoice, ChoiceInDepth

OPS = Choice(name="op", options=("x", "y", "z"))
DEPTH = Choice(name="deep", options=("1", "2"), kind="depth")


def arch():
    return ArchParameters([OPS, DEPTH])


def test_parameters_lie_beside_the_supernet():
    net = ChoiceInDepth().supernet()
    mine = {id(p) for p in ArchParameters(net).parameters()}
    assert mine.isdisjoint(id(p) for p in net.parameters())


def test_each_kind_has_a_matrix_of_its_own_and_every_choice_a_row():
    parameters = ArchParameters([DEPTH, OPS, Choice(name="deep2", options=("1",), kind="depth")])
    assert set(parameters.matrices) == {"depth", "op"}
    assert parameters.rows == {"deep": 0, "deep2": 1, "op": 2}
    assert parameters.logits.shape == (3, 3)
    assert parameters.alive.tolist() == [[True, True, False], [True, False, False], [True] * 3]


def test_rows_of_a_matrix_are_those_of_its_kind_whatever_the_order_of_the_kinds():
    parameters = arch()
    parameters.set_logits({"op": [1.0, 2.0, 3.0], "deep": [4.0, 5.0]})
    assert parameters.matrices["op"].tolist() == [[1.0, 2.0, 3.0]]
    assert parameters.matrices["depth"].tolist() == [[4.0, 5.0, 0.0]]
    again = ArchParameters([OPS, DEPTH])
    again.load_state_dict(parameters.state_dict())
    assert again.logits.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]


def test_at_the_start_all_options_are_equally_likely():
    assert arch().by_name(arch().probabilities()) == {
        "op": pytest.approx([1 / 3] * 3),
        "deep": pytest.approx([0.5, 0.5]),
    }


def test_probabilities_and_argmax_leave_dead_options_out():
    parameters = arch()
    parameters.set_logits({"op": [3.0, 1.0, 1.0]})
    assert parameters.argmax() == {"op": 0, "deep": 0}
    parameters.alive[0, 0] = False
    assert parameters.argmax() == {"op": 1, "deep": 0}
    assert parameters.by_name(parameters.probabilities())["op"] == pytest.approx([0.0, 0.5, 0.5])
    for seed in range(30):
        draw = parameters.draw(GumbelSoftmax(), 1.0, torch.Generator().manual_seed(seed))
        assert draw.index[0] != 0


def test_padding_is_never_drawn():
    parameters = arch()
    for seed in range(50):
        assert parameters.draw(GumbelSoftmax(), 1.0, torch.Generator().manual_seed(seed)).index[1] in (0, 1)


def test_one_hot():
    draw = arch().one_hot({"deep": 1})
    assert draw.weights.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert draw.index == (0, 1)
    assert not draw.weights.requires_grad


def test_one_hot_refuses_what_is_not_there():
    with pytest.raises(InvalidInput, match=r"no such choice: other\. Known: op, deep"):
        arch().one_hot({"other": 0})
    with pytest.raises(InvalidInput, match='"deep" has options 0 to 1, got 2'):
        arch().one_hot({"deep": 2})


def test_set_logits_refuses_what_does_not_fit():
    with pytest.raises(InvalidInput, match='"op" has 3 options, got 2 logits'):
        arch().set_logits({"op": [1.0, 2.0]})
    with pytest.raises(InvalidInput, match="no such choice: other"):
        arch().set_logits({"other": [1.0]})


def test_state_holds_logits_and_what_was_pruned():
    before = arch()
    before.set_logits({"op": [1.0, 2.0, 3.0], "deep": [0.5, -0.5]})
    before.alive[0, 1] = False
    after = arch()
    after.load_state_dict(before.state_dict())
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.alive, before.alive)


def test_gradients_reach_the_logits_of_all_kinds():
    parameters = ArchParameters(ChoiceInChoice().supernet())
    (parameters.probabilities()[:, 0] ** 2).sum().backward()
    assert all(bool((matrix.grad != 0).any()) for matrix in parameters.parameters())


def test_depth_summary_counts_steps_from_one():
    parameters = arch()
    parameters.set_logits({"deep": torch.tensor([0.25, 0.75]).log().tolist()})
    # 1 · 0.25 + 2 · 0.75 = 1.75
    assert depth_summary(parameters) == {"deep": {"argmax": 2, "expected": pytest.approx(1.75)}}


def test_it_prints_how_many_choices_there_are():
    assert "choices=2, options=5" in repr(arch())


def test_logits_are_shifted_in_place_row_by_row():
    parameters = ArchParameters([DEPTH, OPS])  # rows: deep, op
    parameters.set_logits({"op": [1.0, 2.0, 3.0]})
    parameters.shift(torch.tensor([[0.5, -0.5, 0.0], [1.0, 0.0, -1.0]]))
    assert parameters.logits.tolist() == [[0.5, -0.5, 0.0], [2.0, 2.0, 2.0]]
    assert all(matrix.requires_grad and matrix.is_leaf for matrix in parameters.parameters())


def test_live_options_are_those_of_now():
    """They are remembered, until the mask is written to or replaced."""
    own = ArchParameters([Choice(name="a", options=("x", "y")), Choice(name="b", options=("x", "y", "z"))])
    assert own.alive_options() == [(0, 1), (0, 1, 2)]
    own.alive[1, 1] = False
    assert own.alive_options() == [(0, 1), (0, 2)]
    own.load_state_dict(ArchParameters(own.choices).state_dict())
    assert own.alive_options() == [(0, 1), (0, 1, 2)]
    own.alive = ~own.alive
    assert own.alive_options() == [(2,), ()]


def test_a_supernet_may_be_forgotten():
    """Its blocks are looked up once, and that alone must not keep it."""
    net = ChoiceInDepth().supernet()
    own = ArchParameters(net)
    with assigned(net, own, own.one_hot({})):
        pass
    gone = weakref.ref(next(blocks(net)))
    del net
    gc.collect()
    assert gone() is None


def test_entropy_is_that_of_the_live_options():
    parameters = arch()
    assert float(parameters.entropy().detach()) == pytest.approx(math.log(3) + math.log(2))
    parameters.alive[0, 2] = False
    parameters.set_logits({"op": [math.log(3), 0.0, 5.0]})
    # Probabilities 3/4 and 1/4.
    expected = math.log(2) - 0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(parameters.entropy().detach()) == pytest.approx(expected)
    parameters.entropy().backward()
    gradient = parameters.matrices["op"].grad
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[0, 2]) == 0.0


def test_a_uniform_draw_knows_nothing_of_the_logits_and_draws_no_dead_option():
    parameters = arch()
    parameters.set_logits({"op": [20.0, 0.0, 0.0]})
    parameters.alive[0, 2] = False
    generator = torch.Generator().manual_seed(0)
    drawn = [parameters.draw(GumbelSoftmax(), 1.0, generator, uniform=True).index[0] for _ in range(400)]
    assert set(drawn) == {0, 1}
    assert 160 < sum(drawn) < 240
    assert {parameters.draw(GumbelSoftmax(), 1.0, generator).index[0] for _ in range(100)} == {0}
