"""The fused model gives the outputs of the model that it was made from."""

import pytest
import timm
import torch
from test_models import assert_near, build, images
from timm.layers import BatchNormAct2d, LayerScale2d
from torch import nn

import dmformer
from dmformer.nn.backbone import Block

MODELS = {
    "dmformer_n": {},
    "dmformer_n without gate and expansion": {"gate": False, "expand_ratio": None},  # the norm is before the padding
    "dmformer_n without layer scale": {"layer_scale": None},
    "dmformer_n with SAM": {"mixer": "sam"},
    "dmformer_n with pooling": {"mixer": "pooling"},
    "van_b0": {},
    "smt_t": {},
    "smt_t with layer scale": {"layer_scale": 0.1},
    "vitae_t": {},
    "vitae_b": {"depth": 2, "dynamic_img_size": True},
    "vitaev2_s": {},
}
NORMS_LEFT = {
    "dmformer_n": 1,  # the norm that closes the features
    "dmformer_n with SAM": 1,
    "dmformer_n with pooling": 6,  # and those of five blocks, before whose pooling there is no convolution
}


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_fused_models_agree(name):
    model, x = build(name.split()[0], **MODELS[name]), images(65, 97)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = dmformer.fuse(model)
    with torch.inference_mode():
        assert_near(fused(x), model(x), 1e-5)
        assert_near(fused.forward_features(x), model.forward_features(x), 1e-5)
    assert norms(fused) == NORMS_LEFT.get(name, norms(fused))
    assert fused.folded["norms"] > 0
    assert not any(p.requires_grad for p in fused.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # a copy was fused


@pytest.mark.parametrize(("name", "left"), [("dmformer_n", 1), ("van_b0", 0), ("smt_t", 0), ("vitaev2_s", 0)])
def test_nothing_is_left_to_fold(name, left):
    fused = dmformer.fuse(build(name), inplace=True)
    assert norms(fused) == left
    assert not any(isinstance(m, LayerScale2d) for m in fused.modules())


@pytest.mark.parametrize("name", ["dmformer_n", "van_b0", "smt_t", "vitae_t"])
def test_fused_feature_pyramids_agree(name):
    model, x = build(name, features_only=True), images()
    fused = dmformer.fuse(model)
    with torch.inference_mode():
        for actual, expected in zip(fused(x), model(x), strict=True):
            assert_near(actual, expected, 1e-5)


@pytest.mark.parametrize("name", ["dmformer_n", "van_b0"])
@pytest.mark.export
@pytest.mark.slow
def test_fused_models_are_exported_without_norms(name):
    fused = dmformer.fuse(build(name))
    program = torch.export.export(fused, (images(),))
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("batch_norm" in n for n in names) == (name == "dmformer_n")
    with torch.inference_mode():
        assert_near(program.module()(images()), fused(images()))


def test_bfloat16():
    model, x = build("van_b0"), images()
    fused = dmformer.fuse(model).to(torch.bfloat16)
    with torch.inference_mode():
        assert_near(fused(x.bfloat16()).float(), model(x), 0.05)  # 8 bits through some tens of layers


def test_in_place_or_not():
    model = build("dmformer_n")
    assert dmformer.fuse(model) is not model
    assert dmformer.fuse(model, inplace=True) is model
    assert norms(model) == 1


def test_training_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        dmformer.fuse(timm.create_model("dmformer_n").train())


def test_norms_with_an_activation_are_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    x = images(8, 8)
    fused = dmformer.fuse(model)
    assert fused.folded == {"norms": 1}
    torch.testing.assert_close(fused(x), model(x))


def test_layers_without_a_rule_keep_their_norm_and_scale():
    block = Block(4, lambda dim: nn.Conv2d(dim, dim, 3, padding=1), nn.Identity).eval()
    x = torch.randn(1, 4, 8, 8)
    fused = dmformer.fuse(nn.Sequential(block).eval())
    assert fused.folded == {}
    torch.testing.assert_close(fused(x), block(x))
