"""A backbone's four feature maps, at strides 4, 8, 16 and 32, for segmentation and detection heads."""

from typing import Any

import timm
from timm.layers import Format
from torch import Tensor, nn

from ..utils.errors import UserError, first_line

STRIDES = [4, 8, 16, 32]
UNDECAYED = ("pos_embed", "absolute_pos_embed", "relative_position_bias_table", "cls_token")


def open_backbone(
    name: str, what: str, weights: dict[str, Tensor] | None = None, backbone_args: dict[str, Any] | None = None
) -> tuple[nn.Module, list[int]]:
    """A backbone, ours or timm's, that returns feature maps, and the channels of the last four maps.

    Args:
        what: Purpose of the backbone, for error messages: "a segmenter".
        weights: State dict of the backbone as a classifier; the head may be missing.

    Raises:
        UserError: The backbone has no maps at strides 4, 8, 16 and 32, or does not accept these arguments.
    """
    start: dict[str, Any] = {}
    if weights is not None:
        start = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights}}
    try:
        backbone: Any = timm.create_model(name, features_only=True, **start, **(backbone_args or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise UserError(f"{name} cannot be the backbone of {what}: {first_line(error)}") from None
    strides = list(backbone.feature_info.reduction())
    if strides[-4:] != STRIDES:
        raise UserError(
            f"{name} has feature maps at strides {', '.join(map(str, strides))}; {what} needs 4, 8, 16 and 32."
        )
    return backbone, list(backbone.feature_info.channels())[-4:]


def last_maps(backbone: nn.Module, x: Tensor) -> list[Tensor]:
    """(B, 3, H, W) -> the four maps (B, C, H/stride, W/stride) of a backbone from `open_backbone`."""
    maps = backbone(x)[-4:]
    return [m.permute(0, 3, 1, 2) for m in maps] if getattr(backbone, "output_fmt", None) == Format.NHWC else maps


def undecayed(model: nn.Module) -> set[str]:
    """Names, within `model`, of the backbone's parameters that timm excludes from weight decay."""
    return {name for name, _ in model.named_parameters() if name.endswith(UNDECAYED)}


def freeze_maps(backbone: nn.Module, stages: int) -> list[nn.Module]:
    """Freeze the first stages of a backbone from `open_backbone`; return the frozen modules.

    Raises:
        UserError: The backbone's stages cannot be identified from its maps.
    """
    children = dict(backbone.named_children())
    ends = [name.replace(".", "_") for name in backbone.feature_info.module_name()][-4:]  # type: ignore[operator, union-attr]
    if not set(ends) <= set(children):
        raise UserError(f"--freeze needs a backbone made of stages, which {type(backbone).__name__} is not.")
    last = list(children).index(ends[min(stages, 4) - 1])
    parts = list(children.values())[: last + 1]
    for part in parts:
        part.requires_grad_(False)
    return parts
