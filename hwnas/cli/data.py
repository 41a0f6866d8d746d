"""Which images a run learns from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwnas.cli.settings import validated
from hwnas.core.space import SearchSpace
from hwnas.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from hwnas.segmentation.dataset import SegmentationDataset
    from hwnas.segmentation.labels import Labelling
    from hwnas.segmentation.loaders import Batch


class DataChoice(BaseModel):
    """A data set, its splits and how it is loaded. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "synthetic"
    """``synthetic``, ``camvid:DIR``, ``cityscapes:DIR``, ``folders:DIR``, ``package.module:Class[:DIR]``."""
    batch: int = Field(8, ge=1)
    """Images in a training batch."""
    train: str = "train"
    """Split that trains; several are joined by "+"."""
    val: str = "val"
    """Split that evaluates."""
    arch: str | None = None
    """Split that trains α and β in steps of their own (bilevel); null: the training split does."""
    workers: int = Field(0, ge=0)
    """Processes that load images."""
    on_device: bool = False
    """Whether images are kept, decoded, on the device that trains, and augmented there."""
    augment: bool = True
    """Whether training images are scaled, mirrored and recoloured at random."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What else the data set's class takes: ``length``, ``seed``, ``cache`` …"""

    @model_validator(mode="after")
    def _one_loads(self) -> Self:
        if self.on_device and self.workers:
            raise ValueError("on_device leaves nothing for workers to load: workers must be 0")
        return self

    @classmethod
    def of(cls, name: str, batch: int, settings: dict[str, Any]) -> DataChoice:
        """A choice from the command line: ``settings`` are this class's fields or options of the data set."""
        own = {key: value for key, value in settings.items() if key in cls.model_fields}
        options = {key: value for key, value in settings.items() if key not in cls.model_fields}
        if name == "synthetic":
            # Scenes are drawn, which takes longer than a training step on a small network.
            options = {"cache": True, **options}
        return validated(cls, {"name": name, "batch": batch, "options": options, **own})

    @property
    def held_out(self) -> str | None:
        """The split that evaluates a training, or None where it is trained on."""
        return None if self.val in self.train.split("+") else self.val

    def description(self) -> dict[str, Any]:
        """What a run that learns from these images is bound to; how they are loaded does not matter."""
        values = self.model_dump(mode="json", exclude={"workers", "on_device"})
        values["options"].pop("cache", None)
        return values

    def dataset(self, split: str, size: tuple[int, int], *, augment: bool = False) -> SegmentationDataset:
        """One split at ``size`` (height, width).

        Raises:
            InvalidInput: the options say a size, too; or what the data set itself raises.
        """
        if "size" in self.options:
            raise InvalidInput(
                "data.size is not to be set: images are brought to the size of the space, "
                "--set height=H --set width=W."
            )
        from hwnas.segmentation.registry import open_dataset

        return open_dataset(self.name, split, size=size, augment=augment, **self.options)

    def labelling(self) -> Labelling:
        """What the labels mean; the folder is opened only where the data set's class does not say."""
        from hwnas.segmentation.registry import labelling

        return labelling(self.name, self.train, **self.options)

    def class_count(self) -> int:
        """Number of classes."""
        return len(self.labelling().classes)

    def samples(self, split: str, size: tuple[int, int], count: int) -> Tensor:
        """``count`` normalised images (all where the split has fewer), evenly spread: ``[N, 3, H, W]``."""
        import torch

        # To cache would be to decode all of a split for a few of its images.
        options = {name: value for name, value in self.options.items() if name != "cache"}
        choice = self.model_copy(update={"options": options})
        dataset = choice.dataset(split, size)
        return torch.stack([dataset[place][0] for place in evenly_spread(count, len(dataset))])

    def training(self, split: str, size: tuple[int, int], device: str = "auto") -> DataLoader[Batch]:
        """Shuffled, augmented batches for a training on ``device``."""
        from hwnas.segmentation.loaders import training_loader

        dataset = self.dataset(split, size, augment=self.augment)
        return training_loader(self._placed(dataset, device), self.batch, **self._loading())

    def evaluation(self, split: str, size: tuple[int, int], device: str = "auto") -> DataLoader[Batch]:
        """All images of a split, in order, for a network on ``device``."""
        from hwnas.segmentation.loaders import evaluation_loader

        return evaluation_loader(
            self._placed(self.dataset(split, size), device), self.batch, **self._loading()
        )

    def _placed(self, dataset: SegmentationDataset, device: str) -> SegmentationDataset:
        from hwnas.core.training import torch_device

        return dataset.to(torch_device(device)) if self.on_device else dataset

    def _loading(self) -> dict[str, Any]:
        import torch

        # A GPU reads pinned memory while it computes; what lies on it already cannot be pinned.
        return {
            "num_workers": self.workers,
            "pin_memory": torch.cuda.is_available() and not self.on_device,
        }


def evenly_spread(count: int, length: int) -> list[int]:
    """``count`` positions (all where there are fewer) in a sequence of ``length``, the ends among them."""
    count = min(count, length)
    return [round(position * (length - 1) / max(1, count - 1)) for position in range(count)]


def class_count(data: str, split: str = "train") -> int:
    """Number of classes of a data set; that split is opened only where the class itself does not say.

    Raises:
        InvalidInput: there is no such data set.
        DataError: the folder is not one of that data set.
    """
    from hwnas.segmentation.registry import labelling

    return len(labelling(data, split).classes)


def image_shape(space: SearchSpace) -> tuple[int, int, int]:
    """Channels, height and width of a space's images.

    Raises:
        InvalidInput: its inputs are no images.
    """
    shape = space.input_shape()
    if len(shape) != 3:
        raise InvalidInput(
            f"{space.name} takes inputs of shape {shape}, not images (channels, height, width)."
        )
    return shape[0], shape[1], shape[2]


def require_maps(space: SearchSpace, classes: int) -> None:
    """Refuse a space whose networks do not give a map of logits for these classes.

    Raises:
        InvalidInput: the outputs have another shape.
    """
    import torch

    genotype = space.random(torch.Generator().manual_seed(0))
    with torch.device("meta"):
        network = space.build(genotype).eval()
        outputs = network(torch.empty(1, *space.input_shape()))
    expected = (1, classes, *image_shape(space)[1:])
    if tuple(outputs.shape) != expected:
        raise InvalidInput(
            f"the networks of {space.name} give {tuple(outputs.shape)}, these data want {expected} (batch, "
            "classes, height, width). The command line trains on segmentation data; for another task call "
            "hwnas.search(space, table, hwnas.SearchData(train=...)) from Python."
            if len(outputs.shape) != 4
            else f"the networks of {space.name} tell {outputs.shape[1]} classes apart, the data have "
            f"{classes}: leave num_classes out, or use --set num_classes={classes}."
        )
