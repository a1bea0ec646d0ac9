"""The library call that predicts, against the command; what it accepts."""

import csv
import io
import json
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
from dmformer.tasks.classification.classifier import save_classifier
from dmformer.tasks.detection.detector import DetectorConfig, save_detector
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
