"""Semantic segmentation: data sets, augmentation, loss and metric; a task that the core knows nothing of."""

from hwnas.segmentation.camvid import CamVid as CamVid
from hwnas.segmentation.cityscapes import Cityscapes as Cityscapes
from hwnas.segmentation.dataset import SegmentationDataset as SegmentationDataset
from hwnas.segmentation.files import Pair as Pair
from hwnas.segmentation.files import PairedFiles as PairedFiles
from hwnas.segmentation.folders import ImageLabelFolders as ImageLabelFolders
from hwnas.segmentation.idd_lite import IddLite as IddLite
from hwnas.segmentation.loaders import evaluation_loader as evaluation_loader
from hwnas.segmentation.loaders import training_loader as training_loader
from hwnas.segmentation.losses import OhemCrossEntropy as OhemCrossEntropy
from hwnas.segmentation.metrics import MeanIoU as MeanIoU
from hwnas.segmentation.predictions import colourise as colourise
from hwnas.segmentation.predictions import save_predictions as save_predictions
from hwnas.segmentation.predictions import save_triptych as save_triptych
from hwnas.segmentation.registry import known_datasets as known_datasets
from hwnas.segmentation.registry import open_dataset as open_dataset
from hwnas.segmentation.synthetic import SyntheticScenes as SyntheticScenes
from hwnas.segmentation.transforms import JointAugmentation as JointAugmentation
