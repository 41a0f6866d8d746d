"""A budget: what a network may cost, kept in mind while searching and kept exactly by what is found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hwnas.core.arch import ArchParameters
from hwnas.core.budget_config import BudgetConfig, asked_costs
from hwnas.core.choice import Choice
from hwnas.core.cost_ranges import batch_and_bytes, of_least_peak, peak_range, range_of
from hwnas.core.costs import activation_mib, macs, parameters, peak
from hwnas.core.discretise import Limit, Programme, relative_likelihoods
from hwnas.core.expected import ExpectedLatency, LatencyTableLike
from hwnas.core.space import SearchSpace
from hwnas.core.steering import REACHED, Multipliers
from hwnas.errors import InfeasibleBudget, InvalidInput
from hwnas.processes import told_by_first
from hwnas.record import Condition


@dataclass(frozen=True)
class Found:
    """A network that keeps a budget by prediction.

    Attributes:
        assignment: choice name → option index.
        near: whether it uses the target as far as it should; False where no network does. True where the
            target is a ceiling.
    """

    assignment: dict[str, int]
    near: bool


class Budget:
    """Costs that a network must keep; a part of the run's state.

    **While searching** expected costs are held at what is asked (:class:`hwnas.core.steering.Multipliers`). A
    target is aimed at from both sides, a little below: networks drawn in training are then of the size that
    will be taken. Other costs, a target beside others, and one that need not be used, are ceilings: a
    multiplier does not become negative. Nothing is moved before all kinds of choice learn: with depths held
    still, ops alone would have to save, and cells would fill with zeros. All choices that cost are moved,
    also those that bear no penalty, for a budget is of the whole network.

    **At the end** the likeliest network that keeps all costs is found exactly
    (:meth:`hwnas.core.discretise.Programme.likeliest`), among those that use the target where there are any.

    Args:
        space: of the networks.
        choices: of its supernet, in the order of the architecture parameters.
        table: milliseconds by op key, needed with a target; its batch and precision are those of activations.
        target_ms: most milliseconds, to be used; None: any.
        config: the other costs, and how to meet the target.

    Raises:
        InfeasibleBudget: no network of the space keeps the budget; names the nearest.
        InvalidInput: a target without a table.
    """

    def __init__(
        self,
        space: SearchSpace,
        choices: Sequence[Choice],
        table: LatencyTableLike | None,
        target_ms: float | None,
        config: BudgetConfig,
    ) -> None:
        self.space = space
        self.config = config
        self.target_ms = target_ms
        batch, bytes_per_value = batch_and_bytes(table)
        recording = space.record(batch=batch)
        self.limits: dict[str, Limit] = {}
        if target_ms is not None:
            if table is None:
                raise InvalidInput(
                    "target_ms needs a latency table to know milliseconds by; give one, or use max_macs."
                )
            self.limits["latency_ms"] = Limit(ExpectedLatency(recording, choices, table), target_ms)
        if config.max_params is not None:
            self.limits["params"] = Limit(parameters(space, choices), config.max_params)
        if config.max_macs is not None:
            self.limits["macs"] = Limit(macs(space, choices), config.max_macs)
        self.activations: list[tuple[Condition, float]] = []
        if config.max_activation_mib is not None:
            self.activations = activation_mib(recording, bytes_per_value)
        most_mib = config.max_activation_mib
        forbidden = [use for use, mib in self.activations if most_mib is not None and mib > most_mib]
        self.programme = Programme(choices, recording, forbidden)
        self._require_feasible()
        self._slowest_ms: float | None = None
        self._waits_for: tuple[str, ...] = ()
        self.multipliers = self._multipliers()

    @classmethod
    def asked(
        cls,
        space: SearchSpace,
        choices: Sequence[Choice],
        table: LatencyTableLike | None,
        target_ms: float | None,
        config: BudgetConfig,
    ) -> Budget | None:
        """The budget that settings ask for, under a table's conditions; None where they ask for none.

        Raises:
            InfeasibleBudget: no network of the space keeps the budget.
            InvalidInput: a target without a table.
        """
        if not asked_costs(target_ms, config):
            return None
        return cls(space, choices, table, target_ms, config)

    def to(self, device: torch.device) -> Budget:
        """Move costs and multipliers to where the architecture parameters are; returns itself."""
        self.multipliers.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The multipliers, and which kinds of choice they wait for."""
        return {**self.multipliers.state_dict(), "waits_for": list(self._waits_for)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put them back."""
        self.multipliers.load_state_dict(state_dict)
        self._waits_for = tuple(state_dict.get("waits_for", ()))

    def step(self, arch: ArchParameters) -> None:
        """Move the multipliers, and the logits with them (mutated), towards the budget by one step.

        Without ``config.steers``, nothing.
        """
        if not self.config.steers:
            return
        self._waits_for = tuple(kind for kind, matrix in arch.matrices.items() if not matrix.requires_grad)
        if not self._waits_for:
            self.multipliers.step(arch)

    def switch_off(self, arch: ArchParameters) -> None:
        """Switch off the options that may not run anywhere, in ``arch.alive`` (mutated)."""
        for condition in self.programme.forbidden:
            factors = [
                (arch.rows[name], options)
                for name, options in condition
                if len(options) < len(self.programme.choices[arch.rows[name]].options)
            ]
            if len(factors) == 1:
                row, options = factors[0]
                arch.alive[row, list(options)] = False

    def spare(self, arch: ArchParameters, died: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Bring back options that a pruner has just switched off (``arch.alive`` is mutated), if need be.

        Where what lives holds no network within the budget any more, those options come back that the
        likeliest such network takes. Returns the options that stay dead.
        """
        # By the first process: of equally likely networks another one's solver may find another.
        likeliest = partial(told_by_first, partial(self.likeliest, arch))
        if not died or likeliest() is not None:
            return died
        choices = self.programme.choices
        places = [(arch.rows[name], choices[arch.rows[name]].options.index(option)) for name, option in died]
        for row, option in places:
            arch.alive[row, option] = True
        found = likeliest()
        assert found is not None, "what was alive before held a network within the budget"
        dead = [place for place in places if found.assignment[choices[place[0]].name] != place[1]]
        for row, option in dead:
            arch.alive[row, option] = False
        return [(choices[row].name, choices[row].options[option]) for row, option in dead]

    def likeliest(
        self, arch: ArchParameters, *, correction: float = 1.0, without: Sequence[Mapping[str, int]] = ()
    ) -> Found | None:
        """The likeliest network of the live options that keeps the budget; None where there is none.

        Under a target that is to be used those come first that lie in the middle half of the predictions that
        use it, where an error of either sign does least harm; then those that use it; then all.

        Args:
            arch: whose probabilities.
            correction: measured ÷ predicted milliseconds: predictions are multiplied by it.
            without: networks that must not be found again.
        """
        likelihoods = relative_likelihoods(arch.logits, arch.alive)
        slack = self._slack
        uses = [] if slack is None else [(1.0 - 0.75 * slack, 1.0 - 0.25 * slack), (1.0 - slack, 1.0)]
        for least, most in (*uses, (0.0, 1.0)):
            limits = self._limits(correction, least, most)
            assignment = self.programme.likeliest(likelihoods, limits, without=without)
            if assignment is not None:
                return Found(assignment, near=slack is None or least > 0.0)
        return None

    def fastest(self) -> dict[str, int]:
        """The network of least latency that keeps the other costs, dead options included."""
        others = [limit for name, limit in self.limits.items() if name != "latency_ms"]
        found = self.programme.cheapest(self.limits["latency_ms"].cost, others)
        assert found is not None, "a budget that no network keeps was refused"
        return found

    def costs(self, assignment: Mapping[str, int]) -> dict[str, float]:
        """What a network costs, by the name of each cost that was asked for."""
        found = {name: limit.cost.at(assignment) for name, limit in self.limits.items()}
        if self.activations:
            found["activation_mib"] = peak(self.activations, assignment)
        return found

    def keeps(self, assignment: Mapping[str, int]) -> bool:
        """Whether a network costs at most what was asked for, by prediction."""
        most = self.most()
        return all(cost <= most[name] for name, cost in self.costs(assignment).items())

    def remarks(self, measured_ms: float | None = None) -> tuple[str, ...]:
        """What a reader of what was found should know of what was asked, and of what was measured."""
        said = []
        if self._waits_for and self.limits:
            kinds = " and ".join(self._waits_for)
            said.append(
                f"Nothing was held at the budget while searching: choices of kind {kinds} never learnt "
                "(arch_from_epoch, depth_from_epoch). It is kept by the network that was chosen alone."
            )
        slowest_ms, below = self._slowest_ms, self.config.below
        if self.target_ms is None or slowest_ms is None:
            return tuple(said)
        if self.target_ms >= slowest_ms:
            said.append(
                f"The slowest network takes {slowest_ms:.4g} ms by the table: the target rules nothing out."
            )
        elif below is not None and measured_ms is not None and measured_ms < (1.0 - below) * self.target_ms:
            wasted = 100.0 * (1.0 - measured_ms / self.target_ms)
            said.append(
                f"Measured, it lies {wasted:.3g} % below the target, more than the {100.0 * below:.3g} % of "
                "budget.below: no network measured that keeps the target lies nearer."
            )
        return tuple(said)

    def most(self) -> dict[str, float]:
        """What was asked for, by the name of the cost."""
        asked = {name: limit.most for name, limit in self.limits.items()}
        if self.config.max_activation_mib is not None:
            asked["activation_mib"] = self.config.max_activation_mib
        return asked

    def values(self, arch: ArchParameters) -> dict[str, Any]:
        """For the log: expected costs and multipliers, by name."""
        probabilities = arch.probabilities()
        return {
            "expected": {name: limit.cost.total(probabilities) for name, limit in self.limits.items()},
            "multipliers": self.multipliers.by_name(),
        }

    @property
    def _slack(self) -> float | None:
        """By which share of the target a prediction that uses it may lie below it; None: by anything."""
        if self.config.below is None:
            return None
        # As far above the lower end of what is accepted when measured as the target is below the upper end;
        # but some room there must be, or no prediction would be near it, and any below the target would do.
        return max(self.config.below / 2, self.config.below - self.config.above)

    def _limits(self, correction: float, least: float, most: float) -> list[Limit]:
        """The limits, latency's between two shares of the target by corrected predictions."""
        # A correction is not exact: the product of prediction and correction must not round above the target.
        rounding = 1.0 if correction == 1.0 else 1.0 - 1e-12
        limits = []
        for name, limit in self.limits.items():
            if name == "latency_ms":
                target_ms = limit.most / correction * rounding
                limit = Limit(limit.cost, most * target_ms, least * target_ms)
            limits.append(limit)
        return limits

    def _multipliers(self) -> Multipliers:
        """One for each cost, and where the expected costs are to be."""
        costs = {name: limit.cost for name, limit in self.limits.items()}
        aims = {name: limit.most for name, limit in self.limits.items()}
        if self.target_ms is None:
            return Multipliers(costs, aims)
        cost = costs["latency_ms"]
        fastest_ms = cost.at(self.fastest())
        slowest = self.programme.dearest(cost)
        assert slowest is not None
        self._slowest_ms = cost.at(slowest)
        aim_ms = max((1.0 - (self._slack or 0.0) / 2) * self.target_ms, (1 + 2 * REACHED) * fastest_ms)
        aims["latency_ms"] = min(aim_ms, self.target_ms)
        # Slower than every network: it rules nothing out. Beside other costs: one could push up what the
        # other pushes down. A ceiling pushes nothing up.
        is_used = self.config.below is not None and self.target_ms < self._slowest_ms
        return Multipliers(costs, aims, ["latency_ms"] if is_used and len(costs) == 1 else [])

    def _require_feasible(self) -> None:
        if self.programme.possible(list(self.limits.values())):
            return
        free = Programme(self.programme.choices, self.programme.recording)
        lines: list[str] = []
        nearest: dict[str, int] | None = None
        for name, limit in self.limits.items():
            found = range_of(limit.cost, free)
            lines.append(f"  {name}: asked for at most {limit.most:.6g}; its networks take {found}")
            if nearest is None and found.min > limit.most:
                nearest = free.cheapest(limit.cost)
        if self.activations:
            most, found = self.config.max_activation_mib, peak_range(self.activations, free)
            lines.append(f"  activation_mib: asked for at most {most:.6g}; its networks take {found}")
        if nearest is None and self.limits:
            # Each could be kept, not all together: the first gives way to the others.
            first, *others = self.limits.values()
            nearest = self.programme.cheapest(first.cost, others) or free.cheapest(first.cost)
        if nearest is None:
            nearest = of_least_peak(self.activations, free)
        if nearest is not None:
            costs = ", ".join(f"{name} {_rounded_up(value)}" for name, value in self.costs(nearest).items())
            lines.append(f"The nearest network is {self.space.genotype(nearest).short_id}: {costs}.")
        raise InfeasibleBudget("\n".join([f"no network of {self.space.name} keeps this budget:", *lines]))


def _rounded_up(value: float) -> str:
    """Five digits, so that a budget of that is kept."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 4) if value > 0 else 1.0
    return f"{math.ceil(value / unit) * unit:.6g}"
