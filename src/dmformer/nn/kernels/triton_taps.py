"""Triton kernels for depth-wise convolution over a list of taps on a GPU, with an epilogue or BatchNorm's statistics.

    out[b, c, y, x] = sum_t w[c, t] X[b, c, y + dy_t, x + dx_t],    zero outside the image

Eager PyTorch runs DMA's three branches, their sum, BatchNorm and ReLU in about 16 passes over the tensor. Here the
branches are merged into one list of 81 taps (`merge_taps`); inference takes one pass, the forward pass of training two.
A program holds some output rows in registers and slides over the input rows. It loads each input row once per column of
taps, for all outputs that the row reaches: 2.2 times fewer loads than one per tap. Sums are float32, or float64 for
float64. All reductions have a fixed order, without atomics, so that results are reproducible.

Importing this module requires Triton. If TRITON_INTERPRET=1 is set before the import, it runs on CPU tensors.
"""

# Triton kernels are not quite Python: tuples are concatenated, not unpacked, and static_range is not an iterator.
# ruff: noqa: RUF005
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

import functools
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = triton.knobs.runtime.interpret
"""True if Triton's interpreter runs the kernels, on CPU tensors."""

MAX_ROWS, MAX_COLUMNS, BLOCK, PROGRAMS = (2, 8, 64, 6) if INTERPRETED else (8, 64, 2048, 2048)
"""Largest tile, elements of an elementwise tile, and programs per reduction; small values make tests cover borders."""


def supports(x: Tensor) -> bool:
    """Whether the kernels support x: on a GPU (or interpreted), 4-D, of a floating dtype, not empty, and `fits`."""
    return (
        x.device.type == ("cpu" if INTERPRETED else "cuda")
        and x.ndim == 4
        and x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and x.numel() > 0
        and fits(x)
    )


def fits(x: Tensor) -> bool:
    """Whether the offsets within an image, including its halo, and the number of pixels fit into 31 bits."""
    return x.ndim == 4 and 2 * x.shape[1:].numel() < 2**31 and x.shape[0] * x.shape[2:].numel() < 2**31


# ---- taps


@functools.cache
def _merge(sizes: tuple[int, ...], dilations: tuple[int, ...]) -> tuple:
    """Offsets of the merged taps, and the runs (start places, length) of branch taps to add up to their weights.

    A place numbers the branches' taps column by column. Columns of taps with the same dy are adjacent, so that the
    kernels can loop over them.
    """
    places: dict[tuple[int, int], list[int]] = {}
    grids = [
        (d * (j - k // 2), d * (i - k // 2))
        for k, d in zip(sizes, dilations, strict=True)
        for i in range(k)
        for j in range(k)
    ]
    for place, offset in enumerate(grids):
        places.setdefault(offset, []).append(place)
    columns: dict[int, list[int]] = {}
    for dy, dx in sorted(places):
        columns.setdefault(dx, []).append(dy)
    order = sorted(places, key=lambda tap: (columns[tap[1]], tap[1], len(places[tap]), places[tap]))
    runs: list[list[list[int]]] = []
    for offset in order:
        if runs and [p + 1 for p in runs[-1][-1]] == places[offset]:
            runs[-1].append(places[offset])
        else:
            runs.append([places[offset]])
    return tuple(order), tuple((tuple(run[0]), len(run)) for run in runs)


@torch.compiler.assume_constant_result
def _constant_merge(sizes: tuple[int, ...], dilations: tuple[int, ...]) -> tuple:
    """`_merge`, hidden from torch.compile, which would trace into its cache and warn."""
    return _merge(sizes, dilations)


def merge_taps(weights: Sequence[Tensor], dilations: Sequence[int]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Merge depth-wise convolutions whose outputs are added into one list of taps.

    Args:
        weights: One odd square kernel (C, 1, k, k) per branch.
        dilations: One distance between taps per branch.

    Returns:
        Weights (C, T), differentiable, and their T distinct offsets (dy, dx). Coinciding taps are added. Kernels of a
        lower dtype are added in float32 and the result stays float32, because the lower dtype cannot hold the sum.
    """
    if not weights or len(weights) != len(dilations) or any(d < 1 for d in dilations):
        raise ValueError(f"each of {len(weights)} kernels needs a dilation of 1 or more, not {list(dilations)}")
    C = weights[0].shape[0]
    for w in weights:
        if w.ndim != 4 or w.shape[:2] != (C, 1) or w.shape[2] != w.shape[3] or w.shape[2] % 2 == 0:
            raise ValueError(f"a kernel must be ({C}, 1, k, k) with k odd, not {tuple(w.shape)}")
    offsets, runs = _constant_merge(tuple(w.shape[-1] for w in weights), tuple(dilations))
    # (C, 1, ky, kx) -> (kx * ky, C), the order that the kernels read
    taps = torch.cat([w.permute(3, 2, 1, 0).flatten(0, 2) for w in weights])
    if taps.dtype in (torch.float16, torch.bfloat16):
        taps = taps.float()
    merged = []
    for places, length in runs:
        part = taps[places[0] : places[0] + length]
        for place in places[1:]:
            part = part + taps[place : place + length]
        merged.append(part)
    return torch.cat(merged).t(), offsets


class _Plan(str):
    """The order in which a tile visits the taps. A string, which Triton's caches use as a key, plus the parsed form.

    parts: One (dx of each column, [(first tap, step to the next column's)], [(input row, tap or -1 for each of the
    output's rows)]) for each set of columns with the same dy.
    """

    parts: list
    columns: int


@functools.cache
def _make_plan(offsets: tuple[int, ...], H: int, W: int, rows: int) -> _Plan:
    # Taps further than the image is wide see only padding. If one tile spans the image, so do rows outside it.
    height = H if rows >= H else 0
    columns: dict[int, list[tuple[int, int]]] = {}
    for t, (dy, dx) in enumerate(zip(offsets[::2], offsets[1::2], strict=True)):
        if abs(dy) < H and abs(dx) < W:
            columns.setdefault(dx, []).append((dy, t))
    parts: list[tuple] = []
    dys, steps, last = [], None, []
    for dx, column in columns.items():
        ts = [t for _, t in column]
        if (
            parts
            and [dy for dy, _ in column] == dys
            and steps in (None, [b - a for a, b in zip(last, ts, strict=True)])
        ):
            steps = [b - a for a, b in zip(last, ts, strict=True)]
            dxs, taps, inputs = parts.pop()
            parts.append(([*dxs, dx], [(t, step) for (t, _), step in zip(taps, steps, strict=True)], inputs))
        else:
            dys, steps = [dy for dy, _ in column], None
            reached = sorted({dy + r for dy in dys for r in range(rows)})
            inputs = [(s, [dys.index(s - r) if s - r in dys else -1 for r in range(rows)]) for s in reached]
            parts.append(([dx], [(t, 0) for t in ts], [i for i in inputs if not height or 0 <= i[0] < H]))
        last = ts
    plan = _Plan(f"{rows} {height} {parts}")
    plan.parts, plan.columns = parts, len(columns)
    return plan


@triton.constexpr_function
def _at(plan, *path):
    item = plan.parts
    for i in path:
        item = item[i]
    return item


@triton.constexpr_function
def _size(plan, *path):
    return len(_at(plan, *path))


# ---- kernels. C is the channels, H and W the image; a tile is ROWS rows of (COLUMNS pixels, CHANNELS channels).


def _tuned(kernel):
    """The kernel with its block size autotuned once per shape and dtype: 2, 4 or 8 elements per thread."""
    if INTERPRETED:
        return kernel
    sizes = {256: 4, 512: 8, 1024: 8, 2048: 8}
    configs = [triton.Config({"TILE": tile}, num_warps=warps, num_stages=1) for tile, warps in sizes.items()]
    configs[2].maxnreg = 128  # so that two programs fit into a multiprocessor

    def prune(configs, arguments, **more):
        # A contiguous image is read one element per thread at a time: above 2 elements, addresses spill the registers.
        last = {**arguments, **more}["CHANNELS_LAST"]
        return [c for c in configs if (c.kwargs["TILE"] >= 512 if last else c.kwargs["TILE"] <= 512)]

    key = ["C", "H", "W", "PLAN", "CHANNELS_LAST"]
    return triton.autotune(configs, key, prune_configs_by={"early_config_prune": prune}, cache_results=True)(kernel)


@triton.jit
def _locate(tile, H, W, C, tiles_y, tiles_x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """First row and column of a tile, and the offset of its image; only the offset can exceed 31 bits."""
    y, x = (tile // tiles_x) % tiles_y * ROWS, tile % tiles_x * COLUMNS
    return y, x, (tile // tiles_x // tiles_y).to(tl.int64) * (C * H * W)


@triton.jit
def _column(i, PLAN: tl.constexpr, part: tl.constexpr):
    """dx of the i-th column of a part of the plan."""
    dx = _at(PLAN, part, 0, 0)
    for j in tl.static_range(1, _size(PLAN, part, 0)):
        dx = tl.where(i == j, _at(PLAN, part, 0, j), dx)
    return dx


@_tuned
@triton.jit(do_not_specialize=["H", "W", "tiles_y", "tiles_x"])
def _taps_kernel(
    x, weight, bias, out, means, m2s, C, H, W, tiles_y, tiles_x,
    PLAN: tl.constexpr, CHANNELS_LAST: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr, STATISTICS: tl.constexpr,
    FLOAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    CHANNELS: tl.constexpr = TILE // COLUMNS
    blocks = tl.cdiv(C, CHANNELS)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    tile = tl.program_id(0) // blocks
    top, left, image = _locate(tile, H, W, C, tiles_y, tiles_x, ROWS, COLUMNS)
    y = top + tl.arange(0, 1)[:, None]  # (1, 1) for masks: the interpreter treats a scalar comparison as a number
    column = left + tl.arange(0, COLUMNS)
    stride_y, stride_x, stride_c = (W * C, C, 1) if CHANNELS_LAST else (W, 1, H * W)
    place = column[:, None] * stride_x + c[None, :] * stride_c
    inside = (column < W)[:, None] & (c < C)[None, :]
    acc = ()
    for _ in tl.static_range(ROWS):
        acc = acc + (tl.zeros((COLUMNS, CHANNELS), FLOAT),)
    for p in tl.static_range(_size(PLAN)):
        # Not unrolled: ptxas would take a minute, prefetch too far ahead and run out of registers.
        for i in range(_size(PLAN, p, 0)):
            dx = _column(i, PLAN, p)
            w = ()
            for k in tl.static_range(_size(PLAN, p, 1)):
                tap = _at(PLAN, p, 1, k, 0) + i * _at(PLAN, p, 1, k, 1)
                w = w + (tl.load(weight + tap * C + c, mask=c < C, other=0.0).to(FLOAT)[None, :],)
            visible = ((column + dx >= 0) & (column + dx < W))[:, None] & (c < C)[None, :]
            for s in tl.static_range(_size(PLAN, p, 2)):
                dy = _at(PLAN, p, 2, s, 0)
                source = x + image + ((top + dy) * stride_y + dx * stride_x) + place
                value = tl.load(source, mask=visible & (y + dy >= 0) & (y + dy < H), other=0.0).to(FLOAT)
                for r in tl.static_range(ROWS):
                    if _at(PLAN, p, 2, s, 1, r) >= 0:
                        acc = acc[:r] + (acc[r] + value * w[_at(PLAN, p, 2, s, 1, r)],) + acc[r + 1 :]
    total = tl.zeros((COLUMNS, CHANNELS), FLOAT)
    for r in tl.static_range(ROWS):
        value = acc[r]
        if BIAS:
            value += tl.load(bias + c, mask=c < C, other=0.0).to(FLOAT)[None, :]
        if RELU:
            value = tl.where(value < 0.0, 0.0, value)  # NaN stays, as in torch
        stored = value.to(out.dtype.element_ty)
        tl.store(out + image + (top + r) * stride_y + place, stored, mask=inside & (y + r < H))
        if STATISTICS:  # of the values as stored, which the norm will see
            acc = acc[:r] + (stored.to(FLOAT),) + acc[r + 1 :]
            total += tl.where(inside & (y + r < H), stored.to(FLOAT), 0.0)
    if STATISTICS:
        mean = tl.sum(total, 0) / (tl.minimum(ROWS, H - top) * tl.minimum(COLUMNS, W - left)).to(FLOAT)
        squares = tl.zeros((COLUMNS, CHANNELS), FLOAT)
        for r in tl.static_range(ROWS):
            distance = tl.where(inside & (y + r < H), acc[r] - mean[None, :], 0.0)
            squares += distance * distance
        tl.store(means + tile.to(tl.int64) * C + c, mean, mask=c < C)
        tl.store(m2s + tile.to(tl.int64) * C + c, tl.sum(squares, 0), mask=c < C)


@triton.jit
def _weight_grad_column(
    x, grad, partial, i, split, splits, c, C, H, W, tiles, tiles_y, tiles_x,
    PLAN: tl.constexpr, part: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    FLOAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    dx = _column(i, PLAN, part)
    stride_y, stride_x, stride_c = (W * C, C, 1) if CHANNELS_LAST else (W, 1, H * W)
    acc = ()
    for _ in tl.static_range(_size(PLAN, part, 1)):
        acc = acc + (tl.zeros((COLUMNS, CHANNELS), FLOAT),)
    share = tl.cdiv(tiles, splits)
    for tile in range(split * share, tl.minimum((split + 1) * share, tiles)):
        top, left, image = _locate(tile, H, W, C, tiles_y, tiles_x, ROWS, COLUMNS)
        y = top + tl.arange(0, 1)[:, None]
        column = left + tl.arange(0, COLUMNS)
        place = column[:, None] * stride_x + c[None, :] * stride_c
        inside = (column < W)[:, None] & (c < C)[None, :]
        visible = inside & ((column + dx >= 0) & (column + dx < W))[:, None]
        g = ()
        for r in tl.static_range(ROWS):
            source = grad + image + (top + r) * stride_y + place
            g = g + (tl.load(source, mask=inside & (y + r < H), other=0.0).to(FLOAT),)
        for s in tl.static_range(_size(PLAN, part, 2)):
            dy = _at(PLAN, part, 2, s, 0)
            source = x + image + ((top + dy) * stride_y + dx * stride_x) + place
            value = tl.load(source, mask=visible & (y + dy >= 0) & (y + dy < H), other=0.0).to(FLOAT)
            for k in tl.static_range(_size(PLAN, part, 1)):
                for r in tl.static_range(ROWS):
                    if _at(PLAN, part, 2, s, 1, r) == k:
                        acc = acc[:k] + (acc[k] + value * g[r],) + acc[k + 1 :]
    for k in tl.static_range(_size(PLAN, part, 1)):
        tap = _at(PLAN, part, 1, k, 0) + i * _at(PLAN, part, 1, k, 1)
        tl.store(partial + (tap * splits + split) * C + c, tl.sum(acc[k], 0), mask=c < C)


@_tuned
@triton.jit(do_not_specialize=["H", "W", "splits", "tiles", "tiles_y", "tiles_x"])
def _weight_grad_kernel(
    x, grad, partial, C, H, W, splits, tiles, tiles_y, tiles_x,
    PLAN: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    FLOAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Each program sums one column of taps over part of the tiles; neighbours read the same tiles at the same time."""
    CHANNELS: tl.constexpr = TILE // COLUMNS
    blocks = tl.cdiv(C, CHANNELS)
    c = tl.program_id(1) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(1) // blocks
    i = tl.program_id(0)
    for part in tl.static_range(_size(PLAN)):
        if (i >= 0) & (i < _size(PLAN, part, 0)):
            _weight_grad_column(
                x, grad, partial, i, split, splits, c, C, H, W, tiles, tiles_y, tiles_x,
                PLAN, part, CHANNELS_LAST, FLOAT, ROWS, COLUMNS, CHANNELS,
            )  # fmt: skip
        i -= _size(PLAN, part, 0)


@triton.jit(do_not_specialize=["H", "W", "tiles", "tiles_y", "tiles_x"])
def _combine_kernel(
    means, m2s, mean, var, C, H, W, tiles, tiles_y, tiles_x,
    FLOAT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Chan's formula for all tiles at once: M2 = sum_i (M2_i + n_i (mean_i - mean)^2)."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.load(means + c, mask=c < C, other=0.0)  # summing differences from it loses no digits to a large mean
    count = (tiles // tiles_y // tiles_x).to(FLOAT) * (H * W)
    near = tl.zeros((STEP, CHANNELS), FLOAT)
    for start in range(0, tiles, STEP):
        tile = start + tl.arange(0, STEP)
        top, left, _ = _locate(tile, H, W, C, tiles_y, tiles_x, ROWS, COLUMNS)
        n = (tl.minimum(ROWS, H - top) * tl.minimum(COLUMNS, W - left)).to(FLOAT)[:, None]
        inside = (tile < tiles)[:, None] & (c < C)[None, :]
        m = tl.load(means + tile[:, None].to(tl.int64) * C + c[None, :], mask=inside, other=0.0)
        near += tl.where(inside, n * (m - first[None, :]), 0.0)
    shift = tl.sum(near, 0) / count
    squares = tl.zeros((STEP, CHANNELS), FLOAT)
    for start in range(0, tiles, STEP):
        tile = start + tl.arange(0, STEP)
        top, left, _ = _locate(tile, H, W, C, tiles_y, tiles_x, ROWS, COLUMNS)
        n = (tl.minimum(ROWS, H - top) * tl.minimum(COLUMNS, W - left)).to(FLOAT)[:, None]
        inside = (tile < tiles)[:, None] & (c < C)[None, :]
        place = tile[:, None].to(tl.int64) * C + c[None, :]
        distance = tl.load(means + place, mask=inside, other=0.0) - first[None, :] - shift[None, :]
        squares += tl.where(inside, tl.load(m2s + place, mask=inside, other=0.0) + n * distance * distance, 0.0)
    tl.store(mean + c, first + shift, mask=c < C)
    tl.store(var + c, tl.sum(squares, 0) / count, mask=c < C)


@triton.jit
def _pixels(tile, c, C, P, CHANNELS_LAST: tl.constexpr, PIXELS: tl.constexpr):
    """Offsets of a tile (PIXELS, CHANNELS) among outer x P pixels, and a mask of those that exist."""
    tiles = tl.cdiv(P, PIXELS)
    pixel = tile % tiles * PIXELS + tl.arange(0, PIXELS)
    stride_p, stride_c = (C, 1) if CHANNELS_LAST else (1, P)
    start = (tile // tiles).to(tl.int64) * C * P + (tile % tiles * PIXELS).to(tl.int64) * stride_p
    place = start + (tl.arange(0, PIXELS)[:, None] * stride_p + c[None, :] * stride_c)
    return place, (pixel < P)[:, None] & (c < C)[None, :]


@triton.jit
def _normalise(z, mean, var, weight, bias, c, C, place, inside, eps, FLOAT: tl.constexpr):
    """z normalised, 1 / standard deviation times the norm's weight, and the norm's output."""
    invstd = 1.0 / tl.sqrt(tl.load(var + c, mask=c < C, other=1.0) + eps)
    w = tl.load(weight + c, mask=c < C, other=0.0).to(FLOAT)
    b = tl.load(bias + c, mask=c < C, other=0.0).to(FLOAT)
    centred = tl.load(z + place, mask=inside, other=0.0).to(FLOAT) - tl.load(mean + c, mask=c < C, other=0.0)[None, :]
    xhat = centred * invstd[None, :]
    return xhat, invstd * w, xhat * w[None, :] + b[None, :]


@triton.jit
def _norm_relu_kernel(
    z, mean, var, weight, bias, y, eps, C, P,
    CHANNELS_LAST: tl.constexpr, FLOAT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(C, CHANNELS)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    place, inside = _pixels(tl.program_id(0) // blocks, c, C, P, CHANNELS_LAST, PIXELS)
    _, _, value = _normalise(z, mean, var, weight, bias, c, C, place, inside, eps, FLOAT)
    tl.store(y + place, tl.where(value < 0.0, 0.0, value).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["splits", "tiles"])
def _norm_relu_sums_kernel(
    grad, z, mean, var, weight, bias, partial, eps, C, P, splits, tiles,
    CHANNELS_LAST: tl.constexpr, FLOAT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g xhat over part of the pixels, where g is the gradient before the ReLU."""
    blocks = tl.cdiv(C, CHANNELS)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(0) // blocks
    sum_g = tl.zeros((PIXELS, CHANNELS), FLOAT)
    sum_gx = tl.zeros((PIXELS, CHANNELS), FLOAT)
    share = tl.cdiv(tiles, splits)
    for tile in range(split * share, tl.minimum((split + 1) * share, tiles)):
        place, inside = _pixels(tile, c, C, P, CHANNELS_LAST, PIXELS)
        xhat, _, value = _normalise(z, mean, var, weight, bias, c, C, place, inside, eps, FLOAT)
        g = tl.where(value > 0.0, tl.load(grad + place, mask=inside, other=0.0).to(FLOAT), 0.0)
        sum_g += g
        sum_gx += g * xhat
    tl.store(partial + split * C + c, tl.sum(sum_g, 0), mask=c < C)
    tl.store(partial + (splits + split) * C + c, tl.sum(sum_gx, 0), mask=c < C)


@triton.jit
def _norm_relu_grad_kernel(
    grad, z, mean, var, weight, bias, sums, out, eps, count, C, P,
    CHANNELS_LAST: tl.constexpr, FLOAT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dz = w / std (g - mean(g) - xhat mean(g xhat))."""
    blocks = tl.cdiv(C, CHANNELS)
    c = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    place, inside = _pixels(tl.program_id(0) // blocks, c, C, P, CHANNELS_LAST, PIXELS)
    xhat, scale, value = _normalise(z, mean, var, weight, bias, c, C, place, inside, eps, FLOAT)
    g = tl.where(value > 0.0, tl.load(grad + place, mask=inside, other=0.0).to(FLOAT), 0.0)
    mean_g = tl.load(sums + c, mask=c < C, other=0.0) / count
    mean_gx = tl.load(sums + C + c, mask=c < C, other=0.0) / count
    dz = scale[None, :] * (g - mean_g[None, :] - xhat * mean_gx[None, :])
    tl.store(out + place, dz.to(out.dtype.element_ty), mask=inside)


# ---- operators. Opaque rather than triton_op: that would let the compiler see the kernels, but it supports neither
# plans nor the interpreter, and the compiler could fuse nothing into them.

DTYPES = {torch.float16: tl.float32, torch.bfloat16: tl.float32, torch.float32: tl.float32, torch.float64: tl.float64}


def _launch(kernel: Any, programs: Any, x: Tensor, *arguments: Any) -> None:
    """Run a kernel on x's device. Request fused multiply-add explicitly, because Triton's default will change."""
    options: dict[str, Any] = {"enable_fp_fusion": True}
    if kernel in (_taps_kernel, _weight_grad_kernel):
        options |= {"TILE": 128} if INTERPRETED else {}
    else:
        options["num_warps"] = 8
    with torch.cuda.device_of(x):
        kernel[programs](*arguments, **options)


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def _check(x: Tensor, weight: Tensor | None, offsets: Sequence[int], bias: Tensor | None = None) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must be (B, C, H, W), not a tensor of {x.ndim} dimensions")
    if x.dtype not in DTYPES:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, not {x.dtype}")
    if len(offsets) % 2 or not offsets or len(set(zip(offsets[::2], offsets[1::2], strict=True))) < len(offsets) // 2:
        raise ValueError("offsets must be a flat list of dy, dx pairs without duplicates (`merge_taps` adds taps)")
    C, T = x.shape[1], len(offsets) // 2
    for name, tensor, shape in (("weight", weight, (C, T)), ("bias", bias, (C,))):
        if tensor is not None:
            _check_parameter(name, tensor, shape, x)


def _check_parameter(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {shape} for {shape[0]} channels, not {tuple(tensor.shape)}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, not {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")


def _require(x: Tensor) -> None:
    if not supports(x):
        wanted = "CPU (TRITON_INTERPRET=1)" if INTERPRETED else "CUDA"
        raise ValueError(f"x must be a {wanted} tensor with images of fewer than 2**30 elements, not on {x.device}")


@functools.cache
def _tile(H: int, W: int) -> tuple[int, int]:
    """Rows and columns of a tile: few wasted, few loaded twice; most maps are multiples of 7 or 8 pixels high."""
    rows = 7 if H % 7 == 0 and not INTERPRETED else -(-H // -(-H // MAX_ROWS))
    widths = [2**n for n in range(MAX_COLUMNS.bit_length())]
    return rows, min(widths, key=lambda n: -(-W // n) * (n + 8))  # 8: the halo that a tile adds, half of it cached


def _launch_taps(x, weight, offsets, bias=None, relu=False, statistics=False):
    x = x.contiguous(memory_format=_format(x))
    out = _like(x)
    B, C, H, W = x.shape
    rows, columns = _tile(H, W)
    tiles_y, tiles_x = -(-H // rows), -(-W // columns)
    tiles = B * tiles_y * tiles_x
    partial = x.new_empty(2, tiles, C, dtype=_statistics_dtype(x)) if statistics else (x, x)

    def grid(meta):
        return (triton.cdiv(C, meta["TILE"] // columns) * tiles,)

    _launch(
        _taps_kernel, grid, x,
        x, weight.t().contiguous(), x if bias is None else bias.contiguous(), out, partial[0], partial[1],
        C, H, W, tiles_y, tiles_x, _make_plan(tuple(offsets), H, W, rows), not x.is_contiguous(),
        bias is not None, relu, statistics, DTYPES[x.dtype], rows, columns,
    )  # fmt: skip
    return out, partial, (tiles, tiles_y, tiles_x, rows, columns)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("dmformer::taps", mutates_args=())
def _taps(x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Sequence[int], relu: bool) -> Tensor:
    _check(x, weight, offsets, bias)
    if x.numel() == 0:
        return _like(x)
    _require(x)
    return _launch_taps(x, weight, offsets, bias, relu)[0]


@_taps.register_fake
def _(x, weight, bias, offsets, relu):
    _check(x, weight, offsets, bias)
    return _like(x)


@torch.library.custom_op("dmformer::taps_weight_grad", mutates_args=())
def _taps_weight_grad(x: Tensor, grad: Tensor, offsets: Sequence[int]) -> Tensor:
    _check(x, None, offsets)
    if grad.shape != x.shape:
        raise ValueError(f"grad must be {tuple(x.shape)}, as x is, not {tuple(grad.shape)}")
    B, C, H, W = x.shape
    T = len(offsets) // 2
    if x.numel() == 0:
        return x.new_zeros(C, T, dtype=_statistics_dtype(x))
    _require(x)
    x = x.contiguous(memory_format=_format(x))
    grad = grad.contiguous(memory_format=_format(x))
    rows, columns = _tile(H, W)
    tiles_y, tiles_x = -(-H // rows), -(-W // columns)
    tiles = B * tiles_y * tiles_x
    plan = _make_plan(tuple(offsets), H, W, rows)
    splits = min(tiles, triton.cdiv(PROGRAMS, max(plan.columns, 1) * triton.cdiv(C * columns, 1024)))
    partial = x.new_zeros(T, splits, C, dtype=_statistics_dtype(x))  # zeros: taps out of reach are in no plan

    def grid(meta):
        return plan.columns, triton.cdiv(C, meta["TILE"] // columns) * splits

    if plan.columns:
        _launch(
            _weight_grad_kernel, grid, x, x, grad, partial, C, H, W, splits, tiles, tiles_y, tiles_x,
            plan, not x.is_contiguous(), DTYPES[x.dtype], rows, columns,
        )  # fmt: skip
    return partial.sum(1).t().contiguous()


@_taps_weight_grad.register_fake
def _(x, grad, offsets):
    _check(x, None, offsets)
    return x.new_empty(x.shape[1], len(offsets) // 2, dtype=_statistics_dtype(x))


@torch.library.custom_op("dmformer::taps_statistics", mutates_args=())
def _taps_statistics(x: Tensor, weight: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, offsets)
    C, H, W = x.shape[1:]
    mean, var = (x.new_zeros(C, dtype=_statistics_dtype(x)) for _ in range(2))
    if x.numel() == 0:
        return _like(x), mean, var
    _require(x)
    out, (means, m2s), (tiles, tiles_y, tiles_x, rows, columns) = _launch_taps(x, weight, offsets, statistics=True)
    _launch(
        _combine_kernel, (triton.cdiv(C, 32),), x, means, m2s, mean, var, C, H, W, tiles, tiles_y, tiles_x,
        DTYPES[x.dtype], rows, columns, 4 if INTERPRETED else 128, 32,
    )  # fmt: skip
    return out, mean, var


@_taps_statistics.register_fake
def _(x, weight, offsets):
    _check(x, weight, offsets)
    mean, var = (x.new_empty(x.shape[1], dtype=_statistics_dtype(x)) for _ in range(2))
    return _like(x), mean, var


def _pixel_tiles(z: Tensor) -> tuple[int, int, int, int, bool]:
    """Tiles, pixels per image (channels_last: of all images, stored in one row), and a tile's pixels and channels."""
    B, C, H, W = z.shape
    last = not z.is_contiguous()
    outer, pixels = (1, B * H * W) if last else (B, H * W)
    side = min(BLOCK, triton.next_power_of_2(C), 64) if last else min(BLOCK, triton.next_power_of_2(pixels), 1024)
    p, c = (BLOCK // side, side) if last else (side, BLOCK // side)
    return outer * triton.cdiv(pixels, p), pixels, p, c, last


@torch.library.custom_op("dmformer::norm_relu", mutates_args=())
def _norm_relu(z: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    for name, tensor in (("mean", mean), ("var", var), ("weight", weight), ("bias", bias)):
        _check_parameter(f"the norm's {name}", tensor, (z.shape[1],), z)
    if z.numel() == 0:
        return _like(z)
    z = z.contiguous(memory_format=_format(z))
    y = _like(z)
    tiles, pixels, p, c, last = _pixel_tiles(z)
    _launch(
        _norm_relu_kernel, (triton.cdiv(z.shape[1], c) * tiles,), z,
        z, *(t.contiguous() for t in (mean, var, weight, bias)), y, eps,
        z.shape[1], pixels, last, DTYPES[z.dtype], p, c,
    )  # fmt: skip
    return y


@_norm_relu.register_fake
def _(z, mean, var, weight, bias, eps):
    return _like(z)


@torch.library.custom_op("dmformer::norm_relu_grad", mutates_args=())
def _norm_relu_grad(
    grad: Tensor, z: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradient of z, and the gradients of bias and weight, stacked."""
    B, C, H, W = z.shape
    if z.numel() == 0:
        return _like(z), z.new_zeros(2, C, dtype=_statistics_dtype(z))
    z = z.contiguous(memory_format=_format(z))
    grad = grad.contiguous(memory_format=_format(z))
    out = _like(z)
    tiles, pixels, p, c, last = _pixel_tiles(z)
    blocks = triton.cdiv(C, c)
    splits = min(tiles, triton.cdiv(PROGRAMS, blocks))
    partial = z.new_empty(2, splits, C, dtype=_statistics_dtype(z))
    norm = [t.contiguous() for t in (mean, var, weight, bias)]
    _launch(
        _norm_relu_sums_kernel, (blocks * splits,), z,
        grad, z, *norm, partial, eps, C, pixels, splits, tiles, last, DTYPES[z.dtype], p, c,
    )  # fmt: skip
    sums = partial.sum(1)
    _launch(
        _norm_relu_grad_kernel, (blocks * tiles,), z,
        grad, z, *norm, sums, out, eps, float(B * H * W), C, pixels, last, DTYPES[z.dtype], p, c,
    )  # fmt: skip
    return out, sums


@_norm_relu_grad.register_fake
def _(grad, z, mean, var, weight, bias, eps):
    return _like(z), z.new_empty(2, z.shape[1], dtype=_statistics_dtype(z))


# ---- gradients


def _taps_backward(ctx, grad: Tensor, *_: Tensor | None):
    x, weight, out = ctx.saved_tensors
    grad = grad.contiguous(memory_format=_format(x))
    if out is not None:
        grad = torch.where(out > 0, grad, 0)
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:  # the adjoint of a correlation: each tap looks the other way
        grad_x = _taps(grad, weight, None, [-offset for offset in ctx.offsets], False)
    if ctx.needs_input_grad[1]:
        grad_weight = _taps_weight_grad(x, grad, ctx.offsets).to(weight.dtype)
    if ctx.bias is not None and ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 2, 3), dtype=_statistics_dtype(x)).to(ctx.bias)
    return grad_x, grad_weight, grad_bias, None, None


def _taps_setup(ctx, inputs, output) -> None:
    x, weight, bias, offsets, relu = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.offsets, ctx.bias = offsets, None if bias is None else bias.dtype


def _taps_statistics_setup(ctx, inputs, output) -> None:
    x, weight, ctx.offsets = inputs
    ctx.save_for_backward(x, weight, None)
    ctx.bias = None


def _norm_relu_setup(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)  # not the output: the ReLU's mask is recomputed from z


def _norm_relu_backward(ctx, grad: Tensor):
    grad_z, sums = _norm_relu_grad(grad, *ctx.saved_tensors, ctx.eps)
    weight, bias = ctx.saved_tensors[3:]
    # The mean and variance are computed from z, so grad_z includes the gradient through them.
    return grad_z, None, None, sums[1].to(weight.dtype), sums[0].to(bias.dtype), None


_taps.register_autograd(_taps_backward, setup_context=_taps_setup)
_taps_statistics.register_autograd(lambda ctx, *g: _taps_backward(ctx, *g)[:3], setup_context=_taps_statistics_setup)
_norm_relu.register_autograd(_norm_relu_backward, setup_context=_norm_relu_setup)


# ---- public functions


def _prepare(x: Tensor, weight: Tensor, offsets: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, list[int]]:
    if not all(isinstance(offset, Sequence) and len(offset) == 2 for offset in offsets):
        raise ValueError("offsets must be (dy, dx) pairs")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # as autocast treats a convolution
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return x, weight, list(chain.from_iterable(offsets))


def depthwise_taps(
    x: Tensor, weight: Tensor, offsets: Sequence[tuple[int, int]], bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Depth-wise convolution over a list of taps, stride 1, size kept: (B, C, H, W) -> (B, C, H, W).

    Args:
        x: Images, contiguous or channels_last; the result has the same memory format. Others become channels_last.
        weight: (C, T), of any floating dtype.
        offsets: (dy, dx) of each tap.

    Differentiable with respect to x, weight and bias. BatchNorm at inference costs nothing here: fold its scale into
    `weight` and its shift into `bias`. Raises ValueError or TypeError for shapes, dtypes or devices that do not match.
    """
    x, weight, flat = _prepare(x, weight, offsets)
    return _taps(x, weight, bias, flat, relu)


def depthwise_taps_norm_relu(
    x: Tensor, weight: Tensor, offsets: Sequence[tuple[int, int]], norm_weight: Tensor, norm_bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU(BatchNorm(depthwise_taps(x))) with the batch's statistics, for training: (B, C, H, W) -> (B, C, H, W).

    Args:
        x, weight, offsets: As for `depthwise_taps`.
        eps: Added to the variance.

    Returns:
        The output; mean and biased variance, (C) in float32 (float64 for float64), without gradients, from which the
        caller updates its running statistics. For an empty batch both are zero.

    The backward pass stores x and the sum before the norm, and no other image-sized tensor.
    Raises ValueError for a single value per channel and for eps of 0 or less, as `torch.nn.BatchNorm2d` does.
    """
    x, weight, flat = _prepare(x, weight, offsets)
    if x.ndim == 4 and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"batch statistics need more than 1 value per channel, but x is {tuple(x.shape)}")
    if eps <= 0:
        raise ValueError(f"eps must be positive, not {eps}")
    z, mean, var = _taps_statistics(x, weight, flat)
    mean, var = mean.detach(), var.detach()
    return _norm_relu(z, mean, var, norm_weight, norm_bias, eps), mean, var
