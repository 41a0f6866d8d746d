"""The card of a trained network: where it comes from, what it scores, how long it takes, and on what."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from hwnas.errors import DataError, refusals
from hwnas.segmentation.labels import Labelling

SCHEMA_VERSION = 1

NAME_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""What a network may be called: the name is a folder's."""


class Score(BaseModel):
    """One evaluation. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    """The data set that was evaluated on, with classes of its own; None: the card's."""
    split: str
    """What was evaluated on: which part of them."""
    trained_on: str
    """What had been trained on: the card's split, unless the score is of a twin that held images out."""
    images: int | None = None
    """How many that were; None where the evaluation does not say."""
    miou: float
    """Mean intersection over union, percent."""
    per_class: dict[str, float | None]
    """Of each class; None where it neither occurs nor is predicted."""


class Latency(BaseModel):
    """One measurement, with all that the number depends on. Frozen."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    median_ms: float
    """Of one run of the network: :attr:`hwnas.latency.timing.Timing.median_ms`."""
    spread_ms: float
    """Half the width of the central 68 % of all readings."""
    count: int
    """Number of readings."""
    device: str
    """Where it was measured."""
    backend: str
    """With what."""
    precision: str
    """What the network computed in; not what its weights are kept in here."""
    batch: int
    """Images in a run."""
    threads: int
    """Of the CPU; without meaning on a GPU."""
    versions: dict[str, str] = {}
    """Of the runtime and what it stands on."""
    settings: dict[str, str] = {}
    """What else was chosen for the runtime."""
    remarks: tuple[str, ...] = ()
    """What a reader should know before believing the number."""


class Card(BaseModel):
    """What is known of one trained network; JSON in ``card.json``. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    """Of the card's fields."""
    name: str = Field(pattern=NAME_PATTERN)
    """What ``hwnas.load`` calls it, and its folder."""
    about: str
    """One line that says what it is."""
    genotype: str
    """Id of its architecture, which is in ``genotype.json``."""
    input_shape: tuple[int, int, int]
    """Channels, height and width that it was trained and measured at."""
    parameters: int
    """How many numbers were trained."""
    labelling: Labelling
    """Classes, their colours, and how pictures are normalised."""
    data: str
    """Name of the data set that it was trained on."""
    split: str
    """Of these data."""
    data_licence: str
    """Under what terms the data are to be had: the weights learnt from them."""
    seed: int
    """Of the training."""
    recipe: dict[str, JsonValue]
    """How it was trained, as the run's folder has it."""
    training_device: str
    """What the training ran on."""
    training_seconds: float
    """Wall time of the epochs of all stages, a teacher's among them."""
    scores: tuple[Score, ...] = ()
    """Evaluations on images that were held out, the network's own or a twin's."""
    latency: Latency | None = None
    """How long it takes; None where that was not measured."""
    fp16_agreement_percent: float
    """Weights are kept in fp16: for so many pixels they name the class that the trained ones do."""
    fp16_agreement_images: int
    """Of how many images these pixels are."""
    sha256: str
    """Of ``weights.safetensors``."""
    size_bytes: int
    """Of the same file."""
    versions: dict[str, str]
    """Of hwnas, torch and Python, that trained or packed it."""

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read a card.

        Raises:
            DataError: no such file, a damaged one, or one of a newer schema.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"no card at {path}.") from None
        except ValidationError as error:
            raise DataError(f"{path} is not a card of a network:\n{refusals(error)}") from error
        if found.schema_version > SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema {found.schema_version}, this hwnas reads up to {SCHEMA_VERSION}: "
                "upgrade hwnas."
            )
        return found
