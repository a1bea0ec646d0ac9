"""Dynamic Multi-level Attention, the token mixer of DMFormer (ICASSP 2023, arXiv 2209.07738)."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..folding import affine, after_norm, fused_branch, gamma_of, is_affine, matrix, pointwise
from ..fused import FusedConv, FusedSum, Residual
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
        levels: (odd kernel size, dilation) of each depth-wise branch.
        dilated: False sets every dilation to 1, the paper's ablation.
        gate: False drops the channel gate, the paper's ablation.
        expand_ratio: N of the 1x1 expansion C -> N * C; None drops the expansion (e = x).

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


class FusedGate(nn.Module):
    """sigmoid(F2 ReLU(F1 GAP(x))) as two products of vectors: (B, C, H, W) -> (B, C, 1, 1).

    Args:
        fc1, fc2: Weight (out, in) and bias (out) of each.
    """

    def __init__(self, fc1: tuple[Tensor, Tensor], fc2: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.weight1, self.bias1 = map(nn.Parameter, fc1)
        self.weight2, self.bias2 = map(nn.Parameter, fc2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x.mean((2, 3)), self.weight1, self.bias1))
        return torch.sigmoid(F.linear(hidden, self.weight2, self.bias2))[:, :, None, None]


class FusedDMA(nn.Module):
    """x + s DMA(norm(x)) for a folded norm a x + b and layer scale s: (B, C, H, W) -> (B, C, H, W).

        z   = ReLU(levels'(W1' x))
        out = x + sigmoid(F2' ReLU(F1' GAP(x))) * (W' x + W'' z)

    with W' = s W3 a and W'' = s W3 W2; constants are folded into the biases.
    """

    def __init__(
        self, expand: FusedConv, levels: FusedSum, direct: FusedConv, reduced: FusedConv, gate: FusedGate | None
    ) -> None:
        super().__init__()
        self.expand = expand
        self.levels = levels
        self.direct = direct
        self.reduced = reduced
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        out = self.reduced(self.levels(self.expand(x)), self.direct(x), inplace=True)
        return x + out if self.gate is None else torch.addcmul(x, self.gate(x), out)


@fused_branch.register
def _(dma: DMA, norm: nn.Module, scale: nn.Module) -> nn.Module:
    if not is_affine(norm):
        return Residual(norm, dma, scale)
    gamma = gamma_of(scale, dma.proj.out_channels)
    a, b = affine(norm, len(gamma))
    expand = after_norm(dma.expand, a, b) if isinstance(dma.expand, nn.Conv2d) else _per_channel(a, b, dma.proj.weight)
    (w2, b2), (w3, b3) = matrix(dma.reduce), matrix(dma.proj)
    w3, b3 = gamma[:, None] * w3, gamma * b3
    direct = pointwise(w3 * a, b3 + w3 @ (b + b2), dma.proj)
    reduced = pointwise(w3 @ w2, None, dma.proj)
    gate = None
    if dma.gate is not None:
        (w1, b1), second = matrix(dma.gate.fc1), matrix(dma.gate.fc2)
        like = dma.gate.fc1.weight
        gate = FusedGate(*[(w.to(like), b.to(like)) for w, b in ((w1 * a, b1 + w1 @ b), second)])
    return FusedDMA(FusedConv(expand), _fused_levels(dma.levels, dma.norm), FusedConv(direct), FusedConv(reduced), gate)


def _fused_levels(levels: DepthwiseSum, norm: nn.BatchNorm2d) -> FusedSum:
    a, b = affine(norm, norm.num_features)
    convs = []
    for i, conv in enumerate(levels.convs):
        conv = copy.deepcopy(conv)
        conv.weight.copy_(conv.weight.double() * a[:, None, None, None])  # type: ignore[union-attr, operator]
        conv.bias = nn.Parameter(b.to(conv.weight)) if i == 0 else None  # type: ignore[arg-type]
        convs.append(conv)
    return FusedSum(convs)


def _per_channel(a: Tensor, b: Tensor, like: Tensor) -> nn.Conv2d:
    """a x + b as a convolution."""
    conv = nn.Conv2d(len(a), len(a), 1, groups=len(a)).to(like)
    conv.weight.copy_(a[:, None, None, None])
    conv.bias.copy_(b)  # type: ignore[union-attr]
    return conv.eval()
