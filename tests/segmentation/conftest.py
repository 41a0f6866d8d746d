import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def real_data():
    """Find a folder of real data; the test is skipped where it is absent."""
    root = Path(os.environ.get("HWNAS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {name} under {root}; set HWNAS_DATA to the folder that holds it")
        return root / name

    return find


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
