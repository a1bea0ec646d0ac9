"""Layers missing from timm.layers: stems, downsampling, depth-wise convolutions and an MLP with one."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, register_notrace_module
from torch import Tensor, nn

from .folding import fused_branch, fused_mlp
from .kernels.depthwise import depthwise_sum, depthwise_sum_norm_relu, is_fast_path, way


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


class NormStem(nn.Sequential):
    """Stem of SMT, of total stride 4: (B, 3, H, W) -> (B, dim, ~H/4, ~W/4).

    A convolution of stride 2, BatchNorm, ReLU, a non-overlapping 2x2 of stride 2, LayerNorm (SMT, section 3).
    """

    def __init__(self, in_chans: int, dim: int, kernel_size: int = 3) -> None:
        super().__init__(
            nn.Conv2d(in_chans, dim, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 2, stride=2),
            LayerNorm2d(dim, eps=1e-5),
        )


class Downsample(nn.Sequential):
    """Overlapping patch embedding: (B, C, H, W) -> (B, dim, ceil(H/stride), ceil(W/stride)).

    Args:
        kernel_size: Odd; 3 between stages.
        stride: 2 between stages.
        norm: Makes the norm from the number of channels.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_size: int = 3,
        stride: int = 2,
        bias: bool = False,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        conv = nn.Conv2d(in_chans, dim, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
        super().__init__(conv, norm(dim))


class StridedConv2d(nn.Conv2d):
    """nn.Conv2d that also trains under autocast on a CPU where the map is narrower than the stride.

    There, the gradient of the weights in bfloat16 reads memory that nobody wrote (PyTorch 2.15 with oneDNN): float32 is
    used instead.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") and input.is_cpu and input.shape[-1] < self.stride[-1]:
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class DepthwiseConv(nn.Conv2d):
    """Depth-wise convolution of stride 1 that keeps the size: (B, C, H, W) -> (B, C, H, W).

    It uses `nn.kernels.depthwise` where PyTorch is slow. Elsewhere, in traced or exported graphs, and in state dicts it
    is a plain convolution.
    """

    def __init__(self, dim: int, kernel_size: int, dilation: int = 1) -> None:
        reach = dilation * (kernel_size - 1)  # total padding in pixels; odd only for an even kernel
        super().__init__(dim, dim, kernel_size, padding=reach // 2, dilation=dilation, groups=dim)
        self.uneven = reach % 2  # more rows below and columns to the right; padding="same" would do so with a warning

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            side, d = self.kernel_size[0], self.dilation[0]
            # PyTorch's 3x3 is fast forward and backward; our kernels support odd sizes only.
            if side % 2 == 1 and (side > 3 or d > 1) and is_fast_path(x):
                return depthwise_sum(x, [self.weight], [d], self.bias)
        if self.uneven > 0:
            x = F.pad(x, (0, self.uneven, 0, self.uneven))
        return self._conv_forward(x, self.weight, self.bias)


class GELU(nn.GELU):
    """The exact GELU, of any shape.

    On a CPU, a channels_last image is viewed as (B, H, W, C), its order in memory: PyTorch passes only contiguous
    tensors to oneDNN, which takes half to two thirds of the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if is_fast_path(x) and x.device.type == "cpu" and is_channels_last(x):
                return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.gelu(x)


class PixelMean(nn.Module):
    """Mean over all pixels: (B, C, H, W) -> (B, C, 1, 1).

    In training on a CPU, a channels_last image is averaged as (B, H, W, C), so that its gradient has that order too.
    The gradient of `x.mean((2, 3))` is in NCHW order; the preceding BatchNorm, which receives the sum of it and of
    channels_last gradients, then takes ten times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if is_fast_path(x) and x.requires_grad and is_channels_last(x):
                return x.permute(0, 2, 3, 1).mean((1, 2))[:, :, None, None]
        return x.mean((2, 3), keepdim=True)


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is an image in channels_last memory format and not also contiguous."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class DepthwiseMlp(nn.Module):
    """MLP with a depth-wise 3x3 convolution on its hidden channels: (B, C, H, W) -> (B, C, H, W).

        h   = fc1(x)
        out = fc2(GELU(DW3(h)))         or, with `residual`, fc2(GELU(h + DW3(h)))

    The first is VAN's (section 3), the second SMT's.
    """

    def __init__(self, dim: int, hidden: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.conv = DepthwiseConv(hidden, 3)
        self.act = GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        y = self.conv(h)
        if self.residual:
            y = y + h
        return self.fc2(self.act(y))


@fused_branch.register
def _(mlp: DepthwiseMlp, norm: nn.Module, scale: nn.Module) -> nn.Module:
    if mlp.residual:
        centre = mlp.conv.kernel_size[0] // 2
        mlp.conv.weight[:, :, centre, centre] += 1
        mlp.residual = False
    return fused_mlp(mlp, mlp.conv, norm, scale)


class DepthwiseSum(nn.Module):
    """Sum of parallel depth-wise convolutions of one input: (B, C, H, W) -> (B, C, H, W).

    Args:
        levels: One (odd kernel size, dilation) per branch.
        bias: Whether to add a bias, held by the first convolution.

    The sum uses `nn.kernels.depthwise` where that is fast. Elsewhere, and in traced or exported graphs, it uses plain
    convolutions. State dicts always hold plain convolutions.
    """

    def __init__(self, dim: int, levels: Sequence[tuple[int, int]], bias: bool = False) -> None:
        super().__init__()
        self.dilations = [d for _, d in levels]
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, k, padding=d * (k // 2), dilation=d, groups=dim, bias=bias and i == 0)
            for i, (k, d) in enumerate(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if is_fast_path(x):
                weights: list[Tensor] = [conv.weight for conv in self.convs]  # type: ignore[misc]
                return depthwise_sum(x, weights, self.dilations, self.convs[0].bias)  # type: ignore[arg-type]
        branches = [conv(x) for conv in self.convs]
        out = branches[0]
        for branch in branches[1:]:
            out = out + branch
        return out

    def norm_relu(self, x: Tensor, norm: nn.BatchNorm2d) -> Tensor | None:
        """ReLU(norm(self(x))) in training on a GPU, in two passes over the tensor; None elsewhere."""
        if way(x) != "triton" or self.convs[0].bias is not None:
            return None
        weights = [conv.weight for conv in self.convs]
        return depthwise_sum_norm_relu(x, weights, self.dilations, norm)  # type: ignore[arg-type]


def dilate(module: nn.Module, factor: int) -> None:
    """Multiply the dilations and paddings of a module's convolutions, in place; 1x1 convolutions stay as they are."""
    for m in module.modules():
        if isinstance(m, DepthwiseSum):
            m.dilations = [factor * d for d in m.dilations]
        elif isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1):
            m.dilation = (factor * m.dilation[0], factor * m.dilation[1])
            m.padding = (factor * int(m.padding[0]), factor * int(m.padding[1]))
            if isinstance(m, DepthwiseConv):
                m.uneven *= factor


for _module in (DepthwiseConv, DepthwiseSum, GELU, PixelMean):  # a decorator would hide their types
    register_notrace_module(_module)
