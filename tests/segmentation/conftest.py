import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two tiny images with labels: three classes, void 255, value 9 also void."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_image(tmp_path / f"images/train/{name}.png", rng.integers(0, 256, (5, 7, 3), np.uint8))
        label = rng.integers(0, 3, (5, 7)).astype(np.uint8)
        label[0, :2] = (255, 9)
        write_image(tmp_path / f"labels/train/{name}.png", label)
    classes = {"names": ["road", "sky", "car"], "ignore_index": 9, "anything": "else"}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    return tmp_path
