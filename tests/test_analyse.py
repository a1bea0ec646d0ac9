"""The measures of `dmformer analyse` against known answers, and the command."""

import csv
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import COLOURS, make_photo
from PIL import Image
from torch import Tensor, nn

import dmformer  # noqa: F401 (registers the models)
from dmformer.cli.analyse import AnalyseOptions
from dmformer.cli.analyse import analyse as command
from dmformer.interpret import attention_distance, names, plots
from dmformer.interpret.analyse import MEASURES, analyse, find_photos
from dmformer.interpret.attention_distance import (
    Weights,
    attention_distances,
    attentions,
    mean_distances,
    uniform_distance,
    weights_of,
)
from dmformer.interpret.components import principal_components, scaled
from dmformer.interpret.gates import Moments, between_classes, branches, class_channels, read_gates, variances
from dmformer.interpret.hooks import blocks, deepest_blocks
from dmformer.interpret.modulators import chosen_blocks, high_frequencies, read_modulators
from dmformer.interpret.receptive_field import receptive_fields, relative_receptive_fields, smallest_area
from dmformer.interpret.similarity import Alignment, centred_gram, cka
from dmformer.interpret.subject import Subject, open_subject
from dmformer.nn.mixers.attention import Attention, ValueConvAttention
from dmformer.nn.mixers.dma import DMA
from dmformer.nn.mixers.performer import Performer
from dmformer.nn.mixers.window import WindowAttention
from dmformer.tasks.classification.classifier import save_classifier
from dmformer.tasks.segmentation.segmenter import SegmenterConfig, save_segmenter
from dmformer.utils.errors import UserError

TINY = dict(dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_classes=3)
TINY_SMT = dict(dims=[16, 16, 32, 32], depths=[1, 1, 4, 1], heads=(2, 4), num_classes=3)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def subject_of(model: nn.Module, stages: list[str] | None = None, strides: list[int] | None = None) -> Subject:
    """A model as `open_subject` returns it, for tests of the measures alone."""
    if stages is None or strides is None:
        info = model.feature_info
        stages, strides = [entry["module"] for entry in info], [entry["reduction"] for entry in info]
    transform = lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255  # noqa: E731
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Subject("model", model.eval(), stages, strides, ["0"], zero, one, None, transform)


def tiny(name: str, **arguments) -> Subject:
    torch.manual_seed(0)
    return subject_of(timm.create_model(name, **arguments))


# ---- attention distance


def attended(module: nn.Module, *inputs) -> Tensor:
    """What an attention module passes to its last projection."""
    given = []
    hook = module.proj.register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
    module.eval()(*inputs)
    hook.remove()
    return given[0]


@pytest.mark.parametrize("kind", ["map", "tokens", "class token", "windows", "linear"])
@torch.no_grad()
def test_weights_times_values_are_what_the_module_computes(kind):
    torch.manual_seed(0)
    size, heads = (5, 9), 2
    if kind == "map":
        module, inputs = ValueConvAttention(8, heads), (3 * noise(2, 8, *size),)
    elif kind == "windows":  # 5 x 9 is padded to 6 x 9
        module, inputs = WindowAttention(6, 8, heads, window=3), (3 * noise(2, 45, 6), size)
    elif kind == "linear":
        module, inputs = Performer(6, 8), (noise(2, 45, 6), size)
    else:
        module, inputs = Attention(6, 8, heads), (3 * noise(2, 45 + (kind == "class token"), 6), size)
    module, inputs = module.double(), (inputs[0].double(), *inputs[1:])
    weights = weights_of(module, inputs)
    computed = (weights.rows() @ weights.values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(weights.rows().sum(-1), torch.ones(weights.rows().shape[:3]).double())
    expected = attended(module, *inputs)
    if kind == "map":
        values = module.kv(inputs[0]).chunk(2, 1)[1]
        expected = (expected - module.value_conv(values)).flatten(2).transpose(1, 2)
    if kind == "linear":  # the module adds 1e-8 to the row sums; here it is written out
        keys, queries, _ = module.kqv(inputs[0]).chunk(3, -1)
        phi = [torch.exp(x @ module.w.T - x.square().sum(-1, keepdim=True) / 2) / 2 for x in (queries, keys)]
        sums = (phi[0] * phi[1].sum(1, keepdim=True)).sum(-1, keepdim=True)
        torch.testing.assert_close(weights.rows()[:, 0], phi[0] @ phi[1].transpose(1, 2) / sums)
        expected = expected * (sums + 1e-8) / sums
    torch.testing.assert_close(computed, expected)
    assert weights.real.sum() == 45
    assert weights.real.numel() == {"class token": 46, "windows": 54}.get(kind, 45)


def plain_weights(queries: Tensor, keys: Tensor, size: tuple[int, int], before: int = 0) -> Weights:
    return Weights(queries, keys, keys, *attention_distance._places(before + size[0] * size[1], size))


def mean_distance(places: list[tuple[int, int]]) -> float:
    """Between all pairs, including each position with itself."""
    return float(np.mean([math.dist(p, q) for p in places for q in places]))


def test_equal_weights_give_the_mean_distance():
    row = plain_weights(torch.zeros(1, 1, 7, 4), noise(1, 1, 7, 4), (1, 7))
    assert mean_distances(row).item() == pytest.approx((7**2 - 1) / (3 * 7), rel=1e-6)
    grid = plain_weights(torch.zeros(2, 3, 15, 4), noise(2, 3, 15, 4), (3, 5))
    expected = mean_distance(list(itertools.product(range(3), range(5))))
    torch.testing.assert_close(mean_distances(grid), torch.full((2, 3), expected))
    assert uniform_distance(plain_weights(noise(2, 3, 15, 4), noise(2, 3, 15, 4), (3, 5))) == pytest.approx(expected)


def test_attention_to_itself_has_distance_0_and_to_the_neighbour_1():
    own = 100 * torch.eye(6)[None, None]
    assert mean_distances(plain_weights(own, own, (2, 3))).item() == 0
    neighbour = own[:, :, [1, 0, 3, 2, 5, 4]]  # of a row of six positions, grouped in pairs
    assert mean_distances(plain_weights(neighbour, own, (1, 6))).item() == pytest.approx(1)


def test_class_token_is_neither_query_nor_key():
    """Nine tenths of the weight lies on one position, the rest is spread evenly over three."""
    keys = torch.log(torch.tensor([27.0, 1, 1, 1])).reshape(1, 1, 4, 1)
    weights = plain_weights(torch.ones(1, 1, 4, 1), keys, (1, 3), before=1)
    torch.testing.assert_close(weights.rows()[0, 0, 2], torch.tensor([0.9, 1 / 30, 1 / 30, 1 / 30]))
    assert mean_distances(weights).item() == pytest.approx((3**2 - 1) / 9)


def test_window_padding_is_ignored():
    """4 x 4 in windows of 3 is padded to 6 x 6, one on each side: each window, a corner, holds 2 x 2 positions."""
    module = WindowAttention(4, 4, 1, window=3)
    nn.init.zeros_(module.qkv.weight)
    nn.init.zeros_(module.qkv.bias)
    weights = weights_of(module, (noise(2, 16, 4), (4, 4)))
    assert weights.real.sum(1).tolist() == [4, 4, 4, 4]
    expected = mean_distance(list(itertools.product(range(2), range(2))))
    torch.testing.assert_close(mean_distances(weights), torch.full((2, 1), expected))


def test_distances_do_not_depend_on_the_chunk_size(monkeypatch):
    weights = plain_weights(noise(2, 3, 21, 4), noise(2, 3, 21, 4, seed=1), (3, 7), before=0)
    whole = mean_distances(weights)
    assert 0.5 < whole.min() < whole.max() < 4
    monkeypatch.setattr(attention_distance, "AT_ONCE", 2 * 3 * 21 * 4)  # four queries at a time
    torch.testing.assert_close(mean_distances(weights), whole)


def test_distances_of_models_are_in_pixels():
    subject = tiny("smt_t", **TINY_SMT)
    mixer = subject.module("stages.2.blocks.1.mixer")
    nn.init.zeros_(mixer.q.weight)
    layers = attention_distances(subject, [noise(2, 3, 96, 64), noise(1, 3, 96, 64, seed=1)])
    assert [(d.name, d.kind, d.stage, d.stride, d.pixels.shape) for d in layers] == [
        ("stages.2.blocks.1.mixer", "attention", 3, 16, (3, 2)),
        ("stages.2.blocks.3.mixer", "attention", 3, 16, (3, 2)),
        ("stages.3.blocks.0.mixer", "attention", 4, 32, (3, 4)),
    ]
    uniform = 16 * mean_distance(list(itertools.product(range(6), range(4))))
    assert layers[0].uniform == pytest.approx(uniform)
    torch.testing.assert_close(layers[0].pixels, torch.full((3, 2), uniform))
    assert not torch.allclose(layers[1].pixels, torch.full((3, 2), uniform), rtol=1e-4)


def test_finds_the_attention_of_every_family():
    kinds = {
        "vitae_t": ["Performer", "Performer", *["Attention"] * 7],
        "vitaev2_s": [*["WindowAttention"] * 6, *["Attention"] * 12],
        "dmformer_n": [],
    }
    for name, expected in kinds.items():
        subject = subject_of(timm.create_model(name, device="meta"))
        found = attentions(subject)
        assert [type(module).__name__ for _, module, _, _ in found] == expected
        assert all(2 ** (stage + 1) == stride for _, _, stage, stride in found)


# ---- receptive field


def convs(*layers: nn.Conv2d) -> Subject:
    """Convolutions of ones, without bias, as a one-stage model."""
    for layer in layers:
        nn.init.ones_(layer.weight)
    stride = math.prod(layer.stride[0] for layer in layers)
    return subject_of(nn.Sequential(nn.Sequential(*layers)), ["0"], [stride])


def ones(before: int, side: int, stride: int = 1, padding: int | None = None) -> nn.Conv2d:
    return nn.Conv2d(before, 1, side, stride, side // 2 if padding is None else padding, bias=False)


@pytest.mark.parametrize("size", [(15, 15), (16, 20), (21, 11)], ids=str)
def test_receptive_field_of_two_convolutions_of_ones(size):
    """Each colour's gradient is the outer product of 1 2 3 2 1 with itself: its sum is 81, its sum of squares 361."""
    (field,) = receptive_fields(convs(ones(3, 3), ones(1, 3)), [noise(2, 3, *size), noise(1, 3, *size)])
    row = torch.tensor([1.0, 2, 3, 2, 1]).double()
    top, left = size[0] // 2 - 2, size[1] // 2 - 2
    expected = torch.zeros(size).double()
    expected[top : top + 5, left : left + 5] = row[:, None] * row
    torch.testing.assert_close(field.contribution, 3 * expected)
    torch.testing.assert_close(field.energy, 3 * expected.square())
    # 81, then four of 36, then four of 16, four of 9, eight of 4, four of 1
    assert [field.area(share) for share in (0.2, 0.5, 0.6, 0.9, 0.95, 1)] == [1, 4, 5, 13, 18, 25]
    # 9 of 81 in the centre, 49 in the 3 x 3 around it
    area = size[0] * size[1]
    assert [field.square(share) for share in (0.1, 0.2, 0.6, 0.99)] == [
        (1, pytest.approx(1 / area)),
        (3, pytest.approx(9 / area)),
        (3, pytest.approx(9 / area)),
        (5, pytest.approx(25 / area)),
    ]
    # log10(1 + 27), four of log10(1 + 18) and of log10(1 + 12), ...: the logarithm makes them more similar
    logs = [math.log10(1 + 3 * value) for value in expected.flatten().tolist()]
    inner = sum(math.log10(1 + 3 * v) for v in expected[top + 1 : top + 4, left + 1 : left + 4].flatten().tolist())
    assert inner / sum(logs) < 0.5
    assert field.square(0.5, log=True)[0] == 5
    assert field.square(0.5)[0] == 3


@pytest.mark.parametrize("size", [(16, 16), (18, 23)], ids=str)
def test_receptive_field_of_a_patch_embedding(size):
    """A network that sees a single cell, which is the one below and to the right of the centre of an even map."""
    (field,) = receptive_fields(convs(ones(3, 4, 4, 0)), [noise(1, 3, *size)])
    assert [field.area(share) for share in (0.5, 0.95, 0.99)] == [8, 16, 16]
    assert field.square(0.99) == (4, pytest.approx(16 / (size[0] * size[1])))
    rows, columns = field.energy.nonzero().T
    assert (rows.min(), rows.max()) == (8, 11)
    assert (columns.min(), columns.max()) == (8, 11)


def test_a_field_ends_at_the_border():
    (field,) = receptive_fields(convs(ones(3, 31)), [noise(1, 3, 9, 7)])
    assert field.area(0.95) == math.ceil(0.95 * 63)
    assert field.area(1) == 63
    side, share = field.square(0.99)
    assert (side, share) == (9, 1)


def models_with_maps() -> dict[str, Subject]:
    return {
        "dmformer": tiny("dmformer_n", **TINY),
        "vitae": tiny("vitae_t", depth=2, num_classes=3),
        "vitae plain": tiny("vitae_b", dim=32, depth=2, heads=2, img_size=(64, 96)),
        "vit": tiny("vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3, img_size=(64, 96)),
        "swin": tiny(
            "swin_tiny_patch4_window7_224",
            embed_dim=12,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 2),
            img_size=(64, 96),
            window_size=2,
        ),
    }


@pytest.mark.parametrize("name", ["dmformer", "vitae", "vitae plain", "vit", "swin"])
@pytest.mark.slow
def test_fields_of_models_are_the_gradients_of_their_maps(name):
    subject = models_with_maps()[name]
    if name == "swin":
        subject = Subject(**{**vars(subject), "stages": [f"layers.{i}" for i in range(4)]})
        assert subject.channels_last_maps
    images = noise(2, 3, 64, 96).requires_grad_()
    maps = subject.model.forward_intermediates(images, norm=False, intermediates_only=True)
    fields = receptive_fields(subject, [images.detach()[:1], images.detach()[1:]])
    assert len(fields) == len(maps)
    for field, features in zip(fields, maps, strict=True):
        unit = features[:, :, features.shape[2] // 2, features.shape[3] // 2].sum()
        gradient = torch.autograd.grad(unit, images, retain_graph=True)[0].double()
        scale = gradient.abs().max().item()
        assert scale > 0
        energy, contribution = gradient.square().sum(1).mean(0), gradient.clamp(min=0).sum(1).mean(0)
        torch.testing.assert_close(field.energy, energy, rtol=1e-3, atol=1e-5 * scale**2)
        torch.testing.assert_close(field.contribution, contribution, rtol=1e-3, atol=1e-4 * scale)


def test_relative_fields_of_plain_blocks():
    """Ones over 3 x 3, the same with a skip connection, and nothing but the skip."""

    class Skip(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.conv, self.scale = ones(1, 3), scale
            nn.init.ones_(self.conv.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.conv(x)

    model = nn.Sequential(ones(3, 1, 2, 0), nn.Sequential(ones(1, 3), Skip(1.0), Skip(0.0)))
    nn.init.ones_(model[1][0].weight)
    fields = relative_receptive_fields(subject_of(model, ["0", "1"], [2, 2]), [noise(2, 3, 20, 24)])
    assert [field.block.label for field in fields] == ["1", "2.1", "2.2", "2.3"]
    fields = fields[1:]
    assert all(field.energy.shape == (10, 12) for field in fields)
    side = 120**0.5
    assert [field.relative_side(0.95) for field in fields] == pytest.approx([3 / side, 3 / side, 1 / side])
    # the first adds eight ones to the centre that it keeps, the second nine, the last nothing
    assert [field.relative_side(0.95, added=True) for field in fields[:2]] == pytest.approx([8**0.5 / side, 3 / side])
    assert fields[1].relative_side(0.5, added=True) == pytest.approx(5**0.5 / side)
    assert fields[2].added.sum() == 0
    # five of nine ones hold half; with the skip the centre is 2 and holds a third of 12, so three hold half
    assert [field.relative_side(0.5) for field in fields] == pytest.approx([5**0.5 / side, 3**0.5 / side, 1 / side])


def test_deepest_stage_and_its_kinds():
    smt = tiny("smt_t", **TINY_SMT)
    found = deepest_blocks(smt)
    assert [(b.label, b.kind) for b in found] == [
        ("3.1", "SAM"),
        ("3.2", "attention"),
        ("3.3", "SAM"),
        ("3.4", "attention"),
    ]
    fields = relative_receptive_fields(smt, [noise(1, 3, 96, 96)])
    local, everywhere = fields[0].energy, fields[1].energy
    assert (local[3 - 1 : 3 + 2, 3 - 1 : 3 + 2].sum() / local.sum()) > 0.4
    assert (everywhere > 0).all()
    # the MLP's 3x3 and the value's 3x3 reach two positions, SAM's 9x9 and the MLP's five
    vitae = tiny("vitae_t", depth=3, num_classes=3)
    assert [b.name for b in deepest_blocks(vitae)] == [f"stages.2.blocks.{i}" for i in range(3)]
    assert [b.label for b in blocks(vitae)] == ["1", "2", "3.1", "3.2", "3.3"]
    assert [b.label for b in deepest_blocks(tiny("dmformer_n", **{**TINY, "depths": [1, 2, 2, 2]}))] == ["3.1", "3.2"]
    resnet = subject_of(timm.create_model("resnet18", device="meta"))
    assert [b.name for b in deepest_blocks(resnet)] == ["layer3.0", "layer3.1"]
    with_class_token = tiny("vitae_b", dim=32, depth=2, heads=2, img_size=64)
    (first, _) = relative_receptive_fields(with_class_token, [noise(1, 3, 64, 64)])
    assert first.energy.shape == (4, 4)


def test_smallest_area_of_equal_energy():
    assert [smallest_area(torch.ones(4, 5), share) for share in (0.05, 0.5, 0.51, 1)] == [1, 10, 11, 20]


# ---- gates


@pytest.mark.parametrize("levels", [((3, 1), (5, 2), (7, 3)), ((7, 3),)], ids=str)
@torch.no_grad()
def test_branches_add_up_to_the_sum(levels):
    torch.manual_seed(0)
    mixer = DMA(8, levels=levels).eval()
    x = noise(2, 8, 21, 14)
    torch.testing.assert_close(torch.stack(branches(mixer, x)).sum(0), mixer.levels(x), atol=1e-5, rtol=1e-5)


def test_branch_shares_are_covariances():
    parts = [[noise(3, 4, 5, 6, seed=s) * (1 + s % 3) for s in (i, i + 1)] for i in (0, 10)]
    parts = [[a, b + 0.5 * a + 1, -0.3 * a] for a, b in parts]
    moments = Moments()
    for terms in parts:
        moments.add(terms)
    shares, rms = moments.result()
    whole = [torch.cat([batch[level] for batch in parts]).transpose(0, 1).flatten(1).double() for level in range(3)]
    total = sum(whole)
    cov = [((b - b.mean(1, keepdim=True)) * (total - total.mean(1, keepdim=True))).mean(1).sum() for b in whole]
    expected = torch.stack(cov) / total.var(1, correction=0).sum()
    torch.testing.assert_close(shares, expected, rtol=1e-5, atol=1e-6)
    assert shares.sum().item() == pytest.approx(1)
    assert shares[2] < 0
    torch.testing.assert_close(rms, torch.stack([b.square().mean().sqrt() for b in whole]), rtol=1e-5, atol=1e-6)


def test_variances_of_gates():
    channel, image = torch.linspace(0.1, 0.9, 5), torch.linspace(0.2, 0.6, 7)
    assert variances(channel.expand(7, 5)).input_share == 0
    assert variances(image[:, None].expand(7, 5)).input_share == pytest.approx(1)
    assert variances(torch.full((7, 5), 0.5)).input_share == 0
    gates = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) * channel
    parts = variances(gates)
    assert parts.across_images + parts.across_channels == pytest.approx(gates.double().var(correction=0).item())
    assert parts.across_images == pytest.approx(np.var(gates.double().numpy(), axis=0).mean())


def test_share_between_classes():
    labels = torch.tensor([0, 0, 1, 1, 2])
    by_class = torch.tensor([[0.1, 0.5], [0.4, 0.5], [0.9, 0.5]])[labels]
    channels, overall, by_chance = between_classes(by_class, labels)
    assert channels[0].item() == pytest.approx(1)
    assert math.isnan(channels[1])  # it does not vary
    assert overall == pytest.approx(1)
    assert by_chance == 2 / 4
    gates = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    shares = [between_classes(gates, torch.tensor(order))[0] for order in itertools.permutations(labels.tolist())]
    torch.testing.assert_close(torch.stack(shares).mean(0), torch.full((3,), by_chance).double())


def test_channels_that_differ_for_a_class():
    gates = torch.full((4, 6), 0.5)
    gates[2:, 4] = 0.9
    gates[2:, 1] = 0.4
    found = class_channels(gates, torch.tensor([7, 7, 3, 3]), top=2)
    assert list(found) == [3, 7]
    assert [(c, pytest.approx(v, abs=1e-6)) for c, v in found[3]] == [(4, 0.2), (1, -0.05)]
    assert [(c, pytest.approx(v, abs=1e-6)) for c, v in found[7]] == [(4, -0.2), (1, 0.05)]


@torch.no_grad()
def test_gates_of_a_model():
    subject = tiny("dmformer_n", **TINY)
    images = noise(5, 3, 64, 64)
    readings, predicted = read_gates(subject, [images[:3], images[3:]])
    assert [(r.name, r.label, tuple(r.gates.shape)) for r in readings] == [
        (f"stages.{i}.blocks.0", f"{i + 1}.1", (5, dim)) for i, dim in enumerate(TINY["dims"])
    ]
    assert torch.equal(predicted, subject.model(images).argmax(1))
    stage = subject.model.stages[0]
    x = stage.blocks[0].norm1(stage.downsample(images))
    gate = stage.blocks[0].mixer.gate
    v = F.relu(F.linear(x.mean((2, 3)), gate.fc1.weight[:, :, 0, 0], gate.fc1.bias))
    expected = torch.sigmoid(F.linear(v, gate.fc2.weight[:, :, 0, 0], gate.fc2.bias))
    torch.testing.assert_close(readings[0].gates, expected, atol=1e-5, rtol=1e-4)
    assert readings[0].levels == ["3x3 d1", "5x5 d2", "7x7 d3"]
    for reading in readings:
        assert reading.shares.sum().item() == pytest.approx(1)


# ---- modulators


def test_high_frequencies_of_waves():
    place = torch.arange(16.0)
    low, high = (torch.cos(2 * math.pi * k / 16 * place) for k in (3, 5))  # 0.19 and 0.31 periods per position
    share = lambda x: (lambda pair: (pair[0] / pair[1]).item())(high_frequencies(x[None, None]))  # noqa: E731
    assert share(low.expand(16, 16) + 7) == pytest.approx(0, abs=1e-9)
    assert share(high[:, None].expand(16, 16) - 7) == pytest.approx(1)
    assert share(2 * low.expand(16, 16) + high[:, None]) == pytest.approx(0.2)
    diagonal = torch.cos(2 * math.pi * 3 / 16 * (place[:, None] + place))  # its length is 0.27
    assert share(diagonal) == pytest.approx(1)
    impulse = torch.zeros(64, 64)
    impulse[5, 9] = 1  # equal power at every frequency
    assert share(impulse) == pytest.approx(1 - math.pi * 0.25**2, abs=0.003)


@torch.no_grad()
def test_parts_of_modulation():
    subject = tiny("smt_t", **TINY_SMT)
    places = chosen_blocks(subject)
    assert [place.label for place in places] == ["1.1", "2.1", "3.3"]
    images = noise(3, 3, 64, 64)
    found = read_modulators(subject, [images[:2], images[2:]], places)
    stage = subject.model.stages[0]
    mixer = stage.blocks[0].mixer
    x = stage.blocks[0].norm1(stage.downsample(images))
    s, v = mixer.s(x), mixer.v(x)
    heads = [mixer.mhmc.convs[n](s[:, 4 * n : 4 * n + 4]) for n in range(4)]
    maps = {f"head {3 + 2 * n}x{3 + 2 * n} before": s[:, 4 * n : 4 * n + 4] for n in range(4)}
    maps |= {f"head {3 + 2 * n}x{3 + 2 * n}": head for n, head in enumerate(heads)}
    modulator = mixer.saa(torch.cat(heads, 1))
    maps |= {"modulator": modulator, "value": v, "output": mixer.proj(modulator * v)}
    assert [part.name for part in found[0]] == list(maps)
    for part in found[0]:
        expected = maps[part.name]
        assert part.energy == pytest.approx(expected.square().mean().item(), rel=1e-4)
        torch.testing.assert_close(part.picture, expected[0].abs().mean(0), rtol=1e-4, atol=1e-5)
        high, whole = high_frequencies(expected)
        assert part.high == pytest.approx((high / whole).item(), rel=1e-4)
    assert [b.name for b in chosen_blocks(subject, ["3.1", "stages.0.blocks.0"])] == [
        "stages.2.blocks.0",
        "stages.0.blocks.0",
    ]
    with pytest.raises(UserError, match=r"unknown SAM block '3.2': did you mean 3.3 or 3.1"):
        chosen_blocks(subject, ["3.2"])


# ---- CKA


def hsic1(K: Tensor, L: Tensor) -> float:
    """The unbiased estimate as written in the paper."""
    n = len(K)
    K, L, one = K.clone().fill_diagonal_(0), L.clone().fill_diagonal_(0), torch.ones(len(K)).double()
    terms = (K @ L).trace() + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return ((terms - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))).item()


def alignment(*batches: tuple[Tensor, Tensor]) -> float:
    found = Alignment()
    for x, y in batches:
        found.add([centred_gram(x)], [centred_gram(y)])
    return found.result().item()


def test_cka_is_the_unbiased_estimate():
    x, y = noise(12, 5) + 3, noise(12, 4, 2, seed=1)
    y = y + x[:, :4, None]
    pairs = [(x[:5], y[:5]), (x[5:], y[5:])]
    for batches in ([(x, y)], pairs):
        grams = [[t.flatten(1).double() @ t.flatten(1).double().T for t in pair] for pair in batches]
        cross, first, second = (sum(hsic1(g[i], g[j]) for g in grams) for i, j in ((0, 1), (0, 0), (1, 1)))
        assert alignment(*batches) == pytest.approx(cross / math.sqrt(first * second))
    assert alignment((x, y)) != pytest.approx(alignment(*pairs), abs=1e-3)


def test_cka_is_invariant_to_rotation_and_scale():
    x, y = noise(20, 6), noise(20, 6, seed=1)
    y = y + x
    rotation = torch.linalg.qr(noise(6, 6, seed=2)).Q
    assert alignment((x, x)) == pytest.approx(1)
    assert alignment((x, 3 * x @ rotation + 5)) == pytest.approx(1)
    assert alignment((x, 0.1 * y @ rotation)) == pytest.approx(alignment((x, y)), abs=1e-6)
    stretched = x * torch.tensor([1.0, 1, 1, 1, 1, 30])
    assert alignment((x, stretched)) < 0.9


def test_cka_of_unrelated_features_is_near_0():
    """The biased estimate would be high, because there are more features than images."""
    x, y = noise(64, 500), noise(64, 500, seed=1)
    assert abs(alignment((x, y))) < 0.05
    centred = [t - t.mean(0) for t in (x, y)]
    K, L = (t @ t.T for t in centred)
    assert (K * L).sum() / (K.norm() * L.norm()) > 0.8
    with pytest.raises(ValueError, match="needs 4 examples, not 3"):
        centred_gram(x[:3])


def test_cka_of_models():
    first, second = tiny("dmformer_n", **TINY), tiny("smt_t", **TINY_SMT)
    batches = [(noise(4, 3, 64, 64, seed=s), noise(4, 3, 64, 64, seed=s)) for s in range(2)]
    own = cka(first, first, batches)
    torch.testing.assert_close(own.diagonal(), torch.ones(4).double())
    torch.testing.assert_close(own, own.T)
    assert own[0, 3] < 0.99
    across = cka(first, second, batches)
    assert across.shape == (4, 7)
    torch.testing.assert_close(cka(second, first, batches), across.T)


# ---- principal components


class Scaled(nn.Module):
    """A stage whose map is a factor per channel times the image's colours."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.stage = nn.Conv2d(3, 3, 1, groups=3, bias=False)
        self.stage.weight.data.copy_(torch.tensor(factors)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x)


def test_components_of_independent_channels_are_the_channels():
    images = noise(8, 3, 40, 40)
    (found,) = principal_components(subject_of(Scaled([1.0, 3.0, 2.0]), ["stage"], [1]), images.split(3))
    variances = images.var((0, 2, 3), correction=0)[[1, 2, 0]] * torch.tensor([9.0, 4.0, 1.0])
    torch.testing.assert_close(found.variances, variances.double(), rtol=0.01, atol=0)
    assert found.share(2) == pytest.approx(13 / 14, abs=0.01)
    assert found.dimensions == pytest.approx(14**2 / (81 + 16 + 1), abs=0.05)
    assert found.pictures.shape == (6, 40, 40, 3)
    for colour, channel in enumerate((1, 2, 0)):  # each colour rises with one channel
        pair = torch.stack([found.pictures[..., colour].flatten(), images[:6, channel].flatten().double()])
        assert torch.corrcoef(pair)[0, 1] > 0.98


def test_a_scale_cuts_both_ends():
    values = torch.arange(101.0).reshape(1, 101, 1, 1)
    found = scaled(values).flatten()
    assert found[:2].tolist() == [0, 0]
    assert found[-2:].tolist() == [1, 1]
    assert found[50] == pytest.approx(0.5)


# ---- photos, files and the command


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    """A very small DMFormer in a folder, as training leaves it."""
    torch.manual_seed(0)
    model = timm.create_model("dmformer_n", **TINY)
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, 64, 64)}
    save_classifier(tmp_path / "run" / "best", model, model.state_dict(), list(COLOURS), config)
    return str(tmp_path / "run")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_photos_are_sampled_evenly_over_classes_and_names(tmp_path):
    for split, name, count in (("train", "a", 10), ("test", "a", 2), ("train", "b", 3), ("train", "c", 20)):
        (tmp_path / split / name / "deep").mkdir(parents=True)
        for i in range(count):
            (tmp_path / split / name / "deep" / f"{i:02}.png").touch()
    found = find_photos(tmp_path, 13)
    assert [name for _, name in found] == ["a"] * 5 + ["b"] * 3 + ["c"] * 5
    # the twelve of a are those of test, 00 and 01, and then those of train
    assert [f"{p.parts[-4]}/{p.stem}" for p, _ in found[:5]] == [
        "test/01",
        "train/01",
        "train/04",
        "train/06",
        "train/08",
    ]
    assert [p.stem for p, _ in found[8:]] == ["02", "06", "10", "14", "18"]
    assert found == find_photos(tmp_path, 13)
    assert len(find_photos(tmp_path, 1000)) == 35
    (tmp_path / "loose.png").touch()
    assert {name for _, name in find_photos(tmp_path, 1000)} == {""}


@pytest.mark.parametrize("measure", list(MEASURES))
@pytest.mark.slow
def test_every_measure_writes_its_files(measure, tmp_path, photos):
    source = "smt_t" if measure in ("attention-distance", "modulators") else "dmformer_n"
    options = {"gates": ["dmformer_n"], "cka": ["dmformer_n", "van_b0"]}.get(measure, [source, "vitae_t"])
    if measure == "modulators":
        options = [source]
    told = []
    result = analyse(
        measure,
        options,
        str(photos),
        str(tmp_path / "out"),
        6,
        64,
        progress=lambda items, what: told.append(what) or items,
    )
    paths = names.files(measure, tmp_path / "out")
    assert result.files == list(paths.values())
    assert sorted((tmp_path / "out").iterdir()) == sorted(result.files)
    rows = read(paths["csv"])
    assert len(rows) == len(result.rows) > 0
    assert {row["model"] for row in rows} <= set(options)
    assert {(row["weights"], row["images"], row["height"], row["width"]) for row in rows} == {
        ("random", "6", "64", "64")
    }
    assert result.as_csv() == paths["csv"].read_text()
    assert all(len(row) == len(result.short_header) for row in result.short)
    assert (
        f"6 photos of {tmp_path.name}/photos, 64 x 64 px. Random weights, nothing learned: {', '.join(options)}."
        in result.caption
    )
    assert told[0] == "reading"
    assert len(told) > 1
    for path in result.files[1:]:
        with Image.open(path) as image:
            assert image.width >= 1000
            assert len(image.convert("RGB").getcolors(2**24)) > 50
    with pytest.raises(UserError, match="exists already: give another --out, or --overwrite"):
        analyse(measure, options, str(photos), str(tmp_path / "out"))


@pytest.mark.slow
def test_gates_by_folder_and_by_prediction(classifier, photos, tmp_path):
    (photos / "red car" / "broken.png").write_bytes(b"no image")
    result = analyse("gates", [classifier], str(photos), str(tmp_path / "out"), 100)
    assert [(Path(name).name, bool(reason)) for name, reason in result.left_out] == [("broken.png", True)]
    rows = read(tmp_path / "out" / "gates.csv")
    assert {row["weights"] for row in rows} == {"trained"}
    assert {row["images"] for row in rows} == {"36"}
    assert {row["of"] for row in rows if row["quantity"] == "difference of the class"} == set(COLOURS)
    by_chance = {row["value"] for row in rows if row["quantity"] == "share between classes, by chance"}
    assert by_chance == {f"{2 / 35:.6g}"}
    # red, green and blue photos differ in their mean, which is the input of the first gate
    shares = [row for row in rows if row["quantity"] == "share between classes" and not row["channel"]]
    assert float(shares[0]["value"]) > 0.9
    histogram = [float(r["value"]) for r in rows if r["quantity"] == "histogram" and r["block"] == "1.1"]
    assert sum(histogram) == pytest.approx(1)
    assert "predicts" not in result.caption

    loose = tmp_path / "loose"
    loose.mkdir()
    for i in range(6):
        make_photo((40 * i, 90, 90), i).save(loose / f"{i}.png")
    assert (
        "The classes are the model's predictions: run."
        in analyse("gates", [classifier], str(loose), str(tmp_path / "out2")).caption
    )


@pytest.mark.slow
def test_segmenters_get_a_centre_crop(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    args = dict(dims=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    config = SegmenterConfig(
        "dmformer_n", args, "fpn", 64, 0.1, ("sky", "ground"), ((0, 0, 0), (9, 9, 9)), (0.5,) * 3, (0.25,) * 3
    )
    torch.manual_seed(0)
    save_segmenter(tmp_path / "seg" / "best", config, config.build().state_dict())
    (tmp_path / "views").mkdir()
    for i, size in enumerate([(100, 80), (130, 70), (99, 150), (120, 90)]):
        make_photo((90, 60, 30), i, size).save(tmp_path / "views" / f"{i}.png")
    for measure in ("receptive-field", "gates", "relative-receptive-field", "cka"):
        result = analyse(measure, [str(tmp_path / "seg")], str(tmp_path / "views"), str(tmp_path / "out"))
        rows = read(result.files[0])
        assert {(row["height"], row["width"]) for row in rows} == {("64", "96")}
        assert all(row["layer"].startswith("backbone.stages_") for row in rows)
    result = analyse("gates", [str(tmp_path / "seg")], str(tmp_path / "views"), str(tmp_path / "out2"), image_size=32)
    assert {row["width"] for row in read(result.files[0])} == {"32"}
    make_photo((90, 60, 30), 5, (20, 100)).save(tmp_path / "views" / "small.png")
    with pytest.raises(UserError, match="too small for seg: the smallest allows 64 x 0 px"):
        analyse("gates", [str(tmp_path / "seg")], str(tmp_path / "views"), str(tmp_path / "out3"))


@pytest.mark.slow
def test_unsupported_measures_are_refused_with_the_supported_ones(classifier, photos, tmp_path):
    for measure, source, words in (
        ("gates", "van_b0", "van_b0 has no channel gates of DMFormer; it has: receptive-field, relative-re.*, cka."),
        ("attention-distance", classifier, "run has no attention of SMT, ViTAE or ViTAEv2; it has: "),
        ("modulators", classifier, "it has: receptive-field, gates, cka."),
        ("relative-receptive-field", classifier, "run has no stage of several blocks; it has: receptive-field, gates"),
    ):
        with pytest.raises(UserError, match=words):
            analyse(measure, [source], str(photos), str(tmp_path / "out"))
    with pytest.raises(UserError, match="for models created by name, segmenters and detectors; trained"):
        analyse("gates", [classifier], str(photos), str(tmp_path / "out"), image_size=32)
    for path in [*photos.rglob("*.png")][1:]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cka needs at least 4 images, but only 1 can be read"):
        analyse("cka", [classifier], str(photos), str(tmp_path / "out"), 36)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_models_of_the_same_name_are_kept_apart(classifier, photos, tmp_path):
    other = tmp_path / "other" / "run"
    other.parent.mkdir()
    (other / "best").mkdir(parents=True)
    for path in (Path(classifier) / "best").iterdir():
        (other / "best" / path.name).write_bytes(path.read_bytes())
    result = analyse("receptive-field", [classifier, str(other)], str(photos), str(tmp_path / "out"), 2)
    assert {row[0] for row in result.rows} == {classifier, str(other)}


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    figure = matplotlib.figure.Figure(figsize=(3, 3), layout="constrained")
    figure.subplots().set_title("蓝天")
    plots.save(figure, "long words " * 30, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_names_of_the_measures_are_in_the_help():
    assert list(names.MEASURES) == list(MEASURES)
    assert all(f"    {name} " in f"    {AnalyseOptions.__doc__}" for name in MEASURES)


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        command([str(argument) for argument in arguments])
    return str(caught.value)


def test_mistakes_are_reported_in_one_line(tmp_path, photos, classifier, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    data = ["--data", photos]
    for arguments, words in (
        (["recptive-field", "van_b0", *data], "unknown measure 'recptive-field': did you mean receptive-field"),
        (["gates", *data], "name the models"),
        (["gates", "dmformer_n"], "name the photos to measure on: --data FOLDER."),
        (["gates", "dmformer_n", "--data", "nowhere"], "nowhere does not exist"),
        (["gates", "dmformer_m", *data], "unknown model 'dmformer_m': did you mean dmformer_"),
        (["gates", "runs/nothing/best", *data], "runs/nothing/best does not exist"),
        (["gates", str(photos), *data], "holds no config.json"),
        (["gates", "dmformer_n", *data, "--images", 0], "--images is 0"),
        (["gates", "dmformer_n", *data, "--image-size", 16], "--image-size is 16"),
        (["gates", "dmformer_n", *data, "--blocks", "1.1"], "--blocks is for modulators"),
        (["gates", "dmformer_n", *data, "--imagse", 3], "unknown option '--imagse': did you mean --images"),
        (["cka", "van_b0", "van_b1", "van_b2", *data], "cka takes one or two models, not 3"),
        (
            ["gates", "dmformer_n", *data, "--out", Path(classifier) / "best" / "config.json"],
            "is a file: give a folder",
        ),
        (["gates", "dmformer_n", "--data", tmp_path / "empty"], "contains no images"),
    ):
        message = refused(*arguments)
        assert words in message
        assert "\n" not in message
    assert not (tmp_path / "analysis").exists()


@pytest.mark.slow
def test_mistakes_are_found_without_importing_torch():
    code = (
        "import sys, dmformer_command\n"
        "from dmformer.cli.analyse import analyse\n"
        "try:\n    analyse(['gates', 'dmformer_m', '--data', '.'])\nexcept ValueError as error:\n    print(error)\n"
        "print(sorted({'torch', 'timm', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert "unknown model 'dmformer_m'" in lines[0], done.stderr
    assert lines[-1] == "[]"


@pytest.mark.slow
def test_command_prints_a_table_or_every_figure(classifier, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (photos / "red car" / "broken.png").write_bytes(b"no image")
    options = ["receptive-field", classifier, "--data", str(photos / "red car"), "--images", "100"]
    command(options)
    out, err = capsys.readouterr()
    assert "stages.3" in out
    assert "12 photos of photos/red car, 64 x 64 px." in out
    assert "written: analysis/receptive-field.csv, analysis/receptive-field.png" in out
    assert err.count("\n") == 1
    assert "left out because it cannot be read: " in err
    command([*options, "--overwrite", "--format", "csv"])
    assert capsys.readouterr().out == (tmp_path / "analysis" / "receptive-field.csv").read_text()
    command([*options, "--overwrite", "--format", "json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["stride"] == 4
    assert len(rows) == 4 * (3 + 2 * 4)


def test_random_models_are_marked_and_reproducible():
    first, second = open_subject("dmformer_n", 64), open_subject("dmformer_n", 64)
    assert not first.trained
    images = noise(1, 3, 64, 64)
    one, other = (receptive_fields(subject, [images])[3].energy for subject in (first, second))
    assert torch.equal(one, other)
