"""A small search as a program, to be killed: ``resumable.py FOLDER EVERY_STEPS KILL_AT SIGNAL [VALUES]``."""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import torch

from hwnas import SearchConfig, SearchData, search, sweep
from hwnas.core.prune import ThresholdPruner
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.chain import Chain

SPACE = Chain(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3))
EPOCHS, BATCHES = 3, 4


class Dropping(Chain):
    """The same with dropout: training moves the global random generator."""

    name: ClassVar[str] = "dropping"

    def supernet(self):
        first, *rest = super().supernet()
        return torch.nn.Sequential(first, torch.nn.Dropout(0.5), *rest)


class Noisy(torch.utils.data.Dataset):
    """Images with augmentation from the global random generator."""

    def __init__(self, seed=0, batches=BATCHES):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(4 * batches, 3, 8, 8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(3, 8, 8), index % 4


def loader(seed=0, batches=BATCHES):
    return torch.utils.data.DataLoader(Noisy(seed, batches), batch_size=4, shuffle=True)


def table(space=SPACE):
    return fake_table(space.record().keys(), input_shape=space.input_shape())


def config(every_steps, **values):
    pruner = ThresholdPruner(share=0.9, from_epoch=1)
    defaults = {"device": "cpu", "epochs": EPOCHS, "arch_lr": 0.05, "pruner": pruner}
    return SearchConfig(**{**defaults, "checkpoint_every_steps": every_steps, **values})


def data(arch_batches=0, description=None):
    arch = loader(1, arch_batches) if arch_batches else None
    return SearchData(loader(), arch=arch, val=loader(2), description=description)


def run(out, every_steps, *, space=SPACE, arch_batches=0, description=None, **values):
    """Search; what is not an argument of :func:`search` is a setting."""
    given = {name: values.pop(name) for name in ("resume", "on_progress", "measure") if name in values}
    settings = config(every_steps, **values)
    return search(space, table(space), data(arch_batches, description), settings, out=out, **given)


def run_sweep(out, every_steps, *, arch_batches=0, **values):
    """The same of :func:`sweep`."""
    names = ("targets_ms", "latency_weights", "resume", "on_progress", "measure")
    given = {name: values.pop(name) for name in names if name in values}
    return sweep(SPACE, table(), data(arch_batches), config(every_steps, **values), out=out, **given)


def same(mine, theirs):
    """Whether two states agree to the last bit."""
    if isinstance(mine, torch.Tensor):
        return torch.equal(mine, theirs)
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    return mine == theirs


def signal_at(step, number):
    """Send this process a signal in the middle of a step."""

    def watch(progress):
        if progress.step == step and not progress.end_of_epoch:
            os.kill(os.getpid(), number)

    return watch


def signal_after(steps, number):
    """Send this process a signal in the middle of a step of a sweep, counted over all its points."""
    done = 0

    def watch(value, progress):
        nonlocal done
        if not progress.end_of_epoch:
            if done == steps:
                os.kill(os.getpid(), number)
            done += 1

    return watch


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, every_steps, kill_at, number, *values = sys.argv[1:]
    settings = json.loads(values[0]) if values else {}
    swept = "targets_ms" in settings or "latency_weights" in settings
    begin, signalled = (run_sweep, signal_after) if swept else (run, signal_at)
    begin(Path(folder), int(every_steps), on_progress=signalled(int(kill_at), int(number)), **settings)
