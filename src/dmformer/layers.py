"""Layers that timm.layers lacks: the convolution stem, the downsampling between stages, a sum of depth-wise levels."""

from collections.abc import Sequence

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from .kernels.depthwise import depthwise_sum, is_fast_path


class ConvStem(nn.Sequential):
    """Convolution stem of total stride 4: (B, 3, H, W) -> (B, dim, ~H/4, ~W/4).

    A 7x7 convolution of stride 2, a 3x3 of stride 1 and a non-overlapping 2x2 of stride 2 (DMFormer, architecture).
    Reconstruction: `width` channels inside, BatchNorm after each convolution, ReLU after the first two.
    """

    def __init__(self, in_chans: int, dim: int, width: int = 32) -> None:
        super().__init__(
            nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, dim, 2, stride=2, bias=False),
            nn.BatchNorm2d(dim),
        )


class Downsample(nn.Sequential):
    """3x3 convolution of stride 2 with BatchNorm, between stages: (B, C, H, W) -> (B, dim, ceil(H/2), ceil(W/2))."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(nn.Conv2d(in_chans, dim, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(dim))


@register_notrace_module
class DepthwiseSum(nn.Module):
    """Sum of parallel depth-wise convolutions of one input: (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: Channels, C.
        levels: One (odd kernel size, dilation) a branch.

    On a CPU the sum runs through `kernels.depthwise`; elsewhere, and in traced, compiled or exported graphs, it is
    made of plain convolutions. State dicts hold plain convolutions always.
    """

    def __init__(self, dim: int, levels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.dilations = [d for _, d in levels]
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, k, padding=d * (k // 2), dilation=d, groups=dim, bias=False) for k, d in levels
        )

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if is_fast_path(x):
                return depthwise_sum(x, [conv.weight for conv in self.convs], self.dilations)  # type: ignore[misc]
        branches = [conv(x) for conv in self.convs]
        out = branches[0]
        for branch in branches[1:]:
            out = out + branch
        return out
