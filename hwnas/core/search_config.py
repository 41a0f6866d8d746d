"""What a search is told: its settings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hwnas.core.budget_config import BudgetConfig
from hwnas.core.choice import ChoiceKind
from hwnas.core.penalty import AnyPenalty, LogPenalty
from hwnas.core.prune import AnyPruner, NoPruning
from hwnas.core.relaxation import AnyRelaxation, GumbelSoftmax
from hwnas.core.training import TrainingPrecision


class SearchConfig(BaseModel):
    """How to search. The defaults are the AutoRTNet paper's where it states them, for a run of 50 epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(50, ge=1)
    """Passes over the training data."""
    seed: int = 0
    """Of the weights' initialisation, the data's order and the Gumbel noise."""
    device: str = "auto"
    """Where to train: "auto", "cpu", "cuda" or "cuda:N". What latency is meant for, the table knows."""
    precision: TrainingPrecision = "fp32"
    """"bf16" runs matrix work in bfloat16; steps that are not finite are skipped."""
    channels_last: bool = False
    """Keep images and weights in NHWC memory order."""
    recompute: bool = False
    """Compute candidate ops again in back-propagation instead of keeping what they computed: less memory."""
    cuda_graph: bool = False
    """Capture a soft step's passes through the network as CUDA graphs and replay them: for a GPU that waits
    for the CPU. Not with hard sampling, ``recompute``, or several processes."""
    relaxation: AnyRelaxation = GumbelSoftmax()
    """How logits become an assignment in each step."""
    score_kinds: tuple[ChoiceKind, ...] = ("op", "depth", "input")
    """Kinds of choice that learn from hard draws by the score function. The others learn straight-through,
    with less noise, but blind where a batch norm follows: :class:`hwnas.core.score.ScoreFunction`."""
    penalty: AnyPenalty = LogPenalty()
    """What expected latency adds to the loss, once any choice learns."""
    penalty_on: Literal["draw", "probabilities"] = "draw"
    """Whether the penalty sees the latency of the step's draw (the paper) or of the probabilities."""
    target_ms: float | None = Field(None, gt=0)
    """A hard budget: milliseconds that the network must keep, and should use. ``penalty`` rests meanwhile."""
    budget: BudgetConfig = BudgetConfig()
    """What else the network may cost at most, and how the budget is met."""
    entropy_weight: float = Field(0.0, ge=0)
    """What each nat of the choices' entropy takes off the loss. Above 0, logits do not grow without end: two
    options' settle at the difference of their losses over this, so that the likelihood of a network says how
    good it is, and the likeliest ones under a budget are good ones."""
    pruner: AnyPruner = NoPruning()
    """Which options die, when."""
    weight_lr: float = Field(0.025, gt=0)
    """SGD's learning rate in the first epoch; it follows a cosine to ``weight_lr_end``."""
    weight_lr_end: float = Field(0.001, ge=0)
    """What SGD's learning rate approaches: its value after the last epoch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(1e-3, ge=0)
    """SGD's weight decay."""
    gradient_clip: float | None = 5.0
    """Largest norm of the weights' gradient; null: unlimited."""
    arch_lr: float = Field(1e-3, gt=0)
    """Adam's learning rate for α and β."""
    arch_betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates for α and β."""
    arch_weight_decay: float = Field(1e-4, ge=0)
    """Adam's weight decay for α and β."""
    explore: float = Field(0.0, ge=0, le=1)
    """Share of the weights' steps that draw uniformly from the live options, not by α and β, so that all are
    trained alike and can be compared. α and β learn from other steps: 1 needs ``SearchData.arch``."""
    arch_from_epoch: int = Field(0, ge=0)
    """Epochs before which no architecture parameter moves."""
    depth_from_epoch: int = Field(0, ge=0)
    """Epochs before which the depths (β) do not move, while weights and α train."""
    validate_every: int = Field(1, ge=1)
    """Epochs between evaluations of the most likely architecture, if there are validation data."""
    statistics_batches: int = Field(16, ge=0)
    """Training batches from which batch norms take their statistics before a network is evaluated with the
    shared weights; 0: what they saw in training, a mixture over all networks drawn."""
    candidates: int = Field(1, ge=1)
    """How many of the likeliest architectures are evaluated so in the end, of which the one with the least
    loss is the result; 1: the likeliest is. More need validation data. Under a budget, the likeliest within
    it."""
    checkpoint_every_steps: int = Field(0, ge=0)
    """Steps between checkpoints within an epoch; 0: at the ends of epochs only."""
