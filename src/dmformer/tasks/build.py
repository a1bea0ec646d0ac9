"""What a recipe makes of names and numbers, whatever the task: weights to start from, the normalisation."""

from dataclasses import replace
from typing import Any, TypeVar

import timm
from timm.models import PretrainedCfg
from timm.optim import list_optimizers
from torch import Tensor

from ..models.create import create
from ..models.weights import load_weights
from ..utils.errors import unknown
from .config import find_config, read_config
from .recipe import Recipe

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def check_names(recipe: Recipe) -> None:
    """Raise UserError for a model or an optimiser that timm does not know."""
    if not timm.is_model(recipe.model):
        raise unknown("model", recipe.model, timm.list_models())
    optimizers = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in optimizers:
        raise unknown("optimizer", recipe.optimizer, optimizers)


def classifier_weights(recipe: Recipe, arguments: dict[str, Any]) -> dict[str, Tensor] | None:
    """What the recipe's model starts from, under the names of a classifier of these arguments; None for nothing.

    Raises:
        UserError: Weights that do not fit.
    """
    if not recipe.weights:
        return None
    classifier = create(recipe.model, recipe.image_size, arguments)
    load_weights(classifier, recipe.weights, "drop")
    return classifier.state_dict()


def with_normalisation(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with the mean and deviation that its weights, or else its model, are to be used with."""
    cfg: Any = timm.get_pretrained_cfg(recipe.model, allow_unregistered=True) or PretrainedCfg()
    mean, std = cfg.mean, cfg.std
    if recipe.weights and (path := find_config(recipe.weights)).is_file():
        stated = read_config(path).get("pretrained_cfg", {})
        mean, std = stated.get("mean", mean), stated.get("std", std)
    return replace(recipe, mean=recipe.mean or tuple(mean), std=recipe.std or tuple(std))
