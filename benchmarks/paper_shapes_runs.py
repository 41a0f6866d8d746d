"""What benchmarks/paper_shapes.py runs: searches and trainings, each resumable, stage by stage."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from result_files import append_line, read_lines

from hwnas import FitConfig, Progress, SearchConfig, SearchData, fit, search
from hwnas.latency.fake import fake_table
from hwnas.latency.table import LatencyTable
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.search_spaces.autortnet.aggregation import Wiring
from hwnas.segmentation import CamVid, JointAugmentation, evaluation_loader, training_loader

FIELDS: dict[str, Any] = {
    "init_channels": 8,
    "channel_multiplier": 2,
    "stem_channels": (12, 16),
    "aggregation_width": 24,
    "head_width": 24,
}
"""The paper's ops, cells and stem strides with a third to a sixth of its channels, for one core."""
CELLS = ((2, 4, 4), (2, 4, 6), (2, 6, 6), (4, 4, 4))
"""In place of the paper's {5,10,10}, {5,10,15}, {5,15,15}, {10,10,10}."""
BASE_WEIGHT = 0.1
WEIGHTS = (BASE_WEIGHT, 10.0, 0.01, 1.0)
"""λ of a penalty on the logarithm of the latency; the ends first, should time run out."""
SEEDS = (0, 1, 2)
SIZE = (96, 128)
BATCH = 8
AUGMENT = JointAugmentation(crop=SIZE, scale=(1.0, 1.0), brightness=0.0, contrast=0.0, saturation=0.0)
"""Mirrored at random, no more: trainings are too short to learn scales and colours too."""
DESCRIPTION = {"data": "camvid", "split": "train", "size": SIZE, "batch": BATCH, "augmentation": "mirrored"}
RIVALS = 5
"""Random networks beside the searched one."""
NEAR = 0.05
"""How far their latency may lie from its."""
OTHERS = 3
"""Random places of downsampling, and random aggregation cells."""
SEARCH = SearchConfig(
    epochs=12,
    weight_lr=0.1,
    arch_from_epoch=1,
    depth_from_epoch=3,
    arch_lr=0.03,
    penalty_on="probabilities",
    channels_last=True,
    device="cpu",
)
FIT = FitConfig(epochs=10, lr=0.05, warmup_epochs=1, channels_last=True, device="cpu", validate_every=10)
STAGES = ("random", "sweep", "depths", "again", "positions", "aggregation")
"""In the order of what is wanted most, should time run out."""


class WithoutAggregation(AutoRTNet):
    """The deepest hyper-cell's output alone goes to the head, enlarged to 1/8: Table 6 a).

    No choice of the space says this (its aggregation ops all convolve), but a wiring without edges does.
    """

    name: ClassVar[str] = "autortnet_without_aggregation"

    def wiring(self) -> Wiring:
        """No edge, one output."""
        return Wiring(
            about="the third hyper-cell's output alone",
            levels={"x1": 1, "x2": 2, "x3": 3},
            edges=(),
            outputs=("x3",),
            output_level=1,
        )


@dataclass(frozen=True)
class Searched:
    """A search."""

    cells: tuple[int, int, int] = CELLS[0]
    weight: float = BASE_WEIGHT
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name among the runs."""
        return f"search/{'-'.join(map(str, self.cells))}/{self.weight:g}/{self.seed}"

    @property
    def network(self) -> str:
        """The name of what it finds, among the trained networks."""
        return self.key.replace("search/", "searched_").replace("/", "_")


BASE = Searched()
SWEEP = tuple(Searched(weight=weight) for weight in WEIGHTS)
STABILITY = (*(Searched(cells=cells) for cells in CELLS), *(Searched(seed=seed) for seed in SEEDS[1:]))


@dataclass(frozen=True)
class Trained:
    """A network to train: an assignment of a space, under a name."""

    name: str
    space: AutoRTNet
    assignment: Mapping[str, int]
    seed: int = 0

    @property
    def key(self) -> str:
        """Its name among the runs."""
        return f"fit/{self.name}/{self.seed}"


class Bench:
    """The runs in a work folder: finished ones as a JSON line each, begun ones as folders to resume."""

    def __init__(self, data: Path | None, work: Path, lut: Path | None) -> None:
        self.data = data
        self.work = work
        self.lut = lut
        self.work.mkdir(parents=True, exist_ok=True)
        self.spaces: dict[tuple[int, int, int], AutoRTNet] = {}
        self.tables: dict[AutoRTNet, LatencyTable] = {}
        self.path = self.work / "runs.jsonl"
        self.found: dict[str, dict[str, Any]] = {run["key"]: run for run in read_lines(self.path)}

    def space(self, cells: tuple[int, int, int] = CELLS[0]) -> AutoRTNet:
        """The space with so many cells; the same object each time, as it remembers its recording."""
        if cells not in self.spaces:
            self.spaces[cells] = AutoRTNet(**FIELDS, cells=cells)
        return self.spaces[cells]

    def table(self, space: AutoRTNet) -> LatencyTable:
        """Milliseconds of its ops at its own resolution, 360×480."""
        if space not in self.tables:
            self.tables[space] = (
                LatencyTable.load(self.lut)
                if self.lut is not None
                else fake_table(space.record().keys(), input_shape=space.input_shape())
            )
        return self.tables[space]

    def ms(self, space: AutoRTNet, assignment: Mapping[str, int]) -> float:
        """A network's milliseconds by the table."""
        return self.table(space).predict_ms(space.record().count(assignment))

    def penalised_ms(self, space: AutoRTNet, assignment: Mapping[str, int]) -> float:
        """The same with the first op, two 1×1 convolutions, on all edges of the aggregation cell.

        Its choices bear no penalty, so λ cannot make them fast.
        """
        plain = {name: 0 for name in assignment if name.startswith("agg.")}
        return self.ms(space, {**assignment, **plain})

    @cached_property
    def loaders(self) -> tuple[Any, Any]:
        """Augmented training batches, and validation batches."""
        if self.data is None:
            raise SystemExit("--data DIR is needed: CamVid's folder")
        train = CamVid(self.data, "train", size=SIZE, augment=AUGMENT, cache=True)
        val = CamVid(self.data, "val", size=SIZE, cache=True)
        return training_loader(train, BATCH), evaluation_loader(val, BATCH)

    def keep(self, key: str, **values: Any) -> None:
        """A finished run."""
        self.found[key] = {"key": key, **values}
        append_line(self.path, self.found[key])
        print(key, values.get("miou"), values.get("ms"), values.get("depths"), flush=True)

    def search(self, what: Searched) -> Mapping[str, int]:
        """What the search finds, every choice; searched now unless it was."""
        if what.key not in self.found:
            space = self.space(what.cells)
            config = SEARCH.model_copy(update={"seed": what.seed, "penalty": penalty(what.weight)})
            result = search(
                space,
                self.table(space),
                SearchData(train=self.loaders[0], description=DESCRIPTION),
                config,
                out=self.work / what.key,
                resume=(self.work / what.key / "search.json").is_file(),
                on_progress=say(what.key),
            )
            assignment = {name: row.index(max(row)) for name, row in result.probabilities.items()}
            self.keep(
                what.key,
                ms=result.predicted_ms,
                expected_ms=result.expected_ms,
                genotype=result.genotype.short_id,
                depths=depths(assignment),
                assignment=assignment,
            )
        found: Mapping[str, int] = self.found[what.key]["assignment"]
        return found

    def train(self, what: Trained) -> None:
        """Train and validate, unless that was done."""
        if what.key in self.found:
            return
        genotype = what.space.genotype(what.assignment)
        torch.manual_seed(what.seed)
        network = what.space.build(genotype)
        train, val = self.loaders
        scores = fit(
            network,
            train,
            loss=what.space.fit_loss,
            config=FIT.model_copy(update={"seed": what.seed}),
            val=val,
            metric=what.space.metric(),
            description=DESCRIPTION,
            out=self.work / what.key,
            resume=True,
            on_progress=say(what.key),
        )
        self.keep(
            what.key,
            miou=scores["miou"],
            ms=self.ms(what.space, what.assignment),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            genotype=genotype.short_id,
            depths=depths(what.assignment),
        )

    def run(self, stage: str) -> None:
        """A stage's runs, those that others have done already left out."""
        if stage == "random":
            self.search(BASE)
            self.train(self.searched(BASE))
            for rival in self.rivals():
                self.train(rival)
            self.train(self.searched(BASE, seed=1))
        elif stage == "sweep":
            for what in SWEEP:
                self.search(what)
                self.train(self.searched(what))
        elif stage == "depths":
            for what in STABILITY:
                self.search(what)
        elif stage == "again":
            for what in SWEEP:
                self.train(self.searched(what, seed=1))
            for rival in self.rivals(seed=1):
                self.train(rival)
        elif stage == "positions":
            for one in self.positions():
                self.train(one)
        else:
            for one in self.aggregations():
                self.train(one)

    def searched(self, what: Searched, seed: int = 0) -> Trained:
        """A searched network, to be trained."""
        return Trained(what.network, self.space(what.cells), self.search(what), seed)

    def rivals(self, seed: int = 0) -> Iterator[Trained]:
        """Random networks, of nearly the searched one's latency: the first of a seeded sequence."""
        space = self.space()
        if "rivals" not in self.found:
            wanted_ms = self.ms(space, self.search(BASE))
            table, recording = self.table(space), space.record()
            generator = torch.Generator().manual_seed(1)
            near: list[Mapping[str, int]] = []
            drawn = 0
            while len(near) < RIVALS:
                drawn += 1
                if drawn > 100_000:
                    raise SystemExit(f"only {len(near)} networks within {NEAR:.0%} of {wanted_ms:.2f} ms")
                assignment = space.random_assignment(generator)
                if abs(table.predict_ms(recording.count(assignment)) / wanted_ms - 1) <= NEAR:
                    near.append(assignment)
            self.keep("rivals", drawn=drawn, assignments=near)
        for count, assignment in enumerate(self.found["rivals"]["assignments"]):
            yield Trained(f"random_{count}", space, assignment, seed)

    def deep(self) -> Searched:
        """The searched network whose downsampling is moved: the base's, or the first with five cells."""
        candidates = (BASE, *(what for what in SWEEP if what != BASE))
        total = {what: sum(depths(self.search(what))) for what in candidates}
        return next((what for what in candidates if total[what] >= 5), max(total, key=lambda w: total[w]))

    def positions(self) -> Iterator[Trained]:
        """The same cells and as many of them in all, downsampled elsewhere."""
        assignment = self.search(self.deep())
        searched = tuple(depths(assignment))
        total = sum(searched)
        space = self.space((total - 2,) * 3)
        settings = [
            (a, b, total - a - b)
            for a, b in itertools.product(range(1, total - 1), repeat=2)
            if a + b < total
        ]
        settings.remove(searched)
        order = torch.randperm(len(settings), generator=torch.Generator().manual_seed(2)).tolist()
        for place in order[:OTHERS]:
            moved = {f"h{h + 1}.depth": cells - 1 for h, cells in enumerate(settings[place])}
            name = "-".join(map(str, settings[place]))
            yield Trained(f"positions_{name}", space, {**assignment, **moved})

    def aggregations(self) -> Iterator[Trained]:
        """The base's cells, with no aggregation cell and with random ones."""
        assignment = self.search(BASE)
        cells = {name: index for name, index in assignment.items() if not name.startswith("agg.")}
        yield Trained("aggregation_none", WithoutAggregation(**FIELDS, cells=CELLS[0]), cells)
        space = self.space()
        generator = torch.Generator().manual_seed(3)
        for count in range(OTHERS):
            drawn = space.random_assignment(generator)
            yield Trained(f"aggregation_random_{count}", space, {**drawn, **cells})


def penalty(weight: float) -> Any:
    """λ · ln(µs)."""
    return SearchConfig(penalty={"form": "log", "weight": weight}).penalty


def depths(assignment: Mapping[str, int]) -> list[int]:
    """Cells of each hyper-cell."""
    return [assignment[f"h{h}.depth"] + 1 for h in (1, 2, 3)]


def say(name: str) -> Any:
    """A progress callback that prints one line an epoch."""

    def report(progress: Progress) -> None:
        if progress.end_of_epoch:
            told = {k: round(v, 4) for k, v in progress.values.items() if isinstance(v, float)}
            cpu = f"{time.process_time():.0f} CPU s"
            print(f"{name} {progress.epoch + 1}/{progress.epochs} {told} {cpu}", flush=True)

    return report
