"""Ids and their mapping, folder layouts, reported faults, and images that stay aligned with their masks."""

import io
import json
import re
import runpy
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from dmformer.data.decode import BrokenImageError
from dmformer.data.palette import default_palette
from dmformer.tasks.folders import classes_in
from dmformer.tasks.sampling import StepSampler
from dmformer.tasks.segmentation import datasets
from dmformer.tasks.segmentation.checks import check_evaluation_pairs, check_pairs
from dmformer.tasks.segmentation.datasets import Labels, Pairs, PairSplits
from dmformer.tasks.segmentation.label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC
from dmformer.tasks.segmentation.loaders import (
    PairSet,
    PairTransform,
    ScaledCrop,
    eval_pairs_loader,
    eval_transform,
    train_pairs_loader,
    train_transform,
)
from dmformer.tasks.segmentation.masks import IGNORE, Colours, StrangeLabelError, map_labels, read_mask
from dmformer.tasks.segmentation.recipes import SegmentationRecipe
from dmformer.utils.errors import UserError

NAMES = ("ground", "water", "wood", "wall")
COLOURS = np.array([(220, 40, 40), (40, 200, 60), (40, 60, 220), (230, 220, 40)], np.uint8)
UNLABELLED = (128, 128, 128)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def open_pairs(data: str, *places: str, **options: Any) -> PairSplits:
    return datasets.open_pairs(recipe_of(data, *places, **options))


def open_evaluation_pairs(data: str, *places: str, known_colours: Colours = (), **options: Any) -> Pairs:
    return datasets.open_evaluation_pairs(recipe_of(data, *places, **options), known_colours)


def recipe_of(data: str, masks: str | None = None, classes: Sequence[str] = (), **options: Any) -> SegmentationRecipe:
    return SegmentationRecipe(data=data, masks=masks, classes=tuple(classes), **options)


def flat(
    crop: int,
    resize: int | None,
    scale: tuple[float, float],
    hflip: float = 0.0,
    photometric: bool = False,
    largest_share: float = 1.0,
) -> PairTransform:
    """A transform that only scales and crops, unless the test asks for more."""
    recipe = SegmentationRecipe(image_size=crop, resize=resize, scale=scale, hflip=hflip, photometric=photometric)
    return train_transform(replace(recipe, largest_share=largest_share), MEAN, STD)


def blocks(seed: int, size: tuple[int, int] = (60, 40), block: int = 10, classes: int = 4) -> np.ndarray:
    """Ids (H, W) of random blocks."""
    width, height = size
    ids = np.random.default_rng(seed).integers(0, classes, (-(-height // block), -(-width // block)))
    return np.kron(ids, np.ones((block, block)))[:height, :width].astype(np.uint8)


def photo(ids: np.ndarray) -> Image.Image:
    """An image whose colours are the classes."""
    table = np.full((256, 3), UNLABELLED, np.uint8)
    table[: len(COLOURS)] = COLOURS
    return Image.fromarray(table[ids])


def save_pair(image: Path, mask: Path, ids: np.ndarray) -> None:
    picture = photo(ids)
    noise = np.random.default_rng(zlib.crc32(str(image).encode())).integers(0, 256, (2, 8, 3), np.uint8)
    picture.paste(Image.fromarray(noise))  # otherwise two splits would hold the same images
    for path, content in ((image, picture), (mask, Image.fromarray(ids))):
        path.parent.mkdir(parents=True, exist_ok=True)
        content.save(path)


def save_folders(root: Path, splits: dict[str, int], masks: str = "annotations") -> Path:
    for split, n in splits.items():
        for i in range(n):
            folder = f"{split}/" if split else ""
            image, mask = root / f"images/{folder}{i}.jpg", root / f"{masks}/{folder}{i}.png"
            save_pair(image, mask, blocks(i))
    return root


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    """Six images and masks of four classes."""
    return open_evaluation_pairs(str(save_folders(tmp_path / "set", {"": 6})), classes=NAMES)


# ---- ids


@pytest.mark.parametrize(
    ("rules", "stored", "expected"),
    [
        (dict(num_classes=150, reduce_zero_label=True), [0, 1, 2, 150, 255], [255, 0, 1, 149, 255]),  # ADE20K
        (dict(num_classes=21), [0, 1, 20, 255], [0, 1, 20, 255]),  # Pascal VOC
        (dict(num_classes=20, reduce_zero_label=True), [0, 1, 20, 255], [255, 0, 19, 255]),  # VOC without background
        (dict(num_classes=11, ignore_index=(11,)), [0, 10, 11], [0, 10, 255]),  # CamVid
        (dict(num_classes=19), [0, 18, 255], [0, 18, 255]),  # Cityscapes, labelTrainIds
        (dict(num_classes=19, table=CITYSCAPES_TRAIN_IDS), [0, 7, 8, 9, 33, 34], [255, 0, 1, 255, 18, 255]),  # labelIds
        (dict(num_classes=19, table=CITYSCAPES_TRAIN_IDS, ignore_index=(7,)), [0, 7, 8], [255, 255, 1]),
        (dict(num_classes=3, ignore_index=(0, 9)), [0, 1, 2, 9], [255, 1, 2, 255]),
        (dict(num_classes=3, ignore_index=(2, 255), reduce_zero_label=True), [0, 1, 2, 3, 255], [255, 0, 255, 2, 255]),
        (dict(num_classes=255), [0, 254, 255], [0, 254, 255]),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_ids_are_mapped(rules, stored, expected, dtype):
    mapped = map_labels(np.array([stored, stored[::-1]], dtype), **rules)
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [expected, expected[::-1]]


@pytest.mark.parametrize(
    ("rules", "stored", "strange"),
    [
        (dict(num_classes=11), [0, 10, 11, 11], (11,)),
        (dict(num_classes=150), [0, 150, 1], (150,)),
        (dict(num_classes=4, ignore_index=()), [3, 255, 4], (4, 255)),
        (dict(num_classes=4, reduce_zero_label=True), [0, 4, 5, 254], (5, 254)),
        (dict(num_classes=4, reduce_zero_label=True, ignore_index=()), [0, 4, 255], (255,)),
        (dict(num_classes=4, ignore_index=(0,)), [0, 1, 4], (4,)),  # counts from 1, and 0 is ignored without a shift
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_no_id_becomes_something_silently(rules, stored, strange, dtype):
    with pytest.raises(StrangeLabelError, match=", ".join(map(str, strange))) as error:
        map_labels(np.array(stored, dtype), **rules)
    assert error.value.ids == strange


def test_odd_arrays_and_rules():
    assert map_labels(np.array([[True, False]]), 2).tolist() == [[1, 0]]
    assert map_labels(np.zeros((0, 3), np.uint8), 2).shape == (0, 3)
    assert map_labels(np.array([-1, 70_000, 0]), 2, ignore_index=(-1, 70_000)).tolist() == [255, 255, 0]
    with pytest.raises(StrangeLabelError, match="ids -1, 256, which are no class and not ignored"):
        map_labels(np.array([-1, 256]), 2)
    with pytest.raises(StrangeLabelError, match=r"1, 2, 3, 4, 5, 6, 7, 8, …"):
        map_labels(np.arange(20), 1)
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(num_classes=256), "256 classes: there must be 1 to 255"),
        (dict(num_classes=0), "0 classes"),
        (dict(num_classes=3, table={5: 3}), "leads to class 3, but there are 3"),
        (dict(num_classes=3, table={5: 2}, reduce_zero_label=True), "leave out --reduce-zero-label"),
    ]
    for rules, words in cases:
        with pytest.raises(UserError, match=words):
            map_labels(np.array([0]), **rules)


def as_file(image: Image.Image, format: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def packed_png(ids: np.ndarray, bits: int) -> io.BytesIO:
    """A grey PNG with a few bits per pixel, as optimisers write it."""
    rows = [b"".join(format(int(v), f"0{bits}b").encode() for v in row) for row in ids]
    raw = b"".join(b"\0" + int(row.ljust(-(-len(row) // 8) * 8, b"0"), 2).to_bytes(-(-len(row) // 8)) for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_masks_of_few_bits_keep_their_values(bits):
    ids = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    assert np.array_equal(read_mask(packed_png(ids, bits)), ids)


def test_masks_are_read_as_stored(tmp_path):
    ids = np.array([[0, 1, 2], [3, 19, 255]], np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    wide = ids.astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112] = 6
    palette.save(tmp_path / "mask.png")
    assert palette.mode == "P"
    for source, expected in (
        (as_file(Image.fromarray(ids)), ids),
        (as_file(palette, transparency=0), ids),
        (as_file(palette, bits=8), ids),
        (as_file(Image.fromarray(ids // 20), "BMP"), ids // 20),
        (as_file(Image.fromarray(wide)), wide),
        (as_file(Image.fromarray(wide.astype(np.int32)), "TIFF"), wide),
        (as_file(Image.fromarray(ids > 2)), ids > 2),
        (as_file(Image.fromarray(ids), exif=turned), ids),
        (palette, ids),
        (as_file(Image.merge("RGB", [Image.fromarray(ids)] * 3)), ids),
        (as_file(Image.fromarray(ids).convert("LA")), ids),
        (as_file(Image.fromarray(ids.astype(np.float32)), "TIFF"), ids),
        (tmp_path / "mask.png", ids),
        (str(tmp_path / "mask.png"), ids),
    ):
        read = read_mask(source)
        assert read.dtype.kind in "iu"
        assert np.array_equal(read, expected)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (as_file(Image.new("RGB", (3, 2), (1, 2, 3))), r"^holds colours \(RGB\) instead of class ids$"),
        (as_file(Image.new("RGBA", (3, 2), (1, 2, 3, 4))), r"^holds colours \(RGBA\) instead of class ids$"),
        (as_file(Image.new("LA", (3, 2), (7, 7))), r"transparent pixels \(LA\)"),
        (as_file(Image.new("L", (3, 2), 1), "TIFF", save_all=True, append_images=[Image.new("L", (3, 2))]), "2 images"),
        (as_file(Image.new("F", (3, 2), 0.5), "TIFF"), "decimal numbers"),
        (as_file(Image.new("L", (3, 2), 5), "JPEG"), "is a JPEG, whose compression changes ids"),
        (io.BytesIO(b"no image"), "not an image"),
        (io.BytesIO(as_file(Image.new("L", (90, 90), 5)).getvalue()[:60]), "truncated|broken"),
        ("/nowhere/mask.png", "No such file"),
    ],
)
def test_masks_without_ids_are_refused(source, words):
    with pytest.raises(BrokenImageError, match=words):
        read_mask(source)


# ---- layouts


def names(part: Pairs | None) -> list[str]:
    assert part is not None
    return [part.name(i) for i in range(len(part))]


@pytest.mark.parametrize(
    ("train", "val", "masks"), [("training", "validation", "annotations"), ("train", "val", "labels")]
)
def test_sceneparsing(tmp_path, train, val, masks):
    save_folders(tmp_path, {train: 3, val: 2, "test": 1}, masks)
    splits = open_pairs(str(tmp_path), classes=NAMES)
    assert names(splits.train) == [f"images/{train}/{i}.jpg" for i in range(3)]
    assert splits.train.masks == tuple(tmp_path / f"{masks}/{train}/{i}.png" for i in range(3))
    assert (len(splits.val), len(splits.test or ()), splits.notes) == (2, 1, [])
    assert splits.labels == splits.train.labels == Labels(NAMES, tuple(default_palette(4)))
    assert names(open_evaluation_pairs(str(tmp_path), classes=NAMES)) == ["images/test/0.jpg"]
    for path in (tmp_path / masks / "test").iterdir():
        path.unlink()
    splits = open_pairs(str(tmp_path), classes=NAMES)
    assert splits.test is None
    assert splits.notes == [f"images/test has no masks in {masks}: left out"]
    assert names(open_evaluation_pairs(str(tmp_path), classes=NAMES))[0] == f"images/{val}/0.jpg"


def test_sceneparsing_names_come_from_its_table(tmp_path):
    save_folders(tmp_path, {"training": 2, "validation": 1})
    rows = [f"{i}\t0.1\t10\t1\t{name} " for i, name in enumerate(("wall", "building, edifice", "sea 2 b"), 1)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    splits = open_pairs(str(tmp_path), reduce_zero_label=True)
    assert splits.labels.class_names == ("wall", "building, edifice", "sea 2 b")
    assert splits.labels.reduce_zero_label
    assert splits.labels(np.array([0, 1, 3])).tolist() == [IGNORE, 0, 2]
    assert open_pairs(str(tmp_path), classes=NAMES).labels.class_names == NAMES
    listed = tmp_path / "names.txt"
    listed.write_text("\ufeffStraße\n 2 of them \n", "utf-8")
    assert open_pairs(str(tmp_path), classes=[str(listed)]).labels.class_names == ("Straße", "2 of them")
    assert open_pairs(str(tmp_path), classes=[f"c{i}" for i in range(150)]).labels.palette == ADE20K.palette


def save_cityscapes(root: Path, endings: Sequence[str]) -> Path:
    for split, towns in (("train", ("aachen", "bonn")), ("val", ("lund",)), ("test", ("bonn",))):
        for town in towns:
            for i in range(2):
                stem = f"{town}_00000{i}_000019"
                ids = blocks(i) + 7
                for ending in endings:
                    stored = CITYSCAPES_TRAIN_ARRAY[ids] if "Train" in ending else ids
                    mask = root / "gtFine" / split / town / f"{stem}_gtFine_{ending}.png"
                    save_pair(root / "leftImg8bit" / split / town / f"{stem}_leftImg8bit.png", mask, stored)
                Image.new("RGBA", (60, 40)).save(root / "gtFine" / split / town / f"{stem}_gtFine_color.png")
    return root


CITYSCAPES_TRAIN_ARRAY = np.array([CITYSCAPES_TRAIN_IDS[i] for i in range(34)], np.uint8)


@pytest.mark.parametrize("endings", [["labelIds"], ["labelIds", "labelTrainIds"]])
def test_cityscapes(tmp_path, endings):
    root = save_cityscapes(tmp_path, endings)
    splits = open_pairs(str(root))
    assert splits.labels.class_names == CITYSCAPES.class_names
    assert splits.labels.palette == CITYSCAPES.palette
    assert names(splits.train)[::3] == [
        f"leftImg8bit/train/{town}/{town}_00000{i}_000019_leftImg8bit.png" for town, i in (("aachen", 0), ("bonn", 1))
    ]
    assert (len(splits.train), len(splits.val), splits.test) == (4, 2, None)
    assert "not published" in splits.notes[0]
    assert {path.stem.split("_")[-1] for path in splits.train.masks} == {endings[-1]}
    ids = splits.labels(read_mask(splits.train.masks[0]))
    assert np.array_equal(
        ids, CITYSCAPES_TRAIN_ARRAY[blocks(0) + 7]
    )  # 7 to 10: road, pavement and two that are ignored
    assert set(np.unique(ids)) == {0, 1, IGNORE}
    assert open_evaluation_pairs(str(root)).name(0).startswith("leftImg8bit/val/lund/lund_000000")
    assert check_pairs(splits, 32, 0.0)[1] == []
    with pytest.raises(UserError, match="Cityscapes's classes begin at id 0: leave out --reduce-zero-label"):
        open_pairs(str(root), reduce_zero_label=True)


def save_voc(root: Path, lists: dict[str, list[int]], masks: int = 8) -> Path:
    for i in range(12):
        ids = blocks(i)
        ids[0] = 255
        image, mask = root / f"JPEGImages/2007_{i:06}.jpg", root / f"SegmentationClass/2007_{i:06}.png"
        save_pair(image, mask, ids)
        if i >= masks:
            mask.unlink()
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, ids in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"2007_{i:06}\n" for i in ids))
    return root


@pytest.mark.parametrize("below", ["", "VOC2007", "VOCdevkit/VOC2012"])
def test_pascal_voc(tmp_path, below):
    lists = {"train": [0, 1, 2], "val": [4, 5], "trainval": [0, 1, 2, 4, 5], "test": [9, 10]}
    save_voc(tmp_path / "data" / below, lists)
    splits = open_pairs(str(tmp_path / "data"))
    assert names(splits.train) == [f"JPEGImages/2007_00000{i}.jpg" for i in range(3)]
    assert names(splits.val) == ["JPEGImages/2007_000004.jpg", "JPEGImages/2007_000005.jpg"]
    assert splits.test is None
    assert "test.txt" in splits.notes[0]
    assert splits.labels.class_names == VOC.class_names
    assert splits.labels.palette[1] == (128, 0, 0)
    assert check_pairs(splits, 32, 0.0)[1] == []
    assert (splits.labels(read_mask(splits.train.masks[0]))[0] == IGNORE).all()
    assert len(open_evaluation_pairs(str(tmp_path / "data"))) == 2
    with pytest.raises(UserError, match="leave out --reduce-zero-label"):
        open_pairs(str(tmp_path / "data"), reduce_zero_label=True)


def test_pascal_voc_lists(tmp_path):
    whole = open_pairs(str(save_voc(tmp_path / "a", {"trainval": list(range(8))})), val_share=0.25, test_share=0.0)
    assert (len(whole.train), len(whole.val), whole.test) == (6, 2, None)
    rest = open_pairs(str(save_voc(tmp_path / "b", {"trainval": [0, 1, 2, 3], "val": [3], "test": [5, 6]})))
    assert (len(rest.train), len(rest.val), len(rest.test or ())) == (3, 1, 2)
    lacking = open_pairs(str(save_voc(tmp_path / "c", {"train": [0, 1, 9, 77], "val": [2]})))
    assert lacking.train.unpaired == (
        ("JPEGImages/2007_000009.jpg", "has no mask in SegmentationClass"),
        ("2007_000077", "there is no such image in JPEGImages"),
    )
    with pytest.raises(UserError, match=r"no ImageSets/Segmentation/train\.txt"):
        open_pairs(str(save_voc(tmp_path / "d", {})))


def test_any_two_folders(tmp_path):
    for i in range(20):
        save_pair(tmp_path / f"photos/set {i % 2}/{i}.a.jpeg", tmp_path / f"ids/set {i % 2}/{i}.a.png", blocks(i))
    arguments: dict[str, Any] = dict(data=str(tmp_path / "photos"), masks=str(tmp_path / "ids"), classes=NAMES)
    splits = open_pairs(**arguments, val_share=0.2, test_share=0.1)
    parts = [names(part) for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in parts] == [14, 4, 2]
    assert sorted(name for part in parts for name in part) == sorted(f"set {i % 2}/{i}.a.jpeg" for i in range(20))
    assert all(i.stem == m.stem for i, m in zip(splits.train.images, splits.train.masks, strict=True))
    again = open_pairs(**arguments, val_share=0.2, test_share=0.1)
    other = open_pairs(**arguments, val_share=0.2, test_share=0.1, seed=1)
    assert names(again.test) == parts[2]
    assert names(other.test) != parts[2]
    assert len(open_evaluation_pairs(**arguments)) == 20
    beside = open_pairs(str(save_folders(tmp_path / "beside", {"": 8}, "masks")), classes=NAMES)
    assert (len(beside.train), len(beside.val), len(beside.test or ())) == (6, 1, 1)
    inside = tmp_path / "inside"
    for i in range(8):
        save_pair(inside / f"{i}.png", inside / f"ids/{i}.png", blocks(i))
    for masks in ("ids", "../inside/ids"):
        below = open_evaluation_pairs(str(inside), masks=str(inside / masks), classes=NAMES)
        assert (len(below), below.unpaired) == (8, ())


def test_splits_may_lie_in_two_folders(tmp_path):
    save_folders(tmp_path, {"train": 8, "test": 3})
    splits = open_pairs(str(tmp_path / "images"), str(tmp_path / "annotations"), NAMES, val_share=0.25)
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (6, 2, 3)
    assert splits.train.name(0).startswith("train/")


def test_lists_beside_the_folders_are_the_splits(tmp_path):
    save_folders(tmp_path, {"": 7})
    (tmp_path / "train.txt").write_text("0.jpg\nC:\\set\\images\\1.jpg\nimages/2.jpg annotations/2.png\n9.jpg\n")
    (tmp_path / "val.txt").write_text("4\n5\n")
    splits = open_pairs(str(tmp_path), classes=NAMES)
    assert [names(part) for part in (splits.train, splits.val)] == [
        ["images/0.jpg", "images/1.jpg", "images/2.jpg"],
        ["images/4.jpg", "images/5.jpg"],
    ]
    assert splits.test is None
    assert splits.train.unpaired == (("9", "is listed in train.txt, without an image and a mask"),)
    assert f"images in none of the lists of {tmp_path}, left out: 2 (3, 6)" in splits.notes


def test_masks_may_keep_the_suffix_of_their_image(tmp_path):
    save_folders(tmp_path, {"": 4}, "masks")
    for i in range(4):
        (tmp_path / f"masks/{i}.png").rename(tmp_path / f"masks/{i}.jpg.png")
    train = open_pairs(str(tmp_path), classes=NAMES, val_share=0.25, test_share=0.0).train
    assert [mask.name for mask in train.masks] == [f"{image.name}.png" for image in train.images]


def test_missing_partners_are_told(tmp_path):
    save_folders(tmp_path, {"training": 8, "validation": 2})
    (tmp_path / "annotations/training/3.png").unlink()
    (tmp_path / "images/training/5.jpg").unlink()
    (tmp_path / "images/training/.hidden.jpg").write_bytes(b"")
    splits = open_pairs(str(tmp_path), classes=NAMES)
    assert len(splits.train) == 6
    assert len(splits.notes) == 2
    assert "images/training: skipped 1 file" in splits.notes[0]
    assert re.fullmatch(r"masks without an image in .*training, left out \(1\): 5\.png", splits.notes[1])
    checked, faults = check_pairs(splits, 32, 0.2)
    assert faults == [("images/training/3.jpg", "has no mask in annotations/training")]
    assert len(checked.train) == 6
    with pytest.raises(UserError, match=r"1 of 9 images .* images/training/3.jpg: has no mask"):
        check_pairs(splits, 32, 0.05)
    with pytest.raises(UserError, match=r"1 of 7 images .* images/training/3.jpg: has no mask"):
        check_evaluation_pairs(splits.train, 0.05)


def test_camvid_names_get_camvid_colours(tmp_path):
    save_folders(tmp_path, {"": 8})
    backwards = CAMVID.class_names[::-1]
    assert open_pairs(str(tmp_path), classes=CAMVID.class_names).labels.palette == CAMVID.palette
    assert open_pairs(str(tmp_path), classes=backwards).labels.palette == CAMVID.palette[::-1]


def save_coloured(path: Path, ids: np.ndarray, palette: bool = False) -> None:
    """A mask in `COLOURS`, as RGB or with a palette of as many colours in the order of the file's first pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = photo(ids)
    (image.quantize(4, dither=Image.Dither.NONE) if palette else image).save(path)


LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in zip(NAMES, COLOURS.tolist(), strict=True)
)
HEX = [bytes(colour).hex() for colour in COLOURS.tolist()]


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("given", ["file", "below", "option", "option of a file", "some"])
def test_masks_of_colours(tmp_path, palette, given):
    root = save_folders(tmp_path / "set", {"": 8}, "masks")
    for i in range(8):
        save_coloured(root / f"masks/{i}.png", blocks(i), palette)
    arguments: dict[str, Any] = {}
    if given in ("file", "some"):
        (root / "labelmap.txt").write_text(LABELMAP)
    elif given == "below":
        (root / "masks/labelmap.txt").write_text(LABELMAP)
    elif given == "option":
        arguments = dict(classes=NAMES, colours=HEX)
    else:
        (tmp_path / "labelmap.txt").write_text(LABELMAP)
        arguments = dict(colours=[str(tmp_path / "labelmap.txt")])
    expected = np.arange(256)
    if given == "some":
        arguments = dict(classes=("wood", "ground"))
        expected = np.array([1, IGNORE, 0, IGNORE])
    splits, faults = check_pairs(open_pairs(str(root), **arguments), 32, 0.0)
    assert faults == []
    assert splits.labels.class_names == (arguments.get("classes") or NAMES)
    assert splits.labels.palette[0] == tuple(COLOURS[2 if given == "some" else 0].tolist())
    assert ("classes that are not among those named, ignored: water, wall" in splits.notes) == (given == "some")
    shown = PairSet(splits.train, eval_transform(MEAN, STD), training=False, seed=0)
    for i in range(len(splits.train)):
        number = int(splits.train.images[i].stem)
        assert np.array_equal(shown.picture(i)[1], expected[blocks(number)])
    scored = open_evaluation_pairs(
        str(root), classes=NAMES[::-1], known_colours=[(*colour, 3 - i) for i, colour in enumerate(COLOURS.tolist())]
    )
    assert np.array_equal(scored.labels(scored.labels.stored(scored.masks[0])), 3 - blocks(0))


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("other\nroad\ncar\n\n", False),
        ("# id: name\n2: car\n0: other\n1: road\n", False),
        ("1,road\n2,car\n0,other\n", False),
        ('["other", "road", "car"]', False),
        ("other, road, car", False),
        ("other 0 0 0\nroad 128 64 128\ncar 0 0 142", True),
        ("1 road,128,64,128\n0 other,0,0,0\n2 car,0,0,142", True),
    ],
)
def test_files_of_class_names(tmp_path, text, colours):
    (tmp_path / "names.txt").write_text(text)
    names, found = classes_in(tmp_path / "names.txt")
    assert names == ("other", "road", "car")
    assert found == (((0, 0, 0), (128, 64, 128), (0, 0, 142)) if colours else ())


@pytest.mark.parametrize(
    ("text", "words"),
    [("a\n\nb", "an empty line before b"), ("1: a\n2: b", "numbers the classes 1, 2: number them from 0 on")],
)
def test_files_of_class_names_that_may_be_shifted(tmp_path, text, words):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        classes_in(tmp_path / "names.txt")


def test_numbers_in_class_names_are_kept(tmp_path):
    (tmp_path / "names.txt").write_text("3 series\n5 series\n")
    assert classes_in(tmp_path / "names.txt")[0] == ("3 series", "5 series")


@pytest.mark.parametrize("name", ["names.txt", "labelmap.txt"])
def test_the_file_of_class_names_may_give_the_colours(tmp_path, name):
    root = save_folders(tmp_path / "set", {"": 8}, "masks")
    for i in range(8):
        save_coloured(root / f"masks/{i}.png", blocks(i), palette=False)
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(NAMES, COLOURS.tolist(), strict=True)]
    (tmp_path / name).write_text(LABELMAP if name == "labelmap.txt" else "\n".join(lines))
    labels = open_pairs(str(root), classes=[str(tmp_path / name)]).labels
    assert labels.class_names == NAMES
    assert np.array_equal(labels.stored(root / "masks/3.png"), blocks(3))


def test_palettes_that_differ_are_refused(tmp_path):
    root = save_folders(tmp_path, {"": 8}, "masks")
    ids = np.zeros((40, 60), np.uint8)
    for i in range(8):
        mask = Image.fromarray(ids + 1 if i == 3 else ids)
        mask.putpalette([9, 9, 9, *((1, 2, 3) if i == 3 else (7, 8, 9))])
        mask.save(root / f"masks/{i}.png")
    assert check_pairs(open_pairs(str(root), classes=NAMES), 32, 0.0)[1] == []  # an index that is not used may differ
    ids[0, 0] = 1
    for i in range(8):
        mask = Image.fromarray(ids)
        mask.putpalette([9, 9, 9, *((1, 2, 3) if i == 3 else (7, 8, 9))])
        mask.save(root / f"masks/{i}.png")
    splits = open_pairs(str(root), classes=NAMES)
    told = r"palettes of masks differ: index 1 is 0\d+ in masks/\d\.png and 0\d+ in masks/\d\.png\. Give --colours"
    with pytest.raises(UserError, match=told):
        check_pairs(splits, 32, 0.9)
    with pytest.raises(UserError, match=told):
        check_evaluation_pairs(open_evaluation_pairs(str(root), classes=NAMES), 0.9)
    same = open_pairs(str(root), classes=NAMES, colours=["ids"])
    assert check_pairs(same, 32, 0.0)[1] == []
    colours = ["070809", "010203", "090909", "000000"]
    mapped = open_evaluation_pairs(str(root), classes=NAMES, colours=colours)
    stored = [int(mapped.labels.stored(mask)[0, 0]) for mask in mapped.masks]
    assert (stored, int(mapped.labels.stored(mapped.masks[0])[0, 1])) == ([0, 0, 0, 1, 0, 0, 0, 0], 2)


def test_colours_without_a_class(tmp_path):
    root = save_folders(tmp_path, {"": 8}, "masks")
    for i in range(8):
        save_coloured(root / f"masks/{i}.png", blocks(i))
    listed = " ".join(sorted(HEX))
    hint = rf"colours without a class \(4\): {listed}: give --colours in the order of --classes, or put a labelmap.txt"
    with pytest.raises(UserError, match=r"0\.png holds colours \(RGB\) instead of class ids; .*" + hint):
        check_pairs(open_pairs(str(root), classes=NAMES), 32, 0.1)
    some = open_pairs(str(root), classes=NAMES[:3], colours=HEX[:3])
    with pytest.raises(UserError, match=rf"0\.png holds the colour {HEX[3]}, which no class has; .*\(1\): {HEX[3]}:"):
        check_pairs(some, 32, 0.1)
    with pytest.raises(UserError, match="there are 2 colours for 4 classes"):
        open_pairs(str(root), classes=NAMES, colours=HEX[:2])
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(root / "masks/0.png")
    with pytest.raises(UserError, match="hold more than 64 colours: they were blurred or compressed"):
        check_pairs(open_pairs(str(root), classes=NAMES), 32, 0.1)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{split}/images/{i}.jpg", "{split}/masks/{i}.png"),
        ("{split}/images/{i}.jpg", "{split}/Labels/{i}.png"),
        ("{split}/{i}.jpg", "{split}annot/{i}.png"),
        ("{split}/{i}.jpg", "{split}_labels/{i}_L.png"),
        ("{split}/{i}.jpg", "{split}/{i}_mask.png"),
        ("{split}/{i}_sat.jpg", "{split}/{i}_mask.png"),
        ("images/{split}/x/{i}.jpg", "masks/{split}/{i}-mask.png"),
        ("images/{split}/{i}\u00e9.jpg", "masks/{split}/{i}e\u0301.PNG"),
    ],
)
def test_layouts_of_other_programs(tmp_path, image, mask):
    for split in ("train", "val", "test"):
        for i in range(2):
            place = dict(split=split, i=f"{split} {i}")
            save_pair(tmp_path / image.format(**place), tmp_path / mask.format(**place), blocks(i))
    (tmp_path / "train" / "_classes.csv").parent.mkdir(exist_ok=True)
    rows = [f"{i}, {name}" for i, name in enumerate(NAMES)]
    (tmp_path / "train" / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *rows]))
    named: dict[str, Any] = {} if image.startswith("{split}") else dict(classes=NAMES)
    splits, faults = check_pairs(open_pairs(str(tmp_path), **named), 32, 0.0)
    assert faults == []
    assert splits.labels.class_names == NAMES
    for split, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        assert part is not None
        for i in range(2):
            place = dict(split=split, i=f"{split} {i}")
            assert (part.name(i), part.masks[i]) == (image.format(**place), tmp_path / mask.format(**place))
    renamed = [note for note in splits.notes if note.startswith("masks in masks/train found under another name: 2")]
    assert len(renamed) == ("\u00e9" in image)
    assert not [note for note in splits.notes if "without an image" in note]


def test_named_ids_are_matched_by_name(tmp_path):
    """A model may know the classes of a file in another order."""
    save_folders(tmp_path, {"": 8}, "masks")
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    pairs = open_evaluation_pairs(str(tmp_path), classes=("wood", "ground", "else"))
    ids = pairs.labels(pairs.labels.stored(pairs.masks[0]))
    assert np.array_equal(ids, np.array([1, IGNORE, 0, IGNORE])[blocks(0)])
    assert "classes that are not among those named, ignored: water, wall" in pairs.notes
    mine = open_evaluation_pairs(str(tmp_path), classes=("a", "b", "c", "d"))  # names of one's own, by id
    assert np.array_equal(mine.labels(mine.labels.stored(mine.masks[0])), blocks(0))


def test_two_masks_of_an_image_are_not_guessed(tmp_path):
    save_folders(tmp_path, {"": 8}, "masks")
    (tmp_path / "masks/3.png").rename(tmp_path / "masks/3_mask.png")
    (tmp_path / "masks/4.png").rename(tmp_path / "masks/4_mask.png")
    Image.open(tmp_path / "masks/3_mask.png").save(tmp_path / "masks/3_label.png")
    pairs = open_evaluation_pairs(str(tmp_path), classes=NAMES)
    assert (len(pairs), pairs.unpaired) == (7, (("images/3.jpg", "has no mask in masks"),))
    assert tmp_path / "masks/4_mask.png" in pairs.masks
    assert pairs.notes[-1].endswith("left out (2): 3_label.png, 3_mask.png")


def test_masks_under_other_names(tmp_path):
    save_folders(tmp_path, {"": 8}, "masks")
    (tmp_path / "masks/deep").mkdir()
    (tmp_path / "masks/3.png").rename(tmp_path / "masks/deep/3.png")
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (tmp_path / "masks/4.png").rename(tmp_path / f"masks/{composed}.png")
    (tmp_path / "images/4.jpg").rename(tmp_path / f"images/{decomposed}.jpg")
    pairs = open_evaluation_pairs(str(tmp_path), classes=NAMES)
    partners = dict(zip((path.stem for path in pairs.images), pairs.masks, strict=True))
    assert (len(pairs), pairs.unpaired) == (8, ())
    assert partners["3"] == tmp_path / "masks/deep/3.png"
    assert partners[decomposed] == tmp_path / f"masks/{composed}.png"
    assert pairs.notes == ("masks in masks found under another name: 2, such as 3 as deep/3",)
    assert check_evaluation_pairs(pairs, 0.0)[2] == list(pairs.notes)


def test_masks_of_labelme(tmp_path):
    square = [[10, 10], [30, 10], [30, 30], [10, 30]]
    for i in range(8):
        photo(blocks(i)).save(tmp_path / f"{i}.jpg")
        shapes = [
            {"label": "wood", "points": square},
            {"label": "wall", "points": [[20, 20], [40, 35]], "shape_type": "rectangle"},
            {"label": "__ignore__", "points": [[50, 0], [59, 0], [59, 39], [50, 39]]},
            {"label": "wood", "points": [[1, 1], [2, 2]], "shape_type": "line"},
        ]
        content = {"shapes": shapes, "imagePath": f"{i}.jpg", "imageHeight": 40, "imageWidth": 60}
        (tmp_path / f"{i}.json").write_text(json.dumps(content))
    splits, faults = check_pairs(open_pairs(str(tmp_path)), 32, 0.0)
    assert faults == []
    assert splits.labels.class_names == ("background", "wall", "wood")
    told = f"shapes in {tmp_path} that cannot be used, left out (8): 0.json, shape 4: is a line, which has no outline"
    assert any(note.startswith(told) for note in splits.notes)
    _, ids = PairSet(splits.train, eval_transform(MEAN, STD), training=False, seed=0).picture(0)
    assert ids.shape == (40, 60)
    assert [ids[y, x] for x, y in ((5, 5), (15, 15), (25, 25), (39, 34), (55, 20))] == [0, 2, 1, 1, IGNORE]
    assert (ids == 2).sum() == 21 * 21 - 11 * 11
    named = open_evaluation_pairs(str(tmp_path), classes=("wall", "wood"))
    assert named.labels(named.labels.stored(named.masks[0]))[5, 5] == IGNORE
    with pytest.raises(UserError, match=r"0\.json holds the label wood, which is no class"):
        check_evaluation_pairs(open_evaluation_pairs(str(tmp_path), classes=("wall", "way")), 0.1)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_errors_say_what_to_do(tmp_path):
    save_folders(tmp_path / "good", {"": 8})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    touch(tmp_path / "twice", "images/a.jpg", "images/a.png", "masks/a.png")
    touch(tmp_path / "unmasked", "images/a.jpg")
    touch(tmp_path / "strangers", "images/a.jpg", "images/b.jpg", "masks/c.png")
    touch(tmp_path / "test_only", "images/test/a.jpg", "masks/test/a.png")
    touch(tmp_path / "no_training", "images/training/a.jpg", "masks/val/a.png")
    touch(tmp_path / "city", "leftImg8bit/a.png", "gtFine/b.png")
    save_folders(tmp_path / "few", {"": 2})
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(data="nowhere"), "nowhere does not exist: give a folder"),
        (dict(data="empty.txt"), "is a file: give a folder"),
        (dict(data="empty"), r"no layout that is known: images/ and annotations/ .* --masks"),
        (dict(data="unmasked"), r"images/ but no annotations/, masks/ or labels/: give the masks with --masks"),
        (dict(data="good", masks="gone"), "gone does not exist: give the folder of masks"),
        (dict(data="good", masks="empty"), r"no image with a mask: images/0\.jpg: has no mask in .*; …"),
        (dict(data="few/images", masks="few/../few/images"), "given for images and for masks"),
        (dict(data="empty", masks="good"), "no image with a mask: there are no images"),
        (dict(data="strangers"), r"images/a\.jpg: has no mask in masks; images/b\.jpg: has no mask"),
        (dict(data="twice"), r"a\.jpg and a\.png differ only in their suffix"),
        (dict(data="test_only"), "has test but no train"),
        (dict(data="no_training"), r"images/training has no masks: put them in .*masks/training"),
        (dict(data="city"), "neither train/ nor val/"),
        (dict(data="few"), r"2 images with masks are too few .* larger --val-share"),
        (dict(data="good", classes=()), r"has no class names: .*--classes, or a text file"),
        (dict(data="good", classes=("only",)), "one class, 'only': .* background and only"),
        (dict(data="good", classes=("a", "b", "a")), "class a is given twice"),
        (dict(data="good", classes=("gone.txt",)), r"gone\.txt does not exist"),
        (dict(data="good", classes=(str(tmp_path / "empty.txt"),)), r"empty\.txt is empty"),
        (dict(data="good", classes=(str(tmp_path / "bad.txt"),)), r"bad\.txt is not encoded as UTF-8"),
    ]
    default: dict[str, Any] = {"classes": NAMES}
    for arguments, words in cases:
        places: dict[str, Any] = {k: str(tmp_path / arguments[k]) for k in ("data", "masks") if k in arguments}
        with pytest.raises(UserError, match=words) as error:
            open_pairs(**(default | arguments | places))
        assert "\n" not in str(error.value)


# ---- what is wrong with a pair


def to_colours(pairs: Pairs) -> None:
    Image.new("RGB", (60, 40), (1, 2, 3)).save(pairs.masks[1])


def cut_mask(pairs: Pairs) -> None:
    pairs.masks[1].write_bytes(pairs.masks[1].read_bytes()[:50])


def spoil_image(pairs: Pairs) -> None:
    pairs.images[1].write_bytes(b"no image")


def remove_image(pairs: Pairs) -> None:
    pairs.images[1].unlink()


def other_size(pairs: Pairs) -> None:
    Image.new("L", (40, 60)).save(pairs.masks[1])


def turn_image(pairs: Pairs) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(blocks(1)).save(pairs.images[1], exif=exif)


def strange_ids(pairs: Pairs) -> None:
    Image.fromarray(blocks(1) + 3).save(pairs.masks[1])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (to_colours, r"its mask 1\.png holds colours \(RGB\) instead of class ids"),
        (cut_mask, r"its mask 1\.png cannot be read: "),
        (spoil_image, "cannot be read: not an image"),
        (remove_image, "cannot be read: No such file"),
        (other_size, "is 60x40 and its mask 40x60"),
        (strange_ids, r"its mask 1\.png holds the ids 4, 5, 6, which are no class and not ignored"),
    ],
)
def test_faulty_pairs_are_left_out_and_told(pairs: Pairs, spoil: Callable[[Pairs], None], reason: str):
    spoil(pairs)
    checked, faults, _ = check_evaluation_pairs(pairs, 0.2)
    assert len(faults) == 1
    assert faults[0][0] == "images/1.jpg"
    assert re.match(reason, faults[0][1])
    assert names(checked) == [f"images/{i}.jpg" for i in (0, 2, 3, 4, 5)]
    assert len(checked.masks) == 5
    with pytest.raises(UserError, match=r"^1 of 6 images .*--max-broken 0.1: images/1\.jpg: " + reason) as error:
        check_evaluation_pairs(pairs, 0.1)
    assert "\n" not in str(error.value)


def test_turned_images_fit_masks_as_they_are_shown(pairs):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned clockwise
    photo(blocks(1)).rotate(90, expand=True).save(pairs.images[1], exif=exif)
    assert check_evaluation_pairs(pairs, 0.0)[1] == []
    assert check_pairs(splits_of(pairs), 32, 0.0)[1] == []  # from the header alone
    image, ids = PairSet(pairs, eval_transform(MEAN, STD), training=False, seed=0).picture(1)
    assert image.size == (60, 40)
    assert agreement(image, ids) > 0.95
    turn_image(pairs)  # its mask is of the frame as stored
    checked, faults = check_pairs(splits_of(pairs), 32, 0.0)
    told = "images that EXIF turns, with masks of the frame before: the masks were turned too: 1, such as images/1.jpg"
    assert (faults, told in checked.notes) == ([], True)
    image, ids = PairSet(checked.train, eval_transform(MEAN, STD), training=False, seed=0).picture(1)
    assert (image.size, ids.shape) == ((40, 60), (60, 40))
    assert agreement(image, ids) > 0.95


def test_images_turned_upside_down_are_told(pairs):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(pairs.images[2]) as image:
        image.save(pairs.images[2], exif=exif)
    notes = check_pairs(splits_of(pairs), 32, 0.0)[0].notes
    told = "images that EXIF turns or mirrors, with masks taken to be turned alike, which no size tells: 1, such as "
    assert f"{told}{pairs.name(2)}" in notes


def test_cut_images_are_found_where_they_are_scored(pairs):
    splits = splits_of(pairs)
    for i in (0, 5):
        pairs.images[i].write_bytes(pairs.images[i].read_bytes()[:-200])
    checked, faults = check_pairs(splits, 32, 0.5)
    assert [name for name, _ in faults] == ["images/0.jpg", "images/5.jpg"]
    assert all("truncated" in reason for _, reason in faults)
    assert (len(checked.train), checked.test) == (3, None)
    assert PairSet(splits.train, small_transform(), training=True, seed=0)[0, 0][2] == ~0  # broken since it was checked


def splits_of(pairs: Pairs) -> PairSplits:
    return PairSplits(pairs.labels, pairs.subset([0, 1, 2, 3]), pairs.subset([4]), pairs.subset([5]), ["before"])


def with_ids(pairs: Pairs, change: Callable[[np.ndarray], np.ndarray]) -> PairSplits:
    for i, path in enumerate(pairs.masks):
        Image.fromarray(change(blocks(i)).astype(np.uint8)).save(path)
    return splits_of(pairs)


def relabelled(splits: PairSplits, labels: Labels) -> PairSplits:
    parts: dict[str, Any] = {name: replace(getattr(splits, name), labels=labels) for name in ("train", "val", "test")}
    return replace(splits, labels=labels, **parts)


@pytest.mark.parametrize(
    ("change", "rules", "remedy"),
    [
        (
            lambda ids: ids + (ids > 0),
            {},
            r"ids run from 0 to 4: ADE20K .* --reduce-zero-label; or give --ignore-index 4 ",
        ),
        (lambda ids: ids + 1, {}, r"ids run from 1 to 4: ADE20K .* --reduce-zero-label"),
        (lambda ids: np.where(ids == 2, 11, ids), {}, "give --ignore-index 11 if 11 means unlabelled"),
        (lambda ids: np.where(ids == 2, 255, ids), dict(ignore_index=()), "give --ignore-index 255 if 255 means"),
        (lambda ids: [[11, 255]] * 40 + ids[:, :2] * 0, {}, "give --ignore-index 11 255 if 11 means unlabelled"),
        (
            lambda ids: ids * 3,
            {},
            "4 names but ids go up to 9: .* or save 0, 3, 6, 9 as 0 to 3 if they are the 4 classes",
        ),
        (lambda ids: ids + np.arange(60) * 4, {}, r"masks hold \d+ ids without a class: they were blurred, compressed"),
        (lambda ids: ids + 2, dict(reduce_zero_label=True), "one id, 5, is beyond the 4 classes"),
    ],
)
def test_classic_mistakes_get_their_remedy(pairs, change, rules, remedy):
    splits = with_ids(pairs, change)
    splits = relabelled(splits, replace(splits.labels, **rules))
    if change(blocks(0)).shape != (40, 60):
        for path in pairs.images:
            Image.new("RGB", (2, 40)).save(path)
    with pytest.raises(UserError, match=remedy) as error:
        check_pairs(splits, 32, 0.05)
    assert "\n" not in str(error.value)


def test_ade20k_without_reducing_names_one_remedy(pairs):
    labels = Labels(ADE20K.class_names, ADE20K.palette)
    splits = relabelled(with_ids(pairs, lambda ids: ids * 50), labels)
    with pytest.raises(UserError, match=r"ids run from 0 to 150: ADE20K .*: give --reduce-zero-label$"):
        check_pairs(splits, 32, 0.05)
    reduced = relabelled(splits, replace(labels, reduce_zero_label=True))
    checked, faults = check_pairs(reduced, 32, 0.0)
    assert faults == []
    assert checked.notes[1].startswith("no training mask holds wall, building")


def test_many_faults_are_told_in_one_line(tmp_path):
    save_folders(tmp_path, {"training": 15, "validation": 1})
    for path in (tmp_path / "annotations/training").iterdir():
        Image.new("RGB", (60, 40), (1, 2, 3)).save(path)
    splits = open_pairs(str(tmp_path), classes=NAMES)
    with pytest.raises(UserError, match=r"^15 of 16 .*; …\. colours without a class") as error:
        check_pairs(splits, 32, 0.5)
    assert str(error.value).count(".png holds colours (RGB)") == 10
    with pytest.raises(UserError, match=r"no training pair is left: images/training/0\.jpg: its mask"):
        check_pairs(splits, 32, 1.0)


def test_notes_on_small_images_and_absent_classes(pairs):
    seen = []

    def progress(items):
        seen.append(len(items))
        return iter(items)

    splits = with_ids(pairs, lambda ids: np.where(ids == 2, 0, ids))
    checked, faults = check_pairs(splits, 48, 0.0, progress)
    assert faults == []
    assert seen == [6]
    assert [len(part or ()) for part in (checked.train, checked.val, checked.test)] == [4, 1, 1]
    small = ", ".join(f"images/{i}.jpg (60x40)" for i in range(4))
    assert checked.notes == [
        "before",
        f"images smaller than the crop of 48 px, padded with ignored pixels (4): {small}",
        "no training mask holds wood",
    ]
    assert check_pairs(splits, 40, 0.0)[0].notes == ["before", "no training mask holds wood"]


def test_copies_stop_a_run_or_stay_together(tmp_path):
    root = save_folders(tmp_path, {"train": 4, "val": 3})
    (root / "images/val/1.jpg").write_bytes((root / "images/train/3.jpg").read_bytes())
    (root / "images/train/2.jpg").write_bytes((root / "images/train/0.jpg").read_bytes())
    told = "1 photo is both in train and val (train/images/train/3.jpg = val/images/val/1.jpg)"
    with pytest.raises(UserError, match=re.escape(told) + ".*--allow-leaks"):
        open_pairs(str(root), classes=NAMES)
    splits = open_pairs(str(root), classes=NAMES, allow_leaks=True)
    assert (len(splits.train), len(splits.val)) == (4, 3)
    assert any(note.startswith(told) for note in splits.notes)
    assert any(note.startswith("2 photos are copies of another one") for note in splits.notes)
    whole = save_folders(tmp_path / "whole", {"": 12})
    for i in (3, 5, 8):
        with Image.open(whole / "images/1.jpg") as image:
            image.save(whole / f"images/{i}.png")
        (whole / f"images/{i}.jpg").unlink()
    for seed in range(8):
        splits = open_pairs(str(whole), classes=NAMES, seed=seed)
        parts = [
            {Path(name).stem for name in names(part)} & {"1", "3", "5", "8"} for part in (splits.train, splits.val)
        ]
        assert all(len(part) in (0, 4) for part in parts)
        assert sum(map(len, (splits.train, splits.val, splits.test or ()))) == 12


def test_classes_that_differ_between_the_splits(pairs):
    splits = with_ids(pairs, lambda ids: np.where(ids == 2, 0, ids))
    for mask, old, new in ((splits.val.masks[0], 0, 2), (pairs.masks[5], 3, 0)):
        ids = np.asarray(Image.open(mask))
        Image.fromarray(np.where(ids == old, new, ids)).save(mask)
    notes = check_pairs(splits, 32, 0.0)[0].notes
    assert notes[1:] == [
        "no training mask holds wood",
        "no validation mask holds ground",
        "validation masks with classes that no training mask holds: wood (1)",
        "no test mask holds wall",
    ]


def test_masks_of_0_and_255_hold_two_classes(pairs):
    splits = with_ids(pairs, lambda ids: (ids > 1) * 255)
    two = relabelled(splits, Labels(("other", "road"), ((0, 0, 0), (9, 9, 9))))
    checked = check_pairs(two, 32, 0.0)[0]
    assert "the masks hold only 0 and 255: 255 is read as road" in checked.notes
    assert not any("no training mask holds" in note for note in checked.notes)
    assert [set(pixels) for pixels in checked.pixels["val"]] == [{0, 1}]
    for part in (checked, checked.train, checked.val):
        assert part.labels(np.array([0, 255, 0], np.uint8)).tolist() == [0, 1, 0]
    assert check_evaluation_pairs(two.val, 0.0)[0].labels.binary
    three = relabelled(splits, Labels(("other", "road", "car"), ((0, 0, 0), (9, 9, 9), (5, 5, 5))))
    notes = check_pairs(three, 32, 0.0)[0].notes
    assert "the masks hold only 0 and 255, and 255 is ignored: if it is a class, save it as 1" in notes


# ---- transforms


def agreement(image: Image.Image | np.ndarray, ids: np.ndarray) -> float:
    """Fraction of the pixels away from borders whose class is that of the nearest colour."""
    pixels = np.asarray(image).astype(float)
    table = np.concatenate([COLOURS, [UNLABELLED]]).astype(float)
    nearest = np.linalg.norm(pixels[:, :, None] - table, axis=-1).argmin(-1)
    nearest[nearest == len(COLOURS)] = IGNORE
    inner = np.ones(ids.shape, bool)
    for axis in (0, 1):
        for shift in (-3, -2, -1, 1, 2, 3):
            inner &= np.roll(ids, shift, axis) == ids
    inner[:3] = inner[-3:] = inner[:, :3] = inner[:, -3:] = False
    assert inner.mean() > 0.05
    return float((nearest == ids)[inner].mean())


def as_pixels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W), normalised -> (H, W, 3), 0 to 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((image * std + mean) * 255).round().clamp(0, 255).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("resize", [None, 80])
@pytest.mark.parametrize(("scale", "crop"), [((1.0, 1.0), 64), ((0.5, 2.0), 64), ((0.3, 0.6), 96), ((2.0, 3.0), 48)])
def test_image_and_mask_stay_aligned(resize, scale, crop):
    transform = flat(crop, resize, scale, hflip=0.5)
    torch.manual_seed(0)
    for seed in range(6):
        ids = blocks(seed, (160, 110), 16)
        ids[:16, :32] = IGNORE
        image, mask = transform(photo(ids), tv_tensors.Mask(torch.from_numpy(ids)))
        assert (image.shape, image.dtype) == ((3, crop, crop), torch.float32)
        assert (mask.shape, mask.dtype) == ((crop, crop), torch.int64)
        assert type(image) is type(mask) is torch.Tensor
        found = mask.numpy()
        padded = (image.abs() < 1e-6).all(0).numpy()  # the mean colour
        assert (found[padded] == IGNORE).all()
        found = np.where(padded, 254, found)
        pixels = np.where(padded[..., None], 0, as_pixels(image))
        if (found != 254).mean() > 0.5:
            outside = found == 254
            assert agreement(np.where(outside[..., None], COLOURS[0], pixels), np.where(outside, 0, found)) > 0.995


def test_scaled_crop_equals_resizing_then_cropping():
    ids = blocks(0, (97, 61), 7)
    noise = np.random.default_rng(0).integers(0, 256, (61, 97, 3), np.uint8)
    image, mask = Image.fromarray(noise), tv_tensors.Mask(torch.from_numpy(ids))
    for seed, factor in enumerate((0.4, 0.77, 1.0, 1.6, 2.3)):
        torch.manual_seed(seed)
        crop = ScaledCrop(40, None, (factor, factor), 1.0)
        params = crop.make_params([image, mask])
        size = (round(97 * factor), round(61 * factor))
        left, upper = (round(b * s / w) for b, s, w in zip(params["box"], size, (97, 61), strict=False))
        region = (left, upper, left + params["size"][0], upper + params["size"][1])
        assert params["size"] == (min(size[0], 40), min(size[1], 40))
        whole = image.resize(size, Image.Resampling.BILINEAR).crop(region)
        difference = np.asarray(whole).astype(int) - np.asarray(crop.transform(image, params))
        assert np.abs(difference).max() <= 1
        nearest = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST).crop(region)
        assert (np.asarray(nearest) == crop.transform(mask, params).numpy()).mean() > 0.995


@pytest.mark.slow
def test_crops_cover_the_whole_range():
    ids = np.arange(100, dtype=np.uint8)[None].repeat(50, 0)
    transform = flat(20, None, (1.0, 1.0))
    torch.manual_seed(0)
    mask = tv_tensors.Mask(torch.from_numpy(ids))
    lefts = {int(transform(Image.new("RGB", (100, 50)), mask)[1][0, 0]) for _ in range(600)}
    assert min(lefts) == 0
    assert max(lefts) == 80
    assert len(lefts) > 70


@pytest.mark.parametrize(("limit", "least", "most"), [(0.75, 0.98, 1.0), (1.0, 0.3, 0.7)])
def test_one_class_does_not_cover_a_crop(limit, least, most):
    ids = np.zeros((100, 60), np.uint8)
    ids[:, 30:] = 1  # 15 of 31 positions of a crop are balanced enough
    ids[:10] = IGNORE  # ignored in both counts
    transform = flat(30, None, (1.0, 1.0), largest_share=limit)
    torch.manual_seed(0)
    kept = []
    for _ in range(100):
        mask = transform(photo(ids), tv_tensors.Mask(torch.from_numpy(ids)))[1]
        counts = torch.bincount(mask[mask != IGNORE], minlength=2)
        kept.append(bool(counts.max() <= 0.75 * counts.sum()))
    assert least <= np.mean(kept) <= most


def test_one_class_everywhere_still_gives_a_crop():
    for value in (0, IGNORE):
        mask = tv_tensors.Mask(torch.full((50, 50), value, dtype=torch.uint8))
        transform = flat(30, None, (0.5, 2.0), largest_share=0.75)
        assert (transform(Image.new("RGB", (50, 50)), mask)[1] == value).sum() > 0


def test_padding_is_ignored_and_of_mean_colour():
    ids = np.ones((20, 30), np.uint8)
    torch.manual_seed(0)
    transform = flat(64, None, (1.0, 1.0), photometric=True)
    image, mask = transform(Image.new("RGB", (30, 20), "white"), tv_tensors.Mask(torch.from_numpy(ids)))
    assert int((mask == 1).sum()) == 600
    assert (mask[mask != 1] == IGNORE).all()
    assert (image[:, mask == IGNORE] == 0).all()
    assert (image[:, mask == 1] != 0).all()


def test_photometric_changes_colours_alone():
    ids = blocks(0)
    changed = flat(32, None, (1.0, 1.0), photometric=True)
    plain = flat(32, None, (1.0, 1.0))
    differ = 0
    for seed in range(8):
        results = []
        for transform in (changed, plain):
            torch.manual_seed(seed)
            results.append(transform(photo(ids), tv_tensors.Mask(torch.from_numpy(ids))))
        assert torch.equal(results[0][1], results[1][1])
        differ += not torch.equal(results[0][0], results[1][0])
    assert differ >= 6


def test_evaluation_sees_the_whole_image(pairs):
    plain = PairSet(pairs, eval_transform(MEAN, STD), training=False, seed=0)
    image, mask, position = plain[0, 2]
    assert position == 2
    assert (image.shape, mask.shape, mask.dtype) == ((3, 40, 60), (40, 60), torch.int64)
    assert np.array_equal(mask.numpy(), blocks(2))
    picture, ids = plain.picture(2)
    assert np.array_equal(as_pixels(image), np.asarray(picture))
    assert ids.dtype == np.uint8
    assert agreement(picture, ids) > 0.95
    resized = PairSet(pairs, eval_transform(MEAN, STD, resize=20), training=False, seed=0)[0, 2]
    assert (resized[0].shape, resized[1].shape) == ((3, 20, 30), (40, 60))


# ---- loaders


def small_transform():
    return train_transform(SegmentationRecipe(image_size=32), MEAN, STD)


def test_batches_depend_on_seed_epoch_and_position_alone(pairs):
    def epoch(number: int, workers: int, seed: int = 0) -> list[torch.Tensor]:
        sampler = StepSampler(len(pairs), 2, seed=seed)
        loader = train_pairs_loader(pairs, small_transform(), sampler, workers, seed)
        loader.batch_sampler.epoch = number  # type: ignore[union-attr]
        return [torch.cat(column) for column in zip(*loader, strict=True)]

    before = torch.get_rng_state()
    first = epoch(0, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert [tuple(part.shape) for part in first] == [(6, 3, 32, 32), (6, 32, 32), (6,)]
    assert sorted(first[2].tolist()) == list(range(6))
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0, workers=2), strict=True))
    assert not torch.equal(first[0], epoch(1, workers=0)[0])
    assert not torch.equal(first[0], epoch(0, workers=0, seed=1)[0])


def test_processes_share_the_batches(pairs):
    def first(*sampling: int) -> list[torch.Tensor]:
        return next(iter(train_pairs_loader(pairs, small_transform(), StepSampler(6, *sampling, seed=0), 0)))

    whole, parts = first(4), [first(2, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    batches: list = [[(7, 3)], [(7, 3), (8, 3)]]
    mine = list(train_pairs_loader(pairs, small_transform(), batches, 0))  # type: ignore[arg-type]
    assert [batch[2].tolist() for batch in mine] == [[3], [3, 3]]
    assert torch.equal(mine[0][0][0], mine[1][0][0])
    assert not torch.equal(mine[1][0][0], mine[1][0][1])


def test_evaluation_shares_images_out(pairs):
    Image.new("RGB", (50, 30)).save(pairs.images[1])
    Image.new("L", (50, 30)).save(pairs.masks[1])
    found = []
    for rank in range(4):
        loader = eval_pairs_loader(pairs, eval_transform(MEAN, STD), 0, rank, 4)
        assert len(loader) == (2 if rank < 2 else 1)
        found.append([(int(position), tuple(image.shape), tuple(ids.shape)) for image, ids, position in loader])
    assert [[item[0] for item in part] for part in found] == [[0, 4], [1, 5], [2], [3]]
    assert found[1][0][1:] == ((1, 3, 30, 50), (1, 30, 50))


def test_pairs_that_break_later_are_replaced_in_training_alone(pairs):
    pairs.images[1].unlink()
    pairs.masks[2].write_bytes(b"broken")
    other_size(replace(pairs, masks=pairs.masks[2:]))  # of pair 3
    training = PairSet(pairs, small_transform(), training=True, seed=0)
    for i in (1, 2, 3):
        image, _, position = training[0, i]
        assert position == ~i
        assert image.shape == (3, 32, 32)
    assert training[0, 4][2] == 4
    scoring = PairSet(pairs, eval_transform(MEAN, STD), training=False, seed=0)
    for i, words in ((1, "No such file"), (2, "not an image"), (3, "is 60x40, its mask 40x60")):
        with pytest.raises(BrokenImageError, match=rf"^images/{i}\.jpg: .*{words}"):
            scoring[0, i]
    Image.fromarray(blocks(0) + 60).save(pairs.masks[0])
    with pytest.raises(BrokenImageError, match=r"images/0\.jpg: holds the ids 60, 61"):
        scoring[0, 0]
    for path in pairs.images[2:]:
        path.unlink()
    with pytest.raises(BrokenImageError, match="no pair of the set can be read"):
        training[0, 0]


# ---- real data, and the picture in the documentation


@pytest.mark.slow
def test_camvid(shared_data):
    place = str(shared_data / "camvid")
    splits = open_pairs(place, classes=CAMVID.class_names, ignore_index=(11,))
    checked, faults = check_pairs(splits, 256, 0.0)
    assert faults == []
    assert checked.notes == []
    assert [len(part or ()) for part in (checked.train, checked.val, checked.test)] == [367, 101, 233]
    assert len(checked.labels.class_names) == 11
    assert checked.labels.palette == CAMVID.palette
    assert len(open_evaluation_pairs(place, classes=CAMVID.class_names, ignore_index=(11,))) == 233
    transform = train_transform(SegmentationRecipe(image_size=240), MEAN, STD)
    images, ids, _ = next(
        iter(train_pairs_loader(checked.train, transform, StepSampler(len(checked.train), 8, seed=0), 0))
    )
    assert images.shape == (8, 3, 240, 240)
    assert set(ids.unique().tolist()) <= {*range(11), IGNORE}
    remedy = r"ids run from 0 to 11: ADE20K .*; or give --ignore-index 11 if 11 means unlabelled"
    with pytest.raises(UserError, match=remedy):
        check_pairs(open_pairs(place, classes=CAMVID.class_names), 256, 0.05)


def test_picture_shows_what_the_function_answers():
    script = Path(__file__).parents[1] / "docs" / "make_label_mapping.py"
    drawing = runpy.run_path(str(script))
    shown = {(row.title, i): drawing["answer"](row.mapped, i) for row in drawing["ROWS"] for i in row.stored if i >= 0}
    assert shown["ADE20K", 150] == 149
    assert shown["Mistake: ids - 1 in 8 bits", 255] == 254
    assert shown["Mistake: ignoring 0 without a shift", 150] is None
    drawn = [text.get_text() for text in drawing["draw"]().axes[0].texts]
    assert [title for title in drawn if title in {row.title for row in drawing["ROWS"]}] == [
        row.title for row in drawing["ROWS"]
    ]
    assert script.with_name("label_mapping.svg").is_file()


def test_a_mask_export_of_cvat_in_the_only_folder(tmp_path):
    root = tmp_path / "unpacked" / "export"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        photo(blocks(1)).save(root / "JPEGImages" / f"{i}.jpg")
        mask = np.zeros((8, 8, 3), np.uint8)
        mask[4:] = (250, 50, 83)
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{i}.png")
    (root / "ImageSets" / "Segmentation" / "default.txt").write_bytes(b"\r\n".join(b"%d" % i for i in range(8)))
    (root / "labelmap.txt").write_bytes(b"# label:color_rgb:parts:actions\r\nbackground:0,0,0::\r\ncar:250,50,83::\r\n")
    splits = open_pairs(str(tmp_path / "unpacked"))
    assert splits.labels.class_names == ("background", "car")
    assert sum(map(len, (splits.train, splits.val, splits.test or ()))) == 8


def test_class_names_beside_the_masks(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(8):
            Image.fromarray(np.full((8, 8), i % 2, np.uint8)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nground\r\n")
    splits = open_pairs(str(tmp_path), allow_leaks=True)
    assert splits.labels.class_names == ("sky", "ground")
    assert "the classes are those of classes.txt" in splits.notes
