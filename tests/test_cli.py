"""The command: its help, its error messages, its output."""

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dmformer.cli import main
from dmformer.cli.parsing import parse
from dmformer.cli.train import of_its_weights
from dmformer.models.catalogue import catalogue
from dmformer.tasks.classification.classifier import open_classifier
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.recipes import RECIPES
from dmformer.train.loop import train
from dmformer.utils.device import find_device
from dmformer.utils.errors import UserError
from dmformer.utils.model_names import model_names


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["eval"], ["predict"], ["explain"], ["analyse"], ["export"], ["serve"], ["choose"], ["models"]],
)
def test_help_teaches_by_example(capsys, command):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "examples:" in out
    assert f"dmformer {' '.join(command)}".strip() in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "unknown command 'trian': did you mean train?"),
        (["train", "elvp"], "unknown recipe 'elvp': did you mean elpv?"),
        (["train", "--modle", "x"], "unknown option '--modle': did you mean --model"),
        (["train", "--model", "dmformer_z"], "unknown model 'dmformer_z': did you mean dmformer_"),
        (["train", "--model", "resnet19"], "did you mean resnet1"),
        (["train", "--lr", "fast"], "could not convert string to float: 'fast'"),
        (["train", "--lr", "-1"], "--lr is -1.0: it cannot be negative"),
        (["train", "--image-size", "31"], "--image-size is 31: the models need 32 pixels or more"),
        (["train", "--epochs", "0"], "it must be 1 or more"),
        (["train", "--mean", "0.5"], "--mean"),
        (["train", "--precision", "int8"], "invalid choice 'int8'"),
        (["train", "--model-args", "gate"], "--model-args takes name=value"),
        (["train", "--data", "nowhere"], "unknown data 'nowhere': give a folder of class"),
        (["train", "--data", "trch/cifar10"], "did you mean torch?"),
        (["train", "--weights", "nowhere/best"], "nowhere/best does not exist"),
        (["train", "--resume", "--out", "nowhere"], "holds no run to resume"),
        (["eval", "nowhere"], "nowhere does not exist"),
        (["eval"], "Missing"),
        (["predict", ".", "photo.jpg"], "holds no config.json"),
        (["predict", "nowhere"], "name the photos"),
        (["train", "--device", "gpu"], "--device is gpu: it must be auto, cpu, cuda, cuda:N"),
        (["predict", "dmformer_n", ".", "--device", "gpu0"], "--device is gpu0: it must be"),
        (["explain", "dmformer_n", ".", "--device", "gpu"], "--device is gpu: it must be"),
        (["eval", "dmformer_n", "--device", "cuda:x"], "--device is cuda:x: it must be"),
        (["models", "resnet"], "unknown model 'resnet'"),
    ],
)
def test_mistakes_are_one_line_with_what_to_do(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "--model", "dmformer_z"], ["train", "--lrr", "1"], ["eval", "nowhere"]],
)
def test_help_and_mistakes_do_not_import_torch(arguments):
    code = (
        "import sys, dmformer_command\n"
        f"sys.argv = ['dmformer', *{arguments!r}]\n"
        "try:\n    dmformer_command.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'timm', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_mistakes_in_the_data_are_told_before_torch_is_imported(tmp_path, photos, scenes, shapes):
    """One process for all tasks: classes that differ, a mask with a strange id, a leak, a folder of no known layout."""
    (photos / "red car").rename(tmp_path / "only")
    (photos / "grünes Haus").rename(tmp_path / "rest")
    Image.new("L", (56, 40), 9).save(scenes / "annotations" / "training" / "0.png")
    (shapes / "val" / "101.png").write_bytes((shapes / "train" / "1.png").read_bytes())
    (tmp_path / "empty").mkdir()
    commands = {
        f"classify --data {photos}": "holds one class",
        f"segment --data {scenes} --classes sky ground box --ignore-index 3": "1 of 19 images with their masks cannot",
        f"detect --data {shapes}": "1 photo is both in train and val",
        f"segment --data {tmp_path / 'empty'}": "has no layout that is known",
        f"detect --data {tmp_path / 'empty'}": "has no layout that is known",
        f"pretrain --unlabelled {tmp_path / 'empty'} --teacher dmformer_n": "contains no images",
    }
    code = (
        "import sys, dmformer_command\n"
        f"for command in {list(commands)!r}:\n"
        "    sys.argv = ['dmformer', 'train', *command.split()]\n"
        "    try:\n        dmformer_command.main()\n    except SystemExit as stop:\n        assert stop.code == 2\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr
    for told, expected in zip(done.stderr.splitlines(), commands.values(), strict=True):
        assert told.startswith("dmformer: ")
        assert expected in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_train_eval_predict(capsys, recipe, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model-args", *recipe.model_args, "--data", photos, "--image-size", 32, "--epochs", 8, "--lr-batch", 8]
    code, out, err = run(capsys, "train", "scratch", *options, "--batch-size", 8, "--workers", 0, "--tracker", "none")
    assert code == 0
    assert "runs/photos-dmformer_n-1/report.html" in out
    assert "epoch 8 of 8: loss" in err
    best = tmp_path / "runs" / "photos-dmformer_n-1" / "best"

    code, out, err = run(capsys, "eval", best, "--data", photos, "--workers", 0, "--json", "scores.json")
    assert code == 0
    assert "36 images" in out
    assert "the run was trained on 26 of these 36 photos" in err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["count"] == 36
    assert sum(map(sum, scores["confusion"])) == 36
    code, out, _ = run(capsys, "eval", best, "--data", photos, "--workers", 0, "--json", "-")
    assert json.loads(out) == scores

    code, out, err = run(capsys, "eval", best, "--workers", 0, "--json", "own.json")
    assert "5 images (held-out photos of the run)" in out
    assert "scoring the test photos of the run" in err
    held_out = json.loads((best.parent / "scores.json").read_text())
    assert json.loads((tmp_path / "own.json").read_text()) == held_out

    (photos / "蓝天" / "broken.png").write_bytes(b"no image")
    (photos / ".ipynb_checkpoints").mkdir()
    (photos / ".ipynb_checkpoints" / "0.png").write_bytes(b"no image")
    code, out, err = run(capsys, "predict", best, photos, "--top", 2, "--format", "csv")
    assert "skipped 1 file of the system or of dmformer: .ipynb_checkpoints (1)" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == 37
    assert [row["photo"] for row in rows if row["error"]] == [str(photos / "蓝天" / "broken.png")]
    code, out, _ = run(capsys, "predict", best, photos / "red car" / "0.png", "--format", "json")
    found = json.loads(out)[0]["classes"]
    assert sum(c["probability"] for c in found) == pytest.approx(1)
    code, out, _ = run(capsys, "predict", best, photos / "red car" / "0.png")
    assert "0.png" in out
    assert found[0]["class"] in out

    code, _, err = run(capsys, "train", "scratch", *options, "--name", "photos-dmformer_n-1")
    assert code == 2
    assert "exists already" in err
    assert best.is_dir()


def test_predict_tells_what_is_no_video_and_refuses_a_mixture(capsys, trained_classifier, photos, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 99)
    code, out, err = run(capsys, "predict", trained_classifier.folder, tmp_path / "bad.mp4", "--format", "csv")
    assert (code, len(out.splitlines())) == (1, 2)
    assert err.startswith("dmformer: the video cannot be read: not a video, damaged, or in a format that cannot be")
    photo = photos / "red car" / "0.png"
    for arguments, told in (
        ([tmp_path / "bad.mp4", photo], "give photos or videos, not both at once"),
        ([photo, "--every", "2s"], "--every is for videos; these are photos"),
        ([tmp_path / "bad.mp4", "--labels-as", "csv"], "--labels-as is for photos"),
        ([tmp_path / "bad.mp4", "--every", "often"], "--every often: give seconds or a number of frames"),
    ):
        code, out, err = run(capsys, "predict", trained_classifier.folder, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err


def test_predict_reads_standard_input(capsys, trained_classifier, photos, monkeypatch):
    content = (photos / "grünes Haus" / "3.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, _ = run(capsys, "predict", trained_classifier.folder, "-", "--format", "json", "--top", "1")
    assert code == 0
    assert json.loads(out)[0]["classes"][0]["class"] == "grünes Haus"


def test_predict_lists_whole_answers_and_counts_the_photos(capsys, trained_classifier, photos, tmp_path, monkeypatch):
    """In a pipe, each class has a row, and nothing is cut; a wide terminal shows a row for each photo."""
    long = tmp_path / ("a long name of a folder " * 4) / "photo.png"
    long.parent.mkdir()
    shutil.copy(photos / "red car" / "0.png", long)
    for name, content in (("empty.png", b""), ("text.jpg", b"no image")):
        (long.parent / name).write_bytes(content)
    best = trained_classifier.folder / "best"
    code, out, err = run(capsys, "predict", best, long.parent, "--top", 2)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["photo", "class", "probability"]
    assert [line for line in lines if str(long) in line] == lines[2:4]
    assert "red car" in lines[2]
    assert "1 photo in" in err
    assert "2 could not be read: not an image, or in a format that cannot be read (2)" in err

    monkeypatch.setattr("dmformer.cli.printing.fits_terminal", lambda header, rows: True)
    monkeypatch.setattr("dmformer.cli.predict.fits_terminal", lambda header, rows: True)
    _, out, _ = run(capsys, "predict", best, long, "--top", 2)
    assert out.split()[:5] == ["photo", "class", "1", "probability", "1"]
    assert "red car" in out

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no image")))
    code, out, err = run(capsys, "predict", best, "-", "--format", "json")
    assert code == 1
    assert "the photo cannot be read: not an image, or in a format that cannot be read (1)." in err
    assert json.loads(out) == [{"name": "-", "error": "not an image, or in a format that cannot be read"}]


def test_unfit_and_hostile_weights_are_refused(capsys, trained_classifier, photos, tmp_path):
    best = shutil.copytree(trained_classifier.folder / "best", tmp_path / "best")
    whole = (best / "model.safetensors").read_bytes()
    (best / "model.safetensors").write_bytes(whole[:5000])
    code, _, err = run(capsys, "predict", best, photos)
    assert code == 2
    assert "damaged" in err
    (best / "model.safetensors").write_bytes(whole)
    state = load_file(best / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "head.fc.bias"}, best / "model.safetensors")
    assert "lacks head.fc.bias" in run(capsys, "predict", best, photos)[2]
    save_file({**state, "head.fc.weight": torch.zeros(7, 32)}, best / "model.safetensors")
    assert "class count: it has head.fc.weight of shape (7, 32), not (3, 32)" in run(capsys, "predict", best, photos)[2]
    (best / "model.safetensors").write_bytes(whole)
    config = json.loads((best / "config.json").read_text())
    (best / "config.json").write_text(json.dumps({**config, "architecture": "dmformer_x"}))
    assert "unknown model 'dmformer_x'" in run(capsys, "predict", best, photos)[2]
    (best / "config.json").write_text("{")
    assert "not a model's configuration" in run(capsys, "predict", best, photos)[2]

    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"state_dict": {"a": Hostile()}}, tmp_path / "hostile.pth")
    out = ["--out", tmp_path / "runs2", "--data", photos, "--image-size", "32", "--tracker", "none"]
    code, _, err = run(capsys, "train", "scratch", "--weights", tmp_path / "hostile.pth", *out)
    assert code == 2
    assert "refused" in err
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_weights_files_of_others_are_unwrapped(trained_classifier, tmp_path):
    from dmformer.models.weights import load_weights

    classifier = open_classifier(str(trained_classifier.folder))
    state = classifier.model.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "w.pth")
    for parameter in classifier.model.parameters():
        torch.nn.init.zeros_(parameter)
    load_weights(classifier.model, str(tmp_path / "w.pth"))
    assert all(
        torch.equal(v, load_file(trained_classifier.folder / "best" / "model.safetensors")[k]) for k, v in state.items()
    )


@pytest.mark.slow
def test_models_lists_every_entry_point(capsys):
    import timm

    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("dmformer.")]
    assert model_names() == sorted(ours)
    assert {"resnet18", "convnext_tiny"} <= set(model_names("timm"))
    code, out, _ = run(capsys, "models", "dmformer_s", "--format", "json")
    assert code == 0
    (entry,) = json.loads(out)
    assert entry["published_top1"] == 82.8
    assert entry["parameters"] == pytest.approx(26.7, rel=0.005)
    assert [e.name for e in catalogue("dmformer_[nt]")] == ["dmformer_n", "dmformer_t"]


def test_an_unknown_choice_of_kernels_is_told(capsys, monkeypatch):
    monkeypatch.setenv("DMFORMER_KERNELS", "fast")
    with pytest.raises(SystemExit):
        main(["models"])
    assert "DMFORMER_KERNELS must be one of auto, plain, triton, not 'fast'" in capsys.readouterr().err


def test_the_command_keeps_memory_unless_the_environment_says_otherwise(monkeypatch):
    import dmformer_command

    for name in [n for n in dmformer_command.os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    asked = []
    libc = type("libc", (), {"mallopt": lambda self, *arguments: asked.append(arguments)})()
    monkeypatch.setattr(dmformer_command.ctypes, "CDLL", lambda _: libc)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    dmformer_command.keep_memory()
    assert asked == [(-3, 2**30), (-1, 2**31 - 1)]
    assert dmformer_command.os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    dmformer_command.keep_memory()
    assert len(asked) == 2


def test_a_device_is_there_or_told(monkeypatch, recipe):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device, told in (("mps", "finds no Metal GPU"), ("cuda:0", "finds no CUDA device")):
        with pytest.raises(UserError, match=f"--device {device}: PyTorch {told}.*give --device cpu"):
            train(replace(recipe, device=device))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device cuda:2: this machine has cuda:0 to cuda:1"):
        find_device("cuda:2")


def test_the_device_reaches_the_model(capsys, trained_classifier, photos, monkeypatch):
    asked = []
    monkeypatch.setattr("dmformer.models.weights.find_device", lambda name: asked.append(name) or torch.device("cpu"))
    monkeypatch.setattr(
        "dmformer.interpret.explain.find_device", lambda name: asked.append(name) or torch.device("cpu")
    )
    photo, best = photos / "red car" / "0.png", trained_classifier.folder / "best"
    assert run(capsys, "predict", best, photo, "--device", "cuda:1")[0] == 0
    assert run(capsys, "eval", best, "--data", photos, "--workers", "0", "--device", "mps")[0] == 0
    out = photos.parent / "explained"
    assert run(capsys, "explain", best, photo, "--device", "cuda", "--layer", "1", "--out", out)[0] == 0
    assert asked == ["cuda:1", "mps", "cuda"]


def test_none_is_written_as_people_write_it():
    recipe = parse(ClassificationRecipe, ["--ema", "none", "--tracker", "none", "--clip-grad", "1"], "train")
    assert recipe.ema is None
    assert recipe.tracker == "none"
    assert recipe.clip_grad == 1


def test_the_model_is_that_of_the_starting_weights(trained_classifier):
    best = str(trained_classifier.folder / "best")
    recipe = of_its_weights(replace(RECIPES["finetune"](), weights=best), keep_arguments=False)
    assert recipe.model == "dmformer_n"
    assert recipe.parsed_model_args()["dims"] == [8, 16, 24, 32]
    assert "num_classes" not in recipe.parsed_model_args()
    kept = of_its_weights(replace(recipe, model_args=("gate=False",)), keep_arguments=True)
    assert kept.model_args == ("gate=False",)
    assert of_its_weights(replace(recipe, weights="authors.pth"), keep_arguments=False).weights == "authors.pth"
    assert (
        of_its_weights(replace(RECIPES["segment"](), weights="dmformer_n"), keep_arguments=False).model == "dmformer_n"
    )
