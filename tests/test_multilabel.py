"""Several labels per photo: data, scores, thresholds; training, prediction, export and serving."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from starlette.testclient import TestClient

from dmformer.cli import main
from dmformer.predict.predictor import open_predictor
from dmformer.runtimes.exported import ExportedMultiLabel, open_exported
from dmformer.serve.app import make_app
from dmformer.serve.limits import Limits
from dmformer.serve.metrics import Metrics
from dmformer.serve.opening import open_service
from dmformer.tasks.multilabel.classifier import open_multilabel
from dmformer.tasks.multilabel.datasets import open_label_splits
from dmformer.tasks.multilabel.evaluate import evaluate
from dmformer.tasks.multilabel.labels import read_labels
from dmformer.tasks.multilabel.metrics import average_precisions, best_thresholds, score
from dmformer.tasks.multilabel.recipes import MultiLabelRecipe
from dmformer.tasks.multilabel.report import precision_recall
from dmformer.tasks.multilabel.training import MultiLabelJob
from dmformer.tasks.recipes import RECIPES
from dmformer.tasks.table import TASKS
from dmformer.train.folds import train_folds
from dmformer.utils.errors import UserError

COLOURS = {"red": (220, 30, 30), "green": (30, 190, 40), "blue": (30, 50, 220)}
KINDS = (("red", "green"), ("green", "blue"), ("red",), ("blue",), ())


def draw(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """70 photos, each grey with a stripe for every label; photo i shows the labels of kind i modulo 5."""
    folder.mkdir()
    rows = []
    for i in range(70):
        labels = KINDS[i % len(KINDS)]
        pixels = np.random.default_rng(i).normal(128, 20, (32, 36, 3))
        for k, name in enumerate(labels):
            pixels[:, 18 * k : 18 * k + 18] += np.array(COLOURS[name]) - 128
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        rows.append((f"{i}.png", labels))
    return rows


def table(folder: Path, rows, split=lambda i: "") -> Path:
    lines = [f"{name},{'|'.join(labels)},{split(i)}" for i, (name, labels) in enumerate(rows)]
    (folder / "photos.csv").write_text("\n".join(["file,tags,split", *lines]))
    return folder / "photos.csv"


def recipe_for(data: Path, out: Path) -> MultiLabelRecipe:
    return MultiLabelRecipe(
        precision="no",
        model_args=("dims=[8,16,24,32]", "depths=[1,1,1,1]", "layer_scale=1.0"),
        data=str(data),
        image_size=32,
        crop_scale=(0.8, 1.0),
        crop_pct=1.0,
        epochs=8,
        batch_size=8,
        lr=3e-3,
        lr_batch=8,
        warmup_epochs=0.5,
        workers=0,
        processes=1,
        out=str(out),
        name="run",
        tracker="none",
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run on 30 photos, with 20 for validation and 20 for testing."""
    from dmformer.train.loop import train

    place = tmp_path_factory.mktemp("tagged")
    rows = draw(place / "photos")
    data = table(place / "photos", rows, lambda i: "train" if i < 30 else "val" if i < 50 else "test")
    return train(recipe_for(data, place / "runs")).folder


@pytest.mark.slow
def test_folds_give_an_ensemble_with_thresholds(tmp_path):
    rows = draw(tmp_path / "photos")
    data = table(tmp_path / "photos", rows, lambda i: "train" if i < 40 else "val" if i < 60 else "test")
    recipe = replace(recipe_for(data, tmp_path / "runs"), folds=2, epochs=1, tta="flip")
    run, summary = train_folds(recipe, open_label_splits(recipe))
    assert summary is not None
    assert summary.lines[0] == "60 images, each predicted by the fold that was not trained on it"
    found = list(csv.DictReader((run / "out_of_fold.csv").read_text("utf-8").splitlines()))
    assert {row["file"]: row["label"] for row in found} == {name: ";".join(sorted(k)) for name, k in rows[:60]}
    names = sorted(COLOURS)
    labels = torch.tensor([[float(name in row["label"].split(";")) for name in names] for row in found])
    probabilities = torch.tensor([[float(row[f"probability of {name}"]) for name in names] for row in found])
    ensemble = open_multilabel(str(run))
    assert np.allclose(ensemble.thresholds, best_thresholds(probabilities, labels), atol=2e-4)
    members = [open_multilabel(str(run / f"fold-{k}")) for k in (1, 2)]
    batch = [ensemble.prepare(Image.open(tmp_path / "photos" / f"{i}.png")) for i in (0, 1)]
    expected = np.mean([member.probabilities(batch) for member in members], axis=0)
    assert np.allclose(ensemble.probabilities(batch), expected, atol=1e-5)
    assert "dmformer_n on photos.csv, fold 1 of 2" in (run / "fold-1" / "report.html").read_text("utf-8")


def test_every_way_to_write_labels_is_read(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 9, 9)).save(folder / f"{i}.png")
    wanted = {"0.png": {"big cat", "tabby"}, "1.png": {"tabby"}, "2.png": set()}
    texts = {
        "a.csv": "path,labels\n0.png,big cat;tabby\n1.png,tabby\n2.png,\n",
        "b.tsv": "path\ttags\n0.png\tbig cat, tabby\n1.png\ttabby\n2.png\t\n",
        "c.csv": "image,label\n0.png,\"['big cat', 'tabby']\"\n1.png,\"['tabby']\"\n2.png,[]\n",
        "d.csv": "file,big cat,width,tabby\n0.png,1,8,1\n1.png,0,8,1.0\n2.png,0,9,\n",
        "e.jsonl": '{"file": "2.png"}\n{"file": "0.png", "labels": ["tabby", "big cat"]}\n'
        '{"file": "1.png", "labels": "tabby"}\n',
        "f.jsonl": '{"file": "0.png", "tags": {"tabby": true, "big cat": 1}}\n'
        '{"file": "1.png", "tags": {"tabby": true, "big cat": 0}}\n{"file": "2.png", "tags": {}}\n',
        "g.csv": "path,label\n0.png,tabby\n0.png,big cat\n1.png,tabby\n2.png,\n",
        "i.csv": "Image Name,tabby,big cat\n0.png,1,1\n1.png,1,-1\n2.png,-1,-1\n",
        "j.csv": 'path,label\n0.png,"(\'tabby\', ""big cat"")"\n1.png,"{\'tabby\'}"\n2.png,()\n',
        "k.csv": 'path,label\n0.png,"{""tabby"": 1, ""big cat"": 1}"\n1.png,"{""tabby"": 1}"\n2.png,{}\n',
    }
    notes = {}
    for name, text in texts.items():
        (folder / name).write_text(text)
        layout = read_labels(str(folder / name))
        (part,) = layout.parts.values()
        assert dict(zip(part.names, map(set, part.labels), strict=True)) == wanted, name
        assert part.class_names == ["big cat", "tabby"]
        notes[name] = " ".join(layout.notes)
    assert "'labels' are separated by ';'" in notes["a.csv"]
    assert "which are no classes: width" in notes["d.csv"]
    assert "whose labels were joined: 1" in notes["g.csv"]
    assert "unless --label-separator says otherwise: big cat" in notes["g.csv"]
    (part,) = read_labels(str(folder / "d.csv"), columns=["tabby"]).parts.values()
    assert part.class_names == ["tabby"]
    (folder / "h.csv").write_text("path,labels\n0.png,big cat & tabby\n1.png,tabby\n2.png,\n")
    (part,) = read_labels(str(folder / "h.csv"), separator="&").parts.values()
    assert dict(zip(part.names, map(set, part.labels), strict=True)) == wanted
    for name in ("cat", "indoors"):
        (tmp_path / "folders" / name).mkdir(parents=True)
    shutil.copy(folder / "0.png", tmp_path / "folders/cat/a.png")
    shutil.copy(folder / "0.png", tmp_path / "folders/indoors/b.png")
    shutil.copy(folder / "1.png", tmp_path / "folders/cat/b.png")
    layout = read_labels(str(tmp_path / "folders"))
    assert list(zip(layout.parts[""].names, map(set, layout.parts[""].labels), strict=True)) == [
        ("cat/a.png", {"cat", "indoors"}),
        ("cat/b.png", {"cat"}),
    ]
    assert layout.notes == ["1 photo is in several class folders"]


def test_mistakes_in_the_labels_are_told(tmp_path):
    rows = draw(tmp_path / "photos")
    place = tmp_path / "photos" / "photos.csv"

    def told(text: str, **options) -> str:
        place.write_text(text)
        with pytest.raises(UserError) as error:
            open_label_splits(replace(recipe_for(place, tmp_path), **options))
        return str(error.value)

    assert "has the columns path, width: name the one with the labels 'labels'" in told("path,width\n0.png,30\n")
    assert "no photo has a label" in told("path,labels\n0.png,\n1.png,\n2.png,\n")
    assert "has no column 'cat'" in told("path,dog\n0.png,1\n", label_columns=("cat",))
    unsure = "path,dog\n0.png,1\n1.png,-1\n2.png,0\n"
    assert "the column 'dog' holds -1 beside 0" in told(unsure, label_columns=("dog",))
    assert "the column 'dog' holds '7': a class needs 0 or 1" in told("path,dog\n0.png,7\n", label_columns=("dog",))
    split = "path,labels,split\n0.png,a,train\n1.png,b,train\n2.png,{},val\n"
    assert "does not know them (a, b)" in told(split.format("c"))
    assert "none of the 1 validation photos has a label" in told(split.format(""))
    table(tmp_path / "photos", rows)
    splits = open_label_splits(recipe_for(place, tmp_path))
    counts = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert sum(counts) == 70
    assert all(8 <= count <= 13 for count in counts[1:])
    assert any("14 photos have no label" in note for note in splits.notes)
    for part in (splits.train, splits.val, splits.test):  # the labels follow their photos
        for i in range(len(part)):
            number = int(part.filename(i).removesuffix(".png"))
            names = {splits.class_names[k] for k in np.flatnonzero(splits.labels[part.target(i)])}
            assert names == set(KINDS[number % 5])


def test_scores_and_thresholds():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 4, generator=generator) < 0.3).float()
    labels[:, 3] = 0  # a class without any photo
    probabilities = (0.35 * labels + 0.65 * torch.rand(60, 4, generator=generator)).clamp(0, 1)
    thresholds = (0.5, 0.4, 0.6, 0.9)
    scores = score(probabilities, labels, list("abcd"), thresholds, resamples=50)
    chosen, truth = (probabilities >= torch.tensor(thresholds)).numpy(), labels.numpy()
    ap = [average_precision_score(truth[:, k], probabilities[:, k]) for k in range(3)]
    assert scores.map.value == pytest.approx(np.mean(ap), abs=1e-5)
    assert [c.ap for c in scores.classes] == [pytest.approx(value, abs=1e-5) for value in ap] + [None]
    assert scores.macro_f1.value == pytest.approx(f1_score(truth[:, :3], chosen[:, :3], average="macro"), abs=1e-5)
    assert scores.micro_f1.value == pytest.approx(f1_score(truth, chosen, average="micro", zero_division=0), abs=1e-5)
    assert scores.exact.value == pytest.approx((chosen == truth).all(1).mean())
    assert scores.map.low < scores.map.value < scores.map.high
    assert [c.count for c in scores.classes] == labels.sum(0).int().tolist()

    best = best_thresholds(probabilities, labels)
    for k in range(3):
        chosen = probabilities[:, k].numpy() >= np.linspace(0, 1, 500)[:, None]
        every = 2 * (chosen & (truth[:, k] > 0)).sum(1) / (chosen.sum(1) + truth[:, k].sum())
        assert f1_score(truth[:, k], probabilities[:, k].numpy() >= best[k]) >= max(every) - 1e-9
    assert best[3] == 0.5
    rounded = (probabilities * 5).round() / 5  # with ties
    expected = [average_precision_score(truth[:, k], rounded[:, k]) for k in range(3)]
    assert average_precisions(rounded, labels.bool())[:3].tolist() == pytest.approx(expected, abs=1e-5)
    few = torch.tensor([[1.0], [0.0], [1.0], [1.0], [1.0], [0.0]])
    assert best_thresholds(torch.linspace(0.9, 0.1, 6)[:, None], few) == (0.5,)
    five = torch.tensor([[1.0]] * 5 + [[0.0]] * 5)
    separate = torch.tensor([0.9, 0.9, 0.8, 0.7, 0.6, 0.2, 0.2, 0.1, 0.1, 0.0])[:, None]
    assert best_thresholds(separate, five)[0] == pytest.approx(0.4)
    recall, precision = precision_recall(torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert recall == pytest.approx([1 / 3, 2 / 3, 1])
    assert precision == pytest.approx([1, 2 / 3, 3 / 4])


@pytest.mark.slow
def test_a_run_is_trained_scored_used_and_reported(trained, capsys, tmp_path):
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["count"] == 20
    assert scores["map"]["value"] > 0.8
    config = json.loads((trained / "best" / "config.json").read_text())
    assert config["task"] == "multilabel"
    assert config["label_names"] == ["blue", "green", "red"]
    classifier = open_multilabel(str(trained))
    assert list(classifier.thresholds) == config["thresholds"]
    assert config["thresholds"] == [c["threshold"] for c in scores["classes"]]
    report = (trained / "report.html").read_text()
    assert "mean average precision" in report
    assert "not on these" in report
    assert report.count('<td class="bar"') == 12

    main(["eval", str(trained), "--json", "-"])
    assert json.loads(capsys.readouterr().out) == scores
    photos = str(trained.parents[1] / "photos")
    main(["predict", str(trained), photos, "--format", "csv"])
    printed = capsys.readouterr().out
    found = {
        Path(row["photo"]).name: set(filter(None, row["labels"].split(";")))
        for row in csv.DictReader(io.StringIO(printed))
    }
    assert np.mean([found[f"{i}.png"] == set(KINDS[i % 5]) for i in range(70)]) > 0.7
    (tmp_path / "found.csv").write_text(printed)  # what predict writes can be trained on
    (part,) = read_labels(str(tmp_path / "found.csv")).parts.values()
    assert {Path(n).name: set(labels) for n, labels in zip(part.names, part.labels, strict=True)} == found
    main(["predict", str(trained), f"{photos}/0.png", "--threshold", "0", "--format", "json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert sorted(each["class"] for each in told["labels"]) == ["blue", "green", "red"]
    main(["explain", str(trained), f"{photos}/0.png", "--out", str(tmp_path / "explained"), "--layer", "stages.2"])
    with pytest.raises(SystemExit):
        main(["eval", str(trained), "--data", photos, "--images", photos])
    assert "--images is for detectors; this is a multi-label classifier" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_is_resumed(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    main(["train", "tag", "--resume", "--out", str(tmp_path), "--name", "run", "--epochs", "9"])
    assert "epoch 9 of 9:" in capsys.readouterr().err
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 10
    balanced = replace(recipe_for(open_recipe(trained), tmp_path), class_weights="balanced", epochs=1, name="b")
    asymmetric = replace(balanced, class_weights="none", loss="asymmetric", name="a")
    from dmformer.train.loop import train

    for recipe in (balanced, asymmetric):
        assert 0 < float(train(recipe).scores.map.value) <= 1


def open_recipe(trained: Path) -> Path:
    return trained.parents[1] / "photos" / "photos.csv"


@pytest.mark.slow
@pytest.mark.export
def test_an_exported_run_finds_the_same_labels(trained, tmp_path, capsys):
    file = tmp_path / "tags.onnx"
    main(["export", str(trained), "--out", str(file), "--no-speed", "--no-dynamic-size"])
    exported, classifier = open_exported(str(file)), open_multilabel(str(trained))
    assert exported.card.task == "multilabel"
    assert exported.card.thresholds == list(classifier.thresholds)
    photo = Image.open(trained.parents[1] / "photos" / "0.png")
    expected = classifier.probabilities([classifier.prepare(photo)])
    assert exported.probabilities([exported.prepare(photo)]) == pytest.approx(expected, abs=1e-3)
    capsys.readouterr()
    for source in (file, trained):
        main(["eval", str(source), "--data", str(open_recipe(trained)), "--json", str(tmp_path / "scores.json")])
        assert json.loads((tmp_path / "scores.json").read_text())["count"] == 20
    capsys.readouterr()
    printed = []
    for source in (file, trained):
        main(["predict", str(source), str(open_recipe(trained).parent), "--format", "csv"])
        printed.append([row["labels"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))])
    assert len(printed[0]) == 70
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_a_run_is_served(trained):
    service = open_service(str(trained), open_predictor(str(trained)), Limits(), Metrics(), overlay=False)
    photo = (trained.parents[1] / "photos" / "0.png").read_bytes()
    with TestClient(make_app(service, service.metrics), base_url="http://127.0.0.1") as client:
        answer = client.post("/predict?top=1", files={"images": ("0.png", photo)}).json()
        assert client.get("/info").json()["kind"] == "multi-label classifier"
    assert answer["task"] == "multilabel"
    classes = answer["results"][0]["classes"]
    assert {c["class"] for c in classes if c["applies"]} == {"red", "green"}
    assert all(c["applies"] == (c["probability"] >= c["threshold"]) for c in classes)


@pytest.mark.slow
def test_choose_compares_by_map_with_its_interval(trained):
    job = MultiLabelJob(recipe_for(open_recipe(trained), trained.parent))
    contest = TASKS["multilabel"].contest
    assert contest is not None
    found = contest.scored(job, open_multilabel(str(trained)), "test")
    assert found == evaluate(str(trained), workers=0).map
    assert found.low <= found.value <= found.high
    rows = csv.DictReader((trained / "metrics.csv").read_text("utf-8").splitlines())
    best = max(float(row["val_map"]) for row in rows)
    assert contest.scored(job, open_multilabel(str(trained)), "val").value == pytest.approx(best, abs=1e-4)
    assert len(contest.calibration(job.data)) == len(job.splits.train)


@pytest.mark.export
@pytest.mark.slow
@pytest.mark.long
def test_choose_exports_the_best_for_several_labels(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmformer.choose.measure.SECONDS", 0.01)
    data = open_recipe(trained)
    monkeypatch.setitem(RECIPES, "tag", lambda: replace(recipe_for(data, tmp_path), model_args=(), name=None))
    options = ["--models", "test_resnet", "--image-sizes", "32", "--threads", "1", "--forms", "onnxruntime-int8"]
    options += ["onnxruntime", "--epochs", "1", "--seeds", "1", "--hours", "5", "--format", "json"]
    main(["choose", "--data", str(data), "--recipe", "tag", *options])
    answer = json.loads(capsys.readouterr().out)
    assert answer["figure"] == "mAP"
    assert answer["file"].endswith(".onnx")
    assert isinstance(open_exported(answer["file"], 1), ExportedMultiLabel)
    assert "mAP (95 % interval)" in (tmp_path / "choice" / "choice.html").read_text("utf-8")
