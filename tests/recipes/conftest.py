import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hwnas.recipes import training

from .two_stages import run


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    """Streets are drawn, with 8 classes; the target is a folder with 3."""
    root = tmp_path_factory.mktemp("target")
    (root / "classes.json").write_text(json.dumps({"names": ["road", "sky", "car"]}))
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for index in range(count):
            label = rng.integers(0, 3, (4, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            label[:2] = 255
            for kind, pixels in (("images", label[..., None].repeat(3, 2) * 60), ("labels", label)):
                path = root / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return {"target": f"folders:{root}", "synthetic": "synthetic"}


@pytest.fixture(scope="session")
def whole(places, tmp_path_factory):
    """A training without interruption: its folder, its network, its scores, and what was seen of it."""
    out = tmp_path_factory.mktemp("whole")
    began, said = [], []

    def spy(network, *arguments, **options):
        began.append(({name: value.clone() for name, value in network.state_dict().items()}, options))
        return fit(network, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        fit = training.fit
        patch.setattr(training, "fit", spy)
        network, scores = run(
            places,
            out,
            on_stage=lambda planned: said.append((planned.stage.name, planned.images, planned.steps)),
            on_progress=lambda stage, progress: said.append((stage.name, progress.epoch, progress.step)),
        )
    return SimpleNamespace(out=out, weights=network.state_dict(), scores=scores, began=began, said=said)


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the finished training."""
    return Path(shutil.copytree(whole.out, tmp_path / "finished"))
