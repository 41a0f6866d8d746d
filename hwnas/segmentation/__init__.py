"""Semantic segmentation: data sets, augmentation, loss and metric; a task that the core knows nothing of."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# The face of hwnas needs the loss and the metric from here: data sets are imported when they are asked for.
if TYPE_CHECKING:
    from hwnas.segmentation.camvid import CamVid as CamVid
    from hwnas.segmentation.cityscapes import Cityscapes as Cityscapes
    from hwnas.segmentation.dataset import SegmentationDataset as SegmentationDataset
    from hwnas.segmentation.files import Pair as Pair
    from hwnas.segmentation.files import PairedFiles as PairedFiles
    from hwnas.segmentation.files import SplitFolder as SplitFolder
    from hwnas.segmentation.folders import ImageLabelFolders as ImageLabelFolders
    from hwnas.segmentation.idd_lite import IddLite as IddLite
    from hwnas.segmentation.labels import Labelling as Labelling
    from hwnas.segmentation.loaders import evaluation_loader as evaluation_loader
    from hwnas.segmentation.loaders import training_loader as training_loader
    from hwnas.segmentation.losses import OhemCrossEntropy as OhemCrossEntropy
    from hwnas.segmentation.metrics import MeanIoU as MeanIoU
    from hwnas.segmentation.predictions import colourise as colourise
    from hwnas.segmentation.predictions import overlay as overlay
    from hwnas.segmentation.predictions import save_predictions as save_predictions
    from hwnas.segmentation.predictions import save_triptych as save_triptych
    from hwnas.segmentation.registry import known_datasets as known_datasets
    from hwnas.segmentation.registry import open_dataset as open_dataset
    from hwnas.segmentation.synthetic import SyntheticScenes as SyntheticScenes
    from hwnas.segmentation.transforms import JointAugmentation as JointAugmentation
else:
    _HOMES = {
        "CamVid": "hwnas.segmentation.camvid",
        "Cityscapes": "hwnas.segmentation.cityscapes",
        "SegmentationDataset": "hwnas.segmentation.dataset",
        "Pair": "hwnas.segmentation.files",
        "PairedFiles": "hwnas.segmentation.files",
        "SplitFolder": "hwnas.segmentation.files",
        "ImageLabelFolders": "hwnas.segmentation.folders",
        "IddLite": "hwnas.segmentation.idd_lite",
        "evaluation_loader": "hwnas.segmentation.loaders",
        "training_loader": "hwnas.segmentation.loaders",
        "Labelling": "hwnas.segmentation.labels",
        "OhemCrossEntropy": "hwnas.segmentation.losses",
        "MeanIoU": "hwnas.segmentation.metrics",
        "colourise": "hwnas.segmentation.predictions",
        "overlay": "hwnas.segmentation.predictions",
        "save_predictions": "hwnas.segmentation.predictions",
        "save_triptych": "hwnas.segmentation.predictions",
        "known_datasets": "hwnas.segmentation.registry",
        "open_dataset": "hwnas.segmentation.registry",
        "SyntheticScenes": "hwnas.segmentation.synthetic",
        "JointAugmentation": "hwnas.segmentation.transforms",
    }

    def __getattr__(name: str) -> object:
        """A name of this package, from the module that has it."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)

    def __dir__() -> list[str]:
        """All names of this package."""
        return sorted(_HOMES)
