"""Reduction and normal cells of ViTAE and ViTAEv2: attention in parallel with convolutions.

"ViTAE: Vision Transformer Advanced by Exploring Intrinsic Inductive Bias", NeurIPS 2021, arXiv 2106.03348, section 3;
"ViTAEv2", IJCV 2023, arXiv 2202.10108, section 3.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, register_notrace_function, resample_abs_pos_embed
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from .backbone import Stage
from .layers import GELU

Position = Literal["none", "sinusoid", "learned"]


class PCM(nn.Sequential):
    """Parallel Convolution Module: 3x3 convolutions, (B, dims[0], H, W) -> (B, dims[-1], ceil(H/s), ceil(W/s)).

    BatchNorm and SiLU stand between the convolutions.

    Args:
        dims: Channels before, between and after the convolutions.
        strides: One per convolution; their product is s.
        first_norm: False drops the BatchNorm after the first convolution, as in ViTAE's reduction cells.
        last_act: Whether SiLU also follows the last convolution, as in ViTAE.
    """

    def __init__(
        self,
        dims: Sequence[int],
        strides: Sequence[int] = (1, 1, 1),
        groups: int = 1,
        first_norm: bool = True,
        last_act: bool = False,
    ) -> None:
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(dims)):
            layers.append(nn.Conv2d(before, after, 3, stride=strides[i], padding=1, groups=groups))
            if i < len(dims) - 2:
                if i > 0 or first_norm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(nn.SiLU())
        if last_act:
            layers.append(nn.SiLU())
        super().__init__(*layers)


class PRM(nn.Module):
    """Pyramid Reduction Module: (B, C, H, W) -> (B, out_dim, ceil(H/stride), ceil(W/stride)).

    One convolution with GELU per dilation, fused (ViTAE, section 3). Sizes that the stride does not divide, which the
    authors do not allow, are padded with zeros below and to the right.

    Args:
        dim: Channels of each dilation.
        kernel_size, stride, dilations: Of the convolutions; `kernel_size` is odd.
        fuse: "cat" concatenates the dilations (out_dim = dim * len(dilations)), "sum" adds them.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_size: int,
        stride: int,
        dilations: Sequence[int],
        fuse: Literal["cat", "sum"] = "cat",
        shared: bool = False,
    ) -> None:
        super().__init__()
        if fuse not in ("cat", "sum"):
            raise ValueError(f"fuse must be cat or sum, not {fuse!r}")
        self.stride = stride
        self.dilations = list(dilations)
        self.paddings = [math.ceil(((kernel_size - 1) * d + 1 - stride) / 2) for d in dilations]
        self.end = (kernel_size - 1) * dilations[0] - 2 * self.paddings[0]  # brings every H to ceil(H / stride)
        self.concat = fuse == "cat"
        self.out_dim = dim * len(dilations) if fuse == "cat" else dim
        self.convs = nn.ModuleList(
            nn.Conv2d(in_chans, dim, kernel_size, stride, padding, d)
            for d, padding in list(zip(dilations, self.paddings, strict=True))[: 1 if shared else None]
        )
        self.act = GELU()

    def forward(self, x: Tensor) -> Tensor:
        if self.end > 0:
            x = F.pad(x, (0, self.end, 0, self.end))
        if len(self.convs) == len(self.dilations):
            maps = [self.act(conv(x)) for conv in self.convs]
        else:
            maps = []
            for conv in self.convs:  # the only one
                for d, padding in zip(self.dilations, self.paddings):  # noqa: B905 (TorchScript knows no strict)
                    maps.append(self.act(F.conv2d(x, conv.weight, conv.bias, self.stride, padding, d)))  # type: ignore[arg-type]
        if self.concat:
            return torch.cat(maps, 1)
        out = maps[0]
        for branch in maps[1:]:
            out = out + branch
        return out


class ReductionCell(nn.Module):
    """Downsampling by attention and convolutions in parallel: (B, C, H, W) -> (B, dim, ceil(H/s), ceil(W/s)).

        y   = attn(norm1(PRM(x))) + PCM(x)
        out = y + mlp(norm2(y))

    Args:
        prm: The pyramid that reduces and embeds.
        attn: Token mixer from prm.out_dim to dim channels; includes the skip of the values, if there is one.
        pcm: From C to dim channels, with the same stride.
        pool: Pooling before `prm`, for the type "pooling".
        drop: Dropout in the MLP, whose expansion ratio is 1.
    """

    def __init__(
        self, prm: PRM, attn: nn.Module, pcm: nn.Module, dim: int, pool: nn.Module | None = None, drop: float = 0.0
    ) -> None:
        super().__init__()
        self.pool = pool or nn.Identity()
        self.prm = prm
        self.norm1 = nn.LayerNorm(prm.out_dim)
        self.attn = attn
        self.pcm = pcm
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.prm(self.pool(x))
        size = (y.shape[2], y.shape[3])
        y = self.attn(self.norm1(to_tokens(y)), size) + to_tokens(self.pcm(x))
        y = y + self.mlp(self.norm2(y))
        return to_map(y, size)


class NormalCell(nn.Module):
    """Attention and convolutions in parallel, then an MLP, over tokens of a map: (B, P + H * W, C) -> the same.

        y   = x + attn(norm1(x)) + PCM(x)
        out = y + mlp(norm2(y))

    The convolutions see only the map, not the P tokens before it (a class token).

    Args:
        pcm: Keeps the shape of the map.
        mlp_ratio: Hidden width of the MLP over C.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        pcm: nn.Module,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.pcm = pcm
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        prefix = x.shape[1] - size[0] * size[1]
        local = to_tokens(self.pcm(to_map(x[:, prefix:], size)))
        local = F.pad(local, (0, 0, prefix, 0))
        x = x + self.drop_path(self.attn(self.norm1(x), size)) + self.drop_path(local)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CellStage(Stage):
    """A stage of normal cells: (B, C', H', W') -> (B, C, H, W).

    Args:
        class_token: Prepend a learned token to the map's tokens; it takes part in attention and is dropped at the end.
        position: Position encoding: none, sinusoids, or a learned table for `grid`.
        grid: Height and width of the map that the learned positions were made for.
        any_grid: Whether to resize the learned positions for other maps; if not, other maps raise an error.
    """

    def __init__(
        self,
        dim: int,
        downsample: nn.Module,
        cells: Sequence[nn.Module],
        class_token: bool = False,
        position: Position = "none",
        grid: tuple[int, int] = (14, 14),
        any_grid: bool = False,
    ) -> None:
        super().__init__(dim, downsample, [])
        self.blocks = nn.ModuleList(cells)  # TorchScript compiles a Sequential as a call with x alone
        if position not in ("none", "sinusoid", "learned"):
            raise ValueError(f"position must be none, sinusoid or learned, not {position!r}")
        self.num_prefix_tokens = int(class_token)
        self.sinusoid = position == "sinusoid"
        self.grid = grid
        self.any_grid = any_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        tokens = self.num_prefix_tokens + grid[0] * grid[1]
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim)) if position == "learned" else None
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input tokens of the first cell, (B, P + H * W, C), and (H, W)."""
        x = self.downsample(x)
        size = (x.shape[2], x.shape[3])
        x = to_tokens(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        if self.pos_embed is not None:
            x = x + positions(self.pos_embed, size, self.grid, self.num_prefix_tokens, self.any_grid)
        if self.sinusoid:
            x = x + sinusoids(x)
        return x, size

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.embed(x)
        for cell in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():  # noqa: SIM108 (TorchScript)
                x = checkpoint(cell, x, size)
            else:
                x = cell(x, size)
        return self.norm(to_map(x[:, self.num_prefix_tokens :], size))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], size[0], size[1])


@torch.fx.wrap
@register_notrace_function
def positions(table: Tensor, size: tuple[int, int], grid: tuple[int, int], prefix: int, any_grid: bool) -> Tensor:
    """A learned table for `grid`, resized to `size` if allowed: (1, P + h * w, C) -> (1, P + H * W, C)."""
    if any_grid:
        return resample_abs_pos_embed(table, [size[0], size[1]], [grid[0], grid[1]], num_prefix_tokens=prefix)
    torch._assert(
        size[0] == grid[0] and size[1] == grid[1],
        f"learned positions are for a map of {grid[0]} x {grid[1]}, not {size[0]} x {size[1]}: "
        "create the model with this img_size, or with dynamic_img_size=True",
    )
    return table


@torch.fx.wrap
@register_notrace_function
def sinusoids(x: Tensor) -> Tensor:
    """Sinusoid position encoding of the tokens of x, (B, N, C) -> (1, N, C) ("Attention Is All You Need", 3.5)."""
    n, dim = x.shape[1], x.shape[2]
    frequencies = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-math.log(10000.0) / dim))
    angles = torch.arange(n, device=x.device).unsqueeze(1) * frequencies.unsqueeze(0)  # (N, C / 2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim].unsqueeze(0).to(x.dtype)
