"""ViTAEv2: a hierarchical backbone of reduction and normal cells, with windowed attention in its early stages.

"ViTAEv2: Vision Transformer Advanced by Exploring Inductive Bias for Image Recognition and Beyond", IJCV 2023, arXiv
2202.10108. Exact: the authors' weights load and reproduce the authors' outputs.
"""

from collections.abc import Sequence

import torch
from timm.layers import calculate_drop_path_rates
from timm.models import register_model

from ..nn.backbone import HierarchicalBackbone, building_on
from ..nn.mixers.attention import Attention
from ..nn.mixers.window import WindowAttention
from ..nn.vitae_cells import PCM, PRM, CellStage, NormalCell, ReductionCell
from .family import Published, Weights, create, make_cfgs

STRIDES = (4, 2, 2, 2)
KERNELS = (7, 3, 3, 3)
DILATIONS = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2))
PCM_STRIDES = ((2, 2, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1))


class ViTAEv2(HierarchicalBackbone):
    """(B, in_chans, H, W) -> (B, num_classes); any H and W from 32 up.

    Args:
        embed_dims: Channels of one dilation in each stage's pyramid.
        dims: Channels of the four stages ("token dims").
        depths: Normal cells of the four stages.
        heads, reduction_heads: Heads of each stage's normal cells and of its reduction cell.
        groups, reduction_groups: Groups of the convolutions of each stage's normal cells and of its reduction cell.
        window: Side of the attention windows of the first two stages.
        mlp_ratio: Expansion ratio of the normal cells' MLP and convolutions.
        in_chans, num_classes, global_pool, drop_rate: See `HierarchicalBackbone`.
        drop_path_rate: Stochastic depth at the last cell, growing linearly from 0 at the first. The authors' code
            restarts each stage at the depth of the one before it; here the depths add up.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int] = (1, 2, 4, 8),
        reduction_heads: Sequence[int] = (1, 1, 2, 4),
        groups: Sequence[int] = (1, 32, 64, 128),
        reduction_groups: Sequence[int] = (1, 16, 32, 64),
        window: int = 7,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        with building_on(device, dtype):
            stages = []
            for i, (embed, dim) in enumerate(zip(embed_dims, dims, strict=True)):
                before = in_chans if i == 0 else dims[i - 1]
                prm = PRM(before, embed, KERNELS[i], STRIDES[i], DILATIONS[i])
                if i < 2:
                    attn = WindowAttention(prm.out_dim, dim, reduction_heads[i], window=window)
                else:
                    attn = Attention(prm.out_dim, dim, reduction_heads[i], qkv_bias=False, value_skip=True)
                pcm = PCM((before, embed, embed, dim), PCM_STRIDES[i], reduction_groups[i])
                cells = [
                    NormalCell(
                        dim,
                        WindowAttention(dim, dim, heads[i], window=window) if i < 2 else Attention(dim, dim, heads[i]),
                        PCM((dim, int(dim * mlp_ratio), dim, dim), groups=groups[i]),
                        mlp_ratio,
                        drop,
                    )
                    for drop in rates[i]  # type: ignore[union-attr]
                ]
                stages.append(CellStage(dim, ReductionCell(prm, attn, pcm, dim), cells))
            super().__init__(stages, None, in_chans, num_classes, global_pool, drop_rate)


PUBLISHED = {
    "vitaev2_s": Published(19.0, 5.7, (Weights("in1k", 82.6),)),
    "vitaev2_48m": Published(48.6, 13.3, (Weights("in1k", 83.8),)),
    "vitaev2_b": Published(90.0, 24.3, (Weights("in1k", 84.6), Weights("in22k_ft_in1k", 86.1))),
}

default_cfgs = make_cfgs(
    PUBLISHED,
    first_conv=(*(f"stages.0.downsample.prm.convs.{d}" for d in range(4)), "stages.0.downsample.pcm.0"),
    paper_name="ViTAEv2: Vision Transformer Advanced by Exploring Inductive Bias for Image Recognition and Beyond",
    paper_ids="arXiv:2202.10108",
    origin_url="https://github.com/ViTAE-Transformer/ViTAE-Transformer",
)


@register_model
def vitaev2_s(pretrained: bool = False, **kwargs) -> ViTAEv2:
    """ViTAEv2-S, 19.4 M parameters, published 82.6 %."""
    args = dict(embed_dims=(64, 64, 128, 256), dims=(64, 128, 256, 512), depths=(2, 2, 8, 2))
    return create(ViTAEv2, "vitaev2_s", pretrained, args, kwargs)


@register_model
def vitaev2_48m(pretrained: bool = False, **kwargs) -> ViTAEv2:
    """ViTAEv2-48M, 48.7 M parameters, published 83.8 %."""
    args = dict(embed_dims=(64, 64, 192, 384), dims=(96, 192, 384, 768), depths=(2, 2, 11, 2))
    return create(ViTAEv2, "vitaev2_48m", pretrained, args, kwargs)


@register_model
def vitaev2_b(pretrained: bool = False, **kwargs) -> ViTAEv2:
    """ViTAEv2-B, 89.7 M parameters, published 84.6 %, 86.1 % after ImageNet-22K."""
    args = dict(
        embed_dims=(96, 96, 256, 512),
        dims=(128, 256, 512, 1024),
        depths=(2, 2, 12, 2),
        heads=(1, 4, 8, 16),
        reduction_heads=(1, 1, 4, 8),
    )
    return create(ViTAEv2, "vitaev2_b", pretrained, args, kwargs)
