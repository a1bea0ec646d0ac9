"""VAN: a hierarchical backbone with Large Kernel Attention.

"Visual Attention Network", Computational Visual Media 2023, arXiv 2202.09741. Exact: the authors' weights load and
reproduce the authors' outputs.
"""

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import LayerNorm2d, calculate_drop_path_rates
from timm.models import register_model
from torch import nn

from ..nn.backbone import Block, HierarchicalBackbone, Stage, building_on
from ..nn.layers import DepthwiseMlp, Downsample
from ..nn.mixers.lka import LKA
from .family import Published, Weights, create, make_cfgs


class VAN(HierarchicalBackbone):
    """(B, in_chans, H, W) -> (B, num_classes); any H and W from 32 up.

    Args:
        dims: Channels of the four stages.
        mlp_ratios: Hidden width of each stage's MLP over its channels.
        kernel_size, dilation: Size and dilation of the large kernel, see `LKA`.
        norm_eps: Epsilon of each stage's final LayerNorm: 1e-6, or 1e-5 in the authors' segmentation backbone.
        in_chans, num_classes, global_pool, drop_rate, output_stride: See `HierarchicalBackbone`.
        drop_path_rate: Stochastic depth at the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        kernel_size: int = 21,
        dilation: int = 3,
        layer_scale: float | None = 1e-2,
        norm_eps: float = 1e-6,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        mixer = partial(LKA, kernel_size=kernel_size, dilation=dilation)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        with building_on(device, dtype):
            stages = []
            for i, (dim, ratio, drops) in enumerate(zip(dims, mlp_ratios, rates, strict=True)):
                mlp = partial(DepthwiseMlp, hidden=int(dim * ratio))
                kernel, stride, before = (7, 4, in_chans) if i == 0 else (3, 2, dims[i - 1])
                downsample = Downsample(before, dim, kernel, stride, bias=True)
                blocks = [Block(dim, mixer, mlp, nn.BatchNorm2d, layer_scale, drop) for drop in drops]  # type: ignore[arg-type,union-attr]
                stages.append(Stage(dim, downsample, blocks, LayerNorm2d(dim, eps=norm_eps)))
            super().__init__(stages, None, in_chans, num_classes, global_pool, drop_rate, output_stride=output_stride)


def _in22k(letter: str, top1: float, top1_384: float) -> tuple[Weights, ...]:
    return (
        Weights("in22k_ft_in1k", top1),
        Weights("in22k_ft_in1k_384", top1_384),
        Weights("in22k", None, (f"van_{letter}_22k.pth",)),
    )


PUBLISHED = {
    "van_b0": Published(4.1, 0.9, (Weights("in1k", 75.4, ("van_tiny_754.pth.tar", "van_b0.pth")),)),
    "van_b1": Published(13.9, 2.5, (Weights("in1k", 81.1, ("van_small_811.pth.tar", "van_b1.pth")),)),
    "van_b2": Published(26.6, 5.0, (Weights("in1k", 82.8, ("van_base_828.pth.tar", "van_b2.pth")),)),
    "van_b3": Published(44.8, 9.0, (Weights("in1k", 83.9, ("van_large_839.pth.tar", "van_b3.pth")),)),
    "van_b4": Published(60.3, 12.2, (Weights("in1k", 84.2, ("van_b4.pth",)), *_in22k("b4", 85.7, 86.6))),
    "van_b5": Published(90.0, 17.2, _in22k("b5", 86.3, 87.0)),
    "van_b6": Published(200.0, 38.4, _in22k("b6", 86.9, 87.8)),
}

default_cfgs = make_cfgs(
    PUBLISHED,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    first_conv="stages.0.downsample.0",
    license="apache-2.0",
    paper_name="Visual Attention Network",
    paper_ids="arXiv:2202.09741",
    origin_url="https://github.com/Visual-Attention-Network/VAN-Classification",
)


@register_model
def van_b0(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B0, 4.1 M parameters, published 75.4 %."""
    return create(VAN, "van_b0", pretrained, dict(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)), kwargs)


@register_model
def van_b1(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B1, 13.9 M parameters, published 81.1 %."""
    return create(VAN, "van_b1", pretrained, dict(dims=(64, 128, 320, 512), depths=(2, 2, 4, 2)), kwargs)


@register_model
def van_b2(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B2, 26.6 M parameters, published 82.8 %."""
    return create(VAN, "van_b2", pretrained, dict(dims=(64, 128, 320, 512), depths=(3, 3, 12, 3)), kwargs)


@register_model
def van_b3(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B3, 44.8 M parameters, published 83.9 %."""
    return create(VAN, "van_b3", pretrained, dict(dims=(64, 128, 320, 512), depths=(3, 5, 27, 3)), kwargs)


@register_model
def van_b4(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B4, 60.3 M parameters, published 84.2 %, 85.7 % after ImageNet-22K."""
    return create(VAN, "van_b4", pretrained, dict(dims=(64, 128, 320, 512), depths=(3, 6, 40, 3)), kwargs)


@register_model
def van_b5(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B5, 90 M parameters, published 86.3 % after ImageNet-22K."""
    return create(VAN, "van_b5", pretrained, dict(dims=(96, 192, 480, 768), depths=(3, 3, 24, 3)), kwargs)


@register_model
def van_b6(pretrained: bool = False, **kwargs) -> VAN:
    """VAN-B6, 200 M parameters, published 86.9 % after ImageNet-22K."""
    return create(VAN, "van_b6", pretrained, dict(dims=(96, 192, 384, 768), depths=(6, 6, 90, 6)), kwargs)
