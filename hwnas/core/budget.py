"""A budget: what a network may cost, kept in mind while searching and kept exactly by what is found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hwnas.core.arch import ArchParameters
from hwnas.core.choice import Choice
from hwnas.core.costs import activation_mib, macs, parameters, peak
from hwnas.core.discretise import Limit, Programme, relative_likelihoods
from hwnas.core.expected import ExpectedCost, ExpectedLatency
from hwnas.core.space import SearchSpace
from hwnas.errors import InfeasibleBudget, InvalidInput
from hwnas.processes import told_by_first
from hwnas.record import Condition

_REACHED = 0.005  # relative: an expected cost this near to its aim is left alone
_LARGEST_SHIFT = 0.5  # nats by which one step moves the options of a choice at most, weighted by probability
_FARTHEST_SHIFT = 5.0  # nats by which it moves any option, however improbable
_SAMPLES = 2000  # random networks whose median is a space's
_PEAKS = 200  # of these, networks whose peak is looked up: one by one, in Python


class BudgetConfig(BaseModel):
    """What a network may cost beside milliseconds, and how ``target_ms`` is met."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_params: float | None = Field(None, gt=0)
    """Most parameters of the network that is trained; null: any number."""
    max_macs: float | None = Field(None, gt=0)
    """Most multiply-accumulates of one inference on one sample."""
    max_activation_mib: float | None = Field(None, gt=0)
    """Most MiB that the inputs and the output of any one op take together, for the table's batch."""
    steers: bool = True
    """Whether expected costs are held at the budget while searching. False: the loss alone teaches the
    choices, and the budget is kept where networks are chosen; for searches with ``explore=1`` and an
    ``entropy_weight``, in which expected costs are those of a mixture that is never taken."""
    below: float | None = Field(0.08, gt=0, lt=1)
    """A measured network may be faster than the target by this share of it; faster ones waste it. null: by
    anything; the target is a ceiling, under which the likeliest network is taken, however fast."""
    above: float = Field(0.02, ge=0)
    """A measured network may be slower than the target by this share of it."""
    rounds: int = Field(5, ge=1)
    """How many networks are measured at most, each chosen by what the ones before have taught; where all of
    them are too slow, the fastest of the space is measured besides."""
    processes: int | None = Field(None, ge=1)
    """In how many processes each is measured: one differs from the next by some percent. null: as many as the
    backend advises. Up to twice as many further ones follow while readings differ too much."""


def asked_costs(target_ms: float | None, config: BudgetConfig) -> dict[str, float]:
    """What is asked for, by the name of the field; empty where nothing is."""
    fields = {
        "target_ms": target_ms,
        "max_params": config.max_params,
        "max_macs": config.max_macs,
        "max_activation_mib": config.max_activation_mib,
    }
    return {name: most for name, most in fields.items() if most is not None}


@dataclass(frozen=True)
class Range:
    """What the networks of a space cost: the cheapest, a typical one (median of random ones), the dearest."""

    min: float
    median: float
    max: float

    def __str__(self) -> str:
        return f"{self.min:.4g} (min), {self.median:.4g} (median), {self.max:.4g} (max)"


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
    """Costs that a network must keep, with a multiplier for each; a part of the run's state.

    **While searching** it is a method of multipliers (Hestenes 1969, Powell 1969): minimise the task's loss
    over distributions whose expected cost keeps the budget. The Lagrangian's step on the costs is not left to
    Adam, which would divide it by the noise of the task's gradient, but taken apart, in closed form. For a
    multiplier μ, the distribution that is nearest to p and cheaper is ``p · exp(−μ · ∂E[cost]/∂p)``, and the
    gap closes by the variance of that derivative for each unit of μ. So a step of Newton's changes μ by
    ``gap / variance`` and the logits by the derivative times that, or by half a nat (root mean square over a
    choice's options) where that is less. Costs are relative to what is asked, whatever unit and space.

    A target is aimed at from both sides, a little below: networks drawn in training are then of the size that
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
        table: Any,
        target_ms: float | None,
        config: BudgetConfig,
    ) -> None:
        if target_ms is not None and table is None:
            raise InvalidInput(
                "target_ms needs a latency table to know milliseconds by; give one, or use max_macs."
            )
        self.space = space
        self.config = config
        self.target_ms = target_ms
        batch, bytes_per_value = _conditions(table)
        recording = space.record(batch=batch)
        self.limits: dict[str, Limit] = {}
        if target_ms is not None and table is not None:
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
        self.aims = {name: limit.most for name, limit in self.limits.items()}
        self.both_ways = False
        if target_ms is not None:
            self._aim(target_ms)
        self.multipliers = torch.zeros(len(self.limits))

    @classmethod
    def asked(
        cls,
        space: SearchSpace,
        choices: Sequence[Choice],
        table: Any,
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
        for limit in self.limits.values():
            limit.cost.to(device)
        self.multipliers = self.multipliers.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The multipliers."""
        return {"multipliers": self.multipliers}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put them back."""
        self.multipliers.copy_(state_dict["multipliers"])

    def step(self, arch: ArchParameters) -> None:
        """Move the multipliers, and the logits with them (mutated), towards the budget by one step.

        Without ``config.steers``, nothing.
        """
        if not self.config.steers or not all(matrix.requires_grad for matrix in arch.parameters()):
            return
        for place, (name, limit) in enumerate(self.limits.items()):
            gap, slope, variances = _slope(limit.cost, self.aims[name], arch)
            variance = variances.sum()
            largest = torch.minimum(
                _LARGEST_SHIFT / variances.max().sqrt(), _FARTHEST_SHIFT / slope.abs().max()
            )
            change = torch.clamp(gap / variance, -largest, largest)
            moves = (gap.abs() > _REACHED) & (variance > 0)
            before = self.multipliers[place]
            after = before + torch.where(moves, change, 0.0)
            if name != "latency_ms" or not self.both_ways:
                after = after.clamp_min(0.0)
            arch.shift((before - after) * slope)
            self.multipliers[place] = after

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
            "multipliers": dict(zip(self.limits, self.multipliers.tolist(), strict=True)),
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

    def _aim(self, target_ms: float) -> None:
        """Where the expected latency is to be, and whether from both sides."""
        cost = self.limits["latency_ms"].cost
        fastest_ms = cost.at(self.fastest())
        slowest = self.programme.dearest(cost)
        assert slowest is not None
        aim_ms = max((1.0 - (self._slack or 0.0) / 2) * target_ms, (1 + 2 * _REACHED) * fastest_ms)
        self.aims["latency_ms"] = min(aim_ms, target_ms)
        # Slower than every network: it rules nothing out. Beside other costs: one could push up what the
        # other pushes down. A ceiling pushes nothing up.
        self.both_ways = (
            len(self.limits) == 1 and target_ms < cost.at(slowest) and self.config.below is not None
        )

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
            nearest = _of_least_peak(self.activations, free)
        if nearest is not None:
            costs = ", ".join(f"{name} {_rounded_up(value)}" for name, value in self.costs(nearest).items())
            lines.append(f"The nearest network is {self.space.genotype(nearest).short_id}: {costs}.")
        raise InfeasibleBudget("\n".join([f"no network of {self.space.name} keeps this budget:", *lines]))


def _rounded_up(value: float) -> str:
    """Five digits, so that a budget of that is kept."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 4) if value > 0 else 1.0
    return f"{math.ceil(value / unit) * unit:.6g}"


def _slope(cost: ExpectedCost, aim: float, arch: ArchParameters) -> tuple[Tensor, Tensor, Tensor]:
    """The gap (expected ÷ aim − 1), its derivative by the probabilities, centred, and the variances of that.

    Moving the logits by ``−μ · derivative`` changes the gap by ``−μ · Σ variances``, for a small μ. Shapes
    ``[]``, ``[choices, options]`` and ``[choices]``.
    """
    with torch.enable_grad():
        probabilities = arch.probabilities().detach().requires_grad_()
        expected = cost(probabilities) / aim
        (slope,) = torch.autograd.grad(expected, probabilities)
    probabilities = probabilities.detach()
    slope = slope - (probabilities * slope).sum(dim=-1, keepdim=True)
    slope = slope.masked_fill(~arch.alive, 0.0)
    return expected.detach() - 1.0, slope, (probabilities * slope**2).sum(dim=-1)


def range_of(cost: ExpectedCost, programme: Programme) -> Range:
    """The cheapest and the dearest network exactly, the median of random ones."""
    ends = [found for found in (programme.cheapest(cost), programme.dearest(cost)) if found is not None]
    return Range(
        cost.at(ends[0]), float(cost.predict_many(_random(programme.choices)).median()), cost.at(ends[-1])
    )


def peak_range(uses: Sequence[tuple[Condition, float]], programme: Programme) -> Range:
    """The same of a cost that is a maximum over what runs, not a sum; the median of fewer random ones."""
    names = [choice.name for choice in programme.choices]
    drawn = [dict(zip(names, row, strict=True)) for row in _random(programme.choices)[:_PEAKS].tolist()]
    return Range(
        peak(uses, _of_least_peak(uses, programme)),
        median(peak(uses, assignment) for assignment in drawn),
        max(amount for _, amount in uses),
    )


def _of_least_peak(uses: Sequence[tuple[Condition, float]], programme: Programme) -> dict[str, int]:
    """A network whose largest amount of all that runs is the least."""
    values = sorted({amount for _, amount in uses})

    def within(most: float) -> dict[str, int] | None:
        forbidden = [condition for condition, amount in uses if amount > most]
        return Programme(programme.choices, programme.recording, forbidden).any()

    found = within(values[-1])
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        network = within(values[middle])
        if network is None:
            low = middle + 1
        else:
            found, high = network, middle
    assert found is not None, "nothing is forbidden above the greatest amount"
    return found


def _random(choices: Sequence[Choice]) -> Tensor:
    """Option indices of random networks ``[networks, choices]``; the same in whichever order choices come."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        choice.name: torch.randint(len(choice.options), (_SAMPLES,), generator=generator)
        for choice in sorted(choices, key=lambda choice: choice.name)
    }
    return torch.stack([drawn[choice.name] for choice in choices], dim=1)


def ranges(space: SearchSpace, table: Any = None) -> dict[str, Range]:
    """What the networks of a space cost, by the name of the cost; milliseconds where there is a table.

    Raises:
        MissingLatency: the table lacks rows of the space.
    """
    choices = list(space.choices().values())
    batch, bytes_per_value = _conditions(table)
    recording = space.record(batch=batch)
    programme = Programme(choices, recording)
    costs: dict[str, ExpectedCost] = {}
    if table is not None:
        costs["latency_ms"] = ExpectedLatency(recording, choices, table)
    costs |= {"params": parameters(space, choices), "macs": macs(space, choices)}
    found = {name: range_of(cost, programme) for name, cost in costs.items()}
    return found | {"activation_mib": peak_range(activation_mib(recording, bytes_per_value), programme)}


def _conditions(table: Any) -> tuple[int, int]:
    """Batch, and bytes of an activation, under a table's conditions."""
    if table is None:
        return 1, 4
    return table.header.batch, 2 if table.header.precision in ("fp16", "bf16") else 4
