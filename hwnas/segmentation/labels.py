"""What labels mean: the value of what is unknown, and the classes with their names and colours."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwnas.errors import DataError, refusals

VOID = 255
"""Target value of pixels that belong to no class: neither learnt nor scored, in any data set here."""


class Labelling(BaseModel):
    """What a network's class numbers mean, and how its pictures are normalised. Frozen.

    All that a picture's way through a network depends on, besides the network: part of exported files and of
    the zoo's cards, so that these need no data set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    """Names, in the order of the class numbers."""
    palette: tuple[tuple[int, int, int], ...]
    """An RGB colour (0…255) for each class."""
    mean: tuple[float, float, float]
    """Of red, green and blue in 0…1: what is subtracted from a picture."""
    std: tuple[float, float, float]
    """What it is then divided by."""
    ignore_index: int = VOID
    """Target value of pixels that belong to no class."""

    @model_validator(mode="after")
    def _one_colour_each(self) -> Self:
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes, but {len(self.palette)} colours")
        return self

    @classmethod
    def of(cls, dataset: Any) -> Labelling:
        """That of a data set, or of its class where the class says all of it.

        Raises:
            DataError: there are fewer than two classes, or it does not say all of it, or contradicts itself.
        """
        values = {name: getattr(dataset, name, None) for name in cls.model_fields}
        try:
            return cls(**values)
        except ValidationError as error:
            kind = dataset if isinstance(dataset, type) else type(dataset)
            raise DataError(
                f"{kind.__name__} does not say what its labels mean:\n{refusals(error, values)}"
            ) from error
