"""The loop: what it writes, how it stops and resumes, and what several processes do."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import timm
import torch
import yaml
from conftest import classification_recipe, draw_photos
from safetensors.torch import load_file

import dmformer.tasks.classification.training
import dmformer.train.loop
from dmformer.cli import main
from dmformer.models.weights import load_weights
from dmformer.predict.classes import predict
from dmformer.tasks.classification.classifier import open_classifier
from dmformer.tasks.classification.evaluate import evaluate
from dmformer.tasks.classification.model import build_model, freeze
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.recipes import RECIPES, read_recipe
from dmformer.train.loop import Run, Stopped, Trainer, train
from dmformer.train.processes import number_of_processes, together
from dmformer.utils.errors import UserError


def rows_of(run: Run) -> list[dict[str, str]]:
    with (run.folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_run_folder(trained_classifier, recipe, photos):
    run = trained_classifier
    assert {p.name for p in run.folder.iterdir()} == {
        "recipe.yaml",
        "metrics.csv",
        "best",
        "last",
        "scores.json",
        "report.html",
        "check.html",
        "commands.jsonl",
        "run.lock",
    }
    assert run.scores.count == 5
    assert run.split == "test"
    assert run.scores.top1.value == 1.0  # three plain colours
    rows = rows_of(run)
    assert [float(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert 0 <= float(rows[-1]["wait_share"]) < 1
    saved = read_recipe(run.folder / "recipe.yaml")
    normalisation = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    data, out = str(run.folder.parents[1] / "photos"), str(run.folder.parent)
    assert saved == replace(recipe, epochs=8, mixup=0.0, data=data, out=out, **normalisation)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "蓝天" in page
    assert "100.0\N{NO-BREAK SPACE}%" in page

    # timm, the other commands and the page agree on best/
    model = timm.create_model(f"local-dir:{run.folder / 'best'}", pretrained=True).eval()
    classifier = open_classifier(str(run.folder))
    assert classifier.class_names == sorted(p.name for p in photos.iterdir())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), classifier.model(images))
    assert tuple(classifier.data_config["input_size"]) == (3, 32, 32)
    scores = evaluate(str(run.folder / "best"), str(photos), workers=0)
    assert scores.count == 36
    assert scores.top1.value == 1.0
    found = list(predict(str(run.folder / "best"), [str(photos)], top=2))
    assert len(found) == 36
    assert all(Path(p.name).parent.name == p.classes[0][0] for p in found)
    assert all(p.classes[0][1] >= p.classes[1][1] for p in found)


@pytest.mark.slow
def test_a_run_can_be_scored_later(recipe):
    run = train(replace(recipe, epochs=1), score=False)
    assert (run.scores, run.split) == (None, "")
    assert not run.report.exists()
    assert not (run.folder / "scores.json").exists()
    weights = final_weights(run.folder)
    scored = train(replace(recipe, epochs=1, resume=True))
    assert scored.scores.count == 5
    assert scored.report.is_file()
    assert len(rows_of(scored)) == 1
    assert_same(final_weights(scored.folder), weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `recipe` that is never stopped: tests only read its folder."""
    return train(classification_recipe(draw_photos(tmp_path_factory.mktemp("whole"))))


@pytest.mark.parametrize("stop_at", [1, 4])  # in the middle of the first epoch, and of the second
@pytest.mark.slow
def test_resumed_run_equals_one_never_stopped(recipe, whole, monkeypatch, stop_at):
    stopped = replace(recipe, name="stopped")
    step, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(Stopped) as error:
        train(stopped)
    assert error.value.number == signal.SIGTERM
    assert len(count) == stop_at
    resumed = train(replace(stopped, resume=True))
    assert len(count) == 6
    assert_same(final_weights(whole.folder), final_weights(resumed.folder))
    a, b = rows_of(whole), rows_of(resumed)
    for key in ("train_loss", "train_top1", "val_loss", "val_top1", "lr"):
        assert [row[key] for row in a] == [row[key] for row in b]


@pytest.mark.slow
def test_killed_run_goes_on_from_its_last_save(recipe, whole, monkeypatch):
    killed = replace(recipe, name="killed", save_every=2)
    step, count = Trainer._step, []

    class KilledError(BaseException):
        pass

    def dying(self, *arguments):
        count.append(1)
        if len(count) == 3:
            raise KilledError
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", dying)
    with pytest.raises(KilledError):
        train(killed)
    resumed = train(replace(killed, resume=True))
    assert len(count) == 3 + 4  # the third iteration is repeated
    assert_same(final_weights(whole.folder), final_weights(resumed.folder))


@pytest.mark.slow
def test_interrupted_save_leaves_the_one_before(recipe, monkeypatch):
    run = train(replace(recipe, epochs=1))
    before = final_weights(run.folder)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accelerate.Accelerator.save_state", full)
    with pytest.raises(UserError, match=r"No space left on device.*--resume"):
        train(replace(recipe, epochs=2, resume=True))
    assert_same(before, final_weights(run.folder))
    assert not list(run.folder.glob("*.part"))


def test_infinite_loss_stops_with_what_to_try(recipe, monkeypatch):
    cross_entropy = torch.nn.functional.cross_entropy
    count = []

    def growing(*arguments, **options):
        count.append(1)
        return cross_entropy(*arguments, **options) * (float("inf") if len(count) == 5 else 1)

    monkeypatch.setattr(dmformer.tasks.classification.training.F, "cross_entropy", growing)
    with pytest.raises(UserError, match=r"loss is inf at iteration 2 of epoch 2, learning rate .*--lr"):
        train(recipe)
    assert (Path(recipe.out) / "run" / "last").is_dir()


@pytest.mark.slow
def test_run_folder_is_never_overwritten_unasked(recipe):
    train(replace(recipe, epochs=1))
    with pytest.raises(UserError, match="exists already"):
        train(replace(recipe, epochs=1))
    train(replace(recipe, epochs=1, overwrite=True))
    unnamed = train(replace(recipe, epochs=1, name=None))
    assert unnamed.folder.name == "photos-dmformer_n-1"
    with pytest.raises(UserError, match="no run to resume"):
        train(replace(recipe, out=recipe.out + "-none", name=None, resume=True))


FAMILIES = {
    "van_b0": ("dims=[8,16,24,32]", "depths=[1,1,1,1]"),
    "smt_t": ("dims=[16,16,32,32]", "depths=[1,1,2,1]"),
    "vitae_t": ("embed_dims=[8,8,16]", "dims=[8,8,32]", "depth=2", "groups=8"),
    "vitae_b": ("dim=32", "depth=2", "heads=2"),
    "vitaev2_s": (
        "embed_dims=[16,16,16,16]",
        "dims=[16,16,32,32]",
        "depths=[1,1,1,1]",
        "groups=[1,4,4,8]",
        "reduction_groups=[1,4,4,4]",
    ),
}


IN_BF16 = [pytest.param(m, "bf16", marks=[] if m == "vitae_t" else pytest.mark.long) for m in FAMILIES]


@pytest.mark.parametrize(("model", "precision"), [*((m, "no") for m in FAMILIES), *IN_BF16])
@pytest.mark.slow
def test_every_family_trains_evaluates_and_predicts(model, precision, recipe, photos):
    """From the recipe to the report without a special case; the report tells the three colours apart."""
    run = train(replace(recipe, model=model, model_args=FAMILIES[model], epochs=6, precision=precision, mixup=0.0))
    assert all(math.isfinite(float(row["train_loss"])) for row in rows_of(run))
    assert run.scores.top1.value >= 0.6
    assert (run.folder / "report.html").exists()
    assert evaluate(str(run.folder), str(photos)).top1.value >= 0.6
    (found,) = predict(str(run.folder), [str(next(photos.rglob("*.png")))])
    assert found.error is None


@pytest.mark.slow
def test_accumulated_batches_equal_one(recipe):
    """Two batches of 4 give the gradients of one batch of 8, in a model without BatchNorm's batch statistics."""
    plain = replace(recipe, epochs=1, mixup=0.0, drop_path_rate=0.0, ema=None, optimizer="sgd", freeze=4, lr_batch=8)
    one = train(replace(plain, name="one", batch_size=8))
    two = train(replace(plain, name="two", batch_size=4, accumulate=2))
    a, b = final_weights(one.folder), final_weights(two.folder)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_frozen_stages_stay(recipe):
    run = train(replace(recipe, epochs=1, freeze=2, ema=None))
    class_names = open_classifier(str(run.folder)).class_names
    dmformer.train.loop.set_seed(recipe.seed)
    start = build_model(recipe, class_names)[0].state_dict()
    end = final_weights(run.folder)
    for name in end:
        if "num_batches" not in name and "running" not in name:
            moved = not torch.equal(start[name], end[name])
            assert moved != name.startswith(("stages.0", "stages.1")), name
    assert torch.equal(end["stages.0.downsample.1.running_mean"], start["stages.0.downsample.1.running_mean"])
    with pytest.raises(UserError, match="stages"):
        freeze(timm.create_model("resnet18"), 1)


@pytest.mark.slow
def test_fine_tuning_starts_from_weights(recipe, trained_classifier):
    first = trained_classifier
    tuned = replace(recipe, name="tuned", weights=str(first.folder / "best"), freeze=4, epochs=1, ema=None)
    end = final_weights(train(tuned).folder)
    start = load_file(first.folder / "best" / "model.safetensors")
    assert torch.equal(end["stages.2.blocks.0.mixer.reduce.weight"], start["stages.2.blocks.0.mixer.reduce.weight"])
    with pytest.raises(UserError, match="another architecture"):
        load_weights(timm.create_model("resnet18"), str(first.folder / "best"))
    with pytest.raises(UserError, match="another size"):
        load_weights(timm.create_model("dmformer_n", depths=(1, 1, 1, 1)), str(first.folder / "best"))


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": "balanced", "label_smoothing": 0.1, "mixup": 0.0, "layer_decay": 0.8, "clip_grad": 1.0},
        {"cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.3, "precision": "bf16", "accumulate": 3},
        {"grad_checkpointing": True, "channels_last": False, "optimizer": "lamb", "workers": 2, "ema": None},
    ],
    ids=["weights", "augmentation", "layout"],
)
@pytest.mark.slow
def test_options_train(recipe, options):
    run = train(replace(recipe, epochs=1, **options))
    assert run.scores.count == 5


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole(name, tmp_path):
    recipe = RECIPES[name]()
    replace(recipe, weights="best/", data=recipe.data or "photos/").check()  # some cannot do without them
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert read_recipe(tmp_path / "r.yaml") == recipe
    assert yaml.safe_load(recipe.to_yaml())["model"] == recipe.model
    assert timm.is_model(recipe.model)


PAPERS = {  # epochs, batch size, learning rate and its batch, weight decay, drop path, and other details
    "imagenet1k_dmformer_s": (300, 1024, 1e-3, 0.05, 0.1, {}),
    "imagenet1k_dmformer_l": (300, 1024, 1e-3, 0.05, 0.2, {}),
    "imagenet1k_van_b2": (310, 1024, 1e-3, 0.05, 0.1, {"cooldown_epochs": 10, "warmup_epochs": 5.0, "erasing": 0.25}),
    "imagenet1k_van_b3": (310, 1024, 1e-3, 0.05, 0.2, {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}),
    "imagenet22k_van_b4": (90, 8192, 4e-3, 0.05, 0.2, {}),
    "imagenet22k_to_1k_van_b4": (30, 512, 5e-5, 1e-8, 0.2, {"mixup": 0.0, "cutmix": 0.0, "head": "imagenet1k"}),
    "imagenet22k_to_1k_384_van_b4": (30, 512, 5e-5, 1e-8, 0.2, {"image_size": 384, "head": "imagenet1k"}),
    "imagenet1k_smt_t": (300, 1024, 2e-3, 0.05, 0.1, {"clip_grad": 5.0, "mixup": 0.2, "cutmix": 1.0}),
    "imagenet1k_smt_b": (300, 1024, 2e-3, 0.05, 0.3, {}),
    "imagenet22k_smt_l": (90, 1024, 2e-3, 0.05, 0.4, {}),
    "imagenet1k_vitae_t": (300, 512, 1e-3, 0.03, 0.1, {"warmup_epochs": 10.0, "lr_min": 1e-5, "ema": 0.99996}),
    "imagenet1k_vitaev2_s": (300, 1024, 1e-3, 0.05, 0.1, {}),
    "imagenet1k_vitaev2_48m": (300, 1024, 1e-3, 0.055, 0.25, {}),
    "imagenet1k_vitaev2_b": (300, 1024, 1e-3, 0.065, 0.4, {}),
}


@pytest.mark.parametrize("name", PAPERS)
def test_paper_recipes(name):
    epochs, batch, lr, weight_decay, drop_path, rest = PAPERS[name]
    recipe = RECIPES[name]()
    assert 8 * recipe.batch_size * recipe.accumulate == recipe.lr_batch == batch
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.drop_path_rate) == (
        epochs,
        lr,
        weight_decay,
        drop_path,
    )
    assert {key: getattr(recipe, key) for key in rest} == rest


def test_recipes_that_need_weights_say_so():
    with pytest.raises(UserError, match="--weights"):
        RECIPES["imagenet22k_to_1k_van_b4"]().check()


@pytest.mark.slow
def test_cool_down_keeps_the_lowest_learning_rate(recipe):
    run = train(replace(recipe, epochs=4, cooldown_epochs=2, warmup_epochs=0.5, lr_min=1e-5, ema=None))
    with (run.folder / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[0] > rates[1] >= rates[2]
    assert rates[2:] == pytest.approx([1e-5, 1e-5])


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(recipe, two_processes):
    """Two half batches on two processes update the weights as one batch on one does (BatchNorm aside)."""
    plain = replace(recipe, epochs=1, mixup=0.0, drop_path_rate=0.0, ema=None, optimizer="sgd", freeze=4)
    one = train(replace(plain, name="one", batch_size=8))
    two_processes(train, replace(plain, name="two", batch_size=4))
    a, b = final_weights(one.folder), final_weights(Path(recipe.out) / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
    page = (Path(recipe.out) / "two" / "report.html").read_text(encoding="utf-8")
    assert page.count("<html") == 1


@pytest.mark.slow
@pytest.mark.long
def test_the_command_runs_on_two_processes(recipe):
    """As in the documentation: only the first process prints the scores, and every process exits cleanly."""
    arguments = ["train", "scratch", "--data", recipe.data, "--out", recipe.out, "--name", "two", "--epochs", "1"]
    arguments += ["--model-args", *recipe.model_args, "--image-size", "32", "--batch-size", "4", "--workers", "0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "dmformer", *arguments, "--tracker", "none"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("top-1") == 1
    assert done.stdout.count("best weights:") == 1


def run_command(arguments: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dmformer", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def command_options(recipe: ClassificationRecipe) -> list[str]:
    options = ["--data", recipe.data, "--out", recipe.out, "--model-args", *recipe.model_args, "--image-size", "32"]
    options += ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--tracker", "none", "--optimizer", "sgd"]
    return [*options, "--ema", "none", "--freeze", "4", "--precision", "no"]


@pytest.mark.slow
def test_the_command_starts_its_processes(recipe, capsys, monkeypatch):
    """Two processes of the command train the weights of one, and a resumed run asks for as many as before."""
    options = command_options(recipe)
    main(["train", "scratch", *options, "--name", "one", "--processes", "1"])
    assert capsys.readouterr().out.count("best weights:") == 1
    done = run_command(["train", "scratch", *options, "--name", "two", "--processes", "2", "--threads", "2"])
    assert done.stdout.count("best weights:") == 1
    assert "Warning" not in done.stderr
    a, b = (final_weights(Path(recipe.out) / name) for name in ("one", "two"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
    saved = read_recipe(Path(recipe.out) / "two" / "recipe.yaml")
    assert (saved.batch_size, saved.processes) == (8, 2)
    assert "cores, 2 threads" in (Path(recipe.out) / "two" / "report.html").read_text()  # while the other process waits

    asked = []

    def stop(recipe, arguments):
        asked.append((recipe.processes, arguments))
        raise UserError("stop")

    resume = ["--resume", "--out", recipe.out, "--name", "two", "--epochs", "2"]
    monkeypatch.setattr("dmformer.train.processes.together", stop)
    with pytest.raises(SystemExit):
        main(["train", *resume])
    assert asked == [(2, resume)]


@pytest.mark.slow
@pytest.mark.long
def test_the_command_resumes_its_processes(recipe):
    run_command(["train", "scratch", *command_options(recipe), "--name", "two", "--processes", "2"])
    done = run_command(["train", "--resume", "--out", recipe.out, "--name", "two", "--epochs", "2"])
    assert "cpu x 2" in done.stderr + done.stdout


def test_the_command_has_as_many_processes_as_its_batch_and_the_threads_allow(recipe, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for batch, threads, expected in [(32, 2, 2), (32, 1, 1), (31, 2, 1), (64, 3, 2), (64, 16, 4), (16, 8, 1)]:
        assert number_of_processes(replace(recipe, batch_size=batch, threads=threads)) == expected
    assert number_of_processes(replace(recipe, batch_size=32, threads=2, processes=1)) == 1
    assert number_of_processes(replace(recipe, batch_size=32, threads=2, resume=True)) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert number_of_processes(replace(recipe, batch_size=32, threads=2)) is None


def test_processes_that_cannot_be(recipe, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="--batch-size 8 cannot be divided among --processes 3"):
        replace(recipe, batch_size=8, processes=3).check()
    with pytest.raises(UserError, match="leave it out under torchrun and in your own program"):
        train(replace(recipe, batch_size=8, processes=2))
    for text in ("soon", "0", "nan", "inf"):
        monkeypatch.setenv("DMFORMER_TIMEOUT", text)
        with pytest.raises(UserError, match=f"DMFORMER_TIMEOUT is '{text}': give a number of seconds above 0."):
            train(recipe)


@pytest.mark.slow
def test_the_failure_of_another_process_is_told(recipe, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    environment = dict(os.environ)

    def lose_the_other() -> None:
        with together(replace(recipe, processes=2), ["nothing"]):
            assert os.environ["WORLD_SIZE"] == "2"
            other = psutil.Process().children()[-1]
            while other.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(UserError, match="unknown recipe 'nothing'"):
        lose_the_other()
    assert dict(os.environ) == environment


@pytest.mark.slow
def test_threads_are_those_asked_for(recipe):
    before = torch.get_num_threads()
    try:
        train(replace(recipe, epochs=1, threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(UserError, match="--threads is 0"):
        replace(recipe, threads=0).check()
