"""What a candidate op is: a module that knows how to be rebuilt, alone, on another machine.

The unit is what a compiler fuses (convolution, batch norm and activation together), not a layer. Glue that
costs time (pre-process, addition, concatenation, resizing) is an op too: whatever executes has a latency row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator
from torch import nn

from hwnas.errors import InvalidInput, SpaceError

Attribute = bool | int | float | str | tuple[int, ...]
"""What an op may be parametrised by: values that survive JSON unchanged."""


class OpSpec(BaseModel):
    """The recipe of an op: its registered kind and the attributes its constructor takes.

    Frozen, hashable, equal by value. Attributes are sorted by name, so that spelling order does not matter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Registered name, ``"<space>.<op>"`` by convention, for example ``"autortnet.sep_conv"``."""
    attributes: tuple[tuple[str, Attribute], ...] = ()
    """Constructor arguments as ``(name, value)`` pairs, sorted by name."""

    @field_validator("attributes")
    @classmethod
    def _sorted(cls, pairs: tuple[tuple[str, Attribute], ...]) -> tuple[tuple[str, Attribute], ...]:
        return tuple(sorted(pairs))

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value}" for name, value in self.attributes)
        return f"{self.kind}({arguments})"


class OpKey(BaseModel):
    """The identity of one latency row: which op, on inputs of which shapes.

    Device, runtime and precision are not in it: they head the table. Frozen, hashable, JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: OpSpec
    input_shapes: tuple[tuple[int, ...], ...]
    """Shapes of the op's tensor inputs in order, batch first: ``((1, 24, 90, 120),)``."""

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        return f"{self.spec} @ {shapes}"


class Op(nn.Module):
    """A module with a latency row of its own.

    A subclass is registered with :func:`register_op`, takes only JSON values, and hands them on::

        @register_op("myspace.conv")
        class Conv(Op):
            def __init__(self, c_in: int, c_out: int) -> None:
                super().__init__(c_in=c_in, c_out=c_out)
                self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    Its ``forward`` takes tensors only (one or more) and returns one tensor, whose shape must depend on
    nothing but the inputs' shapes and the attributes. Attributes that change the weights but not the time
    (an affine batch norm, an initialisation) do not belong among them.

    Raises:
        SpaceError: the class was not registered.
    """

    kind: str = ""
    """Registered name; set by :func:`register_op`."""

    def __init__(self, **attributes: Attribute) -> None:
        super().__init__()
        if "kind" not in type(self).__dict__:
            raise SpaceError(
                f"{type(self).__name__} is not a registered op, so it could not be rebuilt to be timed. "
                f'Decorate the class with @register_op("<space>.{type(self).__name__.lower()}").'
            )
        self.spec = OpSpec(kind=self.kind, attributes=tuple(attributes.items()))


_REGISTRY: dict[str, type[Op]] = {}

_OpClass = TypeVar("_OpClass", bound=type[Op])


def register_op(kind: str) -> Callable[[_OpClass], _OpClass]:
    """Make a subclass of :class:`Op` known under ``kind``, so that tables can name it and rebuild it.

    Raises:
        SpaceError: another class has this kind already.
    """

    def register(cls: _OpClass) -> _OpClass:
        known = _REGISTRY.get(kind)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SpaceError(
                f'op kind "{kind}" is taken by {known.__module__}.{known.__qualname__}; '
                f"give {cls.__module__}.{cls.__qualname__} another one."
            )
        cls.kind = kind
        _REGISTRY[kind] = cls
        return cls

    return register


def registered_ops() -> Mapping[str, type[Op]]:
    """All registered op classes by kind (a copy)."""
    return dict(_REGISTRY)


def build_op(spec: OpSpec) -> Op:
    """A fresh op, with fresh weights, made from its recipe.

    Raises:
        InvalidInput: no class is registered for ``spec.kind``, or it does not take these attributes.
    """
    cls = _REGISTRY.get(spec.kind)
    if cls is None:
        raise InvalidInput(
            f'no op is registered as "{spec.kind}" (known: {", ".join(sorted(_REGISTRY)) or "none"}). '
            "Import the module of the search space that defines it first."
        )
    arguments: dict[str, Any] = dict(spec.attributes)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise InvalidInput(f"{spec} does not fit the constructor of {cls.__qualname__}: {error}") from error
