"""The library call that predicts, against the command; what it accepts."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import COLOURS, SHAPES, make_photo
from PIL import Image
from timm.data import resolve_data_config

import dmformer
from dmformer.cli import main
from dmformer.data.decode import BrokenImageError, decode
from dmformer.predict.boxes import BoxPrediction
from dmformer.predict.classes import Prediction
from dmformer.predict.labels import check_labels, write_labels
from dmformer.predict.masks import MaskPrediction
from dmformer.tasks.classification.classifier import save_classifier
from dmformer.tasks.classification.layout import read_layout
from dmformer.tasks.detection.detector import DetectorConfig, save_detector
from dmformer.tasks.detection.formats.find import find_boxes
from dmformer.tasks.segmentation.masks import read_mask
from dmformer.tasks.segmentation.segmenter import SegmenterConfig, save_segmenter
from dmformer.utils.errors import UserError


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    main(["predict", *map(str, arguments)])
    return capsys.readouterr().out


TINY = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
STATISTICS: Any = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("dmformer_n", num_classes=3, **TINY)
    config = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
    save_classifier(tmp_path / "run" / "best", model, model.state_dict(), list(COLOURS), config)
    return tmp_path / "run"


@pytest.fixture
def segmenter(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    names, palette = ("sky", "ground"), ((0, 0, 200), (0, 200, 0))
    config = SegmenterConfig("dmformer_n", TINY, "fpn", 64, 0.0, names, palette, **STATISTICS)
    save_segmenter(tmp_path / "run" / "best", config, config.build().state_dict())
    return tmp_path / "run"


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """Finds something everywhere."""
    torch.manual_seed(0)
    sizes = {"image_size": 64, "max_side": 128, "width": 32, "samples": None, "queries": None, "masks": False}
    names = {"class_names": tuple(SHAPES), "category_ids": (3, 8)}
    config = DetectorConfig(
        backbone="dmformer_n", backbone_args=TINY, framework="retinanet", **sizes, **names, **STATISTICS
    )
    state = config.build().state_dict()
    state["head.classification_head.cls_logits.bias"] += 3
    save_detector(tmp_path / "run" / "best", config, state)
    return tmp_path / "run"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    for i, colour in enumerate(((200, 40, 40), (40, 60, 210))):
        make_photo(colour, i).save(tmp_path / f"{i}.png")
    return [tmp_path / "0.png", tmp_path / "1.png"]


def test_classes_are_those_of_the_command(classifier, pictures, capsys):
    model = dmformer.load(classifier)
    out = command(capsys, classifier, *pictures, "--top", "3", "--format", "json")
    expected = [[(c["class"], c["probability"]) for c in each["classes"]] for each in json.loads(out)]
    found = model.predict(pictures)
    assert [each.probabilities for each in found] == expected
    assert (found[0].label, found[0].probability) == expected[0][0]
    assert (model.task, len(model.class_names)) == ("classification", 3)

    with Image.open(pictures[0]) as opened:
        pixels = np.asarray(opened)
        several: Sequence = [opened, pixels, str(pictures[0]), io.BytesIO(pictures[0].read_bytes())]
        same = model.predict([pictures[0]] * 4, batch_size=4)
        assert model.predict(several, batch_size=4) == same
    assert model.predict(pixels).label == expected[0][0][0]
    assert len(model.predict(np.stack([pixels, pixels]))) == 2

    (pictures[0].parent / "torn.png").write_bytes(b"")
    for wrong, words in (
        (pictures[0].parent / "torn.png", "torn.png cannot be read: not an image"),
        ([pixels, pixels.transpose(2, 0, 1)], r"photo 1 cannot be read: an array must be .*, not 3 x 40 x 48"),
        (pixels / 255, "the photo cannot be read: an array of float64: give colours as uint8 or uint16"),
        ("nowhere.png", "nowhere.png cannot be read: No such file or directory"),
    ):
        with pytest.raises(UserError, match=words):
            model.predict(wrong)
    with pytest.raises(UserError, match="van_b0"):
        dmformer.load("van_b0")


@pytest.mark.slow
def test_hugging_face_and_timm_open_a_run(classifier, pictures):
    transformers = pytest.importorskip("transformers")
    best = str(classifier / "best")
    expected = dmformer.load(best).predict(pictures[0]).probabilities
    found = transformers.pipeline("image-classification", model=best, device="cpu")(str(pictures[0]), top_k=3)
    assert [each["label"] for each in found] == [label for label, _ in expected]
    assert [each["score"] for each in found] == pytest.approx([value for _, value in expected], abs=0.01)
    model = transformers.AutoModelForImageClassification.from_pretrained(best).eval()
    same = timm.create_model(f"local-dir:{best}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x).logits, same(x))
    assert same.num_classes == 3


def test_boxes_are_those_of_the_command(detector, tmp_path, pictures, capsys):
    model = dmformer.load(detector / "best")
    options = ["--threshold", "0.01", "--out", tmp_path / "out", "--format", "csv"]
    rows = list(csv.DictReader(io.StringIO(command(capsys, detector, pictures[1], *options))))
    found = model.predict(pictures[1], threshold=0.01)
    assert found.labels == [row["class"] for row in rows]
    assert set(found.labels) <= set(SHAPES)
    assert found.scores.tolist() == pytest.approx([float(row["score"]) for row in rows], abs=1e-4)
    edges = [[float(row[edge]) for edge in ("left", "top", "right", "bottom")] for row in rows]
    assert found.boxes.ravel().tolist() == pytest.approx(np.ravel(edges).tolist(), abs=0.02)
    assert len(rows) > 0
    assert found.masks is None


def test_masks_are_those_of_the_command(segmenter, tmp_path, pictures, capsys):
    model = dmformer.load(segmenter)
    options = ["--out", tmp_path / "out", "--format", "json"]
    (told,) = json.loads(command(capsys, segmenter, pictures[0], *options))
    found = model.predict(pictures[0])
    assert np.array_equal(found.mask, np.asarray(Image.open(told["mask"])))
    assert dict(found.fractions) == told["shares"]


def test_arrays_are_read_like_files(tmp_path):
    ramp = np.linspace(7000, 8000, 64).reshape(8, 8)
    for values in (ramp.astype(np.uint16), (ramp * 8).astype(np.uint16), (ramp / 40).astype(np.uint8)):
        Image.fromarray(values).save(tmp_path / "a.png")
        assert np.array_equal(np.asarray(decode(values)), np.asarray(decode(str(tmp_path / "a.png"))))
    holed = ramp.copy()
    holed[0, 0] = np.nan
    assert np.asarray(decode(holed))[0, :2, 0].tolist() == [0, 0]
    assert np.asarray(decode(holed))[-1, -1].tolist() == [255] * 3
    colours = np.stack([ramp * 8] * 3, 2).astype(np.uint16)
    assert np.array_equal(np.asarray(decode(colours)), colours >> 8)
    assert np.array_equal(np.asarray(decode(colours[..., :1])), np.asarray(decode(colours[..., 0])))
    for wrong in (np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8), np.zeros((4, 4), bool)):
        with pytest.raises(BrokenImageError, match="an array"):
            decode(wrong)


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo", "labelme"])
def test_boxes_written_as_labels_are_read_again(kind, pictures, tmp_path):
    """Beside their photos, as annotation tools keep them; the second photo holds nothing."""
    objects = ({"class": "blue box", "bbox": [4.0, 6.0, 20.0, 10.5], "score": 0.9, "image_id": 1, "category_id": 8},)
    found = [
        BoxPrediction(str(path), f"out/{path.stem}.detections.png", taken, size=(48, 40))
        for path, taken in zip(pictures, (objects, ()), strict=True)
    ]
    found.append(BoxPrediction("torn.png", error="not an image"))
    out = tmp_path / "set"
    check_labels(kind, "boxes", out)
    write_labels(kind, "boxes", found, list(SHAPES), out)
    for path in pictures:
        shutil.copy(path, out)
    (reader,) = find_boxes(str(out), str(out) if kind == "coco" else None, ()).readers.values()
    part = reader()
    assert part.faults == []
    assert [(part.names[row.label], row.image) for row in part.rows] == [("blue box", 0)]
    assert list(part.rows[0].box) == pytest.approx([4, 6, 24, 16.5], abs=0.01)
    assert len(part.images) == 2
    with pytest.raises(UserError, match="exists already: give another --labels-out"):
        check_labels(kind, "boxes", out)
    with pytest.raises(UserError, match=f"--labels-as {kind} is not for this model: give csv"):
        check_labels(kind, "labels", tmp_path / "new")


def test_classes_and_masks_written_as_labels_are_read_again(pictures, tmp_path):
    found = [Prediction(str(p), [(name, 0.75)]) for p, name in zip(pictures, ("cat", "dog"), strict=True)]
    write_labels("csv", "labels", [*found, Prediction("x.png", [], "torn")], ["cat", "dog"], tmp_path / "csv")
    with (tmp_path / "csv" / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["probability"]) for row in rows] == [
        (str(pictures[0]), "cat", "0.75"),
        (str(pictures[1]), "dog", "0.75"),
    ]
    table = shutil.copy(tmp_path / "csv" / "labels.csv", pictures[0].parent)
    assert read_layout(str(table)).parts[""].classes == ["cat", "dog"]
    (tmp_path / "made").mkdir()
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "made" / "0.mask.png")
    made = [MaskPrediction(str(pictures[0]), mask=str(tmp_path / "made" / "0.mask.png"))]
    write_labels("masks", "masks", made, ["sky", "ground"], tmp_path / "masks")
    assert np.array_equal(read_mask(tmp_path / "masks" / "0.png"), np.eye(4))
    assert (tmp_path / "masks" / "classes.txt").read_text() == "sky\nground\n"


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_files_of_several_pictures_are_told(kind, request, capsys, tmp_path):
    model = request.getfixturevalue(kind)
    frames = [make_photo(colour, i) for i, colour in enumerate(COLOURS.values())]
    (tmp_path / "films").mkdir()
    for name in ("a.gif", "b.tif"):
        frames[0].save(tmp_path / "films" / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "films" / "c.mpo", save_all=True, append_images=[frames[1]])
    frames[0].save(tmp_path / "films" / "d.png")
    labels = {"classifier": "csv", "segmenter": "masks", "detector": "yolo"}[kind]
    options = () if kind == "classifier" else ("--out", str(tmp_path / "out"))
    places = ("--labels-as", labels, "--labels-out", str(tmp_path / "labels"))
    main(["predict", str(model), str(tmp_path / "films"), *options, *places])
    told = f"several frames or pages, of which the first is read: 2 ({tmp_path}/films/a.gif: 3, "
    assert told in capsys.readouterr().err
