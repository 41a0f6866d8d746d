import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from hwnas.recipes.losses import class_weights, classification_loss
from hwnas.segmentation import ImageLabelFolders, SyntheticScenes


def test_classification_loss_by_hand():
    """The mean over the map decides: (1 + 3) / 2 against (0 + 0) / 2."""
    logits = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    expected = math.log(math.exp(2) + 1) - 2
    assert float(classification_loss(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-6)
    assert classification_loss(logits.bfloat16(), torch.tensor([0])).dtype == torch.float32
    pooled = functional.cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    torch.testing.assert_close(classification_loss(logits, torch.tensor([1])), pooled)


def test_class_weights_by_hand(tmp_path):
    """Of 8 pixels two are void; of the others 4, 1 and 1 are of the classes 0, 1 and 2, none of class 3."""
    label = np.array([[0, 0, 0, 0], [1, 2, 255, 255]], np.uint8)
    for kind, pixels in (("images", np.zeros((2, 4, 3), np.uint8)), ("labels", label)):
        (tmp_path / kind / "train").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / kind / "train/a.png")
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b", "c", "d"]}))
    weights = class_weights(ImageLabelFolders(tmp_path), 1.1)
    expected = [1 / math.log(1.1 + share) for share in (4 / 6, 1 / 6, 1 / 6, 0)]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_class_weights_do_not_hang_on_augmentation():
    plain = SyntheticScenes(size=(32, 64), length=3)
    augmented = SyntheticScenes(size=(32, 64), length=3, augment=True)
    assert torch.equal(class_weights(plain, 1.02), class_weights(augmented, 1.02))
