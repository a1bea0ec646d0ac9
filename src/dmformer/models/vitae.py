"""ViTAE: three stages of reduction and normal cells (T to S), and plain stacks of normal cells (B to H).

"ViTAE: Vision Transformer Advanced by Exploring Intrinsic Inductive Bias", NeurIPS 2021, arXiv 2106.03348; the large
sizes "ViTAEv2", arXiv 2202.10108. Exact: the authors' weights load and reproduce the authors' outputs.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates, resample_abs_pos_embed
from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from timm.models._input import get_pretrained_grid_size, update_model_input_size
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from ..nn.backbone import HierarchicalBackbone, building_on
from ..nn.mixers.attention import Attention
from ..nn.mixers.performer import Performer
from ..nn.vitae_cells import PCM, PRM, CellStage, NormalCell, Position, ReductionCell, to_map
from ..utils.errors import UserError
from .family import Published, Weights, create, make_cfgs, to_our_names, with_source

STRIDES = (4, 2, 2)
KERNELS = (7, 3, 3)
DILATIONS = ((1, 2, 3, 4), (1, 2, 3), (1, 2))
PCM_STRIDES = ((2, 2, 1), (2, 1, 1), (2, 1, 1))

TokenType = Literal["performer", "transformer", "pooling", "performer_less"]


class ViTAE(HierarchicalBackbone):
    """Sizes T to S: (B, in_chans, H, W) -> (B, num_classes); any H and W from 32 up, maps at strides 4, 8, 16.

    Args:
        embed_dims: Channels of one dilation in each stage's pyramid.
        dims: Channels of the three stages ("token dims").
        depth: Normal cells, all in the third stage.
        mlp_ratio: Expansion ratio of the normal cells' MLP and convolutions.
        token_types: Type of each reduction cell: "performer", "transformer", "pooling" (max-pooling, then transformer)
            or "performer_less" (the pyramid alone).
        fuse, shared: How the pyramids fuse their dilations, and whether the dilations share one kernel; see `PRM`.
        class_token: Whether to add a class token to the third stage.
        position: "sinusoid" adds the sinusoid encoding to the third stage's tokens. The paper describes both; the
            published weights have neither.
        in_chans, num_classes, global_pool, drop_rate: See `HierarchicalBackbone`.
        drop_path_rate: Stochastic depth at the last normal cell, growing linearly from 0 at the first.

    Reconstructions: "pooling" is a 3x3 max-pooling with the stage's stride before a pyramid of stride 1; the classifier
    reads the mean of the map's tokens even if there is a class token, as in the authors' larger sizes.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        dims: Sequence[int],
        depth: int,
        heads: int,
        mlp_ratio: float = 2.0,
        groups: int = 64,
        token_types: Sequence[TokenType] = ("performer", "performer", "performer_less"),
        fuse: Literal["cat", "sum"] = "cat",
        shared: bool = False,
        class_token: bool = False,
        position: Position = "none",
        drop: float = 0.1,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if position == "learned":
            raise ValueError(
                "position must be none or sinusoid: only vitae_b, vitae_l and vitae_h have learned positions"
            )
        with building_on(device, dtype):
            stages = []
            for i, (embed, dim, kind) in enumerate(zip(embed_dims, dims, token_types, strict=True)):
                before = in_chans if i == 0 else stages[-1].dim
                reduction, dim = _reduction(i, kind, before, embed, dim, fuse, shared, drop)
                cells = []
                if i == len(STRIDES) - 1:
                    for rate in calculate_drop_path_rates(drop_path_rate, depth):
                        pcm = PCM((dim, int(dim * mlp_ratio), dim, dim), groups=groups, last_act=True)
                        cells.append(NormalCell(dim, Attention(dim, dim, heads), pcm, mlp_ratio, rate))  # type: ignore[arg-type]
                    stages.append(CellStage(dim, reduction, cells, class_token, position))
                else:
                    stages.append(CellStage(dim, reduction, cells))
            super().__init__(stages, None, in_chans, num_classes, global_pool, drop_rate)
        # The convolutions that timm adapts to other channels: fewer with some options than in the configurations.
        modules = self.stages[0].get_submodule("downsample").named_modules()
        names = [name for name, _ in modules if re.fullmatch(r"(prm\.)?convs\.\d|pcm\.0", name)]
        self._traits = {"first_conv": tuple(f"stages.0.downsample.{n}" for n in names)}


def _reduction(
    i: int, kind: TokenType, before: int, embed: int, dim: int, fuse: Literal["cat", "sum"], shared: bool, drop: float
) -> tuple[nn.Module, int]:
    """The reduction cell of stage i and its output channels."""
    if kind not in get_args(TokenType):
        raise ValueError(f"token_types must be among {', '.join(get_args(TokenType))}, not {kind!r}")
    stride, pool = STRIDES[i], None
    if kind == "pooling":
        stride, pool = 1, nn.MaxPool2d(3, STRIDES[i], padding=1)
    prm = PRM(before, embed, KERNELS[i], stride, DILATIONS[i], fuse, shared)
    if kind == "performer_less":
        return prm, prm.out_dim
    if kind == "performer":
        attn = Performer(prm.out_dim, dim, drop)
    else:
        attn = Attention(prm.out_dim, dim, heads=1, qkv_bias=False, value_skip=True)
    pcm = PCM((before, embed, embed, dim), PCM_STRIDES[i], first_norm=False, last_act=True)
    return ReductionCell(prm, attn, pcm, dim, pool, drop), dim


class ViTAEPlain(HierarchicalBackbone):
    """Sizes B to H: 16x16 patches, a class token, learned positions: (B, in_chans, H, W) -> (B, num_classes).

    The features are the map of the patch tokens, (B, C, H/16, W/16), after any cell; the class token takes part in
    attention and is dropped, as the authors' classifier never reads it.

    Args:
        heads: Heads of the normal cells; their convolutions have dim / 4 groups.
        img_size: Image height and width that the learned positions are made for, multiples of the patch size.
        dynamic_img_size: Accept images of any size from `patch_size` up, and resize the positions for each.
        mlp_ratio: Expansion ratio of the cells' MLP and convolutions.
        in_chans, num_classes, global_pool, drop_rate: See `HierarchicalBackbone`.
        drop_path_rate: Stochastic depth at the last cell, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        patch_size: int = 16,
        img_size: int | tuple[int, int] = 224,
        dynamic_img_size: bool = False,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        rates = calculate_drop_path_rates(drop_path_rate, depth)
        with building_on(device, dtype):
            cells = [
                NormalCell(
                    dim,
                    Attention(dim, dim, heads),
                    PCM((dim, int(dim * mlp_ratio), dim), groups=dim // 4),
                    mlp_ratio,
                    rate,  # type: ignore[arg-type]
                )
                for rate in rates
            ]
            stage = CellStage(
                dim,
                nn.Conv2d(in_chans, dim, patch_size, stride=patch_size),
                cells,
                class_token=True,
                position="learned",
                grid=(height // patch_size, width // patch_size),
                any_grid=dynamic_img_size,
            )
            head = NormMlpClassifierHead(
                dim,
                num_classes,
                pool_type=global_pool,
                drop_rate=drop_rate,
                norm_layer=partial(LayerNorm2d, eps=1e-6),  # type: ignore[arg-type]
            )
            super().__init__([stage], None, in_chans, num_classes, global_pool, drop_rate, head)
        self.patch_size = patch_size
        self.feature_info = [
            dict(num_chs=dim, reduction=patch_size, module=f"stages.0.blocks.{i}") for i in range(depth)
        ]

    @torch.jit.ignore  # type: ignore[arg-type]
    def group_matcher(self, coarse: bool = False) -> dict:
        """Parameter groups by depth, for layer-wise learning rates."""
        return dict(
            stem=r"^stages\.0\.(?:cls_token|pos_embed|downsample)", blocks=[(r"^stages\.0\.blocks\.(\d+)", None)]
        )

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize the learned positions for images of another size, in place."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        stage = self._stage()
        grid = (height // self.patch_size, width // self.patch_size)
        old: nn.Parameter = stage.pos_embed  # type: ignore[assignment]
        table = resample_abs_pos_embed(old.data, list(grid), list(stage.grid))
        stage.pos_embed = nn.Parameter(table, requires_grad=old.requires_grad)
        stage.grid = grid
        update_model_input_size(self, (height, width))  # timm records it when it saves the model

    def _stage(self) -> CellStage:
        return self.stages[0]  # type: ignore[return-value]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> list | tuple[Tensor, list]:
        """Final features, and those after the chosen cells, each (B, C, H/16, W/16).

        Args:
            indices: The last n cells if int, all if None, else these cells.
            norm: No effect: the norm comes after the pooling.
            return_prefix_tokens: Return (map, class token (B, 1, C)) for each cell.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, not {output_fmt}")
        stage = self._stage()
        take, last = feature_take_indices(len(stage.blocks), indices)
        tokens, size = stage.embed(x)
        intermediates: list = []
        for i, cell in enumerate(stage.blocks[: last + 1] if stop_early else stage.blocks):
            tokens = checkpoint(cell, tokens, size) if stage.grad_checkpointing else cell(tokens, size)
            if i in take:
                features = to_map(tokens[:, 1:], size)
                intermediates.append((features, tokens[:, :1]) if return_prefix_tokens else features)
        return intermediates if intermediates_only else (to_map(tokens[:, 1:], size), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop, in place, what the chosen cells do not need; return their indices."""
        stage = self._stage()
        take, last = feature_take_indices(len(stage.blocks), indices)
        shortened = last < len(stage.blocks) - 1
        stage.blocks = stage.blocks[: last + 1]
        if prune_norm or shortened:
            self.head.norm = nn.Identity()
        if prune_head or shortened:
            self.num_classes = 0
            self.head.reset(0, pool_type="")
        return take


PUBLISHED = {
    "vitae_t": Published(None, None, (Weights("in1k", 75.3, ("ViTAE-T.pth.tar",)),)),
    "vitae_6m": Published(None, None, (Weights("in1k", 77.9),)),
    "vitae_13m": Published(None, None, (Weights("in1k", 81.0),)),
    "vitae_s": Published(24.0, 5.6, (Weights("in1k", 82.0),)),
    "vitae_b": Published(None, None, (Weights("in1k", 83.8), Weights("in22k_ft_in1k", 84.8))),
    "vitae_l": Published(None, None, (Weights("in1k", 86.0), Weights("in22k_ft_in1k", 87.5))),
    "vitae_h": Published(None, None, (Weights("in1k", 86.9), Weights("in22k_ft_in1k", 88.0))),
}

_PLAIN = ("vitae_b", "vitae_l", "vitae_h")
_COMMON: dict[str, Any] = dict(
    stride=16,
    paper_name="ViTAE: Vision Transformer Advanced by Exploring Intrinsic Inductive Bias",
    paper_ids="arXiv:2106.03348",
    origin_url="https://github.com/ViTAE-Transformer/ViTAE-Transformer",
)

default_cfgs = {
    **make_cfgs(
        {name: entry for name, entry in PUBLISHED.items() if name not in _PLAIN},
        first_conv=(*(f"stages.0.downsample.prm.convs.{d}" for d in range(4)), "stages.0.downsample.pcm.0"),
        **_COMMON,
    ),
    **make_cfgs(
        {name: PUBLISHED[name] for name in _PLAIN}, first_conv="stages.0.downsample", fixed_input_size=True, **_COMMON
    ),
}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's filter on loading: rename the keys of published layouts and resize learned positions to the model.

    Raises:
        UserError: The height and width that the positions are made for are unknown.
    """
    state_dict = to_our_names(state_dict, model)
    name = "stages.0.pos_embed"
    own, table = model.state_dict().get(name), state_dict.get(name)
    if own is None or table is None:
        return state_dict
    tokens, new = table.shape[1] - 1, model.stages[0].grid  # type: ignore[index,union-attr]
    old = None
    if "img_size" in getattr(model, "pretrained_model_args", {}):  # from a folder or repository that timm reads
        old = get_pretrained_grid_size(model, state_dict.get("stages.0.downsample.weight"), tokens)
    if old is None and own.shape == table.shape:
        old = new
    if old is None:
        old = (math.isqrt(tokens), math.isqrt(tokens))
        if old[0] * old[1] != tokens:
            raise UserError(
                f"the weights have positions for a map of {tokens} patches that is not square: create the model with "
                "the img_size that they were trained for, load them, then call set_input_size."
            )
    if old != new:
        state_dict = {**state_dict, name: resample_abs_pos_embed(table, list(new), list(old))}  # type: ignore[arg-type]
    return state_dict


def _create_plain(variant: str, pretrained: bool, args: dict[str, Any], given: dict[str, Any]) -> ViTAEPlain:
    if pretrained:
        given = with_source(variant, given)
    features = dict(out_indices=3, feature_cls="getter")
    return build_model_with_cfg(
        ViTAEPlain, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn, feature_cfg=features, **args | given
    )


@register_model
def vitae_t(pretrained: bool = False, **kwargs) -> ViTAE:
    """ViTAE-T, 4.9 M parameters, published 75.3 %."""
    args = dict(embed_dims=(64, 64, 128), dims=(64, 64, 256), depth=7, heads=4)
    return create(ViTAE, "vitae_t", pretrained, args, kwargs)


@register_model
def vitae_6m(pretrained: bool = False, **kwargs) -> ViTAE:
    """ViTAE-6M, 6.6 M parameters, published 77.9 %."""
    args = dict(embed_dims=(64, 64, 128), dims=(64, 64, 256), depth=10, heads=4)
    return create(ViTAE, "vitae_6m", pretrained, args, kwargs)


@register_model
def vitae_13m(pretrained: bool = False, **kwargs) -> ViTAE:
    """ViTAE-13M, 10.8 M parameters, published 81.0 %."""
    args = dict(embed_dims=(64, 64, 160), dims=(64, 64, 320), depth=11, heads=5)
    return create(ViTAE, "vitae_13m", pretrained, args, kwargs)


@register_model
def vitae_s(pretrained: bool = False, **kwargs) -> ViTAE:
    """ViTAE-S, 24 M parameters, published 82.0 %."""
    args = dict(embed_dims=(64, 64, 192), dims=(96, 192, 384), depth=14, heads=6, mlp_ratio=3.0, groups=96)
    return create(ViTAE, "vitae_s", pretrained, args, kwargs)


@register_model
def vitae_b(pretrained: bool = False, **kwargs) -> ViTAEPlain:
    """ViTAE-B, 89 M parameters, published 83.8 %, 84.8 % after ImageNet-22K."""
    return _create_plain("vitae_b", pretrained, dict(dim=768, depth=12, heads=12), kwargs)


@register_model
def vitae_l(pretrained: bool = False, **kwargs) -> ViTAEPlain:
    """ViTAE-L, 312 M parameters, published 86.0 %, 87.5 % after ImageNet-22K."""
    return _create_plain("vitae_l", pretrained, dict(dim=1024, depth=24, heads=16), kwargs)


@register_model
def vitae_h(pretrained: bool = False, **kwargs) -> ViTAEPlain:
    """ViTAE-H, 645 M parameters, published 86.9 %, 88.0 % after ImageNet-22K."""
    return _create_plain("vitae_h", pretrained, dict(dim=1280, depth=32, heads=16), kwargs)
