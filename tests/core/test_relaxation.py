import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hwnas.core.relaxation import (
    AnyRelaxation,
    ExponentialSchedule,
    GumbelSoftmax,
    LinearSchedule,
    Softmax,
    masked,
)

# Two choices of three and two options.
ALIVE = torch.tensor([[True, True, True], [True, True, False]])
LOGITS = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 1.0]]).log()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_linear_schedule_goes_along_a_line():
    schedule = LinearSchedule(start=3.0, end=1.0)
    assert [schedule.at(epoch, 5) for epoch in range(5)] == [3.0, 2.5, 2.0, 1.5, 1.0]


def test_an_exponential_schedule_goes_by_a_constant_factor():
    schedule = ExponentialSchedule(start=8.0, end=0.5)
    assert [schedule.at(epoch, 5) for epoch in range(5)] == pytest.approx([8.0, 4.0, 2.0, 1.0, 0.5])


@pytest.mark.parametrize("schedule", [LinearSchedule(), ExponentialSchedule()])
def test_one_epoch_is_the_last_one(schedule):
    assert schedule.at(0, 1) == pytest.approx(schedule.end)
    assert schedule.at(7, 3) == pytest.approx(schedule.end)


def test_temperatures_are_positive():
    with pytest.raises(ValidationError, match="greater than 0"):
        LinearSchedule(end=0.0)


def test_softmax_at_temperature_one_gives_the_probabilities():
    weights = Softmax().draw(LOGITS, ALIVE, 1.0).weights
    torch.testing.assert_close(weights, torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0]]))


def test_softmax_at_temperature_half_squares_the_odds():
    # 0.01 : 0.49 : 0.04 of 0.54
    weights = Softmax().draw(LOGITS, ALIVE, 0.5).weights
    torch.testing.assert_close(weights[0], torch.tensor([0.01, 0.49, 0.04]) / 0.54)


@pytest.mark.parametrize("relaxation", [Softmax(), GumbelSoftmax(), GumbelSoftmax(hard=False)])
@pytest.mark.parametrize("temperature", [0.03, 1.0, 3.0])
def test_rows_sum_to_one_and_dead_options_are_exactly_zero(relaxation, temperature):
    for seed in range(20):
        weights = relaxation.draw(LOGITS, ALIVE, temperature, generator(seed)).weights
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2))
        assert weights[1, 2].item() == 0.0
        assert bool(torch.isfinite(weights).all())


def test_a_hard_sample_is_exactly_one_hot_at_its_index():
    for seed in range(50):
        draw = GumbelSoftmax().draw(LOGITS, ALIVE, 0.7, generator(seed))
        expected = torch.zeros(2, 3)
        expected[0, draw.index[0]] = expected[1, draw.index[1]] = 1.0
        assert torch.equal(draw.weights, expected)


def test_soft_samples_have_no_index():
    assert GumbelSoftmax(hard=False).draw(LOGITS, ALIVE, 1.0, generator()).index is None
    assert Softmax().draw(LOGITS, ALIVE, 1.0).index is None


def test_hard_samples_come_as_often_as_their_probabilities_say():
    # 4000 draws of p = 0.7: standard deviation sqrt(0.21 / 4000) = 0.0072; 5 of them are 0.036.
    source, counts, n = generator(1), torch.zeros(3), 4000
    for _ in range(n):
        counts[GumbelSoftmax().draw(LOGITS, ALIVE, 1.0, source).index[0]] += 1
    torch.testing.assert_close(counts / n, torch.tensor([0.1, 0.7, 0.2]), atol=0.036, rtol=0)


def test_hard_and_soft_samples_share_noise_and_gradient():
    coefficients = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, 0.0]])
    gradients = []
    for hard in (True, False):
        logits = LOGITS.clone().requires_grad_()
        weights = GumbelSoftmax(hard=hard).draw(logits, ALIVE, 0.8, generator(2)).weights
        (weights * coefficients).sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0][1, 2] == 0.0


def test_the_gradient_of_a_soft_sample_is_that_of_finite_differences():
    def weights(logits):
        return GumbelSoftmax(hard=False).draw(logits, ALIVE, 0.8, generator(2)).weights

    assert torch.autograd.gradcheck(weights, LOGITS.double().requires_grad_())


def test_one_generator_state_gives_one_draw():
    draws = [GumbelSoftmax(hard=False).draw(LOGITS, ALIVE, 1.0, generator(3)).weights for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("extreme", [0.0, 1.0 - 2**-24, 2**-126])
def test_extreme_uniform_numbers_give_finite_samples(monkeypatch, extreme):
    """A uniform 0, and one so near 1 that its logarithm rounds to 0, are drawn in long runs."""
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.full(shape, extreme))
    logits = LOGITS.clone().requires_grad_()
    draw = GumbelSoftmax().draw(logits, ALIVE, 0.03)
    draw.weights[:, 0].sum().backward()
    assert bool(torch.isfinite(draw.weights).all())
    assert bool(torch.isfinite(logits.grad).all())
    assert draw.index[1] in (0, 1)


def test_masked_logits_are_minus_infinity_where_dead():
    assert masked(LOGITS, ALIVE)[1, 2].item() == -math.inf


def test_relaxations_are_read_from_json_by_their_form():
    adapter = TypeAdapter(AnyRelaxation)
    for relaxation in (Softmax(), GumbelSoftmax(hard=False, tau=ExponentialSchedule(start=5.0))):
        assert adapter.validate_json(relaxation.model_dump_json()) == relaxation
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        adapter.validate_python({"form": "softmax", "hard": True})
