"""Recipes: a run of training is one function that returns one full, typed `Recipe`.

Nothing here imports torch: the command checks a recipe and its overrides before it pays for that.
"""

from collections.abc import Callable

from . import classification, imagenet
from .recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    name: recipe
    for module in (classification, imagenet)
    for name, recipe in vars(module).items()
    if getattr(recipe, "__module__", None) == module.__name__ and not name.startswith("_")
}
"""Every public function of the modules, in their order."""

__all__ = ["RECIPES", "Recipe"]
