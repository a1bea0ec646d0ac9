"""Recipes: a run of training is one function that returns one full, typed `Recipe`.

Nothing here imports torch: the command checks a recipe and its overrides before it pays for that.
"""

from collections.abc import Callable

from .classification import elpv, finetune, imagenet1k_dmformer_l, imagenet1k_dmformer_s, scratch
from .recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    f.__name__: f for f in (elpv, scratch, finetune, imagenet1k_dmformer_s, imagenet1k_dmformer_l)
}

__all__ = ["RECIPES", "Recipe"]
