"""What a baseline is to do: how networks are proposed, how they are scored, within which budget."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from hwnas.core.budget_config import BudgetConfig
from hwnas.core.fit import FitConfig
from hwnas.core.search_config import SearchConfig


class RandomSearch(BaseModel):
    """Every network tried is drawn uniformly, choice by choice."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    form: Literal["random"] = "random"
    """Names this algorithm in JSON and in ``--set algorithm.form=random``."""


class AgeingEvolution(BaseModel):
    """The best of a few members of the population is changed in one choice; the oldest member dies.

    "Aging evolution" of Real et al., Regularized Evolution for Image Classifier Architecture Search (2019).
    The first ``population`` networks are random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    form: Literal["evolution"] = "evolution"
    """Names this algorithm in JSON and in ``--set algorithm.form=evolution``."""
    population: int = Field(20, ge=1)
    """Members that live at a time."""
    tournament: int = Field(5, ge=1)
    """Members drawn at random, of which the best becomes the parent."""


class SharedWeights(BaseModel):
    """Networks take their weights from one supernet, trained on uniformly drawn networks, one a step.

    "Single path one-shot" of Guo et al. (2020): fair to all options, and a network costs no training. The
    network with the least validation loss is the best.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    form: Literal["shared"] = "shared"
    """Names this scoring in JSON and in ``--set scoring.form=shared``."""
    supernet: SearchConfig = SearchConfig()
    """How the supernet is trained; choices, penalty and pruning in it play no part, nor does its budget,
    which may ask nothing that the baseline's does not."""
    statistics_batches: int = Field(16, ge=1)
    """Training batches from which a network's batch norms take their statistics before it is scored."""


class ShortTraining(BaseModel):
    """Every network is trained on its own, for a short while. The best has the best headline metric."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    form: Literal["trained"] = "trained"
    """Names this scoring in JSON and in ``--set scoring.form=trained``."""
    fit: FitConfig = FitConfig(epochs=10)
    """How."""


AnyAlgorithm: TypeAlias = Annotated[RandomSearch | AgeingEvolution, Field(discriminator="form")]
AnyScoring: TypeAlias = Annotated[SharedWeights | ShortTraining, Field(discriminator="form")]


class BaselineConfig(BaseModel):
    """Which networks are tried, how many, and how each is scored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    algorithm: AnyAlgorithm = RandomSearch()
    """How the next network is chosen."""
    scoring: AnyScoring = SharedWeights()
    """What a network is worth."""
    trials: int = Field(50, ge=1)
    """How many different networks are scored."""
    target_ms: float | None = Field(None, gt=0)
    """Networks that the table predicts above this are not tried; null: all may be."""
    budget: BudgetConfig = BudgetConfig()
    """What else the networks tried may cost at most. Nothing is measured: what it says of how a target is met
    plays no part."""

    @property
    def seed(self) -> int:
        """Of the networks drawn and of the weights: the scoring's."""
        return self._training.seed

    @property
    def device(self) -> str:
        """Where weights are trained and networks scored."""
        return self._training.device

    def with_seed(self, seed: int) -> BaselineConfig:
        """The same with another seed."""
        part = "supernet" if isinstance(self.scoring, SharedWeights) else "fit"
        training = self._training.model_copy(update={"seed": seed})
        return self.model_copy(update={"scoring": self.scoring.model_copy(update={part: training})})

    @property
    def _training(self) -> SearchConfig | FitConfig:
        return self.scoring.supernet if isinstance(self.scoring, SharedWeights) else self.scoring.fit
