import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hwnas.errors import InvalidInput
from hwnas.segmentation import SyntheticScenes, colourise, save_predictions, save_triptych

PALETTE = ((10, 20, 30), (200, 0, 0))


def test_labels_become_colours():
    picture = colourise(torch.tensor([[0, 1, 255]]), PALETTE)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[10, 20, 30], [200, 0, 0], [0, 0, 0]]]
    assert colourise(np.array([[3]]), PALETTE, ignore_index=3, void=(9, 9, 9)).tolist() == [[[9, 9, 9]]]


def test_a_label_without_colour():
    with pytest.raises(InvalidInput, match=r"labels \[2, 7\] are not in the palette of 2 colours"):
        colourise(torch.tensor([[0, 2, 7]]), PALETTE)


def test_triptych_holds_image_truth_and_prediction(tmp_path):
    dataset = SyntheticScenes(size=(24, 40), length=1)
    image, target = dataset[0]
    path = save_triptych(tmp_path / "new/one.png", dataset, image, target, torch.full_like(target, 3))
    picture = np.asarray(Image.open(path))
    assert picture.shape == (24, 3 * 40 + 2 * 4, 3)
    assert np.array_equal(picture[:, :40], dataset.read(0)[0])
    assert np.array_equal(picture[:, 44:84], colourise(target, dataset.palette))
    assert (picture[:, 88:] == dataset.palette[3]).all()
    assert [entry.name for entry in path.parent.iterdir()] == ["one.png"]


def test_sizes_must_agree(tmp_path):
    dataset = SyntheticScenes(size=(24, 40), length=1)
    image, target = dataset[0]
    with pytest.raises(InvalidInput, match="must share their height and width"):
        save_triptych(tmp_path / "one.png", dataset, image, target, target[:2])


def test_a_network_is_shown_and_left_as_it_was(tmp_path):
    dataset = SyntheticScenes(size=(24, 40), length=5)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).train()
    before = network[1].running_mean.clone()
    paths = save_predictions(network, dataset, tmp_path, [0, 3])
    assert [path.name for path in paths] == ["train_00000.png", "train_00003.png"]
    assert network.training
    assert torch.equal(network[1].running_mean, before)


def test_logits_and_class_numbers_are_shown_alike(tmp_path):
    class Net(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, x):
            found = (x[:, 0] > 0).long()
            return nn.functional.one_hot(found, 8).permute(0, 3, 1, 2).float() if self.logits else found

    dataset = SyntheticScenes(size=(24, 40), length=1)
    shown = [save_predictions(Net(logits), dataset, tmp_path / str(logits), [0]) for logits in (True, False)]
    assert shown[0][0].read_bytes() == shown[1][0].read_bytes()
