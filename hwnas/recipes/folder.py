"""The folder of a training by a recipe: one recipe's, or none's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwnas.core.identity import differences
from hwnas.errors import CheckpointError, InvalidInput, listing
from hwnas.files import write_json
from hwnas.recipes.planning import PlannedStage
from hwnas.recipes.recipe import Recipe


def begin_folder(out: Path, recipe: Recipe, planned: Sequence[PlannedStage], resume: bool) -> None:
    """Refuse a folder that holds another training, before hours go into a stage; else write the recipe.

    Args:
        out: the folder; ``recipe.json`` is written in it.
        recipe: what is to be done.
        planned: its stages, with their folders.
        resume: whether a training by this recipe is gone on with.

    Raises:
        CheckpointError: ``out`` holds a training by another recipe, or by none.
        InvalidInput: it holds one, and ``resume`` is false.
    """
    path = out / "recipe.json"
    kept = Recipe.load(path) if path.is_file() else None
    # Of the recipe that is kept, too: it may have been stopped in a stage that this one does not have.
    earlier = [stage for stage in kept.all_stages if stage is not kept.stages[-1]] if kept is not None else []
    folders = [out / stage.name for stage in earlier] + [each.folder for each in planned]
    begun = [folder for folder in dict.fromkeys(folders) if (folder / "fit.json").is_file()]
    lines = differences(_by_stage(kept), _by_stage(recipe)) if kept is not None else []
    if lines and begun:
        raise CheckpointError(
            f"{out} holds a training by another recipe:\n{listing(lines)}\n"
            "Resume with the same, or start anew in another folder (--out)."
        )
    if begun and not resume:
        raise InvalidInput(
            f"{begun[0]} holds a training already. Go on with it (--resume), or name another folder (--out)."
        )
    if out in begun and kept is None:
        raise CheckpointError(
            f"{out} holds a training without a recipe: go on with it without one, or start anew in another "
            "folder (--out)."
        )
    write_json(path, recipe)


def _by_stage(recipe: Recipe) -> dict[str, Any]:
    # Whether images are kept in memory changes nothing that is learnt.
    stages = {
        stage.name: stage.model_dump(mode="json", exclude={"name", "cache"}) for stage in recipe.all_stages
    }
    return {"stages": " ".join(stages), **stages}
