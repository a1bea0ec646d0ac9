"""oneDNN convolutions fused with the sum or product and the activation that follow them.

PyTorch ships these operators for its compiler. Called eagerly, they save a pass over memory for every sum, product and
activation and, given packed weights, the reordering of the weights at every call. They have no gradients.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["none", "relu", "gelu", "silu"]
Combination = Literal["add", "mul"]

WIDEST_PADDING = 4
"""The largest padding to the left and right for which oneDNN's fast depth-wise kernels support dilated convolutions:
4 with AVX2, 6 with AVX-512. Beyond it, convolutions are 3 to 30 times slower (benchmarks/depthwise_cpu.py)."""

_NAMES = {"none": "none", "relu": "relu", "gelu": "gelu", "silu": "swish"}


def serves(dtype: torch.dtype) -> bool:
    """Whether the machine and the PyTorch build support these operators for a dtype."""
    if not (torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


def pack(
    weight: Tensor,
    shape: torch.Size,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution's weight in the fastest memory order for inputs of this shape; only for `convolve`."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(), padding, stride, dilation, groups, list(shape)
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: Activation = "none",
    other: Tensor | None = None,
    combination: Combination = "add",
    inplace: bool = False,
) -> Tensor:
    """act(conv(x) + other), or act(conv(x) * other): (B, C, H, W) -> (B, C', H', W') in channels_last.

    Args:
        x: Input in channels_last; float32, or bfloat16 where `serves` says so.
        weight, bias, stride, padding, dilation, groups: As for `torch.nn.functional.conv2d`; the weight may be packed.
        activation: Applied last. "gelu" is the exact GELU. With `other`, only "none" or "relu".
        other: Second operand, of the result's shape and memory format.
        combination: How to combine the convolution with `other`.
        inplace: Whether to write the result into `other`; only for "add".
    """
    geometry = (padding, stride, dilation, groups)
    name = _NAMES[activation]
    if other is None:
        algorithm = "none" if activation == "gelu" else ""
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, name, [], algorithm)
    after = None if activation == "none" else name
    if combination == "add" and after is not None and not inplace:
        other, inplace = other.clone(), True  # out of place, PyTorch lacks a sum with ReLU in bfloat16
    if inplace:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, weight, bias, *geometry, combination, 1.0, after, [], None
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, other, weight, bias, *geometry, combination, 1.0, after, [], None
    )
