"""What `dmformer check` finds in data, and the page that every run writes of its own."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_photo
from PIL import Image

from dmformer.cli import main
from dmformer.data.copies import look_at, same_photos
from dmformer.data.decode import decode
from dmformer.tasks.check import examine, summary
from dmformer.tasks.classification.datasets import open_splits
from dmformer.tasks.classification.recipes import ClassificationRecipe
from dmformer.tasks.detection.datasets import open_boxes
from dmformer.tasks.segmentation.datasets import open_pairs
from dmformer.tasks.segmentation.recipes import SegmentationRecipe
from dmformer.tasks.table import TASKS
from dmformer.utils.display import untracked

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def checked(capsys, *arguments: Any) -> tuple[int, str, str]:
    """Exit code, output and page of `dmformer check`, which is written into the current folder."""
    code = 0
    try:
        main(["check", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    page = Path("check.html")
    return code, captured.out + captured.err, page.read_text("utf-8") if page.exists() else ""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def waves(k: int, size: tuple[int, int] = (128, 96)) -> Image.Image:
    """A smooth picture that can be recognised when it is resized."""
    rows, columns = np.mgrid[:96, :128] / 96
    picture = np.sin(6 * columns + k) * np.cos(5 * rows * (k + 1))
    return Image.fromarray((127 + 120 * picture).astype(np.uint8)).convert("RGB").resize(size)


def test_class_folders(capsys, photos):
    command = re.search(r"^dmformer check (.*)", DOCS.read_text("utf-8"), re.MULTILINE)
    assert command is not None
    code, out, page = checked(capsys, *command[1].split())
    assert code == 0
    assert "training would accept this data" in out
    assert "Training accepts this data" in page
    assert "There is nothing else to look at" not in page  # 8 training photos of each class are few
    red, blue = photos / "red car", photos / "蓝天"
    shutil.copy(red / "0.png", blue / "copy.png")
    shutil.copy(red / "1.png", red / "copy.png")
    waves(1).save(red / "wave.png")
    waves(1, (80, 60)).save(red / "small.jpg", quality=70)
    for i in range(4):
        (red / f"a<b>{i}.png").write_bytes(b"no photo")
    code, out, page = checked(capsys, "--data", photos)
    assert code == 2
    assert out.splitlines()[-1].startswith("dmformer: training would refuse this data: ")
    assert "--max-broken 0.05" in out.splitlines()[-1]
    assert "task: classification" in out
    assert "the same photo in two classes: 1 (red car/0.png = 蓝天/copy.png)" in out
    assert "the same photo twice: 1 (red car/1.png = red car/copy.png)" in out
    assert "look alike: 1 (" in out
    assert "sizes: from 48 x 40 to 128 x 96 pixels, half of them up to 48 x 40" in out
    assert "left out: 4 (red car/a<b>" in out
    assert "red car/a&lt;b&gt;0.png" in page
    assert "a<b>" not in page
    assert page.count("<img alt=") >= 6
    assert "http" not in page.replace("http-equiv", "")
    code, out, _ = checked(capsys, "--data", photos, "--max-broken", "0.9")
    assert code == 0, out


def test_leaks_between_splits_are_shown_though_they_are_refused(capsys, tmp_path):
    for i, place in enumerate(f"{split}/{name}" for split in ("train", "val") for name in "ab"):
        for k in range(3):
            (tmp_path / "set" / place).mkdir(parents=True, exist_ok=True)
            make_photo((90, 100, 110), 10 * i + k).save(tmp_path / "set" / place / f"{k}.png")
    shutil.copy(tmp_path / "set/train/a/0.png", tmp_path / "set/val/a/again.png")
    code, out, page = checked(capsys, "--data", tmp_path / "set")
    assert code == 2
    assert "the same photo in two splits: 1 (train/a/0.png = val/a/again.png)" in out
    assert "train/a/0.png = val/a/again.png" in page
    assert checked(capsys, "--data", tmp_path / "set", "--allow-leaks")[0] == 0


def test_masks(capsys, scenes):
    masks = scenes / "annotations" / "training"
    Image.fromarray(np.full((48, 64), 3, np.uint8)).save(masks / "1.png")
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(masks / "2.png")
    speck = np.full((48, 64), 3, np.uint8)
    speck[0, :5] = 2
    Image.fromarray(speck).save(masks / "3.png")
    options = ("--data", scenes, "--classes", "sky", "ground", "box", "--ignore-index", "3", "--image-size", "32")
    code, out, page = checked(capsys, *options)
    assert code == 0
    assert out.startswith("task: segmentation\nlayout: folders of images and masks\ntrain: 10 photos\n")
    assert "masks without a labelled pixel: 1 (images/training/1.png: no labelled pixel)" in out
    assert "masks with less than 1% labelled: 1 (images/training/3.png: 5 of 3,072 pixels)" in out
    assert "masks with a single class: 1 (images/training/2.png: only sky)" in out
    assert "classes with fewer than 10 pixels in a mask: 1 (images/training/3.png: box: 5 px)" in out
    assert [row.split() for row in out.splitlines() if row.startswith((" sky", " box"))] == [
        ["sky", "8", "4", "5"],
        ["box", "5", "2", "3"],
    ]
    assert "Of the training pixels" in page
    Image.fromarray(np.full((40, 56), 9, np.uint8)).save(masks / "4.png")
    code, out, page = checked(capsys, *options)
    assert code == 2
    assert "holds the id 9" in out.splitlines()[-1]
    assert "images/training/4.png" in page


def test_boxes(capsys, shapes):
    file = shapes / "instances_train.json"
    content = json.loads(file.read_text())
    more = [(2, [0, 0, 96, 64], 3), (2, [10, 10, 2, 20], 3), (4, [40, 30, 20, 20], 3), (4, [40.5, 30.2, 20, 20], 3)]
    more += [(6, [40, 30, 20, 20], 3), (6, [40.5, 30, 20, 20], 8), (6, [500, 500, 10, 10], 8), (8, [4, 4, 84, 4], 8)]
    for number, (image, box, category) in enumerate(more, 1000):
        content["annotations"].append({"id": number, "image_id": image, "category_id": category, "bbox": box})
    file.write_text(json.dumps(content))
    code, out, page = checked(capsys, "--data", shapes, "--max-broken", "0.1")
    assert code == 0
    assert "task: detection\nlayout: COCO" in out
    assert "objects less than 4 pixels wide or high: 1 (train/2.png: red box, 2 x 20 px)" in out
    assert "objects that cover 95% of their photo or more: 1 (train/2.png: red box, 96 x 64 px)" in out
    assert "objects more than 20 times as long as wide: 1 (train/8.png: blue box, 84 x 4 px)" in out
    assert "two boxes of one class around the same thing: 1 (train/4.png: red box)" in out
    assert "two classes for the same thing: 1 (train/6.png: red box and blue box)" in out
    assert "photos without objects: 4" in out
    assert "has a box outside its photo" in page
    assert checked(capsys, "--data", shapes)[0] == 2


def test_a_task_is_found_or_named(capsys, photos, scenes, shapes, tmp_path):
    recognised = {name: [place.name for place in (photos, scenes, shapes) if task.recognises(str(place))]
                  for name, task in TASKS.items()}  # fmt: skip
    assert recognised["detection"] == ["shapes"]
    assert recognised["segmentation"] == ["scenes"]
    assert "photos" in recognised["classification"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    for arguments, told in (
        (["--data", tmp_path / "empty"], "has no layout that is known"),
        (["--data", tmp_path / "labels.xlsx"], "a table as text (.csv, .tsv, .jsonl, .ndjson), or annotations"),
        (["--data", tmp_path / "nowhere"], "nowhere does not exist"),
        ([], "name the data"),
        (["--data", photos, "--masks", scenes / "annotations", "--val-data", photos], "--val-data does not belong to"),
        (["--data", photos, "--out", tmp_path / "no" / "x.html"], "a file cannot be written there"),
        (["camvid", "--data", scenes, "--task", "detection"], "camvid is a recipe for segmentation"),
    ):
        code, out, page = checked(capsys, *arguments)
        assert (code, page, out.count("\n")) == (2, "", 1)
        assert told in out
    code, out, page = checked(capsys, "--data", tmp_path / "empty", "--task", "classification")
    assert code == 2
    assert "holds no images" in page
    pretrain = TASKS["pretraining"].recipe(data=(str(photos),), image_size=32)
    lines = summary(examine(TASKS["pretraining"], pretrain, untracked)).lines
    assert lines[:3] == ["layout: labelled photos", "photos train: 31 photos", "photos val: 5 photos"]


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_deep_photos_have_one_range_of_values(scenes, shapes, task):
    """12 bits in 16: the range comes from the training photos, and holds for every photo of the set."""
    folder = scenes / "images" if task == "segmentation" else shapes
    for n, path in enumerate(sorted(folder.rglob("*.png"))):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray((grey * 12 + n).astype(np.uint16)).save(path)
    if task == "segmentation":
        splits: Any = open_pairs(
            SegmentationRecipe(data=str(scenes), classes=("sky", "ground", "box"), ignore_index=(3,))
        )
    else:
        splits = open_boxes(str(shapes))
    assert splits.train.reading.values == splits.test.reading.values == (0.0, 4095.0)
    assert any(note.startswith("photos of more than 8 bits: values from 0 to 4095") for note in splits.notes)
    stored = np.asarray(Image.open(splits.test.images[0])).astype(float)
    with splits.test.open(0) as file:
        shown = np.asarray(decode(file, reading=splits.test.reading))[..., 0]
    assert np.abs(shown - stored / 4095 * 255).max() <= 0.51


def test_only_the_copies_that_are_wanted_are_looked_for(tmp_path, scenes, monkeypatch):
    for i in range(2):
        make_photo((90, 100, 110), i, (48 + 16 * i, 40)).save(tmp_path / f"{i}a.png")
        shutil.copy(tmp_path / f"{i}a.png", tmp_path / f"{i}b.png")
    paths = sorted(tmp_path.glob("*.png"))
    opened: list[int] = []

    def noted(i: int) -> Any:
        opened.append(i)
        return paths[i].open("rb")

    looks = look_at(4, noted)
    opened.clear()
    assert same_photos(4, noted, looks, wanted={0}) == [[0, 1]]
    assert set(opened) == {0, 1}
    monkeypatch.setattr("dmformer.tasks.segmentation.datasets.find_copies", None)
    recipe = SegmentationRecipe(data=str(scenes), classes=("sky", "ground", "box"))
    assert len(open_pairs(recipe, compare=False).train) == 10
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "parts" / split / name).mkdir(parents=True)
            shutil.copy(tmp_path / "0a.png", tmp_path / "parts" / split / name)
    monkeypatch.setattr("dmformer.tasks.classification.datasets.find_copies", None)
    own = open_splits(ClassificationRecipe(data=str(tmp_path / "parts")), compare=False)
    assert (len(own.val), own.test) == (2, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("trained_classifier", "more than --max-broken 0.5"),
        ("trained_segmenter", "more than --max-broken 0.5"),
        ("trained_detector", "64 x 80 pixels are more than --max-pixels 100"),
    ],
)
def test_a_run_writes_the_page_and_links_it(kind, told, request, capsys):
    run = request.getfixturevalue(kind)
    page = (run.folder / "check.html").read_text("utf-8")
    assert "What the run found in its data" in page
    assert '<a href="check.html">' in (run.folder / "report.html").read_text("utf-8")
    with pytest.raises(SystemExit):
        main(["eval", str(run.folder / "best"), "--max-pixels", "100", "--max-broken", "0.5"])
    assert told in capsys.readouterr().err
