"""`kernels.depthwise` against PyTorch's convolutions in float64, and the graphs that must not contain it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmformer.nn.kernels import cpu, depthwise
from dmformer.nn.kernels.depthwise import depthwise_sum, is_fast_path
from dmformer.nn.layers import DepthwiseConv, DepthwiseSum

LEVELS = {
    "dma": ((3, 1), (5, 2), (7, 3)),
    "undilated": ((3, 1), (5, 1), (7, 1)),
    "7x7d3": ((7, 3),),
    "5x5d2": ((5, 2),),
    "21x21": ((21, 1),),
    "pointwise": ((1, 1), (1, 4)),
    "twice": ((3, 2), (3, 2)),
}
SIZES = [(14, 14), (13, 22), (1, 1), (2, 3), (5, 33)]  # the last three are smaller than the reach of DMA, 9 pixels
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}
"""Largest error over the largest value. bfloat16 has 8 bits, so 1/256 per rounding; each level is rounded once."""


def make(levels, size, dtype=torch.float32, memory_format=torch.contiguous_format, batch=2, channels=8):
    """Input, weights, dilations and an output gradient, rounded to dtype."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, *size).to(dtype, memory_format=memory_format)
    grad = torch.randn(batch, channels, *size).to(dtype, memory_format=memory_format)
    weights = [torch.randn(channels, 1, k, k).to(dtype) for k, _ in levels]
    return x, weights, [d for _, d in levels], grad


def reference(x: Tensor, weights: list[Tensor], dilations: list[int]) -> Tensor:
    return sum(
        F.conv2d(x, w, padding=d * (w.shape[-1] // 2), dilation=d, groups=x.shape[1])
        for w, d in zip(weights, dilations, strict=True)
    )


def with_gradients(function, x, weights, dilations, grad, dtype=None) -> list[Tensor]:
    """The output, and the gradients with respect to x and each weight."""
    x, *weights = (t.detach().clone().to(dtype).requires_grad_() for t in (x, *weights))
    out = function(x, weights, dilations)
    return [out.detach(), *torch.autograd.grad(out, [x, *weights], grad.to(out.dtype))]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=tolerance * e.abs().max().item())


def check(levels, size, dtype, memory_format=torch.contiguous_format) -> None:
    arguments = make(levels, size, dtype, memory_format)
    actual = with_gradients(depthwise_sum, *arguments)
    assert {t.dtype for t in actual} == {dtype}
    assert_near(actual, with_gradients(reference, *arguments, dtype=torch.float64), TOLERANCES[dtype])


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_equals_convolutions(levels, size, memory_format):
    check(levels, size, torch.float32, memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(13, 22), (2, 3)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_equals_convolutions_in_other_dtypes(levels, size, dtype):
    check(levels, size, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("size", [*SIZES, (30, 5)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("strips", [True, False], ids=["strips", "products"])
def test_weight_gradients_either_way(levels, size, dtype, strips, monkeypatch):
    monkeypatch.setattr(cpu, "is_made_of_strips", lambda *_: strips)
    check(levels, size, dtype, torch.channels_last if strips else torch.contiguous_format)


@pytest.mark.parametrize("strips", [True, False], ids=["strips", "products"])
def test_gradcheck(strips, monkeypatch):
    monkeypatch.setattr(cpu, "is_made_of_strips", lambda *_: strips)
    x, weights, dilations, _ = make(((3, 1), (5, 2)), (3, 4), torch.float64, channels=1)
    inputs = [t.requires_grad_() for t in (x, *weights)]
    assert torch.autograd.gradcheck(lambda x, *w: depthwise_sum(x, w, dilations), inputs)


def test_second_derivatives_are_refused():
    x, weights, dilations, _ = make(LEVELS["dma"], (6, 6))
    loss = depthwise_sum(x.requires_grad_(), weights, dilations).pow(2).sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("wanted", [0, 2], ids=["only x", "only one weight"])
def test_gradients_of_a_part(wanted):
    arguments = make(LEVELS["dma"], (13, 22))
    expected = with_gradients(reference, *arguments, dtype=torch.float64)[1 + wanted]
    x, weights, dilations, grad = arguments
    inputs = [x, *weights]
    inputs[wanted].requires_grad_()
    depthwise_sum(x, weights, dilations).backward(grad)
    assert [t.grad is not None for t in inputs] == [i == wanted for i in range(len(inputs))]
    assert_near([inputs[wanted].grad], [expected], TOLERANCES[torch.float32])


def test_without_gradients():
    x, weights, dilations, _ = make(LEVELS["dma"], (13, 22))
    assert not depthwise_sum(x, weights, dilations).requires_grad
    with torch.inference_mode():
        actual = depthwise_sum(x, weights, dilations)
    assert_near([actual], [reference(x.double(), [w.double() for w in weights], dilations)], TOLERANCES[torch.float32])


def test_input_and_weights_are_not_modified():
    x, weights, dilations, grad = make(LEVELS["dma"], (13, 22), memory_format=torch.channels_last)
    before = [t.clone() for t in (x, *weights, grad)]
    for t in (x, *weights):
        t.requires_grad_()
    depthwise_sum(x, weights, dilations).backward(grad)
    for tensor, copy in zip((x, *weights, grad), before, strict=True):
        assert torch.equal(tensor.detach(), copy)


@pytest.mark.parametrize("size", [(12, 12), (13, 22)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_result_is_channels_last(levels, memory_format, size):
    x, weights, dilations, _ = make(levels, size, memory_format=memory_format)
    assert depthwise_sum(x, weights, dilations).is_contiguous(memory_format=torch.channels_last)


def test_autocast():
    x, weights, dilations, grad = make(LEVELS["dma"], (13, 22))
    with torch.autocast("cpu", torch.bfloat16):
        actual = with_gradients(depthwise_sum, x, weights, dilations, grad)
    assert [t.dtype for t in actual] == [torch.bfloat16] + [torch.float32] * 4
    rounded = [t.bfloat16() for t in (x, *weights, grad)]
    expected = with_gradients(reference, rounded[0], rounded[1:-1], dilations, rounded[-1], dtype=torch.float64)
    assert_near(actual, expected, TOLERANCES[torch.bfloat16])


# ---- the layer, and when it falls back to PyTorch


@pytest.fixture
def layer() -> DepthwiseSum:
    torch.manual_seed(0)
    return DepthwiseSum(8, LEVELS["dma"])


IMAGES = torch.randn(2, 8, 13, 22, generator=torch.Generator().manual_seed(1))


def is_fast(out: Tensor) -> bool:
    return out.grad_fn is not None and "DepthwiseSum" in out.grad_fn.name()


def test_layer_is_fast_on_a_cpu_and_plain_on_request(layer, monkeypatch):
    fast = layer(IMAGES)
    assert is_fast(fast)
    monkeypatch.setattr(depthwise, "MODE", "plain")
    plain = layer(IMAGES)
    assert not is_fast(plain)
    assert_near([fast], [plain], TOLERANCES[torch.float32])


def test_other_devices_and_proxies_are_plain(layer):
    assert not is_fast_path(torch.empty(1, device="meta"))
    assert not is_fast_path(fx.Proxy(fx.Node(fx.Graph(), "x", "placeholder", "x", (), {})))
    assert layer.to("meta")(IMAGES.to("meta")).shape == IMAGES.shape


def call_targets(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op.startswith("call")]


@pytest.mark.slow
def test_compiled_graph_is_plain(layer):
    graphs = []

    def keep(graph_module, example_inputs):
        graphs.append(graph_module.graph)
        return graph_module.forward

    compiled = torch.compile(layer, backend=keep, fullgraph=True)
    assert_near([compiled(IMAGES)], [layer(IMAGES)], TOLERANCES[torch.float32])
    (targets,) = map(call_targets, graphs)
    assert sum("conv2d" in target for target in targets) == 3
    assert sum("add" in target for target in targets) == 2
    assert len(targets) == 5


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.export
@pytest.mark.slow
def test_exported_graph_is_plain(layer, strict):
    program = torch.export.export(layer, (IMAGES,), strict=strict)
    targets = call_targets(program.graph)
    assert sorted(targets) == ["aten.add.Tensor"] * 2 + ["aten.conv2d.default"] * 3
    decomposed = call_targets(program.run_decompositions().graph)
    assert sorted(decomposed) == ["aten.add.Tensor"] * 2 + ["aten.convolution.default"] * 3
    assert_near([program.module()(IMAGES)], [layer(IMAGES)], TOLERANCES[torch.float32])


def test_symbolic_trace_is_plain(layer):
    traced = fx.symbolic_trace(layer)
    modules = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert modules == ["convs.0", "convs.1", "convs.2"]
    assert_near([traced(IMAGES)], [layer(IMAGES)], TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    "make_script", [torch.jit.script, lambda layer: torch.jit.trace(layer, IMAGES)], ids=["script", "trace"]
)
def test_torchscript_is_plain(layer, make_script):
    script = make_script(layer)
    graph = str(script.inlined_graph)
    assert graph.count("aten::conv2d(") + graph.count("aten::_convolution(") == 3
    assert "PythonOp" not in graph
    assert_near([script(IMAGES)], [layer(IMAGES)], TOLERANCES[torch.float32])


# ---- one convolution with a bias

KERNELS = [(3, 1), (3, 2), (5, 1), (7, 3), (9, 1), (21, 1), (1, 1)]
EVEN = [(4, 1), (6, 4), (8, 3)]
"""(kernel size, dilation). With an odd dilation the padding is odd: the extra row is below, the column at the right."""


def conv(kernel_size: int, dilation: int) -> DepthwiseConv:
    torch.manual_seed(0)
    layer = DepthwiseConv(8, kernel_size, dilation)
    nn.init.normal_(layer.bias)
    return layer


def conv_with_gradients(layer: DepthwiseConv, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients with respect to x, the kernel and the bias."""
    x = x.detach().clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, layer.weight, layer.bias], grad.to(out.dtype))]


def framework(layer: DepthwiseConv) -> nn.Conv2d:
    """PyTorch's convolution with the same weights, in float64."""
    plain = nn.Conv2d(8, 8, layer.kernel_size, padding="same", dilation=layer.dilation, groups=8)
    plain.load_state_dict(layer.state_dict())
    return plain.double()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # the reference does, not the layer
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(14, 14), (13, 22), (2, 3), (1, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("kernel_size", "dilation"), [*KERNELS, *EVEN])
def test_conv_with_bias_equals_the_framework(kernel_size, dilation, size, memory_format):
    layer = conv(kernel_size, dilation)
    x, _, _, grad = make(((3, 1),), size, memory_format=memory_format)
    expected = conv_with_gradients(framework(layer), x.double(), grad.double())
    assert_near(conv_with_gradients(layer, x, grad), expected, TOLERANCES[torch.float32])
    assert_near([expected[3]], [grad.double().sum((0, 2, 3))], TOLERANCES[torch.float64])


@pytest.mark.parametrize(("kernel_size", "dilation"), [*KERNELS, *EVEN])
def test_conv_is_fast_where_that_helps(kernel_size, dilation, monkeypatch):
    layer = conv(kernel_size, dilation)
    gains = kernel_size % 2 == 1 and (kernel_size > 3 or dilation > 1)
    fast = layer(IMAGES)
    assert is_fast(fast) == gains
    monkeypatch.setattr(depthwise, "MODE", "plain")
    plain = layer(IMAGES)
    assert not is_fast(plain)
    assert_near([fast], [plain], TOLERANCES[torch.float32])


@pytest.mark.parametrize("wanted", ["bias", "weight"])
def test_conv_with_one_part_frozen(wanted):
    layer = conv(7, 3)
    x, _, _, grad = make(((3, 1),), (13, 22))
    expected = conv_with_gradients(framework(layer), x.double(), grad.double())
    layer.requires_grad_(False)
    getattr(layer, wanted).requires_grad_()
    layer(x).backward(grad)
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == [wanted]
    place = {"weight": 2, "bias": 3}[wanted]
    assert_near([getattr(layer, wanted).grad], [expected[place]], TOLERANCES[torch.float32])


def test_conv_under_autocast():
    layer = conv(7, 3)
    x, _, _, grad = make(((3, 1),), (13, 22))
    with torch.autocast("cpu", torch.bfloat16):
        actual = conv_with_gradients(layer, x, grad)
    assert [t.dtype for t in actual] == [torch.bfloat16] + [torch.float32] * 3
    rounded = framework(layer).bfloat16().double()
    expected = conv_with_gradients(rounded, x.bfloat16().double(), grad.bfloat16().double())
    assert_near(actual, expected, TOLERANCES[torch.bfloat16])


@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 3), (8, 3)])
@pytest.mark.export
def test_conv_in_graphs_is_plain(kernel_size, dilation):
    layer = conv(kernel_size, dilation)
    expected = layer(IMAGES)
    program = torch.export.export(layer, (IMAGES,))
    padded = ["aten.pad.default"] if kernel_size % 2 == 0 else []
    assert call_targets(program.graph) == [*padded, "aten.conv2d.default"]
    assert_near([program.module()(IMAGES)], [expected], TOLERANCES[torch.float32])
    assert_near([torch.jit.script(layer)(IMAGES)], [expected], TOLERANCES[torch.float32])
    assert_near([torch.compile(layer, backend="eager", fullgraph=True)(IMAGES)], [expected], TOLERANCES[torch.float32])
