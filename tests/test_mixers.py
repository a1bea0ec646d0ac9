"""Token mixers, and the cells of ViTAE, against their formulas, written out in plain operations in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmformer.nn.kernels import depthwise
from dmformer.nn.layers import GELU, DepthwiseMlp, PixelMean, StridedConv2d
from dmformer.nn.mixers.attention import Attention, ValueConvAttention
from dmformer.nn.mixers.dma import DMA, LEVELS
from dmformer.nn.mixers.lka import LKA, LargeKernel, decompose, decomposed_cost, plain_cost
from dmformer.nn.mixers.performer import Performer, linear_attention
from dmformer.nn.mixers.sam import MHMC, SAA, SAM
from dmformer.nn.mixers.window import WindowAttention
from dmformer.nn.vitae_cells import PCM, PRM, CellStage, NormalCell, ReductionCell

DIM = 32
ABLATIONS = {
    "default": {},
    "undilated": {"dilated": False},
    "7x7d3": {"levels": ((7, 3),)},
    "21x21": {"levels": ((21, 1),)},
    "no gate": {"gate": False},
    "expand 2": {"expand_ratio": 2.0},
    "no expand": {"expand_ratio": None},
    "gate / 4": {"gate_reduction": 4},
    "gate of 1": {"gate_reduction": 1000},
}
# By hand, at 32 channels: expand 32 * 32 + 32 = 1056, the same for reduce and proj; levels (9 + 25 + 49) * 32 = 2656;
# BatchNorm 64; gate 2 * 32 + 2 + 32 * 2 + 32 = 162.
PARAMETERS = {
    "default": 6050,
    "undilated": 6050,
    "7x7d3": 6050 - (9 + 25) * 32,
    "21x21": 6050 - 2656 + 441 * 32,
    "no gate": 6050 - 162,
    "expand 2": 6050 + 1056 + 2656 + 64 + 1024,  # the bias of reduce stays at 32
    "no expand": 6050 - 1056,
    "gate / 4": 6050 - 162 + (8 * 32 + 8 + 32 * 8 + 32),
    "gate of 1": 6050 - 162 + (32 + 1 + 32 + 32),
}


def batch_norm(x: Tensor, norm: torch.nn.BatchNorm2d, training: bool) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    scale = norm.weight / (var + norm.eps).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def linear(x: Tensor, conv: torch.nn.Conv2d) -> Tensor:
    """A 1x1 convolution as a matrix product."""
    return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def dma(m: DMA, x: Tensor, dilations: list[int], training: bool) -> Tensor:
    """The formula in the docstring."""
    e = x if isinstance(m.expand, torch.nn.Identity) else linear(x, m.expand)
    levels = sum(
        F.conv2d(e, conv.weight, padding="same", dilation=d, groups=e.shape[1])
        for conv, d in zip(m.levels.convs, dilations, strict=True)
    )
    z = batch_norm(levels, m.norm, training).relu()
    out = linear(x + linear(z, m.reduce), m.proj)
    if m.gate is None:
        return out
    v = linear(x.mean((2, 3), keepdim=True), m.gate.fc1).relu()
    return linear(v, m.gate.fc2).sigmoid() * out


def make(ablation: dict) -> tuple[DMA, Tensor, list[int]]:
    """A mixer in float64 with no parameter at a neutral value, images, and the expected dilations."""
    torch.manual_seed(0)
    mixer = DMA(DIM, **ablation).double()
    for tensor in (mixer.norm.weight, mixer.norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 2.0)
    for tensor in (mixer.norm.bias, mixer.norm.running_mean):
        torch.nn.init.normal_(tensor)
    dilations = [d if ablation.get("dilated", True) else 1 for _, d in ablation.get("levels", LEVELS)]
    return mixer, torch.randn(2, DIM, 21, 14, dtype=torch.float64), dilations


@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=ABLATIONS)
def test_dma_equals_its_formula_in_evaluation(ablation):
    mixer, x, dilations = make(ablation)
    torch.testing.assert_close(mixer.eval()(x), dma(mixer, x, dilations, training=False))


@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=ABLATIONS)
def test_dma_equals_its_formula_in_training(ablation):
    mixer, x, dilations = make(ablation)
    x.requires_grad_()
    parameters = [x, *mixer.parameters()]
    expected = dma(mixer, x, dilations, training=True)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, parameters, cotangent)
    actual = mixer.train()(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, parameters, cotangent), expected_grads)


@pytest.mark.parametrize("name", ABLATIONS)
def test_dma_parameters_counted_by_hand(name):
    assert sum(p.numel() for p in DMA(DIM, **ABLATIONS[name]).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("ablation", "extent"),
    [({}, 19), ({"dilated": False}, 7), ({"levels": ((3, 1),)}, 3), ({"levels": ((5, 2),)}, 9)],
    ids=["default", "undilated", "3x3", "5x5d2"],
)
def test_dma_reaches_as_far_as_its_widest_level(ablation, extent):
    """The paper's extents: 3, 9 and 19 pixels. The gate is left out, because it sees the whole image."""
    torch.manual_seed(0)
    mixer = DMA(8, gate=False, **ablation).eval()
    x = torch.randn(1, 8, 31, 31, requires_grad=True)
    mixer(x)[0, :, 15, 15].sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero().T
    for seen in (rows, columns):
        assert (seen.min().item(), seen.max().item()) == (15 - extent // 2, 15 + extent // 2)


@pytest.mark.parametrize("levels", [(), ((4, 1),), ((3, 0),), ((0, 1),), ((-3, 1),), ((3, 1), (6, 2))], ids=str)
def test_dma_refuses_bad_levels(levels):
    with pytest.raises(ValueError, match="levels must be"):
        DMA(DIM, levels=levels)


# ---- what several mixers share


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with no parameter at a neutral value."""
    generator = torch.Generator().manual_seed(0)
    module.double()
    for m in module.modules():
        for name, tensor in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]:
            if name == "running_var" or (name == "weight" and isinstance(m, (nn.BatchNorm2d, nn.LayerNorm))):
                tensor.data.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.data.normal_(generator=generator)
    return module


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def depthwise_taps(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A depth-wise convolution as a sum of shifted, weighted images; an even kernel's centre is the upper left one."""
    k, d = conv.kernel_size[0], conv.dilation[0]
    before = d * (k - 1) // 2
    padded = F.pad(x, (before, d * (k - 1) - before) * 2)
    out = torch.zeros_like(x)
    for i in range(k):
        for j in range(k):
            shifted = padded[:, :, i * d : i * d + x.shape[2], j * d : j * d + x.shape[3]]
            out = out + conv.weight[:, 0, i, j][:, None, None] * shifted
    return out + conv.bias[:, None, None]


def assert_same_with_gradients(module: nn.Module, formula, *inputs: Tensor) -> None:
    """Outputs, and gradients with respect to the first input and all parameters, of module(*inputs) and its formula."""
    inputs[0].requires_grad_()
    wanted = [inputs[0], *(p for p in module.parameters() if p.requires_grad)]
    expected, actual = formula(module, *inputs), module(*inputs)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, wanted, cotangent)
    torch.testing.assert_close(torch.autograd.grad(actual, wanted, cotangent), expected_grads)


# ---- LKA

KERNELS = [(21, 3), (21, 4), (24, 3), (7, 2), (5, 1), (9, 9)]
"""(K, d). With 21, 4 and with 24, 3 the dilated kernel is even: 6 taps 4 apart, and 8 taps 3 apart."""


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def lka(m: LKA, x: Tensor) -> Tensor:
    """The formula in the docstring."""
    u = gelu(linear(x, m.proj1))
    attention = linear(depthwise_taps(depthwise_taps(u, m.kernel.local), m.kernel.dilated), m.kernel.point)
    return x + linear(u * attention, m.proj2)


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("size", [(21, 14), (5, 3)], ids=str)
@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS)
def test_lka_equals_its_formula(kernel_size, dilation, size, plain, monkeypatch):
    monkeypatch.setattr(depthwise, "MODE", "plain" if plain else "auto")
    assert_same_with_gradients(randomised(LKA(8, kernel_size, dilation)), lka, noise(2, 8, *size))


def test_lka_of_the_paper():
    """5x5, then 7x7 of dilation 3, K = 21 (VAN, section 3)."""
    kernel = LargeKernel(8)
    assert (kernel.local.kernel_size, kernel.local.dilation, kernel.local.padding) == ((5, 5), (1, 1), (2, 2))
    assert (kernel.dilated.kernel_size, kernel.dilated.dilation, kernel.dilated.padding) == ((7, 7), (3, 3), (9, 9))


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "sides"),
    [
        (21, 3, (5, 7)),
        (21, 4, (7, 6)),
        (24, 3, (5, 8)),
        (7, 2, (3, 4)),
        (35, 4, (7, 9)),
        (5, 1, (1, 5)),
        (9, 9, (17, 1)),
    ],
)
def test_decompose(kernel_size, dilation, sides):
    assert decompose(kernel_size, dilation) == sides


@pytest.mark.parametrize(("kernel_size", "dilation"), [(21, 0), (21, -1), (21, 22), (0, 1)])
def test_decompose_refuses_impossible_sizes(kernel_size, dilation):
    with pytest.raises(ValueError, match=f"dilation must lie between 1 and kernel_size = {kernel_size}"):
        decompose(kernel_size, dilation)


def test_cost_by_hand():
    """K = 21, d = 3 at 64 channels: (25 + 49) * 64 + 64^2 = 8832, plain 441 * 64^2 = 1806336."""
    assert decomposed_cost(21, 3, 64).parameters == 8832
    assert plain_cost(21, 64).parameters == 1_806_336
    assert decomposed_cost(21, 3, 64, 56, 28).flops == 2 * 8832 * 56 * 28
    assert plain_cost(21, 64, 56, 28).flops == 2 * 1_806_336 * 56 * 28


@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS)
def test_cost_equals_that_of_the_modules(kernel_size, dilation):
    kernel = LargeKernel(32, kernel_size, dilation)
    biases = sum(p.numel() for name, p in kernel.named_parameters() if name.endswith("bias"))
    assert biases == 3 * 32
    assert decomposed_cost(kernel_size, dilation, 32).parameters == parameters(kernel) - biases
    assert plain_cost(kernel_size, 32).parameters == parameters(nn.Conv2d(32, 32, kernel_size, bias=False))


def test_three_is_the_cheapest_dilation_for_21():
    """VAN, section 3: 74 weights per channel, after 450, 130, 74, 85, 106, ..."""
    weights = [(decomposed_cost(21, d, 64).parameters - 64**2) // 64 for d in range(1, 22)]
    assert weights[:5] == [442, 130, 74, 85, 106]
    assert min(weights) == weights[2]
    assert weights.count(74) == 1


@pytest.mark.parametrize(("kernel_size", "dilation", "extent"), [(21, 3, 23), (7, 2, 9), (5, 1, 5)])
def test_large_kernel_reaches_its_extent(kernel_size, dilation, extent):
    """(2 d - 1) + d (ceil(K / d) - 1): for K = 21, d = 3 it is 23, slightly more than K."""
    torch.manual_seed(0)
    kernel = LargeKernel(8, kernel_size, dilation).double()
    x = noise(1, 8, 31, 31).requires_grad_()
    kernel.dilated(kernel.local(x))[0, :, 15, 15].sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero().T
    # an even kernel has one more tap below and to the right of the centre
    after, before = extent // 2, (extent - 1) // 2
    for seen in (rows, columns):
        assert (15 - seen.min().item(), seen.max().item() - 15) == (before, after)


# ---- SAM


def mhmc(m: MHMC, x: Tensor) -> Tensor:
    per_head = x.shape[1] // len(m.convs)
    return torch.cat([depthwise_taps(x[:, n * per_head : (n + 1) * per_head], c) for n, c in enumerate(m.convs)], 1)


def saa(m: SAA, x: Tensor) -> Tensor:
    """Output channel g * heads + head of the shuffle is channel head * C / heads + g of x."""
    groups = x.shape[1] // m.heads
    shuffled = torch.stack([x[:, head * groups + g] for g in range(groups) for head in range(m.heads)], 1)
    width = m.proj0.out_channels // groups
    mixed = [
        torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], shuffled[:, g * m.heads : (g + 1) * m.heads])
        for g, weight in enumerate(m.proj0.weight.split(width))
    ]
    z = torch.cat(mixed, 1) + m.proj0.bias[:, None, None]
    return linear(gelu(batch_norm(z, m.norm, m.training)), m.proj1)


def sam(m: SAM, x: Tensor) -> Tensor:
    """The formula in the docstring."""
    return linear(saa(m.saa, mhmc(m.mhmc, linear(x, m.s))) * linear(x, m.v), m.proj)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("arguments", [{}, {"heads": 2, "expand_ratio": 3}, {"heads": 1}], ids=str)
def test_sam_equals_its_formula(arguments, training):
    module = randomised(SAM(16, **arguments)).train(training)
    module.saa.norm.momentum = 0.0  # both run in training mode, and the statistics may move only once
    assert_same_with_gradients(module, sam, noise(2, 16, 13, 10))


def test_heads_of_sam_have_growing_kernels():
    assert [conv.kernel_size for conv in MHMC(16).convs] == [(3, 3), (5, 5), (7, 7), (9, 9)]
    with pytest.raises(ValueError, match="heads = 3 must divide the 16 channels"):
        MHMC(16, 3)


def test_each_group_of_saa_holds_a_channel_of_every_head():
    """With 8 channels in 4 heads, (0 1)(2 3)(4 5)(6 7) becomes (0 2 4 6)(1 3 5 7)."""
    module = SAA(8, heads=4, expand_ratio=1).eval()
    nn.init.zeros_(module.proj0.bias)
    for group, channels in enumerate([(0, 2, 4, 6), (1, 3, 5, 7)]):
        x = torch.zeros(1, 8, 1, 1)
        x[0, channels] = 1.0
        shuffled = []
        hook = module.proj0.register_forward_pre_hook(lambda _, inputs, into=shuffled: into.extend(inputs))
        module(x)
        hook.remove()
        assert shuffled[0].flatten().tolist() == [float(i // 4 == group) for i in range(8)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_saa_in_any_memory_format(memory_format):
    module, x = randomised(SAA(16)).eval(), noise(2, 16, 5, 7)
    torch.testing.assert_close(module(x.contiguous(memory_format=memory_format)), saa(module, x))


def test_sam_parameters_counted_by_hand():
    """At 32 channels: s, v, proj 1056 each; heads (9 + 25 + 49 + 81) * 8 + 32; W0 64 * 4 + 64, BN 128, W1 2080."""
    assert parameters(SAM(32)) == 3 * 1056 + 164 * 8 + 32 + 64 * 4 + 64 + 128 + 2080


# ---- softmax attention


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(B, N, C) each; one head at a time, softmax written out."""
    d = q.shape[-1] // heads
    outs = []
    for h in range(heads):
        q_h, k_h, v_h = (t[..., h * d : (h + 1) * d] for t in (q, k, v))
        weights = (q_h @ k_h.transpose(1, 2) / math.sqrt(d)).exp()
        outs.append(weights / weights.sum(-1, keepdim=True) @ v_h)
    return torch.cat(outs, -1)


def flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def value_conv_attention(m: ValueConvAttention, x: Tensor) -> Tensor:
    """The formula in the docstring."""
    kv = linear(x, m.kv)
    k, v = kv[:, : x.shape[1]], kv[:, x.shape[1] :]
    y = softmax_attention(flat(linear(x, m.q)), flat(k), flat(v), m.heads)
    return linear(y.transpose(1, 2).reshape(x.shape) + depthwise_taps(v, m.value_conv), m.proj)


@pytest.mark.parametrize("heads", [1, 4])
def test_value_conv_attention_equals_its_formula(heads):
    assert_same_with_gradients(randomised(ValueConvAttention(16, heads)), value_conv_attention, noise(2, 16, 5, 7))


def attention(m: Attention, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The formula in the docstring."""
    q, k, v = (x @ m.qkv.weight.T + (0 if m.qkv.bias is None else m.qkv.bias)).chunk(3, -1)
    y = softmax_attention(q, k, v, m.heads) @ m.proj.weight.T + m.proj.bias
    return y + v if m.value_skip else y


@pytest.mark.parametrize(
    "arguments", [{}, {"qkv_bias": False}, {"value_skip": True}, {"qkv_bias": False, "value_skip": True}], ids=str
)
@pytest.mark.parametrize(("in_dim", "dim", "heads"), [(16, 16, 4), (24, 16, 1), (12, 16, 2)])
def test_attention_equals_its_formula(in_dim, dim, heads, arguments):
    module = randomised(Attention(in_dim, dim, heads, **arguments))
    assert_same_with_gradients(module, attention, noise(2, 15, in_dim), (3, 5))


@pytest.mark.parametrize("make", [ValueConvAttention, lambda dim, heads: Attention(dim, dim, heads)])
def test_heads_must_divide_the_channels(make):
    with pytest.raises(ValueError, match="heads = 3 must divide the 16 channels"):
        make(16, 3)


def window_attention(m: WindowAttention, x: Tensor, size: tuple[int, int]) -> Tensor:
    """`attention` in each window of the map, which is padded with zeros: half of them, rounded down, come before it."""
    (H, W), s = size, m.window
    rows, columns = math.ceil(H / s), math.ceil(W / s)
    top, left = (rows * s - H) // 2, (columns * s - W) // 2
    padded = torch.zeros(x.shape[0], rows * s, columns * s, x.shape[2], dtype=x.dtype)
    padded[:, top : top + H, left : left + W] = x.unflatten(1, size)
    lines = []
    for i in range(rows):
        line = []
        for j in range(columns):
            window = padded[:, i * s : (i + 1) * s, j * s : (j + 1) * s]
            line.append(attention(m, window.flatten(1, 2), (s, s)).unflatten(1, (s, s)))
        lines.append(torch.cat(line, 2))
    return torch.cat(lines, 1)[:, top : top + H, left : left + W].flatten(1, 2)


@pytest.mark.parametrize("size", [(7, 7), (14, 7), (6, 6), (8, 13), (9, 20), (1, 2), (21, 16)], ids=str)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_window_attention_equals_a_loop_over_windows(size, qkv_bias):
    module = randomised(WindowAttention(12, 8, 2, qkv_bias))
    assert_same_with_gradients(module, window_attention, noise(2, size[0] * size[1], 12), size)


def test_window_attention_of_another_window():
    module = randomised(WindowAttention(8, 8, 1, window=4))
    assert_same_with_gradients(module, window_attention, noise(1, 54, 8), (9, 6))


def test_padding_takes_part_in_the_softmax():
    """A zero token has the bias as key and value, as in the authors' code."""
    module, x = randomised(WindowAttention(8, 8, 1)), noise(1, 36, 8)
    whole = attention(module, x, (6, 6))
    assert not torch.allclose(module(x, (6, 6)), whole)
    padded = F.pad(x.unflatten(1, (6, 6)), (0, 0, 0, 1, 0, 1))  # half of one row, rounded down, is none
    expected = attention(module, padded.flatten(1, 2), (7, 7)).unflatten(1, (7, 7))[:, :6, :6]
    torch.testing.assert_close(module(x, (6, 6)), expected.flatten(1, 2))


# ---- linear attention


def features(x: Tensor, w: Tensor) -> Tensor:
    """phi(x) = exp(w x - |x|^2 / 2) / sqrt(m)."""
    return (x @ w.T - (x * x).sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(w))


def plain_linear_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    phi_q, phi_k = features(q, w), features(k, w)
    return phi_q @ (phi_k.transpose(1, 2) @ v) / ((phi_q * phi_k.sum(1, keepdim=True)).sum(-1, keepdim=True) + 1e-8)


def tokens_and_features(scale: float) -> tuple[list[Tensor], Tensor]:
    """q, k, v at this scale and random features of length sqrt(m), in float64."""
    q, k, v = (scale * noise(2, 30, 16, seed=seed) for seed in (1, 2, 3))
    w = nn.init.orthogonal_(torch.empty(8, 16, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    return [q, k, v], math.sqrt(8) * w


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0])
def test_linear_attention_equals_its_formula(scale):
    tensors, w = tokens_and_features(scale)
    inputs = [t.requires_grad_() for t in (*tensors, w)]
    expected, actual = plain_linear_attention(*inputs), linear_attention(*inputs)
    torch.testing.assert_close(actual, expected)
    cotangent = noise(*expected.shape, seed=4)
    expected_grads = torch.autograd.grad(expected, inputs, cotangent)
    torch.testing.assert_close(torch.autograd.grad(actual, inputs, cotangent), expected_grads)


def test_linear_attention_where_1e_8_decides():
    """All features are near e^-20: the formula's result is far below the mean of the values, and so must ours be."""
    (_, _, v), w = tokens_and_features(1.0)
    q = k = torch.full((2, 30, 16), math.sqrt(20 / 16 * 2), dtype=torch.float64)
    w = w * 0
    expected = plain_linear_attention(q, k, v, w)
    assert expected.abs().max() < 1e-6 * v.abs().max()
    torch.testing.assert_close(linear_attention(q, k, v, w), expected)


def logarithmic_linear_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The same formula for exponents of any size, with the weights of all pairs of tokens as logarithms."""
    log_q, log_k = (t @ w.T - (t * t).sum(-1, keepdim=True) / 2 for t in (q, k))
    pairs = torch.logsumexp(log_q[:, :, None] + log_k[:, None], -1) - math.log(len(w))  # (B, N, N)
    largest = pairs.amax(-1, keepdim=True)
    weights = (pairs - largest).exp()
    return weights @ v / (weights.sum(-1, keepdim=True) + 1e-8 * (-largest).clamp(max=600).exp())


SHARPNESS = [
    (1.0, 1.0),
    (10.0, 1.0),  # exponents from -1400 to -150: 1e-8 outweighs everything
    (3.0, 20.0),  # from -300 to 300
    (10.0, 20.0),  # from -1300 to 900
    (10.0, 100.0),  # from -8000 to 8000
]
"""Scales of queries and keys, and of the random features. float16 ends at e^11, float32 at e^88, float64 at e^709."""


@pytest.mark.parametrize(("scale", "feature_scale"), [(0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 4.0)])
def test_logarithmic_form_equals_the_formula(scale, feature_scale):
    (q, k, v), w = tokens_and_features(scale)
    w = feature_scale * w
    torch.testing.assert_close(logarithmic_linear_attention(q, k, v, w), plain_linear_attention(q, k, v, w))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("scale", "feature_scale"), SHARPNESS)
def test_linear_attention_under_autocast(scale, feature_scale, dtype):
    """Outputs and gradients are finite even if the formula's exponentials are not, and match the formula."""
    (q, k, v), w = tokens_and_features(1.0)
    inputs = [t.to(dtype).requires_grad_() for t in (scale * q, scale * k, v)]
    w = (feature_scale * w).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = logarithmic_linear_attention(*exact, w.double())
    with torch.autocast("cpu", dtype):
        actual = linear_attention(*inputs, w)
    assert actual.dtype == dtype
    rounding = 2 * torch.finfo(dtype).eps
    assert_within(actual, expected, rounding, 1e-8)
    cotangent = noise(*expected.shape, seed=4).to(dtype)
    expected_grads = torch.autograd.grad(expected, exact, cotangent.double())
    # If one weight dominates, terms as large as the features cancel. float32 leaves some of them, because it resolves
    # exponents of thousands only to 1e-4.
    left = 5e-6 * feature_scale
    for a, e in zip(torch.autograd.grad(actual, inputs, cotangent), expected_grads, strict=True):
        assert_within(a, e, 4 * rounding, left)


def assert_within(actual: Tensor, expected: Tensor, share: float, least: float) -> None:
    """Finite, and within a fraction of the largest value, or within `least`."""
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=max(share * expected.abs().max().item(), least))


def performer(m: Performer, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The formula in the docstring, in evaluation mode."""
    k, q, v = (x @ m.kqv.weight.T + m.kqv.bias).chunk(3, -1)
    return v + plain_linear_attention(q, k, v, m.w) @ m.proj.weight.T + m.proj.bias


def test_performer_equals_its_formula():
    assert_same_with_gradients(randomised(Performer(12, 8)).eval(), performer, noise(2, 15, 12), (3, 5))


def test_random_features_are_orthogonal_of_length_sqrt_m_and_frozen():
    module = Performer(12, 8)
    torch.testing.assert_close(module.w @ module.w.T, 4 * torch.eye(4))
    assert not module.w.requires_grad
    assert "w" in module.state_dict()
    before = module.w.clone()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(2, 15, 12), (3, 5)).square().mean().backward()
        optimizer.step()
    assert torch.equal(module.w, before)


def test_performer_drops_in_training_only():
    module, x = randomised(Performer(12, 8, drop=0.5)), noise(2, 15, 12)
    assert not torch.equal(module(x, (3, 5)), module(x, (3, 5)))
    assert torch.equal(module.eval()(x, (3, 5)), module(x, (3, 5)))


# ---- cells of ViTAE


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def perceptron(x: Tensor, m: nn.Module) -> Tensor:
    return gelu(x @ m.fc1.weight.T + m.fc1.bias) @ m.fc2.weight.T + m.fc2.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def prm(m: PRM, x: Tensor) -> Tensor:
    """On the image padded with zeros below and on the right until the stride divides it; tap by tap."""
    stride, (k, _) = m.stride, m.convs[0].kernel_size
    x = F.pad(x, (0, -x.shape[3] % stride, 0, -x.shape[2] % stride))
    height, width = x.shape[2] // stride, x.shape[3] // stride
    maps = []
    for n, d in enumerate(m.dilations):
        conv = m.convs[n % len(m.convs)]
        padding = -(-((k - 1) * d + 1 - stride) // 2)  # ceil(((k - 1) d + 1 - s) / 2), as published
        wide = F.pad(x, (padding,) * 4)
        out = torch.zeros(x.shape[0], conv.out_channels, height, width, dtype=x.dtype)
        for i in range(k):
            for j in range(k):
                rows = slice(i * d, i * d + (height - 1) * stride + 1, stride)
                columns = slice(j * d, j * d + (width - 1) * stride + 1, stride)
                out = out + torch.einsum("oi,bihw->bohw", conv.weight[:, :, i, j], wide[:, :, rows, columns])
        maps.append(gelu(out + conv.bias[:, None, None]))
    return torch.cat(maps, 1) if m.concat else sum(maps)


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (15, 7), (33, 4)], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"fuse": "sum"}, {"shared": True}], ids=str)
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilations"), [(7, 4, (1, 2, 3, 4)), (3, 2, (1, 2, 3)), (3, 2, (1, 2)), (3, 1, (1, 2))]
)
def test_prm_equals_its_formula(kernel_size, stride, dilations, arguments, size):
    module = randomised(PRM(2, 3, kernel_size, stride, dilations, **arguments))
    assert module.out_dim == (3 if "fuse" in arguments else 3 * len(dilations))
    assert_same_with_gradients(module, prm, noise(2, 2, *size))


def test_paddings_of_the_pyramids():
    assert PRM(3, 8, 7, 4, (1, 2, 3, 4)).paddings == [2, 5, 8, 11]
    assert PRM(3, 8, 3, 2, (1, 2, 3)).paddings == [1, 2, 3]


def test_order_of_the_convolutions_modules():
    """As published: ViTAE's reduction cells, ViTAE's normal cells, ViTAEv2's cells, and ViTAE's largest sizes."""

    def layers(*args, **kwargs) -> str:
        letters = {nn.Conv2d: "C", nn.BatchNorm2d: "N", nn.SiLU: "S"}
        return "".join(letters[type(layer)] for layer in PCM(*args, **kwargs))

    assert layers((4, 8, 8, 4), first_norm=False, last_act=True) == "CSCNSCS"
    assert layers((4, 8, 4, 4), last_act=True) == "CNSCNSCS"
    assert layers((4, 8, 4, 4)) == "CNSCNSC"
    assert layers((4, 8, 4)) == "CNSC"


def pcm(m: PCM, x: Tensor) -> Tensor:
    """The convolutions are PyTorch's: this tests the order, the strides and the norms."""
    for layer in m:
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))
            x = F.conv2d(x, layer.weight, layer.bias, layer.stride, 1, 1, layer.groups)
        else:
            x = silu(x) if isinstance(layer, nn.SiLU) else batch_norm(x, layer, False)
    return x


def reduction_cell(m: ReductionCell, x: Tensor) -> Tensor:
    """The formula in the docstring."""
    y = prm(m.prm, m.pool(x))
    size = (y.shape[2], y.shape[3])
    kind = performer if isinstance(m.attn, Performer) else attention
    y = kind(m.attn, norm(flat(y), m.norm1), size) + flat(pcm(m.pcm, x))
    y = y + perceptron(norm(y, m.norm2), m.mlp)
    return y.transpose(1, 2).unflatten(2, size)


@pytest.mark.parametrize("size", [(8, 8), (13, 10)], ids=str)
@pytest.mark.parametrize("kind", ["performer", "transformer", "pooling"])
def test_reduction_cell_equals_its_formula(kind, size):
    pyramid = PRM(3, 4, 3, 1 if kind == "pooling" else 2, (1, 2))
    attn = Performer(8, 6) if kind == "performer" else Attention(8, 6, 2, qkv_bias=False, value_skip=True)
    pool = nn.MaxPool2d(3, 2, padding=1) if kind == "pooling" else None
    local = PCM((3, 4, 4, 6), (2, 1, 1), first_norm=False, last_act=True)
    module = randomised(ReductionCell(pyramid, attn, local, 6, pool)).eval()
    assert (module.norm1.eps, module.norm2.eps) == (1e-5, 1e-5)
    assert_same_with_gradients(module, reduction_cell, noise(2, 3, *size))


def normal_cell(m: NormalCell, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The formula in the docstring; the prefix tokens get nothing from the convolutions."""
    prefix = x.shape[1] - size[0] * size[1]
    local = flat(pcm(m.pcm, x[:, prefix:].transpose(1, 2).unflatten(2, size)))
    y = x + attention(m.attn, norm(x, m.norm1), size) + F.pad(local, (0, 0, prefix, 0))
    return y + perceptron(norm(y, m.norm2), m.mlp)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_normal_cell_equals_its_formula(prefix):
    module = NormalCell(8, Attention(8, 8, 2), PCM((8, 16, 8, 8), groups=4, last_act=True), mlp_ratio=2.0)
    assert (module.norm1.eps, module.norm2.eps, module.mlp.fc1.out_features) == (1e-6, 1e-6, 16)
    assert_same_with_gradients(randomised(module).eval(), normal_cell, noise(2, prefix + 15, 8), (3, 5))


def test_class_token_takes_part_in_attention_and_is_dropped():
    cells = [NormalCell(8, Attention(8, 8, 2), PCM((8, 8))) for _ in range(2)]
    module = randomised(CellStage(8, nn.Conv2d(3, 8, 2, 2), cells, class_token=True)).eval()
    x, size = noise(2, 3, 6, 8), (3, 4)
    tokens = torch.cat([module.cls_token.expand(2, 1, 8), flat(module.downsample(x))], 1)
    for cell in cells:
        tokens = normal_cell(cell, tokens, size)
    torch.testing.assert_close(module(x), tokens[:, 1:].transpose(1, 2).unflatten(2, size))


# ---- MLPs with a depth-wise convolution


def depthwise_mlp(m: DepthwiseMlp, x: Tensor) -> Tensor:
    """The formulas in the docstring."""
    h = linear(x, m.fc1)
    y = depthwise_taps(h, m.conv)
    return linear(gelu(h + y if m.residual else y), m.fc2)


@pytest.mark.parametrize("residual", [False, True], ids=["VAN's", "SMT's"])
def test_depthwise_mlp_equals_its_formula(residual):
    assert_same_with_gradients(randomised(DepthwiseMlp(4, 8, residual)), depthwise_mlp, noise(2, 4, 7, 5))


LAYOUTS = [torch.contiguous_format, torch.channels_last]


def copied(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    return x.detach().clone(memory_format=memory_format).requires_grad_()


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_equals_its_formula_in_any_memory_format(memory_format, dtype):
    torch.manual_seed(0)
    x, grad = 3 * torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7)
    x, grad = x.to(dtype), grad.to(dtype)
    ours, plain = copied(x, memory_format), copied(x.double(), torch.contiguous_format)
    y = GELU()(ours)
    expected = plain * 0.5 * (1 + torch.erf(plain / math.sqrt(2)))
    y.backward(grad)
    expected.backward(grad.double())
    close = dict(rtol=0, atol=1e-6) if dtype == torch.float32 else dict(rtol=2**-7, atol=1e-2)
    torch.testing.assert_close(y.double(), expected, **close)
    torch.testing.assert_close(ours.grad.double(), plain.grad, **close)
    assert y.stride() == ours.stride()


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_pixel_mean_and_its_gradient(memory_format):
    torch.manual_seed(0)
    x = copied(torch.randn(2, 8, 5, 7), memory_format)
    y = PixelMean()(x)
    grad = torch.randn(2, 8, 1, 1)
    y.backward(grad)
    torch.testing.assert_close(y.squeeze(), x.detach().flatten(2).sum(2) / 35)
    torch.testing.assert_close(x.grad, (grad / 35).expand(2, 8, 5, 7))
    assert x.grad.is_contiguous(memory_format=memory_format)


def test_gradients_before_the_gate_keep_channels_last():
    """A convolution in another memory format makes the norm before it ten times as slow."""
    torch.manual_seed(0)
    norm, mixer = nn.BatchNorm2d(32), DMA(32)
    seen = []
    norm.register_full_backward_hook(lambda _, grad_in, grad_out: seen.append(grad_out[0]))
    x = copied(torch.randn(4, 32, 6, 6), torch.channels_last)
    mixer(norm(x)).square().sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("width", [1, 2])
def test_a_strided_convolution_of_a_narrow_map_trains_in_bf16(width):
    torch.manual_seed(0)
    layer, images = StridedConv2d(16, 16, 3, stride=2, padding=1), torch.randn(2, 16, 2, width)
    layer(images).sum().backward()
    expected = layer.weight.grad
    assert expected is not None
    for _ in range(4):  # nn.Conv2d answers with what lay in the memory before
        dirt = [torch.full((size,), torch.nan) for size in (64, 1_000, 10_000, 100_000)]
        del dirt
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            answer = layer(images.to(memory_format=torch.channels_last))
        answer.float().sum().backward()
        torch.testing.assert_close(layer.weight.grad, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
