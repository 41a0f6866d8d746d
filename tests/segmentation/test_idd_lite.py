import numpy as np
import pytest

from hwnas.errors import DataError
from hwnas.segmentation import IddLite

from .conftest import write_image


def test_pairs_by_sequence(tmp_path):
    for sequence in ("0", "7"):
        write_image(tmp_path / f"leftImg8bit/train/{sequence}/01_image.jpg", np.zeros((4, 6, 3), np.uint8))
        write_image(tmp_path / f"gtFine/train/{sequence}/01_label.png", np.full((4, 6), 6, np.uint8))
    dataset = IddLite(tmp_path)
    assert [dataset.name(index) for index in range(2)] == ["0_01", "7_01"]
    assert dataset[1][1].unique().tolist() == [6]
    with pytest.raises(DataError, match="the images of split 'val'"):
        IddLite(tmp_path, "val")


def test_real_idd_lite(real_data):
    dataset = IddLite(real_data("idd_lite"), "val", size=(128, 224))
    assert len(dataset) == 204
    image, target = dataset[200]
    assert tuple(image.shape) == (3, 128, 224)
    assert set(target.unique().tolist()) <= {*range(7), 255}
