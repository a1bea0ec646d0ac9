"""The convolutions of a fused model against separate operators, on the one-pass path and on the others."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmformer.nn.fused import FusedConv, FusedMlp
from dmformer.nn.kernels import onednn
from dmformer.nn.kernels.depthwise import plain_kernels
from dmformer.nn.over_cores import over_cores

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
CONVS = {
    "1x1": (1, 1, 0, 1, 1),
    "3x3 stride 2": (3, 2, 1, 1, 1),
    "grouped": (1, 1, 0, 1, 4),
    "depth-wise": (3, 1, 1, 1, 8),
    "dilated": (7, 1, 9, 3, 8),
    "wide": (21, 1, 10, 1, 8),
}
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def conv(kind: str = "1x1", dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    k, stride, padding, dilation, groups = CONVS[kind]
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, k, stride, padding, dilation, groups).to(dtype)
    return layer.requires_grad_(False)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


def in_float64(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return copy.deepcopy(layer).double()(x.double())


@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [(13, 40), (5, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", CONVS)
def test_activation_in_one_pass(kind, size, activation, dtype):
    layer, x = conv(kind, dtype), images(2, 8, *size, dtype=dtype)
    fused = FusedConv(layer, activation)
    one_pass = onednn.serves(dtype) and not (kind == "wide" and dtype == torch.bfloat16)
    assert fused.is_one_pass(x) == one_pass
    assert_near(fused(x), ACTIVATIONS[activation](in_float64(layer, x)), TOLERANCES[dtype])


@dtypes
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("combination", ["add", "mul"])
@pytest.mark.parametrize("kind", ["1x1", "dilated", "wide"])
def test_sum_and_product_in_one_pass(kind, combination, activation, dtype):
    layer, x, other = conv(kind, dtype), images(2, 8, 13, 40, dtype=dtype), images(2, 8, 13, 40, dtype=dtype).flip(0)
    expected = in_float64(layer, x)
    expected = expected + other if combination == "add" else expected * other
    before = other.clone()
    actual = FusedConv(layer, activation, combination)(x, other)
    assert_near(actual, ACTIVATIONS[activation](expected), TOLERANCES[dtype])
    assert torch.equal(other, before)


def test_sum_in_place():
    x = images(2, 8, 6, 7).contiguous(memory_format=torch.channels_last)
    other = x.clone(memory_format=torch.channels_last)
    out = FusedConv(conv())(x, other, inplace=True)
    assert out.data_ptr() == other.data_ptr()
    assert_near(out, conv()(x) + x, 2e-6)


def test_other_sizes_and_types_in_turn():
    fused = FusedConv(conv("dilated"))
    for size in [(13, 40), (2, 3), (13, 40), (40, 13)]:
        x = images(1, 8, *size)
        assert_near(fused(x), conv("dilated")(x), 2e-6)
    assert_near(
        fused.double()(images(1, 8, 9, 9).double()), conv("dilated").double()(images(1, 8, 9, 9).double()), 1e-12
    )


def test_new_weights_are_repacked():
    fused, x = FusedConv(conv()), images(1, 8, 4, 4)
    fused(x)
    fused.load_state_dict({"weight": torch.ones(8, 8, 1, 1), "bias": torch.zeros(8)})
    assert_near(fused(x), x.sum(1, keepdim=True).expand(1, 8, 4, 4), 2e-6)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies(again):
    fused, x = FusedConv(conv(), "gelu"), images(1, 8, 4, 4)
    expected = fused(x)
    assert torch.equal(again(fused)(x), expected)
    buffer = io.BytesIO()
    torch.save(fused.state_dict(), buffer)
    assert set(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)) == {"weight", "bias"}


def test_gradients_take_the_separate_operators():
    fused, x = FusedConv(conv("dilated"), "relu"), images(1, 8, 12, 13)
    with torch.enable_grad():
        x.requires_grad_()
        assert not fused.is_one_pass(x)
        (actual,) = torch.autograd.grad(fused(x).square().sum(), x)
        (expected,) = torch.autograd.grad(F.relu(conv("dilated")(x)).square().sum(), x)
    assert_near(actual, expected, 1e-5)


def test_where_the_fast_path_is_not_used():
    fused, x = FusedConv(conv()), images(2, 8, 4, 4)
    with plain_kernels():
        assert not fused.is_one_pass(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
    assert fused(x[:0]).shape == (0, 8, 4, 4)
    with pytest.raises(RuntimeError):
        fused(x.bfloat16())  # like any convolution: weights of another type
    assert torch.equal(torch.compile(fused, backend="eager", fullgraph=True)(x), conv()(x))
    graph = torch.export.export(fused, (x,)).graph
    assert [str(n.target) for n in graph.nodes if n.op == "call_function"] == ["aten.conv2d.default"]


def test_many_threads_at_once():
    fused = FusedConv(conv("dilated"), "relu")
    inputs = [images(1, 8, 10 + i % 3, 11) for i in range(24)]
    expected = [F.relu(conv("dilated")(x)) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda x: torch.no_grad()(fused)(x), inputs)
        for actual, wanted in zip(results, expected, strict=True):
            assert_near(actual, wanted, 2e-6)


@pytest.mark.parametrize("inplace", [False, True])
def test_mlp_in_slices(inplace, monkeypatch):
    torch.manual_seed(0)
    fc1, fc2 = (nn.Conv2d(8, 32, 1), nn.Conv2d(32, 8, 1))
    mlp = FusedMlp(nn.Identity(), FusedConv(fc1, "gelu"), nn.Identity(), FusedConv(fc2)).requires_grad_(False)
    x = images(5, 8, 6, 7).contiguous(memory_format=torch.channels_last)
    before, expected = x.clone(), x + fc2(F.gelu(fc1(x)))
    monkeypatch.setattr("dmformer.nn.fused.HIDDEN_BYTES", 2 * 32 * 6 * 7 * 4)  # two images at a time
    assert_near(mlp(x, inplace), expected, 2e-6)
    assert torch.equal(x, before) != inplace


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_of_a_batch_over_cores_equal_the_whole(count, two_threads):
    x, layer, seen = images(count, 8, 6, 6), conv("3x3 stride 2"), []

    def model(part: Tensor) -> Tensor:
        seen.append((len(part), torch.get_num_threads(), torch.is_grad_enabled()))
        return layer(part)

    torch.testing.assert_close(over_cores(model, x), layer(x), rtol=0, atol=1e-6)
    assert sum(n for n, _, _ in seen) == count
    assert not any(gradients for _, _, gradients in seen)
    if count > 1:
        assert {threads for _, threads, _ in seen} == {1}
    assert torch.get_num_threads() == 2


def test_parts_over_cores_follow_autocast_and_keep_errors(two_threads):
    x, layer = images(4, 8, 6, 6), conv()
    with torch.autocast("cpu", torch.bfloat16):
        out = over_cores(layer, x)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, layer(x))
    with pytest.raises(RuntimeError, match="channels"):
        over_cores(layer, images(4, 5, 6, 6))


def test_gradients_flow_through_all_parts(two_threads):
    x = images(4, 8, 6, 6).requires_grad_()
    with torch.enable_grad():
        over_cores(conv(), x).sum().backward()
    assert x.grad is not None
