"""Outputs of the authors' own code, run once on generated weights and images: every stage and the logits must match.

`golden/<variant>.json` holds the float32 outputs of that code on a CPU: the keys, shapes and dtypes of its state dict,
and for every stage and the logits the shape, mean, (unbiased) standard deviation, largest magnitude, and the first and
last eight values. `golden/fill.py` generates the weights, each from its key and shape, and the images. The keys are the
authors' too, so the tests also cover the loading of published files.

Stages are tokens in row-major order, (1, N, C): for VAN and SMT after the LayerNorm that closes a stage, for ViTAE and
ViTAEv2 after each layer. In vitae_b, layers 0 and 1 are the embedding and an empty layer, and layer 2 is all cells.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from golden.fill import fill, image
from torch import Tensor, nn

import dmformer

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-4
"""Relative to the largest magnitude. The largest error seen is 1.1e-6."""

VARIANTS = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}
LARGER = {"van_b2", "smt_b", "vitae_b"}
"""They differ from the others of their families in numbers only, or take a second to build: slow."""


def slow_if_larger(variant: str, *values: int) -> Any:
    return pytest.param(variant, *values, marks=[pytest.mark.slow] if variant in LARGER else [])


every_variant = pytest.mark.parametrize("variant", [slow_if_larger(variant) for variant in VARIANTS])
every_case = pytest.mark.parametrize(
    ("variant", "case"),
    [slow_if_larger(variant, i) for variant, golden in VARIANTS.items() for i in range(len(golden["cases"]))],
)

ONE_PART = {
    "van_b0": "stages.3.blocks.1.mlp.conv.weight",
    "smt_t": "stages.2.blocks.2.mixer.mhmc.convs.3.weight",
    "vitae_t": "stages.1.downsample.attn.w",
    "vitaev2_s": "stages.1.blocks.0.pcm.3.weight",
}
"""A weight inside one block of each family, to be changed by 1 %."""


@cache
def authors_model(variant: str) -> nn.Module:
    """Our model with the weights of the authors' model."""
    state = {}
    for key, shape, dtype in VARIANTS[variant]["keys"]:
        values = fill(key, shape)
        state[key] = torch.zeros(shape, dtype=getattr(torch, dtype)) if values is None else torch.from_numpy(values)
    model = timm.create_model(variant)
    dmformer.load_weights(model, state)
    return model.eval()


@torch.inference_mode()
def answers(model: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """Every stage as tokens, and the logits."""
    x = torch.from_numpy(image(*size))
    if "vitae_b" in model.pretrained_cfg["architecture"]:
        embedded, _ = model.stages[0].embed(x)
        ((last, class_token),) = model.forward_intermediates(
            x, indices=1, intermediates_only=True, return_prefix_tokens=True
        )
        stages = [embedded, embedded, torch.cat([class_token, tokens(last)], 1)]
    else:
        stages = [tokens(stage) for stage in model.forward_intermediates(x, intermediates_only=True)]
    return [*stages, model(x)]


def tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def worst_error(actual: Tensor, expected: dict[str, Any]) -> float:
    """Over the first and last values and the statistics, as a fraction of the largest magnitude."""
    assert list(actual.shape) == expected["shape"]
    flat = actual.double().flatten()
    found = torch.cat([flat[:8], flat[-8:], torch.stack([flat.mean(), flat.std(), flat.abs().max()])])
    wanted = [*expected["head"], *expected["tail"], *(expected[name] for name in ("mean", "std", "absmax"))]
    return (found - torch.tensor(wanted, dtype=torch.float64)).abs().max().item() / expected["absmax"]


@every_variant
def test_parameters(variant):
    assert sum(p.numel() for p in authors_model(variant).parameters()) == VARIANTS[variant]["params"]


def errors(model: nn.Module, case: dict[str, Any]) -> list[float]:
    """For every stage and the logits."""
    wanted = [*case["stages"], case["logits"]]
    return [worst_error(a, w) for a, w in zip(answers(model, case["input"]), wanted, strict=True)]


@every_case
def test_every_stage_and_the_logits_agree(variant, case):
    found = errors(authors_model(variant), VARIANTS[variant]["cases"][case])
    assert max(found) < TOLERANCE, found


@pytest.mark.parametrize("variant", ONE_PART)
@pytest.mark.slow
def test_a_change_of_one_percent_is_detected(variant):
    """The comparison can fail: each of these changes makes it fail."""
    model, case = authors_model(variant), VARIANTS[variant]["cases"][0]
    weight = model.get_parameter(ONE_PART[variant])
    original = weight.detach().clone()
    try:
        weight.data.mul_(1.01)
        assert max(errors(model, case)) > TOLERANCE
    finally:
        weight.data.copy_(original)
    assert max(errors(model, case)) < TOLERANCE


@every_case
@pytest.mark.slow
def test_the_fused_model_agrees(variant, case):
    model = authors_model(variant)
    size = VARIANTS[variant]["cases"][case]["input"]
    with torch.inference_mode():
        x = torch.from_numpy(image(*size))
        expected, actual = model(x), dmformer.fuse(model)(x)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5
