"""Build a classifier from a recipe: the model, its frozen parts, its schedule."""

from typing import Any

from torch import nn

from ...models.create import create
from ...models.weights import load_weights
from ...utils.errors import UserError
from ..build import check_names
from .image_recipe import ImageRecipe


def build_model(recipe: ImageRecipe, class_names: list[str]) -> tuple[nn.Module, list[nn.Module]]:
    """The classifier of a recipe with its starting weights, and its frozen parts, which stay in evaluation mode.

    Raises:
        UserError: Unknown model, arguments that it does not accept, or weights that do not fit.
    """
    check_names(recipe)
    arguments: dict[str, Any] = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    arguments = {k: v for k, v in arguments.items() if v} | recipe.parsed_model_args()
    model = create(recipe.model, recipe.image_size, {**arguments, "num_classes": len(class_names)})
    if recipe.starting_weights:
        load_weights(model, recipe.starting_weights, recipe.head)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing()
    return model, freeze(model, recipe.freeze) if recipe.freeze else []


def cosine_schedule(recipe: ImageRecipe) -> dict[str, Any]:
    """Arguments of timm's `create_scheduler_v2`, in epochs: warm-up, cosine, and cool-down."""
    decay = max(recipe.epochs - recipe.cooldown_epochs, 1)
    return {"sched": "cosine", "num_epochs": decay, "warmup_epochs": min(recipe.warmup_epochs, decay / 2)}


def preprocessing(recipe: ImageRecipe, crop_pct: float) -> dict[str, Any]:
    """The preprocessing of a trained classifier, in timm's terms."""
    return {
        "input_size": (3, recipe.image_size, recipe.image_size),
        "interpolation": recipe.interpolation,
        "mean": recipe.mean,
        "std": recipe.std,
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }


def freeze(model: nn.Module, stages: int) -> list[nn.Module]:
    """Freeze the first stages (if all of them, the final norm too); returns the frozen parts."""
    if not hasattr(model, "stages"):
        raise UserError(f"--freeze works on models made of stages, which {type(model).__name__} is not.")
    parts = list(model.stages)[:stages]  # type: ignore[arg-type]
    if stages >= len(model.stages) and hasattr(model, "norm"):  # type: ignore[arg-type]
        parts.append(model.norm)  # type: ignore[arg-type]
    for part in parts:
        part.requires_grad_(False)
    return parts
