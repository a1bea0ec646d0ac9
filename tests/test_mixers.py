"""Token mixers against their formulas, written out in plain operations in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmformer.mixers.dma import DMA, LEVELS

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
# By hand, at 32 channels: expand 32 * 32 + 32 = 1056, as have reduce and proj; levels (9 + 25 + 49) * 32 = 2656;
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
    """A 1x1 convolution, as the matrix product that it is."""
    return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def dma(m: DMA, x: Tensor, dilations: list[int], training: bool) -> Tensor:
    """The docstring's formula."""
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
    """A mixer in float64 with nothing at a neutral value, images, and the dilations meant."""
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
    """The paper's extents: 3, 9 and 19 pixels. The gate sees the whole image, so it is left out."""
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
