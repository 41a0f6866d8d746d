"""A small search as a program, to be killed: ``python resumable.py FOLDER EVERY_STEPS KILL_AT SIGNAL``."""

import os
import sys
from pathlib import Path

import torch

from hwnas import SearchConfig, SearchData, search
from hwnas.core.prune import ThresholdPruner
from hwnas.latency.fake import fake_table
from hwnas.search_spaces.chain import Chain

SPACE = Chain(size=8, channels=4, num_classes=4, depth=2, kernels=(1, 3))
EPOCHS, BATCHES = 3, 4


class Noisy(torch.utils.data.Dataset):
    """Images with augmentation from the global random generator."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(4 * BATCHES, 3, 8, 8, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(3, 8, 8), index % 4


def loader(seed=0):
    return torch.utils.data.DataLoader(Noisy(seed), batch_size=4, shuffle=True)


def run(out, every_steps, *, resume=False, on_progress=None, bilevel=False, **values):
    config = SearchConfig(
        device="cpu",
        epochs=EPOCHS,
        arch_lr=0.05,
        checkpoint_every_steps=every_steps,
        pruner=ThresholdPruner(share=0.9, from_epoch=1),
        **{**SPACE.preset("small").search, **values},
    )
    table = fake_table(SPACE.record().keys(), input_shape=SPACE.input_shape())
    data = SearchData(loader(), arch=loader(1) if bilevel else None, val=loader(2))
    return search(SPACE, table, data, config, out=out, resume=resume, on_progress=on_progress)


def signal_at(step, number):
    """Send this process a signal in the middle of a step."""

    def watch(progress):
        if progress.step == step and not progress.end_of_epoch:
            os.kill(os.getpid(), number)

    return watch


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, every_steps, kill_at, number = sys.argv[1:]
    run(Path(folder), int(every_steps), on_progress=signal_at(int(kill_at), int(number)))
