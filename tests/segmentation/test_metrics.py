import pytest
import torch

from hwnas.errors import InvalidInput
from hwnas.segmentation import MeanIoU


def maps(*rows):
    return torch.tensor([rows])


def test_hand_worked_scores():
    metric = MeanIoU(4, names=["road", "sky", "car", "tram"])
    metric.update(maps([0, 0, 1, 2]), maps([0, 1, 1, 255]))
    metric.update(maps([0, 0, 0, 1]), maps([0, 0, 2, 1]))
    # Truth × prediction over the 7 labelled pixels: road 3 hits; sky 2 hits, 1 miss; car 1 miss.
    assert metric.confusion.tolist() == [[3, 0, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = metric.compute()
    # road 3 / (3 + 2 + 0), sky 2 / (2 + 0 + 1), car 0 / 1; tram is neither labelled nor predicted.
    assert scores["per_class"] == {
        "road": pytest.approx(60.0),
        "sky": pytest.approx(200 / 3),
        "car": 0.0,
        "tram": None,
    }
    assert scores["miou"] == pytest.approx((60 + 200 / 3 + 0) / 3)
    assert scores["pixel_accuracy"] == pytest.approx(100 * 5 / 7)
    assert next(iter(scores)) == "miou"


def test_the_mean_is_over_the_set_not_over_images():
    metric = MeanIoU(2)
    metric.update(maps([0]), maps([0]))  # by itself 100 %
    metric.update(maps([1, 1, 1]), maps([0, 1, 1]))  # by itself (0 + 2/3) / 2
    # Together: class 0 has 1 hit of 2 (50 %), class 1 has 2 of 3.
    assert metric.compute()["miou"] == pytest.approx((50 + 200 / 3) / 2)


def test_logits_and_class_numbers_count_alike():
    logits = torch.randn(2, 5, 9, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 5, (2, 9, 7), generator=torch.Generator().manual_seed(1))
    targets[0, 0] = 255
    from_logits, from_numbers = MeanIoU(5), MeanIoU(5)
    from_logits.update(logits, targets)
    from_numbers.update(logits.argmax(1), targets)
    assert from_logits.compute() == from_numbers.compute()
    brute = torch.zeros(5, 5, dtype=torch.int64)
    for truth, guess in zip(targets.flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
        if truth != 255:
            brute[truth, guess] += 1
    assert torch.equal(from_logits.confusion, brute)


def test_reset_forgets():
    metric = MeanIoU(2)
    metric.update(maps([0, 1]), maps([1, 0]))
    metric.reset()
    metric.update(maps([0, 1]), maps([0, 1]))
    assert metric.compute()["miou"] == 100


def test_table_prints_a_class_a_line():
    metric = MeanIoU(3, names=["road", "sky", "car"])
    metric.update(maps([0, 0, 1]), maps([0, 1, 1]))
    assert metric.table().splitlines() == [
        "road             50.0",
        "sky              50.0",
        "car                 -",
        "mIoU             50.0",
        "pixel accuracy   66.7",
    ]


def test_nothing_counted_is_an_error():
    metric = MeanIoU(2)
    metric.update(maps([0]), maps([255]))
    with pytest.raises(InvalidInput, match="no labelled pixel has been counted"):
        metric.compute()
    with pytest.raises(InvalidInput, match="no labelled pixel has been counted"):
        MeanIoU(2).compute()


@pytest.mark.parametrize(
    ("guess", "truth", "message"),
    [
        (maps([0, 1]), maps([0, 7]), "a target must lie in 0…1; got values from 0 to 7"),
        (maps([0, 3]), maps([0, 1]), "a prediction must lie in 0…1; got values from 0 to 3"),
        (maps([0, 1]), maps([0, 1, 1]), "got [1, 1, 2] (torch.int64) and [1, 1, 3]"),
        (maps([0.0, 1.0]), maps([0, 1]), "(torch.float32)"),
    ],
)
def test_wrong_input_is_refused(guess, truth, message):
    with pytest.raises(InvalidInput) as caught:
        MeanIoU(2).update(guess, truth)
    assert message in str(caught.value)


def test_names_must_fit():
    with pytest.raises(InvalidInput, match="names must be 3 different names"):
        MeanIoU(3, names=["a", "b"])
    with pytest.raises(InvalidInput, match="num_classes must be at least 2; got 1"):
        MeanIoU(1)
