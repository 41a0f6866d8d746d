"""Whether a search finds the same again: one search for each of several seeds, and how far they agree."""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from hwnas.core.baseline import baseline
from hwnas.core.baseline_config import BaselineConfig
from hwnas.core.expected import LatencyTableLike
from hwnas.core.genotype import Genotype
from hwnas.core.progress import Progress
from hwnas.core.run import FINDERS, refuse_other, refuse_taken
from hwnas.core.scoring import headline
from hwnas.core.search import search
from hwnas.core.search_config import SearchConfig
from hwnas.core.search_data import SearchData
from hwnas.core.search_result import SearchResult
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput
from hwnas.files import write_json
from hwnas.latency.backend import LatencyBackend
from hwnas.processes import as_one, processes, told_by_first

_SAMPLE = 400  # random networks, whose pairs tell what chance agrees on


class SeedResult(BaseModel):
    """What one seed found. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    """Of the search."""
    genotype: Genotype
    """What it found."""
    predicted_ms: float | None
    """By the table; None without one."""
    measured_ms: float | None = None
    """Where it was measured for a target."""
    met: bool | None = None
    """Whether the measurement keeps the target; None where there is none."""
    score: float | None
    """The headline of its scores on the validation data with shared weights; None without such data."""


class Spread(BaseModel):
    """Mean, sample standard deviation (0 of one value), least and greatest of the finite numbers. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    """The mean."""
    deviation: float
    """The sample standard deviation."""
    least: float
    """The smallest value."""
    greatest: float
    """The largest value."""
    not_finite: int = 0
    """How many were not finite, and count for none of these."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of ``values``, at least one of them finite."""
        finite = [value for value in values if math.isfinite(value)]
        deviation = statistics.stdev(finite) if len(finite) > 1 else 0.0
        return cls(
            mean=statistics.fmean(finite),
            deviation=deviation,
            least=min(finite),
            greatest=max(finite),
            not_finite=len(values) - len(finite),
        )


class Stability(BaseModel):
    """What searches with different seeds found, and how far they agree. Frozen; JSON.

    A choice's *agreement* is the share of pairs of seeds that decide it alike; that it matters in neither
    network counts as alike.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    results: tuple[SeedResult, ...]
    """By seed."""
    agreement: dict[str, float]
    """By choice, those that matter in any of the networks; 0 to 1."""
    by_chance: float
    """Mean over these choices of the share of pairs of random networks that decide it alike, by a sample."""
    predicted_ms: Spread | None
    """None without a table."""
    score: Spread | None
    """Of the validation scores; None without validation data, or where no score is finite."""

    @property
    def networks(self) -> int:
        """How many different networks were found."""
        return len({result.genotype.short_id for result in self.results})

    @property
    def mean_agreement(self) -> float:
        """Mean over choices."""
        return statistics.fmean(self.agreement.values()) if self.agreement else 1.0

    @property
    def best(self) -> SeedResult:
        """The seed with the best score; the first without scores."""
        return max(self.results, key=lambda result: float("-inf") if result.score is None else result.score)

    @classmethod
    def of(cls, space: SearchSpace, results: Sequence[SeedResult]) -> Stability:
        """The report on what seeds found in ``space``.

        Raises:
            InvalidInput: fewer than two results.
        """
        if len(results) < 2:
            raise InvalidInput(f"stability compares at least two searches, got {len(results)}.")
        decided = [result.genotype.choices for result in results]
        named = [name for name in space.choices() if any(name in choices for choices in decided)]
        pairs = list(combinations(decided, 2))
        latencies = [result.predicted_ms for result in results if result.predicted_ms is not None]
        scores = [result.score for result in results if result.score is not None]
        return cls(
            results=tuple(results),
            agreement={
                name: sum(one.get(name) == other.get(name) for one, other in pairs) / len(pairs)
                for name in named
            },
            by_chance=_chance_agreement(space, named),
            predicted_ms=Spread.of(latencies) if latencies else None,
            score=Spread.of(scores) if any(map(math.isfinite, scores)) else None,
        )


def _chance_agreement(space: SearchSpace, names: Sequence[str]) -> float:
    """What pairs of random networks decide alike of these choices; that neither has one counts as alike."""
    generator = torch.Generator().manual_seed(0)
    drawn = [space.random(generator).choices for _ in range(_SAMPLE)]
    pairs = _SAMPLE * (_SAMPLE - 1)
    counts = [Counter(choices.get(name) for choices in drawn) for name in names]
    return statistics.fmean(sum(n * (n - 1) for n in count.values()) / pairs for count in counts)


@as_one
def stability(
    space: SearchSpace,
    lut: LatencyTableLike | None,
    data: SearchData,
    config: SearchConfig | BaselineConfig | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    out: str | Path | None = None,
    resume: bool = False,
    backend: LatencyBackend | None = None,
    on_progress: Callable[[int, Progress], None] | None = None,
) -> Stability:
    """Search once with each seed and say how far what is found depends on it.

    Each search is a run of its own in ``out/seed-N``, which every other function takes; the report is
    ``out/stability.json``.

    Args:
        space: what can be chosen.
        lut: milliseconds of every op, or None.
        data: as of :func:`hwnas.search`; with ``val``, scores are compared too.
        config: of a search, or of a baseline; its seed is replaced.
        seeds: at least two, all different.
        out: folder of the runs; None keeps nothing on disk.
        resume: go on with the runs in ``out``; those that were not begun are.
        backend: measures what each search finds for its target; see :func:`hwnas.search`.
        on_progress: called with the seed and the search's progress.

    Raises:
        InvalidInput: fewer than two seeds, or two alike; ``out``, or the folder of a seed, holds another run
            already; a backend for a baseline, which has nothing measured. Besides, whatever the search
            raises.
    """
    if len(seeds) < 2 or len(set(seeds)) != len(seeds):
        raise InvalidInput(f"stability compares at least two seeds, all different, got {tuple(seeds)}.")
    config = config or SearchConfig()
    if backend is not None and isinstance(config, BaselineConfig):
        raise InvalidInput("a baseline has nothing measured: leave backend out, or compare searches.")
    out = Path(out) if out is not None else None
    kind = "baseline" if isinstance(config, BaselineConfig) else "search"
    told_by_first(lambda: refuse_taken_seeds(out, seeds, kind, resume=resume))
    results = []
    for seed in seeds:
        folder = out / f"seed-{seed}" if out is not None else None
        begun = told_by_first(functools.partial(_begun, folder))

        def tell(progress: Progress, seed: int = seed) -> None:
            if on_progress is not None:
                on_progress(seed, progress)

        found: SearchResult
        if isinstance(config, BaselineConfig):
            found = baseline(
                space,
                lut,
                data,
                config.with_seed(seed),
                out=folder,
                resume=resume and begun,
                on_progress=tell,
            )
        else:
            seeded = config.model_copy(update={"seed": seed})
            found = search(
                space,
                lut,
                data,
                seeded,
                out=folder,
                resume=resume and begun,
                backend=backend,
                on_progress=tell,
            )
        score = headline(found.scores) if found.scores else None
        results.append(
            SeedResult(
                seed=seed,
                genotype=found.genotype,
                predicted_ms=found.predicted_ms,
                measured_ms=found.budget.measured_ms if found.budget else None,
                met=found.budget.met if found.budget else None,
                score=score,
            )
        )
    report = Stability.of(space, results)
    if out is not None and processes().is_first:
        write_json(out / "stability.json", report)
    return report


def refuse_taken_seeds(out: Path | None, seeds: Sequence[int], kind: str, *, resume: bool) -> None:
    """Refuse a folder for searches, or baselines, with these seeds, in which something else was begun.

    All folders are looked at before any is trained in; without ``out``, nothing is said.

    Raises:
        InvalidInput: the folder of a seed holds a run, which is not to be resumed or is of another kind; or
            ``out`` itself holds one, and none with these seeds was begun.
    """
    if out is None:
        return
    folders = [out / f"seed-{seed}" for seed in seeds]
    if not (resume and any(map(_begun, folders))):
        for other in FINDERS:
            refuse_other(out, other)
    for folder in folders:
        if not (resume and (folder / f"{kind}.json").exists()):
            refuse_taken(folder, kind)


def _begun(folder: Path | None) -> bool:
    return folder is not None and any((folder / f"{name}.json").exists() for name in ("search", "baseline"))
