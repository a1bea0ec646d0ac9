"""Class activation: what the maps are, what they find, how they are checked; the page and the command."""

import io
import json
import re
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import make_photo
from PIL import Image
from pytorch_grad_cam import EigenCAM
from scipy.stats import spearmanr
from torch import Tensor, nn

from dmformer.cli.explain import ExplainOptions
from dmformer.cli.explain import explain as command
from dmformer.data.decode import decode
from dmformer.data.pages import Pages
from dmformer.interpret.boxes import regions, score_in
from dmformer.interpret.cam import METHODS, cell_size, class_activation, layer_name, predicted_masks
from dmformer.interpret.explain import LARGEST, Explanation, _file, _read, _seen, explain, verdict
from dmformer.interpret.randomisation import cascade, randomised, rank_correlation
from dmformer.interpret.report import ENDS, whereabouts
from dmformer.interpret.subject import Subject, open_subject
from dmformer.report.drawing import heat
from dmformer.tasks.classification.classifier import save_classifier
from dmformer.tasks.detection.detector import DetectorConfig, save_detector
from dmformer.tasks.segmentation.model import segmentation_model, semantic_fpn, upernet
from dmformer.tasks.segmentation.segmenter import SegmenterConfig, save_segmenter
from dmformer.utils.errors import UserError

TINY = dict(dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_scale=1.0)
SMALL: dict[str, dict] = {
    "dmformer_n": TINY,
    "van_b0": TINY,
    "smt_t": dict(dims=[16, 32, 32, 64], depths=[1, 1, 2, 1], heads=(2, 4)),
    "vitae_t": dict(embed_dims=(8, 8, 16), dims=(16, 16, 32), depth=1, heads=2, groups=8),
    "vitaev2_s": dict(
        embed_dims=(8, 8, 8, 8),
        dims=(8, 16, 16, 32),
        depths=(1, 1, 1, 1),
        groups=(1, 4, 4, 4),
        reduction_groups=(1, 4, 4, 4),
    ),
    "vitae_b": dict(dim=16, depth=2, heads=2, img_size=64, dynamic_img_size=True),
    "resnet18": {},
    "mambaout_femto": dict(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
    "swin_tiny_patch4_window7_224": dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), img_size=(64, 96)),
    "vit_tiny_patch16_224": dict(embed_dim=32, depth=2, num_heads=2, img_size=(64, 96), global_pool="avg"),
}
"""One of each kind of output: maps, channels-last maps, tokens with and without prefix tokens."""
FIXED = ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")
BEFORE_NORM = {"van_b0": [".blocks.0"] * 4, "smt_t": [".blocks.0", ".blocks.0", ".blocks.1", ".blocks.0"]}
"""The last block of each stage that ends with a norm."""
ODD = (67, 98)


def subject_of(name: str, classes: int = 5, seed: int = 0, **arguments) -> Subject:
    """A model with random weights, marked as trained."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=classes, **{**SMALL.get(name, {}), **arguments}).eval()
    for module in model.modules():  # weights that start at 0 would hide the rest
        if isinstance(module, nn.Linear) and module.out_features == classes:
            nn.init.normal_(module.weight)
    info = model.feature_info
    stages, strides = [entry["module"] for entry in info], [entry["reduction"] for entry in info]
    return Subject(
        name,
        model,
        stages,
        strides,
        [f"class {i}" for i in range(classes)],
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        (64, 64),
        timm.data.create_transform((3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3),
    )


def images(height: int = 64, width: int = 64, n: int = 2) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def plain(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) -> (B, H, W): ReLU, to 0..1, bilinear, to 0..1; what the library does, in torch."""
    values = F.interpolate(scaled(values.relu())[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return scaled(values)


def scaled(values: Tensor) -> Tensor:
    values = values - values.amin((1, 2), keepdim=True)
    return values / values.amax((1, 2), keepdim=True).clamp(min=1e-12)


def plain_grad_cam(subject: Subject, x: Tensor, classes: list[int], name: str, to_map) -> Tensor:
    kept = []
    hook = subject.module(name).register_forward_hook(lambda _, __, output: kept.append(output))
    logits = subject.model(x)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[range(len(x)), classes].sum(), kept[0])
    activation, gradient = to_map(kept[0].detach()), to_map(gradient)
    weights = gradient.mean((2, 3), keepdim=True)
    return plain((weights * activation).sum(1), tuple(x.shape[-2:]))


def map_of(name: str, size: tuple[int, int]):
    """The function that turns a stage's output into (B, C, h, w), written out for each kind."""
    if name in ("mambaout_femto", "swin_tiny_patch4_window7_224"):
        return lambda y: y.permute(0, 3, 1, 2)
    if name in ("vitae_b", "vit_tiny_patch16_224"):
        h, w = size[0] // 16, size[1] // 16
        return lambda y: y[:, 1:].reshape(len(y), h, w, -1).permute(0, 3, 1, 2)
    return lambda y: y


@pytest.mark.parametrize("name", SMALL)
def test_grad_cam_equals_its_formula(name):
    size = (64, 96) if name in FIXED else ODD
    subject, x = subject_of(name), images(*size)
    for layer in (len(subject.stages), len(subject.stages) - 1):
        found = class_activation(subject, x, [1, 3], layer=layer)
        stage = subject.stages[layer - 1] + (BEFORE_NORM[name][layer - 1] if name in BEFORE_NORM else "")
        expected = plain_grad_cam(subject, x, [1, 3], stage, map_of(name, size))
        assert found.shape == (2, *size)
        assert float(expected.amax()) == 1.0
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_maps_and_tokens(method):
    for name in ("dmformer_n", "vitae_b", "mambaout_femto"):
        found = class_activation(subject_of(name), images(), [0, 4], method)
        assert found.shape == (2, 64, 64)
        assert found.min() == 0
        assert found.amax((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_layer_cam_equals_its_formula():
    subject, x = subject_of("dmformer_n"), images()
    activation = subject.model.forward_intermediates(x, intermediates_only=True)[2].detach().requires_grad_()
    logits = subject.model.forward_head(subject.model.norm(subject.model.stages[3](activation)))
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), activation)
    expected = plain((gradient.relu() * activation.detach()).sum(1), (64, 64))
    torch.testing.assert_close(class_activation(subject, x, [2, 2], "layer-cam", 3), expected, rtol=0, atol=2e-5)


def test_eigen_cam_equals_the_library_except_for_the_sign():
    subject, x = subject_of("dmformer_n"), images(n=6)
    found = class_activation(subject, x, [0] * 6, "eigen-cam", 3)
    with EigenCAM(subject.model, [subject.module("stages.2")]) as cam:
        theirs = torch.from_numpy(cam(x, None))
    activations = subject.model.forward_intermediates(x, intermediates_only=True)[2].detach().flatten(2)
    for activation, values, other in zip(activations, found, theirs, strict=True):
        places = activation.T - activation.T.mean(0)
        projection = (places @ torch.linalg.svd(places).Vh[0]).view(1, 4, 4)
        projection = projection if projection.max() > -projection.min() else -projection
        either = [plain(sign * projection, (64, 64))[0] for sign in (1, -1)]
        torch.testing.assert_close(values, either[0], rtol=0, atol=1e-4)
        assert any(torch.allclose(other, each, rtol=0, atol=1e-4) for each in either)


def test_inner_modules_of_every_kind():
    subject = subject_of("vitae_b")
    assert cell_size(subject, images()[0], "stages.0.blocks.1.norm2") == (16, 16)
    assert cell_size(subject, images()[0], "stages.0.blocks.0.pcm") == (16, 16)
    assert cell_size(subject, images()[0]) == (16, 16)
    assert cell_size(subject_of("dmformer_n"), images()[0], "stages.1.blocks.0.mixer.levels") == (8, 8)
    assert cell_size(subject_of("swin_tiny_patch4_window7_224"), images(64, 96)[0], "layers.1.blocks.0.mlp") == (8, 8)
    subject = subject_of("vitaev2_s")
    inner = plain_grad_cam(
        subject,
        images(64, 96),
        [0, 1],
        "stages.2.blocks.0.norm2",
        lambda y: y.transpose(1, 2).reshape(2, -1, 4, 6),
    )
    found = class_activation(subject, images(64, 96), [0, 1], layer="stages.2.blocks.0.norm2")
    torch.testing.assert_close(found, inner, rtol=0, atol=2e-5)


def test_vits_that_classify_by_the_class_token():
    subject = subject_of("vit_tiny_patch16_224", global_pool="token")
    assert layer_name(subject) == "blocks.1.norm1"
    assert layer_name(subject, 1) == "blocks.0"
    x = images(64, 96)
    assert not class_activation(subject, x, [0, 1], layer="blocks.1").any()  # the patches have no effect after it
    expected = plain_grad_cam(subject, x, [0, 1], "blocks.1.norm1", map_of("vit_tiny_patch16_224", (64, 96)))
    torch.testing.assert_close(class_activation(subject, x, [0, 1]), expected, rtol=0, atol=2e-5)


def test_model_is_unchanged_afterwards():
    subject = subject_of("dmformer_n")
    model = subject.model
    model.train()
    model.stages[1].eval()
    model.stages[2].requires_grad_(False)
    model.head.fc.weight.grad = torch.ones_like(model.head.fc.weight)
    modes, required = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found = class_activation(subject, images(), [0, 1])
    with pytest.raises(UserError, match="not a map"):
        class_activation(subject, images(), [0, 1], layer="head")
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == required
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.fc.weight"]
    assert torch.equal(model.head.fc.weight.grad, torch.ones_like(model.head.fc.weight))
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(found, class_activation(subject, images(), [0, 1]))


def test_layers_that_are_modified_in_place_or_called_twice():
    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 4, 4), nn.ReLU(inplace=True)
            self.shared, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.conv(x))
            return self.fc(self.shared(self.shared(y).tanh()).mean((2, 3)))

    torch.manual_seed(0)
    subject = replace(subject_of("dmformer_n"), model=Toy().eval(), stages=["shared"])
    x, model = images(16, 24), subject.model
    before = model.conv(x).detach().requires_grad_()
    first = model.shared(before.relu())
    logits = model.fc(model.shared(first.tanh()).mean((2, 3)))
    gradients = torch.autograd.grad(logits[:, 0].sum(), [before, first])
    for name, activation, gradient in zip(("conv", "shared"), (before, first), gradients, strict=True):
        expected = plain((gradient.mean((2, 3), keepdim=True) * activation.detach()).sum(1), (16, 24))
        found = class_activation(subject, x, [0, 0], layer=name)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_map_without_evidence_is_zero():
    subject = subject_of("dmformer_n")
    nn.init.zeros_(subject.model.head.fc.weight)
    found = class_activation(subject, images(), [0, 1])
    assert found.shape == (2, 64, 64)
    assert not found.any()
    assert whereabouts(found[0].numpy()) == ""


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (5, "has stages 1 to 4, but no stage 5"),
        ("0", "has stages 1 to 4, but no stage 0"),
        ("stages.9", "unknown layer 'stages.9': did you mean stages."),
        ("head", r"layer head of dmformer_n returns \(2, 5\), which is not a map of the image: take a stage, 1 to 4"),
        ("head.global_pool", "not a map"),
        ("stages.0.blocks.0.mixer.gate", "has a single position for an image of 64 x 64"),
        ("unused", "layer unused of dmformer_n does not reach the logits"),
    ],
)
def test_wrong_layers_are_reported_in_one_line(layer, words):
    subject = subject_of("dmformer_n")
    subject.model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(UserError, match=words) as error:
        class_activation(subject, images(), [0, 1], layer=layer)
    assert "\n" not in str(error.value)
    if layer != "unused":
        with pytest.raises(UserError, match=words.replace("2, 5", "1, 5")):
            cell_size(subject, images()[0], layer)


def test_wrong_methods_class_counts_and_weights_are_reported():
    subject = subject_of("dmformer_n")
    with pytest.raises(UserError, match=r"unknown method 'gradcam': did you mean grad-cam"):
        class_activation(subject, images(), [0, 1], "gradcam")
    with pytest.raises(ValueError, match="2 images need as many classes, not 1"):
        class_activation(subject, images(), [0])
    with pytest.raises(UserError, match="has a single position for an image of 32 x 32: take an earlier layer"):
        class_activation(subject, images(32, 32), [0, 1])
    nn.init.constant_(subject.model.stages[3].blocks[0].mlp.fc1.weight, float("nan"))
    for method in METHODS:
        with pytest.raises(UserError, match="not finite: its weights are damaged"):
            class_activation(subject, images(), [0, 1], method)


def segmenter(head=semantic_fpn, classes: int = 3) -> Subject:
    torch.manual_seed(0)
    model = segmentation_model("dmformer_n", classes, head, backbone_args=TINY, width=64).eval()
    (last,) = [m for m in model.head.modules() if isinstance(m, nn.Conv2d) and m.out_channels == classes]
    with torch.no_grad():  # so that every class is found somewhere
        last.bias -= model(images()).mean((0, 2, 3))
    names = ["sky", "ground", "box"][:classes]
    stages = [f"backbone.stages_{i}" for i in range(4)]
    half = (0.5,) * 3
    own = {"padded": model.padded, "part": "backbone", "of_pixels": True}
    return Subject("seg", model, stages, [4, 8, 16, 32], names, half, half, None, lambda image: image, **own)


@pytest.mark.parametrize("head", [semantic_fpn, upernet])
@pytest.mark.slow
def test_segmenters_sum_the_logits_of_the_pixels(head):
    subject, x = segmenter(head), images(72, 110)
    padded = F.pad(x, (0, 18, 0, 24)) if head is semantic_fpn else x  # it pads to a multiple of 32
    logits = subject.model(x)
    masks = torch.zeros(2, 72, 110)
    masks[:, 20:50, 30:70] = 1
    for given in (masks, None):
        kept = []
        hook = subject.module("backbone.stages_2").register_forward_hook(lambda _, __, y, kept=kept: kept.append(y))
        own = subject.model(padded)[..., :72, :110]
        hook.remove()
        used = masks if given is not None else torch.stack([logits[i].argmax(0) == k for i, k in enumerate([1, 2])])
        assert used.flatten(1).any(1).all()
        score = (own[0, 1] * used[0]).sum() + (own[1, 2] * used[1]).sum()
        (gradient,) = torch.autograd.grad(score, kept[0])
        values = (gradient.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1)
        expected = scaled(plain(values, tuple(padded.shape[-2:]))[:, :72, :110])
        found = class_activation(subject, x, [1, 2], layer=3, masks=given)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_masks_of_absent_classes():
    logits = torch.zeros(2, 3, 4, 5)
    logits[0, 1, :2], logits[1, 0] = 1, 1
    masks, called = predicted_masks(logits, [1, 2])
    assert called == [True, False]
    assert masks[0].tolist() == [[True] * 5] * 2 + [[False] * 5] * 2
    assert masks[1].all()


def as_if_trained(subject: Subject) -> Subject:
    """No parameter has its initial value any more."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return subject


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.slow
def test_randomised_changes_all_weights_reproducibly(name):
    subject, x = as_if_trained(subject_of(name, seed=3)), list(images(64, 96))
    before = {key: tensor.clone() for key, tensor in subject.model.state_dict().items()}
    control = randomised(subject, x)
    again = randomised(subject, x)
    drawn = dict(control.model.named_parameters())
    assert [key for key, p in drawn.items() if p.numel() > 1 and torch.equal(p, before[key])] == []
    assert all(torch.equal(p, dict(again.model.named_parameters())[key]) for key, p in drawn.items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in subject.model.state_dict().items())
    assert not any(m.training for m in control.model.modules())
    *_, (part, last) = cascade(subject, x)
    assert part == "stage 1"
    assert all(torch.equal(tensor, last.model.state_dict()[key]) for key, tensor in control.model.state_dict().items())


@pytest.mark.slow
def test_randomised_differs_from_the_initial_weights_of_training():
    for seed in range(3):
        subject = as_if_trained(subject_of("dmformer_n", seed=seed))
        control = dict(randomised(subject, list(images())).model.named_parameters())
        for name, own in subject.model.named_parameters():
            if own.numel() >= 200:
                both = torch.stack([own.detach().flatten(), control[name].detach().flatten()])
                assert abs(float(torch.corrcoef(both)[0, 1])) < 0.4


@pytest.mark.slow
def test_randomised_norms_have_the_statistics_of_the_images():
    subject, x = subject_of("resnet18"), images(n=4)
    control = randomised(subject, list(x)).model
    before = F.conv2d(x, control.conv1.weight, stride=2, padding=3)
    torch.testing.assert_close(control.bn1.running_mean, before.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(control.bn1.running_var, before.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert control.bn1.momentum == 0.1
    one = randomised(subject_of("dmformer_n"), list(images(32, 32, n=1))).model  # the last stage has a single position
    assert torch.isfinite(one(images(32, 32))).all()
    assert torch.isfinite(randomised(segmenter(), [images(40, 56)[0], images(64, 48)[0]]).model(images())).all()


def test_cascade_starts_at_the_head():
    subject, x = as_if_trained(subject_of("dmformer_n")), list(images())
    own = {key: tensor.clone() for key, tensor in subject.model.named_parameters()}
    changed, parts = [], []
    for part, step in cascade(subject, x):
        parts.append(part)
        tensors = step.model.named_parameters()
        changed.append({key.rpartition(".")[0][:8] for key, tensor in tensors if not tensor.equal(own[key])})
    assert parts == ["head", "stage 4", "stage 3", "stage 2", "stage 1"]
    assert changed[0] == {"norm", "head.fc"}
    assert [len(c) for c in changed] == [2, 3, 4, 5, 6]
    assert changed[2] == {"norm", "head.fc", "stages.3", "stages.2"}


def test_rank_correlation_equals_spearmans():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 11, generator=generator).relu() for _ in range(2))  # half of the values are tied
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic, abs=1e-12)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, torch.zeros(9, 11)) is None


# Whether maps find what the model learnt


@pytest.fixture(scope="module")
def planted():
    """The functions of benchmarks/planted_object.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        import planted_object

        yield planted_object


@pytest.mark.slow
@pytest.mark.long
def test_maps_find_the_object_unless_weights_are_random(planted):
    torch.manual_seed(0)
    model = timm.create_model("dmformer_n", num_classes=4, dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), layer_scale=1.0)
    subject = planted.as_subject("small", planted.train(model, steps=120, size=64, batch=32, lr=3e-3), size=64)
    x, kinds, boxes = planted.scenes(np.random.default_rng(9), 100, size=64)
    control = randomised(subject, list(x[:32]))
    assert 0.08 < planted.chance(boxes, 64) < 0.14  # of the image
    hits = [sum(planted.hits(class_activation(s, x, kinds.tolist(), layer=3), boxes)) for s in (subject, control)]
    assert hits[0] >= 40  # of 100; three seeds gave 52 to 64
    assert hits[1] <= 20  # by chance, 1 % of cases would give more than 10
    assert sum(planted.hits(class_activation(subject, x, kinds.tolist(), layer=2), boxes)) >= 60  # 74 to 99


def test_the_pointing_game(planted):
    maps = torch.zeros(4, 128, 128)
    maps[0, 30, 40] = maps[1, 24, 40] = 1.0
    maps[2, 40:60, 40:60] = 1.0  # its centre counts
    boxes = [(30, 40, 50, 60)] * 2 + [(48, 48, 52, 52), (0, 0, 128, 128)]
    assert planted.hits(maps, boxes) == [True, False, True, False]
    assert planted.hits(torch.roll(maps[1:2], 2, 1), boxes[:1]) == [True]  # 4 pixels from the box
    assert planted.chance([(0, 0, 28, 28), (50, 50, 78, 78)]) == pytest.approx((32**2 + 36**2) / 2 / 128**2)


# Parts of the pictures and the page


def test_heat_is_the_map_over_the_grey_photo():
    photo = Image.new("RGB", (30, 20), (200, 40, 40))
    values = np.zeros((20, 30), np.float32)
    values[5, 7] = 1
    picture = np.asarray(heat(photo, values)).astype(int)
    grey = photo.convert("L").getpixel((0, 0))
    low, high = np.array([0.001462, 0.000466, 0.013866]), np.array([0.988362, 0.998364, 0.644924])  # ends of inferno
    assert np.abs(picture[0, 0] - (0.85 * grey + 0.15 * 255 * low)).max() <= 1
    assert np.abs(picture[5, 7] - (0.25 * grey + 0.75 * 255 * high)).max() <= 1
    area = np.zeros((20, 30), bool)
    area[5:15, 10:20] = True
    outlined = np.asarray(heat(photo, values, area))
    assert (outlined[5, 10:20] == 255).all()
    assert (outlined[4, 10:20] == 0).all()
    assert (outlined[6, 11:19] == 0).all()
    assert np.array_equal(outlined[8:12, 13:17], picture[8:12, 13:17])


@pytest.mark.parametrize(("row", "column", "words"), [(0, 0, "top left"), (9, 5, "bottom"), (5, 5, "middle")])
def test_whereabouts(row, column, words):
    values = np.zeros((10, 12), np.float32)
    values[row, column] = 1
    assert whereabouts(values) == words


def test_verdict_says_whether_maps_depend_on_what_was_learnt():
    def told(*values: float | None) -> str:
        return verdict([Explanation("p", "m", "c", correlation=v) for v in (*values, None)], "m")

    assert told(0.9, 0.3) == (
        "The maps hardly change with random weights (rank correlation without its sign: median 0.60, maximum 0.90, 2 "
        "maps): they say little about what was learnt."
    )
    assert told(0.4) == (
        "The maps change with random weights (rank correlation without its sign: median 0.40, maximum 0.40, 1 map): "
        "they depend on the weights, not only on the photo."
    )
    assert told(0.47, -0.0, -0.78, 0.26).startswith(
        "1 of 4 maps hardly changes with random weights (rank correlation without its sign: median 0.36, maximum 0.78"
    )
    assert told(0.7, -0.8).startswith("The maps hardly change with random weights")
    assert told() == "All maps are constant, so there is nothing to check."
    assert "All maps are constant" in verdict([Explanation("p", "other", "c", correlation=0.1)], "m")


def test_file_names_are_safe_and_unique():
    taken: set[str] = set()
    labels = ["../../etc", "a/b", "a-b", "A-B", "", "猫" * 100, "x\0y\n", "." * 5]
    files = [_file(Path("out/photo"), "hf-hub:owner/name", label, taken) for label in labels]
    assert [file.parent for file in files] == [Path("out")] * len(labels)
    assert len({str(file).casefold() for file in files}) == len(labels)
    assert files[0].name == "photo.hf-hub-owner-name.------etc.png"
    assert files[3].name == "photo.hf-hub-owner-name.A-B-3.png"
    assert max(len(file.name.encode()) for file in files) <= 255
    assert len(_file(Path("out") / ("n" * 250), "m" * 300, "c" * 300, taken).name) < 255


HOSTILE = ["<script>alert(1)</script>", "../../x", "مرحبا & 'so'"]


def save(folder: Path, name: str = "run", classes: list[str] | None = None, size: int = 64, seed: int = 0) -> Path:
    """A run with a very small classifier with random weights."""
    torch.manual_seed(seed)
    classes = HOSTILE if classes is None else classes
    model = timm.create_model("dmformer_n", num_classes=len(classes), **TINY)
    config = dict(
        input_size=(3, size, size), crop_pct=1.0, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, interpolation="bilinear"
    )
    save_classifier(folder / name / "best", model, model.state_dict(), classes, config)
    return folder / name


def save_small_segmenter(folder: Path, **arguments) -> Path:
    torch.manual_seed(0)
    config = SegmenterConfig(
        **{"backbone": "dmformer_n", "backbone_args": TINY, **arguments},
        head="fpn",
        width=64,
        dropout=0.1,
        class_names=("sky", "ground", "box"),
        palette=((1, 2, 3),) * 3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    model = config.build().eval()
    with torch.no_grad():  # the third class does not occur
        model.head[-1].bias += torch.tensor([0.0, 0.0, -100.0]) - model(images()).mean((0, 2, 3))
    save_segmenter(folder / "best", config, model.state_dict())
    return folder


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two folders with a photo of the same name, a broken one, and one more."""
    for folder, colour in (("a", (200, 40, 40)), ("b", (40, 60, 210))):
        (tmp_path / folder).mkdir()
        make_photo(colour, len(folder), (90, 70)).save(tmp_path / folder / "photo.png")
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    make_photo((60, 180, 60), 3, (300, 200)).save(tmp_path / "b" / "<b> & 'q'.jpg")
    return tmp_path


@pytest.mark.slow
def test_explain_writes_a_picture_per_class_and_a_page(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    run, other = save(pictures), save(pictures / "others", seed=1)
    found = explain([str(run), str(other)], ["a", "b/photo.png", "b/<b> & 'q'.jpg"], "out", method="layer-cam", layer=3)
    broken = [e for e in found if e.error]
    assert [(e.photo, e.model, e.file) for e in broken] == [("a/broken.jpg", "", "")]
    made = [e for e in found if not e.error]
    assert [e.photo for e in made] == [p for p in ("a/photo.png", "b/photo.png", "b/<b> & 'q'.jpg") for _ in range(6)]
    assert [e.model for e in made] == [*["run"] * 3, *["run-2"] * 3] * 3
    files = sorted(p.name for p in Path("out").iterdir())
    assert files == sorted(["index.html", *(Path(e.file).name for e in made)])
    assert len({e.file for e in made}) == 18
    subject = open_subject(str(run))
    x = subject.prepare(decode("b/photo.png"))[None]
    shares = subject.model(x)[0].softmax(0).detach()
    second = [e for e in made if e.photo == "b/photo.png" and e.model == "run"]
    order = shares.argsort(descending=True).tolist()
    assert [e.label for e in second] == [HOSTILE[k] for k in order]
    assert [e.score for e in second] == pytest.approx(shares[order].tolist(), abs=1e-6)
    picture = pixels(second[0].file)
    assert picture.shape[1] == 2 * 192 + 8  # 64 pixels enlarged three times
    seen = (255 * (x[0] * 0.2 + torch.tensor([0.4, 0.5, 0.6])[:, None, None])).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(picture[1:192:3, 1:192:3], seen)
    values = class_activation(subject, x, order[:1], "layer-cam", 3)[0]
    lit = np.abs(picture[:192, 200:].astype(int) - picture[:192, 200:].mean(2, keepdims=True)).sum(2)[1::3, 1::3]
    assert spearmanr(lit.flatten(), values.flatten()).statistic > 0.9  # the colours follow the map
    images_ = [subject.prepare(decode(p)) for p in ("a/photo.png", "b/photo.png", "b/<b> & 'q'.jpg")]
    control = class_activation(randomised(subject, images_), x, order[:1], "layer-cam", 3)[0]
    assert second[0].correlation == pytest.approx(rank_correlation(values, control), abs=1e-3)
    page = Path("out/index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt; &amp; &#39;q&#39;.jpg" in page
    assert page.count("<figure>") == 3 * 2 * 5 + 2  # photo, three classes, control; two curves
    assert verdict(made, "run-2") in page
    assert "a/broken.jpg" in page
    assert "http" not in page.replace("http-equiv", "")


def test_explain_named_classes_without_the_check(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    run = save(pictures, classes=["cat", "dog", "horse"])
    found = explain([str(run)], ["b"], classes=["horse", "cat", "horse"], layer=3, check=False)
    assert [e.label for e in found] == ["horse", "cat"] * 2
    assert {e.correlation for e in found} == {None}
    page = Path("explanation/index.html").read_text()
    assert "not checked" in page
    assert "control" not in page


def test_each_model_sees_a_deep_photo_in_its_own_range(tmp_path, monkeypatch):
    Image.fromarray(np.full((40, 40), 1000, np.uint16)).save(tmp_path / "deep.png")
    file = io.TextIOWrapper(io.BytesIO((tmp_path / "deep.png").read_bytes()))
    monkeypatch.setattr("sys.stdin", file)
    for name in (str(tmp_path / "deep.png"), "-"):
        images = _read(name, [(0.0, 4095.0), (0.0, 1000.0)], 10_000, Pages())
        assert not isinstance(images, str)
        assert [image.getpixel((0, 0))[0] for image in images.values()] == [62, 255]


@pytest.mark.slow
def test_explain_overwrites_nothing(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    run = str(save(pictures))
    (pictures / "explanation").mkdir()
    (pictures / "explanation" / "photo.run.mine.png").write_text("mine")
    with pytest.raises(UserError, match=r"photo\.run\.mine\.png exists already"):
        explain([run], ["a"], layer=3, check=False)
    assert [p.name for p in (pictures / "explanation").iterdir()] == ["photo.run.mine.png"]
    (pictures / "explanation" / "photo.run.mine.png").unlink()
    explain([run], ["a"], layer=3, check=False)
    before = (pictures / "explanation" / "index.html").read_text()
    with pytest.raises(UserError, match=r"index\.html exists already: give another --out, or --overwrite"):
        explain([run], ["b"], layer=3, check=False)
    assert (pictures / "explanation" / "index.html").read_text() == before
    explain([run], ["b"], layer=3, check=False, overwrite=True)
    assert (pictures / "explanation" / "index.html").read_text() != before


@pytest.mark.slow
def test_explain_segmenters(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    run = save_small_segmenter(pictures / "seg")
    found = explain([str(run)], ["b/photo.png"], layer=3)
    subject = open_subject(str(run))
    x = subject.prepare(decode("b/photo.png"))[None]
    areas = subject.model(x)[0].argmax(0).flatten().bincount(minlength=3)
    assert [e.label for e in found] == [subject.class_names[k] for k in areas.argsort(descending=True)[:2].tolist()]
    assert sum(e.score for e in found) == pytest.approx(1)
    assert found[0].score == pytest.approx(int(areas.max()) / (90 * 70))
    assert not any(e.note for e in found)
    found = explain([str(run)], ["b/photo.png"], "out", classes=["box"], layer=3)
    assert [(e.label, e.score, e.note) for e in found] == [
        ("box", 0.0, "no pixel is predicted as this class: the map is for all pixels")
    ]
    assert pixels(found[0].file).shape[1] == 2 * 3 * 90 + 8


def save_small_detector(folder: Path, framework: str) -> Path:
    """With random weights, of which 9 in 10 places in a photo pass for the second class."""
    torch.manual_seed(0)
    config = DetectorConfig(
        backbone="dmformer_n",
        backbone_args=TINY,
        framework=framework,
        masks=False,
        width=64,
        samples=None,
        queries=None,
        class_names=("cat", "dog"),
        category_ids=(1, 2),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        image_size=64,
        max_side=128,
    )
    state = config.build().state_dict()
    state["classes.cls_logits.bias"] = torch.tensor([-5.0, 2.0])
    save_detector(folder / "best", config, state)
    return folder


def test_the_score_in_a_box_is_that_of_the_surest_candidate():
    (region,) = regions(torch.tensor([[2.0, 1.0, 6.0, 5.0]]), 8, 8)
    assert (int(region.sum()), bool(region[1, 2]), bool(region[5, 2])) == (16, True, False)
    assert int(regions(torch.tensor([[20.0, 20.0, 21.0, 21.0]]), 8, 8).sum()) == 1  # outside: one pixel at the edge
    rows = torch.tensor(
        [
            [2.0, 1.0, 6.0, 5.0, 0.9, 0.2],  # in the box, but of the other class
            [2.0, 1.0, 6.0, 4.0, 0.1, 0.6],
            [6.0, 6.0, 8.0, 8.0, 0.1, 0.9],  # elsewhere
        ],
        requires_grad=True,
    )
    score = score_in(rows, 1, region)
    assert score.item() == pytest.approx(np.log(0.6 / 0.4))
    score.backward()
    assert rows.grad.nonzero().tolist() == [[1, 5]]
    assert score_in(rows[:0], 1, region).item() == 0


@pytest.mark.slow
def test_explain_detectors(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    run = save_small_detector(pictures / "det", "atss")
    found = explain([str(run)], ["b/photo.png"], layer=3, top=2)
    subject = open_subject(str(run))
    x = subject.prepare(decode("b/photo.png"))
    with torch.no_grad():
        objects = subject.model.selected(x)
    assert [(e.label, e.score, e.note) for e in found] == [("dog", s, "") for s in objects["scores"][:2].tolist()]
    assert found[0].score > 0.5
    assert all(e.correlation is not None for e in found)
    region = regions(objects["boxes"][:1], *x.shape[-2:])
    own = class_activation(subject, x[None], [1], "layer-cam", 3, region)[0]
    assert float(own.max()) == pytest.approx(1)
    assert whereabouts(own.numpy()) in (pictures / "explanation" / "index.html").read_text()  # layer-cam is the default
    found = explain([str(run)], ["b/photo.png"], "out", classes=["cat"], layer=3, check=False)
    assert [(e.label, e.note) for e in found] == [("cat", "below a score of 30 %: not detected")]
    (place,) = run.rglob("config.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), "threshold": 0.99}))
    found = explain([str(run)], ["b/photo.png"], "sure", layer=3, top=1, check=False)
    assert found[0].note == "below a score of 99 %: not detected"
    assert "which is in the white box" in (pictures / "out" / "index.html").read_text()


def test_large_photos_are_reduced_for_segmenters(tmp_path):
    subject = open_subject(str(save_small_segmenter(tmp_path / "seg")))
    x = _seen(subject, Image.new("RGB", (3000, 1500), (255, 0, 0)))
    assert x.shape == (3, 724, 1448)
    assert LARGEST * 0.99 < x[0].numel() <= LARGEST
    assert [float(x[0].min()), float(x[0].max())] == pytest.approx([2, 2], abs=1e-5)
    fixed = replace(subject, image_size=(64, 96))
    assert torch.equal(_seen(fixed, Image.new("RGB", (200, 50))), torch.full((3, 50, 96), -2.0))


def test_the_page_shows_photos_in_order_and_says_what_it_omits(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    monkeypatch.setattr("dmformer.interpret.explain.SHOWN", 1)
    explain([str(save(pictures))], ["b", "a"], layer=3, top=1, check=False)
    page = Path("explanation/index.html").read_text()
    assert "on 3\u00a0photos" in page or "on 3 photos" in page
    assert "The pictures of 2 more photos are in the same folder as this page." in page
    assert page.count("<article>") == 1


# The command


def run_command(capsys, *arguments: str) -> tuple[str, str]:
    command([str(a) for a in arguments])
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_command(capsys, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    run = save(pictures, classes=["cat", "dog", "horse"])
    out, _ = run_command(capsys, run, "b/photo.png", "a", "--layer", "3", "--top", "1", "--beside", run)
    assert out.count("a/photo.png") == 2
    assert "run-2" in out
    assert "a/broken.jpg" in out
    assert "not an image" in out
    assert "page: explanation/index.html" in out
    assert "rank correlation without its sign" in out
    options = ["--layer", "3", "--format", "json", "--out", "o", "--classes", "dog", "--no-check"]
    told = json.loads(run_command(capsys, run, "b/photo.png", *options)[0])
    assert told["page"] == "o/index.html"
    assert told["verdicts"] == {}
    assert [(e["label"], e["file"]) for e in told["explanations"]] == [("dog", "o/photo.run.dog.png")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "name the photos"),
        (["nowhere", "b"], "nowhere does not exist"),
        (["run", "b", "--beside", "rum"], "rum does not exist; did you mean run?"),
        (
            ["resnet18", "b"],
            "resnet18 is a model name, so its weights would be random: there is nothing to explain",
        ),
        (["dmformer_s", "b"], "Give a run's best/ folder"),
        (["run", "nothing.jpg"], "nothing.jpg does not exist"),
        (["run", "b", "--top", "0"], "--top must be 1 or more"),
        (["run", "b", "--method", "cam"], "invalid choice 'cam'"),
        (["run", "b", "--layr", "3"], "unknown option '--layr': did you mean --layer"),
        (["run", "b", "--layer", "7"], "run has stages 1 to 4, but no stage 7"),
        (["run", "b", "--layer", "stages.7"], "unknown layer 'stages.7': did you mean stages."),
        (["run", "b", "--layer", "head.fc"], "not a map of the image"),
        (["run", "b", "--classes", "hrose"], "unknown class of run 'hrose': did you mean horse?"),
        (["run", "a/broken.jpg"], "a/broken.jpg cannot be read: not an image"),
        (["run", "b", "--out", "a/broken.jpg"], "a/broken.jpg"),
    ],
)
def test_mistakes_are_reported_in_one_line_and_write_nothing(pictures, monkeypatch, arguments, words):
    monkeypatch.chdir(pictures)
    save(pictures, classes=["cat", "dog", "horse"])
    before = sorted(pictures.rglob("*"))
    with pytest.raises(UserError, match=re.escape(words)) as error:
        command(arguments)
    assert "\n" not in str(error.value)
    assert sorted(pictures.rglob("*")) == before


@pytest.mark.slow
def test_mistakes_are_found_before_torch_is_imported(pictures):
    code = (
        "import sys\nsys.modules['dmformer_command'] = sys\n"
        "from dmformer.cli.explain import explain\nfrom dmformer.utils.errors import UserError\n"
        "for arguments in (['nowhere', 'b'], ['resnet18', 'b'], ['b', 'b'], ['run', 'b', '--layr', '3']):\n"
        "    try:\n        explain(arguments)\n    except UserError:\n        print('told')\n"
        "print(sorted({'torch', 'timm', 'numpy', 'matplotlib', 'pytorch_grad_cam'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=pictures)
    assert done.stdout.splitlines() == ["told"] * 4 + ["[]"], done.stderr


def test_a_missing_library_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match=r"needs the extra 'explain' .*: pip install 'dmformer\[explain\]'"):
        class_activation(subject_of("dmformer_n"), images(), [0, 1])


def test_the_command_offers_every_method():
    assert typing.get_args(typing.get_type_hints(ExplainOptions)["method"]) == ("auto", *METHODS)
    assert set(ENDS) == set(METHODS)
