"""Published weights: every key layout loads strictly, is recognised and converted; a misfit gives a one-line error.

The golden key lists are the authors' own; the names of OpenMMLab and Hugging Face are derived from them here by hand.
"""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor

import dmformer
from dmformer.cli import main
from dmformer.models.weights import identify, our_names
from dmformer.predict.classes import predict
from dmformer.tasks.build import with_normalisation
from dmformer.tasks.classification.convert import class_names, convert
from dmformer.tasks.classification.model import build_model
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ["van_b0", "smt_t", "vitae_t", "vitaev2_s"]


@cache
def authors(variant: str) -> dict[str, Tensor]:
    """A state dict like the authors' file of a variant, with small random numbers."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape, dtype in json.loads((GOLDEN / f"{variant}.json").read_text())["keys"]:
        if dtype == "int64":
            state[key] = torch.zeros(shape, dtype=torch.int64)
        else:
            state[key] = torch.rand(shape, generator=generator) * 0.1 + 0.01
    return state


def openmmlab(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        r"(patch_embed\d)\.proj\.": r"\1.projection.",
        r"block(\d)\.": r"blocks\1.",
        r"\.conv0\.": ".DW_conv.",
        r"\.conv_spatial\.": ".DW_D_conv.",
        r"\.dwconv\.dwconv\.": ".dwconv.",
    }
    renamed = {}
    for key, value in state.items():
        for theirs, new in names.items():
            key = re.sub(theirs, new, key)
        renamed[key.replace("head.", "head.fc.") if key.startswith("head") else f"backbone.{key}"] = value
    return renamed


def transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {
        r"patch_embed(\d)\.proj\.": r"stages.\1.embeddings.convolution.",
        r"patch_embed(\d)\.norm\.": r"stages.\1.embeddings.normalization.",
        r"block(\d)\.(\d+)\.": r"stages.\1.layers.\2.",
        r"^norm(\d)\.": r"stages.\1.normalization.",
        r"\.norm1\.": ".pre_normomalization.",
        r"\.norm2\.": ".post_normalization.",
        r"\.attn\.proj_1\.": ".attention.pre_projection.conv.",
        r"\.attn\.proj_2\.": ".attention.post_projection.",
        r"\.attn\.spatial_gating_unit\.conv0\.": ".attention.attention_layer.attention.depth_wise.",
        r"\.attn\.spatial_gating_unit\.conv_spatial\.": ".attention.attention_layer.attention.depth_wise_dilated.",
        r"\.attn\.spatial_gating_unit\.conv1\.": ".attention.attention_layer.attention.point_wise.",
        r"\.layer_scale_1$": ".attention_scaling.weight",
        r"\.layer_scale_2$": ".mlp_scaling.weight",
        r"\.mlp\.fc1\.": ".mlp.in_dense.",
        r"\.mlp\.dwconv\.dwconv\.": ".mlp.depth_wise.",
        r"\.mlp\.fc2\.": ".mlp.out_dense.",
    }
    renamed = {"van.layernorm.weight": torch.ones(256), "van.layernorm.bias": torch.zeros(256)}
    for key, value in state.items():
        for theirs, new in names.items():
            key = re.sub(theirs, new, key)
        key = re.sub(r"^stages\.(\d)", lambda m: f"van.encoder.stages.{int(m[1]) - 1}", key)
        renamed[key.replace("head.", "classifier.")] = value
    return renamed


def loaded(variant: str, source, **kwargs) -> dict[str, Tensor]:
    model = timm.create_model(variant, **kwargs)
    dmformer.load_weights(model, source)
    return model.state_dict()


@cache
def of_authors(variant: str) -> dict[str, Tensor]:
    """The state dict of a variant with its authors' weights."""
    return loaded(variant, authors(variant))


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---- layouts


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_of_the_authors_is_loaded(variant):
    state = of_authors(variant)
    theirs = [t for k, t in authors(variant).items() if t.is_floating_point()]
    ours = [t for t in state.values() if t.is_floating_point()]
    assert sorted(t.sum().item() for t in theirs) == pytest.approx(sorted(t.sum().item() for t in ours), rel=1e-6)
    assert identify(our_names(dict(authors(variant)), "it")).variant == variant


@pytest.mark.parametrize("layout", [openmmlab, transformers])
def test_other_layouts_of_van_give_the_same_model(layout):
    assert_same(loaded("van_b0", layout(authors("van_b0"))), of_authors("van_b0"))


def test_both_names_of_smts_depthwise_convolution_are_known():
    other = {k.replace(".attn.local_conv.", ".attn.dw_conv."): v for k, v in authors("smt_t").items()}
    assert other.keys() != authors("smt_t").keys()
    assert_same(loaded("smt_t", other), of_authors("smt_t"))


@pytest.mark.slow
def test_window_indices_of_vitaev2_may_be_missing():
    short = {k: v for k, v in authors("vitaev2_s").items() if not k.endswith("relative_position_index")}
    assert len(short) < len(authors("vitaev2_s"))
    assert_same(loaded("vitaev2_s", short), of_authors("vitaev2_s"))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("suffix", [".pth", pytest.param(".pth.tar", marks=pytest.mark.slow)])
def test_wrappers_prefixes_and_suffixes(wrapper, suffix, tmp_path):
    state = {f"module.{k}": v for k, v in authors("van_b0").items()}
    path = tmp_path / f"weights{suffix}"
    torch.save({wrapper: state, "epoch": 300, "metric": 75.4} if wrapper else state, path)
    assert_same(loaded("van_b0", path), of_authors("van_b0"))


@pytest.mark.parametrize("variant", ["van_b0", "vitae_t"])
@pytest.mark.slow
def test_timm_loads_the_authors_file_directly(variant, tmp_path):
    """It accepts any file; so a feature pyramid can start from published weights."""
    torch.save({"state_dict": authors(variant)}, tmp_path / "weights.pth")
    arguments = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    assert_same(timm.create_model(variant, **arguments).state_dict(), of_authors(variant))
    pyramid = timm.create_model(variant, features_only=True, **arguments).state_dict()
    whole = of_authors(variant)
    assert len(pyramid) > 0.9 * len(whole)
    assert all(torch.equal(value, whole[key.replace("stages_", "stages.")]) for key, value in pyramid.items())


def test_safetensors(tmp_path):
    save_file(dict(authors("van_b0")), tmp_path / "weights.safetensors")
    assert_same(loaded("van_b0", str(tmp_path / "weights.safetensors")), of_authors("van_b0"))


# ---- classifiers


def with_classes(variant: str, classes: int) -> dict[str, Tensor]:
    """The authors' weights with a classifier whose row i is filled with i."""
    state = dict(authors(variant))
    rows = torch.arange(classes, dtype=torch.float32)
    state["head.weight"] = rows[:, None].expand(-1, state["head.weight"].shape[1]).contiguous()
    state["head.bias"] = rows.clone()
    return state


@pytest.mark.slow
def test_a_22k_classifier_is_kept_dropped_or_narrowed():
    state = with_classes("van_b0", 21841)
    assert torch.equal(loaded("van_b0", state, num_classes=21841)["head.fc.bias"], torch.arange(21841.0))

    model = timm.create_model("van_b0", num_classes=7)
    before = model.head.fc.weight.detach().clone()
    dmformer.load_weights(model, state, head="drop")
    assert torch.equal(model.head.fc.weight, before)

    model = timm.create_model("van_b0")
    before = model.head.fc.weight.detach().clone()
    dmformer.load_weights(model, state, head="imagenet1k")
    wide, narrow = ImageNetInfo("imagenet-22k").label_names(), ImageNetInfo("imagenet-1k").label_names()
    assert model.head.fc.bias[0] == wide.index(narrow[0])
    assert model.head.fc.bias[999] == wide.index(narrow[999])
    (missing,) = [i for i, synset in enumerate(narrow) if synset not in wide]
    assert torch.equal(model.head.fc.weight[missing], before[missing])

    with pytest.raises(UserError, match="1000 classes and the model 1000"):
        dmformer.load_weights(model, authors("van_b0"), head="imagenet1k")
    with pytest.raises(UserError, match=r"another class count: it has head.fc.weight of shape \(21841, 256\)"):
        dmformer.load_weights(model, state)


def test_imagenet_classes_have_their_names():
    assert class_names(1000)[0] == "tench, Tinca tinca"
    assert len(set(class_names(1000))) == 1000
    assert len(set(class_names(21841))) == 21841
    assert class_names(3) == ["0", "1", "2"]


# ---- convert


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=pytest.mark.slow if v in ("smt_t", "vitaev2_s") else []) for v in VARIANTS]
)
def test_converted_weights_are_what_timm_loads(variant, tmp_path):
    source = tmp_path / "weights.pth"
    torch.save({"model": authors(variant)}, source)
    made = convert(str(source), str(tmp_path / "out"))
    assert (made.model, made.num_classes) == (variant, 1000)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_same(model.state_dict(), of_authors(variant))
    cfg = timm.get_pretrained_cfg(variant)
    for config in (made.data_config, model.pretrained_cfg):
        assert (tuple(config["mean"]), tuple(config["std"])) == (cfg.mean, cfg.std)
        assert (config["crop_pct"], config["interpolation"]) == (cfg.crop_pct, cfg.interpolation)


def test_preprocessing_of_the_families():
    van, smt, v2 = (timm.get_pretrained_cfg(name) for name in ("van_b0", "smt_l.in22k_ft_in1k_384", "vitaev2_s"))
    assert (van.mean, van.std, van.crop_pct, van.interpolation) == ((0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")
    assert (smt.input_size, smt.crop_pct) == ((3, 384, 384), 1.0)
    assert timm.get_pretrained_cfg("smt_t").crop_pct == 0.875
    assert (v2.mean, v2.crop_pct) == ((0.485, 0.456, 0.406), 0.9)
    assert "van_tiny_754.pth.tar" in van.notes[0]
    assert "75.4" in van.notes[1]


@pytest.mark.slow
def test_smt_s_with_one_last_block(tmp_path):
    model = timm.create_model("smt_s", depths=(3, 4, 18, 1))
    torch.save(model.state_dict(), tmp_path / "smt_small.pth")
    made = convert(str(tmp_path / "smt_small.pth"), str(tmp_path / "out"))
    assert made.model == "smt_s with depths=(3, 4, 18, 1)"
    assert made.parameters == 20_432_808
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.slow
def test_positions_tell_the_image_size(tmp_path):
    model = timm.create_model("vitae_b", depth=12, img_size=96)
    torch.save(model.state_dict(), tmp_path / "vitae_b.pth")
    made = convert(str(tmp_path / "vitae_b.pth"), str(tmp_path / "out"))
    assert (made.model, made.data_config["input_size"]) == ("vitae_b", (3, 96, 96))
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.slow
def test_a_22k_file_is_converted_with_and_without_its_classifier(tmp_path):
    torch.save({"state_dict": with_classes("van_b0", 21841)}, tmp_path / "van.pth")
    made = convert(str(tmp_path / "van.pth"), str(tmp_path / "kept"), image_size=384)
    assert (made.num_classes, made.data_config["input_size"], made.data_config["crop_pct"]) == (21841, (3, 384, 384), 1)
    made = convert(str(tmp_path / "van.pth"), str(tmp_path / "dropped"), drop_head=True)
    assert made.num_classes == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'dropped'}", pretrained=True, num_classes=5)
    assert model.get_classifier().out_features == 5
    assert torch.equal(model.stages[0].norm.weight, authors("van_b0")["norm1.weight"])


@pytest.mark.slow
def test_converted_weights_predict_and_fine_tune(photos, recipe, tmp_path):
    torch.save({"state_dict": authors("van_b0")}, tmp_path / "van_b0.pth")
    convert(str(tmp_path / "van_b0.pth"), str(tmp_path / "van_b0"))
    (found,) = predict(str(tmp_path / "van_b0"), [str(next(photos.rglob("*.png")))])
    assert found.error is None
    assert found.classes[0][0] in class_names(1000)

    for weights in ("van_b0", "van_b0.pth"):
        tuned = replace(recipe, model="van_b0", model_args=(), weights=str(tmp_path / weights))
        model, _ = build_model(tuned, ["a", "b"])
        assert torch.equal(model.stages[3].norm.bias, authors("van_b0")["norm4.bias"])
        assert with_normalisation(tuned).mean == (0.5, 0.5, 0.5)
    assert with_normalisation(ClassificationRecipe(model="dmformer_n")).mean == (0.485, 0.456, 0.406)
    assert with_normalisation(ClassificationRecipe(model="van_b0", mean=(0.1, 0.2, 0.3))).mean == (0.1, 0.2, 0.3)


# ---- bad input


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files that must be refused, and the text of the error."""
    van, smt = authors("van_b0"), authors("smt_t")
    shape = {**van, "block2.1.attn.proj_1.weight": torch.zeros(64, 65, 1, 1)}
    states = {
        "shape": (
            shape,
            "nearest is van_b0; the file has stages.1.blocks.1.mixer.proj1.weight of shape (64, 65, 1, 1)",
        ),
        "missing": (
            {k: v for k, v in van.items() if not k.startswith("block4.1.")},
            "nearest is van_b0; the file lacks",
        ),
        "mixed": ({**van, **{f"x{k}": v for k, v in list(smt.items())[:9]}}, "mixes two models"),
        "family": (
            {"layer.0.weight": torch.zeros(3)},
            "is of no model here: its tensors are named like layer.0.weight",
        ),
        "infinite": (
            {**van, "norm4.bias": torch.full((256,), float("inf"))},
            "stages.3.norm.bias holds values that are not",
        ),
        "empty": ({}, "contains no state dict"),
    }
    files = {}
    for name, (state, message) in states.items():
        torch.save({"state_dict": state}, tmp_path / f"{name}.pth")
        files[name] = (tmp_path / f"{name}.pth", message)
    torch.save({"state_dict": van}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(content[: len(content) // 2])
    (tmp_path / "truncated.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    files["truncated"] = (tmp_path / "truncated.pth", "is damaged or not a weights file")
    files["truncated safetensors"] = (tmp_path / "truncated.safetensors", "is damaged or not a weights file")
    files["nowhere"] = (tmp_path / "wholly.pth", "does not exist; did you mean")
    return files


def test_what_cannot_be_converted_is_reported_in_one_line(tmp_path, capsys):
    for name, (path, message) in broken(tmp_path).items():
        with pytest.raises(SystemExit) as stop:
            main(["convert", str(path), str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert stop.value.code == 2, name
        assert message in error, (name, error)
        assert error.count("\n") == 1, name
        assert not (tmp_path / "out").exists(), name


@pytest.mark.slow
def test_a_model_is_overwritten_only_on_request(tmp_path, capsys):
    torch.save({"state_dict": authors("van_b0")}, tmp_path / "van_b0.pth")
    arguments = ["convert", str(tmp_path / "van_b0.pth"), str(tmp_path / "out")]
    main(arguments)
    assert "van_b0, 4,105,800 parameters, 1000 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(arguments)
    assert "holds a model already: give --overwrite" in capsys.readouterr().err
    main([*arguments, "--overwrite"])
    with pytest.raises(SystemExit):
        main([*arguments[:2], str(tmp_path / "van_b0.pth")])
    assert "is a file: name a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments[:2], "/proc/nowhere"])
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "van_b0.pth"), "photo.jpg"])
    assert "convert a weights file into a folder first, dmformer convert" in capsys.readouterr().err


def test_an_unknown_option_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", "--imagesize", "384", "van_b0.pth", "out"])
    assert stop.value.code == 2
    assert "unknown option '--imagesize': did you mean --image-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "message"),
    [("van_b1", "It holds van_b0"), ("smt_t", "It holds van_b0"), ("resnet18", "another architecture")],
)
def test_weights_of_another_variant_are_named(variant, message):
    model = timm.create_model(variant)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        dmformer.load_weights(model, authors("van_b0"))
    assert_same(model.state_dict(), before)
