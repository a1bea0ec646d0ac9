"""Attention within non-overlapping windows (ViTAEv2, stages 1 and 2)."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from .attention import Attention


class WindowAttention(Attention):
    """`Attention` within each window of a map: (B, N, C) -> (B, N, C'), N = H * W.

    The map is zero-padded to a multiple of the window, half before and half after. The padding takes part in the
    softmax, as in the authors' code. Windows are not shifted and have no position bias (ViTAEv2, section 3).

    Args:
        in_dim, dim, heads, qkv_bias: See `Attention`.
    """

    def __init__(self, in_dim: int, dim: int, heads: int, qkv_bias: bool = True, window: int = 7) -> None:
        super().__init__(in_dim, dim, heads, qkv_bias)
        self.window = window

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`size` is the height and width of the tokens' map."""
        (B, _, C), (H, W), s = x.shape, size, self.window
        rows, columns = (H + s - 1) // s, (W + s - 1) // s
        top, left = (rows * s - H) // 2, (columns * s - W) // 2
        bottom, right = rows * s - H - top, columns * s - W - left
        x = pad_map(x.reshape(B, H, W, C), top, bottom, left, right)
        # (B, rows, s, columns, s, C) -> (B * rows * columns, s * s, C)
        x = x.reshape(B, rows, s, columns, s, C).transpose(2, 3).reshape(B * rows * columns, s * s, C)
        x = self.proj(self.attend(self.qkv(x)))
        C = x.shape[-1]
        x = x.reshape(B, rows, columns, s, s, C).transpose(2, 3).reshape(B, rows * s, columns * s, C)
        return pad_map(x, -top, -bottom, -left, -right).reshape(B, H * W, C)


@torch.fx.wrap
@register_notrace_function
def pad_map(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """(B, H, W, C) -> (B, top + H + bottom, left + W + right, C): pad the map with zeros, or crop its borders.

    Crops by negative padding, because the graph of an exported slice depends on the sizes that it was exported for.
    """
    if torch.jit.is_scripting() or not torch.compiler.is_compiling():
        if top == 0 and bottom == 0 and left == 0 and right == 0:  # saves a copy; a graph must not branch on it
            return x
    return F.pad(x, (0, 0, left, right, top, bottom))
