"""``hwnas search --algorithm random|evolution``: from options to the config of a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hwnas.cli.asking import ceilings
from hwnas.cli.settings import changed, validated
from hwnas.core.baseline_config import BaselineConfig
from hwnas.core.fit import FitConfig
from hwnas.core.search_config import SearchConfig
from hwnas.core.space import Preset
from hwnas.errors import InvalidInput

ALGORITHMS = ("differentiable", "random", "evolution")
"""What ``--algorithm`` takes; all but the first are baselines."""
SCORINGS = ("shared", "trained")
"""What ``--scoring`` takes."""
_BUDGET = ("target_ms", "budget")


def homes_of(algorithm: str, scoring: str) -> dict[str, list[str]]:
    """Which configs take ``--set`` under an algorithm, and their fields.

    Shared weights are trained by a search's config, networks on their own by a fit's.
    """
    if algorithm == "differentiable":
        return {"search": list(SearchConfig.model_fields)}
    training = {"search": SearchConfig} if scoring == "shared" else {"fit": FitConfig}
    models: dict[str, type[BaseModel]] = {"baseline": BaselineConfig, **training}
    return {home: list(model.model_fields) for home, model in models.items()}


def baseline_config(
    algorithm: str,
    scoring: str,
    preset: Preset | None,
    settings: Mapping[str, Mapping[str, Any]],
    target_ms: float | None,
    costs: Mapping[str, float | None],
    *,
    kept: Mapping[str, Any] | None = None,
) -> BaselineConfig:
    """A baseline's config from a preset's (or a run's that is resumed), changed by the options.

    Args:
        algorithm: "random" or "evolution".
        scoring: "shared" or "trained".
        preset: its settings for a search, or for a training, are those of the weights.
        settings: by home, as :func:`homes_of` names them.
        target_ms: milliseconds that no network tried may be predicted above.
        costs: other ceilings, by the name of the field of the budget; None: any.
        kept: the config of a run to resume; it wins over the preset.

    Raises:
        InvalidInput: values that do not fit.
    """
    home, part = ("search", "supernet") if scoring == "shared" else ("fit", "fit")
    if kept is None:
        training = {**(getattr(preset, home) if preset else {})}
        # A search's budget is the baseline's, whatever its weights are trained by.
        budget = {name: preset.search[name] for name in _BUDGET if preset and name in preset.search}
        training = {name: value for name, value in training.items() if name not in _BUDGET}
        base: dict[str, Any] = {
            "algorithm": {"form": algorithm},
            "scoring": {"form": scoring, **({part: training} if training else {})},
            **budget,
        }
        base = validated(BaselineConfig, base).model_dump()
    else:
        base = dict(kept)
    options = {f"scoring.{part}.{name}": value for name, value in settings.get(home, {}).items()}
    options |= ceilings(costs)
    if target_ms is not None:
        options["target_ms"] = target_ms
    return validated(BaselineConfig, changed(base, {**options, **settings.get("baseline", {})}))


def refuse_penalty(latency_weight: float | None, penalty: str | None) -> None:
    """Refuse options that only a loss can heed.

    Raises:
        InvalidInput: one was given.
    """
    if latency_weight is not None or penalty is not None:
        raise InvalidInput(
            "random search and evolution have no loss that latency could weigh in: --latency-weight and "
            "--penalty mean nothing to them; --target-ms and the ceilings limit which networks are tried."
        )
