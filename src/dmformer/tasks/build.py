"""Build models, starting weights and normalisation from recipes and trained folders, for any task."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import timm
import torch
from timm.models import PretrainedCfg
from timm.optim import list_optimizers
from torch import Tensor, nn

from ..models.create import create
from ..models.weights import (
    compare,
    load_strictly,
    load_weights,
    read_state_dict,
    sentence,
    to_device,
    write_state_dict,
)
from ..nn.fuse import fuse
from ..utils.device import computes_bf16, find_device
from ..utils.errors import UserError, unknown
from ..utils.model_names import model_names
from ..utils.pretrained import folder_of, tags
from .config import TrainedFolder, find_config, read_as, read_folder, write_config
from .recipe import AnyRecipe, Recipe

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the red, green and blue values, as config.json states them."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Trained:
    """What a trained model of any task can do besides predicting: for dataclasses with `model` and `form`."""

    model: Any

    @cached_property
    def network(self) -> nn.Module:
        """The module that answers, around `model` or the same."""
        return self.model

    def for_inference(self, device: str = "auto") -> Self:
        """The same model, fused, on a device, see `find_device`."""
        fused: Any = replace(self, model=fuse(self.model), form="PyTorch, fused")  # type: ignore[type-var]
        fused.on_device(device)
        return fused

    def on_device(self, device: str = "auto") -> torch.device:
        """Move the model to a device, see `find_device`, in the memory format best for convolutions."""
        return to_device(self.model, device)


def check_names(recipe: Recipe) -> None:
    """Raise UserError for a model or an optimiser that timm does not know."""
    if not timm.is_model(recipe.model):
        raise unknown("model", recipe.model, timm.list_models())
    optimizers = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in optimizers:
        raise unknown("optimizer", recipe.optimizer, optimizers)


def classifier_weights(recipe: Recipe, arguments: dict[str, Any]) -> dict[str, Tensor] | None:
    """The recipe's starting weights, under the names of a classifier built with these arguments; None if it has none.

    Raises:
        UserError: Weights that do not fit.
    """
    if not recipe.starting_weights:
        return None
    classifier = create(recipe.model, recipe.image_size, arguments)
    load_weights(classifier, recipe.starting_weights, "drop")
    return classifier.state_dict()


def with_pretrained(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with the weights of this package that `pretrained` asks for.

    With "auto", models without such weights, and those that differ in shape by their arguments, start anew.

    Raises:
        UserError: The weights do not fit, or this package's file is missing or damaged.
    """
    if recipe.resume or recipe.weights or recipe.pretrained == "none":
        return recipe
    there, auto = tags(recipe.model), recipe.pretrained == "auto"
    if auto and not there:
        return recipe
    name = f"{recipe.model}.{there[0] if auto else recipe.pretrained}"
    state = read_state_dict(folder_of(name) / "model.safetensors")
    model = create(recipe.model, recipe.image_size, {**recipe.parsed_model_args(), "device": "meta"})
    differences = compare({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}, state)
    if differences and not auto:
        raise UserError(f"{name} does not fit {recipe.model} with these --model-args: it {sentence(differences)}.")
    return recipe if differences else replace(recipe, weights=name)


def no_pretrained_note(recipe: Recipe) -> str:
    """What the user should know if `with_pretrained` finds no weights."""
    arguments = " with these --model-args" if tags(recipe.model) else ""
    return (
        f"this package has no weights for {recipe.model}{arguments}: training starts from random weights, which takes "
        "many more epochs; --weights names others"
    )


def with_precision(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with the precision that "auto" stands for; a resumed run keeps its own.

    On a CPU, bf16 is chosen for the models of this package only: it slows some others down, for instance
    efficientnet_b0 (benchmarks/results/precision.csv).
    """
    if recipe.precision != "auto" or recipe.resume:
        return recipe
    device = find_device(recipe.device)
    faster = computes_bf16(device) and (device.type != "cpu" or recipe.model in model_names())
    return replace(recipe, precision="bf16" if faster else "no")


def with_normalisation(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with the mean and standard deviation that its weights, or else its model, expect."""
    cfg: Any = timm.get_pretrained_cfg(recipe.model, allow_unregistered=True) or PretrainedCfg()
    mean, std = cfg.mean, cfg.std
    if recipe.weights and find_config(recipe.weights).is_file():
        stated = read_as(Normalisation, read_folder(recipe.weights), "a model")
        mean, std = stated.mean or mean, stated.std or std
    return replace(recipe, mean=recipe.mean or tuple(mean), std=recipe.std or tuple(std))


def save_model(folder: Path, task: str, config: Any, state: dict[str, Tensor]) -> None:
    """Write model.safetensors, and config.json from a task's dataclass, each atomically; creates the folder if
    needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_state_dict(folder / "model.safetensors", state)
    write_config(folder / "config.json", task, config)


def load_model(trained: TrainedFolder, build: Callable[[], AnyModel]) -> AnyModel:
    """Load the model of a folder, with its weights, in evaluation mode.

    Args:
        trained: The folder.
        build: Builds the model with random weights.

    Raises:
        UserError: The model does not accept the arguments, or the weights do not fit.
    """
    with trained.building():
        model = build()
    load_strictly(model, read_state_dict(trained.weights), str(trained))
    return model.eval()


def continued(trained: TrainedFolder, model: AnyModel, same_classes: bool) -> AnyModel:
    """Load the weights of a trained model into a new one, in place.

    Args:
        trained: Folder of the trained model.
        model: A model of the same kind, with random weights.
        same_classes: Whether both have the same number of classes. Otherwise, tensors that differ only in their first
            dimension, which depends on that number, keep their random weights.

    Raises:
        UserError: Weights that do not fit.
    """
    own, state = model.state_dict(), read_state_dict(trained.weights)

    def is_new(name: str, tensor: Tensor) -> bool:
        there = own.get(name)
        return there is not None and there.shape != tensor.shape and there.shape[1:] == tensor.shape[1:]

    if not same_classes:
        state = {name: own[name] if is_new(name, tensor) else tensor for name, tensor in state.items()}
    load_strictly(model, state, str(trained))
    return model
