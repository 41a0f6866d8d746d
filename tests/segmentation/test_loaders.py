import pytest
import torch

from hwnas.errors import InvalidInput
from hwnas.segmentation import SyntheticScenes, evaluation_loader, training_loader

SMALL = {"size": (24, 32), "length": 7}


def two_passes(num_workers):
    loader = training_loader(SyntheticScenes(augment=True, **SMALL), 3, num_workers=num_workers)
    torch.manual_seed(11)
    batches = [*loader]
    torch.rand(5)  # what a training step draws meanwhile
    return [*batches, *loader], torch.get_rng_state()


def test_workers_change_nothing():
    alone, state = two_passes(0)
    helped, helped_state = two_passes(2)
    assert len(alone) == len(helped) == 4
    for (a, b), (c, d) in zip(alone, helped, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert torch.equal(state, helped_state)


def test_a_restored_state_repeats_a_pass():
    loader = training_loader(SyntheticScenes(augment=True, **SMALL), 2)
    list(loader)
    state = torch.get_rng_state()
    first = list(loader)
    second = list(loader)
    torch.set_rng_state(state)
    third = list(loader)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, third, strict=True))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_an_epoch_sees_each_image_once():
    dataset = SyntheticScenes(**SMALL)
    images = torch.cat([batch for batch, _ in training_loader(dataset, 1)])
    sums = sorted(round(float(image.double().sum()), 6) for image in images)
    assert sums == sorted(round(float(dataset[i][0].double().sum()), 6) for i in range(7))


def test_evaluation_keeps_order_and_the_last_batch():
    dataset = SyntheticScenes(**SMALL)
    batches = list(evaluation_loader(dataset, 3))
    assert [len(images) for images, _ in batches] == [3, 3, 1]
    assert torch.equal(batches[1][0][0], dataset[3][0])


def test_a_batch_must_be_filled():
    with pytest.raises(InvalidInput, match=r"batch_size must lie in 1…7, the size of the data set; got 8"):
        training_loader(SyntheticScenes(**SMALL), 8)
