import subprocess
import sys

import numpy as np
import pytest
import torch

from hwnas.core.guidance import SoftTargets
from hwnas.errors import InvalidInput
from hwnas.segmentation import JointAugmentation, SegmentationDataset
from hwnas.segmentation.dataset import WithUnlabelled, distinct_colours


class Squares(SegmentationDataset):
    """A grey square on black, counted each time it is read."""

    classes = ("black", "grey")
    palette = ((0, 0, 0), (128, 128, 128))

    def __init__(self, length=3, **options):
        self.length = length
        self.reads = 0
        super().__init__(**options)

    def __len__(self):
        return self.length

    def name(self, index):
        return f"square_{index}"

    def read(self, index):
        self.reads += 1
        label = np.zeros((9, 13), np.uint8)
        label[2:6, 3 : 5 + index] = 1
        label[0, 0] = 255
        return np.repeat((label == 1)[..., None] * np.uint8(128), 3, axis=2), label


def test_item_is_normalised_image_and_int64_target():
    image, target = Squares()[1]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, 9, 13))
    assert (target.dtype, tuple(target.shape)) == (torch.int64, (9, 13))
    assert target.unique().tolist() == [0, 1, 255]
    # Red of a grey pixel: (128/255 - 0.485) / 0.229
    assert image[0, 3, 3].item() == pytest.approx((128 / 255 - 0.485) / 0.229)


def test_denormalise_undoes_normalise():
    pixels = torch.rand(3, 4, 5)
    assert torch.allclose(Squares().denormalise(Squares().normalise(pixels)), pixels, atol=1e-6)


def test_size_resizes_both():
    image, target = Squares(size=(17, 21))[0]
    assert tuple(image.shape) == (3, 17, 21)
    assert tuple(target.shape) == (17, 21)
    assert set(target.unique().tolist()) <= {0, 1, 255}


def test_padding_is_exactly_zero_once_normalised():
    image, target = Squares(augment=JointAugmentation(scale=(0.5, 0.5)))[0]
    assert (
        image[:, target == 255].abs().max() <= (128 / 255) / 0.2
    )  # the one real void pixel may be among them
    corner_is_padding = target[:, 0].eq(255).all() or target[:, -1].eq(255).all()
    assert corner_is_padding
    edge = 0 if target[:, 0].eq(255).all() else -1
    assert image[:, :, edge].abs().max() == 0


def test_cache_reads_each_image_once_and_changes_nothing():
    plain, cached = Squares(size=(8, 8)), Squares(size=(8, 8), cache=True)
    for _ in range(3):
        for index in range(3):
            assert torch.equal(plain[index][0], cached[index][0])
            assert torch.equal(plain[index][1], cached[index][1])
    assert cached.reads == 3


def test_augmenting_leaves_the_cache_alone():
    dataset = Squares(cache=True, augment=True)
    before = [(image.clone(), label.clone()) for image, label in dataset._cached]
    for index in range(3):
        dataset[index]
    for (image, label), (old_image, old_label) in zip(dataset._cached, before, strict=True):
        assert torch.equal(image, old_image)
        assert torch.equal(label, old_label)


def test_a_seed_decides_the_augmentation():
    dataset = Squares(augment=True)
    first = dataset[1, 7]
    torch.manual_seed(0)
    again = dataset[1, 7]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(dataset[1, 8][0], first[0])


def test_indices_end_where_the_data_ends():
    dataset = Squares()
    assert len(list(dataset)) == 3
    assert torch.equal(dataset[-1][0], dataset[2][0])
    with pytest.raises(IndexError, match="index 3 in a data set of 3 images"):
        dataset[3]


def test_images_without_labels_are_drawn_from_all_of_the_others():
    labelled, others = Squares(2), (Squares(1, size=(18, 26)), Squares(3, size=(9, 13)))
    joined = WithUnlabelled(labelled, others, 5)
    assert len(joined) == 7
    for index in (0, 1):
        for found, own in zip(joined[index, 4], labelled[index, 4], strict=True):
            assert torch.equal(found, own)
    drawn = [joined[2 + seed % 5, seed] for seed in range(40)]
    assert all(bool((target == 255).all()) for _, target in drawn)
    assert all(image.shape[1:] == target.shape for image, target in drawn)
    # Each of the four comes, about as often as the others; which one, the seed alone decides.
    shown = [int(image.shape[1]) * 100 + int((image > 0).sum()) for image, _ in drawn]
    counts = {number: shown.count(number) for number in shown}
    assert len(counts) == 4 and min(counts.values()) >= 4
    assert torch.equal(joined[2, 8][0], joined[6, 8][0])


def test_a_teachers_answers_outlast_the_labels():
    class Answered(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            image, label = torch.zeros(3, 4, 4), torch.zeros(4, 4).long()
            return image, SoftTargets(label, torch.full((2, 1, 1), 1.0 + index[0]), torch.ones(1, 1).bool())

    joined = WithUnlabelled(Answered(), (Answered(),), 3)
    assert bool((joined[1, 0][1].targets == 0).all())
    for seed in range(3):
        _, taught = joined[2, seed]
        assert bool((taught.targets == 255).all())
        assert float(taught.teacher_logits[0]) in (1.0, 2.0) and bool(taught.is_known)


def test_size_must_be_positive():
    with pytest.raises(InvalidInput, match=r"size is \(height, width\), both at least 1; got \(0, 4\)"):
        Squares(size=(0, 4))


def test_distinct_colours_are_distinct():
    assert len(set(distinct_colours(60))) == 60


def test_import_is_light():
    code = (
        "import sys, hwnas.segmentation as s; "
        "print([m for m in ('kornia', 'torchmetrics', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("cache", [True, False])
def test_images_on_a_device_are_the_same_and_read_once(cache):
    augment = JointAugmentation(crop=(8, 8), rare=(1,), rare_share=0.5)
    plain, moved = Squares(augment=augment), Squares(augment=augment, cache=cache)
    assert moved.to("cpu") is moved
    for index in (0, 2):
        for own, other in zip(plain[index, 5], moved[index, 5], strict=True):
            assert torch.equal(own, other)
    assert moved.reads == 3


def test_what_is_on_a_device_stays_there():
    """On torch's device without memory, where whatever mixes devices fails as it would on a GPU."""
    for augment in (False, JointAugmentation(crop=(20, 8)), JointAugmentation(crop=(8, 20), scale=(2, 2))):
        image, target = Squares(augment=augment).to("meta")[1, 0]
        assert image.device.type == target.device.type == "meta"
        assert (image.dtype, target.dtype) == (torch.float32, torch.int64)
        assert tuple(image.shape) == (3, *target.shape)
        assert tuple(target.shape) == (augment.crop if augment else (9, 13))
