import math

import pytest
import torch
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.segmentation import OhemCrossEntropy


def pixels(*probabilities: float, labels: list[int] | None = None):
    """One row of pixels with two classes; the probability is that of class 0, which is true by default."""
    logits = torch.tensor([[math.log(p), math.log(1 - p)] for p in probabilities]).T[None, :, None, :]
    targets = torch.tensor(labels or [0] * len(probabilities))[None, None, :]
    return logits.requires_grad_(), targets


def brute_force(logits, targets, threshold, fraction, ignore, weights=None):
    """Pixel by pixel, in plain Python."""
    rows = []
    for n, h, w in torch.cartesian_prod(*map(torch.arange, targets.shape)).tolist():
        target = int(targets[n, h, w])
        if target != ignore:
            probability = float(functional.softmax(logits[n, :, h, w].double(), 0)[target])
            rows.append((probability, target))
    rows.sort()
    hard = [row for row in rows if row[0] < threshold]
    kept = hard if len(hard) >= fraction * len(rows) else rows[: max(1, math.ceil(fraction * len(rows)))]
    weight = [1.0 if weights is None else weights[target] for _, target in kept]
    return sum(-math.log(p) * w for (p, _), w in zip(kept, weight, strict=True)) / sum(weight)


def test_only_pixels_under_the_threshold_count():
    logits, targets = pixels(0.5, 0.25, 0.9, 0.95)
    loss = OhemCrossEntropy(threshold=0.7, min_kept_fraction=0)(logits, targets)
    # (ln 2 + ln 4) / 2 = 1.5 ln 2
    assert loss.item() == pytest.approx(1.5 * math.log(2))
    loss.backward()
    assert logits.grad[0, :, 0, 2:].abs().sum() == 0


def test_the_hardest_are_kept_where_all_are_easy():
    logits, targets = pixels(0.8, 0.9, 0.95, 0.99)
    # Half of four pixels: 0.8 and 0.9.
    expected = -(math.log(0.8) + math.log(0.9)) / 2
    assert OhemCrossEntropy(0.7, 0.5)(logits, targets).item() == pytest.approx(expected)


def test_void_is_neither_kept_nor_counted():
    logits, targets = pixels(0.01, 0.8, 0.9, labels=[255, 0, 0])
    # Two labelled pixels, a half of them is one: 0.8.
    assert OhemCrossEntropy(0.7, 0.5)(logits, targets).item() == pytest.approx(-math.log(0.8))


def test_class_weights_weight_the_mean():
    logits, targets = pixels(0.5, 0.6, labels=[0, 1])  # probability of the true class: 0.5 and 0.4
    loss = OhemCrossEntropy(0.7, class_weights=[1.0, 3.0])(logits, targets)
    assert loss.item() == pytest.approx(-(math.log(0.5) + 3 * math.log(0.4)) / 4)


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
@pytest.mark.parametrize(("threshold", "fraction"), [(0.7, 1 / 16), (0.05, 0.3), (0.3, 0.0), (1.0, 1.0)])
def test_agrees_with_brute_force(threshold, fraction, weights):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(2, 3, 5, 7, generator=generator)
    targets = torch.randint(0, 3, (2, 5, 7), generator=generator)
    targets[:, 0] = 255
    loss = OhemCrossEntropy(threshold, fraction, class_weights=weights)(logits, targets)
    assert loss.item() == pytest.approx(
        brute_force(logits, targets, threshold, fraction, 255, weights), rel=1e-5
    )


def test_threshold_one_is_plain_cross_entropy():
    logits, targets = pixels(0.5, 1 - 1e-7, 0.9)
    assert torch.allclose(OhemCrossEntropy(1.0)(logits, targets), functional.cross_entropy(logits, targets))


def test_a_batch_of_void_costs_nothing_and_has_a_graph():
    logits, targets = pixels(0.5, 0.5, labels=[255, 255])
    loss = OhemCrossEntropy()(logits * float("inf"), targets)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None


def test_kept_pixels_of_weight_zero_cost_nothing():
    logits, targets = pixels(0.5, 0.5)
    assert OhemCrossEntropy(class_weights=[0.0, 1.0])(logits, targets).item() == 0


def test_a_nan_is_not_dropped_as_easy():
    logits, targets = pixels(*[0.2] * 40)
    spoilt = logits.detach().clone()
    spoilt[..., 3] = float("nan")
    assert OhemCrossEntropy()(spoilt, targets).isnan()


def test_half_precision_logits_are_computed_in_float32():
    logits, targets = pixels(0.5, 0.25)
    loss = OhemCrossEntropy()(logits.bfloat16(), targets)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, "threshold is a probability in (0, 1]; got 0.0"),
        ({"min_kept_fraction": 2.0}, "in [0, 1]; got 2.0"),
        ({"class_weights": [-1.0, 1.0]}, "one non-negative number a class"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(InvalidInput) as caught:
        OhemCrossEntropy(**arguments)
    assert message in str(caught.value)


def test_shapes_that_differ_are_refused():
    with pytest.raises(InvalidInput, match=r"got \[1, 3, 4, 4\] and \[1, 2, 2\]"):
        OhemCrossEntropy()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2, dtype=torch.long))
