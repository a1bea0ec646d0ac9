"""Answers that are a mean: test-time augmentation, folds and ensembles."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, make_photo
from torch import nn

import dmformer
import dmformer.train.folds
from dmformer.cli import main
from dmformer.export.formats import export_program
from dmformer.nn.mean_answer import MeanAnswer
from dmformer.predict.predictor import open_predictor
from dmformer.runtimes.exported import open_exported
from dmformer.tasks.classification.classifier import open_classifier, save_ensemble
from dmformer.tasks.classification.datasets import divide_in_folds, open_splits
from dmformer.tasks.classification.evaluate import evaluate
from dmformer.tasks.classification.folds import spreads
from dmformer.tasks.recipes import read_recipe
from dmformer.train.loop import Stopped
from dmformer.utils.errors import UserError


def test_the_mean_is_of_probabilities_and_comes_back_as_logits():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval() for _ in range(2)]
    images = 3 * torch.randn(2, 3, 8, 8)
    views = [images, images.flip(3), images.flip(2), images.flip(2, 3)]
    with torch.no_grad():
        for tta, count in (("none", 1), ("flip", 2), ("flips", 4)):
            logits = torch.stack([model(view) for view in views[:count] for model in models])
            found = MeanAnswer(models, tta)(images).softmax(1)
            assert torch.allclose(found, logits.softmax(2).mean(0), atol=1e-6), tta
            assert not torch.allclose(found, logits.mean(0).softmax(1), atol=1e-3)
            several = MeanAnswer(models, tta, several=True)(images).sigmoid()
            assert torch.allclose(several, logits.sigmoid().mean(0), atol=1e-6), tta
        for several in (False, True):  # sure answers stay finite
            sure = MeanAnswer([nn.Identity()], "none", several)(torch.tensor([[500.0, -500.0]]))
            assert sure.isfinite().all()
            assert sure.argmax() == 0


def test_photos_are_divided_in_folds(recipe, photos, tmp_path):
    whole = open_splits(replace(recipe, folds=4, near_duplicates=False))
    assert len(whole.train) == len(whole.val) == 36
    assert whole.test is None
    assert sorted(np.concatenate(whole.folds).tolist()) == list(range(36))
    own = open_splits(replace(recipe, folds=4, fold=3))
    assert own.val.indices.tolist() == whole.folds[2].tolist()
    assert sorted([*own.train.indices, *own.val.indices]) == list(range(36))
    assert np.bincount(own.val.targets).tolist() == [3, 3, 3]
    assert [own.val.target(i) for i in range(9)] == [own.val.reader.targets[i] for i in own.val.indices]

    first, *others = sorted((photos / "red car").iterdir())
    for other in others[:5]:  # copies
        other.write_bytes(first.read_bytes())
    together = open_splits(replace(recipe, folds=4)).folds
    assert sum(len({*range(12)} & {*fold.tolist()}) > 0 for fold in together) <= 4
    names = [open_splits(replace(recipe, folds=4, fold=k)).val for k in range(1, 5)]
    same = {"red car/" + path.name for path in (first, *others[:5])}
    assert sorted(len(same & {val.filename(i) for i in range(len(val))}) for val in names) == [0, 0, 0, 6]

    for split, n in (("train", 4), ("val", 2), ("test", 1)):
        for name, colour in COLOURS.items():
            (tmp_path / "split" / split / name).mkdir(parents=True)
            for i in range(n):
                make_photo(colour, 7 * n + i).save(tmp_path / "split" / split / name / f"{i}.png")
    joined = open_splits(replace(recipe, data=str(tmp_path / "split"), folds=2, fold=1))
    assert joined.test is not None
    assert (len(joined.train), len(joined.val), len(joined.test)) == (9, 9, 3)
    shown = {part.filename(i) for part in (joined.train, joined.val) for i in range(len(part))}
    assert len(shown) == 18
    assert {"train/red car/3.png", "val/red car/1.png"} < shown


def test_folds_that_cannot_be_are_told(recipe, photos):
    for change, told in (
        ({"folds": 1}, "--folds is 1: it must be 2 or more"),
        ({"folds": 3, "fold": 4}, "--fold is 4: it must be from 1 to"),
        ({"fold": 1}, "--fold is 1: it must be from 1 to"),
        ({"folds": 3, "minutes": 1.0}, "give --epochs with --folds"),
    ):
        with pytest.raises(UserError, match=told):
            replace(recipe, **change).check()
    with pytest.raises(UserError, match="has 12 photos, fewer than the 13 folds, "):
        open_splits(replace(recipe, folds=13))
    with pytest.raises(UserError, match="36 is too few photos for 40 folds"):
        divide_in_folds(open_splits(replace(recipe, folds=4)).train, replace(recipe, folds=40))
    with pytest.raises(UserError, match="leave out --val-data"):
        open_splits(replace(recipe, folds=2, val_data=str(photos)))
    with pytest.raises(UserError, match="--folds divides photos in folders, archives and tables"):
        open_splits(replace(recipe, folds=2, data="torch/cifar10"))
    assert spreads([{"a": 0.5}, {"a": 0.7}])["a"].mean == pytest.approx(0.6)
    assert str(spreads([{"a": 0.5}, {"a": 0.7}])["a"]) == "60.0 ± 14.1 %"


@pytest.fixture(scope="module")
def folds(tmp_path_factory) -> Path:
    """A run in two folds with --tta flips, stopped in its second fold and resumed."""
    place = tmp_path_factory.mktemp("folds")
    for split, n in (("train", 8), ("test", 3)):
        for name, colour in COLOURS.items():
            (place / "photos" / split / name).mkdir(parents=True)
            for i in range(n):
                make_photo(colour, 9 * n + i).save(place / "photos" / split / name / f"{i}.png")
    options = ["--model-args", "dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0", "--pretrained", "none"]
    options += ["--epochs", "2", "--image-size", "32", "--batch-size", "4", "--workers", "0", "--processes", "1"]
    options += ["--lr-batch", "4", "--out", str(place / "runs"), "--name", "run", "--tracker", "none"]
    with pytest.MonkeyPatch.context() as patch:
        train = dmformer.train.folds.train

        def stopped(recipe, *given, **named):
            run = train(replace(recipe, epochs=1 if recipe.fold == 2 else 2), *given, **named)
            if recipe.fold == 2:
                raise Stopped("after an epoch", 15)
            return run

        patch.setattr("dmformer.train.folds.train", stopped)
        with pytest.raises(SystemExit) as end:
            main(["train", "classify", "--data", str(place / "photos"), "--folds", "2", "--tta", "flips", *options])
        assert end.value.code == 128 + 15
    run = place / "runs" / "run"
    first = (run / "fold-1" / "report.html").stat().st_mtime_ns
    main(["train", "--resume", "--out", str(place / "runs")])
    assert (run / "fold-1" / "report.html").stat().st_mtime_ns == first
    assert [len((run / f"fold-{k}" / "metrics.csv").read_text().splitlines()) for k in (1, 2)] == [3, 3]
    return run


@pytest.mark.slow
def test_a_run_in_folds_is_scored_as_one(folds, capsys):
    assert (read_recipe(folds / "recipe.yaml").folds, read_recipe(folds / "fold-2" / "recipe.yaml").fold) == (2, 2)  # type: ignore[attr-defined]
    rows = list(csv.DictReader((folds / "out_of_fold.csv").read_text("utf-8").splitlines()))
    assert len({row["file"] for row in rows}) == 24
    assert sorted(row["fold"] for row in rows) == ["1"] * 12 + ["2"] * 12
    names = sorted(COLOURS)
    chosen = [max(names, key=lambda name: float(row[f"probability of {name}"])) for row in rows]
    right = sum(name == row["label"] for name, row in zip(chosen, rows, strict=True))
    scores = json.loads((folds / "scores.json").read_text("utf-8"))
    assert scores["out_of_fold"]["top1"]["value"] == pytest.approx(right / 24)
    assert np.mean([each["top1"]["value"] for each in scores["folds"]]) == pytest.approx(right / 24)
    own = json.loads((folds / "fold-1" / "scores.json").read_text("utf-8"))
    assert scores["test"][0]["top1"]["value"] == own["top1"]["value"]

    ensemble, members = open_classifier(str(folds)), [open_classifier(str(folds / f"fold-{k}")) for k in (1, 2)]
    assert {each.tta for each in (ensemble, *members)} == {"flips"}
    batch = [ensemble.prepare(make_photo(colour, 5)) for colour in COLOURS.values()]
    expected = np.mean([member.probabilities(batch) for member in members], axis=0)
    assert np.allclose(ensemble.probabilities(batch), expected, atol=1e-5)
    plain = np.mean([member.answering("none").probabilities(batch) for member in members], axis=0)
    assert np.abs(plain - expected).max() > 1e-4
    assert np.allclose(ensemble.answering("none").probabilities(batch), plain, atol=1e-5)
    assert evaluate(str(folds)).top1.value == scores["ensemble"]["top1"]["value"]
    with pytest.raises(UserError, match="run is an ensemble, which has no features"):
        ensemble.single  # noqa: B018
    page = (folds / "report.html").read_text("utf-8")
    assert page.count('href="fold-') == 2
    assert "Each answer is the mean of 4 views" in page
    assert "Each answer is the mean of 4 views" in (folds / "fold-1" / "report.html").read_text("utf-8")

    with pytest.raises(SystemExit):
        main(["train", "classify", "--data", str(folds.parents[1] / "photos"), "--weights", str(folds)])
    assert "is an ensemble, which has no weights of its own: give one of its members" in capsys.readouterr().err
    main(["predict", str(folds), str(folds.parents[1] / "photos" / "test"), "--format", "json", "--tta", "none"])
    assert len(json.loads(capsys.readouterr().out)) == 9
    (folds.parents[1] / "photos" / "test").rename(folds.parents[1] / "test")
    try:
        with pytest.raises(SystemExit):
            main(["eval", str(folds)])
    finally:
        (folds.parents[1] / "test").rename(folds.parents[1] / "photos" / "test")
    assert "each photo was in the training of some of the folds" in capsys.readouterr().err

    other = json.loads((folds / "fold-2" / "best" / "config.json").read_text("utf-8"))
    other["label_names"].reverse()
    changed = folds.parent / "changed" / "best"
    changed.mkdir(parents=True)
    (changed / "config.json").write_text(json.dumps(other))
    (changed / "model.safetensors").write_bytes((folds / "fold-2" / "best" / "model.safetensors").read_bytes())
    save_ensemble(folds.parent / "mixed", [folds / "fold-1" / "best", changed])
    with pytest.raises(UserError, match="has other classes or sizes than"):
        open_classifier(str(folds.parent / "mixed"))


@pytest.mark.slow
@pytest.mark.export
def test_a_graph_has_each_model_once():
    """For every batch size, traced with two images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()
    network = MeanAnswer([model], "flips").eval()
    program = export_program(network, (16, 16), dynamic_size=False)
    assert [node.target for node in program.graph.nodes].count(torch.ops.aten.conv2d.default) == 1
    for batch in (1, 3):
        images = torch.randn(batch, 3, 16, 16)
        assert torch.allclose(program.module()(images), network(images), atol=1e-6)


@pytest.mark.long
@pytest.mark.export
def test_an_ensemble_with_views_is_one_file(folds, tmp_path, capsys):
    main(["export", str(folds), "--out", str(tmp_path / "all.onnx"), "--no-speed"])
    told = capsys.readouterr().out
    assert "each answer is the mean of 2 models" in told
    assert "each answer is the mean of 4 views of the photo" in told
    exported = open_exported(str(tmp_path / "all.onnx"), 1)
    assert (exported.card.tta, exported.card.members, exported.card.architecture) == ("flips", 2, "dmformer_n")
    predictor = open_predictor(str(folds))
    batch = [predictor.prepare(make_photo(colour, 5)) for colour in COLOURS.values()]  # type: ignore[union-attr]
    assert np.allclose(exported.probabilities(batch), predictor.probabilities(batch), atol=1e-4)  # type: ignore[union-attr]
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "all.onnx"), str(folds), "--tta", "flip"])
    assert "give --tta flip to `dmformer export`" in capsys.readouterr().err
