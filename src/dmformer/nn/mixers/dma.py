"""Dynamic Multi-level Attention, the token mixer of DMFormer (ICASSP 2023, arXiv 2209.07738)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import DepthwiseSum, PixelMean

LEVELS = ((3, 1), (5, 2), (7, 3))
"""(kernel size, dilation) of the paper's three levels: extents 3, 9 and 19 pixels."""


class ChannelGate(nn.Module):
    """Input-adaptive channel weights sigmoid(F2 ReLU(F1 GAP(x))): (B, C, H, W) -> (B, C, 1, 1)."""

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(dim // reduction, 1)
        self.pool = PixelMean()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(self.act(self.fc1(self.pool(x)))))


class DMA(nn.Module):
    """Dynamic Multi-level Attention: (B, C, H, W) -> (B, C, H, W).

        e   = W1 x
        z   = ReLU(BN(DW3(e) + DW5d2(e) + DW7d3(e)))
        x'  = x + W2 z
        out = sigmoid(F2 ReLU(F1 GAP(x))) * (W3 x')

    Args:
        dim: Channels, C.
        levels: (odd kernel size, dilation) of each depth-wise branch.
        dilated: False sets every dilation to 1, the paper's ablation.
        gate: False drops the channel gate, the paper's ablation.
        expand_ratio: N of the 1x1 expansion C -> N * C; None drops the expansion (e = x).
        gate_reduction: Reduction of the gate's hidden width.

    From the paper: the three levels, the expansion, BN, ReLU and the 1x1 reduction, the gate on the module's input.
    Reconstructions: N = 1, fusion by sum, the residual inside the module, reduction 16.
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[tuple[int, int]] = LEVELS,
        dilated: bool = True,
        gate: bool = True,
        expand_ratio: float | None = 1.0,
        gate_reduction: int = 16,
    ) -> None:
        super().__init__()
        if not levels or any(k < 1 or k % 2 == 0 or d < 1 for k, d in levels):
            raise ValueError(f"levels must be (odd kernel size, dilation of 1 or more) pairs, not {levels}")
        width = dim if expand_ratio is None else int(dim * expand_ratio)
        self.expand = nn.Identity() if expand_ratio is None else nn.Conv2d(dim, width, 1)
        self.levels = DepthwiseSum(width, [(k, d if dilated else 1) for k, d in levels])
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.reduce = nn.Conv2d(width, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.gate = ChannelGate(dim, gate_reduction) if gate else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.proj(x + self.reduce(self._mix(self.expand(x))))
        return out if self.gate is None else self.gate(x) * out

    def _mix(self, e: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():
            z = self.levels.norm_relu(e, self.norm)
            if z is not None:
                return z
        return self.act(self.norm(self.levels(e)))
