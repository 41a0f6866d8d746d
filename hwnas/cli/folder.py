"""A run's folder, read by the verbs that come after a search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hwnas.cli.data import DataChoice
from hwnas.cli.settings import validated
from hwnas.core.genotype import Genotype
from hwnas.core.runlog import read_log
from hwnas.core.space import SearchSpace, for_classes
from hwnas.core.weights import load_weights
from hwnas.errors import CheckpointError, DataError, InvalidInput, refusals
from hwnas.files import read_json, write_json
from hwnas.names import space_of

if TYPE_CHECKING:
    from torch import nn

    from hwnas.latency.table import LatencyTable


class RunSetup(BaseModel):
    """What a run was started with and no other file of it says; JSON in ``RUN/run.json``. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataChoice
    """Its images; later verbs use the same."""
    preset: str | None = None
    """Name of the preset, whose settings for training ``hwnas fit`` takes."""
    began_with: str | None = None
    """Whose weights its training begins with, and what those had learnt, for people; None: fresh ones."""

    def save(self, run: Path) -> None:
        """Write ``RUN/run.json``, atomically."""
        write_json(run / "run.json", self)

    @classmethod
    def load(cls, run: Path) -> RunSetup | None:
        """What a run's folder says, or None where it says nothing.

        Raises:
            DataError: the file is damaged.
        """
        path = run / "run.json"
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_text())
        except ValidationError as error:
            raise DataError(
                f"{path} does not describe a run:\n{refusals(error)}\n"
                "Restore it, or delete it and name the data with --data."
            ) from error


@dataclass(frozen=True)
class RunFolder:
    """``RUN/``: run.json, search.json, table.json, genotype.json, result.json, recipe.json, the logs,
    weights.pt, eval.json, net.onnx, measure.json, predictions/ and report.html; whatever exists of them.
    """

    path: Path

    @property
    def is_of_the_zoo(self) -> bool:
        """Whether this is no run, but a network that the zoo packed."""
        return (self.path / "card.json").is_file()

    @property
    def genotype(self) -> Genotype:
        """The architecture that was found.

        Raises:
            GenotypeError: there is none yet.
        """
        return Genotype.load(self.path / "genotype.json")

    @property
    def space(self) -> SearchSpace:
        """The space that it was found in, rebuilt from the genotype.

        Raises:
            GenotypeError: there is no genotype; or the folder is the zoo's, which may come from elsewhere,
                and the space is neither known nor imported.
        """
        return space_of(self.genotype, may_import=not self.is_of_the_zoo)

    def network(self, *, trained: bool = True) -> nn.Module:
        """The derived network in eval mode, with the weights of ``weights.pt`` or fresh ones.

        Raises:
            CheckpointError: ``trained``, and there are no weights.
        """
        genotype = self.genotype
        network = self.space.build(genotype)
        if trained:
            path = self.path / "weights.pt"
            if not path.is_file():
                raise CheckpointError(f"no weights at {path}; train them first:  hwnas fit {self.path}")
            load_weights(network, path)
        return network.eval()

    def data(self, name: str | None, settings: dict[str, Any]) -> DataChoice:
        """The data named on the command line, else those of the search.

        Raises:
            InvalidInput: neither names any.
            GenotypeError: the same of a folder that is no run.
        """
        setup = RunSetup.load(self.path)
        recorded = setup.data if setup else None
        if name is not None and (recorded is None or name != recorded.name):
            return DataChoice.of(name, recorded.batch if recorded else 8, settings)
        if recorded is None:
            # What is no run is told as such first.
            Genotype.load(self.path / "genotype.json")
            raise InvalidInput(f"{self.path} does not say which data it is for; name them with --data.")
        own = {key: value for key, value in settings.items() if key in DataChoice.model_fields}
        options = {key: value for key, value in settings.items() if key not in own}
        return validated(
            DataChoice, {**recorded.model_dump(), **own, "options": {**recorded.options, **options}}
        )

    def transferred(self, path: Path, images: DataChoice) -> RunFolder:
        """The same architecture as a run in another folder, for the classes of these images.

        Latency tables, and what was measured, stay behind.

        Raises:
            InvalidInput: there is a run of another architecture, or for other data, in that folder.
        """
        _, genotype = for_classes(self.space, self.genotype, images.class_count())
        other = RunFolder(path)
        begun, there = (path / "genotype.json").is_file(), RunSetup.load(path)
        if begun and other.genotype != genotype:
            raise InvalidInput(f"{path} holds a run of another architecture; name another folder (--out).")
        if there is not None and there.data.name != images.name:
            raise InvalidInput(
                f"{path} holds a run for {there.data.name}, not for {images.name}; "
                "name another folder (--out)."
            )
        # The genotype makes a folder a run: by then the folder knows its data, whenever this is stopped.
        if there is None:
            setup = RunSetup.load(self.path)
            RunSetup(data=images, preset=setup.preset if setup else None).save(path)
        if not begun:
            genotype.save(path / "genotype.json")
        return other

    def begin_with(self, learnt: str | None) -> None:
        """Keep whose weights the training here begins with, as :attr:`RunSetup.began_with`.

        Raises:
            InvalidInput: one that began with others is here already.
        """
        setup = RunSetup.load(self.path)
        if setup is None or setup.began_with == learnt:
            return
        if [*self.path.glob("fit.json"), *self.path.glob("*/fit.json")]:
            raise InvalidInput(
                f"{self.path} holds a training that began with {_weights(setup.began_with)}, not with "
                f"{_weights(learnt)}: go on with the same (--pretrained), or start anew in another folder "
                "(--out)."
            )
        setup.model_copy(update={"began_with": learnt}).save(self.path)

    def table(self) -> LatencyTable | None:
        """The table that the search used, or None."""
        from hwnas.latency.table import LatencyTable

        path = self.path / "table.json"
        return LatencyTable.load(path) if path.is_file() else None

    def read(self, name: str) -> dict[str, Any]:
        """One JSON file of the folder; empty where it does not exist.

        Raises:
            DataError: it is damaged.
        """
        path = self.path / name
        return read_json(path) if path.is_file() else {}

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Write one JSON file into the folder, atomically."""
        write_json(self.path / name, values)

    def epochs(self, name: str) -> list[dict[str, Any]]:
        """The epochs that a log ("search" or "fit") tells of, in order."""
        return [event for event in read_log(self.path / f"{name}.log.jsonl") if event["event"] == "epoch"]

    @property
    def target_ms(self) -> float | None:
        """The milliseconds that the search was asked for, if it was."""
        config = self.search_config
        target: float | None = config.get("target_ms") or config.get("penalty", {}).get("target_ms")
        return target

    @property
    def corrected(self) -> bool:
        """Whether networks measured for the target corrected what is predicted for the one found."""
        budget = self.read("result.json").get("budget") or {}
        # The first network measured was chosen by the table alone, even where it is taken in the end.
        if not budget.get("attempts"):
            return False
        return not math.isclose(budget["predicted_ms"], budget["costs"]["latency_ms"])

    @property
    def search_config(self) -> dict[str, Any]:
        """The settings that the search, or the baseline, began with; empty where there are none."""
        kept = self.read("search.json") or self.read("baseline.json")
        config: dict[str, Any] = kept.get("config", {})
        return config


def _weights(learnt: str | None) -> str:
    return "fresh weights" if learnt is None else f"those of {learnt}"
