"""Sums of depth-wise convolutions on a CPU, forward and backward, without PyTorch's slow paths.

PyTorch on a CPU runs widely dilated depth-wise convolutions, and the gradients of kernels above 3x3, at 1 to 15
GFLOP/s. Four rearrangements of the same sums avoid that:

- Padding. oneDNN's fast kernels reject a dilated convolution only for its padding to the left and right, so those
  zeros are written into the image.
- Reach. A tap further from the centre than the image is wide sees only zero padding, so it is dropped.
- Strips. oneDNN is fast at the gradients of undilated kernels up to 3 wide, so wider ones are built from strips of 3
  columns. With enough zeros at the end of each row, the input of a strip is the same memory at another offset. A
  dilated kernel is an undilated one on each of the d x d phases of pixels whose coordinates are equal modulo d.
- Products. On small images, where those zeros cost too much, the gradient of the taps in one kernel row is read off the
  diagonals of a matrix product of the output's gradient and the shifted input, summed over images and rows:
  dW[i, j] = sum_u M_i[u, u + j d], where M_i[u, v] = sum_{b,y} dY[b, y, u] X[b, y + i d, v].
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import onednn

WIDEST_BFLOAT16 = 13
"""oneDNN 3.13 hangs on a depth-wise convolution in bfloat16 with a wider kernel, on images of more than 32 columns;
those are computed in float32."""


WIDEST_PRODUCT = 64
"""Maximum image width for the products, which do W / k times the work."""


class DepthwiseSum(torch.autograd.Function):
    """See `depthwise.depthwise_sum`."""

    @staticmethod
    def forward(ctx, x: Tensor, dilations: tuple[int, ...], bias: Tensor | None, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.dilations = dilations
        return forward(x, weights, dilations, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        x, *weights = ctx.saved_tensors
        grad_x, grad_w = None, [None] * len(weights)
        if ctx.needs_input_grad[0]:
            # The adjoint of a "same" correlation is the same correlation with its kernel rotated by 180 degrees.
            grad_x = forward(grad, [w.contiguous().flip(-2, -1) for w in weights], ctx.dilations)
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        if any(ctx.needs_input_grad[3:]):
            grad_w = weight_gradients(x, grad, weights, ctx.dilations)
        return grad_x, None, grad_bias, *grad_w


def forward(x: Tensor, weights: Sequence[Tensor], dilations: Sequence[int], bias: Tensor | None = None) -> Tensor:
    """Sum over l of depth-wise convolutions, (B, C, H, W) -> (B, C, H, W), without gradients."""
    if x.dtype == torch.bfloat16 and max(w.shape[-1] for w in weights) > WIDEST_BFLOAT16:
        wide = [None if t is None else t.float() for t in (bias, *weights)]
        return forward(x.float(), wide[1:], dilations, wide[0]).bfloat16()  # type: ignore[arg-type]
    x = x.contiguous(memory_format=torch.channels_last)
    H, W = x.shape[-2:]
    accumulates = onednn.serves(x.dtype)
    out = None
    for weight, d in zip(weights, dilations, strict=True):
        weight, padding, margin = fit(weight, d, H, W)
        image = pad_width(x, margin) if margin else x
        if out is None:
            out = F.conv2d(image, weight, bias, 1, padding, d, x.shape[1])
            out = out.contiguous(memory_format=torch.channels_last)
        elif accumulates:
            onednn.convolve(image, weight, None, (1, 1), padding, (d, d), x.shape[1], other=out, inplace=True)
        else:
            out.add_(F.conv2d(image, weight, None, 1, padding, d, x.shape[1]))
    assert out is not None
    return out


def fit(weight: Tensor, dilation: int, height: int, width: int) -> tuple[Tensor, list[int], int]:
    """Arguments for a "same" oneDNN convolution with an odd kernel (C, 1, ky, kx) on images of this size.

    Returns:
        The kernel without taps out of reach, the convolution's padding in height and width, and the number of zeros
        to write to the left and right of the image beforehand, with `pad_width`.
    """
    weight = crop_to_reach(weight, dilation, height, width)
    down, across = (dilation * (side // 2) for side in weight.shape[-2:])
    return (weight, [down, 0], across) if is_refused(dilation, across) else (weight, [down, across], 0)


def is_refused(dilation: int, padding: int) -> bool:
    """Whether oneDNN's fast depth-wise kernels reject a convolution for its dilation and its padding in width."""
    return dilation > 1 and padding > onednn.WIDEST_PADDING


def pad_width(x: Tensor, pixels: int) -> Tensor:
    """Zeros to the left and right of a channels_last image: (B, C, H, W) -> (B, C, H, W + 2 * pixels)."""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, pixels, pixels)).permute(0, 3, 1, 2)


def crop_to_reach(weight: Tensor, dilation: int, height: int, width: int) -> Tensor:
    """Drop the taps that see only padding: a tap j * dilation >= height rows from the centre is outside the image."""
    ky, kx = weight.shape[-2] // 2, weight.shape[-1] // 2
    ry, rx = min(ky, (height - 1) // dilation), min(kx, (width - 1) // dilation)
    return weight[:, :, ky - ry : ky + ry + 1, kx - rx : kx + rx + 1].contiguous()


def weight_gradients(x: Tensor, grad: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> list[Tensor]:
    """Gradients of all kernels, each (C, 1, k, k), from the input and the output's gradient, both (B, C, H, W)."""
    H, W = x.shape[-2:]
    reaches = [
        (min(w.shape[-2] // 2, (H - 1) // d), min(w.shape[-1] // 2, (W - 1) // d))
        for w, d in zip(weights, dilations, strict=True)
    ]
    levels = list(zip(reaches, dilations, strict=True))
    small = [level for level in levels if not is_made_of_strips(H, W, *level)]
    products = iter(gradients_by_products(x, grad, small) if small else [])
    grads = []
    for weight, level in zip(weights, levels, strict=True):
        (ry, rx), _ = level
        taps = next(products) if level in small else gradient_by_strips(x, grad, *level)
        margin_y, margin_x = weight.shape[-2] // 2 - ry, weight.shape[-1] // 2 - rx
        padded = F.pad(taps[:, None], (margin_x, margin_x, margin_y, margin_y))
        grads.append(torch.empty_like(weight).copy_(padded))  # with the weight's strides, as in DDP's buckets
    return grads


def is_made_of_strips(height: int, width: int, reach: tuple[int, int], dilation: int) -> bool:
    """Whether strips are faster than products for a gradient (benchmarks/depthwise_cpu.py): by 2 to 5 times where the
    kernel is not higher than the image or phase (oneDNN is slow beyond that), and on wide images, where products waste
    work."""
    return 2 * reach[0] + 1 <= -(-height // dilation) or width > WIDEST_PRODUCT


def gradient_by_strips(x: Tensor, grad: Tensor, reach: tuple[int, int], d: int) -> Tensor:
    """Gradient of the taps within reach of one kernel, (C, 2 ry + 1, 2 rx + 1)."""
    B, C, H, W = x.shape
    if reach == (0, 0):  # the tap at the centre alone
        return (x.float() * grad).sum((0, 2, 3)).to(x.dtype)[:, None, None]
    if reach == (1, 1) and d == 1:
        return _gradient_of_strip(x, grad, 1, 1)
    ry, rx = (max(r, 1) for r in reach)
    n, h, w = d * d * B, -(-H // d), -(-W // d)
    # Rows of `pitch` pixels for the input, 2 less for the gradient. The zeros at the end of a row pad that row on the
    # right and the next row on the left; those before the first row pad it on the left.
    pitch = w + max(rx, 2)
    image, strip = _phases(x, d, h, pitch, rx), _phases(grad, d, h, pitch - 2, 0)
    strip = strip.view(n, h, pitch - 2, C).permute(0, 3, 1, 2)
    out = x.new_empty(C, 2 * ry + 1, 2 * rx + 1)
    for j in sorted({*range(0, 2 * rx - 2, 3), 2 * rx - 2}):
        view = image[j * C :][: n * h * pitch * C].view(n, h, pitch, C).permute(0, 3, 1, 2)
        out[:, :, j : j + 3] = _gradient_of_strip(view, strip, ry, 0)
    return out[:, ry - reach[0] : ry + reach[0] + 1, rx - reach[1] : rx + reach[1] + 1]


def _gradient_of_strip(x: Tensor, grad: Tensor, reach: int, padding: int) -> Tensor:
    """Gradient of a kernel 3 wide, (C, 2 * reach + 1, 3), for an input with `padding` zeros to the left and right."""
    C = x.shape[1]
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    geometry = (None, [1, 1], [reach, padding], [1, 1], False, [0, 0], C, [False, True, False])
    return torch.ops.aten.convolution_backward(grad, x, x.new_empty(C, 1, 2 * reach + 1, 3), *geometry)[1][:, 0]


def _phases(x: Tensor, d: int, height: int, width: int, margin: int) -> Tensor:
    """Pixels of equal coordinates modulo d as images with wider rows, with `margin` zero pixels before and after all:
    (B, C, H, W) -> ((d * d * B * height * width + 2 * margin) * C), flat."""
    B, C = x.shape[:2]
    pixels = d * d * B * height * width
    flat = x.new_zeros((pixels + 2 * margin) * C)
    images = flat[margin * C :][: pixels * C].view(d, d, B, height, width, C)
    for i in range(d):
        for j in range(d):
            phase = x[:, :, i::d, j::d].permute(0, 2, 3, 1)
            images[i, j, :, : phase.shape[1], : phase.shape[2]] = phase
    return flat


def gradients_by_products(x: Tensor, grad: Tensor, levels: Sequence[tuple[tuple[int, int], int]]) -> list[Tensor]:
    """Gradients of the taps within reach of several kernels, each (C, 2 ry + 1, 2 rx + 1), for (reach, dilation)s."""
    B, C, H, W = x.shape
    # (B, C, H, W) -> (C, H * B, W): a shift by s rows is then a slice by s * B
    x = x.permute(1, 2, 0, 3).reshape(C, H * B, W)
    grad = grad.permute(1, 2, 0, 3).flip(-1).reshape(C, H * B, W)
    shifts = sorted({i * d for (ry, _), d in levels for i in range(-ry, ry + 1)})
    products = x.new_empty(len(shifts), C, W, W)
    for product, s in zip(products, shifts, strict=True):
        n = (H - abs(s)) * B
        torch.bmm(grad[:, max(-s, 0) * B :][:, :n].mT, x[:, max(s, 0) * B :][:, :n], out=product)
    # Row u of a product holds dY's column W - 1 - u. Read with rows longer by W - 1, row u shifts right by u, so
    # that the diagonals become columns: (S, C, W, W) -> (S, C, W, 2 W - 1) -> (S, C, 2 W - 1)
    sheared = F.pad(products, (0, W)).flatten(2)[..., : W * (2 * W - 1)].unflatten(-1, (W, 2 * W - 1))
    diagonals = sheared.sum(-2)
    return [
        diagonals[[shifts.index(i * d) for i in range(-ry, ry + 1)], :, W - 1 - rx * d : W + rx * d : d].transpose(0, 1)
        for (ry, rx), d in levels
    ]
