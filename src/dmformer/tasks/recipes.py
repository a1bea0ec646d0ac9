"""Recipes: a run of training is one function that returns one full, typed `Recipe`.

Nothing here imports torch: the command checks a recipe and its overrides before it pays for that.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from .classification import imagenet
from .classification import recipes as classification
from .classification.recipes import ClassificationRecipe
from .detection import coco_recipes
from .detection import recipes as detection
from .detection.recipes import DetectionRecipe
from .pretraining import recipes as pretraining
from .pretraining.recipes import PretrainingRecipe
from .recipe import Recipe
from .segmentation import recipes as segmentation
from .segmentation.recipes import SegmentationRecipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    name: recipe
    for module in (classification, pretraining, imagenet, segmentation, detection, coco_recipes)
    for name, recipe in vars(module).items()
    if inspect.isfunction(recipe) and recipe.__module__ == module.__name__ and not name.startswith("_")
}
"""Every public function of the modules, in their order."""

KINDS: dict[str, type[Recipe]] = {
    kind.task: kind for kind in (ClassificationRecipe, PretrainingRecipe, SegmentationRecipe, DetectionRecipe)
}
"""What can be trained."""


def read_recipe(path: Path) -> Recipe:
    """Read what `Recipe.to_yaml` wrote; UserError for anything else."""
    import yaml  # here, for not every command needs it

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = KINDS[values.get("task", ClassificationRecipe.task)]
        known = {f.name for f in fields(kind)}
        kept: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return kind(**kept)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError):
        raise UserError(f"{path} is not a recipe that this command wrote.") from None
