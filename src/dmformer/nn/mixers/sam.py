"""Scale-Aware Modulation, the convolutional mixer of SMT ("Scale-Aware Modulation Meet Transformer", ICCV 2023)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..folding import after_norms, fused_branch, scaled
from ..fused import FusedConv
from ..layers import GELU, DepthwiseConv


class MHMC(nn.Module):
    """Multi-Head Mixed Convolution: (B, C, H, W) -> (B, C, H, W) (SMT, section 3).

    The channels are split into contiguous heads, and head n is convolved depth-wise with a (2 n + 3)-kernel,
    n = 0, 1, ...: 3, 5, 7, 9 for four heads.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads = {heads} must divide the {dim} channels")
        self.convs = nn.ModuleList(DepthwiseConv(dim // heads, 3 + 2 * n) for n in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.chunk(len(self.convs), 1)
        return torch.cat([conv(heads[n]) for n, conv in enumerate(self.convs)], 1)


class SAA(nn.Module):
    """Scale-Aware Aggregation: (B, C, H, W) -> (B, C, H, W) (SMT, section 3).

    Channels are regrouped so that each group holds one channel of every head, mixed within the groups with an
    expansion, then across them: out = W1 GELU(BN(W0 shuffle(x))), W0 in C / heads groups.

    Args:
        heads: Heads of the preceding mixed convolution.
        expand_ratio: Ratio of the width between W0 and W1 to C.
    """

    def __init__(self, dim: int, heads: int = 4, expand_ratio: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.proj0 = nn.Conv2d(dim, dim * expand_ratio, 1, groups=dim // heads)
        self.norm = nn.BatchNorm2d(dim * expand_ratio)
        self.act = GELU()
        self.proj1 = nn.Conv2d(dim * expand_ratio, dim, 1)

    def expand(self, x: Tensor) -> Tensor:
        """Shuffle, W0, norm and activation: (B, C, H, W) -> (B, expand_ratio * C, H, W)."""
        B, C, H, W = x.shape
        # Channel head * C/heads + g goes to g * heads + head; on channels_last memory the outer views are free.
        x = x.permute(0, 2, 3, 1).reshape(B, H, W, self.heads, C // self.heads)
        x = x.transpose(3, 4).reshape(B, H, W, C).permute(0, 3, 1, 2)
        return self.act(self.norm(self.proj0(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj1(self.expand(x))


class SAM(nn.Module):
    """Scale-Aware Modulation: (B, C, H, W) -> (B, C, H, W) (SMT, section 3).

        out = proj(SAA(MHMC(s(x))) * v(x))

    Args:
        heads: Heads of the mixed convolution, with kernels 3, 5, 7, ...
    """

    def __init__(self, dim: int, heads: int = 4, expand_ratio: int = 2) -> None:
        super().__init__()
        self.s = nn.Conv2d(dim, dim, 1)
        self.mhmc = MHMC(dim, heads)
        self.saa = SAA(dim, heads, expand_ratio)
        self.v = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.saa(self.mhmc(self.s(x))) * self.v(x))


class FusedSAM(nn.Module):
    """SMT's x + SAM(norm(x)), each convolution fused with what follows it: (B, C, H, W) -> (B, C, H, W).

    Args:
        sam: SAM with its norm folded, a fused projection `saa.proj1` that multiplies, and a fused `proj`.
    """

    def __init__(self, norm: nn.Module, sam: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.sam: Any = sam

    def forward(self, x: Tensor) -> Tensor:
        y, sam = self.norm(x), self.sam
        hidden = sam.saa.expand(sam.mhmc(sam.s(y)))
        return sam.proj(sam.saa.proj1(hidden, sam.v(y)), x)


@fused_branch.register
def _(sam: SAM, norm: nn.Module, scale: nn.Module) -> nn.Module:
    norm, sam.s, sam.v = after_norms(norm, sam.s, sam.v)
    saa = sam.saa
    saa.proj0 = FusedConv(fuse_conv_bn_eval(saa.proj0, saa.norm), "gelu")
    saa.norm = saa.act = nn.Identity()  # type: ignore[assignment]
    saa.proj1 = FusedConv(saa.proj1, combination="mul")
    sam.proj = FusedConv(scaled(sam.proj, scale))
    return FusedSAM(norm, sam)
