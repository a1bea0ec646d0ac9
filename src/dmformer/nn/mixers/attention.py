"""Softmax attention: over maps with a depth-wise value path (SMT), over tokens (ViTAE, ViTAEv2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..folding import fused_branch, scaled
from ..fused import Residual
from ..layers import DepthwiseConv


class ValueConvAttention(nn.Module):
    """Multi-head self-attention with a depth-wise path for the values: (B, C, H, W) -> (B, C, H, W).

        out = proj(softmax(q k^T / sqrt(d)) v + DW3(v))

    Used in SMT's later stages (the authors' code); the depth-wise path encodes the position.

    Args:
        heads: Heads, each of d = C / heads channels.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads = {heads} must divide the {dim} channels")
        self.heads = heads
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.value_conv = DepthwiseConv(dim, 3)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        q = self.q(x)
        k, v = self.kv(x).chunk(2, 1)
        # (B, C, H, W) -> (B, heads, N, d)
        heads = [t.reshape(B, self.heads, C // self.heads, H * W).transpose(2, 3) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        y = y.transpose(2, 3).reshape(B, C, H, W)
        return self.proj(y + self.value_conv(v))


@fused_branch.register
def _(attention: ValueConvAttention, norm: nn.Module, scale: nn.Module) -> nn.Module:
    attention.proj = scaled(attention.proj, scale)
    return Residual(norm, attention, nn.Identity())


class Attention(nn.Module):
    """Multi-head self-attention over tokens: (B, N, C) -> (B, N, C').

        out = proj(softmax(q k^T / sqrt(d)) v)          with `value_skip`: + v

    Args:
        in_dim: Channels in, C.
        dim: Channels of queries, keys, values and out, C'.
        heads: Heads, each of d = C' / heads channels.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        value_skip: Whether to add the values to the result; replaces the residual where C' is not C.
    """

    def __init__(self, in_dim: int, dim: int, heads: int, qkv_bias: bool = True, value_skip: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads = {heads} must divide the {dim} channels")
        self.heads = heads
        self.value_skip = value_skip
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`size`, the height and width of the tokens' map, is not used here."""
        qkv = self.qkv(x)
        y = self.proj(self.attend(qkv))
        return y + qkv.chunk(3, -1)[2] if self.value_skip else y

    def attend(self, qkv: Tensor) -> Tensor:
        """(B, N, 3 C') -> (B, N, C')."""
        B, N, width = qkv.shape
        # (B, N, 3, heads, d) -> (3, B, heads, N, d)
        q, k, v = qkv.reshape(B, N, 3, self.heads, width // (3 * self.heads)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, width // 3)
