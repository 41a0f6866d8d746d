import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from hwnas.core.penalty import AnyPenalty, HingePenalty, LinearPenalty, LogPenalty, TargetPenalty


def value_and_slope(penalty, ms):
    latency_ms = torch.tensor(ms, requires_grad=True)
    term = penalty(latency_ms)
    term.backward()
    return float(term.detach()), float(latency_ms.grad)


@pytest.mark.parametrize(
    ("penalty", "ms", "value", "slope"),
    [
        # 0.1 · ln 2000, slope 0.1 / 2
        (LogPenalty(weight=0.1), 2.0, 0.1 * math.log(2000.0), 0.05),
        (LinearPenalty(weight=0.1), 2.0, 0.2, 0.1),
        # 2 · |6/4 − 1| = 1, slope 2/4; below the target it turns
        (TargetPenalty(weight=2.0, target_ms=4.0), 6.0, 1.0, 0.5),
        (TargetPenalty(weight=2.0, target_ms=4.0), 2.0, 1.0, -0.5),
        (HingePenalty(weight=2.0, target_ms=4.0), 6.0, 1.0, 0.5),
        (HingePenalty(weight=2.0, target_ms=4.0), 3.0, 0.0, 0.0),
    ],
)
def test_values_and_slopes(penalty, ms, value, slope):
    assert value_and_slope(penalty, ms) == pytest.approx((value, slope), rel=1e-5)


@pytest.mark.parametrize("penalty", [TargetPenalty, HingePenalty])
def test_a_target_is_needed_and_positive(penalty):
    with pytest.raises(ValidationError, match="Field required"):
        penalty()
    with pytest.raises(ValidationError, match="greater than 0"):
        penalty(target_ms=0.0)


def test_a_weight_is_not_negative():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        LogPenalty(weight=-1.0)


def test_penalties_are_read_from_json_by_their_form():
    adapter = TypeAdapter(AnyPenalty)
    penalties = [LogPenalty(), LinearPenalty(), TargetPenalty(target_ms=3), HingePenalty(target_ms=3)]
    assert [adapter.validate_json(penalty.model_dump_json()) for penalty in penalties] == penalties
