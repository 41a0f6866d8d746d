import numpy as np
import pytest
from PIL import Image

from hwnas.errors import DataError
from hwnas.segmentation import Cityscapes

from .conftest import write_image


def write_city(root, city, stem, label, kind):
    write_image(
        root / f"leftImg8bit/train/{city}/{stem}_leftImg8bit.png", np.zeros((*label.shape, 3), np.uint8)
    )
    write_image(root / f"gtFine/train/{city}/{stem}_gtFine_{kind}.png", label)


def test_label_ids_become_train_ids(tmp_path):
    # Ids: ego vehicle 1, road 7, parking 9, sky 23, caravan 29, bicycle 33, licence plate -1 = 255.
    write_city(tmp_path, "ulm", "ulm_1", np.array([[1, 7, 9, 23, 29, 33, 255]], np.uint8), "labelIds")
    dataset = Cityscapes(tmp_path)
    assert dataset[0][1].tolist() == [[255, 0, 255, 10, 255, 18, 255]]
    assert dataset.name(0) == "ulm_1"
    assert len(dataset.classes) == len(dataset.palette) == 19


def test_train_ids_are_preferred(tmp_path):
    write_city(tmp_path, "ulm", "ulm_1", np.array([[7, 23]], np.uint8), "labelIds")
    write_city(tmp_path, "ulm", "ulm_1", np.array([[0, 10]], np.uint8), "labelTrainIds")
    assert Cityscapes(tmp_path)[0][1].tolist() == [[0, 10]]


def test_train_ids_for_some_only(tmp_path):
    write_city(tmp_path, "ulm", "ulm_1", np.array([[0, 10]], np.uint8), "labelTrainIds")
    write_city(tmp_path, "bonn", "bonn_1", np.array([[7, 23]], np.uint8), "labelIds")
    with pytest.raises(
        DataError, match=r"1 of 2 images have no label file; .*bonn_1_gtFine_labelTrainIds.png"
    ):
        Cityscapes(tmp_path)


def test_unknown_label_id(tmp_path):
    write_city(tmp_path, "ulm", "ulm_1", np.array([[7, 60]], np.uint8), "labelIds")
    with pytest.raises(DataError, match=r"holds the label values \[60\]; known here are 0-33, 255"):
        Cityscapes(tmp_path)[0]


def test_empty_split(tmp_path):
    (tmp_path / "leftImg8bit/val").mkdir(parents=True)
    (tmp_path / "gtFine/val").mkdir(parents=True)
    with pytest.raises(DataError, match="the split 'val' is empty"):
        Cityscapes(tmp_path, "val")


def test_missing_labels(tmp_path):
    (tmp_path / "leftImg8bit/train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"gtFine/train \(the labels of split 'train'\)"):
        Cityscapes(tmp_path)


def test_sample_in_cityscapes_layout(real_data):
    root = real_data("cityscapes_sample")
    train, val = Cityscapes(root), Cityscapes(root, "val")
    assert (len(train), len(val)) == (60, 20)
    image, target = train[0]
    assert image.shape[1:] == target.shape
    assert set(target.unique().tolist()) <= {*range(19), 255}


def test_both_kinds_of_label_agree_on_a_real_frame(real_data, tmp_path):
    folder = real_data("cityscapes_real_one") / "gtFine"
    for kind in ("labelIds", "labelTrainIds"):
        label = np.asarray(Image.open(next(folder.glob(f"*_{kind}.png"))))
        write_city(tmp_path / kind, "frankfurt", "frankfurt_1", label, kind)
    by_ids, by_train_ids = (
        Cityscapes(tmp_path / "labelIds")[0][1],
        Cityscapes(tmp_path / "labelTrainIds")[0][1],
    )
    # The two files were shrunk separately, so single pixels at borders differ.
    assert (by_ids == by_train_ids).float().mean() > 0.997
    assert len(by_ids.unique()) > 5
