"""`kernels.triton_taps` against PyTorch in float64: on a GPU, or else in Triton's interpreter.

Triton reads TRITON_INTERPRET on import, which other tests have done by then. Without a GPU a child process therefore
runs this file. There, tiles have at most 2 rows, 8 columns and 16 channels, so small images have several.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
HERE = INTERPRETED or DEVICE == "cuda"

if HERE:
    import timm

    import dmformer
    from dmformer.nn.kernels import depthwise, triton_taps
    from dmformer.nn.kernels.triton_taps import depthwise_taps, depthwise_taps_norm_relu, merge_taps
    from dmformer.nn.mixers.dma import DMA


def here(test):
    """Collect a test only where the kernels run: 75 skips would say nothing."""
    return test if HERE else None


@pytest.mark.skipif(HERE, reason="the kernels run in this process: on a GPU, or it is the child")
@pytest.mark.parametrize("selection", ["not long", pytest.param("long", marks=pytest.mark.long)])
@pytest.mark.slow
def test_in_the_interpreter(selection):
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-q", "-m", selection]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout[-10000:] + child.stderr[-2000:]


LEVELS = {
    "dma": ((3, 1), (5, 2), (7, 3)),
    "7x7d3": ((7, 3),),
    "9x9": ((9, 1),),
    "undilated": ((3, 1), (5, 1)),
    "twice": ((3, 2), (3, 2)),
    "pointwise": ((1, 1),),
}
SMALL = ((3, 1), (3, 2))
TINY = ((3, 1), (1, 1))  # for checks that call a kernel many times
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCES = {dtype: torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16)} | {
    torch.float32: 2e-6,
    torch.float64: 1e-13,
}
"""Largest error divided by the largest value. The lower dtypes round a float32 sum once, by half of eps."""

formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
channels_last_first = pytest.mark.parametrize(
    "memory_format", [pytest.param(FORMATS[0], marks=pytest.mark.long), FORMATS[1]], ids=["contiguous", "channels_last"]
)


def in_both_formats(*cases: object, contiguous: object) -> list:
    """Cases in channels_last, and one of them in contiguous images, whose strides differ alone; the rest are long."""
    long = [pytest.param(case, FORMATS[0], marks=[] if case == contiguous else pytest.mark.long) for case in cases]
    return [*((case, FORMATS[1]) for case in cases), *long]


def make(levels, shape=(1, 5, 3, 9), dtype=torch.float32, memory_format=torch.contiguous_format):
    """Input, weights, dilations, a bias and an output gradient, rounded to dtype."""
    generator = torch.Generator().manual_seed(0)
    C = shape[1]

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE, dtype)

    x, grad = (random(*shape).to(memory_format=memory_format) for _ in range(2))
    return x, [random(C, 1, k, k) for k, _ in levels], [d for _, d in levels], random(C), grad


def reference(x: Tensor, weights: list[Tensor], dilations: list[int], bias: Tensor | None = None) -> Tensor:
    branches = [
        F.conv2d(x, w, padding=d * (w.shape[-1] // 2), dilation=d, groups=x.shape[1])
        for w, d in zip(weights, dilations, strict=True)
    ]
    out = torch.stack(branches).sum(0)
    return out if bias is None else out + bias[:, None, None]


def taps(x: Tensor, weights: list[Tensor], dilations: list[int], bias: Tensor | None = None, relu=False) -> Tensor:
    return depthwise_taps(x, *merge_taps(weights, dilations), bias, relu)


def leaves(tensors: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=tolerance * e.abs().max().item())


def check(levels, shape, dtype=torch.float32, memory_format=torch.contiguous_format) -> None:
    x, weights, dilations, bias, grad = make(levels, shape, dtype, memory_format)
    inputs, doubles = (leaves([x, bias, *weights], to) for to in (dtype, torch.float64))
    actual = taps(inputs[0], inputs[2:], dilations, inputs[1])
    expected = reference(doubles[0], doubles[2:], dilations, doubles[1])
    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=memory_format)
    assert_near([actual], [expected], TOLERANCES[dtype])
    gradients = torch.autograd.grad(actual, inputs, grad)
    assert {g.dtype for g in gradients} == {dtype}
    assert gradients[0].is_contiguous(memory_format=memory_format)
    assert_near(list(gradients), list(torch.autograd.grad(expected, doubles, grad.double())), TOLERANCES[dtype])


# ---- the sum of taps


@here
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n == "9x9" else []) for n in LEVELS])
def test_equals_convolutions(name):
    size = (5, 9) if name in ("dma", "7x7d3") else (3, 9)
    check(LEVELS[name], (1, 5, *size), memory_format=torch.channels_last)


@here
@pytest.mark.parametrize("name", [pytest.param("7x7d3", marks=pytest.mark.long), "undilated", "twice", "pointwise"])
def test_contiguous_images_equal_convolutions(name):
    """The format changes the strides alone, and the interpreter takes seconds for the many taps of the others."""
    check(LEVELS[name], (1, 5, 3, 9))


@here
@pytest.mark.parametrize(
    ("size", "memory_format"), in_both_formats((1, 1), (4, 3), (2, 17), contiguous=(4, 3)), ids=str
)
def test_images_smaller_than_the_reach(size, memory_format):
    check(LEVELS["7x7d3"], (2 if size == (4, 3) else 1, 5, *size), memory_format=memory_format)


@here
@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    in_both_formats(torch.float16, torch.bfloat16, torch.float64, contiguous=torch.bfloat16),
    ids=str,
)
def test_dtypes(dtype, memory_format):
    check(SMALL, (1, 5, 3, 9), dtype, memory_format)


@here
@channels_last_first
def test_several_blocks_of_channels(memory_format):
    check(((3, 1),), (1, 37, 3, 9), memory_format=memory_format)


@here
def test_gradcheck():
    x, weights, dilations, bias, _ = make(TINY, (2, 2, 3, 4), torch.float64)
    inputs = leaves([x, bias, *weights])
    assert torch.autograd.gradcheck(lambda x, b, *w: taps(x, w, dilations, b), inputs, fast_mode=True)


@here
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@formats
def test_relu(memory_format, bias):
    x, weights, dilations, b, grad = make(SMALL, memory_format=memory_format)
    inputs, doubles = (leaves([x, *weights, *([b] if bias else [])], to) for to in (None, torch.float64))
    actual = taps(inputs[0], inputs[1:3], dilations, *inputs[3:], relu=True)
    expected = reference(doubles[0], doubles[1:3], dilations, *doubles[3:]).relu()
    assert_near([actual], [expected], TOLERANCES[torch.float32])
    gradients = [torch.autograd.grad(y, to, grad.to(y)) for y, to in ((actual, inputs), (expected, doubles))]
    assert_near(*map(list, gradients), TOLERANCES[torch.float32])


@here
@pytest.mark.parametrize("wanted", [0, 1, 3], ids=["only x", "only one weight", "only the bias"])
def test_gradients_of_a_part(wanted):
    x, weights, dilations, bias, grad = make(SMALL)
    inputs, doubles = [x, *weights, bias], leaves([x, *weights, bias], torch.float64)
    inputs[wanted].requires_grad_()
    taps(*inputs[:1], inputs[1:3], dilations, inputs[3]).backward(grad)
    assert [t.grad is not None for t in inputs] == [i == wanted for i in range(4)]
    expected = torch.autograd.grad(reference(doubles[0], doubles[1:3], dilations, doubles[3]), doubles, grad.double())
    assert_near([inputs[wanted].grad], [expected[wanted]], TOLERANCES[torch.float32])


@here
def test_other_strides():
    """Sliced, expanded and transposed inputs and gradients give the same results as their copies, in channels_last."""
    x, weights, dilations, _, _ = make(SMALL, (2, 3, 5, 5))
    for view in (x[:, :, ::2, 1:], x[:1].expand(2, -1, -1, -1), x.transpose(2, 3)):
        out = taps(view, weights, dilations)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert_near([out], [reference(view.double(), leaves(weights, torch.float64), dilations)], 2e-6)
    x.requires_grad_()
    taps(x, weights, dilations).sum().backward()  # a gradient of strides 0
    expected = x.detach().double().requires_grad_()
    reference(expected, leaves(weights, torch.float64), dilations).sum().backward()
    assert_near([x.grad], [expected.grad], 2e-6)


@here
def test_other_strides_of_parameters():
    x, weights, dilations, bias, grad = make(SMALL, (2, 3, 4, 5))
    weight, offsets = merge_taps(weights, dilations)
    spread = torch.stack([bias, bias + 1], 1).flatten()[::2]  # every second of six numbers
    results = []
    for b in (bias, spread):
        w = weight.contiguous() if b is bias else weight
        y, mean, var = depthwise_taps_norm_relu(x, w, offsets, b.requires_grad_(), b, 1e-5)
        results.append([depthwise_taps(x, w, offsets, b), y, mean, var, *torch.autograd.grad(y, b, grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@here
def test_weights_of_another_dtype():
    x, weights, dilations, _, _ = make(SMALL, (1, 5, 3, 9), torch.bfloat16)
    weights = [w.float() * 1.001 for w in weights]
    out = taps(x, weights, dilations)
    assert out.dtype == torch.bfloat16
    assert_near([out], [reference(x.double(), [w.double() for w in weights], dilations)], TOLERANCES[torch.bfloat16])


@here
def test_autocast():
    x, weights, dilations, _, grad = make(SMALL, (1, 5, 3, 9))
    inputs = leaves([x, *weights])
    with torch.autocast(DEVICE, torch.bfloat16):
        out = taps(inputs[0], inputs[1:], dilations)
    gradients = torch.autograd.grad(out, inputs, grad.bfloat16())
    assert [t.dtype for t in (out, *gradients)] == [torch.bfloat16] + [torch.float32] * 3
    merged, offsets = merge_taps(weights, dilations)  # which is rounded after coinciding taps have been added
    rounded = depthwise_taps(x.bfloat16(), merged.bfloat16(), offsets)
    assert torch.equal(out, rounded)


@here
def test_infinity_and_nan_stay_where_they_reach():
    x, weights, dilations, _, _ = make(SMALL, (1, 2, 9, 11))
    x[0, 0, 4, 5] = float("nan")
    x[0, 1, 4, 5] = float("inf")
    for relu in (False, True):
        expected = reference(x, weights, dilations)
        actual = taps(x, weights, dilations, relu=relu)
        assert_near([actual.nan_to_num(0, 0, 0)], [(expected.relu() if relu else expected).nan_to_num(0, 0, 0)], 1e-5)
        assert torch.equal(actual.isnan(), expected.isnan())


# ---- merging


@here
def test_merged_taps():
    weights = [torch.randn(2, 1, k, k, requires_grad=True) for k in (3, 5, 7)]
    merged, offsets = merge_taps(weights, [1, 2, 3])
    assert merged.shape == (2, 81)
    assert len(set(offsets)) == 81
    dense = torch.zeros(2, 19, 19)
    for w, d in zip(weights, (1, 2, 3), strict=True):
        r = d * (w.shape[-1] // 2)
        dense[:, 9 - r : 10 + r : d, 9 - r : 10 + r : d] += w[:, 0].detach()
    for t, (dy, dx) in enumerate(offsets):
        assert torch.equal(merged[:, t], dense[:, 9 + dy, 9 + dx])
    merged.pow(2).sum().backward()
    assert torch.equal(weights[0].grad[:, 0, 1, 1], 2 * dense[:, 9, 9])
    assert torch.equal(weights[1].grad[:, 0, 0, 4], 2 * dense[:, 5, 13])


@here
def test_coinciding_taps_are_added_in_float32():
    large, small = torch.full((1, 1, 1, 1), 256.0).bfloat16(), torch.ones(1, 1, 1, 1).bfloat16()
    merged, offsets = merge_taps([large, small, small], [1, 1, 1])
    assert merged.dtype == torch.float32
    assert merged.item() == 258
    assert offsets == ((0, 0),)


@here
def test_columns_of_equal_taps_are_looped_over():
    _, offsets = merge_taps([torch.zeros(1, 1, k, k) for k in (3, 5, 7)], [1, 2, 3])
    plan = triton_taps._make_plan(tuple(v for offset in offsets for v in offset), 56, 56, 7)
    assert [len(part[0]) for part in plan.parts] == [1, 6, 4, 2]  # of 13, 7, 5 and 3 taps
    assert plan.columns == 13


# ---- with BatchNorm and ReLU


def norm_reference(x, weights, dilations, norm: nn.BatchNorm2d, stored: torch.dtype) -> Tensor:
    z = reference(x, weights, dilations)
    return F.relu(norm(z + (z.detach().to(stored).double() - z.detach())))  # the norm sees the stored values


@here
@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    in_both_formats(torch.float32, torch.bfloat16, torch.float64, contiguous=torch.float32),
    ids=str,
)
@pytest.mark.parametrize(
    "levels", [((3, 1), (1, 1)), pytest.param(((3, 2),), marks=pytest.mark.long)], ids=["two branches", "one"]
)
def test_norm_relu_equals_batch_norm(levels, memory_format, dtype):
    x, weights, dilations, bias, grad = make(levels, (2, 5, 3, 9), dtype, memory_format)
    norm = nn.BatchNorm2d(5, device=DEVICE, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(bias * 2)
        norm.bias.copy_(bias.flip(0))
    inputs = leaves([x, norm.weight.to(dtype), norm.bias.to(dtype), *weights])
    doubles = leaves([x, *weights], torch.float64)
    actual, mean, var = depthwise_taps_norm_relu(
        inputs[0], *merge_taps(inputs[3:], dilations), *inputs[1:3], eps=norm.eps
    )
    expected = norm_reference(doubles[0], doubles[1:], dilations, norm, dtype)
    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=memory_format)
    assert not mean.requires_grad
    assert not var.requires_grad
    # The standard deviation scales an error of z: 4 roundings, as in the plain form.
    tolerance = 4 * TOLERANCES[dtype]
    assert_near([actual], [expected], tolerance)
    count = x.numel() / 5
    assert_near([mean * norm.momentum], [norm.running_mean], tolerance)
    assert_near([0.9 + 0.1 * var * count / (count - 1)], [norm.running_var], tolerance)
    gradients = torch.autograd.grad(actual, inputs, grad)
    expected = torch.autograd.grad(expected, [doubles[0], norm.weight, norm.bias, *doubles[1:]], grad.double())
    assert {g.dtype for g in gradients} == {dtype}
    assert_near(list(gradients), list(expected), 4 * tolerance)


@here
def test_norm_relu_gradcheck():
    x, weights, dilations, bias, _ = make(TINY, (2, 2, 3, 4), torch.float64)
    inputs = leaves([x, bias + 1, bias, *weights])

    def function(x, norm_weight, norm_bias, *weights):
        return depthwise_taps_norm_relu(x, *merge_taps(weights, dilations), norm_weight, norm_bias, 1e-5)[0]

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@here
@formats
def test_statistics_of_a_large_mean_do_not_cancel(memory_format):
    x, _, _, _, _ = make((), (3, 4, 9, 11), memory_format=memory_format)
    x += 1000
    ones, zeros = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    y, mean, var = depthwise_taps_norm_relu(x, ones[:, None], [(0, 0)], ones, zeros, eps=1e-9)
    exact = x.double()
    # A number near 1000 is rounded to 3e-5 standard deviations; E[x^2] - E[x]^2 would be off by 0.1.
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        y.double(), F.relu(F.batch_norm(exact, None, None, training=True, eps=1e-9)), rtol=0, atol=3e-4
    )


@here
def test_memory_kept_for_backward():
    """x and the sum before the norm, once each; the plain form also keeps the branches and the norm's output."""
    x, weights, dilations, bias, _ = make(SMALL, (2, 5, 3, 9))
    kept: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t
        return t

    inputs = leaves([x, bias, bias, *weights])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y, _, _ = depthwise_taps_norm_relu(inputs[0], *merge_taps(inputs[3:], dilations), *inputs[1:3], 1e-5)
    images = [t for t in kept.values() if t.shape == x.shape]
    assert len(images) == 2
    assert y.data_ptr() not in kept


# ---- operators, graphs, repeatability


@here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck inspects it
@channels_last_first
def test_operators_are_well_formed(memory_format):
    x, weights, dilations, bias, grad = make(((1, 1),), (2, 2, 3, 4), memory_format=memory_format)
    weight, offsets = merge_taps(weights, dilations)
    flat = [v for offset in offsets for v in offset]
    x, weight, bias = leaves([x, weight, bias])
    z, mean, var = (t.detach() for t in torch.ops.dmformer.taps_statistics(x, weight, flat))
    ops, check = torch.ops.dmformer, torch.library.opcheck
    check(ops.taps.default, (x, weight, None, flat, False))
    check(ops.taps.default, (x, weight, bias, flat, True))
    check(ops.taps_weight_grad.default, (x.detach(), grad, flat))
    check(ops.taps_statistics.default, (x, weight, flat))
    check(ops.norm_relu.default, (z.requires_grad_(), mean, var, bias, bias.detach().clone().requires_grad_(), 1e-5))
    check(ops.norm_relu_grad.default, (grad, z.detach(), mean, var, bias.detach(), bias.detach(), 1e-5))


@here
def test_compiled_and_exported():
    x, weights, dilations, bias, grad = make(TINY, (2, 3, 3, 4), memory_format=torch.channels_last)
    inputs = leaves([x, bias, *weights])

    def function(x: Tensor, b: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        weight, offsets = merge_taps(weights, dilations)
        return (depthwise_taps(x, weight, offsets, b, True), *depthwise_taps_norm_relu(x, weight, offsets, b, b, 1e-5))

    eager = function(*inputs)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)(*inputs)
    for e, c in zip(eager, compiled, strict=True):
        assert torch.equal(e, c)
        assert e.stride() == c.stride()
    gradients = [torch.autograd.grad(y[:2], inputs, [grad, grad]) for y in (eager, compiled)]
    assert_near(*map(list, gradients), TOLERANCES[torch.float32])

    class Module(nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return function(*inputs)

    program = torch.export.export(Module(), tuple(t.detach() for t in inputs))
    for e, p in zip(eager, program.module()(*(t.detach() for t in inputs)), strict=True):
        assert torch.equal(e, p)


@here
def test_results_are_reproducible():
    x, weights, dilations, bias, grad = make(SMALL, (2, 5, 3, 9))
    runs = []
    for _ in range(2):
        inputs = leaves([x, bias, *weights])
        y, mean, var = depthwise_taps_norm_relu(
            inputs[0], *merge_taps(inputs[2:], dilations), inputs[1], inputs[1], 1e-5
        )
        runs.append([y, mean, var, *torch.autograd.grad(y, inputs, grad)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---- invalid arguments


@here
def test_an_empty_batch():
    x, weights, dilations, bias, _ = make(SMALL, (0, 3, 5, 6))
    inputs = leaves([x, bias, *weights])
    out = taps(inputs[0], inputs[2:], dilations, inputs[1], relu=True)
    assert out.shape == x.shape
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), inputs))
    out, mean, var = depthwise_taps_norm_relu(inputs[0], *merge_taps(inputs[2:], dilations), inputs[1], inputs[1], 1e-5)
    assert out.shape == x.shape
    assert not mean.any()
    assert not var.any()
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), inputs))
    assert not triton_taps.supports(x)


@here
def test_what_is_supported():
    x = torch.zeros(1, 2, 3, 4, device=DEVICE)
    assert all(triton_taps.supports(x.to(dtype)) for dtype in TOLERANCES)
    assert not triton_taps.supports(x[0])
    assert not triton_taps.supports(x.int())
    assert not triton_taps.supports(x.to("meta"))
    assert triton_taps.fits(torch.empty(2**20, 64, 32, 32, device="meta"))
    assert not triton_taps.fits(torch.empty(1, 64, 4096, 4096, device="meta"))
    assert not triton_taps.fits(torch.empty(2**21, 2, 32, 32, device="meta"))


WRONG = [
    (dict(x=torch.zeros(3, 4, 5)), ValueError, "B, C, H, W"),
    (dict(x=torch.zeros(1, 3, 4, 5, dtype=torch.int32)), TypeError, "int32"),
    (dict(weight=torch.zeros(4, 1)), ValueError, "3 channels"),
    (dict(weight=torch.zeros(3, 2)), ValueError, "weight must be"),
    (dict(weight=torch.zeros(3, 1, dtype=torch.int64)), TypeError, "int64"),
    (dict(offsets=[0, 0]), ValueError, "pairs"),
    (dict(offsets=[(0, 0, 0)]), ValueError, "pairs"),
    (dict(offsets=[]), ValueError, "offsets"),
    (dict(offsets=[(0, 0), (0, 0)], weight=torch.zeros(3, 2)), ValueError, "without duplicates"),
    (dict(bias=torch.zeros(4)), ValueError, "bias"),
    (dict(bias=torch.zeros(3, 1)), ValueError, "bias"),
]


@here
@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_wrong_input(wrong, error, message):
    right = dict(x=torch.zeros(1, 3, 4, 5), weight=torch.zeros(3, 1), offsets=[(0, 0)], bias=None)
    arguments = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in {**right, **wrong}.items()}
    with pytest.raises(error, match=message):
        depthwise_taps(**arguments)
    if "bias" not in wrong:
        norm = torch.ones(3, device=DEVICE)
        del arguments["bias"]
        with pytest.raises(error, match=message):
            depthwise_taps_norm_relu(**arguments, norm_weight=norm, norm_bias=norm, eps=1e-5)


@here
def test_other_wrong_input():
    x, norm = torch.zeros(1, 3, 4, 5, device=DEVICE), torch.ones(3, device=DEVICE)
    weight = torch.zeros(3, 1, device=DEVICE)
    with pytest.raises(ValueError, match="more than 1 value"):
        depthwise_taps_norm_relu(x[:, :, :1, :1], weight, [(0, 0)], norm, norm, 1e-5)
    with pytest.raises(ValueError, match="eps"):
        depthwise_taps_norm_relu(x, weight, [(0, 0)], norm, norm, 0.0)
    with pytest.raises(ValueError, match="norm's weight"):
        depthwise_taps_norm_relu(x, weight, [(0, 0)], norm[:2], norm, 1e-5)
    with pytest.raises(ValueError, match="offsets"):
        torch.ops.dmformer.taps(x, weight, None, [0, 0, 1], False)
    with pytest.raises(ValueError, match="weight is on meta"):
        depthwise_taps(x, weight.to("meta"), [(0, 0)])
    for weights, dilations in (
        ([torch.zeros(3, 1, 3, 3)], [0]),
        ([torch.zeros(3, 1, 3, 3)], [1, 2]),
        ([], []),
        ([torch.zeros(3, 1, 2, 2)], [1]),
        ([torch.zeros(3, 1, 3, 5)], [1]),
        ([torch.zeros(3, 1, 3, 3), torch.zeros(4, 1, 3, 3)], [1, 1]),
    ):
        with pytest.raises(ValueError, match=r"dilation|k odd"):
            merge_taps(weights, dilations)


@here
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_mixer_takes_the_kernels(training, monkeypatch):
    """DMA with `kernels.depthwise` on Triton, against its plain form, including running statistics."""
    taken: list[str] = []
    for name in ("depthwise_taps", "depthwise_taps_norm_relu"):
        function = getattr(triton_taps, name)
        monkeypatch.setattr(triton_taps, name, lambda *a, n=name, f=function: taken.append(n) or f(*a))
    results = []
    for mode in ("triton", "plain"):
        monkeypatch.setattr(depthwise, "MODE", mode)
        torch.manual_seed(0)
        mixer = DMA(8).to(DEVICE).train(training)
        x = torch.randn(2, 8, 6, 7, device=DEVICE, requires_grad=True)
        out = mixer(x)
        out.square().sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in mixer.parameters()), *mixer.norm.buffers()])
    assert taken == ["depthwise_taps_norm_relu" if training else "depthwise_taps"]
    for actual, reference in zip(*results, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


@here
def test_fused_model_takes_the_kernels(monkeypatch):
    """The levels of a fused DMA in one pass, including norm and ReLU."""
    torch.manual_seed(0)
    model = timm.create_model("dmformer_n", num_classes=3).to(DEVICE).eval()
    x = torch.randn(1, 3, 32, 32, device=DEVICE)
    monkeypatch.setattr(depthwise, "MODE", "plain")
    with torch.inference_mode():
        expected = model(x)
        monkeypatch.setattr(depthwise, "MODE", "triton")
        torch.testing.assert_close(dmformer.fuse(model)(x), expected, rtol=1e-4, atol=1e-5)
