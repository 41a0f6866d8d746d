"""Accuracy, by hand."""

import torch

from hwnas import Accuracy


def test_right_answers_of_all():
    accuracy = Accuracy()
    assert accuracy.compute() == {"accuracy": 0.0}
    accuracy.update(torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]]), torch.tensor([1, 1, 1]))
    accuracy.update(torch.tensor([[5.0, 1.0]]), torch.tensor([0]))
    assert accuracy.compute() == {"accuracy": 75.0}
    other = Accuracy()
    other.take_sums(accuracy.sums() * 2)
    assert other.compute() == {"accuracy": 75.0}
    accuracy.reset()
    assert accuracy.compute() == {"accuracy": 0.0}


def test_pixels_are_counted_one_by_one():
    accuracy = Accuracy()
    # Class 1 everywhere, right in one of four pixels.
    outputs = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)], dim=1)
    accuracy.update(outputs, torch.tensor([[[1, 0], [0, 0]]]))
    assert accuracy.compute() == {"accuracy": 25.0}
