"""What two processes do together, as a program: ``python together.py TASK FOLDER``; see test_distributed.py.

Each saves what it found to ``FOLDER/TASK.RANK.pt``.
"""

import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

import torch
from torch import distributed, nn

from hwnas import FitConfig, HwnasError, SearchConfig, SearchData, fit, search, sweep
from hwnas.core.cost_ranges import ranges
from hwnas.core.distributed import trained_as_one
from hwnas.core.guidance import SoftTargets
from hwnas.core.penalty import LogPenalty
from hwnas.core.relaxation import GumbelSoftmax, LinearSchedule
from hwnas.errors import MissingExtra
from hwnas.latency.fake import fake_table
from hwnas.processes import average, processes, shared, told_by_first
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.chain import Accuracy, Chain
from hwnas.segmentation import JointAugmentation, SyntheticScenes, evaluation_loader, training_loader

NET = AutoRTNet.from_preset(
    "small", num_classes=8, cells=(1, 1, 1), height=32, width=32, stem_channels=(4, 4), dropout=0.0
)
CHAIN = Chain(size=16, channels=4, num_classes=4, depth=2, kernels=(1, 3))
GENOTYPE = CHAIN.random(torch.Generator().manual_seed(0))


class Dropping(Chain):
    """With dropout, whose masks come from the random state of each process."""

    name: ClassVar[str] = "dropping"

    def supernet(self):
        first, *rest = super().supernet()
        return nn.Sequential(first, nn.Dropout(0.5), *rest)


DROPPING = Dropping(**CHAIN.model_dump())


class Whole(Accuracy):
    """A metric whose sums are nobody's business, so that each process measures all."""

    sums = take_sums = None


def table(space):
    return fake_table(space.record().keys(), input_shape=space.input_shape())


def scenes(split, length):
    # Half of every image is void, here more and there less, as the crops fall.
    augment = JointAugmentation(scale=(0.3, 1.0)) if split == "train" else False
    return SyntheticScenes(split, size=(32, 32), length=length, augment=augment, cache=True)


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 3])) for _ in range(n)]


def observed(run):
    """``run(on_progress)``, and what it reported."""
    seen = []
    result = run(lambda progress: seen.append({**progress.values, "end": progress.end_of_epoch}))
    return result, seen


def searched(space, data, out=None, resume=False, watch=None, **values):
    config = SearchConfig(**{"device": "cpu", "epochs": 2, "arch_lr": 0.05, "weight_lr": 0.05, **values})

    def run(note):
        def progress(value):
            note(value)
            if watch:
                watch(value)

        return search(space, table(space), data, config, out=out, resume=resume, on_progress=progress)

    result, seen = observed(run)
    return {
        "probabilities": result.probabilities,
        "genotype": result.genotype.short_id,
        "scores": result.scores,
        "losses": [values["task_loss"] for values in seen if not values["end"]],
        "totals": [values["loss"] for values in seen if not values["end"]],
        "epochs": [
            {"val": values.get("val"), "train": values.get("train")} for values in seen if values["end"]
        ],
        "weights": {name: value.clone() for name, value in result.supernet.state_dict().items()},
        "classes": sorted({type(module).__name__ for module in result.supernet.modules()}),
    }


def seen(out, **values):
    """A few steps on scenes, of which each process loads its share; some have more void than others."""
    train = training_loader(scenes("train", 8), 4)
    return searched(NET, SearchData(train, val=evaluation_loader(scenes("val", 5), 2)), **values)


def hard(out, **values):
    return searched(CHAIN, SearchData(images(12)), **values)


def soft(out):
    # Where a mixture is nearly one-hot, a gradient is nearly zero, and Adam makes a step of its rounding.
    return hard(out, epochs=1, relaxation=GumbelSoftmax(hard=False, tau=LinearSchedule(start=2.0, end=2.0)))


def bilevel(out):
    """Batches that are the same in all processes, of which each takes its part."""
    data = SearchData(images(5), arch=images(2, seed=1), val=images(2, seed=2))
    return searched(CHAIN, data, explore=0.25, candidates=4)


def budgeted(out):
    """Networks within a budget, compared by all and measured by the first."""
    measured, table_of_chain = [], table(CHAIN)

    def measure(genotype):
        measured.append(genotype.short_id)
        return 1.1 * table_of_chain.predict_ms(CHAIN.record().count(CHAIN.assignment(genotype)))

    target_ms = ranges(CHAIN, table_of_chain)["latency_ms"].median
    config = SearchConfig(
        device="cpu", epochs=1, target_ms=target_ms, candidates=4, budget={"below": 0.3, "above": 0.0}
    )
    data = SearchData(images(2), val=images(2, seed=2))
    result = search(CHAIN, table_of_chain, data, config, measure=measure, out=out and out / "budgeted")
    return {
        "genotype": result.genotype.short_id,
        "attempts": [attempt.genotype.short_id for attempt in result.budget.attempts],
        "measured": measured,
        "loss": result.scores["loss"],
    }


def fitted(out):
    torch.manual_seed(processes().rank)  # networks that differ: the first's is trained
    net = CHAIN.build(GENOTYPE)
    config = FitConfig(device="cpu", epochs=2, lr=0.05, validate_every=1)
    found, seen = observed(
        lambda note: fit(
            net, images(5), loss=CHAIN.fit_loss, config=config, val=images(3, seed=1), metric=Whole(),
            on_progress=note, out=None if out is None else out / "fit",
        )
    )  # fmt: skip
    return {
        "found": found,
        "losses": [values["loss"] for values in seen if not values["end"]],
        "weights": {name: value.clone() for name, value in net.state_dict().items()},
        "classes": sorted({type(module).__name__ for module in net.modules()}),
    }


def distilled(out):
    """Soft targets of a teacher, known here and not there, in batches that each process cuts for itself."""
    torch.manual_seed(3)
    teacher, net = CHAIN.build(GENOTYPE).eval(), CHAIN.build(GENOTYPE)
    is_known = torch.tensor([True, False, True, True])
    with torch.no_grad():
        batches = [(x, SoftTargets(y, teacher(x), is_known)) for x, y in images(5)]
    config = FitConfig(device="cpu", epochs=2, lr=0.05, distillation_weight=2.0, distillation_temperature=2.0)
    # At last one of which nothing is known in any process.
    x, y = images(1, seed=4)[0]
    batches.append((x, SoftTargets(y, torch.zeros(4, 4), torch.zeros(4, dtype=torch.bool))))
    _, seen = observed(
        lambda note: fit(
            net, batches, loss=CHAIN.fit_loss, config=config, has_soft_targets=True, on_progress=note
        )
    )
    return {
        "losses": [values["loss"] for values in seen if not values["end"]],
        "weights": {name: value.clone() for name, value in net.state_dict().items()},
    }


def message(call):
    try:
        call()
    except HwnasError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused(out):
    class Fails:
        def __call__(self):
            raise MissingExtra("onnx", "onnxruntime", "say no")

    odd = [(x[:3], y[:3]) for x, y in images(1)]
    return {
        "odd": message(lambda: searched(CHAIN, SearchData(odd))),
        "names": message(
            lambda: searched(CHAIN, SearchData([(x, ["a", "b", "c", "d"]) for x, _ in images(1)]))
        ),
        "first": message(lambda: told_by_first(Fails())),
        "taken": message(lambda: searched(CHAIN, SearchData(images(1)), out=out)),
    }


def norms(out):
    """A network of three kinds of batch norm on a batch, and torch's own where there is one process."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.Flatten(2),
        nn.BatchNorm1d(4, affine=False),
        nn.Flatten(1),
        nn.BatchNorm1d(144, track_running_stats=False),
    )
    x = torch.randn(8, 3, 8, 8) * 3 + 1
    target = torch.randn(8, 144)
    rows = []
    with trained_as_one(net):
        for part, goal in [*shared([(x, target)])] * 2:
            net.zero_grad()
            output = net(part)
            (output - goal).square().mean().backward()
            average([parameter.grad for parameter in net.parameters()])
            rows.append(output.detach())
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.eval()
    return {"rows": rows, "gradients": gradients, "state": dict(net.state_dict()), "eval": net(x).detach()}


TASKS = [seen, hard, soft, bilevel, budgeted, fitted, distilled, norms]


def shuffled():
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat([x for x, _ in images(6)]), torch.arange(24) % 4),
        batch_size=4,
        shuffle=True,
    )


def dropped(out, *, resume=False, watch=None):
    """Under a budget, whose multiplier is part of the state."""
    target_ms = ranges(DROPPING, table(DROPPING))["latency_ms"].median
    return searched(
        DROPPING, SearchData(shuffled(), val=images(1)), out=out, resume=resume, watch=watch,
        target_ms=target_ms, candidates=3, checkpoint_every_steps=2,
    )  # fmt: skip


def swept(folder):
    """A sweep in ``sweep``, measured later by the first; beside it the search that a point is alone."""
    data = SearchData(shuffled(), val=images(2))
    config = SearchConfig(device="cpu", epochs=2, arch_lr=0.05, arch_from_epoch=1)
    weights = (0.001, 1.0)
    how = {"latency_weights": weights, "out": folder / "sweep"}
    sweep(DROPPING, table(DROPPING), data, config, **how)
    measure = (lambda genotype: 1.0) if processes().is_first else None
    found = sweep(DROPPING, table(DROPPING), data, config, **how, resume=True, measure=measure)
    config = config.model_copy(update={"penalty": LogPenalty(weight=weights[1])})
    search(DROPPING, table(DROPPING), data, config, out=folder / "beside")
    return found.model_dump(mode="json")


def signalled(step, number):
    def watch(progress):
        if progress.step == step and not progress.end_of_epoch:
            os.kill(os.getpid(), number)

    return watch


def main(task, folder):
    rank = os.environ["RANK"]
    if task == "all":
        # One group for all of them, as somebody may have who has one already.
        distributed.init_process_group("gloo")
        found = {each.__name__: each(folder) for each in TASKS}
        found["dropped"] = dropped(folder / "whole")
        found["swept"] = swept(folder)
        found["refused"] = refused(folder / "whole")
        distributed.destroy_process_group()
    elif task == "killed":
        dropped(folder / "killed", watch=signalled(9, signal.SIGKILL))
        found = {}
    elif task == "stopped":
        found = {"error": message(lambda: dropped(folder / "stopped", watch=signalled(8, signal.SIGTERM)))}
    else:
        found = {name: dropped(folder / name, resume=True) for name in ("killed", "stopped")}
    torch.save(found, folder / f"{task}.{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
