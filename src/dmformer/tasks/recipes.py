"""Recipes: a training run is one function that returns one complete, typed `Recipe`.

Nothing here imports torch: the command checks a recipe and its overrides before it imports it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from .config import DEFAULT_TASK
from .recipe import Recipe
from .table import TASKS

RECIPES: dict[str, Callable[[], Recipe]] = {
    name: recipe for task in TASKS.values() for name, recipe in {**task.recipes, **task.papers}.items()
}
"""Every recipe of every task, by name."""


def read_recipe(path: Path) -> Recipe:
    """Read a file written by `Recipe.to_yaml`; UserError for anything else."""
    import yaml  # here, because not every command needs it

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TASKS[values.get("task", DEFAULT_TASK)].recipe.of_values(values)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError(f"{path} is not a recipe written by `dmformer train`.") from None
