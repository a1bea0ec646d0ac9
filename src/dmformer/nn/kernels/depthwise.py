"""Depth-wise convolutions, and sums of several over one input, by the fastest exact method for device, dtype and shape.

- On a CPU: PyTorch's convolutions, rearranged where they are slow (`cpu`).
- On an NVIDIA GPU with Triton: one pass over the input for the whole sum (`triton_taps`).
- Elsewhere, and in traced and exported graphs: plain convolutions.

The environment variable DMFORMER_KERNELS overrides the choice: "plain" for plain convolutions everywhere, "triton" for
Triton wherever it runs (with TRITON_INTERPRET=1 also on a CPU); "auto" is the default.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import chosen_mode
from .cpu import DepthwiseSum

Way = Literal["plain", "cpu", "triton"]

MODE = chosen_mode()


def way(x: Tensor) -> Way:
    """The method for depth-wise convolutions of `x`; compiled graphs keep plain operators on a CPU."""
    if MODE == "plain" or not isinstance(x, Tensor) or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "plain"  # torch.fx traces with a proxy for x
    if x.device.type == "cuda" or MODE == "triton":
        return "triton" if _has_triton() and _triton().supports(x) else "plain"
    return "cpu" if x.device.type == "cpu" and not torch.compiler.is_compiling() else "plain"


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Use PyTorch's own convolutions inside the context, for comparison; affects the whole process."""
    global MODE
    before, MODE = MODE, "plain"
    try:
        yield
    finally:
        MODE = before


def is_fast_path(x: Tensor) -> bool:
    """Whether `depthwise_sum` computes `x` by a faster method than plain convolutions."""
    return way(x) != "plain"


def depthwise_sum(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Sum over l of depth-wise convolutions of one input, stride 1, "same" padding: (B, C, H, W) -> (B, C, H, W).

    Args:
        x: Images, (B, C, H, W). On a CPU, channels_last is fastest; the result is channels_last.
        weights: One odd kernel (C, 1, k_l, k_l) per level.
        dilations: One distance between taps per level.

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
    if chosen == "triton":
        return _triton().depthwise_taps(x, *_triton().merge_taps(weights, dilations), bias, relu)
    if chosen == "cpu":
        out = DepthwiseSum.apply(x, tuple(dilations), bias, *weights)
    else:
        out = _plain_sum(x, weights, dilations, bias)
    return F.relu(out) if relu else out


def depthwise_sum_norm_relu(
    x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], norm: nn.BatchNorm2d
) -> Tensor | None:
    """ReLU(norm(depthwise_sum(x))) in training, with the norm's statistics computed in the same pass as the sum.

    (B, C, H, W) -> (B, C, H, W). Updates the norm's running statistics. Returns None where this form does not exist:
    without Triton, in evaluation mode, and for norms that are synchronised or have no parameters.
    """
    if way(x) != "triton" or type(norm) is not nn.BatchNorm2d or not norm.training or not norm.affine:
        return None
    _check(x, weights, dilations)
    taps = _triton().merge_taps(weights, dilations)
    out, mean, var = _triton().depthwise_taps_norm_relu(x, *taps, norm.weight, norm.bias, norm.eps)
    if norm.track_running_stats:
        _follow(norm, mean, var, x.numel() // x.shape[1])
    return out


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Update running statistics from a batch's, as BatchNorm does, with the unbiased variance."""
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    factor = 1.0 / norm.num_batches_tracked.float() if norm.momentum is None else norm.momentum  # type: ignore[union-attr]
    for running, batch in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.add_((batch.to(running) - running) * factor)  # type: ignore[union-attr]


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


def _triton() -> Any:
    from . import triton_taps

    return triton_taps


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
