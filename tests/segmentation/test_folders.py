import json

import numpy as np
import pytest
from PIL import Image

from hwnas.errors import DataError
from hwnas.segmentation import ImageLabelFolders

from .conftest import write_image


def test_reads_images_and_labels(folders):
    dataset = ImageLabelFolders(folders)
    assert len(dataset) == 2
    assert [dataset.name(i) for i in range(2)] == ["a", "b"]
    assert dataset.classes == ("road", "sky", "car")
    assert len(set(dataset.palette)) == 3
    image, target = dataset[0]
    assert tuple(image.shape) == (3, 5, 7)
    assert target[0, :2].tolist() == [255, 255]  # 255, and the 9 that classes.json calls void
    assert int(target.flatten()[2:].max()) <= 2


def test_palette_png_and_grey_image(folders):
    label = Image.new("P", (7, 5), 1)
    label.putpalette([0, 0, 0, 200, 0, 0])
    label.save(folders / "labels/train/a.png")
    write_image(folders / "images/train/a.png", np.full((5, 7), 90, np.uint8))
    image, target = ImageLabelFolders(folders)[0]
    assert tuple(image.shape) == (3, 5, 7)
    assert target.unique().tolist() == [1]


def test_splits_can_be_joined(folders):
    for kind in ("images", "labels"):
        write_image(folders / kind / "val/c.png", np.zeros((5, 7), np.uint8))
    assert len(ImageLabelFolders(folders, "train+val")) == 3


def fails(folders, split="train"):
    with pytest.raises(DataError) as caught:
        dataset = ImageLabelFolders(folders, split)
        for index in range(len(dataset)):
            dataset[index]
    return str(caught.value)


def test_missing_folder(folders):
    message = fails(folders, "test")
    assert f"no folder {folders / 'images/test'} (the images of split 'test')" in message
    assert "holds train" in message


def test_image_without_label(folders):
    (folders / "labels/train/b.png").unlink()
    message = fails(folders)
    assert "1 of 2 images have no label file" in message
    assert "labels/train/b.png" in message


def test_sizes_that_differ(folders):
    write_image(folders / "labels/train/b.png", np.zeros((6, 7), np.uint8))
    message = fails(folders)
    assert "b.png is 7x5 (width x height) but its label" in message
    assert "is 7x6; they must be of one size" in message


def test_label_values_outside_the_classes(folders):
    label = np.zeros((5, 7), np.uint8)
    label[1, 1:3] = (17, 3)
    write_image(folders / "labels/train/b.png", label)
    message = fails(folders)
    assert "labels/train/b.png holds the label values [3, 17]; known here are 0-2, 9, 255" in message


def test_empty_split(folders):
    for kind in ("images", "labels"):
        (folders / kind / "val").mkdir()
    assert f"the split 'val' is empty: no images found under {folders}" in fails(folders, "val")


def test_label_in_colours(folders):
    write_image(folders / "labels/train/a.png", np.zeros((5, 7, 3), np.uint8))
    message = fails(folders)
    assert (
        "should be an 8-bit image with one channel (or a palette); it is uint8 with shape (5, 7, 3)"
        in message
    )


def test_broken_image(folders):
    (folders / "images/train/a.png").write_bytes(b"not an image")
    assert "a.png cannot be read as an image" in fails(folders)


def test_truncated_image(folders):
    path = folders / "images/train/a.png"
    path.write_bytes(path.read_bytes()[:60])
    assert "a.png cannot be read as an image" in fails(folders)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        ("{", "should hold"),
        ({"names": []}, "should hold"),
        ({"names": ["a", "b", "c"], "palette": [[0, 0, 0]]}, "has 3 names but 1 palette colours"),
        ({"names": ["a", "b", "c"], "ignore_index": 1}, "ignore_index 1 is also the value of class 'b'"),
    ],
)
def test_wrong_class_list(folders, content, message):
    path = folders / "classes.json"
    path.unlink()
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert message in fails(folders)
