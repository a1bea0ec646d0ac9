"""One set of tests for every variant of every family. A new family only extends FAMILIES, SMALL and EXACT.

Tests for a single family are at the end.
"""

import copy
import fnmatch
import functools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale2d
from timm.models import group_parameters, save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dmformer
from dmformer.models.vitae import ViTAE
from dmformer.nn.kernels import depthwise
from dmformer.nn.mixers.attention import ValueConvAttention
from dmformer.nn.mixers.sam import SAM

FAMILIES = ["dmformer_*", "van_*", "smt_*", "vitae_*", "vitaev2_*"]
SMALL = {
    "dmformer_n": {"depths": (1, 1, 2, 1)},
    "van_b0": {"dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1)},
    "smt_t": {"dims": (16, 16, 32, 32), "depths": (1, 1, 2, 1)},  # both mixers in the third stage
    "vitae_t": {"depth": 2},
    "vitae_b": {"dim": 96, "depth": 4, "heads": 4, "img_size": (64, 96)},
    "vitaev2_s": {
        "embed_dims": (16, 16, 16, 16),
        "dims": (16, 16, 32, 32),
        "depths": (1, 1, 2, 1),
        "groups": (1, 4, 4, 8),
        "reduction_groups": (1, 4, 4, 4),
    },
}
"""The cheapest variant of each class, for tests that compute something, and arguments that make it cheaper still."""

PUBLISHED = {"dmformer_s": (26.7, 5.1), "dmformer_l": (44.9, 9.0)}
"""Millions of parameters and GMACs for an image of 224 x 224, as rounded in the paper."""

EXACT = {
    "van_b0": (4_105_800, 0.864),
    "van_b1": (13_861_800, 2.495),
    "van_b2": (26_578_472, 4.993),
    "van_b3": (44_765_608, 8.925),
    "van_b4": (60_283_176, 12.144),
    "van_b5": (89_967_688, 17.129),
    "van_b6": (199_829_416, 38.710),
    "smt_t": (11_506_536, 2.461),
    "smt_s": (22_550_952, 4.839),
    "smt_b": (32_037_352, 7.966),
    "smt_l": (80_620_264, 17.907),
    "vitae_t": (4_886_888, 1.757),
    "vitae_6m": (6_614_120, 2.152),
    "vitae_13m": (10_834_728, 3.036),
    "vitae_s": (24_032_136, 6.180),
    "vitae_b": (89_341_672, 18.084),
    "vitae_l": (311_724_008, 62.942),
    "vitae_h": (644_528_360, 129.627),
    "vitaev2_s": (19_355_688, 5.753),
    "vitaev2_48m": (48_674_632, 13.341),
    "vitaev2_b": (89_693_352, 24.373),
}
"""Parameters, including frozen ones, and GMACs for an image of 224 x 224, measured on the authors' code."""

PLAIN = {"vitae_b": 12, "vitae_l": 24, "vitae_h": 32}
"""Cells of the variants without stages: a map after each, all at stride 16, by default for images of one size."""

NAMES = timm.list_models(FAMILIES)
SIZES = [(33, 47), *(pytest.param(size, marks=pytest.mark.slow) for size in [(32, 32), (97, 64), (224, 160)])]


def smallest_first(names: Iterable[str], larger: Iterable = (pytest.mark.long,)) -> list:
    """The larger variants of a family differ from the smallest in numbers only: most of their tests are long ones."""
    marks = {name: [pytest.mark.slow] if name in PLAIN else [] for name in SMALL}
    return [pytest.param(name, marks=marks.get(name, larger)) for name in names]


every_model = pytest.mark.parametrize("name", smallest_first(NAMES))
small_model = pytest.mark.parametrize("name", SMALL)


def strides(name: str) -> list[int]:
    if name in PLAIN:
        return [16] * PLAIN[name]
    return [4, 8, 16] if name.startswith("vitae_") else [4, 8, 16, 32]


def sized(name: str, height: int, width: int) -> dict:
    """Arguments for images of this size, if the model needs any."""
    return {"img_size": (height, width)} if name in PLAIN else {}


def shallow(name: str) -> dict:
    """Arguments for few blocks, yet with every kind of mixer, for what does not depend on the depth."""
    return {"depth": 2} if name.startswith("vitae_") else {"depths": (1, 1, 2, 1)}


def one_block_each(name: str) -> dict:
    """Arguments for one block in every stage, for compilers, whose time is proportional to the depth."""
    return {"depth": 1} if name.startswith("vitae_") else {"depths": (1, 1, 1, 1)}


def any_size(name: str) -> dict:
    """Arguments for images of any size, if the model needs any."""
    return {"dynamic_img_size": True} if name in PLAIN else {}


def build(name: str, **kwargs) -> nn.Module:
    """The same weights in every call. Norms and layer scales are not neutral, so every branch has an effect."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL.get(name, {}), **kwargs})
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, LayerScale2d):
            m.gamma.data.uniform_(0.5, 1.0, generator=generator)
        elif isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)):
            m.weight.data.uniform_(0.5, 1.0, generator=generator)
            m.bias.data.normal_(0.0, 0.1, generator=generator)
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0.0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


def on_meta(name: str, **kwargs) -> nn.Module:
    """Shapes without values: cheap for any size."""
    return timm.create_model(name, device="meta", **kwargs).eval()


@functools.cache
def whole_on_meta(name: str) -> nn.Module:
    """The model as published, built once for all tests that only look at it."""
    return on_meta(name)


def images(height: int = 64, width: int = 96, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the largest value."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Without the frozen random features of ViTAE."""
    return [p for p in model.parameters() if p.requires_grad]


def gmacs(model: nn.Module, size: int = 224) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


# ---- size


def test_families_are_registered():
    assert set(SMALL) | set(PUBLISHED) | set(EXACT) <= set(NAMES)
    assert {name for name in NAMES if not name.startswith("dmformer_")} == set(EXACT)
    assert all(timm.list_models(family) for family in FAMILIES)
    assert all(timm.model_entrypoint(name).__module__.startswith("dmformer.") for name in NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.slow
def test_published_size(name):
    millions, expected = PUBLISHED[name]
    model = whole_on_meta(name)
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.005)
    assert gmacs(model) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", smallest_first(EXACT, larger=[pytest.mark.slow]))
def test_exact_parameters(name):
    model = whole_on_meta(name)
    assert parameters(model) == EXACT[name][0]
    frozen = {n.rpartition(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"w"} if isinstance(model, ViTAE) else set())  # its random features


@pytest.mark.parametrize("name", smallest_first(EXACT))
def test_exact_gmacs(name):
    assert gmacs(whole_on_meta(name)) == pytest.approx(EXACT[name][1], rel=0.005)


@small_model
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_size_runs_and_equals_plain_convolutions(name, size, monkeypatch):
    model, x = build(name, **any_size(name)), images(*size)
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        logits = model(x)
        monkeypatch.setattr(depthwise, "MODE", "plain")
        assert_near(logits, model(x))
    assert logits.shape == (2, 1000)
    assert features.shape == maps[-1].shape
    for info, out in zip(model.feature_info, maps, strict=True):
        assert out.shape[:2] == (2, info["num_chs"])
        for length, given in zip(out.shape[2:], size, strict=True):
            assert given // info["reduction"] <= length <= math.ceil(given / info["reduction"])


# ---- classifier


@every_model
def test_classifier(name):
    x = torch.empty(2, 3, 224, 224, device="meta")
    model = on_meta(name, num_classes=10, **shallow(name))
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (model.num_features, 10)
    assert model(x).shape == (2, 10)
    whole = parameters(model)

    model.reset_classifier(5)
    assert model.num_classes == 5
    assert model.get_classifier().weight.device.type == "meta"
    assert parameters(model) == whole - 5 * (model.num_features + 1)
    assert model(x).shape == (2, 5)

    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    side = 224 // strides(name)[-1]
    assert model(x).shape == (2, model.num_features, side, side)


@every_model
def test_model_without_classifier(name):
    headless = on_meta(name, num_classes=0, **shallow(name), **sized(name, 64, 64))
    assert headless.num_classes == 0
    assert headless(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, headless.num_features)
    whole = parameters(on_meta(name, **shallow(name), **sized(name, 64, 64)))
    assert parameters(headless) == whole - 1000 * (headless.num_features + 1)


@every_model
def test_new_classifier_is_on_the_models_device(name):
    model = on_meta(name, **shallow(name)).to(torch.bfloat16)
    for num_classes in (5, 0, 7):  # after 0 the head has no parameter left that tells the device
        model.reset_classifier(num_classes)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@small_model
def test_forward_is_features_then_head(name):
    model, x = build(name), images()
    norm = model.head.norm if name in PLAIN else nn.Identity()  # theirs comes after the pooling
    with torch.inference_mode():
        logits = model(x)
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert_near(pooled, norm(features.mean((2, 3), keepdim=True)).flatten(1))
        assert torch.equal(model.forward_head(features), logits)
        assert_near(model.get_classifier()(pooled), logits)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), norm(features))


@small_model
def test_images_of_a_batch_do_not_interact(name):
    model, x = build(name), images()
    with torch.inference_mode():
        assert_near(torch.cat([model(x[:1]), model(x[1:])]), model(x))


# ---- features


@every_model
@pytest.mark.parametrize("which", ["all", "some", "last"])
def test_feature_pyramid_shapes(name, which):
    count = len(strides(name))
    out_indices = {"all": tuple(range(count)), "some": (1, count - 1), "last": (-1,)}[which]
    stages = {} if name in PLAIN else shallow(name)
    model = on_meta(name, features_only=True, out_indices=out_indices, **stages, **sized(name, 256, 192))
    info = whole_on_meta(name).feature_info
    assert [i["reduction"] for i in info] == strides(name)
    assert model.feature_info.reduction() == [info[i]["reduction"] for i in out_indices]
    assert model.feature_info.channels() == [info[i]["num_chs"] for i in out_indices]
    shapes = [(2, i["num_chs"], 256 // i["reduction"], 192 // i["reduction"]) for i in (info[i] for i in out_indices)]
    assert [tuple(f.shape) for f in model(torch.empty(2, 3, 256, 192, device="meta"))] == shapes


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(
    ("name", "arguments", "compared"),
    [
        ("dmformer_n", {"gate": False, "depths": (1, 1, 1, 1)}, 4),  # the gate averages over all positions
        ("dmformer_n", {"mixer": "sam", "depths": (1, 1, 1, 1)}, 4),
        ("van_b0", {}, 4),
        ("van_b0", {"kernel_size": 12, "dilation": 3}, 4),  # an even kernel
        ("smt_t", {"strategy": "sam"}, 3),  # the last stage is attention, over more positions
    ],
    ids=["dmformer", "sam", "van", "even", "smt"],
)
def test_output_stride(name, arguments, compared, stride):
    """A dilated network has the values of the undilated one at every second or fourth position, and more between."""
    x, plain = images(104, 72), build(name, **arguments)
    model = build(name, output_stride=stride, **arguments)
    model.load_state_dict(plain.state_dict())
    reductions = [min(s, stride) for s in (4, 8, 16, 32)]
    assert [info["reduction"] for info in model.feature_info] == reductions
    assert build(name, features_only=True, output_stride=stride, **arguments).feature_info.reduction() == reductions
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        expected = plain.forward_intermediates(x, intermediates_only=True)
        assert [tuple(m.shape[2:]) for m in maps] == [(-(-104 // s), -(-72 // s)) for s in reductions]
        for i in range(compared):
            step = 4 * 2**i // reductions[i]
            assert_near(maps[i][..., ::step, ::step], expected[i], 1e-5)
        assert_near(dmformer.fuse(model).forward_features(x), features, 1e-5)


@pytest.mark.slow
def test_segmentation_models_take_dilated_encoders():
    smp = pytest.importorskip("segmentation_models_pytorch")
    x, options = torch.randn(2, 3, 128, 160), dict(encoder_weights=None, classes=3)
    for decoder, stride in ((smp.DeepLabV3Plus, 8), (smp.DeepLabV3Plus, 16), (smp.PAN, 16)):
        model = decoder("tu-dmformer_n", encoder_output_stride=stride, **options).eval()
        assert model(x).shape == (2, 3, 128, 160)
        assert model.encoder(x)[-1].shape == (2, 192, 128 // stride, 160 // stride)


@small_model
@pytest.mark.parametrize("extra", [{}, {"feature_cls": "getter"}], ids=["default", "getter"])
def test_feature_pyramid_values(name, extra):
    x, whole = images(), build(name)
    indices = [1, len(whole.feature_info) - 1]
    pyramid = build(name, features_only=True, out_indices=tuple(indices), **extra)
    with torch.inference_mode():
        expected = whole.forward_intermediates(x, indices=indices, intermediates_only=True)
        for feature, intermediate in zip(pyramid(x), expected, strict=True):
            assert torch.equal(feature, intermediate)


@small_model
def test_intermediates(name):
    model, x = build(name), images()
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        assert torch.equal(features, model.forward_features(x))
        last = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(last[0], features)
        early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(early, maps[:2], strict=True))
        with pytest.raises(ValueError, match="NCHW"):
            model.forward_intermediates(x, output_fmt="NLC")

        assert model.prune_intermediate_layers([1]) == [1]
        assert torch.equal(model(x), maps[1])
    assert model.num_features == model.feature_info[1]["num_chs"]


@small_model
def test_feature_extraction_by_symbolic_trace(name):
    model, x = build(name), images()
    indices = [1, len(model.feature_info) - 1]
    extractor = timm.models.create_feature_extractor(model, [model.feature_info[i]["module"] for i in indices])
    with torch.inference_mode():
        expected = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        for feature, intermediate in zip(extractor(x).values(), expected, strict=True):
            if name in PLAIN:  # a cell returns tokens, the class token first
                feature = feature[:, 1:].transpose(1, 2).unflatten(2, intermediate.shape[2:])
            assert_near(feature, intermediate)


# ---- arguments


@every_model
@pytest.mark.parametrize("in_chans", [1, 4])
def test_input_channels(name, in_chans):
    model = on_meta(name, in_chans=in_chans, num_classes=3, **shallow(name), **sized(name, 64, 64))
    assert model.in_chans == in_chans
    first = model.pretrained_cfg["first_conv"]
    for conv in (first,) if isinstance(first, str) else first:
        assert model.get_submodule(conv).in_channels == in_chans
    assert model(torch.empty(1, in_chans, 64, 64, device="meta")).shape == (1, 3)


@every_model
def test_unknown_arguments_are_refused(name):
    with pytest.raises(TypeError, match="not_an_argument"):
        on_meta(name, not_an_argument=1)


@small_model
@pytest.mark.parametrize("rates", [{"drop_rate": 0.5}, {"drop_path_rate": 0.5}], ids=lambda r: next(iter(r)))
def test_dropout_and_drop_path_act_in_training_only(name, rates):
    still = {"drop": 0.0} if name == "vitae_t" else {}  # its reduction cells have dropout by default
    model, plain, x = build(name, **rates, **still), build(name, **still), images()
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
        model.train()
        plain.train()
        assert torch.equal(plain(x), plain(x))
        assert not torch.equal(model(x), model(x))


@every_model
def test_drop_path_grows_linearly_over_all_blocks(name):
    """Across stages too: the ViTAEv2 authors restart each stage at the depth of the previous one."""
    model = on_meta(name, drop_path_rate=0.3)
    blocks = [block for stage in model.stages for block in stage.blocks]
    rates = [{m.drop_prob for m in block.modules() if isinstance(m, DropPath)} or {0.0} for block in blocks]
    assert all(len(of_one_block) == 1 for of_one_block in rates)
    expected = [0.3 * i / (len(blocks) - 1) for i in range(len(blocks))]
    assert [rate for (rate,) in rates] == pytest.approx(expected, abs=1e-6)


@small_model
def test_deterministic_under_a_seed(name):
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = timm.create_model(name, **SMALL[name], drop_path_rate=0.2)
        loss = model(images()).square().mean()
        loss.backward()
        outputs.append([loss.detach(), *(p.grad for p in trainable(model))])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


# ---- training


@small_model
def test_gradient_checkpointing(name):
    """Equal outputs and gradients. The running statistics of norms inside blocks are updated twice, as in timm."""
    x = images()
    model = build(name, drop_path_rate=0.2).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    results = []
    for m in (model, twin):
        torch.manual_seed(2)  # both drop the same paths
        out = m(x)
        out.square().mean().backward()
        results.append((out.detach(), [p.grad for p in trainable(m)]))
    (out, grads), (out_twin, grads_twin) = results
    assert torch.equal(out, out_twin)
    assert all(g is not None for g in grads)
    for grad, grad_twin in zip(grads, grads_twin, strict=True):
        torch.testing.assert_close(grad_twin, grad)
    twin.set_grad_checkpointing(False)
    assert not any(getattr(m, "grad_checkpointing", False) for m in twin.modules())


@every_model
@pytest.mark.parametrize("coarse", [False, True])
def test_layer_groups_follow_the_depth(name, coarse):
    model = whole_on_meta(name)
    layers = group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    order = [layers[name] for name, _ in model.named_parameters()]  # stages, norm, head: as in forward
    assert order[0] == 0
    assert all(b - a in (0, 1) for a, b in pairwise(order))
    blocks = [len(stage.blocks) for stage in model.stages]
    # ViTAE's first stage has no blocks: it is the stem
    assert max(order) + 1 >= (len(blocks) - (blocks[0] == 0) if coarse else sum(blocks)) + 2


@every_model
def test_layer_decay(name):
    model = whole_on_meta(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.8)
    assert sum(len(group["params"]) for group in groups) == len(trainable(model))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = [scale[id(p)] for p in trainable(model)]
    assert scales == sorted(scales)
    assert scales[-1] == 1.0
    assert scales[0] < 0.8**4


@every_model
def test_vectors_have_no_weight_decay(name):
    model = whole_on_meta(name)
    exempt = model.no_weight_decay()
    names = [n for n, _ in model.named_parameters()]
    assert all(fnmatch.filter(names, pattern) for pattern in exempt)
    spared, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt)
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    assert {id(p) for p in spared["params"]} >= {id(p) for p in trainable(model) if p.ndim <= 1}
    assert all(p.ndim > 1 for p in decayed["params"])


# ---- formats


@small_model
def test_channels_last(name):
    model, x = build(name), images()
    with torch.inference_mode():
        expected = model(x)
        model.to(memory_format=torch.channels_last)
        assert_near(model(x.contiguous(memory_format=torch.channels_last)), expected)


@small_model
def test_autocast(name):
    model, x = build(name), images()
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            actual = model(x)
    assert actual.dtype == torch.bfloat16
    assert_near(actual.float(), expected, 0.05)  # bfloat16 has 8 bits, and the network some tens of layers
    assert torch.corrcoef(torch.stack([actual.float().flatten(), expected.flatten()]))[0, 1] > 0.999


needs_a_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)


@needs_a_compiler
@small_model
@pytest.mark.long
def test_compile(name):
    torch.compiler.reset()  # the families share `forward`, and recompilations of one function are counted
    model, x = build(name, **one_block_each(name)), images()
    compiled = torch.compile(model, fullgraph=True)
    with torch.inference_mode():
        assert_near(compiled(x), model(x))


@needs_a_compiler
@pytest.mark.slow
def test_compile_a_stage():
    """The whole model takes the compiler a minute; here it becomes one graph, of which a stage is compiled."""
    torch.compiler.reset()
    model, x = build("dmformer_n", **one_block_each("dmformer_n")), images()
    stage = model.stages[0]
    with torch.inference_mode():
        assert_near(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
        assert_near(torch.compile(stage, fullgraph=True)(x), stage(x))


def export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    size = torch.export.Dim.DYNAMIC
    return torch.export.export(model, (example,), dynamic_shapes=({0: size, 2: size, 3: size},))


@small_model
@pytest.mark.export
@pytest.mark.slow
def test_export_with_dynamic_shapes(name):
    """One graph of plain operators for every size whose maps and window rows are 2 or more: export specialises 1."""
    model = build(name, **one_block_each(name), **any_size(name))
    program = export(model, images(64, 96))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("aten.conv2d.default") == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert not any("dmformer" in target for target in targets)
    exported = program.module()
    least = 57 if name == "vitaev2_s" else 35  # a window of its second stage is 56 pixels wide
    with torch.inference_mode():
        for height, width, batch in [(64, 96, 2), (least, 80, 1), (least + 4, 67, 3), (160, 97, 2), (112, 112, 1)]:
            x = images(height, width, batch)
            assert_near(exported(x), model(x))


@pytest.mark.parametrize("name", ["vitae_t", "vitaev2_s"])
@pytest.mark.export
@pytest.mark.slow
def test_export_of_an_unpadded_example_accepts_padded_sizes(name):
    """An example that strides and windows divide must not fix the rest of the graph."""
    model = build(name, **one_block_each(name))
    exported = export(model, images(112, 224)).module()
    with torch.inference_mode():
        for x in (images(112, 224, 1), images(64, 97), images(101, 75, 3)):
            assert_near(exported(x), model(x))


@small_model
def test_symbolic_trace(name):
    model, x = build(name), images()
    traced = torch.fx.symbolic_trace(model)
    with torch.inference_mode():
        assert_near(traced(x), model(x))


@small_model
@pytest.mark.slow
def test_torchscript(name):
    model = build(name, **any_size(name))
    script = torch.jit.script(model)
    with torch.inference_mode():
        for x in (images(), images(33, 47, 1)):
            assert_near(script(x), model(x))


# ---- files


@pytest.fixture
def saved(request, tmp_path):
    """A model with three named classes in a local folder, as `save_for_hf` writes it."""
    model = build(request.param, num_classes=3)
    labels = {"label_names": ["cat", "dog", "owl"]}
    save_for_hf(model, str(tmp_path), model_config=labels, safe_serialization=True)
    assert (tmp_path / "model.safetensors").exists()
    return model, f"local-dir:{tmp_path}"


saved_small_model = pytest.mark.parametrize("saved", SMALL, indirect=True)


@saved_small_model
def test_saved_model_round_trip(saved):
    model, source = saved
    loaded = timm.create_model(source, pretrained=True).eval()
    assert type(loaded) is type(model)
    assert list(loaded.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]
    with torch.inference_mode():
        assert torch.equal(loaded(images()), model(images()))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@saved_small_model
def test_saved_model_is_fine_tuned_on_other_classes(saved):
    model, source = saved
    loaded = timm.create_model(source, pretrained=True, num_classes=7).eval()
    with torch.inference_mode():
        assert loaded(images()).shape == (2, 7)
        assert torch.equal(loaded.forward_features(images()), model.forward_features(images()))


@saved_small_model
def test_saved_model_reads_grey_images(saved):
    """timm sums the first convolution over its channels, so a grey image gives the same output as its RGB copy."""
    model, source = saved
    loaded = timm.create_model(source, pretrained=True, in_chans=1).eval()
    grey = images(channels=1)
    with torch.inference_mode():
        assert_near(loaded(grey), model(grey.expand(-1, 3, -1, -1)))


# ---- DMFormer, other families' mixers in its place; parameters of one with C channels, by hand
PEERS = {
    "identity": lambda C: 0,
    "pooling": lambda C: 0,
    "lka": lambda C: 3 * (C * C + C) + (25 + 49) * C + 2 * C,
    "sam": lambda C: 3 * (C * C + C) + 41 * C + C + (10 * C + 4 * C) + (2 * C * C + C),
}


@pytest.mark.parametrize("mixer", PEERS)
def test_dmformer_with_other_papers_mixers(mixer):
    blocks = [(32, 2), (64, 2), (128, 4), (192, 2)]
    without = parameters(on_meta("dmformer_n", mixer="identity"))
    more = sum(depth * PEERS[mixer](C) for C, depth in blocks)
    assert parameters(on_meta("dmformer_n", mixer=mixer)) == without + more
    with torch.inference_mode():
        assert build("dmformer_n", mixer=mixer)(images(33, 47)).isfinite().all()


# ---- VAN and SMT

MIXERS = {
    "alternate": "SAM ATT SAM ATT SAM ATT SAM ATT",
    "half": "SAM SAM SAM SAM ATT ATT ATT ATT",
    "sam": "SAM SAM SAM SAM SAM SAM SAM SAM",
    "attention": "ATT ATT ATT ATT ATT ATT ATT ATT",
}


def stage_mixers(model: nn.Module) -> list[str]:
    kinds = {SAM: "SAM", ValueConvAttention: "ATT"}
    return [" ".join(kinds[type(block.mixer)] for block in stage.blocks) for stage in model.stages]


@pytest.mark.parametrize("strategy", MIXERS)
def test_smt_strategies(strategy):
    assert stage_mixers(on_meta("smt_t", strategy=strategy)) == ["SAM SAM", "SAM SAM", MIXERS[strategy], "ATT"]
    with torch.inference_mode():
        assert build("smt_t", strategy=strategy)(images(33, 47)).isfinite().all()


def test_smt_half_of_an_odd_depth_has_more_attention():
    model = on_meta("smt_t", depths=(1, 1, 5, 1), strategy="half")
    assert stage_mixers(model)[2] == "SAM SAM ATT ATT ATT"


def test_smt_s_of_the_paper_has_one_block_less():
    assert parameters(on_meta("smt_s", depths=(3, 4, 18, 1))) == 20_432_808


@pytest.mark.slow
def test_smt_l_has_layer_scale():
    scales = {s.gamma.shape: s.init_values for s in on_meta("smt_l").modules() if isinstance(s, LayerScale2d)}
    assert scales == {(dim,): 1e-4 for dim in (96, 192, 384, 768)}
    assert not any(isinstance(m, LayerScale2d) for m in on_meta("smt_b").modules())


@pytest.mark.parametrize(("kernel_size", "dilation", "taps"), [(7, 2, 9 + 16), (35, 3, 25 + 144), (9, 9, 289 + 1)])
def test_van_with_another_kernel(kernel_size, dilation, taps):
    """(2 d - 1)^2 + ceil(K / d)^2 weights per channel instead of 5^2 + 7^2."""
    arguments = {"kernel_size": kernel_size, "dilation": dilation}
    channels = 3 * 32 + 3 * 64 + 5 * 160 + 2 * 256
    assert parameters(on_meta("van_b0", **arguments)) == EXACT["van_b0"][0] + channels * (taps - 74)
    with torch.inference_mode():
        assert build("van_b0", **arguments)(images(33, 47)).isfinite().all()


# ---- ViTAE, its options


def cells(C: int) -> int:
    """Parameters of the seven normal cells of vitae_t with C channels, and of a classifier of 1000 classes."""
    norms, qkv, proj, mlp = 4 * C, 3 * C * C + 3 * C, C * C + C, 4 * C * C + 3 * C
    pcm = 9 * (2 * C * C + 2 * C * C + C * C) // 64 + (2 * C + C + C) + 2 * (2 * C + C)  # convolutions, biases, norms
    return 7 * (norms + qkv + proj + mlp + pcm) + 1000 * C + 1000


# What an option adds to vitae_t, by hand. A reduction cell with C channels in its pyramid's map and 64 out has norms of
# 2 C + 128, random features 32 * 64 = 2048, kqv 192 C + 192, proj 4160, MLP 8320; its PCM has 36928 a convolution of 64
# to 64 channels, 1792 from 3 channels, and BatchNorm 128. So everything but the pyramid is, in stages 1 and 2:
CELLS = (
    (512 + 128) + 2048 + (192 * 256 + 192) + 4160 + 8320 + (1792 + 2 * 36928 + 128),
    (384 + 128) + 2048 + (192 * 192 + 192) + 4160 + 8320 + (3 * 36928 + 128),
)
# and in stage 3, with 256 channels in its pyramid's map and output, and 64, 128, 128, 256 in its PCM:
THIRD_CELL = (512 + 512) + 128 * 256 + (768 * 256 + 768) + 3 * 65792 + (73856 + 147584 + 295168 + 256)
OPTIONS = {
    "transformer": (  # no random features, no bias of kqv
        {"token_types": ("transformer", "transformer", "performer_less")},
        -2 * (2048 + 192),
    ),
    "pooling": ({"token_types": ("pooling",) * 3}, -2 * (2048 + 192) + THIRD_CELL - 128 * 256 - 768),
    "performer": ({"token_types": ("performer",) * 3}, THIRD_CELL),
    "performer_less": (  # the pyramids of stages 2 and 3 read 256 and 192 channels instead of 64
        {"token_types": ("performer_less",) * 3},
        -sum(CELLS) + 3 * 9 * 192 * 64 + 2 * 9 * 128 * 128,
    ),
    "sum": ({"fuse": "sum"}, -(384 + 192 * 192) - (256 + 192 * 128) + cells(128) - cells(256)),
    "shared": ({"shared": True}, -3 * (49 * 3 * 64 + 64) - 2 * 36928 - 73856),
    "shared sum": (
        {"shared": True, "fuse": "sum"},
        -(384 + 192 * 192) - (256 + 192 * 128) + cells(128) - cells(256) - 3 * (49 * 3 * 64 + 64) - 2 * 36928 - 73856,
    ),
    "class token": ({"class_token": True}, 256),
    "sinusoid": ({"position": "sinusoid"}, 0),
    "all": ({"class_token": True, "position": "sinusoid", "shared": True}, 256 - 3 * 9472 - 2 * 36928 - 73856),
}
every_option = pytest.mark.parametrize("option", OPTIONS)


@every_option
def test_vitae_options_have_the_parameters_counted_by_hand(option):
    arguments, more = OPTIONS[option]
    assert parameters(on_meta("vitae_t", **arguments)) == EXACT["vitae_t"][0] + more


@every_option
@pytest.mark.parametrize("size", [(33, 47), (64, 97)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_vitae_options_run_at_odd_sizes(option, size):
    model, x = build("vitae_t", drop=0.0, **OPTIONS[option][0]), images(*size)
    _, maps = model.train().forward_intermediates(x)
    for stride, out in zip([4, 8, 16], maps, strict=True):
        assert out.shape[2:] == (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    model(x).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in trainable(model))


@every_option
@pytest.mark.slow
def test_vitae_options_in_graphs(option):
    model, x = build("vitae_t", **OPTIONS[option][0]), images(33, 47)
    with torch.inference_mode():
        expected = model(x)
        assert_near(torch.jit.script(model)(x), expected)
        assert_near(torch.fx.symbolic_trace(model)(x), expected)


@every_option
def test_vitae_options_group_by_depth(option):
    model = on_meta("vitae_t", **OPTIONS[option][0])
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    order = [layers[name] for name, _ in model.named_parameters()]
    assert all(b - a in (0, 1) for a, b in pairwise(order))
    assert model.no_weight_decay() == ({"stages.2.cls_token"} if OPTIONS[option][0].get("class_token") else set())


def test_reduction_cells_of_vitae_have_dropout_by_default():
    model, x = build("vitae_t"), images()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))
    assert {m.p for m in model.stages.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}  # 0 in the normal cells


def test_sinusoids_of_the_third_stage():
    """sin(n / 10000^(2 i / C)) and cos of the same in channels 2 i and 2 i + 1 of token n, the class token first."""
    plain = build("vitae_t").double()
    x = torch.randn(1, 64, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for class_token in (False, True):
        model = build("vitae_t", position="sinusoid", class_token=class_token).double()
        model.load_state_dict(plain.state_dict(), strict=False)
        tokens, size = model.stages[2].embed(x)
        without, _ = plain.stages[2].embed(x)
        if class_token:
            without = torch.cat([model.stages[2].cls_token, without], 1)
        n, i = torch.meshgrid(torch.arange(12 + class_token), torch.arange(128), indexing="ij")
        angles = n / 10000.0 ** (2 * i / 256)
        assert size == (3, 4)
        # the encoding is computed in float32
        torch.testing.assert_close((tokens - without)[0, :, 0::2], angles.sin().double(), rtol=0, atol=1e-5)
        torch.testing.assert_close((tokens - without)[0, :, 1::2], angles.cos().double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", ["performer_less", "shared", "all"])
def test_saved_options_read_grey_images(option, tmp_path):
    """Their first convolutions differ from those in the published configurations."""
    model = build("vitae_t", **OPTIONS[option][0])
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
    grey = images(channels=1)
    with torch.inference_mode():
        assert_near(loaded(grey), model(grey.expand(-1, 3, -1, -1)))


# ---- ViTAE without stages: learned positions, and the class token


def positions(model: nn.Module) -> Tensor:
    return model.stages[0].pos_embed.detach()


def resized(table: Tensor, grid: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """The class token's position embedding is unchanged; the map's are resized by bicubic interpolation."""
    map_ = table[:, 1:].transpose(1, 2).unflatten(2, grid)
    map_ = F.interpolate(map_, size=new, mode="bicubic", antialias=True)
    return torch.cat([table[:, :1], map_.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 112)], ids=str)
def test_plain_vitae_refuses_other_sizes(size):
    with pytest.raises(AssertionError, match="img_size"):
        build("vitae_b")(images(*size))


def test_plain_vitae_of_any_image_size():
    model = build("vitae_b", img_size=(96, 160))
    assert positions(model).shape == (1, 1 + 6 * 10, 96)
    with torch.inference_mode():
        assert model.forward_features(images(96, 160)).shape == (2, 96, 6, 10)
        square = build("vitae_b", img_size=80)
        assert square.forward_features(images(80, 80)).shape == (2, 96, 5, 5)


def test_plain_vitae_resizes_its_positions_for_each_image():
    dynamic, x = build("vitae_b", dynamic_img_size=True), images(96, 160)
    fixed = build("vitae_b", img_size=(96, 160))
    fixed.load_state_dict({**dynamic.state_dict(), "stages.0.pos_embed": resized(positions(dynamic), (4, 6), (6, 10))})
    with torch.inference_mode():
        assert_near(dynamic(x), fixed(x))
        assert_near(dynamic(images()), build("vitae_b")(images()))


def test_set_input_size():
    model = build("vitae_b")
    before = positions(model).clone()
    model.stages[0].pos_embed.requires_grad_(False)
    model.set_input_size((96, 160))
    assert torch.equal(positions(model)[:, :1], before[:, :1])
    assert_near(positions(model), resized(before, (4, 6), (6, 10)))
    assert not model.stages[0].pos_embed.requires_grad
    with torch.inference_mode():
        assert model.forward_features(images(96, 160)).shape == (2, 96, 6, 10)
    with pytest.raises(AssertionError, match="img_size"):
        model(images())


@pytest.mark.parametrize("saved_size", [(64, 64), (96, 160), (32, 128)], ids=str)
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (128, 32)], ids=str)
def test_plain_vitae_is_saved_and_loaded_at_another_size(saved_size, size, tmp_path):
    """(64, 64), (32, 128) and (128, 32) have the same number of positions on different maps."""
    model = build("vitae_b", img_size=saved_size)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=size).eval()
    grids = [(height // 16, width // 16) for height, width in (saved_size, size)]
    expected = positions(model) if saved_size == size else resized(positions(model), *grids)
    assert_near(positions(loaded), expected)
    for key, value in model.state_dict().items():
        assert key == "stages.0.pos_embed" or torch.equal(loaded.state_dict()[key], value), key


def test_resized_plain_vitae_is_saved_at_its_new_size(tmp_path):
    model = build("vitae_b")
    model.set_input_size((96, 160))
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(images(96, 160)), model(images(96, 160)))


def test_positions_of_an_unknown_map():
    """A plain state dict does not give height and width: a square map is assumed; the same shape is taken unchanged."""
    square, wide = build("vitae_b", img_size=64), build("vitae_b", img_size=(96, 160))
    model = build("vitae_b", img_size=(96, 160))
    dmformer.load_weights(model, square.state_dict())
    assert_near(positions(model), resized(positions(square), (4, 4), (6, 10)))
    dmformer.load_weights(model, wide.state_dict())
    assert torch.equal(positions(model), positions(wide))
    with pytest.raises(ValueError, match="60 patches that is not square: create the model with the img_size"):
        dmformer.load_weights(square, wide.state_dict())


def test_prefix_tokens():
    model, x = build("vitae_b"), images()
    tokens = []
    for cell in model.stages[0].blocks:
        cell.register_forward_hook(lambda cell, inputs, output: tokens.append(output))
    with torch.inference_mode():
        found = model.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=True)
        maps = model.forward_intermediates(x, intermediates_only=True)
    assert len(found) == len(maps) == 4
    for (feature, class_token), map_, output in zip(found, maps, tokens[:4], strict=True):
        assert torch.equal(feature, map_)
        assert torch.equal(class_token, output[:, :1])
        assert torch.equal(feature.flatten(2).transpose(1, 2), output[:, 1:])


def test_the_classifier_does_not_read_the_last_class_token():
    model, x = build("vitae_b", depth=1), images()
    with torch.inference_mode():
        ((last, _),) = model.forward_intermediates(x, indices=1, intermediates_only=True, return_prefix_tokens=True)
        assert_near(model.head(last), model(x))


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("smt_t", {"strategy": "no"}, "strategy must be one of alternate, half, sam, attention, not 'no'"),
        ("smt_t", {"heads": (7, 16)}, "heads = 7 must divide the 256 channels"),
        ("smt_t", {"sam_heads": 5}, "heads = 5 must divide the 64 channels"),
        (
            "vitae_t",
            {"token_types": ("performer", "no", "performer")},
            "token_types must be among performer, transformer, pooling, performer_less, not 'no'",
        ),
        ("dmformer_n", {"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4"),
        ("vitae_t", {"output_stride": 8}, "vitae_t has a fixed output stride"),
        ("vitaev2_s", {"output_stride": 16}, "vitaev2_s has a fixed output stride"),
        ("vitae_t", {"fuse": "no"}, "fuse must be cat or sum, not 'no'"),
        ("vitae_t", {"position": "no"}, "position must be none, sinusoid or learned, not 'no'"),
        ("vitae_t", {"position": "learned"}, "position must be none or sinusoid"),
        ("vitae_t", {"heads": 3}, "heads = 3 must divide the 256 channels"),
        ("van_b0", {"kernel_size": 21, "dilation": 22}, "dilation must lie between 1 and kernel_size = 21"),
        ("dmformer_n", {"mixer": "no"}, "mixer must be one of dma, lka, sam, pooling, identity, not 'no'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_wrong_arguments_name_the_right_ones(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, **arguments)


# ---- timm


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["dmformer_t"])
def test_timms_own_tests_pass(name):
    """Of a larger variant than those on which `.ci/run` runs them."""
    command = [sys.executable, str(Path(__file__).with_name("timm_suite.py")), name]
    done = subprocess.run(command, capture_output=True, text=True)
    if "'pip', 'download'" in done.stderr:
        pytest.skip("timm's tests cannot be downloaded")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(rf"^{name}: [1-9]\d* passed, 0 failed", done.stdout, re.MULTILINE)
