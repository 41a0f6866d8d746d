"""What a recipe says: stages of pre-training and training, each with its data, images and settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from hwnas.core.fit import FitConfig
from hwnas.errors import DataError, refusals
from hwnas.recipes.soft_targets import SoftTargetConfig
from hwnas.segmentation.transforms import JointAugmentation

TARGET = "target"
"""How a stage names the data that the network is for."""
RUN_FOLDERS = ("predictions", "supernet", "tensorboard", "trials")
"""Folders that a run may have beside those of its stages."""


class Stage(BaseModel):
    """One training: begins with the weights of the stage before it, as far as layers agree. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Names the stage's folder."""
    task: Literal["segmentation", "classification"] = "segmentation"
    """What is learnt. A classifier is the same network whose logits are averaged over the image."""
    data: str = TARGET
    """Name of the data set, or "target": what the network is for, and must be in the last stage."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width to which images are brought before augmentation; null keeps theirs. Not a
    classifier's, which are cropped."""
    cache: bool = False
    """Whether images are decoded once and kept in memory, 4 bytes for each pixel (a classifier's: 3): of
    Cityscapes, 25 GB; of Tiny ImageNet, 1.2 GB."""
    augmentation: JointAugmentation = JointAugmentation()
    """Crop, scale, flip and colour. A classifier crops and flips."""
    least_share: float = Field(0.08, gt=0, le=1)
    """Least share of an image's area that a classifier's crop shows."""
    batch: int = Field(16, ge=1)
    """Images in a step."""
    class_weight_offset: float | None = Field(None, gt=1)
    """c of the class weights ``1 / ln(c + share of the pixels)``; null: all classes weigh 1. ENet has 1.02,
    which weighs the rarest 50 (Paszke et al., arXiv 1606.02147, section 5)."""
    auxiliary: bool = False
    """Whether the space's auxiliary heads learn along."""
    unlabelled: tuple[str, ...] = ()
    """Names of further data sets whose images are learnt from along with the target's, in the same crops:
    their labels, of whatever classes, are left out, and there the teacher alone teaches. In one process."""
    unlabelled_share: float = Field(0.5, gt=0, lt=1)
    """Share of an epoch's images that are drawn from those, where there are any; the target's are seen once
    each."""
    unlabelled_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width to which those are brought before augmentation; null keeps theirs. Things in them
    should come out about as large as in the target's."""
    soft_targets: SoftTargetConfig | None = None
    """How the teacher is asked once for each whole image; what it says is kept in memory, 1/8 byte for each
    class and pixel (of Cityscapes with 19 classes 15 GB), and cropped along. Null: it is asked in each step,
    on what the network sees. Images are then loaded without workers."""
    fit: FitConfig = FitConfig()
    """Epochs, learning rate and all else of the training; a teacher teaches on the target only."""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        taken = dict.fromkeys(TeacherStage.model_fields, "--set means something else by that")
        taken |= dict.fromkeys(RUN_FOLDERS, "a run has another folder of that name")
        if self.name in taken:
            raise ValueError(f'a stage cannot be called "{self.name}": {taken[self.name]}')
        if self.auxiliary and self.fit.compiled:
            raise ValueError("auxiliary heads are not heard in a compiled training: leave one of them out")
        if self.task == "classification":
            idle = [name for name in ("size", "class_weight_offset", "auxiliary") if getattr(self, name)]
            if idle:
                raise ValueError(
                    f"{idle[0]} means nothing to a classifier: leave it out"
                    + (", and set augmentation.crop" if idle[0] == "size" else "")
                )
            usual = JointAugmentation(crop=self.augmentation.crop, flip=self.augmentation.flip)
            changed = [
                field.name
                for field in fields(JointAugmentation)
                if getattr(self.augmentation, field.name) != getattr(usual, field.name)
            ]
            if changed:
                raise ValueError(
                    f"augmentation.{changed[0]} means nothing to a classifier, which only crops "
                    "(augmentation.crop, least_share) and mirrors (augmentation.flip): leave it out"
                )
        if self.fit.distillation_weight and (self.data != TARGET or self.task != "segmentation"):
            raise ValueError(f'a teacher (distillation_weight) can only teach to segment the "{TARGET}" data')
        if self.soft_targets is not None and not self.fit.distillation_weight:
            raise ValueError(
                "soft_targets are a teacher's, and none teaches here (fit.distillation_weight is 0)"
            )
        if self.task == "segmentation" and _is_set(self, "least_share"):
            raise ValueError(
                f"least_share ({self.least_share:g}) means nothing to a segmentation: set augmentation.scale"
            )
        if self.unlabelled:
            self._unlabelled_can_be_learnt_from()
        else:
            idle = [name for name in ("unlabelled_share", "unlabelled_size") if _is_set(self, name)]
            if idle:
                raise ValueError(f"{idle[0]} means nothing where unlabelled names no data set")
        return self

    def _unlabelled_can_be_learnt_from(self) -> None:
        if not self.fit.distillation_weight:
            raise ValueError(
                f"nothing is to be learnt from {self.unlabelled[0]} without labels where no teacher teaches "
                "(fit.distillation_weight is 0)"
            )
        if TARGET in self.unlabelled or len(set(self.unlabelled)) < len(self.unlabelled):
            raise ValueError(
                "unlabelled names other data sets than the target, each once; got "
                + ", ".join(self.unlabelled)
            )
        if self.augmentation.crop is None:
            raise ValueError("images of several data sets must come out in one size: set augmentation.crop")


def _is_set(stage: Stage, name: str) -> bool:
    """Whether a field has another value than its default."""
    return bool(getattr(stage, name) != Stage.model_fields[name].default)


class TeacherStage(Stage):
    """How a larger network, which begins with weights from ImageNet, is trained to teach. Frozen."""

    name: str = Field("teacher", pattern="^teacher$")
    """Names the stage's folder."""
    network: Literal["efficientnet-lite2"] = "efficientnet-lite2"
    """What it is; its weights come in a package (the extra "teacher")."""
    frozen: int = Field(0, ge=0, le=7)
    """How many of its backbone's seven stages keep the weights from ImageNet, with all before them, and need
    no gradient; 0: all is trained."""

    @model_validator(mode="after")
    def _only_teaches(self) -> Self:
        if self.data != TARGET or self.task != "segmentation":
            raise ValueError(f'a teacher segments the "{TARGET}" data, not {self.task} on {self.data}')
        if self.auxiliary or self.fit.distillation_weight:
            raise ValueError("a teacher has no auxiliary heads, and no teacher of its own")
        return self


class Recipe(BaseModel):
    """Stages in their order, the last on the target data; JSON. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    about: str
    """One line that says what it is for."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    """Pre-trainings first."""
    teacher: TeacherStage | None = None
    """Trained before all others; teaches where ``fit.distillation_weight`` says how much."""

    @model_validator(mode="after")
    def _ends_at_the_target(self) -> Self:
        names = [stage.name for stage in self.all_stages]
        if len(set(names)) != len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        last = self.stages[-1]
        if last.data != TARGET or last.task != "segmentation":
            raise ValueError(
                f'the last stage must segment the "{TARGET}" data, not {last.task} on {last.data}'
            )
        if self.teacher is not None and not last.fit.distillation_weight:
            raise ValueError(
                f"there is a teacher, and {last.name} does not learn from it (fit.distillation_weight is 0)"
            )
        return self

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """All that is trained, in order: the teacher, where there is one, and the stages."""
        return self.stages if self.teacher is None else (self.teacher, *self.stages)

    @property
    def other_data(self) -> tuple[str, ...]:
        """Names of the data sets that it needs besides the target, in the order of need."""
        named = (name for stage in self.stages for name in (stage.data, *stage.unlabelled))
        return tuple(dict.fromkeys(name for name in named if name != TARGET))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe from a JSON file.

        Raises:
            DataError: no such file, or not a recipe.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no recipe at {path}.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path} is not a recipe:\n{refusals(error)}") from error
