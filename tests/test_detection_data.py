"""Detection annotations: formats, reported faults, boxes that stay on their objects, batches by orientation."""

import json
import re
import unicodedata
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from dmformer.data.decode import BrokenImageError, fitted_size
from dmformer.tasks.detection.datasets import (
    Annotations,
    BoxSet,
    BoxSplits,
    check_boxes,
    check_evaluation_boxes,
    has_boxes,
    open_boxes,
    open_evaluation_boxes,
)
from dmformer.tasks.detection.formats.coco import read_coco
from dmformer.tasks.detection.formats.find import find_boxes
from dmformer.tasks.detection.loaders import (
    BoxDataset,
    GroupedSampler,
    eval_boxes_loader,
    eval_transform,
    train_boxes_loader,
    train_transform,
)
from dmformer.tasks.sampling import StepSampler
from dmformer.utils.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RED = (220, 30, 30)
CATEGORIES = [{"id": 3, "name": "box"}, {"id": 7, "name": "ball"}]
OTHER_SIZE = "has another size than its annotations say"
EXCHANGED = "width and height are exchanged, there or by the file's EXIF"
SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]
AROUND = [[8, 6, 28, 6, 28, 16, 8, 16]]
"""The outline of a `thing` with the usual box."""


def save_photo(path: Path, size: tuple[int, int] = (64, 48), box: Sequence[int] = (), exif: int | None = None) -> Path:
    """A photo of a pattern of its own, or all grey with a red rectangle (left, top, right, bottom)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if box:
        photo = Image.new("RGB", size, (90, 90, 90))
        photo.paste(RED, tuple(box))  # type: ignore[arg-type]
    else:
        own = np.random.default_rng(zlib.crc32(str(path).encode()))
        photo = Image.fromarray(own.integers(0, 200, (3, 4, 3), dtype=np.uint8)).resize(size)
    header = Image.Exif()
    if exif is not None:
        header[0x0112] = exif
    photo.save(path, exif=header)
    return path


def coco(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], categories: Sequence[Any] = CATEGORIES
) -> str:
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def image(number: int, name: str | None = None, size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.png", "width": size[0], "height": size[1]}


def thing(number: int, of: int, box: Any = (8, 6, 20, 10), category: Any = 3, **more: Any) -> dict[str, Any]:
    bbox = list(box) if isinstance(box, tuple) else box
    return {"id": number, "image_id": of, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


@pytest.fixture
def cocos(tmp_path: Path) -> Path:
    """COCO's layout with four training and three validation photos, one object each."""
    root = tmp_path / "set"
    (root / "annotations").mkdir(parents=True)
    for split, first, count in (("train", 1, 4), ("val", 11, 3)):
        numbers = range(first, first + count)
        for i in numbers:
            save_photo(root / f"{split}2017" / f"{i}.png")
        text = coco([image(i) for i in numbers], [thing(100 + i, i) for i in numbers])
        (root / "annotations" / f"instances_{split}2017.json").write_text(text)
    return root


def with_training(root: Path, annotations: Sequence[Any], images: Sequence[Any] | None = None) -> Path:
    """Write other annotations into the training file of `cocos`."""
    photos = [image(i) for i in range(1, 5)] if images is None else images
    (root / "annotations" / "instances_train2017.json").write_text(coco(photos, annotations))
    return root


def one_set(
    folder: Path, sizes: Sequence[tuple[int, int]], boxes: Sequence[Sequence[int]], masks: bool = False
) -> BoxSet:
    """Photos with one red object each; with `masks`, their outlines are polygons."""
    annotations = []
    for i, box in enumerate(boxes):
        x1, y1, x2, y2 = box
        outlines = ([np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float64)],) if masks else None
        array = np.array([box], np.float32)
        area = np.array([float((x2 - x1) * (y2 - y1))])
        annotations.append(Annotations(array, np.array([1]), np.array([False]), area, np.array([i]), outlines))
    paths = tuple(
        save_photo(folder / f"{i}.png", size, box) for i, (size, box) in enumerate(zip(sizes, boxes, strict=True))
    )
    stated = np.array([(height, width) for width, height in sizes])
    return BoxSet(paths, stated, tuple(annotations), ("a", "b"), (1, 2), tuple(range(len(paths))), folder)


def red_region(picture: Tensor) -> list[int]:
    """Left, top, right and bottom edge of the red area in a normalised tensor."""
    colours = picture * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    rows, columns = torch.nonzero((colours[0] > 0.6) & (colours[1] < 0.25), as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


# ---- COCO


def test_coco_is_read(cocos: Path) -> None:
    with_training(cocos, [thing(5, 2, category=7, area=33.5), thing(7, 4), thing(6, 2, (1, 2, 3, 4), iscrowd=1)])
    splits = open_boxes(str(cocos))
    train = splits.train
    assert (splits.class_names, splits.category_ids) == (("box", "ball"), (3, 7))
    assert [train.name(i) for i in range(4)] == [f"train2017/{i}.png" for i in range(1, 5)]
    assert train.image_ids == (1, 2, 3, 4)
    assert train.sizes.tolist() == [[48, 64]] * 4
    assert [len(each) for each in train.annotations] == [0, 2, 0, 1]
    objects = train.annotations[1]
    assert objects.boxes.tolist() == [[8, 6, 28, 16], [1, 2, 4, 6]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.crowd.tolist() == [False, True]
    assert objects.areas.tolist() == [33.5, 12.0]  # the file's, or that of the box if the file gives none
    assert objects.ids.tolist() == [5, 6]
    assert objects.single().ids.tolist() == [5]
    kinds = [a.dtype.name for a in (objects.boxes, objects.labels, objects.crowd, objects.areas, objects.ids)]
    assert kinds == ["float32", "int64", "bool", "float64", "int64"]
    assert (len(splits.val), splits.test, splits.faults) == (3, None, [])
    assert splits.notes == ["the category ids 3 to 7 are not 1 to 2: classes are numbered in their order"]
    assert [each.ids.tolist() for each in train.subset([3, 1]).annotations] == [[7], [5, 6]]
    assert train.subset([3, 1]).image_ids == (4, 2)


@pytest.mark.parametrize(
    ("file", "photos"),
    [
        ("annotations/instances_train2014.json", "images/train2014"),
        ("annotations/instances_train.json", "train"),
        ("instances_train.json", "train"),
        ("instances_train.json", "images"),
        ("train/_annotations.coco.json", "train"),
        ("annotations/train.json", "images/train"),
    ],
)
def test_layouts_of_coco(tmp_path: Path, file: str, photos: str) -> None:
    for split in ("train", "val"):
        save_photo(tmp_path / photos.replace("train", split) / f"{split}.png")
        path = tmp_path / file.replace("train", split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(coco([image(1, f"{split}.png")], [thing(1, 1)]))
    (tmp_path / "captions_train2014.json").write_text("[]")
    splits = check_boxes(open_boxes(str(tmp_path)), 0.0)
    assert [part.images[0].name for part in (splits.train, splits.val)] == ["train.png", "val.png"]


@pytest.mark.parametrize("place", ["photos", "."])
def test_one_coco_file_is_split_at_random(tmp_path: Path, place: str) -> None:
    for i in range(20):
        save_photo(tmp_path / place / f"{i}.png")
    file = tmp_path / "all.json"
    file.write_text(coco([image(i) for i in range(20)], [thing(i, i) for i in range(20)]))
    splits = open_boxes(str(file), val_share=0.2, test_share=0.1)
    again = open_boxes(str(tmp_path), str(tmp_path / place), val_share=0.2, test_share=0.1)
    assert splits.test is not None
    parts = (splits.train, splits.val, splits.test)
    assert [len(part) for part in parts] == [14, 4, 2]
    assert sorted(i for part in parts for i in part.image_ids) == list(range(20))
    assert [again.train.image_ids, again.val.image_ids] == [splits.train.image_ids, splits.val.image_ids]
    for part in parts:
        assert [each.ids.tolist() for each in part.annotations] == [[i] for i in part.image_ids]
    assert open_boxes(str(file), seed=1).val.image_ids != open_boxes(str(file)).val.image_ids


FAULTS: list[tuple[dict[str, Any], str]] = [
    (thing(9, 99), "instances_train2017.json, object 9: belongs to no photo: image_id 99"),
    (thing(9, 1, category=4), "train2017/1.png, object 9: has an unknown category: 4"),
    (thing(9, 1, category=None), "train2017/1.png, object 9: has an unknown category: None"),
    (thing(9, 1, (5, 5, 0, 8)), "train2017/1.png, object 9: has a box without area: edges 5 5 5 13"),
    (thing(9, 1, (5, 5, 8, -2)), "train2017/1.png, object 9: has a box without area: edges 5 5 13 3"),
    (thing(9, 1, (64, 5, 9, 9)), "train2017/1.png, object 9: has a box outside its photo: edges 64 5 73 14"),
    (thing(9, 1, (-9, 5, 8, 9)), "train2017/1.png, object 9: has a box outside its photo: edges -9 5 -1 14"),
    (thing(9, 1, (5, float("nan"), 8, 9)), "has a box with a number that is not finite: edges 5 nan 13 nan"),
    (thing(9, 1, (5, 5, float("inf"), 9)), "has a box with a number that is not finite: edges 5 5 inf 14"),
    (thing(9, 1, (5, 5, 8)), "train2017/1.png, object 9: has no box of four numbers: [5, 5, 8]"),
    (thing(9, 1, (5, 5, 8, 8, 8)), "has no box of four numbers: [5, 5, 8, 8, 8]"),
    (thing(9, 1, None), "has no box of four numbers: None"),
    (thing(9, 1, (5, 5, 8, "x")), "has a value that is no number in its box: [5, 5, 8, 'x']"),
    (thing(9, 1, (5, 5, 8, 10**400)), "has a value that is no number in its box"),
    (thing(9, 1, (100, 5, 1e300, 8)), "has a box outside its photo: edges 100 5 1e+300 13"),
]


@pytest.mark.parametrize(("entry", "told"), FAULTS)
def test_faulty_objects_are_left_out_and_told(cocos: Path, entry: dict[str, Any], told: str) -> None:
    with_training(cocos, [thing(101, 1), entry, thing(102, 2)])
    splits = open_boxes(str(cocos))
    assert [each.ids.tolist() for each in splits.train.annotations] == [[101], [102], [], []]
    ((name, why),) = splits.faults
    assert told in f"{name}: {why}"
    checked = check_boxes(splits, 0.1)
    phrase = why.partition(":")[0]
    assert checked.notes[1] == f"left out of 13 objects and photos: 1 x '{phrase}'"  # 2 + 3 objects, 7 photos, this one
    with pytest.raises(UserError, match=r"1 of 13 objects and photos cannot be used \(7\.7%\), more than --max-broken"):
        check_boxes(splits, 0.07)


BAD_OUTLINES: list[tuple[Any, str]] = [
    ([[1, 1, 5, 5]], "has a polygon of 4 numbers: it takes two per point, and three points"),
    ([[1, 1, 5, 5, 7, 7, 8]], "has a polygon of 7 numbers"),
    ([[1, 1, 5, 5, 7, float("nan")]], "has a polygon with a number that is not finite"),
    ([[1, 1, 5, 5, 7, "x"]], "has a polygon with something that is no number"),
    ([[1, 1, 5, 5, 7, 1e9]], "has a polygon far outside its photo"),
    ([5, 6], "has a polygon of 2 numbers"),
    (["text", [5]], "has an outline that is no list of polygons"),
    ("text", "has an outline that is no list of polygons"),
    ([[40, 30, 50, 30, 50, 40]], "it lies outside the box"),
    ({"size": [64, 48], "counts": [3072]}, "has run lengths of another size than its photo, 64x48: [64, 48] (H, W)"),
    ({"size": [48, 64], "counts": [3000, 5]}, "has run lengths of 3005 pixels, its photo has 3072"),
    ({"size": [48, 64], "counts": [4000, -928]}, "has run lengths of 3072 pixels"),
    ({"size": [48, 64], "counts": "é"}, "has run lengths that cannot be read"),
    ({"size": [48, 64], "counts": "PPP"}, "has run lengths that cannot be read"),
    ({"size": [48, 64], "counts": "11"}, "has run lengths of 2 pixels"),
    ({"size": [48, 64]}, "has run lengths of 0 pixels"),
]


@pytest.mark.parametrize(("outline", "told"), BAD_OUTLINES)
def test_a_bad_outline_leaves_the_box(cocos: Path, outline: Any, told: str) -> None:
    """Alone or among good outlines; a run that learns masks leaves the object out."""
    with_training(cocos, [thing(101, 1, segmentation=AROUND), thing(9, 2, segmentation=outline)])
    splits = open_boxes(str(cocos))
    assert splits.faults == []
    assert [each.boxes.tolist() for each in splits.train.annotations[:2]] == [[[8, 6, 28, 16]]] * 2
    assert [each.outlines is None for each in splits.train.annotations[:2]] == [False, True]
    note = next(note for note in splits.notes if note.startswith("outlines that cannot be used"))
    assert "train2017/2.png, object 9" in note
    assert told in note
    masked = open_boxes(str(cocos), max_bare=0.5)
    assert [each.ids.tolist() for each in masked.train.annotations[:2]] == [[101], []]
    assert masked.train.has_masks
    assert masked.faults == [("train2017/2.png, object 9", "has no outline, and masks are learnt from outlines")]


def test_what_is_good_in_an_outline_is_kept(cocos: Path) -> None:
    flat = [8, 6, 28, 6, 28, 16, 8, 16]
    runs = {"size": [48, 64], "counts": [48 * 8 + 6, 10, 38, 10, 3072 - 48 * 9 - 16]}  # columns 8 and 9, rows 6 to 15
    whole = {"size": [48, 64], "counts": [48 * 8 + 6, 100, 3072 - 48 * 8 - 106]}  # over the border of columns
    objects = [
        thing(1, 1, segmentation=flat),
        thing(2, 2, segmentation=[[1, 2], [[9, 9]], *AROUND]),
        thing(3, 3, None, segmentation=AROUND),
        thing(4, 3, (1, 2, 0, 5), 7, segmentation=AROUND),
        thing(5, 4, [1, 2, float("nan"), 5], segmentation=runs),
        thing(6, 4, [], 7, segmentation=coded_columns(runs)),
        thing(7, 4, [], segmentation=whole),
        thing(8, 4, [], segmentation={"size": [48, 64], "counts": [3072]}),
    ]
    with_training(cocos, objects)
    splits = open_boxes(str(cocos))
    boxes = [each.boxes.tolist() for each in splits.train.annotations]
    assert boxes[:3] == [[[8, 6, 28, 16]]] * 2 + [[[8, 6, 28, 16]] * 2]
    assert boxes[3] == [[8, 6, 10, 16]] * 2 + [[8, 0, 11, 48]]
    assert [splits.train.annotations[i].masks(48, 64).sum() for i in range(4)] == [200, 200, 400, 140]
    assert splits.faults == [("train2017/4.png, object 8", "has no box, and an outline without a pixel")]
    file = cocos / "annotations" / "instances_train2017.json"
    assert splits.notes[:2] == [
        f"outlines that cannot be used, left out while their boxes are kept in {file}: 2, such as train2017/2.png, "
        "object 2 has a polygon of 2 numbers: it takes two per point, and three points",
        f"objects without a usable box, whose box is now that of their outline in {file}: 5, such as train2017/3.png, "
        "object 3",
    ]


def coded_columns(runs: dict[str, Any]) -> dict[str, Any]:
    ends = np.cumsum(runs["counts"])
    flat = np.zeros(48 * 64, bool)
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        flat[start:end] = True
    return coded(flat.reshape(64, 48).T)


def test_ids_of_any_kind(cocos: Path) -> None:
    """Ids as text, of no kind that COCO has, taken or missing; an object given twice counts once."""
    photos = [{**image(i), "id": f"photo {i}"} for i in range(1, 5)]
    objects = [
        {**thing(5, 1), "id": "5", "image_id": "photo 1", "category_id": "7"},
        {**thing(5, 1, (1, 1, 9, 9)), "image_id": "photo 1"},
        {**thing(6, 1, (1, 1, 9, 9)), "image_id": "photo 1"},
        {**thing(0, 2), "id": None, "image_id": "photo 2"},
        {**thing(2**70, 3), "image_id": "photo 3"},
        {**thing(2**70, 4, segmentation=AROUND), "image_id": "photo 4"},
        {**thing(9, 4, segmentation=AROUND), "image_id": "photo 4"},
        {**thing(10, 4, segmentation=SQUARE), "image_id": "photo 4"},
    ]
    with_training(cocos, objects, photos)
    splits = open_boxes(str(cocos))
    train = splits.train
    assert splits.faults == []
    assert train.image_ids == (1, 2, 3, 4)
    assert [each.ids.tolist() for each in train.annotations] == [[5, 11], [12], [13], [14, 10]]
    assert train.annotations[0].labels.tolist() == [1, 0]
    file = cocos / "annotations" / "instances_train2017.json"
    assert splits.notes[0] == f"the photos of {file} have ids that are no whole numbers: numbered from 1 in their order"
    assert splits.notes[1].startswith(f"objects without an id of their own, renumbered in {file}: 4, such as ")
    assert splits.notes[2] == f"objects in {file} given twice, counted once: 2, such as train2017/1.png, object 6"


def test_two_entries_for_one_photo(cocos: Path) -> None:
    photos = [image(1), image(2), image(7, "./1.png"), image(8, "1.png")]
    with_training(cocos, [thing(1, 1), thing(2, 7), thing(3, 8, (1, 1, 5, 5))], photos)
    splits = open_boxes(str(cocos))
    assert splits.train.image_ids == (1, 2)
    assert [each.ids.tolist() for each in splits.train.annotations] == [[1, 3], []]
    assert "entries for a photo that has one already, added to the first in" in splits.notes[0]
    assert splits.notes[0].endswith(": 2, such as train2017/1.png, image 7")
    assert "given twice, counted once: 1" in splits.notes[1]


@pytest.mark.parametrize(
    "name",
    [
        "C:\\data\\photo {}.PNG",
        "/home/someone/set/photo {}.png",
        "https://host/set/photo%20{}.png?a=1",
        "x/photo {}.png",
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_photos_of_coco_under_other_names(cocos: Path, name: str, given: bool) -> None:
    for i in range(1, 5):
        (cocos / "train2017" / f"{i}.png").rename(cocos / "train2017" / f"photo {i}.png")
    with_training(cocos, [thing(i, i) for i in range(1, 5)], [image(i, name.format(i)) for i in range(1, 5)])
    splits = open_boxes(str(cocos), str(cocos) if given else None)
    assert [splits.train.name(i) for i in range(4)] == [f"train2017/photo {i}.png" for i in range(1, 5)]
    assert [each.ids.tolist() for each in splits.train.annotations] == [[i] for i in range(1, 5)]
    file = cocos / "annotations" / "instances_train2017.json"
    told = f"photos of {file} found under another name: 4, such as {name.format(1)} as "
    assert any(note.startswith(told) for note in splits.notes)
    assert check_boxes(splits, 0.0).faults == []


def test_copies_stop_a_run_or_stay_together(cocos: Path, yolo: Path, tmp_path: Path) -> None:
    (cocos / "val2017" / "12.png").write_bytes((cocos / "train2017" / "3.png").read_bytes())
    told = "1 photo is both in train and val (train/train2017/3.png = val/val2017/12.png)"
    with pytest.raises(UserError, match=re.escape(told) + ".*--allow-leaks"):
        open_boxes(str(cocos))
    splits = open_boxes(str(cocos), allow_leaks=True)
    assert (len(splits.train), len(splits.val)) == (4, 3)
    assert any(note.startswith(told) for note in splits.notes)
    (yolo / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [box, ball]")  # as some exports do
    with pytest.raises(UserError, match=r"2 photos are both in train and val \(train/images/train/a\.png = val/"):
        open_boxes(str(yolo))
    whole = tmp_path / "whole"
    for i in range(12):
        yolo_pair(whole / "images" / f"{i}.png", "1 0.5 0.5 0.5 0.5")
    for i in (3, 5, 8):
        Image.open(whole / "images" / "1.png").save(whole / "images" / f"{i}.bmp")
        (whole / "images" / f"{i}.png").unlink()
    for seed in range(8):
        splits = open_boxes(str(whole), classes=["box", "ball"], seed=seed)
        parts = [{path.stem for path in part.images} & {"1", "3", "5", "8"} for part in (splits.train, splits.val)]
        assert all(len(part) in (0, 4) for part in parts)
        assert sum(map(len, (splits.train, splits.val, splits.test or ()))) == 12
    assert any(
        note.startswith("3 photos are copies of another one (images/1.png = images/3.bmp") for note in splits.notes
    )


def test_what_systems_leave_behind(yolo: Path, voc: Path, cocos: Path) -> None:
    """Hidden copies are no photos and no annotations; splits may be called Training and VALID."""
    copied = yolo / "images" / "train" / ".ipynb_checkpoints" / "a-checkpoint.png"
    save_photo(copied)
    save_photo(yolo / "images" / "train" / "@eaDir" / "a.png")
    (yolo / "images" / "train" / "._a.png").write_bytes(b"Mac")
    (yolo / "._data.yaml").write_bytes(b"names:")
    splits = check_boxes(open_boxes(str(yolo)), 0.0)
    assert [splits.train.name(i) for i in range(len(splits.train))] == ["images/train/a.png", "images/train/b.png"]
    assert any("images/train: skipped 3 files" in note for note in splits.notes)
    annotations = voc / "VOCdevkit" / "VOC2012" / "Annotations"
    (annotations / "._a.xml").write_bytes(b"Mac")
    assert check_boxes(open_boxes(str(voc)), 0.0).faults == []
    (cocos / "annotations" / "._instances_train2017.json").write_bytes(b"Mac")
    assert len(open_boxes(str(cocos)).train) == 4
    root = cocos.parent / "roboflow"
    for split, number in (("Training", 1), ("VALID", 2)):
        save_photo(root / split / f"{number}.png")
        (root / split / "_annotations.coco.json").write_text(coco([image(number)], [thing(1, number)]))
    splits = check_boxes(open_boxes(str(root)), 0.0)
    assert [splits.train.name(0), splits.val.name(0)] == ["Training/1.png", "VALID/2.png"]


def test_a_missing_photo_is_not_that_of_another_split(cocos: Path) -> None:
    with_training(cocos, [thing(1, 1), thing(2, 2)], [image(1), image(2, "11.png")])
    splits = check_boxes(open_boxes(str(cocos)), 0.5)
    assert splits.faults == [("train2017/11.png", "cannot be read: No such file or directory")]
    (cocos / "far").mkdir()
    with_training(cocos, [], [image(1, "gone.png")])
    with pytest.raises(UserError, match=r"lies in .*far.*: that is not the folder that holds them") as raised:
        open_boxes(str(cocos), str(cocos / "far"))
    assert "--images" not in str(raised.value)


@pytest.mark.parametrize("kind", ["COCO", "VOC", "LabelMe"])
def test_boxes_of_the_frame_as_stored(cocos: Path, tmp_path: Path, kind: str) -> None:
    """EXIF 6 turns a photo of 64 x 48 by 90 degrees clockwise: (x, y) becomes (48 - y, x)."""
    root = cocos
    if kind == "COCO":
        save_photo(root / "train2017" / "1.jpg", exif=6)
        runs = {"size": [48, 64], "counts": [48 * 8 + 6, 10, 3072 - 48 * 8 - 16]}
        objects = [thing(1, 1, segmentation=AROUND), thing(2, 1, (8, 6, 1, 10), segmentation=runs)]
        with_training(root, objects, [image(1, "1.jpg"), image(2)])
    else:
        root = tmp_path / "other"
        for split in ("train", "val"):
            save_photo(root / split / "1.jpg", exif=6)
            if kind == "VOC":
                (root / split / "1.xml").write_text(voc_xml(voc_object("box", (9, 7, 28, 16))))
            else:
                write_labelme(root / split / "1.json", [("box", [[8, 6], [28, 16]], "rectangle")])
    splits = check_boxes(open_boxes(str(root)), 0.0)
    objects = splits.train.annotations[0]
    assert splits.train.sizes[0].tolist() == [64, 48]
    assert objects.boxes[0].tolist() == [32, 8, 42, 28]
    if kind == "COCO":
        assert objects.boxes[1].tolist() == [32, 8, 42, 9]
        first, second = objects.masks(64, 48)
        assert (first.sum(), first[8:28, 32:42].sum()) == (200, 200)
        assert (second.sum(), second[8, 32:42].sum()) == (10, 10)
    told = "photos that EXIF turns, with a stated size as before: their boxes were turned too: 1, such as "
    assert any(note.startswith(told) for note in splits.notes)
    dataset = BoxDataset(splits.train, eval_transform(32, 64, MEAN, STD), training=False)
    assert dataset.picture(0).size == (48, 64)


@pytest.mark.parametrize(
    ("kind", "exif", "size", "told"),
    [
        ("COCO", 3, (64, 48), True),
        ("COCO", 6, (48, 48), True),
        ("COCO", 6, (48, 64), False),  # the stated size is that of the photo as shown
        ("VOC", 2, (64, 48), True),
        ("LabelMe", 4, (64, 48), True),
        ("YOLO", 6, (64, 48), True),
        ("YOLO", 1, (64, 48), False),
    ],
)
def test_photos_that_exif_turns_though_no_size_tells(
    tmp_path: Path, kind: str, exif: int, size: tuple[int, int], told: bool
) -> None:
    for split, number in (("train", 1), ("val", 2)):
        folder = tmp_path / split
        stored = size[::-1] if kind == "COCO" and exif > 4 else size
        save_photo(folder / f"{number}.jpg", stored, exif=exif if split == "train" else None)
        if kind == "COCO":
            seen = size if split == "train" else stored
            text = coco([image(number, f"{number}.jpg", seen)], [thing(1, number)])
            (tmp_path / f"{split}.json").write_text(text)
        elif kind == "VOC":
            (folder / f"{number}.xml").write_text(voc_xml(voc_object("box", (9, 7, 28, 16))))
        elif kind == "LabelMe":
            write_labelme(folder / f"{number}.json", [("box", [[8, 6], [28, 16]], "rectangle")])
        else:
            (folder / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
            (tmp_path / "classes.txt").write_text("box\n")
    notes = check_boxes(open_boxes(str(tmp_path)), 0.0).notes
    words = "photos that EXIF turns or mirrors, with boxes taken to be turned alike, which no size tells: 1, such as "
    assert any(note == f"{words}train/1.jpg" for note in notes) == told


@pytest.mark.parametrize("entry", ["text", None, 5, []])
def test_an_annotation_that_is_none(cocos: Path, entry: Any) -> None:
    with_training(cocos, [thing(101, 1), entry])
    splits = open_boxes(str(cocos))
    assert splits.faults == [("instances_train2017.json, object None", "belongs to no photo: image_id None")]


def test_faulty_photos_are_left_out_with_their_objects(cocos: Path) -> None:
    (cocos / "train2017" / "2.png").unlink()
    (cocos / "train2017" / "3.png").write_bytes(b"no photo")
    save_photo(cocos / "train2017" / "5.jpg", (64, 48), exif=6)
    save_photo(cocos / "train2017" / "6.png")
    sizes = {5: (48, 60), 6: (48, 64)}
    photos = [image(i, "5.jpg" if i == 5 else None, sizes.get(i, (64, 48))) for i in (1, 2, 3, 4, 4, 5, 6)]
    with_training(cocos, [thing(100 + i, i) for i in range(1, 7)], [*photos, {"id": 8}, "text"])
    splits = check_boxes(open_boxes(str(cocos)), 0.5)
    assert splits.faults == [
        ("4.png", "has an id that is taken: 4"),
        ("instances_train2017.json, image 8", "has no id, or no file_name: {'id': 8}"),
        ("instances_train2017.json, image None", "has no id, or no file_name: text"),
        ("train2017/2.png", "cannot be read: No such file or directory"),
        ("train2017/3.png", "cannot be read: it is no image of a known kind"),
        ("train2017/5.jpg", f"{OTHER_SIZE}: 48x64, not 48x60"),
        ("train2017/6.png", f"{OTHER_SIZE}: 64x48, not 48x64 ({EXCHANGED})"),
    ]
    assert [splits.train.name(i) for i in range(len(splits.train))] == ["train2017/1.png", "train2017/4.png"]
    assert [each.ids.tolist() for each in splits.train.annotations] == [[101], [104]]
    assert splits.notes[1].startswith("left out of 21 objects and photos: 2 x 'has no id")


def test_sizes_that_the_file_lacks_are_those_of_the_photos(cocos: Path) -> None:
    save_photo(cocos / "train2017" / "5.jpg", (64, 40), exif=6)
    save_photo(cocos / "train2017" / "6.tif", (64, 40), exif=8)
    save_photo(cocos / "train2017" / "7.png", (64, 40), exif=5)
    photos = [{"id": 5, "file_name": "5.jpg"}, {"id": 6, "file_name": "6.tif", "width": 0, "height": 0}]
    photos += [{"id": 7, "file_name": "7.png"}, image(1), {"id": 8, "file_name": "none.jpg"}]
    with_training(cocos, [thing(1, 5, (30, 60, 90, 90)), thing(2, 8)], photos)
    splits = open_boxes(str(cocos))
    assert splits.train.sizes.tolist() == [[64, 40], [64, 40], [64, 40], [48, 64]]
    assert splits.train.annotations[0].boxes.tolist() == [[30, 60, 40, 64]]
    assert splits.faults == [("train2017/none.jpg", "cannot be read: No such file or directory")]
    assert len(check_boxes(splits, 0.2).train) == 4
    dataset = BoxDataset(splits.train, eval_transform(32, 64, MEAN, STD), training=False)
    assert [dataset.picture(i).size for i in range(4)] == [(40, 64)] * 3 + [(64, 48)]


def test_boxes_are_clipped_and_counted(cocos: Path) -> None:
    boxes = [(-5, 40, 30, 30), (60.5, 1, 3.6, 2), (0, 0, 64, 48)]
    with_training(cocos, [thing(i, 1, box) for i, box in enumerate(boxes)])
    splits = open_boxes(str(cocos))
    assert splits.train.annotations[0].boxes.tolist() == [[0, 40, 25, 48], [60.5, 1, 64, 3], [0, 0, 64, 48]]
    assert splits.train.annotations[0].areas.tolist() == [25 * 8, 3.5 * 2, 64 * 48]
    file = cocos / "annotations" / "instances_train2017.json"
    assert splits.notes[0] == f"boxes in {file} that extend beyond their photo, clipped: 1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is a list, like COCO results"),
        ("{}", "it has no list of images and annotations and categories"),
        ('{"images": [], "annotations": 5, "categories": []}', "it has no list of annotations"),
        (coco([image(1)], []), "no training photo has an object"),
        (coco([], []), "lists no photos that can be read: its list of images is empty."),
        (
            coco([{**image(1), "id": None}], []),
            "that can be read: instances_train2017.json, image None: has no id",
        ),
        (coco([image(1)], [], []), "has no categories"),
        (coco([image(1)], [], [{"id": 1}]), "has no whole number as id, or no name"),
        (coco([image(1)], [], [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "two categories have the id 1"),
        (coco([image(1)], [], [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "two categories are called a"),
        (coco([image(1, "far.png")], []), "none of its photos, such as far.png, lies in"),
        (coco([image(1)], [thing(1, 1, (0.2, 0.3, 0.5, 0.5)), thing(2, 1, (0, 0, 1, 1))]), "look like fractions"),
        (
            coco([image(1)], [thing(i, 1, (0.6, 0.6, 0.5, 0.5) if i else (8, 6, 9, 9)) for i in range(3)]),
            "edges of 2 of 3 boxes",
        ),
    ],
)
def test_coco_files_that_cannot_be_used(cocos: Path, text: str, told: str) -> None:
    (cocos / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(UserError) as raised:
        check_boxes(open_boxes(str(cocos)), 0.0)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_val_with_other_categories(cocos: Path) -> None:
    file = cocos / "annotations" / "instances_val2017.json"
    stranger = {"id": 1, "name": "tree"}
    file.write_text(coco([image(11)], [thing(1, 11)], [*CATEGORIES, stranger]))
    with pytest.raises(UserError, match=r"has categories that the training photos' file lacks: tree\."):
        open_boxes(str(cocos))
    # A smaller set of classes with other ids is matched by name.
    file.write_text(coco([image(11)], [thing(1, 11, category=1)], [{"id": 1, "name": "ball"}]))
    splits = open_boxes(str(cocos))
    assert splits.val.annotations[0].labels.tolist() == [1]
    assert (splits.val.class_names, splits.val.category_ids) == (("box", "ball"), (-1, 1))


def test_the_training_file_tells_the_classes(cocos: Path) -> None:
    for i in (21, 22):
        save_photo(cocos / "test2017" / f"{i}.png")
    few = coco([image(21), image(22)], [thing(1, 21, category=2)], [{"id": 2, "name": "ball"}])
    (cocos / "annotations" / "instances_test2017.json").write_text(few)
    splits = open_boxes(str(cocos))
    assert splits.test is not None
    assert (splits.class_names, splits.test.class_names) == (("box", "ball"), ("box", "ball"))
    assert splits.test.annotations[0].labels.tolist() == [1]


def test_a_split_without_any_usable_photo(yolo: Path) -> None:
    for name in "ab":
        (yolo / "images" / "train" / f"{name}.png").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"no photo in .*\(train\) can be used: images/train/a\.png: cannot be read"):
        check_boxes(open_boxes(str(yolo)), 1.0)


def test_some_classes_alone(cocos: Path) -> None:
    with_training(cocos, [thing(1, 1, category=7), thing(2, 1), thing(3, 2)])
    splits = open_boxes(str(cocos), classes=["ball"])
    assert (splits.class_names, splits.category_ids) == (("ball",), (7,))
    assert [each.ids.tolist() for each in splits.train.annotations] == [[1], [], [], []]
    assert "left out: 2" in splits.notes[0]
    assert splits.faults == []
    with pytest.raises(UserError, match="there is no class tree in the files, which have ball, box"):
        open_boxes(str(cocos), classes=["ball", "tree"])
    with pytest.raises(UserError, match="given twice: class names"):
        open_boxes(str(cocos), classes=["ball", "ball"])


# ---- masks


def coded(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) as COCO's compressed run lengths, by pycocotools."""
    from pycocotools import mask as rle

    stored: Any = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in stored["size"]], "counts": stored["counts"].decode()}


def test_masks_are_those_of_pycocotools(cocos: Path) -> None:
    from pycocotools.coco import COCO

    generator = np.random.default_rng(0)
    noise = generator.random((5, 48, 64)) < np.array([0.02, 0.5, 0.98, 0.0, 1.0])[:, None, None]
    drawn: list[Any] = [coded(mask) for mask in noise]
    drawn += [(generator.random((n, 24)) * 90 - 13).tolist() for n in (1, 3)]  # also across the edge
    drawn += [SQUARE, {"size": [48, 64], "counts": [100, 60, 2912]}, {"size": [48, 64], "counts": [0, 3072]}]
    with_training(cocos, [thing(i, 1, (0, 0, 64, 48), segmentation=outline) for i, outline in enumerate(drawn)])
    splits = open_boxes(str(cocos))
    assert splits.faults == []
    assert splits.train.has_masks
    assert not splits.val.has_masks
    reference = COCO(cocos / "annotations" / "instances_train2017.json")
    masks = splits.train.annotations[0].masks(48, 64)
    assert (masks.dtype, masks.shape) == (np.uint8, (10, 48, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools does not support numpy 2
        expected = np.stack([reference.annToMask(reference.anns[i]) for i in range(10)])
    assert np.array_equal(masks, expected)
    assert np.array_equal(masks[:5], noise)
    assert masks[7].sum() == 400
    assert splits.train.annotations[1].masks(48, 64).shape == (0, 48, 64)
    with pytest.raises(ValueError, match="no outlines"):
        splits.val.annotations[0].masks(48, 64)


def test_an_object_without_an_outline_keeps_masks_from_being_learnt(cocos: Path) -> None:
    with_training(
        cocos, [thing(1, 1, segmentation=SQUARE), thing(2, 1, segmentation=[]), thing(3, 2, segmentation=SQUARE)]
    )
    splits = open_boxes(str(cocos))
    assert not splits.train.has_masks
    assert [each.outlines is None for each in splits.train.annotations] == [True, False, False, False]
    assert splits.notes[0].endswith("without an outline, so that masks cannot be learnt: 1")


# ---- LabelMe


def write_labelme(path: Path, shapes: Sequence[tuple[Any, ...]], photo: str | None = None) -> None:
    """A file of a photo of 64 x 48; shapes are label, points, and perhaps kind and group."""
    keys = ("label", "points", "shape_type", "group_id")
    content = {
        "shapes": [dict(zip(keys, shape, strict=False)) for shape in shapes],
        "imagePath": photo or f"{path.stem}.jpg",
        "imageHeight": 48,
        "imageWidth": 64,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_labelme(tmp_path: Path) -> None:
    triangle, other = [[8, 6], [28, 6], [28, 16]], [[40, 20], [50, 20], [50, 30]]
    for split in ("train", "valid"):
        save_photo(tmp_path / split / "a.jpg")
        shapes = [("dog", triangle), ("cat", triangle, "polygon", 1), ("cat", other, "polygon", 1)]
        write_labelme(tmp_path / split / "a.json", [*shapes, ("cat", [[5, 5], [5, 8]], "line")])
    save_photo(tmp_path / "train" / "B.JPG")
    write_labelme(tmp_path / "train" / "json" / "b.json", [("dog", triangle)])
    save_photo(tmp_path / "train" / "bare.jpg")
    write_labelme(tmp_path / "train" / "gone.json", [("dog", triangle)])
    splits = check_boxes(open_boxes(str(tmp_path)), 0.5)
    assert (splits.class_names, splits.category_ids) == (("cat", "dog"), (1, 2))
    assert [splits.train.name(i) for i in range(2)] == ["train/a.jpg", "train/B.JPG"]
    assert splits.train.annotations[0].labels.tolist() == [1, 0]
    assert splits.train.annotations[0].boxes.tolist() == [[8, 6, 28, 16], [8, 6, 50, 30]]
    assert splits.train.annotations[1].boxes.tolist() == [[8, 6, 28, 16]]
    assert splits.train.has_masks
    assert splits.faults == [
        ("train/gone.json", "is of a photo that is not there"),
        ("train/a.jpg, object 4", "is a line, which has no outline"),
        ("valid/a.jpg, object 4", "is a line, which has no outline"),
    ]
    assert f"photos in {tmp_path / 'train'} without a .json, left out: 1" in splits.notes
    assert open_evaluation_boxes(str(tmp_path), ["dog", "cat"])[0].annotations[0].labels.tolist() == [0, 1]


# ---- Pascal VOC


def voc_object(name: str, box: Sequence[Any], difficult: int = 0) -> str:
    edges = "".join(f"<{e}>{v}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox>{part}</object>"


def voc_xml(*objects: str, size: tuple[int, int] = (64, 48)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>any.jpg</filename>{stated}{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC's layout with two photos in each of train, val and test."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "cd"), ("test", "ef")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            save_photo(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations" / f"{name}.xml").write_text(voc_xml(voc_object("dog", (9, 7, 28, 16))))
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("a 1\nb -1\n")
    return tmp_path


def test_voc_is_read(voc: Path) -> None:
    annotations = voc / "VOCdevkit" / "VOC2012" / "Annotations"
    objects = (voc_object("cat", (1, 1, 64, 48), 1), voc_object("tvmonitor", (9.5, 7, 28, 16)))
    (annotations / "a.xml").write_text(voc_xml(*objects))
    (annotations / "b.xml").write_text(voc_xml())
    splits = check_boxes(open_boxes(str(voc)), 0.0)
    assert splits.class_names == ("cat", "dog", "tvmonitor")
    assert splits.category_ids == (1, 2, 3)
    assert splits.test is not None
    assert [part.name(0) for part in (splits.train, splits.val, splits.test)] == [f"JPEGImages/{n}.jpg" for n in "ace"]
    first, second = splits.train.annotations
    # Pixels count from 1 and the last is included: 1 to 64 is the full width, 0 to 64.
    assert first.boxes.tolist() == [[0, 0, 64, 48], [8.5, 6, 28, 16]]
    assert first.crowd.tolist() == [True, False]
    assert [splits.class_names[label] for label in first.labels] == ["cat", "tvmonitor"]
    assert first.areas.tolist() == [64 * 48, 19.5 * 10]
    assert (len(second), first.outlines) == (0, None)


def test_voc_files_under_other_names_than_their_photos(voc: Path) -> None:
    """A file that no photo is called like belongs to the photo that it names; a stale name changes nothing."""
    annotations = voc / "VOCdevkit" / "VOC2012" / "Annotations"
    for name, stated in (("a", r"C:\\photos\\a.JPG"), ("c", "c.png")):
        text = (annotations / f"{name}.xml").read_text().replace("any.jpg", stated)
        (annotations / f"{name}.xml").unlink()
        (annotations / f"export-{name}.xml").write_text(text.replace("dog", f"dog {name}"))
    (annotations / "b.xml").write_text((annotations / "b.xml").read_text().replace("any.jpg", "e.jpg"))
    splits = check_boxes(open_boxes(str(voc)), 0.0)
    assert splits.class_names == ("dog", "dog a", "dog c")
    assert [each.labels.tolist() for each in splits.train.annotations] == [[1], [0]]
    assert splits.val.annotations[0].labels.tolist() == [2]
    assert splits.faults == []
    assert sum("found under another name: 1, such as" in note for note in splits.notes) == 2


def test_voc_with_names_of_its_own(voc: Path) -> None:
    annotations = voc / "VOCdevkit" / "VOC2012" / "Annotations"
    (annotations / "c.xml").write_text(voc_xml(voc_object("zebra", (9, 7, 28, 16))))
    splits = check_boxes(open_boxes(str(voc)), 0.0)
    assert splits.class_names == ("dog", "zebra")
    assert splits.val.annotations[0].labels.tolist() == [1]
    assert "no training photo has an object of zebra" in splits.notes


@pytest.mark.parametrize("split", [True, False])
def test_xml_beside_the_photos(tmp_path: Path, split: bool) -> None:
    for name in ("train/a", "train/b", "valid/c", "valid/d") if split else "abcdefgh":
        save_photo(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.xml").write_text(voc_xml(voc_object("zebra", (9, 7, 28, 16))))
    splits = check_boxes(open_boxes(str(tmp_path), test_share=0.25, val_share=0.25), 0.0)
    parts = [splits.train, splits.val, *([splits.test] if splits.test else [])]
    assert [len(part) for part in parts] == ([2, 2] if split else [4, 2, 2])


def test_voc_without_lists_is_split_at_random(voc: Path) -> None:
    root = voc / "VOCdevkit" / "VOC2012"
    for file in (root / "ImageSets" / "Main").iterdir():
        file.unlink()
    splits = open_boxes(str(root), val_share=0.3, test_share=0.0)
    assert [len(splits.train), len(splits.val), splits.test] == [4, 2, None]


def bomb(encoding: str) -> bytes:
    text = '<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'
    return f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<annotation>", "has an .xml that cannot be read: no element found"),
        (b"\xff\xfe\x00", "has an .xml that cannot be read"),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', "has an .xml that cannot be read"),
        (bomb("utf-8"), "has an .xml with a DOCTYPE"),
        (bomb("utf-16"), "has an .xml with a DOCTYPE"),
        (b" " * 10_000_001, "has an .xml of more than 10 MB"),
        (voc_xml(size=(48, 64)).encode(), "another size than its annotations say: 64x48, not 48x64"),
        (voc_xml(voc_object("dog", (9, 7, 8, 16))).encode(), "object 1: has a box without area"),
        (voc_xml(voc_object("dog", (9, 7, "x", 16))).encode(), "object 1: has a value that is no number in its box"),
        (voc_xml(voc_object(" ", (9, 7, 28, 16))).encode(), "object 1: has no name"),
        (voc_xml("<object><name>dog</name></object>").encode(), "object 1: has no box of four numbers"),
        (None, "has no .xml: a.xml"),
    ],
)
def test_faulty_xml(voc: Path, content: bytes | None, told: str) -> None:
    file = voc / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml"
    file.unlink() if content is None else file.write_bytes(content)
    splits = open_boxes(str(voc))
    ((name, why),) = splits.faults
    assert name.startswith("JPEGImages/a.jpg")
    assert told in f"{name}: {why}"
    assert len(check_boxes(splits, 0.2).val) == 2


def test_xml_in_an_encoding_of_several_bytes(voc: Path) -> None:
    file = voc / "VOCdevkit" / "VOC2012" / "Annotations" / "a.xml"
    text = '<?xml version="1.0" encoding="gbk"?>\n' + voc_xml(voc_object("猫", (9, 7, 28, 16)))
    file.write_bytes(text.encode("gbk"))
    assert "猫" in open_boxes(str(voc)).class_names


def test_voc_of_shares(voc: Path) -> None:
    for file in (voc / "VOCdevkit" / "VOC2012" / "Annotations").glob("*.xml"):
        file.write_text(voc_xml(voc_object("dog", (0.1, 0.2, 0.5, 0.9))))
    with pytest.raises(UserError, match="look like fractions of the photo: pixels are expected"):
        open_boxes(str(voc))


def test_voc_lists_photos_that_are_not_there(voc: Path) -> None:
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nx\n")
    for name in "ef":
        (root / "Annotations" / f"{name}.xml").unlink()
    splits = open_boxes(str(voc))
    assert splits.faults == [("x", "is listed and not in JPEGImages")]
    assert splits.test is None
    assert splits.notes == [
        "Annotations holds no .xml of the photos listed in test.txt: left out",
        "photos that the annotations do not name, left out: 3 (JPEGImages/b.jpg, JPEGImages/e.jpg, JPEGImages/f.jpg)",
    ]


def test_what_has_no_partner_is_told(yolo: Path, voc: Path, cocos: Path) -> None:
    (yolo / "labels" / "train" / "ghost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (yolo / "labels" / "train" / "readme.txt").write_text("All labels are ours.\n")
    notes = open_boxes(str(yolo)).notes
    assert "text files in labels/train of photos that are not there, left out: 1, such as ghost.txt" in notes
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "Annotations" / "ghost.xml").write_text(voc_xml(voc_object("dog", (9, 7, 28, 16))))
    notes = open_boxes(str(voc)).notes
    assert notes == [".xml files in Annotations of photos that are not there, left out: 1, such as ghost.xml"]
    photo = next((cocos / "train2017").iterdir())
    photo.with_name("more.jpg").write_bytes(photo.read_bytes())
    lost = "photos that the annotations do not name, left out: 1 (train2017/more.jpg)"
    assert lost in open_boxes(str(cocos)).notes


def test_text_files_are_not_looked_for_where_a_missing_photo_would_be(yolo: Path) -> None:
    (yolo / "val.txt").write_text(f"images/val/a.png\n{yolo.parent}/other/images/x.png\n")
    yolo_pair(yolo.parent / "other" / "copy" / "x.png", "1 0.5 0.5 0.5 0.5")
    (yolo.parent / "other" / "copy" / "x.png").unlink()
    (yolo / "data.yaml").write_text("train: images/train\nval: val.txt\nnames: [box, ball]")
    splits = open_boxes(str(yolo))
    assert [name for name, _ in splits.faults] == [f"{yolo.parent}/other/images/x.png"]
    assert not any("found under another name" in note for note in splits.notes)


@pytest.mark.parametrize("place", [".", "data"])
def test_yolo_of_darknet(tmp_path: Path, place: str) -> None:
    home = tmp_path / place
    for i in range(6):
        yolo_pair(home / "obj" / f"{i}.png", f"{i % 2} 0.5 0.5 0.5 0.5")
    (home / "obj.names").write_text("box\nball\n")
    (home / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nvalid=data/test.txt\nnames = data/obj.names\n")
    for name, numbers in (("train", range(4)), ("test", range(4, 6))):
        (home / f"{name}.txt").write_text("".join(f"data/obj/{i}.png\n" for i in numbers))
    splits = open_boxes(str(tmp_path))
    assert splits.class_names == ("box", "ball")
    assert [Path(splits.val.name(i)).name for i in range(2)] == ["4.png", "5.png"]
    assert (len(splits.train), splits.test) == (4, None)


def test_lists_of_yolo_without_a_data_yaml(tmp_path: Path) -> None:
    for i in range(6):
        yolo_pair(tmp_path / "images" / f"{i}.png", f"{i % 2} 0.5 0.5 0.5 0.5")
    (tmp_path / "train.txt").write_text("".join(f"./images/{i}.png\n" for i in (0, 1, 2, 9)))
    (tmp_path / "valid.txt").write_text("/set/images/4.png\n")
    splits = open_boxes(str(tmp_path), classes=["box", "ball"])
    assert [Path(splits.train.name(i)).name for i in range(3)] == ["0.png", "1.png", "2.png"]
    assert (splits.val.name(0), splits.test) == ("images/4.png", None)
    assert [why for _, why in splits.faults] == ["cannot be read: No such file or directory"]
    assert "photos that the annotations do not name, left out: 2 (images/3.png, images/5.png)" in splits.notes


def test_classes_counted_from_1_are_refused(yolo: Path) -> None:
    yolo_pair(yolo / "images" / "train" / "a.png", "1 0.5 0.5 0.25 0.5\n" * 60 + "2 0.5 0.5 0.25 0.5\n")
    with pytest.raises(UserError, match="run from 1 to 2: YOLO counts the 2 named classes from 0: subtract 1"):
        open_boxes(str(yolo))


def test_more_classes_are_counted_than_named(yolo: Path) -> None:
    (yolo / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 3\nnames: [box, Box]")
    notes = open_boxes(str(yolo)).notes
    assert f"{yolo / 'data.yaml'} states nc: 3 and names 2 classes: the names count" in notes
    assert "classes whose names look alike, read as different ones: 'box' and 'Box'" in notes


def test_voc_under_other_names(voc: Path) -> None:
    root = voc / "VOCdevkit" / "VOC2012"
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / f"{composed}.JPG")
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / f"{decomposed}.XML")
    (root / "Annotations" / "deep").mkdir()
    (root / "Annotations" / "b.xml").rename(root / "Annotations" / "deep" / "b.xml")
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"{decomposed}\nC:\\VOC\\JPEGImages\\b.jpg\n")
    splits = check_boxes(open_boxes(str(voc)), 0.0)
    assert [splits.train.name(i) for i in range(2)] == [f"JPEGImages/{composed}.JPG", "JPEGImages/b.jpg"]
    assert [len(each) for each in splits.train.annotations] == [1, 1]
    assert f"photos listed for train found under another name: 2, such as {decomposed} as {composed}" in splits.notes
    assert any(
        note.startswith("annotations in Annotations found under another name: 2, such as ") for note in splits.notes
    )


def test_classes_that_differ_between_the_splits(voc: Path, cocos: Path, yolo: Path) -> None:
    xml = voc / "VOCdevkit" / "VOC2012" / "Annotations" / "c.xml"
    xml.write_text(voc_xml(voc_object("Dog ", (9, 7, 28, 16))))
    with pytest.raises(UserError, match=r"\(val\) has the class 'Dog', the training photos have 'dog': rename one"):
        open_boxes(str(voc))
    with pytest.raises(UserError, match=r"\(test\) has the class 'dog', the model knows 'Dog'"):
        open_evaluation_boxes(str(voc), ["Dog", "cat"])
    xml.write_text(voc_xml(*(voc_object("zebra", (9 + i, 7, 28, 16)) for i in range(3))))
    (xml.parent / "e.xml").write_text(voc_xml(voc_object("zebra", (9, 7, 28, 16))))
    (xml.parent / "f.xml").write_text(voc_xml())
    notes = check_boxes(open_boxes(str(voc)), 0.0).notes
    assert "validation objects of classes without training objects, all missed: zebra (3)" in notes
    assert "no test photo has an object of dog: not scored there" in notes
    categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "Ball"}]
    (cocos / "annotations" / "instances_val2017.json").write_text(coco([image(11)], [thing(1, 11)], categories))
    with pytest.raises(UserError, match="has the class 'Ball', the training photos have 'ball'"):
        open_boxes(str(cocos))
    yolo_pair(yolo / "images" / "val" / "a.png", "1 0.5 0.5 0.25 0.5\n")
    notes = check_boxes(open_boxes(str(yolo)), 0.0).notes
    assert "validation objects of classes without training objects, all missed: ball (1)" in notes


# ---- YOLO


def yolo_pair(photo: Path, lines: str | None) -> None:
    """A photo below images/ and its text file below labels/."""
    save_photo(photo)
    if lines is not None:
        parts = ["labels" if part == "images" else part for part in photo.with_suffix(".txt").parts]
        Path(*parts).parent.mkdir(parents=True, exist_ok=True)
        Path(*parts).write_text(lines)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split in ("train", "val", "test"):
        yolo_pair(root / "images" / split / "a.png", "0 0.5 0.5 0.25 0.5\n")
        yolo_pair(root / "images" / split / "b.png", None)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [box, ball]\n")
    return root


def test_yolo_is_read(yolo: Path) -> None:
    yolo_pair(
        yolo / "images" / "train" / "a.png", "0 0.5 0.5 0.25 0.5\n\n1 0.25 0.25 0.75 0.25 0.5 0.75\n1 1 1 0.5 0.5\n"
    )
    splits = check_boxes(open_boxes(str(yolo)), 0.0)
    assert (splits.class_names, splits.category_ids) == (("box", "ball"), (0, 1))
    first, second = splits.train.annotations
    assert first.boxes.tolist() == [[24, 12, 40, 36], [16, 12, 48, 36], [48, 36, 64, 48]]
    assert first.labels.tolist() == [0, 1, 1]
    assert (len(second), splits.train.name(1)) == (0, "images/train/b.png")
    assert first.outlines is None
    assert [splits.train.name(0), splits.val.name(0)] == ["images/train/a.png", "images/val/a.png"]
    yolo_pair(yolo / "images" / "train" / "a.png", "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    train = open_boxes(str(yolo)).train
    assert train.has_masks
    mask = train.annotations[0].masks(48, 64)[0]
    assert mask.sum() == 32 * 24
    assert mask[12:36, 16:48].all()


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: box, 1: ball}",
        "path: /elsewhere/yolo\ntrain: ../images/train\nval: ../images/val\nnames: [box, ball]\nnc: 2",
        "train: [images/train]\nval: val.txt\nnames: [box, ball]\ntest:",
        "train: images/train\nval: images/val\ntest: images/none\nnames: [box, ball]",
    ],
)
def test_forms_of_data_yaml(yolo: Path, text: str) -> None:
    (yolo / "data.yaml").write_text(text)
    (yolo / "val.txt").write_text("./images/val/a.png\nimages/val/b.png\n\n")
    for source in (yolo, yolo / "data.yaml"):
        splits = open_boxes(str(source))
        assert [len(splits.train), len(splits.val), splits.test] == [2, 2, None]
        assert [len(each) for each in splits.val.annotations] == [1, 0]
    bare = [note for note in splits.notes if note.endswith("taken to be without objects: 1, such as images/val/b.png")]
    assert len(bare) == 1
    assert len(splits.notes) == 2 + ("none" in text)


def test_yolo_without_data_yaml(yolo: Path, tmp_path: Path) -> None:
    (yolo / "data.yaml").unlink()
    with pytest.raises(UserError, match="give them in order with --classes"):
        open_boxes(str(yolo))
    splits = open_boxes(str(yolo), classes=["box", "ball"])
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [2, 2, 2]
    for i in range(10):
        yolo_pair(tmp_path / "flat" / "images" / f"{i}.png", "1 0.5 0.5 0.5 0.5")
    flat = open_boxes(str(tmp_path / "flat"), classes=["box", "ball"], val_share=0.2, test_share=0.1)
    assert (len(flat.train), len(flat.val), flat.train.annotations[0].labels.tolist()) == (7, 2, [1])
    for split in ("train", "valid"):
        yolo_pair(tmp_path / "robo" / split / "images" / "x.png", "1 0.5 0.5 0.5 0.5")
    assert open_boxes(str(tmp_path / "robo"), classes=["box", "ball"]).val.name(0) == "valid/images/x.png"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.5 0.5 0.1 0.1", "has an unknown class: 2, of 2"),
        ("0.5 0.5 0.5 0.1 0.1", "has an unknown class: 0.5, of 2"),
        ("-1 0.5 0.5 0.1 0.1", "has an unknown class: -1, of 2"),
        ("0 0.5 0.5 0.1", "has 3 numbers after the class"),
        ("0 0.5 0.5 0.1 0.1 0.2", "has 5 numbers after the class"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 7 numbers after the class"),
        ("0 0.5 0.5 x 0.1", "has a value that is no number in its line"),
        ("0 0.5 nan 0.1 0.1", "has a number that is not finite"),
        ("0 32 24 16 24", "has numbers above 1, or below 0: 0 32 24 16 24"),
        ("0 0.5 0.5 0 0.1", "has a box without area: edges 32 21.6 32 26.4"),
        ("0 1.4 0.5 0.2 0.2", "has a box outside its photo"),
    ],
)
def test_faulty_lines(yolo: Path, line: str, told: str) -> None:
    yolo_pair(yolo / "images" / "train" / "a.png", f"0 0.5 0.5 0.25 0.5\n{line}\n1 0.5 0.5 0.25 0.5")
    splits = open_boxes(str(yolo))
    ((name, why),) = splits.faults
    assert name in ("labels/train/a.txt, line 2", "images/train/a.png, object 2")
    assert told in why
    assert splits.train.annotations[0].labels.tolist() == [0, 1]


def test_yolo_in_pixels_and_without_labels(yolo: Path) -> None:
    yolo_pair(yolo / "images" / "train" / "a.png", "0 32 24 16 24\n0 32 24 16 20\n0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match="2 of 3 lines have numbers above 1: YOLO's are fractions"):
        open_boxes(str(yolo))
    (yolo / "labels" / "train" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"no photo has a text file of labels, such as .*labels/train/a\.txt"):
        open_boxes(str(yolo))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("names: [a", "cannot be read as YAML"),
        ("words about names: 3", "has no class names"),
        ("- names", "is no data.yaml"),
        ("train: images/train", "has no class names"),
        ("train: images/train\nnames: {0: a, 2: b}", "has no class names"),
        ("train: images/train\nnames: [a, a]", "two classes are called a"),
        ("train: images/no\nnames: [a, b]", "images/no does not exist: correct the path there"),
        ("val: images/val\nnames: [a, b]", "has val but no train"),
        ("train: images/train\nnames: [a, b]\nkpt_shape: [17, 3]", "describes key points"),
    ],
)
def test_data_yaml_that_cannot_be_used(yolo: Path, text: str, told: str) -> None:
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        open_boxes(str(yolo))
    assert told in str(raised.value)


def test_unknown_layouts(tmp_path: Path, cocos: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no layout that is known"):
        open_boxes(str(tmp_path / "empty"))
    Image.new("RGB", (64, 48)).save(tmp_path / "empty" / "a.png")
    (tmp_path / "empty" / "a.txt").write_text("A photo of a cat.")
    with pytest.raises(UserError, match="has no layout that is known"):
        open_boxes(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="does not exist"):
        open_boxes(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"is no \.json"):
        open_boxes(str(save_photo(tmp_path / "photo.png")))
    with pytest.raises(UserError, match="does not exist: give the folder of the photos"):
        open_boxes(str(cocos), images=str(tmp_path / "none"))
    (cocos / "annotations" / "instances_train2017.json").unlink()
    with pytest.raises(UserError, match="has val but no train"):
        open_boxes(str(cocos))


# ---- files from other programs


def voc_photo(photo: Path, xml: Path, name: str = "dog") -> None:
    save_photo(photo)
    xml.parent.mkdir(parents=True, exist_ok=True)
    xml.write_text(voc_xml(voc_object(name, (9, 7, 28, 16))))


@pytest.mark.parametrize("below", [[""], ["train/", "valid/"]])
@pytest.mark.parametrize(("photos", "texts"), [("images", "annotations"), ("images", "Annotations"), (".", ".")])
def test_xml_beside_photos_and_apart(tmp_path: Path, below: list[str], photos: str, texts: str) -> None:
    for split in below:
        for i in range(8):
            voc_photo(tmp_path / split / photos / f"{i}.png", tmp_path / split / texts / f"{i}.xml", "dog")
    splits = check_boxes(open_boxes(str(tmp_path)), 0.0)
    assert splits.class_names == ("dog",)
    assert splits.faults == []
    assert len(splits.train) == (8 if len(below) == 2 else 6)
    assert open_evaluation_boxes(str(tmp_path), ["dog"])[0].single == 8


def test_xml_of_no_photo(tmp_path: Path) -> None:
    for i in range(4):
        voc_photo(tmp_path / f"{i}.png", tmp_path / f"other{i}.xml")
    with pytest.raises(UserError, match="has no layout that is known"):
        open_boxes(str(tmp_path))


def test_photos_none_of_which_can_be_used(tmp_path: Path) -> None:
    """The error gives these reasons, not that there are too few photos to split."""
    for i in range(4):
        save_photo(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.xml").write_text(voc_xml(voc_object("dog", (9, 7, 28, 16)), size=(48, 64)))
    words = r"no photo in .* can be used: 0\.png: has another size .* 64x48, not 48x64 \(width and height are exchanged"
    with pytest.raises(UserError, match=words):
        open_boxes(str(tmp_path))
    with pytest.raises(UserError, match=words):
        open_evaluation_boxes(str(tmp_path), ["dog"])


def test_lists_of_voc(voc: Path) -> None:
    main = voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main"
    root = main.parents[1]
    voc_photo(root / "JPEGImages" / "my photo ü.jpg", root / "Annotations" / "my photo ü.xml")
    (main / "train.txt").write_text("\ufeffa.jpg\r\nmy photo ü\r\n", "utf-8")
    splits = check_boxes(open_boxes(str(voc)), 0.0)
    assert [splits.train.name(i) for i in range(2)] == ["JPEGImages/a.jpg", "JPEGImages/my photo ü.jpg"]
    (main / "train.txt").write_bytes("my photo ü".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.txt is not encoded as UTF-8 \(line 1\)"):
        open_boxes(str(voc))


def test_lists_of_yolo(yolo: Path) -> None:
    (yolo / "data.yaml").write_text("train: list.txt\nval: images\\val\nnames: {'0': box, '1': ball}\n")
    (yolo / "list.txt").write_text("images\\train\\a.png\n")
    splits = open_boxes(str(yolo))
    assert ([splits.train.name(0)], splits.class_names) == (["images/train/a.png"], ("box", "ball"))
    (yolo / "list.txt").write_bytes("ü.png".encode("latin-1"))
    with pytest.raises(UserError, match=r"list\.txt is not encoded as UTF-8"):
        open_boxes(str(yolo))
    (yolo / "data.yaml").write_text("train: list.txt\nnames: [yes, no]\n")
    with pytest.raises(UserError, match="as true or false: put it in quotes"):
        open_boxes(str(yolo))


def test_yolo_under_other_names(yolo: Path) -> None:
    (yolo / "labels" / "train" / "a.txt").rename(yolo / "labels" / "train" / "A.TXT")
    splits = open_boxes(str(yolo))
    assert [len(each) for each in splits.train.annotations] == [1, 0]
    assert "text files in labels/train found under another name: 1, such as a.txt as A.TXT" in splits.notes
    (yolo / "data.yaml").write_text("train: /content/yolo/list.txt\nval: C:\\yolo\\images\\val\nnames: [box, ball]\n")
    (yolo / "list.txt").write_text(
        "/content/yolo/images/train/a.png\nC:\\yolo\\images\\train\\b.png\n/content/yolo/images/train/a.png\n"
    )
    splits = open_boxes(str(yolo))
    assert [splits.train.name(i) for i in range(2)] == ["images/train/a.png", "images/train/b.png"]
    assert [splits.val.name(i) for i in range(2)] == ["images/val/a.png", "images/val/b.png"]
    assert f"photos of {yolo / 'data.yaml'} listed twice, taken once: 1" in splits.notes
    yolo_pair(yolo / "images" / "train" / "a.png", "0 0.5 0.5 0.25 0.5\n0 0.50 0.5 0.25 0.5\n1 0.5 0.5 0.25 0.5\n")
    splits = open_boxes(str(yolo))
    assert splits.train.annotations[0].labels.tolist() == [0, 1]
    assert any("given twice, counted once: 1, such as images/train/a.png, object 2" in note for note in splits.notes)


def test_labels_of_another_split_are_not_taken(yolo: Path) -> None:
    for file in (yolo / "labels" / "test").iterdir():
        file.unlink()
    (yolo / "labels" / "test").rmdir()
    splits = open_boxes(str(yolo))
    assert splits.test is None
    assert any(note.startswith("there is no test split: ") for note in splits.notes)


def test_an_unreadable_text_file_leaves_out_its_photo(yolo: Path) -> None:
    (yolo / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 0.25 0.5 é", "latin-1")
    splits = open_boxes(str(yolo))
    assert [splits.train.name(i) for i in range(len(splits.train))] == ["images/train/a.png"]
    ((name, why),) = splits.faults
    assert name == "images/train/b.png"
    assert why.startswith("has a text file that cannot be read: ")


@pytest.mark.parametrize(
    ("photos", "names", "texts"),
    [
        (".", "classes.txt", "."),
        ("train", "train/classes.txt", "train"),
        ("images", "classes.txt", "labels"),
        ("images", "labels/classes.txt", "labels"),
        ("obj_train_data", "obj.names", "obj_train_data"),
    ],
)
def test_yolo_with_names_in_a_text_file(tmp_path: Path, photos: str, names: str, texts: str) -> None:
    """The layouts of LabelImg, Label Studio and CVAT; also below a folder named images."""
    root = tmp_path / "images" / "set"
    for i in range(8):
        save_photo(root / photos / f"{i}.png")
        (root / texts).mkdir(parents=True, exist_ok=True)
        (root / texts / f"{i}.txt").write_text("1 0.5 0.5 0.25 0.5")
    with pytest.raises(UserError, match="give them in order with --classes"):
        open_boxes(str(root))
    (root / names).write_text("box\nball\n")
    splits = check_boxes(open_boxes(str(root)), 0.0)
    assert (splits.class_names, splits.faults) == (("box", "ball"), [])
    assert splits.train.annotations[0].labels.tolist() == [1]
    assert open_boxes(str(root), classes=["ball"]).train.annotations[0].labels.tolist() == [0]


def test_coco_of_other_programs(cocos: Path, tmp_path: Path) -> None:
    """Ids and crowds from loosely typed exporters, Windows paths, empty outlines."""
    photos = [{**image(i, f"train2017\\{i}.png"), "id": float(i)} for i in range(1, 5)]
    objects = [
        thing(1, 1, iscrowd="0", area=10**400),
        thing(2, 2, iscrowd="1"),
        {**thing(3, 3), "id": 3.0, "image_id": 3.0, "category_id": 7.0},
        thing(4, 4, segmentation=[[]]),
    ]
    with_training(cocos, objects, photos)
    train = check_boxes(open_boxes(str(cocos)), 0.0).train
    assert [each.crowd.tolist() for each in train.annotations] == [[False], [True], [False], [False]]
    assert [each.labels.tolist() for each in train.annotations] == [[0], [0], [1], [0]]
    assert train.annotations[0].areas.tolist() == [200]
    assert train.annotations[3].outlines is None
    (tmp_path / "cvat" / "annotations").mkdir(parents=True)
    for i in range(8):
        save_photo(tmp_path / "cvat" / "images" / "default" / f"{i}.png")
    text = coco([image(i) for i in range(8)], [thing(i, i) for i in range(8)])
    (tmp_path / "cvat" / "annotations" / "instances_default.json").write_text(text)
    assert check_boxes(open_boxes(str(tmp_path / "cvat")), 0.0).train.name(0).startswith("images/default/")


def test_the_root_of_roboflows_categories(cocos: Path) -> None:
    """The file is named after the project, which may also be the name of a class."""
    categories = [
        {"id": 0, "name": "box", "supercategory": "none"},
        {"id": 1, "name": "box", "supercategory": "box"},
        {"id": 2, "name": "ball", "supercategory": "box"},
    ]
    for split, first in (("train", 1), ("val", 11)):
        text = coco([image(first)], [thing(1, first, category=1)], categories)
        (cocos / "annotations" / f"instances_{split}2017.json").write_text(text)
    splits = open_boxes(str(cocos))
    assert (splits.class_names, splits.category_ids) == (("box", "ball"), (1, 2))
    assert sum("parent categories of" in note for note in splits.notes) == 2
    with_training(cocos, [thing(1, 1, category=0)])
    text = coco([image(1)], [thing(1, 1, category=0)], categories[:1] + categories[2:])
    (cocos / "annotations" / "instances_train2017.json").write_text(text)
    assert open_boxes(str(cocos), classes=["box"]).train.objects == 1  # it has an object, so it is a class


def test_a_test_split_without_truth_is_passed_over(yolo: Path, cocos: Path) -> None:
    (yolo / "labels" / "test" / "a.txt").unlink()
    boxes, _, notes = open_evaluation_boxes(str(yolo), ["box", "ball"])
    assert boxes.name(0) == "images/val/a.png"
    assert "there is no test split: " in notes[0]
    (cocos / "annotations" / "instances_test2017.json").write_text(coco([image(21)], []))
    boxes, _, notes = open_evaluation_boxes(str(cocos), ["box", "ball"])
    assert boxes.name(0) == "val2017/11.png"
    assert "none of its photos" in notes[0]


# ---- evaluation and checks


def test_evaluation_orders_classes_as_the_model_has_them(cocos: Path) -> None:
    file = cocos / "annotations" / "instances_val2017.json"
    categories = [*CATEGORIES, {"id": 1, "name": "tree"}]
    objects = [thing(1, 11), thing(2, 11, category=7), thing(3, 12, category=1)]
    file.write_text(coco([image(i) for i in (11, 12, 13)], objects, categories))
    (cocos / "annotations" / "instances_train2017.json").write_text("not looked at")
    boxes, faults, notes = open_evaluation_boxes(str(cocos), ["rock", "ball", "box"])
    assert [each.labels.tolist() for each in boxes.annotations] == [[2, 1], [], []]
    assert (boxes.class_names, boxes.category_ids) == (("rock", "ball", "box"), (-1, 7, 3))
    assert faults == []
    (note,) = notes
    assert "classes that the model does not know" in note
    assert note.endswith("left out: 1 (tree)")
    checked, all_faults, told = check_evaluation_boxes(boxes, [("val2017/12.png, object 3", "has a box too many")], 0.2)
    assert (len(checked), len(all_faults)) == (3, 1)
    assert told == ["left out of 6 objects and photos: 1 x 'has a box too many'"]
    with pytest.raises(UserError, match="1 of 6 objects and photos cannot be used"):
        check_evaluation_boxes(boxes, all_faults, 0.1)
    with pytest.raises(UserError, match="has the classes tree, box, ball; the model knows rock"):
        open_evaluation_boxes(str(cocos), ["rock"])


def test_the_test_split_is_scored_first(yolo: Path) -> None:
    assert open_evaluation_boxes(str(yolo), ["box", "ball"])[0].name(0) == "images/test/a.png"
    (yolo / "data.yaml").write_text("train: images/train\nnames: [box, ball]")
    assert open_evaluation_boxes(str(yolo), ["box", "ball"])[0].name(0) == "images/train/a.png"


def test_checks_look_at_every_photo_and_tell_what_they_saw(cocos: Path) -> None:
    with_training(cocos, [thing(1, 1, (5, 5, 3, 20)), thing(2, 2, iscrowd=1, category=7)])
    seen: list[int] = []

    def progress(items: Any) -> Any:
        seen.append(len(items))
        return items

    splits = check_boxes(open_boxes(str(cocos)), 0.0, progress)
    assert seen == [7]
    assert splits.notes[1:] == [
        "training photos without objects: 2",
        "no training photo has an object of ball",
        "training objects less than 4 pixels wide or high: 1 of 2",
    ]


def test_nothing_left_to_validate(cocos: Path) -> None:
    for i in (11, 12, 13):
        (cocos / "val2017" / f"{i}.png").write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"no validation photo has an object: val2017/11\.png: cannot be read"):
        check_boxes(open_boxes(str(cocos)), 1.0)


# ---- transforms


def plain(jitter: Any = "multiscale", hflip: float = 0.0, sides: Sequence[int] = (96,), max_side: int = 160) -> Any:
    return train_transform(sides, max_side, hflip, jitter, False, MEAN, STD)


@pytest.mark.parametrize("hflip", [0.0, 1.0])
@pytest.mark.parametrize("size", [(64, 48), (40, 200), (300, 90)])
def test_boxes_stay_on_their_objects(tmp_path: Path, size: tuple[int, int], hflip: float) -> None:
    boxes = one_set(tmp_path, [size], [(8, 10, 30, 40)], masks=True)
    dataset = BoxDataset(boxes, plain(hflip=hflip), training=True, masks=True)
    for epoch in range(3):
        picture, target, position = dataset[epoch, 0]
        assert position == 0
        assert max(picture.shape) <= 160
        assert min(picture.shape[1:]) == 96 or max(picture.shape) == 160
        assert target["labels"].tolist() == [1]
        found = torch.tensor([red_region(picture)])
        assert (target["boxes"] - found).abs().max() <= 1
        scale = picture.shape[2] / size[0]
        left = size[0] - 30 if hflip else 8
        assert target["boxes"][0, 0].item() == pytest.approx(left * scale, abs=1e-3)
        mask = target["masks"][0]
        rows, columns = torch.nonzero(mask, as_tuple=True)
        edges = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
        assert (edges - found).abs().max() <= 2
        assert int(mask.sum()) == pytest.approx(float(torch.prod(edges[0, 2:] - edges[0, :2])))


def test_what_comes_out(tmp_path: Path) -> None:
    boxes = one_set(tmp_path, [(64, 48)], [(8, 10, 30, 40)], masks=True)
    transform = train_transform((96,), 160, 0.0, "multiscale", True, MEAN, STD)
    picture, target, _ = BoxDataset(boxes, transform, training=True, masks=True)[0, 0]
    assert (tuple(picture.shape), picture.dtype) == ((3, 96, 128), torch.float32)
    kinds = {name: (tuple(each.shape), each.dtype) for name, each in target.items()}
    assert kinds == {
        "boxes": ((1, 4), torch.float32),
        "labels": ((1,), torch.int64),
        "masks": ((1, 96, 128), torch.uint8),
    }
    assert all(type(each) is Tensor for each in (picture, *target.values()))
    picture, target, _ = BoxDataset(boxes, plain(), training=True)[0, 0]
    assert sorted(target) == ["boxes", "labels"]
    corner = picture[:, 0, 0] * torch.tensor(STD) + torch.tensor(MEAN)
    assert (corner * 255).tolist() == pytest.approx([90, 90, 90], abs=0.01)


def test_a_box_of_the_whole_photo_survives_rounding(tmp_path: Path) -> None:
    for i, width in enumerate((61, 63, 67, 71, 97)):
        boxes = one_set(tmp_path / str(i), [(width, 47)], [(0, 0, width, 47)])
        for side in (48, 50, 53, 59, 64, 101):
            picture, target, _ = BoxDataset(boxes, plain(sides=(side,), max_side=131), training=True)[0, 0]
            assert target["boxes"].flatten().tolist() == pytest.approx([0, 0, picture.shape[2], picture.shape[1]])


@pytest.mark.parametrize("jitter", ["multiscale", "large"])
def test_photos_of_few_pixels_and_without_objects(tmp_path: Path, jitter: str) -> None:
    none = Annotations(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), ()
    )
    for size in ((1, 1), (100, 1), (1, 100)):
        path = save_photo(tmp_path / f"{size}.png", size)
        boxes = BoxSet((path,), np.array([size[::-1]]), (none,), ("a",), (1,), (1,), tmp_path)
        for epoch in range(5):
            picture, target, _ = BoxDataset(boxes, plain(jitter), training=True, masks=True)[epoch, 0]
            assert min(picture.shape) >= 1
            assert (tuple(target["boxes"].shape), len(target["labels"])) == ((0, 4), 0)
            assert tuple(target["masks"].shape) == (0, *picture.shape[1:])
        x = eval_transform(96, 160, MEAN, STD)(Image.open(path).convert("RGB"))
        assert min(x.shape) >= 1


@pytest.mark.slow
def test_large_jitter(tmp_path: Path) -> None:
    boxes = one_set(tmp_path, [(120, 80)], [(30, 20, 70, 60)], masks=True)
    dataset = BoxDataset(boxes, plain("large", sides=(64, 128)), training=True, masks=True)
    without = BoxDataset(boxes, plain("large", sides=(64, 128)), training=True)
    widths, cut = [], 0
    for epoch in range(60):
        picture, target, _ = dataset[epoch, 0]
        widths.append(picture.shape[2])
        assert max(picture.shape) <= 128
        assert torch.equal(without[epoch, 0][0], picture)
        if not len(target["boxes"]):
            cut += 1
            continue
        if picture.shape[2] >= 64:  # in smaller photos the colours bleed
            assert (target["boxes"] - torch.tensor([red_region(picture)])).abs().max() <= 1
        assert target["masks"].flatten(1).any(1).all()
    assert min(widths) < 30
    assert widths.count(128) > 20  # half of the factors are above 1
    assert cut < 20


def test_a_box_is_drawn_anew_around_what_a_crop_left_of_the_mask() -> None:
    transform = plain("large", sides=(64,))
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, :20, :60], masks[0, :60, :8] = 1, 1  # an L shape, whose box is mostly empty
    masks[1, 30:50, 30:50] = 1
    stated = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
        [[0.0, 0, 60, 60], [30, 30, 50, 50]], format="XYXY", canvas_size=(64, 64)
    )
    for seed in range(40):
        torch.manual_seed(seed)
        target = {"boxes": stated, "labels": torch.tensor([4, 5]), "masks": tv_tensors.Mask(masks)}
        _, found = transform(Image.new("RGB", (64, 64)), target)
        for box, label, mask in zip(found["boxes"], found["labels"], found["masks"], strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(edge) for edge in edges]
            assert label in (4, 5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((400, 1000), (533, 1333)), ((800, 800), (800, 800)),
     ((10, 5000), (3, 1333)), ((1, 5000), (1, 1333))],
)  # fmt: skip
def test_size_in_evaluation(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*size, 800, 1333) == expected


def test_eval_transform_of_a_photo(tmp_path: Path) -> None:
    boxes = one_set(tmp_path, [(60, 40)], [(12, 10, 30, 30)])
    transform = eval_transform(80, 200, MEAN, STD)
    dataset = BoxDataset(boxes, transform, training=False)
    x, position = dataset[0, 0]
    assert (tuple(x.shape), x.dtype, type(x), position) == ((3, 80, 120), torch.float32, Tensor, 0)
    assert torch.equal(x, transform(dataset.picture(0)))
    assert red_region(x) == [24, 20, 60, 60]


def test_crowds_are_not_trained_on(tmp_path: Path) -> None:
    boxes = one_set(tmp_path, [(64, 48)], [(8, 10, 30, 40)], masks=True)
    whole = boxes.annotations[0]
    outlines = (*(whole.outlines or ()), {"size": [48, 64], "counts": [0, 3072]})
    both = Annotations(
        np.concatenate([whole.boxes, [[0, 0, 64, 48]]]).astype(np.float32),
        np.array([1, 0]),
        np.array([False, True]),
        np.array([660.0, 3072]),
        np.array([0, 1]),
        outlines,
    )
    crowded = BoxSet(boxes.images, boxes.sizes, (both,), ("a", "b"), (1, 2), (0,), tmp_path)
    _, target, _ = BoxDataset(crowded, plain(), training=True, masks=True)[0, 0]
    assert (target["labels"].tolist(), len(target["boxes"]), len(target["masks"])) == ([1], 1, 1)
    assert both.masks(48, 64).sum((1, 2)).tolist() == [22 * 30, 3072]


def test_photos_that_break_later(tmp_path: Path) -> None:
    boxes = one_set(tmp_path, [(64, 48)] * 4, [(8, 10, 30, 40), (9, 10, 30, 40), (2, 10, 30, 40), (4, 4, 8, 8)])
    boxes.images[1].write_bytes(b"no photo")
    save_photo(boxes.images[2], (48, 64))  # rotated since it was checked
    dataset = BoxDataset(boxes, plain(), training=True)
    picture, target, position = dataset[0, 1]
    assert position == ~1
    assert (target["boxes"] - torch.tensor([red_region(picture)])).abs().max() <= 1
    assert target["boxes"][0].tolist() == [8, 8, 16, 16]
    evaluated = BoxDataset(boxes, eval_transform(48, 64, MEAN, STD), training=False)
    with pytest.raises(BrokenImageError, match=r"^1\.png: not an image"):
        evaluated[0, 1]
    with pytest.raises(BrokenImageError, match=r"^2\.png: is 48x64, its boxes are of 64x48"):
        evaluated[0, 2]
    for path in boxes.images:
        path.unlink(missing_ok=True)
    with pytest.raises(BrokenImageError, match="no photo of the set can be read"):
        dataset[0, 0]


# ---- sampler and loaders


def mixed_sizes(wide: int, high: int) -> np.ndarray:
    sizes = np.array([(40, 60)] * wide + [(60, 40)] * high)
    return sizes[np.random.default_rng(5).permutation(len(sizes))]


def test_batches_of_one_orientation() -> None:
    sizes = mixed_sizes(23, 14)
    sampler = GroupedSampler(sizes, 4, seed=3)
    assert isinstance(sampler, StepSampler)
    batches = [[position for _, position in batch] for batch in sampler]
    assert len(batches) == len(sampler) == 37 // 4
    wide = [{bool(sizes[i][1] >= sizes[i][0]) for i in batch} for batch in batches]
    assert [len(each) for each in wide] == [1] * 8 + [2]  # 5 of 23, 3 of 14; 3 and 2 are left over: one batch of 4
    assert 0 < [each == {True} for each in wide[:5]].count(True) < 5  # not sorted by orientation
    seen = [i for batch in batches for i in batch]
    assert len(set(seen)) == len(seen) == 36
    assert list(sampler) == list(GroupedSampler(sizes, 4, seed=3))
    assert list(sampler) != list(GroupedSampler(sizes, 4, seed=4))
    missed = set()
    for sampler.epoch in range(30):
        missed |= {i for batch in sampler for _, i in batch} ^ set(range(37))
    assert {bool(sizes[i][1] >= sizes[i][0]) for i in missed} == {True, False}


def test_every_photo_once_an_epoch() -> None:
    sampler = GroupedSampler(mixed_sizes(13, 7), 4, seed=0)
    orders = []
    for sampler.epoch in range(3):
        orders.append([i for batch in sampler for epoch, i in batch if epoch == sampler.epoch])
        assert sorted(orders[-1]) == list(range(20))
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("world", [2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(world: int) -> None:
    sizes = mixed_sizes(23, 14)
    alone = list(GroupedSampler(sizes, 8, seed=1, passes=2))
    shares = [list(GroupedSampler(sizes, 8 // world, rank, world, seed=1, passes=2)) for rank in range(world)]
    together = [[key for share in step for key in share] for step in zip(*shares, strict=True)]
    assert together == alone


def test_resuming_in_the_middle() -> None:
    sampler = GroupedSampler(mixed_sizes(13, 8), 4, seed=1, passes=3)
    sampler.epoch = 2
    whole = list(sampler)
    assert len(whole) == len(sampler) == 15
    assert [{epoch for epoch, _ in batch} for batch in whole] == [{6}] * 5 + [{7}] * 5 + [{8}] * 5
    for start in (0, 1, 4, 5, 7, 14):
        sampler.start = start
        assert list(sampler) == whole[start:]
        assert list(sampler) == whole


def test_fewer_photos_than_a_batch() -> None:
    sampler = GroupedSampler(mixed_sizes(2, 1), 8)
    assert [len(batch) for batch in sampler] == [3]
    assert len(GroupedSampler(mixed_sizes(3, 2), 8, 0, 2)) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_loaders(tmp_path: Path, workers: int) -> None:
    sizes = [(64, 48), (48, 64), (64, 40), (40, 64)]
    boxes = one_set(tmp_path, sizes, [(8, 10, 30, 40)] * 4, masks=True)
    sampler = GroupedSampler(boxes.sizes, 2, seed=0)
    loader = train_boxes_loader(boxes, plain(hflip=0.5), sampler, workers, seed=3, masks=True)
    dataset = BoxDataset(boxes, plain(hflip=0.5), training=True, seed=3, masks=True)
    seen = []
    for images, targets, positions in loader:
        assert isinstance(positions, Tensor)
        assert len(images) == len(targets) == len(positions) == 2
        for picture, target, i in zip(images, targets, positions.tolist(), strict=True):
            expected, other, _ = dataset[0, i]
            assert torch.equal(picture, expected)
            assert all(torch.equal(target[name], other[name]) for name in ("boxes", "labels", "masks"))
        seen += positions.tolist()
    assert sorted(seen) == [0, 1, 2, 3]
    transform = eval_transform(48, 64, MEAN, STD)
    shares = [list(eval_boxes_loader(boxes, transform, workers, rank, 3)) for rank in range(3)]
    assert [[positions.tolist() for _, positions in share] for share in shares] == [[[0], [3]], [[1]], [[2]]]
    ((picture,), _) = shares[1][0]
    assert torch.equal(picture, transform(BoxDataset(boxes, transform, training=False).picture(1)))


# ---- many photos, and real ones


@pytest.mark.slow
def test_many_objects_are_read_in_linear_time(tmp_path: Path) -> None:
    for i in range(400):
        save_photo(tmp_path / "photos" / f"{i}.png", (16, 16))
    file, times = tmp_path / "all.json", []
    from time import process_time

    for count in (5_000, 40_000):
        photos = [image(i, size=(16, 16)) for i in range(400)]
        objects = [thing(i, i % 400, (5, 5, 9, 9 + i // 400 / 100), segmentation=SQUARE) for i in range(count)]
        file.write_text(coco(photos, objects))
        start = process_time()
        splits = open_boxes(str(file))
        times.append((process_time() - start) / count)
        assert splits.train.objects + splits.val.objects + (splits.test.objects if splits.test else 0) == count
        base = splits.train.annotations[0].boxes.base
        assert base is not None
        assert len(base) == count  # views of one array
    assert times[1] < 4 * times[0]


def test_part_of_coco_alone(cocos: Path) -> None:
    part = read_coco(cocos / "annotations" / "instances_train2017.json", [cocos, cocos / "train2017"], cocos)
    assert part.images[0] == cocos / "train2017" / "1.png"
    assert [row.id for row in part.rows] == [101, 102, 103, 104]


def opened(folder: Path) -> BoxSplits:
    return check_boxes(open_boxes(str(folder)), 0.01)


@pytest.mark.slow
def test_blood_cells(shared_data: Path) -> None:
    splits = opened(shared_data / "bccd")
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [205, 87, 72]
    assert splits.class_names == ("RBC", "WBC", "Platelets")
    assert splits.train.objects == 2804
    assert not splits.train.has_masks
    assert splits.faults == [
        ("train/BloodImage_00343.jpg, object 2288", "has a box without area: edges 181 329 181 329"),
        ("val/BloodImage_00338.jpg, object 887", "has a box without area: edges 504 337 504 337"),
    ]


@pytest.mark.slow
def test_tiny_coco(shared_data: Path) -> None:
    splits = opened(shared_data / "coco_tiny")
    assert [len(splits.train), len(splits.val), splits.test] == [80, 80, None]
    assert (len(splits.class_names), splits.category_ids[-1]) == (80, 90)
    assert (splits.train.objects, splits.val.objects, splits.faults) == (705, 815, [])
    assert [sum(int(each.crowd.sum()) for each in part.annotations) for part in (splits.train, splits.val)] == [6, 11]
    assert splits.train.has_masks
    assert splits.val.has_masks
    for i in range(10):
        objects, (height, width) = splits.val.annotations[i], splits.val.sizes[i]
        masks = objects.masks(height, width)
        single = ~objects.crowd
        assert masks[single].sum((1, 2)) == pytest.approx(objects.areas[single], rel=0.2, abs=60)


def test_a_photo_that_is_cut_off_is_found_before_it_would_stop_a_validation(cocos: Path) -> None:
    """In the training split it may stay: there the next photo replaces it."""
    val, train = cocos / "val2017" / "11.png", cocos / "train2017" / "1.png"
    for photo in (val, train):
        photo.write_bytes(photo.read_bytes()[:-40])
    splits = check_boxes(open_boxes(str(cocos)), max_broken=0.5)
    (fault,) = splits.faults
    assert fault[0].endswith(val.name)
    assert "cannot be read" in fault[1]
    assert len(splits.val) == 2
    assert len(splits.train) == 4


def test_splits_with_nothing_to_score_are_skipped(cocos: Path) -> None:
    """A test file without photos does not prevent training; a split with only crowds is not scored."""
    (cocos / "annotations" / "instances_test2017.json").write_text(coco([image(21)], [thing(1, 21)]))
    splits = check_boxes(open_boxes(str(cocos)), max_broken=0.0)
    assert splits.test is None
    assert any("there is no test split" in note for note in splits.notes)
    save_photo(cocos / "test2017" / "21.png")
    (cocos / "annotations" / "instances_test2017.json").write_text(coco([image(21)], [thing(1, 21, iscrowd=1)]))
    splits = check_boxes(open_boxes(str(cocos)), max_broken=0.0)
    assert splits.test is None
    boxes, _, notes = open_evaluation_boxes(str(cocos), ["box", "ball"])
    assert [path.parent.name for path in boxes.images] == ["val2017"] * 3
    assert any("no object that can be scored" in note for note in notes)


def yolo_set(root: Path, line: str, names: str = "[box, ball]") -> Path:
    """A data.yaml with three training photos and a validation photo, each with this line."""
    for split, numbers in (("train", (1, 2, 3)), ("val", (4,))):
        for i in numbers:
            save_photo(root / "images" / split / f"{i}.png")
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{i}.txt").write_text(line)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return root


@pytest.mark.parametrize("line", ["1,0.5,0.5,0.25,0.5", "ball 0.5 0.5 0.25 0.5", "1, 0.5, 0.5, 0.25, 0.5"])
def test_yolo_lines_with_commas_or_names(tmp_path: Path, line: str) -> None:
    splits = open_boxes(str(yolo_set(tmp_path, line.replace(", ", ","))))
    objects = splits.train.annotations[0]
    assert (objects.boxes.tolist(), objects.labels.tolist()) == ([[24, 12, 40, 36]], [1])


def test_yolo_oriented_boxes_are_told(tmp_path: Path) -> None:
    splits = open_boxes(str(yolo_set(tmp_path, "0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5")))
    assert splits.train.annotations[0].boxes.tolist() == [[16, 12, 48, 36]]
    assert any(note.startswith("all 3 lines of ") and "oriented boxes (OBB)" in note for note in splits.notes)


def test_boxes_given_by_their_corners(cocos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"all fit if their numbers are left, upper, right .* YOLO's are centre, width"):
        open_boxes(str(yolo_set(tmp_path / "yolo", "0 0.6 0.5 0.9 0.8")))
    with_training(cocos, [thing(1, 1, (30, 20, 60, 40)), thing(2, 2, (40, 30, 64, 48)), thing(3, 3, (5, 5, 20, 20))])
    with pytest.raises(UserError, match=r"COCO's are left, upper, width and height\. The first: train2017/1\.png"):
        open_boxes(str(cocos))
    with_training(cocos, [thing(1, 1, (30, 20, 60, 10)), thing(2, 2, (40, 30, 64, 48)), thing(3, 3, (5, 5, 20, 20))])
    assert any("extend beyond their photo, clipped: 2" in note for note in open_boxes(str(cocos)).notes)


def test_voc_boxes_with_exchanged_edges(tmp_path: Path) -> None:
    for split, box in (("train", (28, 7, 9, 16)), ("val", (9, 7, 28, 16))):
        save_photo(tmp_path / split / f"{split}.png")
        (tmp_path / split / f"{split}.xml").write_text(voc_xml(voc_object("box", box)))
    splits = open_boxes(str(tmp_path))
    assert splits.train.annotations[0].boxes.tolist() == splits.val.annotations[0].boxes.tolist() == [[8, 6, 28, 16]]
    assert any(note.startswith("boxes with their edges exchanged, put in order") for note in splits.notes)


def test_a_faulty_data_yaml_is_told_and_an_only_folder_is_entered(tmp_path: Path) -> None:
    assert len(open_boxes(str(yolo_set(tmp_path / "a" / "b" / "c", "0 0.5 0.5 0.2 0.2").parents[1])).train) == 3
    assert has_boxes(str(yolo_set(tmp_path / "other", "0 0.5 0.5 0.2 0.2", "[no, yes]")))


def via_file(names: Sequence[str]) -> str:
    rect = {"name": "rect", "x": 8, "y": 6, "width": 20, "height": 10}
    polygon = {"name": "polygon", "all_points_x": [8, 28, 28, 8], "all_points_y": [6, 6, 16, 16]}
    regions = [
        {"shape_attributes": rect, "region_attributes": {"label": "box"}},
        {"shape_attributes": polygon, "region_attributes": {"kind": {"ball": True}}},
    ]
    entries = {name: {"filename": name, "size": 1, "regions": regions} for name in names}
    return json.dumps({"_via_img_metadata": entries})


def label_studio_file(names: Sequence[str]) -> str:
    size = {"original_width": 64, "original_height": 48}
    upright = {"x": 12.5, "y": 12.5, "width": 31.25, "height": 100 * 10 / 48, "rotation": 0, "rectanglelabels": ["box"]}
    turned = {"x": 100 * 28 / 64, "y": 12.5, "width": 100 * 10 / 64, "height": 100 * 20 / 48, "rotation": 90}
    results = [
        {**size, "type": "rectanglelabels", "value": upright},
        {**size, "type": "rectanglelabels", "value": {**turned, "rectanglelabels": ["ball"]}},
    ]
    entries = [
        {"data": {"image": f"/data/local-files/?d=set/{n}"}, "annotations": [{"result": results}]} for n in names
    ]
    return json.dumps(entries)


def createml_file(names: Sequence[str]) -> str:
    place = {"x": 18, "y": 11, "width": 20, "height": 10}
    objects = [{"label": label, "coordinates": place} for label in ("box", "ball")]
    return json.dumps([{"image": n, "annotations": objects} for n in names])


def cvat_file(names: Sequence[str]) -> str:
    shapes = '<box label="box" xtl="8" ytl="6" xbr="28" ybr="16"/><polygon label="ball" points="8,6;28,6;28,16;8,16"/>'
    images = "".join(f'<image id="0" name="{n}" width="64" height="48">{shapes}</image>' for n in names)
    return f"<annotations><version>1.1</version>{images}</annotations>"


def test_shapes_without_an_area_are_told(tmp_path: Path) -> None:
    save_photo(tmp_path / "1.png")
    shapes = '<box label="box" xtl="8" ytl="6" xbr="28" ybr="16"/><points label="box" points="1,2"/><tag label="day"/>'
    text = f'<annotations><image id="0" name="1.png" width="64" height="48">{shapes}</image></annotations>'
    (tmp_path / "annotations.xml").write_text(text)
    part = find_boxes(str(tmp_path), None, ()).readers[""]()
    assert len(part.rows) == 1
    assert part.faults == [("1.png, object 2", "has no box of four numbers: None")]


def table_of_edges(names: Sequence[str]) -> str:
    rows = (
        f"{n},64,48,{label},{edges}\n" for n in names for label, edges in (("box", "8,6,28,16"), ("ball", "28,16,8,6"))
    )
    return f"filename,width,height,class,xmin,ymin,xmax,ymax\n{''.join(rows)}"


def table_of_boxes(names: Sequence[str]) -> str:
    rows = (f'{n[:-4]},{label},"[8, 6, 20, 10]"\n' for n in names for label in ("box", "ball"))
    return f"image_id,label,bbox\n{''.join(rows)}"


@pytest.mark.parametrize(
    ("file", "write", "program"),
    [
        ("via.json", via_file, "VGG's VIA"),
        ("project.json", label_studio_file, "Label Studio"),
        ("_annotations.createml.json", createml_file, "CreateML"),
        ("annotations.xml", cvat_file, "CVAT"),
        ("_annotations.csv", table_of_edges, "a table of boxes"),
        ("train.csv", table_of_boxes, "a table of boxes"),
    ],
)
def test_annotations_of_other_programs(tmp_path: Path, file: str, write: Any, program: str) -> None:
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        save_photo(tmp_path / "photos" / name)
    (tmp_path / file).write_text(write(names))
    for place in (tmp_path, tmp_path / file):
        assert has_boxes(str(place))
        splits = check_boxes(open_boxes(str(place), val_share=0.25, test_share=0), 0.0)
        assert splits.class_names == ("ball", "box")
        objects = splits.train.annotations[0]
        assert objects.boxes.round(3).tolist() == [[8, 6, 28, 16]] * 2
        assert objects.labels.tolist() == [1, 0]
        assert f"{tmp_path / file} is read as annotations of {program}" in splits.notes


def test_a_table_of_boxes_in_each_split(tmp_path: Path) -> None:
    for split, names in (("train", ["1.png", "2.png"]), ("valid", ["3.png"])):
        for name in names:
            save_photo(tmp_path / split / name)
        (tmp_path / split / "_annotations.csv").write_text(table_of_edges(names) + f"{names[0]},64,48,,,,,\n")
    splits = open_boxes(str(tmp_path))
    assert (splits.train.objects, splits.val.objects) == (4, 2)


def test_files_that_are_no_annotations_of_objects(tmp_path: Path) -> None:
    save_photo(tmp_path / "1.png")
    told = {
        '[{"image": "1.png", "label": "cat"}]': "is a list of objects with image, label, .*give a table",
        '{"1.png": "cat"}': "no COCO file of objects: .* give a table as .csv or .jsonl",
        '[{"image": "1.png", "annotations": [{"label": "a"}]}]': "is not as its program writes it: 'coordinates'",
        '{"images": [], "categories": [], "annotations": [{"segments_info": []}]}': "COCO's panoptic segmentation",
        "<annotations><track/></annotations>": "CVAT's tracks through a video",
        "<annotation/>": "no XML of CVAT: its root is annotation",
    }
    for content, words in told.items():
        file = tmp_path / ("a.xml" if content.startswith("<") else "a.json")
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            open_boxes(str(file))
