import subprocess
import sys

import numpy as np
import pytest
import torch

from hwnas.errors import InvalidInput
from hwnas.segmentation import SyntheticScenes


def test_order_of_access_does_not_matter():
    forward, backward = SyntheticScenes(length=6), SyntheticScenes(length=6)
    ahead = [forward.read(index) for index in range(6)]
    back = [backward.read(index) for index in reversed(range(6))][::-1]
    for (a, b), (c, d) in zip(ahead, back, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)


def test_another_process_draws_the_same():
    code = (
        "from zlib import crc32; from hwnas.segmentation import SyntheticScenes; "
        "i, l = SyntheticScenes('val', seed=3).read(5); print(crc32(i.tobytes()), crc32(l.tobytes()))"
    )
    from zlib import crc32

    image, label = SyntheticScenes("val", seed=3).read(5)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(crc32(image.tobytes())), str(crc32(label.tobytes()))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SyntheticScenes("train"), SyntheticScenes("val")),
        (SyntheticScenes(seed=0), SyntheticScenes(seed=1)),
    ],
)
def test_splits_and_seeds_differ(one, other):
    assert not np.array_equal(one.read(0)[0], other.read(0)[0])


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (128, 256), (97, 65), (64, 301)])
def test_any_size_goes(size):
    dataset = SyntheticScenes(size=size, length=12)
    for index in range(12):
        image, label = dataset.read(index)
        assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
        assert (label.shape, label.dtype) == (size, np.uint8)
        assert set(np.unique(label)) <= {*range(8), 255}


def test_scenes_look_like_streets():
    dataset = SyntheticScenes(length=40)
    labels = np.stack([dataset.read(index)[1] for index in range(40)])
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    # Shares of real streets, widely: CamVid has road 32 %, building 23, sky 17, car 6, pole 1, void 4.
    assert 0.2 < share[0] < 0.4
    assert 0.15 < share[2] < 0.4
    assert 0.05 < share[3] < 0.25
    assert (share[:8] > 0.003).all()
    assert 0.02 < share[255] < 0.07
    # Sky is above, road below.
    assert (labels[:, 100:] == 3).sum() == 0
    assert (labels[:, :40] == 0).sum() == 0


def test_things_shrink_towards_the_horizon():
    # The lower the foot of a person, the nearer: the tallest columns of label "person" stand lowest.
    dataset = SyntheticScenes(length=60)
    low, high = [], []
    for index in range(60):
        label = dataset.read(index)[1]
        for column in (label == 7).T:
            rows = np.flatnonzero(column)
            if rows.size and rows[-1] < 120:
                (low if rows[-1] > 85 else high).append(rows.size)
    assert np.mean(low) > 2 * np.mean(high)


def test_colour_alone_does_not_tell():
    # The best guess from colour alone, a table learnt on these very pixels, leaves much to learn.
    dataset = SyntheticScenes(length=40)
    pairs = [dataset.read(index) for index in range(40)]
    colours = np.concatenate([(image // 32).reshape(-1, 3) @ np.array([64, 8, 1]) for image, _ in pairs])
    labels = np.concatenate([label.ravel() for _, label in pairs])
    known = labels != 255
    table = np.zeros((512, 8))
    np.add.at(table, (colours[known], labels[known]), 1)
    accuracy = (table.argmax(1)[colours[known]] == labels[known]).mean()
    assert 0.3 < accuracy < 0.75


def test_items_are_ready_to_train_on():
    image, target = SyntheticScenes(augment=True, size=(64, 96), cache=True, length=2)[0]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, 64, 96))
    assert (target.dtype, tuple(target.shape)) == (torch.int64, (64, 96))
    assert bool(image.isfinite().all())


def test_lengths_and_names():
    assert len(SyntheticScenes()) == 400
    assert len(SyntheticScenes("val")) == 100
    assert SyntheticScenes("val").name(3) == "val_00003"
    assert len(SyntheticScenes.classes) == len(SyntheticScenes.palette) == SyntheticScenes().num_classes == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (8, 64)}, r"at least 16 pixels high and wide; got size=\(8, 64\)"),
        ({"length": 0}, "length must be at least 1; got 0"),
        ({"seed": -1}, "seed must not be negative; got -1"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        SyntheticScenes(**arguments)


def test_an_unknown_split_and_a_length_that_is_no_number_are_refused() -> None:
    with pytest.raises(InvalidInput, match='splits train, val and test; got "zzz"'):
        SyntheticScenes("zzz")
    with pytest.raises(InvalidInput, match="length must be at least 1; got 'abc'"):
        SyntheticScenes(length="abc")  # type: ignore[arg-type]
