import numpy as np
import pytest
import torch

from hwnas.errors import DataError, InvalidInput
from hwnas.segmentation import CamVid

from .conftest import write_image


@pytest.fixture
def small(tmp_path):
    """Four frames of two sequences, without the lists of names."""
    for name in ("0001TP_1", "0001TP_2", "0006R0_1", "0016E5_1"):
        write_image(tmp_path / f"images/train/{name}.jpg", np.zeros((4, 6, 3), np.uint8))
        write_image(tmp_path / f"labels/train/{name}.png", np.full((4, 6), 10, np.uint8))
    return tmp_path


def names(dataset):
    return [dataset.name(index) for index in range(len(dataset))]


def test_sequences_are_kept_and_left_out(small):
    assert len(CamVid(small)) == 4
    assert names(CamVid(small, sequences=("0006R0",))) == ["0006R0_1"]
    assert names(CamVid(small, exclude_sequences=("0001TP",))) == ["0006R0_1", "0016E5_1"]
    assert names(CamVid(small, sequences=("00",), exclude_sequences=("0001", "0016"))) == ["0006R0_1"]


def test_a_list_of_names_decides_which_and_in_which_order(small):
    (small / "train.txt").write_text("0016E5_1\n0001TP_2\n")
    assert names(CamVid(small)) == ["0016E5_1", "0001TP_2"]


def test_a_name_without_image(small):
    (small / "train.txt").write_text("0016E5_1\nnowhere\n")
    with pytest.raises(DataError, match=r"names 1 images that are not in .*; the first is nowhere"):
        CamVid(small)


def test_no_sequence_left(small):
    with pytest.raises(DataError, match=r"none of the 4 images .* its sequences are 0001TP, 0006R0, 0016E5"):
        CamVid(small, sequences=("0099",))


def test_a_bare_text_is_not_a_list_of_prefixes(small):
    with pytest.raises(InvalidInput, match=r"such as \('0006R0',\); got the text '0006R0'"):
        CamVid(small, sequences="0006R0")


def test_label_outside_the_classes(small):
    write_image(small / "labels/train/0001TP_1.png", np.full((4, 6), 11, np.uint8))
    with pytest.raises(
        DataError, match=r"0001TP_1.png holds the label values \[11\]; known here are 0-10, 255"
    ):
        CamVid(small)[0]


def test_missing_split(small):
    with pytest.raises(DataError, match="the images of CamVid's split 'test'"):
        CamVid(small, "test")


def test_real_camvid(real_data):
    root = real_data("camvid")
    train, val = CamVid(root), CamVid(root, "val")
    assert (len(train), len(val), len(CamVid(root, "train+val"))) == (367, 101, 468)
    assert len(CamVid(root, sequences=("0006R0",))) == 101
    assert len(CamVid(root, exclude_sequences=("0006R0",))) == 266
    image, target = val[0]
    assert tuple(image.shape) == (3, 360, 480)
    assert set(target.unique().tolist()) <= {*range(11), 255}
    image, target = CamVid(root, "val", size=(180, 241), augment=True)[3]
    assert tuple(image.shape) == (3, 180, 241)
    assert target.dtype == torch.int64
