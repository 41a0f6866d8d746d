"""How camvid_zoo.py trains the zoo's three networks: a recipe for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hwnas import FitConfig
from hwnas.recipes import RECIPES, Recipe, SoftTargetConfig, Stage, TeacherStage
from hwnas.segmentation import JointAugmentation

RARE = (2, 6, 7, 9, 10)
"""Pole, sign, fence, pedestrian, bicyclist: the classes of CamVid with the fewest pixels."""


ON_CPU = {"channels_last": True, "device": "cpu"}
QUICK = {"precision": "bf16", **ON_CPU}
"""For a CPU with matrix units for bf16."""


def of_pictures(epochs: int, *, warmup_epochs: float, compiled: bool, **settings: Any) -> Stage:
    """The stage on Tiny ImageNet."""
    stage = RECIPES["strong"].stages[0]
    fit = {"epochs": epochs, "warmup_epochs": warmup_epochs, "compiled": compiled, **QUICK}
    return stage.model_copy(update={"fit": stage.fit.model_copy(update=fit), **settings})


TWO_SIZES = SoftTargetConfig(scales=(1.0, 1.5), mirrored=False)
"""The teacher is asked once for each image, in two sizes, and not in each step. Mirror images would double
what the first epochs take."""
LARGER = SoftTargetConfig(scales=(1.5,), mirrored=False)
"""In one size, which takes half as long: the larger one, since the crops that it learnt from show things
larger than whole images do."""


def cpu_recipe(
    *,
    pictures: Stage,
    streets: int,
    crops: int,
    taught: int,
    longer: tuple[int, ...],
    whole: int,
    teacher: int,
    soft_targets: SoftTargetConfig | None,
) -> Recipe:
    """Images of all sorts, other streets, crops of the target, then crops of it and of other streets with a
    teacher: as many of both, and later, when most is learnt, more of the target and of its labels. Last, what
    is seen has the size of what will be: crops lack an image's outskirts, and show things larger.

    Args:
        pictures: the stage.
        streets: epochs of IDD-lite.
        crops: of CamVid; 0 leaves the stage out.
        taught: of CamVid and as many images of IDD-lite, whose labels are left out.
        longer: of CamVid and a quarter as many of IDD-lite, with the teacher's word a third of what it was:
            a stage for each, whose learning rate begins anew.
        whole: of CamVid and a quarter as many of IDD-lite, whole images, those of IDD-lite brought to where
            things are about as large.
        teacher: of the teacher, on CamVid.
        soft_targets: how it is asked once; None: in each step.
    """
    of_streets = RECIPES["cpu"].stages[0]
    images = {
        "cache": True,
        "batch": 8,
        "class_weight_offset": 1.1,
        "augmentation": JointAugmentation(crop=(240, 320), scale=(0.75, 1.75), rare=RARE, rare_share=0.3),
    }
    fit = {"lr": 0.05, "warmup_epochs": 1, "average_decay": 0.998, "validate_every": 20, "compiled": True}
    with_teacher = {"unlabelled": ("idd_lite",), "soft_targets": soft_targets, **images}
    stages = [
        pictures,
        of_streets.model_copy(
            update={
                "auxiliary": False,
                "fit": of_streets.fit.model_copy(update={"epochs": streets, **QUICK}),
            }
        ),
    ]
    if crops:
        stages.append(Stage(name="crops", fit=FitConfig(**fit, **QUICK, epochs=crops), **images))
    by_teacher = FitConfig(**fit, **QUICK, epochs=taught, distillation_weight=3.0)
    stages.append(Stage(name="taught", fit=by_teacher, **with_teacher))
    for number, epochs in enumerate(longer, start=1):
        by_both = by_teacher.model_copy(update={"epochs": epochs, "distillation_weight": 1.0})
        stage_name = "longer" if number == 1 else f"longer-{number}"
        stages.append(Stage(name=stage_name, unlabelled_share=0.2, fit=by_both, **with_teacher))
    stages.append(
        Stage(
            name="whole",
            fit=by_teacher.model_copy(update={"epochs": whole, "distillation_weight": 1.0}),
            **with_teacher
            | {
                "augmentation": JointAugmentation(
                    crop=(360, 480), scale=(0.75, 1.35), rare=RARE, rare_share=0.3
                ),
                "soft_targets": LARGER,
                "unlabelled_share": 0.2,
                "unlabelled_size": (340, 480),
            },
        )
    )
    return Recipe(
        about="images of all sorts, other streets, then the target with a teacher: hours on one CPU core",
        stages=tuple(stages),
        teacher=TeacherStage(
            frozen=2,
            fit=FitConfig(
                epochs=teacher, lr=0.02, warmup_epochs=0.5, average_decay=0.99, validate_every=20, **ON_CPU
            ),
            **images,
        ),
    )


def of_small_crops(epochs: int) -> Stage:
    """Small crops that show much of a picture, for a training that is short beside ImageNet's."""
    return of_pictures(
        epochs,
        warmup_epochs=0.5,
        compiled=True,
        cache=True,
        least_share=0.25,
        augmentation=JointAugmentation(crop=(48, 48)),
    )


CPU_RECIPES: dict[str, dict[str, Any]] = {
    "a": {
        "pictures": of_pictures(2, warmup_epochs=0.2, compiled=False),
        "streets": 6,
        "crops": 90,
        "taught": 45,
        "longer": (130, 120),
        "whole": 45,
        "teacher": 36,
        "soft_targets": TWO_SIZES,
    },
    "b": {
        "pictures": of_small_crops(12),
        "streets": 8,
        "crops": 0,
        "taught": 60,
        "longer": (160,),
        "whole": 25,
        "teacher": 36,
        "soft_targets": TWO_SIZES,
    },
    "c": {
        "pictures": of_small_crops(16),
        "streets": 8,
        "crops": 0,
        "taught": 80,
        "longer": (170, 100),
        "whole": 30,
        "teacher": 36,
        "soft_targets": TWO_SIZES,
    },
}
"""What :func:`cpu_recipe` takes for each."""


def recipe_for(name: str, scale: str) -> Recipe:
    """The recipe of one network, with crops over CamVid's rare classes in the stages on CamVid."""
    if scale == "cpu":
        return cpu_recipe(**CPU_RECIPES[name])
    recipe = RECIPES["taught"]
    *others, last = recipe.stages
    crops = replace(last.augmentation, rare=RARE, rare_share=0.3, scale=(0.75, 1.75))
    return recipe.model_copy(update={"stages": (*others, last.model_copy(update={"augmentation": crops}))})
