"""Convolutions of oneDNN with what follows them in the same pass: an addition or a product, an activation.

PyTorch ships these operators for its compiler; called eagerly they save a pass over memory for every sum, product and
activation, and, given packed weights, the reordering of the weights at every call. They know no gradients.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["none", "relu", "gelu", "silu"]
Combination = Literal["add", "mul"]

WIDEST_PADDING = 4
"""oneDNN's fast depth-wise kernels take dilated convolutions with this padding to the left and right, or less: 4 with
AVX2, 6 with AVX-512; beyond it they are 3 to 30 times slower (benchmarks/depthwise_cpu.py)."""

_NAMES = {"none": "none", "relu": "relu", "gelu": "gelu", "silu": "swish"}


def serves(dtype: torch.dtype) -> bool:
    """Whether the machine and the build have these operators for a dtype."""
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
    """A convolution's weight in the layout that is fastest for inputs of this shape, for `convolve` alone."""
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
        weight, bias, stride, padding, dilation, groups: As of `torch.nn.functional.conv2d`; the weight may be packed.
        activation: Comes last. "gelu" is the exact one. With `other` it is "none" or "relu".
        other: Of the result's shape and layout.
        combination: What is done with `other`.
        inplace: Whether the result is written into `other`; for "add".
    """
    geometry = (padding, stride, dilation, groups)
    name = _NAMES[activation]
    if other is None:
        algorithm = "none" if activation == "gelu" else ""
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, name, [], algorithm)
    after = None if activation == "none" else name
    if combination == "add" and after is not None and not inplace:
        other, inplace = other.clone(), True  # elsewhere PyTorch lacks a sum with ReLU in bfloat16
    if inplace:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, weight, bias, *geometry, combination, 1.0, after, [], None
        )
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, other, weight, bias, *geometry, combination, 1.0, after, [], None
    )
