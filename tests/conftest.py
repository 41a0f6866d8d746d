"""One thread: the tests' networks are so small that more threads only wait for one another."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def real_data():
    """Find a folder of real data; the test is skipped where it is absent."""
    root = Path(os.environ.get("HWNAS_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {name} under {root}; set HWNAS_DATA to the folder that holds it")
        return root / name

    return find
