"""Sums of depth-wise convolutions on a CPU, forward and backward, without the framework's slow path.

PyTorch on a CPU runs dilated depth-wise convolutions, and the gradients of all kernels above 3x3, at 1 to 10 GFLOP/s.
Three rearrangements of the same sums avoid that:

- Phases. Dilation d only combines pixels whose coordinates are equal modulo d, so the image splits into d x d
  independent phases that are convolved without dilation, on the fast path, and put back.
- Reach. A tap further from the centre than the image is wide sees only zero padding, so it is dropped.
- Products. The gradient of the taps in one kernel row is read off the diagonals of a matrix product of the output's
  gradient and the shifted input, summed over images and rows: dW[i, j] = sum_u M_i[u, u + j d], where
  M_i[u, v] = sum_{b,y} dY[b, y, u] X[b, y + i d, v]. It does W / k times the work, at the speed of a matrix product.
"""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN = os.environ.get("DMFORMER_KERNELS", "auto") == "plain"
"""True when the environment asks for the framework's own convolutions everywhere (DMFORMER_KERNELS=plain)."""

WIDEST_PRODUCT = 64
"""Images wider than this take the framework's weight gradient, phase by phase: the product wastes W / k of its work."""


def is_fast_path(x: Tensor) -> bool:
    """Whether `depthwise_sum` applies: an eager CPU tensor. Traced, compiled and exported graphs stay plain."""
    return (
        not PLAIN
        and isinstance(x, Tensor)  # false for a torch.fx proxy
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def depthwise_sum(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None = None) -> Tensor:
    """Sum over l of depth-wise convolutions of one input, stride 1, "same" padding: (B, C, H, W) -> (B, C, H, W).

    Args:
        x: Images, (B, C, H, W), best in channels_last memory format; so is the result.
        weights: One odd kernel (C, 1, k_l, k_l) a level.
        dilations: One distance between taps a level.
        bias: (C), added once.

    Differentiable once. Equal to the sum of `torch.nn.functional.conv2d` up to rounding.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weights = x.to(dtype), [w.to(dtype) for w in weights]
        bias = None if bias is None else bias.to(dtype)
    return _DepthwiseSum.apply(x, tuple(dilations), bias, *weights)


class _DepthwiseSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dilations: tuple[int, ...], bias: Tensor | None, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.dilations = dilations
        return _forward(x, weights, dilations, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, *weights = ctx.saved_tensors
        grad_x, grad_w = None, [None] * len(weights)
        if ctx.needs_input_grad[0]:
            # The adjoint of a "same" correlation is the same correlation with its kernel turned by 180 degrees.
            grad_x = _forward(grad, [w.flip(-2, -1) for w in weights], ctx.dilations)
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        if any(ctx.needs_input_grad[3:]):
            grad_w = _weight_gradients(x, grad, weights, ctx.dilations)
        return grad_x, None, grad_bias, *grad_w


def _forward(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None = None) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    biases = [bias, *[None] * (len(weights) - 1)]
    branches = (
        _convolve(x, _crop_to_reach(weight, dilation, x.shape[-2], x.shape[-1]), dilation, bias)
        for weight, dilation, bias in zip(weights, dilations, biases, strict=True)
    )
    out = next(branches).contiguous(memory_format=torch.channels_last)
    for branch in branches:
        out.add_(branch)
    return out


def _crop_to_reach(weight: Tensor, dilation: int, height: int, width: int) -> Tensor:
    """Drop the taps that see only padding: a tap j * dilation >= height rows from the centre is outside the image."""
    ky, kx = weight.shape[-2] // 2, weight.shape[-1] // 2
    ry, rx = min(ky, (height - 1) // dilation), min(kx, (width - 1) // dilation)
    return weight[:, :, ky - ry : ky + ry + 1, kx - rx : kx + rx + 1].contiguous()


def _convolve(x: Tensor, weight: Tensor, d: int, bias: Tensor | None) -> Tensor:
    """One depth-wise convolution of a channels_last input, through the phases if it is dilated."""
    C, padding = x.shape[1], (weight.shape[-2] // 2, weight.shape[-1] // 2)
    if d == 1 or padding == (0, 0):
        return F.conv2d(x, weight, bias, padding=padding, groups=C)
    phases = _to_phases(x, d)
    return _from_phases(F.conv2d(phases, weight, bias, padding=padding, groups=C), d, x.shape)


def _to_phases(x: Tensor, d: int) -> Tensor:
    """(B, C, H, W) -> (d * d * B, C, ceil(H / d), ceil(W / d)), channels_last in and out."""
    B, C, H, W = x.shape
    h, w = -(-H // d), -(-W // d)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, w * d - W, 0, h * d - H))
    # (B, h, d, w, d, C) -> (d, d, B, h, w, C)
    return x.reshape(B, h, d, w, d, C).permute(2, 4, 0, 1, 3, 5).reshape(-1, h, w, C).permute(0, 3, 1, 2)


def _from_phases(x: Tensor, d: int, shape: torch.Size) -> Tensor:
    """The inverse of `_to_phases`, back to `shape`."""
    B, C, H, W = shape
    h, w = x.shape[-2:]
    # (d, d, B, h, w, C) -> (B, h, d, w, d, C)
    x = x.permute(0, 2, 3, 1).reshape(d, d, B, h, w, C).permute(2, 3, 0, 4, 1, 5).reshape(B, h * d, w * d, C)
    return x[:, :H, :W].permute(0, 3, 1, 2)


def _weight_gradients(x: Tensor, grad: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> list[Tensor]:
    """Gradients of all kernels, each (C, 1, k, k), from the input and the output's gradient, both (B, C, H, W)."""
    B, C, H, W = x.shape
    if W > WIDEST_PRODUCT:
        return [_weight_gradient_by_phases(x, grad, w, d) for w, d in zip(weights, dilations, strict=True)]
    # (B, C, H, W) -> (C, H * B, W): a shift by s rows is then a slice by s * B
    x = x.permute(1, 2, 0, 3).reshape(C, H * B, W)
    grad = grad.permute(1, 2, 0, 3).flip(-1).reshape(C, H * B, W)
    reaches = [
        (min(w.shape[-2] // 2, (H - 1) // d), min(w.shape[-1] // 2, (W - 1) // d))
        for w, d in zip(weights, dilations, strict=True)
    ]
    shifts = sorted({i * d for (ry, _), d in zip(reaches, dilations, strict=True) for i in range(-ry, ry + 1)})
    products = x.new_empty(len(shifts), C, W, W)
    for product, s in zip(products, shifts, strict=True):
        n = (H - abs(s)) * B
        torch.bmm(grad[:, max(-s, 0) * B :][:, :n].mT, x[:, max(s, 0) * B :][:, :n], out=product)
    # Row u of a product holds dY's column W - 1 - u. Read with rows longer by W - 1, row u has moved u to the right, so
    # that the diagonals stand in columns: (S, C, W, W) -> (S, C, W, 2 W - 1) -> (S, C, 2 W - 1)
    sheared = F.pad(products, (0, W)).flatten(2)[..., : W * (2 * W - 1)].unflatten(-1, (W, 2 * W - 1))
    diagonals = sheared.sum(-2)
    grads = []
    for weight, d, (ry, rx) in zip(weights, dilations, reaches, strict=True):
        rows = [shifts.index(i * d) for i in range(-ry, ry + 1)]
        taps = diagonals[rows, :, W - 1 - rx * d : W + rx * d : d]  # (2 ry + 1, C, 2 rx + 1)
        margin_y, margin_x = weight.shape[-2] // 2 - ry, weight.shape[-1] // 2 - rx
        grads.append(F.pad(taps.transpose(0, 1)[:, None], (margin_x, margin_x, margin_y, margin_y)))
    return grads


def _weight_gradient_by_phases(x: Tensor, grad: Tensor, weight: Tensor, d: int) -> Tensor:
    x, grad = (_to_phases(t.contiguous(memory_format=torch.channels_last), d) for t in (x, grad))
    padding = [weight.shape[-2] // 2, weight.shape[-1] // 2]
    groups = weight.shape[0]
    mask = [False, True, False]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, mask
    )[1]
