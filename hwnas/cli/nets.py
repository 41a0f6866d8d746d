"""What a command line names as a trained network: a run's folder, an exported file, or one of the zoo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.cli.data import DataChoice, image_shape
from hwnas.cli.folder import RunFolder, RunSetup
from hwnas.errors import InvalidInput
from hwnas.lookup import meant

if TYPE_CHECKING:
    from torch import nn

    from hwnas.core.genotype import Genotype
    from hwnas.segmentation.labels import Labelling


@dataclass(frozen=True)
class Net:
    """A trained network with what is known of it.

    Attributes:
        network: in eval mode.
        input_shape: channels, height and width of its images.
        genotype: None for a file that hwnas did not write.
        labelling: None where nothing says what its classes are.
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    genotype: Genotype | None
    labelling: Labelling | None

    def require_own(self, labelling: Labelling, name: str, data: str) -> None:
        """Refuse data that mean something else by their classes, or are normalised otherwise.

        Args:
            labelling: of the data.
            name: of the network.
            data: name of the data set.

        Raises:
            InvalidInput: names what differs; never where nothing says what the network's classes are.
        """
        own = self.labelling
        if own is None:
            return
        if own.classes != labelling.classes:
            raise InvalidInput(
                f"{name} tells apart {', '.join(own.classes)}; the classes of {data} are "
                f"{', '.join(labelling.classes)}: give it data with its own classes."
            )
        # The value of unlabelled pixels is the data's alone: no network gives it.
        for field in ("mean", "std"):
            wanted, given = getattr(own, field), getattr(labelling, field)
            if wanted != given:
                raise InvalidInput(
                    f"{name} wants pictures normalised with {field} {wanted}, and {data} normalises with "
                    f"{given}, which it was never trained for. Give it data that are normalised alike."
                )


def is_run(name: str) -> bool:
    """Whether ``name`` is a folder, and no network that the zoo packed."""
    return Path(name).is_dir() and not RunFolder(Path(name)).is_of_the_zoo


def is_of_the_zoo(name: str) -> bool:
    """Whether ``name`` is a network that comes with hwnas, or a folder that the zoo packed."""
    from hwnas import zoo

    return not is_run(name) and (name in zoo.names() or RunFolder(Path(name)).is_of_the_zoo)


def require_net(name: str, *, files: bool = True) -> None:
    """Refuse what names no network at all.

    Args:
        name: as of :func:`find_net`.
        files: whether an ONNX file would do; one that is not there is left to who reads it.

    Raises:
        InvalidInput: it names none.
    """
    if is_run(name) or is_of_the_zoo(name) or Path(name).suffix == ".onnx" or Path(name).is_file():
        return
    from hwnas import zoo

    kinds = "no run folder, no ONNX file and" if files else "no run folder and"
    there = zoo.names()
    raise InvalidInput(
        f'there is {kinds} no network of the zoo called "{name}"{meant(name, there)}. hwnas search makes a '
        f"run; the zoo has: {', '.join(there) or 'none yet'}."
    )


def refuse_zoo(run: Path) -> None:
    """Refuse the name of a network of the zoo where a run's folder is wanted, and say what takes it.

    Raises:
        InvalidInput: it is one, and no such folder is here.
    """
    from hwnas import zoo

    if not run.exists() and str(run) in zoo.names():
        raise InvalidInput(
            f"{run} is a trained network of the zoo, and no run: hwnas eval, predict, export, measure and "
            f"derive take it, fit with --out, and  hwnas zoo show {run}  tells of it."
        )


def find_net(name: str, data: str | None = None, *, trained: bool = True) -> Net:
    """The network that ``name`` names.

    Args:
        name: a run's folder, an ``.onnx`` file, a network of the zoo, or a folder in the zoo's layout.
        data: as ``--data``: what the classes of a run's network are where the run does not say.
        trained: a run's own weights, or fresh ones.

    Raises:
        InvalidInput: there is none of that name; or fresh weights are asked of what has no run.
        CheckpointError: a run without weights.
        DataError: a file that is no exported network, or a damaged one of the zoo.
        GenotypeError: a folder of the zoo with a space that is neither known nor imported.
    """
    if is_run(name):
        folder = RunFolder(Path(name))
        setup = RunSetup.load(folder.path)
        choice = folder.data(data, {}) if data or setup else None
        return Net(
            folder.network(trained=trained),
            image_shape(folder.space),
            folder.genotype,
            choice.labelling() if choice else None,
        )
    if not trained:
        raise InvalidInput(f"{name} is no run: only a run's network can be had with fresh weights.")
    if Path(name).suffix == ".onnx" or Path(name).is_file():
        from hwnas.deploy.onnx_network import OnnxNetwork

        found = OnnxNetwork(name)
        about = found.description
        return Net(
            found,
            (3, *found.size),
            about.genotype if about else None,
            about.labelling if about else None,
        )
    require_net(name)
    from hwnas import zoo

    entry = zoo.find(name)
    return Net(entry.network(), entry.card.input_shape, entry.genotype, entry.card.labelling)


def data_for(name: str, data: str | None, settings: dict[str, Any]) -> DataChoice:
    """The images to use with a network: those named, else those of its run.

    Raises:
        InvalidInput: neither names any.
    """
    if is_run(name):
        return RunFolder(Path(name)).data(data, settings)
    if data is None:
        require_net(name)
        raise InvalidInput(f"{name} does not say where images are: name them with --data NAME:DIR.")
    return DataChoice.of(data, 8, settings)
