import math
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from hwnas.core.guidance import SoftTargets
from hwnas.recipes.soft_targets import SoftTargetConfig, WithSoftTargets
from hwnas.segmentation import JointAugmentation
from hwnas.segmentation.dataset import SegmentationDataset

PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


class Ramps(SegmentationDataset):
    """Red rises from left to right, green from top to bottom."""

    classes = ("left", "right")
    palette = ((0, 0, 0), (255, 255, 255))

    def __len__(self):
        return 2

    def name(self, index):
        return str(index)

    def read(self, index):
        down, across = np.mgrid[0:32, 0:48].astype(np.uint8)
        return np.stack((4 * across, 4 * down, np.zeros_like(down)), 2), (across >= 24).astype(np.uint8)


class Redness(nn.Module):
    """Says "right" with the logit of red less 0.37 (the middle), times ten; counts how often it is asked."""

    def __init__(self, tilt=0.0):
        super().__init__()
        self.asked = []
        self.tilt = tilt

    def forward(self, x):
        self.asked.append(tuple(x.shape[2:]))
        red = x[:, :1] * 0.229 + 0.485
        # A teacher that is not the same for a mirror image.
        tilt = self.tilt * torch.linspace(-1, 1, x.shape[3]).expand_as(red)
        logit = 10 * (red - 0.37) + tilt
        return torch.cat((-logit / 2, logit / 2), 1)


ONE_VIEW = SoftTargetConfig(mirrored=False)


def shown_to(how=ONE_VIEW, teacher=None, options=MappingProxyType({}), **augmentation):
    augment = JointAugmentation(**augmentation, **PLAIN) if augmentation else False
    return WithSoftTargets(
        Ramps(augment=augment, cache=True), teacher or Redness(), how, device=torch.device("cpu"), **options
    )


def test_a_teacher_is_asked_once_for_each_image():
    teacher = Redness()
    data = shown_to(SoftTargetConfig(scales=(0.5, 1.0), mirrored=True), teacher)
    assert len(data) == 2 and teacher.asked == []
    for seed in range(3):
        data[1, seed]
    assert teacher.asked == [(16, 24), (16, 24), (32, 48), (32, 48)]
    data[0, 0]
    assert len(teacher.asked) == 8
    assert data.whole(0).dtype == torch.float16 and data.whole(0).shape == (2, 8, 12)


def test_an_answer_is_the_mean_of_all_views():
    """A tilt that the mirror image takes back is gone, to the first order, but for probabilities' bend."""
    views = []
    for mirrored in (False, True):
        shown = shown_to(SoftTargetConfig(mirrored=mirrored), Redness(tilt=0.3)).whole(0).float().exp()
        torch.testing.assert_close(shown.sum(0), torch.ones(8, 12), atol=2e-3, rtol=0)
        views.append(shown)
    level = shown_to().whole(0).float().exp()
    tilted, mean = ((view - level).abs().max() for view in views)
    assert mean < 0.3 * tilted and tilted > 0.01
    # By hand, in the middle of a block of four: red is 4 · 1.5 / 255, and the logit 10 · (red - 0.37).
    red = 4 * 1.5 / 255
    right = 1 / (1 + math.exp(-10 * (red - 0.37)))
    torch.testing.assert_close(float(level[1, 0, 0]), right, atol=2e-3, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_answers_are_cropped_with_their_image(flip):
    """What the kept answers say of a crop is what the teacher says when it is shown that crop."""
    data = shown_to(crop=(24, 40), scale=(1.5, 2.0), flip=flip)
    teacher = Redness()
    for seed in range(10):
        image, taught = data[0, seed]
        assert isinstance(taught, SoftTargets)
        assert taught.teacher_logits.shape == (2, 6, 10) and taught.is_known.shape == (6, 10)
        assert bool(taught.is_known.all())
        shown = nn.functional.avg_pool2d(teacher(image[None]).softmax(1), 4)[0]
        # Beyond the middle of an answer's outermost pixel nothing is known between two values.
        torch.testing.assert_close(taught.teacher_logits.exp(), shown, atol=0.12, rtol=0)
        assert (taught.teacher_logits.exp() - shown).abs().mean() < 0.02
        assert torch.equal(image, data.dataset[0, seed][0])
        assert torch.equal(taught.targets, data.dataset[0, seed][1])


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_padding_has_no_answer(flip):
    """An answer is known where its middle is; of four pixels that is the third, mirrored the second."""
    data = shown_to(crop=(64, 96), scale=(0.5, 0.5), flip=flip)
    for seed in range(5):
        _, taught = data[0, seed]
        is_shown = nn.functional.max_pool2d((taught.targets != 255).float()[None], 4)[0].bool()
        assert 0 < int(taught.is_known.sum()) < taught.is_known.numel() / 3
        assert not bool((taught.is_known & ~is_shown).any())
        assert torch.equal(taught.is_known, taught.targets[2::4, 1 if flip else 2 :: 4] != 255)


def test_batches_hold_answers():
    data = shown_to(crop=(24, 40), scale=(1, 2))
    images, taught = default_collate([data[0, 1], data[1, 2]])
    assert images.shape == (2, 3, 24, 40)
    assert isinstance(taught, SoftTargets)
    assert [part.shape for part in taught] == [(2, 24, 40), (2, 2, 6, 10), (2, 6, 10)]


def test_images_as_they_are_have_their_answers():
    data = shown_to()
    _, taught = data[0, 0]
    torch.testing.assert_close(taught.teacher_logits, data.whole(0).float())
    assert bool(taught.is_known.all())


def test_what_is_most_unlikely_stays_finite():
    class Sure(Redness):
        def forward(self, x):
            return 1000 * super().forward(x)

    answer = shown_to(teacher=Sure()).whole(0)
    assert bool(torch.isfinite(answer).all())
    assert float(answer.min()) == pytest.approx(math.log(1e-20), abs=0.05)


def test_precision_and_memory_order_are_those_of_the_training():
    torch.manual_seed(0)
    teacher = nn.Conv2d(3, 2, 3, padding=1)
    seen = []
    teacher.register_forward_hook(
        lambda module, inputs, output: seen.append(
            (output.dtype, inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    )
    plain = shown_to(teacher=teacher).whole(0)
    fast = shown_to(teacher=teacher, options={"precision": "bf16", "channels_last": True}).whole(0)
    assert seen == [(torch.float32, False), (torch.bfloat16, True)]
    torch.testing.assert_close(plain.exp(), fast.exp(), atol=0.02, rtol=0)


def test_a_temperature_softens_what_is_kept_as_it_softens_logits():
    """At T = 4 a class thirty logits away still has e^(-30/4) of the likeliest one's probability."""
    kept = shown_to(teacher=Apart()).whole(0).float()
    torch.testing.assert_close((kept / 4).softmax(0)[:, 0, 0], torch.tensor([0.0, -30 / 4]).softmax(0))


class Apart(nn.Module):
    def forward(self, x):
        return torch.tensor([0.0, -30.0]).view(1, 2, 1, 1).expand(len(x), 2, *x.shape[2:])


def test_sizes_that_four_does_not_divide_are_rounded_up():
    data = shown_to(crop=(30, 45), scale=(1, 2))
    _, taught = data[0, 3]
    assert taught.teacher_logits.shape == (2, 8, 12) and taught.is_known.shape == (8, 12)
