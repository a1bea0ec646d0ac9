"""Pretraining on several sources of photos, labelled or not; probes of features."""

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from conftest import COLOURS, make_photo
from PIL import Image
from safetensors.torch import load_file
from test_distillation import final_weights, make_teacher
from test_report import HOSTILE, shows_names_as_text
from test_segmentation_report import Nesting

from dmformer.cli.main import main
from dmformer.tasks.classification.classifier import open_classifier
from dmformer.tasks.classification.datasets import has_class_folders
from dmformer.tasks.pretraining.metrics import PretrainingScores, ProbeScore, SourceScore
from dmformer.tasks.pretraining.probing import Features, knn, linear_probe, nearest
from dmformer.tasks.pretraining.recipes import PretrainingRecipe
from dmformer.tasks.pretraining.report import Neighbours, PretrainingReport, write_pretraining_report
from dmformer.tasks.pretraining.training import PretrainingJob
from dmformer.tasks.recipes import RECIPES, read_recipe
from dmformer.train.loop import Stopped, Trainer, train
from dmformer.utils.errors import UserError
from dmformer.utils.intervals import Score


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two labelled sources that share the name of a class, and unlabelled photos at any depth, one of them broken."""
    root = tmp_path / "sets"
    for name, classes in (("one", list(COLOURS)), ("two", ["red car", "other"])):
        for c, label in enumerate(classes):
            (root / name / label).mkdir(parents=True)
            for i in range(12):
                make_photo(list(COLOURS.values())[c], 100 * c + i).save(root / name / label / f"{i}.png")
    (root / "loose" / "deep" / "deeper").mkdir(parents=True)
    for i in range(14):
        make_photo((i * 15, 90, 90), i).save(root / "loose" / ("deep/deeper" if i % 2 else ".") / f"{i}.png")
    (root / "loose" / "deep" / "broken.png").write_bytes(b"\x89PNG\r\n")
    return root


@pytest.fixture
def pretraining(sets: Path, tmp_path: Path) -> PretrainingRecipe:
    return PretrainingRecipe(
        precision="no",
        model_args=("dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0"),
        data=(str(sets / "one"), str(sets / "two"), str(sets / "loose")),
        teacher=make_teacher(tmp_path / "teacher", ["a", "b", "c", "d", "e"], seed=1),
        teacher_cache=str(tmp_path / "cache"),
        teacher_views=2,
        feature_loss="cosine",
        sizes=(32, 40),
        image_size=40,
        crop_scale=(0.5, 1.0),
        val_share=0.2,
        max_broken=0.2,
        epochs=4,
        batch_size=8,
        lr=3e-3,
        lr_batch=8,
        warmup_epochs=0.5,
        ema=0.9,
        workers=0,
        out=str(tmp_path / "runs"),
        name="run",
        tracker="none",
    )


@pytest.mark.slow
def test_run(pretraining, sets):
    run = train(replace(pretraining, epochs=8, probe=str(sets / "one")))
    scores = json.loads((run.folder / "scores.json").read_text())
    assert [(s["name"], s["classes"]) for s in scores["sources"]] == [("one", 3), ("two", 2)]
    assert scores["agreement"]["value"] == pytest.approx(run.scores.agreement.value)
    assert run.scores.agreement.value > 0.4  # of five classes
    assert scores["sources"][0]["top1"]["value"] > 0.6  # of three
    assert scores["probe"]["linear"]["value"] == 1.0  # three plain colours
    assert scores["probe"]["knn"]["value"] == 1.0
    assert scores["images_seen"] > 0
    classifier = open_classifier(str(run.folder))
    assert classifier.class_names == ["a", "b", "c", "d", "e"]
    assert tuple(classifier.data_config["input_size"]) == (3, 40, 40)
    model = timm.create_model(f"local-dir:{run.folder / 'best'}", pretrained=True)
    assert model.num_classes == 5
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<ul class="near">') == 8

    assert "has seen" in page
    header, *rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert {"train_agreement", "train_features", "val_agreement", "val_top1_one", "val_top1_two"} <= set(
        header.split(",")
    )
    assert len(rows) == 8


def test_hostile_names_in_the_report(tmp_path):
    """Names are shown as they are and stay text, wherever they come from."""
    evil, score = HOSTILE[0], Score(0.5, 0.25, 0.75)
    sources = [SourceScore(name, 2, score) for name in HOSTILE]
    scores = PretrainingScores(9, 99, score, sources, ProbeScore(evil, 2, 9, 9, score, score))
    photo = Image.new("RGB", (300, 200))
    neighbours = [Neighbours((evil, photo, None), [(HOSTILE[1], photo, 0.5), ("\udcff", None, 0.25)])]
    report = PretrainingReport(
        title=f"{evil} pretrained on {evil}",
        scores=scores,
        teacher=evil,
        history=[],
        neighbours=neighbours,
        broken=[(evil, evil)],
        recipe=evil,
        facts={evil: evil, "command": evil},
    )
    write_pretraining_report(tmp_path / "report.html", report)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Nesting(html)
    page = shows_names_as_text(html)
    assert (
        f"{evil} has seen 99 images. On 9 held-out photos its first answer is that of the teacher {evil}" in page.text
    )
    assert page.text.count("cannot be shown") == 1


def test_sizes_follow_each_other():
    recipe = replace(RECIPES["pretrain"](), epochs=10, sizes=(64, 96, 128), size_shares=(0.5, 0.3, 0.2))
    assert [recipe.size(epoch) for epoch in range(10)] == [64] * 5 + [96] * 3 + [128] * 2
    assert [replace(recipe, epochs=3, size_shares=()).size(e) for e in range(3)] == [64, 96, 128]


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.slow
def test_batches_have_the_size_of_their_epoch(pretraining):
    job = PretrainingJob(pretraining)
    loader = job.train_loader(0, 1, False)
    for epoch, size in enumerate((32, 32, 40, 40)):
        loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
        images, targets, _ = next(iter(loader))
        assert images.shape == (8, 3, size, size)
        assert set(targets) == {"label", "source", "classes", "probabilities", "features"}


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.slow
def test_loaders_can_be_sent_to_readers_of_any_kind(pretraining):
    """If processes are not forked, their dataset is pickled."""
    job = PretrainingJob(pretraining)
    for loader in (job.train_loader(0, 1, False), job.val_loader(0, 1, False)):
        sent = pickle.loads(pickle.dumps(loader.dataset))
        assert torch.equal(sent[2, 1][0], loader.dataset[2, 1][0])


@pytest.mark.slow
def test_labels_without_a_teacher(pretraining):
    alone = replace(pretraining, teacher=None, teacher_cache=None, feature_loss="none", epochs=6)
    run = train(alone)
    assert run.scores.agreement is None
    assert run.scores.sources[0].top1.value > 0.6
    assert open_classifier(str(run.folder)).class_names == sorted(COLOURS)  # the first source's


def test_teacher_without_labels(pretraining, sets):
    run = train(replace(pretraining, data=(str(sets / "loose"),), teacher_cache=None, epochs=2))
    assert run.scores.sources == []
    assert run.scores.agreement is not None


def test_neither_labels_nor_teacher(pretraining, sets):
    with pytest.raises(UserError, match="no source has labels and there is no teacher"):
        PretrainingJob(
            replace(pretraining, data=(str(sets / "loose"),), teacher=None, teacher_cache=None, feature_loss="none")
        )


def test_classes_of_the_same_name_are_told_and_kept_apart(pretraining):
    job = PretrainingJob(pretraining)
    assert any("'red car' (one and two)" in note for note in job.notes)
    assert any(note.startswith("loose: 15 photos without labels") for note in job.notes)
    assert job.head(0) != job.head(1)


def test_folders_that_are_classes_and_those_that_are_not(sets, tmp_path):
    assert has_class_folders(str(sets / "one"))
    assert not has_class_folders(str(sets / "loose"))
    assert not has_class_folders(str(sets / "one" / "red car"))
    (tmp_path / "splits" / "train").mkdir(parents=True)
    os.symlink(sets / "one", tmp_path / "splits" / "val")
    assert has_class_folders(str(tmp_path / "splits"))


def test_unlabelled_folders_are_named_by_an_option(pretraining, sets):
    job = PretrainingJob(replace(pretraining, data=(str(sets / "one"),), unlabelled=(str(sets / "two"),)))
    assert [source.class_names for source in job.sources] == [sorted(COLOURS), []]


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.slow
def test_resumed_run_equals_one_never_stopped(pretraining, monkeypatch):
    whole, stopped = train(replace(pretraining, name="whole")), replace(pretraining, name="stopped")
    step, count = Trainer._step, []

    def stopping(self, *arguments):
        count.append(1)
        if len(count) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", stopping)
    with pytest.raises(Stopped):
        train(stopped)
    saved = read_recipe(Path(stopped.out) / "stopped" / "recipe.yaml")
    resumed = train(replace(saved, resume=True))
    a, b = final_weights(whole.folder), final_weights(resumed.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(pretraining, two_processes):
    """The processes also count every held-out photo once."""
    plain = replace(pretraining, epochs=1, ema=None, optimizer="sgd", freeze=4)
    one = train(replace(plain, name="one"))
    two_processes(train, replace(plain, name="two", batch_size=4))
    two = Path(pretraining.out) / "two"
    a, b = final_weights(one.folder), final_weights(two)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (one.folder, two)]
    assert scores[0]["agreement"] == scores[1]["agreement"]
    assert scores[0]["sources"] == scores[1]["sources"]


@pytest.mark.usefixtures("plain_cpu")
@pytest.mark.slow
def test_started_from_its_own_weights(pretraining):
    first = train(replace(pretraining, epochs=1))
    more = replace(pretraining, name="more", epochs=1, lr=0.0, lr_min=0.0, ema=None, weight_decay=0.0)
    second = train(replace(more, weights=str(first.folder / "best"), head="keep"))
    a, b = (load_file(run.folder / "best" / "model.safetensors") for run in (first, second))
    assert torch.equal(a["head.fc.weight"], b["head.fc.weight"])


def test_probes_of_features():
    torch.manual_seed(0)
    centres = 4 * torch.eye(3, 8)

    def some(n: int) -> Features:
        labels = torch.arange(n) % 3
        return Features(centres[labels] + torch.randn(n, 8), labels, torch.arange(n))

    train_part, val, test = some(60), some(30), some(90)
    assert float((linear_probe(train_part, val, test, 3) == test.labels).float().mean()) > 0.9
    assert float((knn(train_part, test, 3) == test.labels).float().mean()) > 0.9
    cosines, places = nearest(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0], [1.0, 1.0]]), 2)
    assert places.tolist() == [[1, 2]]
    torch.testing.assert_close(cosines, torch.tensor([[1.0, 0.5**0.5]]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "pretraining needs photos"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", ".", "--sizes", "16"], "--sizes takes sizes in pixels, 32 or more"),
        (["--data", ".", "--size-shares", "1"], "a fraction above 0 for each of the 3 sizes"),
        (["--data", ".", "--probe", "nowhere"], "nowhere does not exist"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", "pretrain", *options, "--feature-loss", "none"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
