"""What a network may cost, as settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BudgetConfig(BaseModel):
    """What a network may cost beside milliseconds, and how ``target_ms`` is met."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_params: float | None = Field(None, gt=0)
    """Most parameters of the network that is trained; null: any number."""
    max_macs: float | None = Field(None, gt=0)
    """Most multiply-accumulates of one inference on one sample."""
    max_activation_mib: float | None = Field(None, gt=0)
    """Most MiB that the inputs and the output of any one op take together, for the table's batch."""
    steers: bool = True
    """Whether expected costs are held at the budget while searching. False: the loss alone teaches the
    choices, and the budget is kept where networks are chosen; for searches with ``explore=1`` and an
    ``entropy_weight``, in which expected costs are those of a mixture that is never taken."""
    below: float | None = Field(0.08, gt=0, lt=1)
    """A measured network may be faster than the target by this share of it; faster ones waste it. null: by
    anything; the target is a ceiling, under which the likeliest network is taken, however fast."""
    above: float = Field(0.02, ge=0)
    """A measured network may be slower than the target by this share of it."""
    rounds: int = Field(5, ge=1)
    """How many networks are measured at most, each chosen by what the ones before have taught; where all of
    them are too slow, the fastest of the space is measured besides."""
    processes: int | None = Field(None, ge=1)
    """In how many processes each is measured: one differs from the next by some percent. null: as many as the
    backend advises. Up to twice as many further ones follow while readings differ too much."""


def asked_costs(target_ms: float | None, config: BudgetConfig) -> dict[str, float]:
    """What is asked for, by the name of the field; empty where nothing is."""
    fields = {
        "target_ms": target_ms,
        "max_params": config.max_params,
        "max_macs": config.max_macs,
        "max_activation_mib": config.max_activation_mib,
    }
    return {name: most for name, most in fields.items() if most is not None}
