"""Depth-wise convolutions, and sums of several over one input, in the fastest exact way for device, dtype and shape.

- On a CPU: the framework's convolutions, rearranged where they are slow (`cpu`).
- On an NVIDIA GPU with Triton: one pass over the input for the whole sum (`triton_taps`).
- Elsewhere, in traced and exported graphs, and where DMFORMER_KERNELS=plain asks for it: plain convolutions.
"""

import functools
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import DepthwiseSum

Way = Literal["plain", "cpu", "triton"]

PLAIN = os.environ.get("DMFORMER_KERNELS", "auto") == "plain"
"""True when the environment asks for the framework's own convolutions everywhere (DMFORMER_KERNELS=plain)."""


def way(x: Tensor) -> Way:
    """How depth-wise convolutions of `x` are computed; compiled graphs keep plain operators on a CPU."""
    if PLAIN or not isinstance(x, Tensor) or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "plain"  # x is a proxy where torch.fx traces
    if x.device.type == "cuda":
        return "triton" if _has_triton() else "plain"
    return "cpu" if x.device.type == "cpu" and not torch.compiler.is_compiling() else "plain"


def is_fast_path(x: Tensor) -> bool:
    """Whether `depthwise_sum` computes `x` otherwise than plainly."""
    return way(x) != "plain"


def depthwise_sum(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None = None) -> Tensor:
    """Sum over l of depth-wise convolutions of one input, stride 1, "same" padding: (B, C, H, W) -> (B, C, H, W).

    Args:
        x: Images, (B, C, H, W). On a CPU best in channels_last memory format; so is the result.
        weights: One odd kernel (C, 1, k_l, k_l) a level.
        dilations: One distance between taps a level.
        bias: (C), added once.

    Differentiable once. Equal to the sum of `torch.nn.functional.conv2d` up to rounding.

    Raises:
        ValueError: No level, an even kernel, or weights that do not fit the channels.
    """
    _check(x, weights, dilations)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weights = x.to(dtype), [w.to(dtype) for w in weights]
        bias = None if bias is None else bias.to(dtype)
    chosen = way(x) if x.numel() else "plain"
    if chosen == "cpu":
        return DepthwiseSum.apply(x, tuple(dilations), bias, *weights)
    if chosen == "triton":
        from . import triton_taps

        if triton_taps.supports(x):
            return triton_taps.depthwise_taps(x, *triton_taps.merge_taps(weights, dilations), bias)
    return _plain_sum(x, weights, dilations, bias)


def _plain_sum(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None) -> Tensor:
    out = None
    for weight, d in zip(weights, dilations, strict=True):
        padding = [d * (side // 2) for side in weight.shape[-2:]]
        branch = F.conv2d(x, weight, bias if out is None else None, 1, padding, d, x.shape[1])
        out = branch if out is None else out + branch
    assert out is not None
    return out


def _check(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> None:
    if not weights or len(weights) != len(dilations) or any(d < 1 for d in dilations):
        raise ValueError(f"{len(weights)} kernels need one dilation of 1 or more each, not {list(dilations)}")
    for w in weights:
        if w.dim() != 4 or w.shape[:2] != (x.shape[1], 1) or w.shape[-2] % 2 == 0 or w.shape[-1] % 2 == 0:
            raise ValueError(f"kernels must be ({x.shape[1]}, 1, k, k) with odd k, not {tuple(w.shape)}")


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
