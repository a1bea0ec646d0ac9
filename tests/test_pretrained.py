"""The weights in the package: found by name, checked, adapted, and the start of training."""

import shutil
from dataclasses import replace

import pytest
import timm
import torch

import dmformer
from dmformer.bench.variants import open_model
from dmformer.cli.checks import check_source_or_name
from dmformer.interpret.subject import open_subject
from dmformer.models.weights import load_weights
from dmformer.tasks.build import no_pretrained_note, with_normalisation, with_precision, with_pretrained
from dmformer.tasks.opening import open_trained
from dmformer.tasks.recipes import RECIPES
from dmformer.utils import pretrained
from dmformer.utils.device import computes_bf16
from dmformer.utils.errors import UserError
from dmformer.utils.pretrained import CHECKSUMS, FOLDER, class_names, folder_of

NAMES = list(CHECKSUMS)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A copy of the package's weights that a test may damage."""
    monkeypatch.setattr(pretrained, "FOLDER", shutil.copytree(FOLDER, tmp_path / "pretrained"))
    return tmp_path / "pretrained"


def test_every_folder_of_weights_has_a_checksum_and_a_card():
    assert sorted(p.name for p in FOLDER.iterdir() if p.is_dir()) == sorted(NAMES)
    for name in NAMES:
        assert (FOLDER / name / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
        assert (FOLDER / name / "model.safetensors").stat().st_size < 10e6
    assert timm.list_models("dmformer_*", pretrained=True) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_timm_loads_them(name):
    model = timm.create_model(name, pretrained=True)
    assert timm.create_model(name.partition(".")[0], pretrained=True).state_dict().keys() == model.state_dict().keys()
    weights = model.state_dict()
    loaded = timm.create_model(name)
    load_weights(loaded, name)
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items() if "num_" not in key)
    cfg = model.pretrained_cfg
    assert cfg["tag"] == name.partition(".")[2]
    assert cfg["label_names"][:2] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]
    assert len(cfg["label_names"]) == 1000


@pytest.mark.parametrize("name", NAMES)
def test_they_are_adapted_to_other_heads_channels_and_maps(name):
    whole = timm.create_model(name, pretrained=True).eval()
    x = torch.randn(1, 3, 72, 96)
    narrow = timm.create_model(name, pretrained=True, num_classes=7).eval()
    assert narrow(x).shape == (1, 7)
    torch.testing.assert_close(narrow.forward_features(x), whole.forward_features(x))
    maps = timm.create_model(name, pretrained=True, features_only=True).eval()(x)
    torch.testing.assert_close(maps[-1], whole.forward_intermediates(x, intermediates_only=True)[-1])
    first = whole.stages[0].downsample[0].weight
    grey = timm.create_model(name, pretrained=True, in_chans=1).stages[0].downsample[0].weight
    torch.testing.assert_close(grey, first.sum(1, keepdim=True), rtol=1e-3, atol=1e-3)  # timm sums in half precision
    assert timm.create_model(name, pretrained=True, in_chans=4)(torch.randn(2, 4, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_they_open_by_name_and_answer_with_imagenets_classes(name):
    for given in (name, name.partition(".")[0]):
        classifier = open_trained(given)
        assert classifier.class_names == class_names(FOLDER / name)
    assert folder_of("somewhere/else") != FOLDER


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dmformer_n").mkdir()
    assert folder_of("dmformer_n").resolve() == tmp_path / "dmformer_n"


@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_a_missing_or_damaged_file_is_told(package, change):
    file = package / NAMES[0] / "model.safetensors"
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"the weights {NAMES[0]} .*{change}.*reinstall it"):
        with_pretrained(replace(RECIPES["scratch"](), pretrained="auto"))


def test_models_without_weights_name_those_with_weights():
    for model in ("van_b0", "dmformer_s", "vitae_b"):
        with pytest.raises(ValueError, match=rf"ships no weights for {model}.*{NAMES[0]}.*dmformer convert"):
            timm.create_model(model, pretrained=True)
    with pytest.raises(UserError, match=r"ships no weights for smt_t\.dist_lite0"):
        replace(RECIPES["scratch"](), model="smt_t", pretrained="dist_lite0").check()


def test_recipes_start_from_them_where_they_fit():
    recipe = replace(RECIPES["scratch"](), pretrained="auto")
    started = with_normalisation(with_pretrained(recipe))
    assert started.weights == NAMES[0]
    assert started.mean == tuple(timm.create_model(NAMES[0]).pretrained_cfg["mean"])
    assert with_pretrained(replace(recipe, pretrained="none")).weights is None
    assert "no weights for smt_t: training starts from random" in no_pretrained_note(replace(recipe, model="smt_t"))
    assert "for dmformer_n with these --model-args: training" in no_pretrained_note(recipe)
    assert with_pretrained(replace(recipe, weights="runs/a/best")).weights == "runs/a/best"
    for other in ({"model": "smt_t"}, {"model_args": ("gate=False",)}):
        assert with_pretrained(replace(recipe, **other)).weights is None
    with pytest.raises(UserError, match=r"does not fit dmformer_n with these --model-args: it contains .*gate"):
        with_pretrained(replace(recipe, model_args=("gate=False",), pretrained="dist_lite0"))


@pytest.mark.parametrize(
    ("able", "model", "device", "chosen"),
    [
        (True, "dmformer_n", "cpu", "bf16"),
        (False, "dmformer_n", "cpu", "no"),
        (True, "efficientnet_b0", "cpu", "no"),  # slower in bf16 on a CPU
        (True, "efficientnet_b0", "cuda", "bf16"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(able, model, device, chosen, monkeypatch):
    monkeypatch.setattr("dmformer.tasks.build.find_device", torch.device)
    monkeypatch.setattr("dmformer.tasks.build.computes_bf16", lambda device: able)
    recipe = replace(RECIPES["scratch"](), model=model, device=device)
    assert with_precision(recipe).precision == chosen
    for kept in ({"precision": "fp16"}, {"resume": True}):  # what the user gave, and what the run was started with
        assert with_precision(replace(recipe, **kept)).precision == replace(recipe, **kept).precision


@pytest.mark.parametrize("instructions", [{"avx512_bf16": True}, {"amx_bf16": True}, {}])
def test_a_processor_with_bf16_instructions_is_recognised(instructions, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, **instructions})
    assert computes_bf16(torch.device("cpu")) == bool(instructions)
    assert not computes_bf16(torch.device("mps"))


@pytest.mark.parametrize("name", NAMES)
def test_commands_take_the_name_with_its_tag(name):
    check_source_or_name(name)  # analyse and bench, where the name alone stands for random weights
    assert open_subject(name).trained
    model, answer = open_model(name, 64)
    assert answer == "labels"
    assert torch.equal(model.get_parameter("head.fc.bias"), timm.create_model(name, pretrained=True).head.fc.bias)


def test_the_name_is_public():
    model = timm.create_model("dmformer_n")
    dmformer.load_weights(model, "dmformer_n")
