"""SMT: an evolutionary hybrid network, from Scale-Aware Modulation in early stages to attention in late ones.

"Scale-Aware Modulation Meet Transformer", ICCV 2023, arXiv 2307.08579. Exact: the authors' weights load and reproduce
the authors' outputs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
from timm.layers import LayerNorm2d, calculate_drop_path_rates
from timm.models import register_model
from torch import nn

from ..nn.backbone import Block, HierarchicalBackbone, Stage, building_on
from ..nn.layers import DepthwiseMlp, Downsample, NormStem
from ..nn.mixers.attention import ValueConvAttention
from ..nn.mixers.sam import SAM
from .family import Published, Weights, create, make_cfgs

Strategy = Literal["alternate", "half", "sam", "attention"]


class SMT(HierarchicalBackbone):
    """(B, in_chans, H, W) -> (B, num_classes); any H and W from 32 up.

    Args:
        dims: Channels of the four stages.
        mlp_ratios: Hidden width of each stage's MLP over its channels.
        strategy: How stage 3 changes from SAM to attention (section 3): "alternate" (the paper's choice, even blocks
            SAM), "half" (its second half is attention), "sam" or "attention" throughout. Stages 1 and 2 are SAM, stage
            4 is attention. Reconstruction: for "half" with an odd depth, the smaller half is SAM.
        sam_heads: Heads of SAM, with kernels 3, 5, 7, ...
        heads: Heads of attention in stages 3 and 4.
        in_chans, num_classes, global_pool, drop_rate, output_stride: See `HierarchicalBackbone`.
        drop_path_rate: Stochastic depth at the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[float],
        stem_kernel: int,
        strategy: Strategy = "alternate",
        sam_heads: int = 4,
        expand_ratio: int = 2,
        heads: tuple[int, int] = (8, 16),
        layer_scale: float | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_stride: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sam = partial(SAM, heads=sam_heads, expand_ratio=expand_ratio)
        late: list[Callable[[int], nn.Module]] = [partial(ValueConvAttention, heads=n) for n in heads]
        mixers = [
            [sam] * depths[0],
            [sam] * depths[1],
            [sam if early else late[0] for early in hybrid(depths[2], strategy)],
            [late[1]] * depths[3],
        ]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        norm = partial(LayerNorm2d, eps=1e-6)
        with building_on(device, dtype):
            stages = []
            for i, (dim, ratio) in enumerate(zip(dims, mlp_ratios, strict=True)):
                mlp = partial(DepthwiseMlp, hidden=int(dim * ratio), residual=True)
                if i == 0:
                    downsample = NormStem(in_chans, dim, stem_kernel)
                else:
                    downsample = Downsample(dims[i - 1], dim, bias=True, norm=partial(LayerNorm2d, eps=1e-5))
                blocks = [
                    Block(dim, mixer, mlp, norm, layer_scale, drop)
                    for mixer, drop in zip(mixers[i], rates[i], strict=True)  # type: ignore[arg-type]
                ]
                stages.append(Stage(dim, downsample, blocks, norm(dim)))
            super().__init__(stages, None, in_chans, num_classes, global_pool, drop_rate, output_stride=output_stride)


def hybrid(depth: int, strategy: Strategy) -> list[bool]:
    """For each block of the penultimate stage, whether it is SAM (True) or attention: see `SMT`."""
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {', '.join(get_args(Strategy))}, not {strategy!r}")
    return {
        "alternate": [j % 2 == 0 for j in range(depth)],
        "half": [j < depth // 2 for j in range(depth)],
        "sam": [True] * depth,
        "attention": [False] * depth,
    }[strategy]


PUBLISHED = {
    "smt_t": Published(12.0, 2.4, (Weights("in1k", 82.2, ("smt_tiny.pth",)),)),
    "smt_s": Published(
        21.0,
        4.7,
        (
            Weights(
                "in1k", 83.7, ("smt_small.pth",), "the paper's size is that of depths 3,4,18,1, the code's 3,4,18,2"
            ),
        ),
    ),
    "smt_b": Published(32.0, 7.7, (Weights("in1k", 84.3, ("smt_base.pth",)),)),
    "smt_l": Published(
        81.0,
        17.6,
        (
            Weights("in22k_ft_in1k", 87.1, ("smt_large_22k_224_ft.pth",)),
            Weights("in22k_ft_in1k_384", 88.1, ("smt_large_22k_384_ft.pth",), crop_pct=1.0),
            Weights("in22k", None, ("smt_large_22k.pth",)),
        ),
    ),
}

default_cfgs = make_cfgs(
    PUBLISHED,
    crop_pct=224 / 256,
    first_conv="stages.0.downsample.0",
    license="mit",
    paper_name="Scale-Aware Modulation Meet Transformer",
    paper_ids="arXiv:2307.08579",
    origin_url="https://github.com/AFeng-x/SMT",
)


@register_model
def smt_t(pretrained: bool = False, **kwargs) -> SMT:
    """SMT-T, 11.5 M parameters, published 82.2 %."""
    args = dict(dims=(64, 128, 256, 512), depths=(2, 2, 8, 1), mlp_ratios=(4, 4, 4, 2), stem_kernel=3)
    return create(SMT, "smt_t", pretrained, args, kwargs)


@register_model
def smt_s(pretrained: bool = False, **kwargs) -> SMT:
    """SMT-S, 22.6 M parameters, published 83.7 %; depths=(3, 4, 18, 1) has the size stated in the paper, 20.4 M."""
    args = dict(dims=(64, 128, 256, 512), depths=(3, 4, 18, 2), mlp_ratios=(4, 4, 4, 2), stem_kernel=3)
    return create(SMT, "smt_s", pretrained, args, kwargs)


@register_model
def smt_b(pretrained: bool = False, **kwargs) -> SMT:
    """SMT-B, 32 M parameters, published 84.3 %."""
    args = dict(dims=(64, 128, 256, 512), depths=(4, 6, 28, 2), mlp_ratios=(8, 6, 4, 2), stem_kernel=7)
    return create(SMT, "smt_b", pretrained, args, kwargs)


@register_model
def smt_l(pretrained: bool = False, **kwargs) -> SMT:
    """SMT-L, 80.6 M parameters, published 87.1 % after ImageNet-22K; with layer scale."""
    args = dict(
        dims=(96, 192, 384, 768), depths=(4, 6, 28, 4), mlp_ratios=(8, 6, 4, 2), stem_kernel=7, layer_scale=1e-4
    )
    return create(SMT, "smt_l", pretrained, args, kwargs)
