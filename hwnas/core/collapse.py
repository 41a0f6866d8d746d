"""Noticing searches that collapse: into nothing, too early, or never moving at all."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hwnas.core.arch import ArchParameters
from hwnas.core.choice import Block, Choice, ChoiceBlock, blocks
from hwnas.errors import HwnasWarning, in_short
from hwnas.record import Recording

Sign = Literal["passive", "early", "still"]


class CollapseWarning(HwnasWarning):
    """What a search finds will be worth little: its choices end in nothing, too early, or do not move."""


def passive_options(supernet: nn.Module, recording: Recording) -> dict[str, frozenset[int]]:
    """By choice of op, the options that compute nothing; choices without one are left out.

    An option is passive if it has no parameters and returns one of its inputs ("skip") or zeros ("zero"),
    whatever its class or name: it is tried on random numbers of the shapes that its block gets. Where several
    blocks share a choice, it must be so in all of them. An option that halves the image with convolutions of
    its own, as DARTS's skip of stride 2 does, computes something and is not passive.

    Args:
        supernet: left untouched.
        recording: of the supernet.
    """
    shapes = {use.choice: use.input_shapes for use in reversed(recording.blocks)}
    device = next((parameter.device for parameter in supernet.parameters()), torch.device("cpu"))
    found: dict[str, frozenset[int]] = {}
    for block in blocks(supernet):
        name = block.choice.name
        if not isinstance(block, ChoiceBlock) or name not in shapes:
            continue
        left = found.get(name, frozenset(range(len(block.options))))
        candidates = {k for k in left if _may_be_passive(block.options[k])}
        if candidates:
            generator = torch.Generator().manual_seed(0)
            inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes[name]]
            candidates = {k for k in candidates if _is_passive(block.options[k], inputs)}
        found[name] = frozenset(candidates)
    return {name: options for name, options in found.items() if options}


def _may_be_passive(option: nn.Module) -> bool:
    learns = next(option.parameters(), None) is not None
    return not learns and not any(isinstance(part, Block) for part in option.modules())


def _is_passive(option: nn.Module, inputs: list[Tensor]) -> bool:
    training = option.training
    option.eval()
    with torch.no_grad():
        output = option(*inputs)
    option.train(training)
    if not isinstance(output, Tensor):
        return False
    return not bool(output.any()) or any(
        x.shape == output.shape and bool(torch.equal(x, output)) for x in inputs
    )


class CollapseMonitor:
    """Watches the architecture parameters, epoch by epoch, for three signs of a search that fails.

    - *passive*: in the most likely network more of the ops are passive (:func:`passive_options`) than halfway
      from the share that chance gives to all of them. Known of DARTS, whose cells fill with skips.
    - *early*: before a quarter of their training is over, more than half of the choices are decided, by their
      probabilities or by a pruner that has left one option. What was decided then follows from weights that
      had hardly learnt.
    - *still*: after half of their training no probability has changed by as much as ``STILL``. What is
      likeliest is then little better than a draw.

    Args:
        arch: the parameters.
        recording: says which choices matter in a network.
        passive: from :func:`passive_options`.
    """

    STEPS = 100
    """Steps of the architecture parameters before anything is judged."""
    CHOICES = 4
    """The fewest ops with a passive option that are judged for being passive."""
    DECIDED = 0.95
    """Probability of an option from which its choice counts as decided."""
    STILL = 0.05
    """Change of the probabilities of a choice, in total variation, below which it counts as not moved."""

    def __init__(
        self, arch: ArchParameters, recording: Recording, passive: Mapping[str, frozenset[int]]
    ) -> None:
        self.arch = arch
        self.recording = recording
        self.passive = passive
        self._began = arch.probabilities().detach().cpu()
        self._steps = 0
        self._said: list[str] = []

    def values(self) -> dict[str, Any]:
        """The numbers of the moment.

        ``passive``: share of passive ops among those of the most likely network that could be; None where
        none could. ``entropy``: mean over choices, of the entropy as a share of what it can be, by kind of
        choice.
        ``moved``: the largest total variation of a choice since the beginning.
        """
        chosen, could = self._passive()
        entropies: dict[str, list[float]] = {}
        for choice, row in self._open():
            entropy = -sum(p * math.log(p) for p in row if p > 0)
            entropies.setdefault(choice.kind, []).append(entropy / math.log(len(row)))
        return {
            "passive": len(chosen) / len(could) if could else None,
            "entropy": {kind: sum(values) / len(values) for kind, values in entropies.items()},
            "moved": float(self._moved().max()),
        }

    def newly_seen(self, steps: int, done: float) -> list[tuple[Sign, list[str]]]:
        """Signs with the choices concerned, each said once.

        Args:
            steps: of the architecture parameters since the last call.
            done: share of their training that is over, 0 to 1.
        """
        self._steps += steps
        if self._steps < self.STEPS:
            return []
        seen: list[tuple[Sign, list[str]]] = []
        chosen, could = self._passive()
        even = [
            len(self.passive[name]) / len(self.arch.choices[self.arch.rows[name]].options) for name in could
        ]
        if len(could) >= self.CHOICES and len(chosen) / len(could) > (1 + sum(even) / len(even)) / 2:
            seen.append(("passive", chosen))
        undecided = self._open()
        # Those that a pruner has left one option of are decided, too; those that never had two are not.
        open_still = {choice.name for choice, row in undecided if max(row) <= self.DECIDED}
        began = zip(self.arch.choices, self._began, strict=True)
        had = [choice.name for choice, row in began if int((row > 0).sum()) > 1]
        decided = [name for name in had if name not in open_still]
        if done <= 0.25 and len(decided) > len(had) / 2:
            seen.append(("early", decided))
        if done >= 0.5 and undecided and float(self._moved().max()) < self.STILL:
            seen.append(("still", [choice.name for choice, _ in undecided]))
        new = [(sign, names) for sign, names in seen if sign not in self._said]
        self._said += [sign for sign, _ in new]
        return new

    def advice(self, sign: Sign, names: Collection[str]) -> str:
        """What to say of a sign: what is seen, what it means, and what to do."""
        shown = in_short(names)
        if sign == "passive":
            return (
                f"the most likely network skips or zeroes {shown}: little is left that could learn. Let the "
                "weights train longer before choices move (--set arch_from_epoch=…), or lower the latency "
                "weight, if no target asks for so little."
            )
        if sign == "early":
            return (
                f"{shown} were decided in the first quarter of their training, by weights that had hardly "
                "learnt. Let the weights train longer first (--set arch_from_epoch=…), or move choices more "
                "slowly (--set arch_lr=…)."
            )
        return (
            f"after half of their training, the probabilities of {shown} have moved by at most "
            f"{100 * float(self._moved().max()):.1f} %: the most likely network will be little better than "
            "one drawn at random. Raise arch_lr, or train for more epochs."
        )

    def _open(self) -> list[tuple[Choice, list[float]]]:
        """Choices with more than one live option, and the probabilities of those."""
        probabilities, alive = self.arch.probabilities().detach().cpu().tolist(), self.arch.alive.tolist()
        rows = [
            (choice, [p for p, live in zip(row, living, strict=True) if live])
            for choice, row, living in zip(self.arch.choices, probabilities, alive, strict=True)
        ]
        return [(choice, row) for choice, row in rows if len(row) > 1]

    def _passive(self) -> tuple[list[str], list[str]]:
        """Choices of the most likely network that are passive, and those that could be."""
        best = self.arch.argmax()
        could = [name for name in self.recording.live_choices(best) if name in self.passive]
        return [name for name in could if best[name] in self.passive[name]], could

    def _moved(self) -> Tensor:
        """Total variation between the probabilities now and at the beginning, ``[choices]``."""
        return (self.arch.probabilities().detach().cpu() - self._began).abs().sum(dim=-1) / 2

    def state_dict(self) -> dict[str, Any]:
        """Where probabilities began, steps so far, and what was said."""
        return {"began": self._began, "steps": self._steps, "said": list(self._said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        self._began = state_dict["began"]
        self._steps = state_dict["steps"]
        self._said = list(state_dict["said"])
