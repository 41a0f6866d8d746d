"""Recipes that come with hwnas."""

from __future__ import annotations

from collections.abc import Mapping

from hwnas.core.fit import FitConfig
from hwnas.errors import InvalidInput
from hwnas.lookup import meant
from hwnas.recipes.recipe import Recipe, Stage, TeacherStage
from hwnas.segmentation.transforms import JointAugmentation

_PICTURES = Stage(
    name="pictures",
    task="classification",
    data="tiny_imagenet",
    augmentation=JointAugmentation(crop=(64, 64)),
    batch=128,
    fit=FitConfig(epochs=60, lr=0.1, warmup_epochs=2, weight_decay=1e-4),
)
_STRONG = (
    _PICTURES.model_copy(update={"fit": _PICTURES.fit.model_copy(update={"precision": "bf16"})}),
    Stage(
        name="streets",
        data="idd_lite",
        cache=True,
        augmentation=JointAugmentation(crop=(360, 480), scale=(1.0, 2.5)),
        batch=16,
        fit=FitConfig(epochs=120, lr=0.05, warmup_epochs=2, precision="bf16", channels_last=True),
    ),
    Stage(
        name="target",
        cache=True,
        batch=16,
        fit=FitConfig(
            epochs=600,
            lr=0.05,
            warmup_epochs=5,
            average_decay=0.999,
            precision="bf16",
            channels_last=True,
            validate_every=50,
        ),
    ),
)


def _taught(stage: Stage) -> Stage:
    taught = {
        "augmentation": JointAugmentation(crop=(360, 480)),
        "unlabelled": ("idd_lite",),
        # Where things are about as large as in CamVid.
        "unlabelled_size": (340, 480),
        "fit": FitConfig(**{**stage.fit.model_dump(), "distillation_weight": 1.0}),
    }
    return Stage(**{**stage.model_dump(), **taught})


RECIPES: Mapping[str, Recipe] = {
    "paper": Recipe(
        about="the AutoRTNet paper's; of its pre-training it says that there was one, not how",
        stages=(
            _PICTURES,
            Stage(
                name="target",
                cache=True,
                augmentation=JointAugmentation(brightness=0, contrast=0, saturation=0),
                batch=16,
                fit=FitConfig(epochs=200, lr=0.01),
            ),
        ),
    ),
    "strong": Recipe(
        about="images of all sorts, other streets, then the target for long, for a GPU", stages=_STRONG
    ),
    "taught": Recipe(
        about="strong, and a teacher with weights from ImageNet that teaches on other streets too",
        stages=(*_STRONG[:-1], _taught(_STRONG[-1])),
        teacher=TeacherStage(
            cache=True,
            batch=16,
            fit=FitConfig(
                epochs=200,
                lr=0.02,
                warmup_epochs=2,
                average_decay=0.999,
                precision="bf16",
                channels_last=True,
                validate_every=50,
            ),
        ),
    ),
    "cpu": Recipe(
        about="other streets, then the target, in crops: hours on one CPU core",
        stages=(
            Stage(
                name="streets",
                data="idd_lite",
                cache=True,
                augmentation=JointAugmentation(crop=(224, 320), scale=(0.8, 2.0)),
                batch=8,
                auxiliary=True,
                fit=FitConfig(epochs=8, lr=0.05, warmup_epochs=0.5, channels_last=True, device="cpu"),
            ),
            Stage(
                name="target",
                cache=True,
                augmentation=JointAugmentation(crop=(240, 320)),
                batch=8,
                class_weight_offset=1.1,
                auxiliary=True,
                fit=FitConfig(
                    epochs=50,
                    lr=0.05,
                    warmup_epochs=1,
                    average_decay=0.998,
                    channels_last=True,
                    device="cpu",
                    validate_every=20,
                ),
            ),
        ),
    ),
}
"""By name."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that name, or in the JSON file of that name.

    Raises:
        InvalidInput: there is none.
        DataError: the file holds no recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith(".json"):
        return Recipe.load(name)
    raise InvalidInput(
        f'no recipe is called "{name}"{meant(name, RECIPES)}. Known: {", ".join(RECIPES)}; '
        "or name a file.json."
    )
