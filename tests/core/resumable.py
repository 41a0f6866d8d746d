"""A small search as a program, to be killed: ``resumable.py FOLDER EVERY_STEPS KILL_AT SIGNAL [CONFIG]``."""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import torch

from hwnas import SearchConfig, SearchData, search
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


def run(
    out,
    every_steps,
    *,
    space=SPACE,
    resume=False,
    on_progress=None,
    arch_batches=0,
    description=None,
    measure=None,
    **values,
):
    config = SearchConfig(
        device="cpu",
        epochs=EPOCHS,
        arch_lr=0.05,
        checkpoint_every_steps=every_steps,
        pruner=ThresholdPruner(share=0.9, from_epoch=1),
        **values,
    )
    table = fake_table(space.record().keys(), input_shape=space.input_shape())
    data = SearchData(
        loader(),
        arch=loader(1, arch_batches) if arch_batches else None,
        val=loader(2),
        description=description,
    )
    return search(
        space, table, data, config, out=out, resume=resume, on_progress=on_progress, measure=measure
    )


def signal_at(step, number):
    """Send this process a signal in the middle of a step."""

    def watch(progress):
        if progress.step == step and not progress.end_of_epoch:
            os.kill(os.getpid(), number)

    return watch


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, every_steps, kill_at, number, *config = sys.argv[1:]
    values = json.loads(config[0]) if config else {}
    run(Path(folder), int(every_steps), on_progress=signal_at(int(kill_at), int(number)), **values)
