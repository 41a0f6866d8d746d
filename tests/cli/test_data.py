import pytest
from PIL import Image

from hwnas.cli.data import DataChoice, class_count, evenly_spread
from hwnas.errors import DataError, InvalidInput


@pytest.mark.parametrize(
    ("count", "length", "positions"),
    [
        (1, 7, [0]),
        (2, 7, [0, 6]),
        (4, 7, [0, 2, 4, 6]),
        (9, 3, [0, 1, 2]),
        (3, 100, [0, 50, 99]),  # 49.5 is rounded to the even one
        (0, 7, []),
        (4, 0, []),
    ],
)
def test_positions_are_evenly_spread(count, length, positions):
    assert evenly_spread(count, length) == positions


def test_images_on_the_device_are_the_same_batches():
    import torch

    size = (16, 32)
    batches = []
    for settings in ({"on_device": False, "cache": False}, {"on_device": True}):
        images = DataChoice.of("synthetic", 2, {"length": 4, **settings})
        torch.manual_seed(0)
        batches.append([*images.training("train", size, "cpu"), *images.evaluation("val", size, "cpu")])
        assert images.description() == DataChoice.of("synthetic", 2, {"length": 4}).description()
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_classes_are_those_of_the_split_that_is_trained_on(tmp_path):
    (tmp_path / "classes.json").write_text('{"names": ["road", "sky", "car"]}')
    for kind in ("images", "labels"):
        (tmp_path / kind / "day").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / kind / "day" / "a.png")
    images = DataChoice.of(f"folders:{tmp_path}", 2, {"train": "day"})
    assert images.class_count() == class_count(images.name, "day") == 3
    with pytest.raises(DataError, match="images/train"):
        class_count(images.name)


def test_who_loads_is_said_once():
    with pytest.raises(InvalidInput, match="on_device leaves nothing for workers to load"):
        DataChoice.of("synthetic", 2, {"on_device": True, "workers": 1})
