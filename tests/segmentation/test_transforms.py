import pytest
import torch
from torch.nn import functional

from hwnas.errors import InvalidInput
from hwnas.segmentation.labels import VOID
from hwnas.segmentation.transforms import (
    JointAugmentation,
    Placement,
    View,
    resize_image,
    resize_label,
    seeded,
)

PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def painted(height=24, width=30):
    """An image whose colour is its label: 20 times the class number."""
    label = torch.arange(height * width).reshape(height, width).div(width * height / 10).to(torch.uint8)
    label[:, width // 2 :] += 1
    return (label * 20)[None].repeat(3, 1, 1), label


def test_identity_changes_nothing():
    image, label = painted()
    pixels, target = JointAugmentation(scale=(1, 1), flip=0, **PLAIN)(image, label)
    assert torch.equal(pixels, image.float() / 255)
    assert torch.equal(target, label)


@pytest.mark.parametrize("size", [(7, 9), (24, 31), (60, 45)])
def test_bytes_are_resized_by_floats_to_one_level(size):
    """What a GPU does, which has no kernel for bytes."""
    image = torch.randint(256, (3, 24, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_floats = functional.interpolate(
        image.float()[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    assert (resize_image(image, size) - by_floats.round()).abs().max() <= 1


def test_flip_mirrors_both():
    image, label = painted()
    pixels, target = JointAugmentation(scale=(1, 1), flip=1, **PLAIN)(image, label)
    assert torch.equal(pixels, image.flip(-1).float() / 255)
    assert torch.equal(target, label.flip(-1))


@pytest.mark.parametrize("crop", [(16, 16), (17, 23), (140, 150), None])
def test_image_and_label_stay_together(crop):
    # Colours tell the labels; only pixels at class borders, blended by the resizing, may differ.
    image, label = painted(192, 240)
    augment = JointAugmentation(crop=crop, **PLAIN)
    for seed in range(30):
        with seeded(seed):
            pixels, target = augment(image, label)
        assert pixels.shape == (3, *(crop or (192, 240)))
        assert target.shape == pixels.shape[1:]
        assert target.dtype == torch.uint8
        is_known = target != VOID
        off = (pixels[0] * 255 - target * 20.0).abs()[is_known]
        assert (off < 0.6).float().mean() > 0.6
        assert off.max() <= 20.6  # blended with a neighbour class at most, never misplaced by more


@pytest.mark.parametrize("coarser", [1, 4])
@pytest.mark.parametrize("crop", [(48, 64), (61, 37), (200, 300), None])
def test_other_maps_are_seen_in_the_same_view(coarser, crop):
    """Row and column themselves, as two maps: of each pixel of the crop they say where it comes from."""
    height, width = 96, 120
    down, across = (torch.arange(n, dtype=torch.uint8) for n in (height, width))
    image = torch.stack(
        (down[:, None].expand(-1, width), across.expand(height, -1), across.expand(height, -1))
    )
    maps = functional.avg_pool2d(image[:2].float(), coarser)
    augment = JointAugmentation(crop=crop, **PLAIN)
    for seed in range(20):
        with seeded(seed):
            pixels, target, view = augment.viewed(image, torch.zeros(height, width, dtype=torch.uint8))
        with seeded(seed):
            plain = augment(image, torch.zeros(height, width, dtype=torch.uint8))
        assert torch.equal(pixels, plain[0]) and torch.equal(target, plain[1])
        seen, is_shown = view.of(maps, tuple(target.shape))
        assert torch.equal(is_shown, target != VOID)
        off = (seen - pixels[:2] * 255).abs()[:, is_shown]
        # Within a map's outermost values nothing is interpolated: up to half of one of its pixels.
        assert off.max() <= coarser / 2 + 0.6
        inner = is_shown & (seen[0] > coarser) & (seen[0] < height - 1 - coarser)
        inner &= (seen[1] > coarser) & (seen[1] < width - 1 - coarser)
        assert (seen - pixels[:2] * 255).abs()[:, inner].mean() < 0.4


def test_a_view_by_hand():
    """The lower right quarter of 4×4, magnified twice in a crop of 4×4, mirrored."""
    rows = Placement(slice(2, 4), slice(0, 4), 4, 4)
    maps = torch.arange(16.0).view(1, 4, 4)
    seen, is_shown = View(rows, rows, is_mirrored=True).of(maps, (2, 2))
    assert torch.equal(seen, torch.tensor([[[11.0, 10.0], [15.0, 14.0]]]))
    assert bool(is_shown.all())
    whole, _ = View.of_all(4, 4).of(maps, (4, 4))
    assert torch.equal(whole, maps)
    # One pixel of padding on the far side: the last of four parts shows nothing.
    shorter = Placement(slice(1, 4), slice(0, 3), 4, 4)
    _, is_shown = View(shorter, Placement(slice(0, 4), slice(0, 4), 4, 4), is_mirrored=False).of(maps, (4, 4))
    assert is_shown.tolist() == [[True] * 4] * 3 + [[False] * 4]


def test_padding_is_mean_and_void():
    image, label = painted()
    mean = (0.1, 0.2, 0.3)
    augment = JointAugmentation(scale=(0.5, 0.5), mean=mean)
    with seeded(3):
        pixels, target = augment(image, label)
    # Half the height and half the width remain: a quarter of the area.
    is_padding = target == VOID
    assert int(is_padding.sum()) == 24 * 30 * 3 // 4
    assert torch.equal(pixels[:, is_padding], torch.tensor(mean)[:, None].expand(3, int(is_padding.sum())))


def test_magnified_crop_has_no_padding():
    image, label = painted()
    for seed in range(20):
        with seeded(seed):
            _, target = JointAugmentation(scale=(1.0, 2.0))(image, label)
        assert int((target == VOID).sum()) == 0


def test_crops_reach_every_corner():
    label = torch.arange(36).reshape(6, 6).to(torch.uint8)
    augment = JointAugmentation(crop=(3, 3), scale=(1, 1), flip=0, **PLAIN)
    seen = {int(augment(label[None].repeat(3, 1, 1), label)[1][0, 0]) for _ in range(300)}
    assert seen == {row * 6 + column for row in range(4) for column in range(4)}


def spotted(height=40, width=60):
    """Class 0 with single pixels of the classes 3 (two of them, far apart) and 5."""
    label = torch.zeros(height, width, dtype=torch.uint8)
    label[2, 3], label[-1, -1], label[height // 2, 50] = 3, 3, 5
    return (label * 20)[None].repeat(3, 1, 1), label


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.0, 2.0), (0.5, 1.0), (3.0, 3.0)])
def test_a_crop_over_a_rare_class_shows_it(scale):
    image, label = spotted()
    if scale[0] < 1:  # a single pixel may be dropped when a picture shrinks
        label = functional.max_pool2d(label[None].float(), 7, 1, 3)[0].byte()
    augment = JointAugmentation(crop=(10, 16), scale=scale, rare=(3, 5), rare_share=1.0, **PLAIN)
    for seed in range(60):
        with seeded(seed):
            _, target = augment(image, label)
        assert bool(((target == 3) | (target == 5)).any()), seed


def test_classes_that_are_there_are_shown_alike_however_many_pixels_they_have():
    image, label = spotted()
    label[30:, :20] = 3
    # Class 7 is not there: its share goes to the others.
    augment = JointAugmentation(crop=(3, 3), scale=(1, 1), flip=0, rare=(3, 5, 7), rare_share=1.0, **PLAIN)
    with seeded(0):
        shown = [5 in augment(image, label)[1] for _ in range(400)]
    # Binomial, p = 1/2: four standard deviations are 10 % of 400.
    assert abs(sum(shown) / 400 - 0.5) < 0.1


def test_crops_over_a_pixel_are_drawn_from_all_that_show_it():
    label = torch.zeros(6, 6, dtype=torch.uint8)
    label[3, 1] = 1
    places = torch.arange(36).reshape(6, 6).byte()
    augment = JointAugmentation(crop=(3, 3), scale=(1, 1), flip=0, rare=(1,), rare_share=1.0, **PLAIN)
    with seeded(0):
        seen = {int(augment(places[None].repeat(3, 1, 1), label)[0][0, 0, 0] * 255 + 0.5) for _ in range(200)}
    # The pixel is at row 3 and column 1: corners at rows 1 to 3 and columns 0 and 1, the last row being 3.
    assert seen == {row * 6 + column for row in (1, 2, 3) for column in (0, 1)}


def test_rare_share_is_the_share_of_crops():
    image, label = spotted(400, 600)
    augment = JointAugmentation(crop=(8, 8), scale=(1, 1), rare=(3,), rare_share=0.3, **PLAIN)
    with seeded(1):
        shown = sum(3 in augment(image, label)[1] for _ in range(400))
    assert abs(shown / 400 - 0.3) < 0.1  # other crops show one with a probability of 64 · 2 / 240,000


@pytest.mark.parametrize("unused", [{"rare": (3,)}, {"rare": (), "rare_share": 0.0}])
def test_without_a_share_nothing_is_drawn_and_nothing_changes(unused):
    image, label = spotted()
    ends = []
    for settings in ({}, unused):
        with seeded(5):
            pixels, target = JointAugmentation(crop=(10, 16), **settings)(image, label)
            ends.append((pixels, target, torch.get_rng_state()))
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_picture_without_a_rare_class_is_cropped_anywhere():
    label = torch.arange(36).reshape(6, 6).to(torch.uint8)
    augment = JointAugmentation(crop=(3, 3), scale=(1, 1), flip=0, rare=(99,), rare_share=1.0, **PLAIN)
    seen = {int(augment(label[None].repeat(3, 1, 1), label)[1][0, 0]) for _ in range(300)}
    assert seen == {row * 6 + column for row in range(4) for column in range(4)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 3), (33, 47)])
@pytest.mark.parametrize("crop", [(1, 1), (5, 64), (31, 2)])
def test_any_size_goes(shape, crop):
    label = torch.zeros(shape, dtype=torch.uint8)
    image = torch.full((3, *shape), 128, dtype=torch.uint8)
    augment = JointAugmentation(crop=crop, scale=(0.05, 8.0))
    for seed in range(25):
        with seeded(seed):
            pixels, target = augment(image, label)
        assert pixels.shape == (3, *crop)
        assert int((target == 0).sum()) >= 1


def test_colour_leaves_labels_and_range_alone():
    image, label = painted()
    changed = 0
    for seed in range(5):
        with seeded(seed):
            pixels, target = JointAugmentation(scale=(1, 1), flip=0, hue=0.05)(image, label)
        assert torch.equal(target, label)
        assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
        changed += not torch.allclose(pixels, image.float() / 255, atol=0.01)
    assert changed == 5


def test_torch_state_decides_everything():
    image, label = painted()
    augment = JointAugmentation(hue=0.05)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = [augment(image, label) for _ in range(3)]
    torch.set_rng_state(state)
    second = [augment(image, label) for _ in range(3)]
    for (a, b), (c, d) in zip(first, second, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert not torch.equal(first[0][0], first[1][0])


def test_seeded_puts_the_state_back():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with seeded(99):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(99):
        assert torch.equal(torch.rand(3), first)


def test_resizing_keeps_label_over_image():
    # Doubling: every pixel becomes a 2×2 block in the label.
    label = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8)
    assert resize_label(label, (4, 4)).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    # Halving takes the average of the image and one of the labels.
    image = torch.tensor([[0, 100], [100, 200]], dtype=torch.uint8)[None].repeat(3, 1, 1)
    assert resize_image(image, (1, 1)).flatten().tolist() == [100, 100, 100]


@pytest.mark.parametrize("size", [(20, 31), (7, 5), (1, 1), (1, 6), (40, 80), (9, 13)])
def test_bytes_are_resized_as_floats_are(size):
    # A window into a larger image, as the crop takes it: torch has a kernel of its own for bytes.
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)[:, 5:35, 9:48]
    reference = functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    assert (resize_image(image, size).float() - reference).abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (2.0, 0.5)}, "0 < least <= largest; got (2.0, 0.5)"),
        ({"flip": 2.0}, "flip is a probability in 0…1; got 2.0"),
        ({"rare_share": 1.5}, "rare_share is a probability in 0…1; got 1.5"),
        ({"crop": (0, 5)}, "at least one pixel; got (0, 5)"),
        ({"hue": 0.6}, "hue must lie in 0…0.5; got 0.6"),
        ({"contrast": -1.0}, "contrast must lie in 0…1; got -1.0"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(InvalidInput) as caught:
        JointAugmentation(**arguments)
    assert message in str(caught.value)
