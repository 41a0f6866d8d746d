"""A small recipe of two stages, and a network that it trains in seconds."""

import torch

from hwnas.core.fit import FitConfig
from hwnas.recipes import Recipe, Stage, train
from hwnas.search_spaces.autortnet import AutoRTNet
from hwnas.segmentation import JointAugmentation

SPACE = AutoRTNet(
    num_classes=3, height=32, width=64, cells=(1, 2, 2), init_channels=1, channel_multiplier=2,
    stem_channels=(2, 2), aggregation_width=2, head_width=4, head_dilations=(2,),
)  # fmt: skip
GENOTYPE = SPACE.random(torch.Generator().manual_seed(1))
FEW = {"synthetic": {"length": 8}}


def fitted(**values):
    return FitConfig(**{"epochs": 2, "lr": 0.05, "device": "cpu", **values})


STREETS = Stage(name="streets", data="synthetic", size=(32, 64), batch=4, auxiliary=True, fit=fitted())
TARGET = Stage(
    name="target",
    batch=2,
    augmentation=JointAugmentation(crop=(32, 64), rare=(2,), rare_share=0.5),
    class_weight_offset=1.1,
    auxiliary=True,
    fit=fitted(average_decay=0.9, epochs=3),
)
RECIPE = Recipe(about="both, small", stages=(STREETS, TARGET))


def run(places, out, recipe=RECIPE, **options):
    return train(SPACE, GENOTYPE, recipe, places, out=out, options=FEW, **options)
