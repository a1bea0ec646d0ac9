"""Attention inside windows that do not overlap (ViTAEv2, stages 1 and 2)."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .attention import Attention


class WindowAttention(Attention):
    """`Attention` inside each window of a map: (B, N, C) -> (B, N, C'), N = H * W.

    The map is padded with zeros to a multiple of the window, half of it before and half after, and the padding takes
    part in the softmax, as in the authors' code; windows are not shifted and have no position bias (ViTAEv2, section
    3).

    Args:
        in_dim, dim, heads, qkv_bias: See `Attention`.
        window: Side of a window.
    """

    def __init__(self, in_dim: int, dim: int, heads: int, qkv_bias: bool = True, window: int = 7) -> None:
        super().__init__(in_dim, dim, heads, qkv_bias)
        self.window = window

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`size` is the height and width of the map that the tokens are of."""
        (B, _, C), (H, W), s = x.shape, size, self.window
        rows, columns = (H + s - 1) // s, (W + s - 1) // s
        top, left = (rows * s - H) // 2, (columns * s - W) // 2
        x = pad_centred(x.reshape(B, H, W, C), rows * s - H, columns * s - W)
        # (B, rows, s, columns, s, C) -> (B * rows * columns, s * s, C)
        x = x.reshape(B, rows, s, columns, s, C).transpose(2, 3).reshape(B * rows * columns, s * s, C)
        x = self.proj(self.attend(self.qkv(x)))
        C = x.shape[-1]
        x = x.reshape(B, rows, columns, s, s, C).transpose(2, 3).reshape(B, rows * s, columns * s, C)
        return x[:, top : top + H, left : left + W].reshape(B, H * W, C)


@torch.fx.wrap
@register_notrace_function
def pad_centred(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, H + height, W + width, C) with zeros around it, the smaller half before."""
    if torch.jit.is_scripting() or not torch.compiler.is_compiling():
        if height == 0 and width == 0:  # saves a copy; a compiled graph must not depend on it
            return x
    top, left = height // 2, width // 2
    return F.pad(x, (0, 0, left, width - left, top, height - top))
