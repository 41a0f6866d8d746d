"""The command line under torchrun, with two processes on this CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from hwnas.core.checkpoint import load_checkpoint
from hwnas.core.runlog import read_log
from hwnas.core.weights import digest
from hwnas.search_spaces.autortnet import AutoRTNet

from .conftest import hwnas

_PATIENCE_SECONDS = 400
"""A machine that does much else besides takes this long to start two interpreters; nobody else waits."""
SMALL = [
    *("--lut", "none", "--preset", "small", "--batch", "2"),
    *("--set", "cells=[1,1,1]", "--set", "height=32", "--set", "width=32", "--set", "data.length=8"),
    *("--set", "search.device=cpu", "--set", "search.epochs=2", "--set", "checkpoint_every_steps=1"),
]


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "-m", "hwnas", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # So that a signal can go to all of it, as from a terminal.
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The folder of a search that Ctrl-C stopped and that was resumed."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    search = ["search", "autortnet", *SMALL, "--out", folder]
    stopped = torchrun(*search)
    try:
        until = time.monotonic() + 100
        while not (folder / "search.checkpoint.pt").exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(stopped.pid, signal.SIGINT)
        _, said = stopped.communicate(timeout=100)
    finally:
        stopped.kill()
    assert said.count("Interrupted: stopped in epoch") == 1, said
    assert said.count("Go on with:  torchrun (as before) -m hwnas search autortnet") == 1
    assert not (folder / "genotype.json").exists()
    resumed = torchrun("search", "--resume", "--json", "--out", folder)
    printed, said = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, said
    # One object, of one process.
    assert json.loads(printed)["genotype"] == json.loads((folder / "result.json").read_text())["genotype"]
    assert said.count("search epoch 2/2") == 1
    return folder


def test_a_search_that_ctrl_c_stops_goes_on(out):
    steps = [event["step"] for event in read_log(out / "search.log.jsonl") if event["event"] == "step"]
    assert steps == list(range(8))  # two epochs of 8 scenes in batches of 2: one for each process


def test_one_process_cannot_go_on_with_it(out):
    refused = hwnas("search", "--resume", "--out", out)
    assert refused.exit_code == 2
    assert "was written by 2 processes, and there are 1 now" in refused.output


def test_fit_and_its_single_file_of_weights(out):
    fit = torchrun("fit", out, "--set", "device=cpu", "--set", "epochs=1")
    printed, said = fit.communicate(timeout=100)
    assert fit.returncode == 0, said
    assert printed.count("weights.pt") == 1
    scores = hwnas("eval", out, "--json")
    assert scores.exit_code == 0, scores.output


def test_a_recipe_passes_its_weights_from_stage_to_stage(tmp_path):
    space = AutoRTNet.from_preset("small", num_classes=8, cells=(1, 1, 1), height=32, width=32)
    space.random(torch.Generator().manual_seed(0)).save(tmp_path / "genotype.json")
    stage = {"batch": 2, "augmentation": {"crop": [32, 32]}, "auxiliary": True}
    fit = {"fit": {"epochs": 1, "device": "cpu", "average_decay": 0.9}}
    stages = [{"name": name, **stage, **fit} for name in ("before", "target")]
    (tmp_path / "recipe.json").write_text(json.dumps({"about": "", "stages": stages}))
    arguments = ["fit", tmp_path, "--recipe", tmp_path / "recipe.json", "--data", "synthetic"]
    trained = torchrun(*arguments, "--set", "data.length=4", "--json")
    printed, said = trained.communicate(timeout=_PATIENCE_SECONDS)
    assert trained.returncode == 0, said
    assert "miou" in json.loads(printed)
    assert said.count("stage 2/2 target") == 1
    start = json.loads((tmp_path / "fit.json").read_text())["data"]["start"]
    assert start == digest(load_checkpoint(tmp_path / "before/weights.pt")["weights"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["eval", "runs/x"], "hwnas eval runs in one process: start it without torchrun"),
        (["search", "autortnet", *SMALL[2:]], "latency is measured by one process on a quiet machine"),
    ],
)
def test_what_is_for_one_process(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    # Nobody else is there to be waited for.
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    refused = hwnas(*arguments)
    assert refused.exit_code == 2
    assert expected in refused.output
