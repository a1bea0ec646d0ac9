"""What a recipe makes of names and numbers: the model, its frozen parts, mixup, the classes' weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import Mixup
from timm.models import PretrainedCfg
from timm.optim import list_optimizers
from torch import Tensor, nn

from .classifier import read_config
from .data.readers import Splits
from .errors import UserError, unknown
from .recipes import Recipe
from .weights import load_weights


def build_model(recipe: Recipe, class_names: list[str]) -> tuple[nn.Module, list[nn.Module]]:
    """The model of a recipe with its starting weights, and its frozen parts, to be kept in evaluation mode.

    Raises:
        UserError: Unknown model, arguments that it does not take, weights that do not fit.
    """
    if not timm.is_model(recipe.model):
        raise unknown("model", recipe.model, timm.list_models())
    optimizers = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in optimizers:
        raise unknown("optimizer", recipe.optimizer, optimizers)
    arguments: dict[str, Any] = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    if (timm.get_pretrained_cfg(recipe.model) or PretrainedCfg()).fixed_input_size:
        arguments["img_size"] = recipe.image_size
    arguments = {k: v for k, v in arguments.items() if v} | recipe.parsed_model_args()
    try:
        model: Any = timm.create_model(recipe.model, num_classes=len(class_names), **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{recipe.model} does not take these arguments: {str(error).splitlines()[0]}") from None
    if recipe.weights:
        load_weights(model, recipe.weights, recipe.head)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing()
    return model, freeze(model, recipe.freeze) if recipe.freeze else []


def with_normalisation(recipe: Recipe) -> Recipe:
    """The recipe with the mean and deviation that its weights, or else its model, are to be used with."""
    cfg: Any = timm.get_pretrained_cfg(recipe.model, allow_unregistered=True) or PretrainedCfg()
    mean, std = cfg.mean, cfg.std
    if recipe.weights and (Path(recipe.weights) / "config.json").is_file():
        stated = read_config(Path(recipe.weights) / "config.json").get("pretrained_cfg", {})
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


def make_mixup(recipe: Recipe, num_classes: int, loader: Any) -> Mixup | None:
    """timm's mixup and CutMix, or None where the recipe has neither."""
    if not recipe.mixup and not recipe.cutmix:
        return None
    if getattr(loader.batch_sampler, "batch_size", recipe.batch_size) % 2:
        raise UserError("--mixup and --cutmix mix pairs: --batch-size must be even.")
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def class_weights(recipe: Recipe, splits: Splits) -> Tensor | None:
    """(K) weights of the classes in the loss, of mean 1 over the training images, or None for equal ones."""
    if recipe.class_weights == "none":
        return None
    if splits.train.targets is None:
        raise UserError("--class-weights balanced needs to know the labels beforehand, which a stream does not tell.")
    counts = np.bincount(splits.train.targets, minlength=len(splits.class_names)).clip(min=1)
    return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
