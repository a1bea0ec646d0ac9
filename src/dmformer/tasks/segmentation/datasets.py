"""Images with id masks: the supported folder layouts, and the pairing of images with masks."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...data.palette import default_palette
from ...utils.errors import UserError
from ..folders import (
    NAMES_FILE,
    SPLITS,
    Fault,
    existing_folder,
    first_faults,
    first_few,
    given_names,
    image_files,
    names_in,
    relative_name,
    share_out,
    split_folder,
    voc_lists,
    voc_root,
    walk,
)
from .label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC, LabelSet
from .masks import IGNORE, map_labels, read_mask

MASK_FOLDERS = ("annotations", "masks", "labels")


@dataclass(frozen=True)
class Labels:
    """The classes, and how masks store them; a call maps stored ids to training ids (see `map_labels`)."""

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    reduce_zero_label: bool = False
    ignore_index: tuple[int, ...] = (IGNORE,)
    table: dict[int, int] | None = None

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return map_labels(ids, len(self.class_names), self.reduce_zero_label, self.ignore_index, self.table)


@dataclass(frozen=True)
class Pairs:
    """Images and their masks; display names start at the folder `root`.

    `unpaired` lists images that should be here but lack a mask, or the other way round.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    labels: Labels
    root: Path = Path()
    unpaired: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Display name of image i: its path below the data folder."""
        return relative_name(self.images[i], self.root)

    def subset(self, indices: Iterable[int]) -> "Pairs":
        """Some of the pairs, in the given order, with nothing unpaired."""
        chosen = [int(i) for i in indices]
        images, masks = (tuple(paths[i] for i in chosen) for paths in (self.images, self.masks))
        return replace(self, images=images, masks=masks, unpaired=())


@dataclass(frozen=True)
class PairSplits:
    """A data set of images with masks, ready to train on."""

    labels: Labels
    train: Pairs
    val: Pairs
    test: Pairs | None
    notes: list[str]


def open_pairs(
    data: str,
    masks: str | None = None,
    classes: Sequence[str] = (),
    reduce_zero_label: bool = False,
    ignore_index: Sequence[int] = (IGNORE,),
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
) -> PairSplits:
    """Find images and their masks; the layout is recognised by the folders in `data`.

    - `images/` and `annotations/` (or `masks/`, `labels/`), with `training/`, `validation/` and perhaps `test/` in both
      (ADE20K's SceneParsing, CamVid) or without;
    - `leftImg8bit/` and `gtFine/` (Cityscapes): masks of training ids if they exist, else labelIds;
    - `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/` (Pascal VOC), also below `VOCdevkit/VOC2012/`;
    - with `masks`: any folder of images and any folder of masks.

    A mask has the name of its image except for the suffix, and the same relative path. Data without a validation split
    is split at random by `seed`.

    Args:
        data: The folder.
        masks: Folder of the masks, if `data` is a folder of images.
        classes: Names in the order of the ids, or the path of one text file with one name per line; needed if neither
            the layout nor an objectInfo150.txt gives them.
        reduce_zero_label, ignore_index: How masks store the classes, see `map_labels`.
        val_share, test_share: Fractions to split off if the data is not split.
        seed: Seed of that split.

    Raises:
        UserError: Nothing there, unknown layout, no masks, no names, or too few images to split.
    """
    found = _find(data, masks)
    labels = _labels(found, data, classes, reduce_zero_label, ignore_index)
    parts = {split: _as_pairs(found, split, labels) for split in found.parts}
    whole = parts.get("train") or parts.get("")
    if whole is None:
        raise UserError(f"{data} has {' and '.join(parts)} but no train: put the images to train on there.")
    train, val, test = whole, parts.get("val"), parts.get("test")
    if val is None:
        train, val, rest = _split_off(whole, data, val_share, 0.0 if test else test_share, seed)
        test = test or rest
    return PairSplits(labels, train, val, test, found.notes)


def open_evaluation_pairs(
    data: str,
    masks: str | None = None,
    classes: Sequence[str] = (),
    reduce_zero_label: bool = False,
    ignore_index: Sequence[int] = (IGNORE,),
) -> Pairs:
    """Open one set of pairs for scoring: the test split of `data`, else its validation split, else all of it.

    Arguments and errors are the same as for `open_pairs`.
    """
    found = _find(data, masks)
    labels = _labels(found, data, classes, reduce_zero_label, ignore_index)
    return _as_pairs(found, next(split for split in ("test", "val", "train", "") if split in found.parts), labels)


def class_pixels(pairs: Pairs) -> np.ndarray:
    """Number of pixels of each class in the masks, (K)."""
    K = len(pairs.labels.class_names)

    def count(mask: Path) -> np.ndarray:
        return np.bincount(pairs.labels(read_mask(mask)).ravel(), minlength=IGNORE + 1)[:K]

    with ThreadPoolExecutor() as threads:
        return np.sum(list(threads.map(count, pairs.masks)), axis=0)


# ---- finding


class _Part(NamedTuple):
    pairs: list[tuple[Path, Path]]
    unpaired: list[Fault]


@dataclass
class _Found:
    """Content of a folder: its parts by split, "" if it is not split, and what its layout says about the classes."""

    root: Path
    parts: dict[str, _Part]
    notes: list[str] = field(default_factory=list)
    kind: str = ""
    known: LabelSet | None = None
    table: dict[int, int] | None = None


def _find(data: str, masks: str | None) -> _Found:
    root = existing_folder(data, "a folder of images and masks")
    if masks is not None:
        images = root / "images" if (root / "images").is_dir() else root
        folder = existing_folder(masks, "the folder of masks")
        if images.samefile(folder):
            raise UserError(f"{folder} is named for images and for masks: put the masks in a folder of their own.")
        found = _open_folders(root, images, folder)
    elif (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir():
        found = _open_cityscapes(root)
    elif voc := voc_root(root, "SegmentationClass"):
        found = _open_voc(voc)
    elif (root / "images").is_dir():
        folders = [root / name for name in MASK_FOLDERS if (root / name).is_dir()]
        if not folders:
            raise UserError(f"{root} has images/ but no annotations/, masks/ or labels/: name the masks with --masks.")
        found = _open_folders(root, root / "images", folders[0])
    else:
        raise UserError(
            f"{root} has no layout that is known: images/ and annotations/ (ADE20K), leftImg8bit/ and gtFine/ "
            "(Cityscapes), JPEGImages/ and SegmentationClass/ (Pascal VOC); or name the folder of masks with --masks."
        )
    for split, part in found.parts.items():
        if not part.pairs:
            where = f"{root} has no {split or 'image'}{' image' if split else ''} with a mask"
            raise UserError(f"{where}: {first_faults(part.unpaired, 3) or 'there are no images.'}")
    return found


def _open_folders(root: Path, images: Path, masks: Path) -> _Found:
    found = _Found(root, {}, kind="folders")
    folders = {split: folder for split in SPLITS if (folder := split_folder(images, split))}
    if not folders:
        found.parts[""] = _match(found, images, masks)
    for split, folder in folders.items():
        partner = split_folder(masks, split)
        if partner is not None and any(walk(partner)):
            found.parts[split] = _match(found, folder, partner)
        elif split == "train":
            raise UserError(f"{folder} has no masks: put them in {masks / folder.name}.")
        else:
            found.notes.append(f"{relative_name(folder, root)} has no masks in {relative_name(masks, root)}: left out")
    if not found.parts:
        raise UserError(f"{masks} holds no masks for {' or '.join(map(str, folders.values()))}.")
    return found


def _open_cityscapes(root: Path) -> _Found:
    images, masks = root / "leftImg8bit", root / "gtFine"
    made = any(path.stem.endswith("_gtFine_labelTrainIds") for path in walk(masks))
    ending = "_gtFine_labelTrainIds" if made else "_gtFine_labelIds"
    table = None if made else CITYSCAPES_TRAIN_IDS
    found = _Found(root, {}, kind="Cityscapes", known=CITYSCAPES, table=table)
    for split in ("train", "val"):
        if (images / split).is_dir():
            found.parts[split] = _match(found, images / split, masks / split, "_leftImg8bit", ending)
    if (images / "test").is_dir():
        found.notes.append("the masks of Cityscapes' test images are not published: left out, scores are of val")
    if not found.parts:
        raise UserError(f"{images} holds neither train/ nor val/: unpack leftImg8bit_trainvaltest.zip there.")
    return found


def _open_voc(root: Path) -> _Found:
    names = voc_lists(root / "ImageSets" / "Segmentation")
    images, masks = image_files(root / "JPEGImages"), image_files(root / "SegmentationClass")
    found = _Found(root, {}, kind="Pascal VOC", known=VOC)
    if "test" in names and not any(name in masks for name in names["test"]):
        del names["test"]
        found.notes.append("SegmentationClass holds no masks of the images listed in test.txt: left out")
    if not names:
        raise UserError(f"{root} has no ImageSets/Segmentation/train.txt and val.txt: they say which images to use.")
    for split, listed in names.items():
        found.parts[split] = _pair(listed, images, masks, root, root / "JPEGImages", root / "SegmentationClass")
    return found


def _match(found: _Found, images: Path, masks: Path, image_ending: str = "", mask_ending: str = "") -> _Part:
    """Pair the files of two folders by name, ignoring the endings of their stems; add a note about unpaired masks."""
    inner = images / os.path.relpath(masks, images)  # masks may be inside the image folder
    of_images = {key: path for key, path in image_files(images, image_ending).items() if not path.is_relative_to(inner)}
    of_masks = image_files(masks, mask_ending)
    alone = [relative_name(of_masks[key], masks) for key in of_masks if key not in of_images]
    if alone:
        found.notes.append(f"masks without an image in {images}, left out ({len(alone)}): {first_few(alone, 5)}")
    return _pair(list(of_images), of_images, of_masks, found.root, images, masks)


def _pair(
    keys: Iterable[str],
    images: dict[str, Path],
    masks: dict[str, Path],
    root: Path,
    image_folder: Path,
    mask_folder: Path,
) -> _Part:
    part = _Part([], [])
    for key in keys:
        if key not in images:
            part.unpaired.append((key, f"there is no such image in {relative_name(image_folder, root)}"))
        elif key not in masks:
            name = relative_name(images[key], root)
            part.unpaired.append((name, f"has no mask in {relative_name(mask_folder, root)}"))
        else:
            part.pairs.append((images[key], masks[key]))
    return part


def _as_pairs(found: _Found, split: str, labels: Labels) -> Pairs:
    part = found.parts[split]
    images, masks = (tuple(paths) for paths in zip(*part.pairs, strict=True))
    return Pairs(images, masks, labels, found.root, tuple(part.unpaired))


def _split_off(
    pairs: Pairs, data: str, val_share: float, test_share: float, seed: int
) -> tuple[Pairs, Pairs, Pairs | None]:
    train, val, test = share_out(f"{data}: {len(pairs)} images with masks", len(pairs), val_share, test_share, seed)
    rest = replace(pairs.subset(train), unpaired=pairs.unpaired)
    return rest, pairs.subset(val), pairs.subset(test) if len(test) else None


# ---- classes


def _labels(
    found: _Found, data: str, classes: Sequence[str], reduce_zero_label: bool, ignore_index: Sequence[int]
) -> Labels:
    if reduce_zero_label and (found.kind == "Cityscapes" or (found.known and not classes)):
        raise UserError(f"{data}: {found.kind}'s classes begin at id 0: leave out --reduce-zero-label.")
    info = found.root / NAMES_FILE
    if classes:
        names = given_names(classes)
    elif found.known is not None:
        names = found.known.class_names
    elif info.is_file():
        names = names_in(info)
    else:
        raise UserError(
            f"{data} does not say what its classes are called: name them in the order of their ids with --classes, "
            "or give there a text file with a name a line."
        )
    if len(names) == 1:
        raise UserError(f"there is one class, '{names[0]}': it takes two or more, e.g. background and {names[0]}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"the class {twice[0]} is named twice: every class needs a name of its own.")
    return Labels(names, _palette(names, found.kind), reduce_zero_label, tuple(ignore_index), found.table)


def _palette(names: tuple[str, ...], kind: str) -> tuple[tuple[int, int, int], ...]:
    for known in (CAMVID, CITYSCAPES, VOC, ADE20K):
        if set(names) == set(known.class_names):
            colours = dict(zip(known.class_names, known.palette, strict=True))
            return tuple(colours[name] for name in names)
    if kind == "folders" and len(names) == len(ADE20K.class_names):
        return ADE20K.palette
    return tuple(default_palette(len(names)))
