"""A search space: what a user writes, and what comes for free from it."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hwnas.core.choice import Choice, choices_of
from hwnas.core.derive import derive
from hwnas.core.genotype import Genotype
from hwnas.errors import GenotypeError, InvalidInput, refusals
from hwnas.record import Recording, record


class Metric(Protocol):
    """A quality measured over a whole data set.

    One that also has ``sums()`` and ``take_sums(sums)``, as :class:`hwnas.core.distributed.Additive`, is
    shared by several processes; any other each of them measures whole.
    """

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in one batch: the network's outputs and the targets."""
        ...

    def compute(self) -> Mapping[str, Any]:
        """The result so far; the first entry is the headline number, in percent where it is a rate."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...


class Preset(BaseModel):
    """A named starting point: values for a space's fields, and settings for its search and its training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    """One line that says what it is for."""
    fields: dict[str, Any] = Field(default_factory=dict)
    """Values for the space's own fields."""
    search: dict[str, Any] = Field(default_factory=dict)
    """Values for :class:`hwnas.SearchConfig`."""
    fit: dict[str, Any] = Field(default_factory=dict)
    """Values for :class:`hwnas.FitConfig`."""
    batch: int = Field(8, ge=1)
    """Images in a training batch."""


class _Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled: on meta tensors nobody reads them, and drawing them takes seconds."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in _FILLS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


_FILLS = frozenset(
    {"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"}
    | {"xavier_normal_", "orthogonal_", "zero_", "fill_", "ones_", "zeros_", "constant_"}
)


class SearchSpace(BaseModel, ABC):
    """What can be searched: a frozen model whose fields are its JSON and its command-line options.

    A subclass says three things: :meth:`input_shape`, :meth:`supernet` and, where cross-entropy will not do,
    :meth:`loss`. Recording, latency keys, derivation, random sampling and counting come for free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """What genotypes, tables and runs call it, and find it by: ``package.module:Class``, unless a class gives
    itself the name that an entry point in ``hwnas.search_spaces`` has for it."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """Named starting points, by name."""

    # A space is frozen, so what was read off its supernet once holds for good.
    _recordings: dict[int, Recording] = PrivateAttr(default_factory=dict)
    _choices: dict[str, Choice] = PrivateAttr(default_factory=dict)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        # An inherited name would have files rebuild another class.
        if "name" not in cls.__dict__:
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    def __eq__(self, other: object) -> bool:
        # What has been recorded so far (private, a cache) does not make a space another one.
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), self.model_dump_json()))

    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch: ``(channels, height, width)`` for images."""

    @abstractmethod
    def supernet(self) -> nn.Module:
        """A fresh network with blocks in it, on the default device, weights initialised."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The task's loss in the search, a scalar. Default: cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def loss_weight(self, targets: Tensor) -> Tensor | float:
        """How many things :meth:`loss` is the mean over, for weighing the shares of several processes.

        Default: one for each example.
        """
        return float(len(targets))

    def fit_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss when the derived network is trained. Default: the same as in the search."""
        return self.loss(outputs, targets)

    def auxiliary_heads(self, network: nn.Module) -> Mapping[str, nn.Module]:
        """Fresh heads that help to train a derived network: see ``auxiliary`` of :func:`hwnas.fit`.

        Default: none.
        """
        return {}

    def image_classifier(self, network: nn.Module) -> nn.Module:
        """A module with the weights of ``network`` whose logits, averaged over the map, classify an image.

        Default: ``network`` itself. Worth its own where that resizes its logits to the size of the image.
        """
        return network

    def metric(self) -> Metric | None:
        """A fresh metric for evaluation, or None where there is none."""
        return None

    def described(self) -> dict[str, Any]:
        """Its name and its fields, as JSON: what a latency table says that it is of."""
        return {"name": self.name, **self.model_dump(mode="json")}

    @classmethod
    def from_preset(cls, preset: str | None = None, **fields: Any) -> Self:
        """The space with a preset's fields, overridden by ``fields``.

        Raises:
            InvalidInput: no such preset, or values that the fields refuse.
        """
        values = {**(cls.preset(preset).fields if preset else {}), **fields}
        try:
            return cls(**values)
        except ValidationError as error:
            raise InvalidInput(f"{cls.name} refuses these values:\n{refusals(error, values)}") from error

    @classmethod
    def preset(cls, preset: str) -> Preset:
        """The preset of that name.

        Raises:
            InvalidInput: there is none.
        """
        if preset not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise InvalidInput(f'{cls.name} has no preset "{preset}"; it has: {known}.')
        return cls.presets[preset]

    def record(self, batch: int = 1) -> Recording:
        """All op uses of the supernet with their conditions at this space's input shape; computes nothing."""
        if batch not in self._recordings:
            supernet = self.skeleton()
            if not self._choices:
                self._choices.update(choices_of(supernet))
            inputs = torch.empty(batch, *self.input_shape(), device="meta")
            self._recordings[batch] = record(supernet, [inputs])
        return self._recordings[batch]

    def skeleton(self) -> nn.Module:
        """A supernet on the meta device: its structure and shapes, without any numbers."""
        with torch.device("meta"), _Unfilled():
            return self.supernet()

    def choices(self) -> dict[str, Choice]:
        """The choices of the supernet by name."""
        if not self._choices:
            self.record()
        return dict(self._choices)

    def genotype(self, assignment: Mapping[str, int]) -> Genotype:
        """The canonical genotype of an assignment (name → option index), without choices that cannot matter.

        Raises:
            GenotypeError: a choice that matters is missing, or its index is out of range.
        """
        choices = self.choices()
        live = self.record().live_choices(assignment)
        missing = [name for name in live if name not in assignment]
        if missing:
            raise GenotypeError(f"nothing is decided about {', '.join(missing)}.")
        named: dict[str, str] = {}
        for name in sorted(live):
            options, index = choices[name].options, assignment[name]
            if not 0 <= index < len(options):
                raise GenotypeError(f'choice "{name}" has options 0 to {len(options) - 1}, got {index}.')
            named[name] = options[index]
        return Genotype(space=self.name, fields=self.model_dump(mode="json"), choices=named)

    def assignment(self, genotype: Genotype) -> dict[str, int]:
        """The option indices that ``genotype`` names, checked against this space.

        Raises:
            GenotypeError: another space, other fields, an unknown choice or option, or a choice that matters
            missing.
        """
        if genotype.space != self.name:
            raise GenotypeError(f'the genotype is of the space "{genotype.space}", not of "{self.name}".')
        mine = self.model_dump(mode="json")
        # A field that the space has got since then: the architecture was found with its default.
        since = {
            name
            for name, field in type(self).model_fields.items()
            if name not in genotype.fields
            and getattr(self, name) == field.get_default(call_default_factory=True)
        }
        differing = [
            f"  {name}: genotype {genotype.fields.get(name)!r}, space {mine.get(name)!r}"
            for name in sorted((mine.keys() | genotype.fields.keys()) - since)
            if mine.get(name) != genotype.fields.get(name)
        ]
        if differing:
            raise GenotypeError(
                "the genotype was found in a space with other fields:\n" + "\n".join(differing) + "\n"
                f"Rebuild its own space with  {type(self).__name__}(**genotype.fields)."
            )
        choices = self.choices()
        indices: dict[str, int] = {}
        for name, option in genotype.choices.items():
            if name not in choices or option not in choices[name].options:
                known = ", ".join(choices[name].options) if name in choices else "no such choice"
                raise GenotypeError(f'"{name}" cannot be "{option}" ({known}).')
            indices[name] = choices[name].options.index(option)
        missing = [name for name in self.record().live_choices(indices) if name not in indices]
        if missing:
            raise GenotypeError(f"the genotype decides nothing about {', '.join(missing)}.")
        return indices

    def build(self, genotype: Genotype, supernet: nn.Module | None = None) -> nn.Module:
        """The plain network that ``genotype`` describes.

        Args:
            genotype: an architecture of this space.
            supernet: where to take the weights from; default: a fresh one.

        Raises:
            GenotypeError: the genotype does not fit this space.
        """
        assignment = self.assignment(genotype)
        return derive(self.supernet() if supernet is None else supernet, assignment)

    def random_assignment(self, generator: torch.Generator | None = None) -> dict[str, int]:
        """Every choice's option index, uniform over its options; choices that cannot matter included."""
        return {
            name: int(torch.randint(len(choice.options), (), generator=generator))
            for name, choice in self.choices().items()
        }

    def random(self, generator: torch.Generator | None = None) -> Genotype:
        """A random architecture: every choice uniform over its options."""
        return self.genotype(self.random_assignment(generator))

    def cardinality(self) -> int:
        """How many different networks there are: assignments that differ where it cannot matter count once.

        Choices that decide whether other choices matter are enumerated, the rest multiplied.
        """
        choices, recording = self.choices(), self.record()
        gates = sorted({name for use in recording.blocks for name, _ in use.condition})
        total = 0
        for values in itertools.product(*(range(len(choices[name].options)) for name in gates)):
            gate = dict(zip(gates, values, strict=True))
            live = recording.live_choices(gate)
            # A gate that is itself cut away must not multiply the count: count it at its first option only.
            if any(name not in live and value != 0 for name, value in gate.items()):
                continue
            total += math.prod(len(choices[name].options) for name in live if name not in gate)
        return total


def for_classes(space: SearchSpace, genotype: Genotype, num_classes: int) -> tuple[SearchSpace, Genotype]:
    """The space and the architecture that tell so many classes apart, otherwise the same.

    Raises:
        InvalidInput: the space's own number is another, and it has no field ``num_classes``.
    """
    own = getattr(space, "num_classes", None)
    if own == num_classes:
        return space, genotype
    if own is None:
        raise InvalidInput(
            f"the data have {num_classes} classes, and {space.name} has no field num_classes to set to that."
        )
    other = _with_classes(space, num_classes)
    return other, genotype.model_copy(update={"fields": other.model_dump(mode="json")})


# A space remembers what it recorded of its supernet, which takes a second: one object serves all callers.
@lru_cache(maxsize=8)
def _with_classes(space: SearchSpace, num_classes: int) -> SearchSpace:
    return type(space)(**{**space.model_dump(), "num_classes": num_classes})
