"""``hwnas recipes``: which recipes for training there are, and what one of them says."""

from __future__ import annotations

import click

from hwnas.cli.console import result
from hwnas.recipes import RECIPES
from hwnas.recipes.presets import find_recipe


@click.command("recipes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="All of them as one JSON object.")
def command(name: str | None, as_json: bool) -> None:
    """List the recipes, or print the one of that NAME as JSON: edited, it is one of yours.

    hwnas recipes strong > mine.json; hwnas fit RUN --recipe mine.json
    """
    if name is not None:
        click.echo(find_recipe(name).model_dump_json(indent=1))
        return
    lines = []
    for key, recipe in RECIPES.items():
        lines.append(f"{key:<8} {recipe.about}")
        lines += [
            f"{'':<8} {stage.name}: {stage.task} on {stage.data}, {stage.fit.epochs} epochs"
            for stage in recipe.all_stages
        ]
    result({key: recipe.model_dump(mode="json") for key, recipe in RECIPES.items()}, lines, as_json=as_json)
