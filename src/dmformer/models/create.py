"""A model of timm or ours by its name, told of the size where it is made for one, and with random weights."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from ..utils.errors import UserError, first_line, unknown

SEED = 0
"""Of random weights."""


def create(name: str, image_size: int, arguments: dict[str, Any]) -> Any:
    """timm's `create_model`, told of the size where a model is made for one.

    Raises:
        UserError: Arguments that it does not take.
    """
    try:
        return timm.create_model(name, **{**size_argument(name, image_size), **arguments})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} does not take these arguments: {first_line(error)}") from None


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
