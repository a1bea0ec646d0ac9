"""Create models, timm's or ours, by name, at a given image size and with reproducible random weights."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import nn

from ..utils.errors import UserError, first_line, unknown

SEED = 0
"""Seed of the random weights."""


def create(name: str, image_size: int, arguments: dict[str, Any]) -> Any:
    """Call timm's `create_model`, passing the image size to models built for a fixed size.

    Raises:
        UserError: The model does not accept these arguments.
    """
    try:
        return timm.create_model(name, **{**size_argument(name, image_size), **arguments})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} does not take these arguments: {first_line(error)}") from None


def size_argument(name: str, image_size: int) -> dict[str, int]:
    """The size argument of a model built for a fixed image size; empty for other models."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()
    return {"img_size": image_size} if cfg.fixed_input_size else {}


def own_size(name: str) -> int:
    """Default image side in pixels of a model, timm's or ours."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True) or PretrainedCfg()
    return int((cfg.input_size or (3, 224, 224))[-1])


def random_model(name: str, image_size: int) -> nn.Module:
    """A model, timm's or ours, in evaluation mode, with reproducible random weights.

    Its BatchNorm statistics are computed from noise, so that folding them is not trivial.

    Args:
        image_size: Image size of the noise, and of a model built for a fixed size.
    """
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        arguments: dict[str, Any] = dict(size_argument(name, image_size))
        return settled_on_noise(timm.create_model(name, **arguments), image_size)


def settled_on_noise(model: nn.Module, image_size: int) -> nn.Module:
    """The model in evaluation mode, with BatchNorm statistics computed from noise."""
    norms = [m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    settle_norms(model, norms, [torch.randn(2, 3, image_size, image_size)] if norms else [])
    return model


@torch.no_grad()
def settle_norms(
    run: Callable[[Any], object], norms: Sequence[nn.modules.batchnorm._BatchNorm], batches: Iterable[Any]
) -> None:
    """Recompute the statistics of some of a model's BatchNorms, in place.

    Args:
        run: Runs the model, or the model itself.
        batches: What it takes, e.g. images (B, 3, H, W).
    """
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the batches
        norm.train()
    for batch in batches:
        run(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
