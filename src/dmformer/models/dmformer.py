"""DMFormer: a hierarchical vision transformer with Dynamic Multi-level Attention in place of self-attention.

"DMFormer: Closing the Gap Between CNN and Vision Transformers", ICASSP 2023, arXiv 2209.07738. No official code or
weights are public. The paper names S and L without depths and widths: those, and the sizes n and t, are
reconstructions (S and L at the size of VAN-B2 and B3).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import ConvMlp, calculate_drop_path_rates
from timm.models import register_model
from timm.models.metaformer import Pooling
from torch import nn

from ..nn.backbone import Block, HierarchicalBackbone, Stage, building_on
from ..nn.layers import GELU, ConvStem, Downsample
from ..nn.mixers.dma import DMA, LEVELS
from ..nn.mixers.lka import LKA
from ..nn.mixers.sam import SAM
from .family import Published, Weights, create, make_cfgs

MIXERS: dict[str, Callable[[int], nn.Module] | None] = {
    "dma": None,
    "lka": LKA,
    "sam": SAM,
    "pooling": lambda dim: Pooling(),
    "identity": lambda dim: nn.Identity(),
}
"""Mixers by the names that text uses: --model-args, config.json. Other papers' replace DMA for comparison; "pooling" is
PoolFormer's."""


class DMFormer(HierarchicalBackbone):
    """(B, in_chans, H, W) -> (B, num_classes); any H and W from 32 up.

    Args:
        dims: Channels of the four stages.
        mlp_ratios: Hidden width of each stage's MLP over its channels.
        mixer: Makes a mixer from the number of channels; None for DMA with the arguments that follow.
        levels, dilated, gate, expand_ratio, gate_reduction: See `DMA`; they include the paper's ablations.
        in_chans, num_classes, global_pool, drop_rate, output_stride: See `HierarchicalBackbone`.
        drop_path_rate: Stochastic depth at the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[float],
        mixer: Callable[[int], nn.Module] | None = None,
        levels: Sequence[tuple[int, int]] = LEVELS,
        dilated: bool = True,
        gate: bool = True,
        expand_ratio: float | None = 1.0,
        gate_reduction: int = 16,
        layer_scale: float | None = 1e-2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        mixer = mixer or partial(
            DMA, levels=levels, dilated=dilated, gate=gate, expand_ratio=expand_ratio, gate_reduction=gate_reduction
        )
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        with building_on(device, dtype):
            stages = []
            for i, (dim, ratio, drops) in enumerate(zip(dims, mlp_ratios, rates, strict=True)):
                mlp = partial(ConvMlp, hidden_features=int(dim * ratio), act_layer=GELU)
                downsample = ConvStem(in_chans, dim) if i == 0 else Downsample(dims[i - 1], dim)
                blocks = [Block(dim, mixer, mlp, layer_scale=layer_scale, drop_path=drop) for drop in drops]  # type: ignore[union-attr]
                stages.append(Stage(dim, downsample, blocks))
            norm = nn.BatchNorm2d(dims[-1])
            super().__init__(stages, norm, in_chans, num_classes, global_pool, drop_rate, output_stride=output_stride)


PUBLISHED = {
    "dmformer_n": Published(None, None, (Weights("dist_lite0", note="distilled from EfficientNet-Lite0"),)),
    "dmformer_t": Published(None, None, (Weights("untrained"),)),
    "dmformer_s": Published(None, None, (Weights("in1k", 82.8, note="no weights were published"),)),
    "dmformer_l": Published(None, None, (Weights("in1k", 83.6, note="no weights were published"),)),
}
"""Top-1 from the abstract of version 1 of the paper."""

default_cfgs = make_cfgs(
    PUBLISHED,
    first_conv="stages.0.downsample.0",
    license="apache-2.0",
    paper_name="DMFormer: Closing the Gap Between CNN and Vision Transformers",
    paper_ids="arXiv:2209.07738",
)


def _create(variant: str, pretrained: bool, args: dict[str, Any], given: dict[str, Any]) -> DMFormer:
    """Build a variant through timm, with `mixer` as a callable or as a name in `MIXERS`."""
    if isinstance(name := given.get("mixer"), str):
        if name not in MIXERS:
            raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, not {name!r}")
        given = {**given, "mixer": MIXERS[name]}
    return create(DMFormer, variant, pretrained, args, given)


@register_model
def dmformer_n(pretrained: bool = False, **kwargs) -> DMFormer:
    """2.3 M parameters, 2.1 M without the classifier; our size, for CPUs, edge devices or a quick start."""
    args = dict(dims=(32, 64, 128, 192), depths=(2, 2, 4, 2), mlp_ratios=(4, 4, 4, 4))
    return _create("dmformer_n", pretrained, args, kwargs)


@register_model
def dmformer_t(pretrained: bool = False, **kwargs) -> DMFormer:
    """About 4 M parameters; our size, close to VAN-B0 and PVTv2-B0."""
    args = dict(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), mlp_ratios=(8, 8, 4, 4))
    return _create("dmformer_t", pretrained, args, kwargs)


@register_model
def dmformer_s(pretrained: bool = False, **kwargs) -> DMFormer:
    """The paper's S, 82.8 % top-1; depths and widths reconstructed at the size of VAN-B2."""
    args = dict(dims=(64, 128, 320, 512), depths=(3, 3, 12, 3), mlp_ratios=(8, 8, 4, 4))
    return _create("dmformer_s", pretrained, args, kwargs)


@register_model
def dmformer_l(pretrained: bool = False, **kwargs) -> DMFormer:
    """The paper's L, 83.6 % top-1; depths and widths reconstructed at the size of VAN-B3."""
    args = dict(dims=(64, 128, 320, 512), depths=(3, 5, 27, 3), mlp_ratios=(8, 8, 4, 4))
    return _create("dmformer_l", pretrained, args, kwargs)
