"""What a recipe makes of names and numbers: the model, its frozen parts, its normalisation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import timm
import torch
from timm.models import PretrainedCfg
from timm.optim import list_optimizers
from torch import Tensor, nn

from .config_file import find_config, read_config
from .errors import UserError, first_line, unknown
from .recipes import Recipe, TaughtRecipe
from .weights import load_weights

SEED = 0
"""Of random weights."""

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def build_model(recipe: TaughtRecipe, class_names: list[str]) -> tuple[nn.Module, list[nn.Module]]:
    """The classifier of a recipe with its starting weights, and its frozen parts, to be kept in evaluation mode.

    Raises:
        UserError: Unknown model, arguments that it does not take, weights that do not fit.
    """
    check_names(recipe)
    arguments: dict[str, Any] = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    arguments = {k: v for k, v in arguments.items() if v} | recipe.parsed_model_args()
    model = create(recipe.model, recipe.image_size, {**arguments, "num_classes": len(class_names)})
    if recipe.weights:
        load_weights(model, recipe.weights, recipe.head)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing()
    return model, freeze(model, recipe.freeze) if recipe.freeze else []


def check_names(recipe: Recipe) -> None:
    """Raise UserError for a model or an optimiser that timm does not know."""
    if not timm.is_model(recipe.model):
        raise unknown("model", recipe.model, timm.list_models())
    optimizers = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in optimizers:
        raise unknown("optimizer", recipe.optimizer, optimizers)


def cosine_schedule(recipe: TaughtRecipe) -> dict[str, Any]:
    """Arguments of timm's `create_scheduler_v2`, in epochs: warm-up, a cosine, and the epochs of cooling down."""
    decay = max(recipe.epochs - recipe.cooldown_epochs, 1)
    return {"sched": "cosine", "num_epochs": decay, "warmup_epochs": min(recipe.warmup_epochs, decay / 2)}


def preprocessing(recipe: TaughtRecipe, crop_pct: float) -> dict[str, Any]:
    """What a trained classifier's images need, in timm's terms."""
    return {
        "input_size": (3, recipe.image_size, recipe.image_size),
        "interpolation": recipe.interpolation,
        "mean": recipe.mean,
        "std": recipe.std,
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }


def create(name: str, image_size: int, arguments: dict[str, Any]) -> Any:
    """timm's `create_model`, told of the size where a model is made for one.

    Raises:
        UserError: Arguments that it does not take.
    """
    try:
        return timm.create_model(name, **{**size_argument(name, image_size), **arguments})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} does not take these arguments: {first_line(error)}") from None


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


def size_argument(name: str, image_size: int) -> dict[str, int]:
    """What a model that is made for one size of images has to be told of it."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()
    return {"img_size": image_size} if cfg.fixed_input_size else {}


def own_size(name: str) -> int:
    """Side in pixels of the images that a model of timm or ours is made for."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()
    return int((cfg.input_size or (3, 224, 224))[-1])


def random_model(name: str, image_size: int) -> nn.Module:
    """A model of timm or ours in evaluation mode, with random weights that are always the same.

    The statistics of its BatchNorms are those of noise, so that folding them has something to fold.

    Args:
        name: Its name.
        image_size: Of a model that is made for one size, and of the noise.
    """
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = timm.create_model(name, **size_argument(name, image_size))  # type: ignore[arg-type]
        return settled_on_noise(model, image_size)


def settled_on_noise(model: nn.Module, image_size: int) -> nn.Module:
    """A model in evaluation mode, the statistics of its BatchNorms those of noise."""
    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    settle_norms(model, norms, [torch.randn(2, 3, image_size, image_size)] if norms else [])
    return model


@torch.no_grad()
def settle_norms(model: nn.Module, norms: Sequence[nn.modules.batchnorm._BatchNorm], batches: Sequence[Tensor]) -> None:
    """Bring the statistics of some of a model's BatchNorms to those of batches of images (B, 3, H, W), in place."""
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the batches
        norm.train()
    for batch in batches:
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def with_normalisation(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with the mean and deviation that its weights, or else its model, are to be used with."""
    cfg: Any = timm.get_pretrained_cfg(recipe.model, allow_unregistered=True) or PretrainedCfg()
    mean, std = cfg.mean, cfg.std
    if recipe.weights and (path := find_config(recipe.weights)).is_file():
        stated = read_config(path).get("pretrained_cfg", {})
        mean, std = stated.get("mean", mean), stated.get("std", std)
    return replace(recipe, mean=recipe.mean or tuple(mean), std=recipe.std or tuple(std))


def freeze(model: nn.Module, stages: int) -> list[nn.Module]:
    """Keep the first stages as they are (with all of them, the closing norm too); returns the frozen parts."""
    if not hasattr(model, "stages"):
        raise UserError(f"--freeze works on models made of stages, which {type(model).__name__} is not.")
    parts = list(model.stages)[:stages]  # type: ignore[arg-type]
    if stages >= len(model.stages) and hasattr(model, "norm"):  # type: ignore[arg-type]
        parts.append(model.norm)  # type: ignore[arg-type]
    for part in parts:
        part.requires_grad_(False)
    return parts
