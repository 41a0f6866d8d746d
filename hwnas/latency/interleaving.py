"""In which order to read, and which rounds to read again.

All readers of a table are visited in random order, again and again, in *rounds*: a machine that slows down
for a second then disturbs one round of many entries instead of every reading of one.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from hwnas.errors import HwnasError, Interrupted
from hwnas.latency.stopping import StoppingRule, visit
from hwnas.latency.timing import Reader, Timing

_VISITS_PER_LOOK = 10  # between two looks at the canary

K = TypeVar("K")


class RoundWatch:
    """Tells rounds that something disturbed from quiet ones, so that they can be measured again.

    A round is disturbed if it ran more than ``tolerance`` times slower than usual: by its entries, compared
    with themselves in the other rounds, or by a canary, a fixed piece of work that is read on the way.

    Args:
        canary: a reader of work that always takes as long on a quiet machine; None: judge by entries alone.
        tolerance: how many times slower than usual a quiet round may be, above 1.
        extra_rounds: how many disturbed rounds may be measured again.
    """

    def __init__(self, canary: Reader | None = None, tolerance: float = 1.1, extra_rounds: int = 0) -> None:
        self.canary = canary
        self.tolerance = tolerance
        self.extra_rounds = extra_rounds
        self.repeated = 0
        """Rounds that were thrown away and measured again."""
        self.slowdowns: list[float] = []
        """How much slower than the usual one each round was that is kept, by the worse of both signs."""
        self._canary_ms: list[list[float]] = []

    @property
    def canary_ms(self) -> list[float]:
        """The canary's median milliseconds in each round that is kept; empty without a canary."""
        return [statistics.median(values) for values in self._canary_ms if values]

    def begin_round(self) -> None:
        """Note that a round begins."""
        self._canary_ms.append([])
        self.look()

    def look(self) -> None:
        """Read the canary, if there is one, into the round in progress."""
        if self.canary is not None:
            self._canary_ms[-1].append(self.canary())

    def drop(self, index: int) -> None:
        """Forget a round that was thrown away."""
        del self._canary_ms[index]
        self.repeated += 1

    def judge(self, rounds: Sequence[Mapping[K, Sequence[float]]]) -> list[float]:
        """How much slower than usual each of ``rounds`` (entry → readings) was; 1.0 is usual.

        A single round is as usual: what it is to other processes' rounds, who has them all can tell.
        """
        by_entry: dict[K, list[float]] = {}
        for visits in rounds:
            for key, values in visits.items():
                by_entry.setdefault(key, []).append(statistics.median(values))
        usual = {key: statistics.median(medians) for key, medians in by_entry.items() if len(medians) > 1}
        canary = self.canary_ms
        slowdowns = []
        for index, visits in enumerate(rounds):
            ratios = [statistics.median(v) / usual[key] for key, v in visits.items() if usual.get(key)]
            signs = [statistics.median(ratios)] if len(ratios) > 2 else []
            if len(canary) == len(rounds):
                signs.append(canary[index] / min(canary))
            slowdowns.append(max(signs, default=1.0))
        return slowdowns


def measure_interleaved(
    readers: Mapping[K, Reader],
    rule: StoppingRule | None = None,
    rounds: int = 8,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
    *,
    earlier: Mapping[K, Sequence[Sequence[float]]] | None = None,
    on_start: Callable[[K], None] | None = None,
    on_visit: Callable[[K, list[list[float]]], None] | None = None,
    watch: RoundWatch | None = None,
    first_counts: bool = False,
) -> dict[K, Timing]:
    """Time all ``readers`` in rounds, each round in a new random order; one :class:`Timing` for each.

    An entry whose reader raises or gives no believable number is not visited again; its timing is
    :meth:`Timing.failed` and the others go on.

    Args:
        readers: name → reader.
        rule: when a visit has read enough.
        rounds: visits to each reader.
        seed: of the orders.
        on_progress: called after each visit with (visits done, visits in all, the entry's text).
        earlier: readings of rounds that an interrupted run finished; only the missing rounds are measured.
        on_start: called with an entry before each visit to it.
        on_visit: called with an entry and its readings so far, by round, whenever they change.
        watch: what tells disturbed rounds, and how many of them to measure again.
        first_counts: see :attr:`hwnas.latency.backend.LatencyBackend.first_counts`.
    """
    rule, watch = rule or StoppingRule(), watch or RoundWatch()
    before = {key: [list(values) for values in (earlier or {}).get(key, ())] for key in readers}
    failures: dict[K, str] = {}
    measured: list[dict[K, list[float]]] = []
    total = sum(max(0, rounds - len(before[key])) for key in readers)
    done = 0

    def readings(key: K) -> list[list[float]]:
        return before[key] + [visits[key] for visits in measured if key in visits]

    def go_round(due: list[K], label: str) -> None:
        nonlocal done
        random.Random(f"{seed}:{label}").shuffle(due)
        visits: dict[K, list[float]] = {}
        measured.append(visits)
        watch.begin_round()
        for number, key in enumerate(due, start=1):
            if on_start is not None:
                on_start(key)
            try:
                visits[key] = visit(readers[key], rule, first_counts=first_counts)
            except Interrupted:
                raise
            except HwnasError as error:
                failures[key] = str(error)
                done += max(0, rounds - len(readings(key)) - 1)
            else:
                if on_visit is not None:
                    on_visit(key, readings(key))
            if number % _VISITS_PER_LOOK == 0:
                watch.look()
            done += 1
            if on_progress is not None:
                on_progress(min(done, total), total, str(key))

    for index in range(rounds):
        due = [key for key in readers if key not in failures and len(before[key]) <= index]
        if due:
            go_round(due, str(index))
    for extra in range(watch.extra_rounds):
        slowdowns = watch.judge(measured)
        if not slowdowns or max(slowdowns) <= watch.tolerance:
            break
        worst = slowdowns.index(max(slowdowns))
        again = [key for key in measured.pop(worst) if key not in failures]
        watch.drop(worst)
        go_round(again, f"extra {extra}")
    watch.slowdowns = watch.judge(measured)
    return {
        key: Timing.failed(failures[key]) if key in failures else Timing.from_rounds(readings(key))
        for key in readers
    }
