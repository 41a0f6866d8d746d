import json
import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest

from hwnas.errors import DataError, InvalidInput
from hwnas.segmentation import (
    ImageLabelFolders,
    Labelling,
    SyntheticScenes,
    known_datasets,
    open_dataset,
    registry,
)

from .conftest import write_image


class Mine(SyntheticScenes):
    """Stands for a data set of somebody else's package."""


def test_built_in_names():
    assert {"synthetic", "camvid", "cityscapes", "folders", "idd_lite"} <= set(known_datasets())


def test_names_point_to_what_is_there():
    for text in known_datasets().values():
        module, _, name = text.partition(":")
        assert registry._find_class(text, module, name, {}).__name__ == name


def test_synthetic_with_options():
    dataset = open_dataset("synthetic", "val", size=(32, 48), length=3, augment=True)
    assert type(dataset) is SyntheticScenes
    assert (len(dataset), dataset.name(0)) == (3, "val_00000")
    assert dataset.augment is not None


def test_folders_with_a_folder(folders):
    dataset = open_dataset(f"folders:{folders}", "train", size=(8, 8))
    assert type(dataset) is ImageLabelFolders
    assert tuple(dataset[0][0].shape) == (3, 8, 8)


def test_camvid(real_data):
    assert len(open_dataset(f"camvid:{real_data('camvid')}", "val")) == 101


def test_a_class_by_its_place(folders):
    assert type(open_dataset(f"{__name__}:Mine", "val", length=2)) is Mine
    text = f"hwnas.segmentation.folders:ImageLabelFolders:{folders}"
    assert len(open_dataset(text)) == 2


def test_a_class_from_an_entry_point(monkeypatch):
    point = EntryPoint("mine", f"{__name__}:Mine", "hwnas.datasets")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "hwnas.datasets" else [])
    assert type(open_dataset("mine", "val", length=2)) is Mine


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cityscape:/data", '"cityscape" (did you mean cityscapes?)'),
        ("nothing", '"nothing"'),
        ("no.such.module:Class", '"no.such.module:Class"'),
        ("", '""'),
        (":x", '""'),
        ("a b:C", '"a b"'),
    ],
)
def test_unknown_names_list_the_known_ones(text, named):
    with pytest.raises(InvalidInput) as caught:
        open_dataset(text, "train")
    assert f"no data set is called {named}; known are camvid, cityscapes, folders" in str(caught.value)


def test_not_a_data_set():
    with pytest.raises(InvalidInput, match="pathlib:Path is not a SegmentationDataset; known are"):
        open_dataset("pathlib:Path")


def test_a_folder_is_wanted():
    with pytest.raises(InvalidInput, match="camvid needs a folder: write camvid:DIR"):
        open_dataset("camvid", "train")


def test_no_folder_is_wanted():
    with pytest.raises(InvalidInput, match="synthetic takes no folder; got '/data'"):
        open_dataset("synthetic:/data", "train")


def test_unknown_option(folders):
    with pytest.raises(InvalidInput, match=r"has no option colour; it takes size, augment, cache"):
        open_dataset(f"folders:{folders}", "train", colour=True)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        open_dataset(f"cityscapes:{tmp_path / 'nowhere'}", "train")


def test_a_module_that_fails_to_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "hasty_module.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        open_dataset("hasty_module:Scenes")
    assert "hasty_module" not in sys.modules


def test_labels_that_mean_nothing_are_refused(tmp_path):
    class OneColourShort(SyntheticScenes):
        palette = SyntheticScenes.palette[1:]

    class OneClass(SyntheticScenes):
        classes, palette = ("road",), ((1, 2, 3),)

    for kind, message in ((OneColourShort, "8 classes, but 7 colours"), (OneClass, "classes: .* at least 2")):
        with pytest.raises(
            DataError, match=rf"{kind.__name__} does not say what its labels mean:\n.*{message}"
        ):
            Labelling.of(kind)
    assert Labelling.of(SyntheticScenes).classes == SyntheticScenes.classes
    with pytest.raises(DataError, match="palette"):
        Labelling.of(
            SimpleNamespace(classes=("road", "sky"), mean=(0, 0, 0), std=(1, 1, 1), ignore_index=255)
        )
    for part in ("images", "labels"):
        write_image(
            tmp_path / part / "train" / "a.png", np.zeros((4, 4, 3)[: 3 if part == "images" else 2], np.uint8)
        )
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["road"]}))
    with pytest.raises(DataError, match="ImageLabelFolders does not say"):
        registry.labelling(f"folders:{tmp_path}")
