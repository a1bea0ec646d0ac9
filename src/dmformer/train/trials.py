"""A run that is one of many: trained once, however often the command that needs it is stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..tasks.recipe import Recipe
from ..tasks.recipes import read_recipe
from .loop import Run, Watch, train


def trained(recipe: Recipe, command: str, score: bool, watch: Watch | None = None, data: Any = None) -> Run:
    """Train a recipe with a name in its folder, or continue the run that is there with the recipe it began with.

    Args:
        score: See `train`.
        watch, data: See `train`.
    """
    folder = Path(recipe.out) / str(recipe.name)
    if not (folder / "last").exists():
        return train(replace(recipe, overwrite=True), command, data=data, score=score, watch=watch)
    saved: Any = read_recipe(folder / "recipe.yaml")
    place = {"data": recipe.data, "out": recipe.out, "name": recipe.name}
    recipe = replace(saved, **place, resume=True, overwrite=False)
    return train(recipe, command, data=data, score=score, watch=watch)
