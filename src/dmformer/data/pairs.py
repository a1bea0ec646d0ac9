"""Images with id masks: which layouts of folders are known, which image belongs to which mask, and what is wrong."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..drawing import default_palette
from ..errors import UserError, first_line
from .decode import SUFFIXES, BrokenImageError, decode
from .label_sets import ADE20K, CAMVID, CITYSCAPES, CITYSCAPES_TRAIN_IDS, VOC, LabelSet
from .masks import IGNORE, StrangeLabelError, map_labels, read_mask
from .readers import SPLITS

MASK_FOLDERS = ("annotations", "masks", "labels")
NAMES_FILE = "objectInfo150.txt"

Fault = tuple[str, str]
"""Name of an image, for people, and what is wrong with it or its mask."""

Progress = Callable[[Iterable], Iterable]


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
    """Images and the mask of each, `root` being the folder that names for people begin at.

    `unpaired` are images that should be here but lack a mask, or the other way round.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    labels: Labels
    root: Path = Path()
    unpaired: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Name of image i, for people: its path below the data folder."""
        return relative_name(self.images[i], self.root)

    def subset(self, indices: Iterable[int]) -> "Pairs":
        """Some of the pairs, in the order given, and nothing unpaired."""
        chosen = [int(i) for i in indices]
        images, masks = (tuple(paths[i] for i in chosen) for paths in (self.images, self.masks))
        return replace(self, images=images, masks=masks, unpaired=())


@dataclass(frozen=True)
class PairSplits:
    """A set of images with masks, ready to train on."""

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
    """Find images and their masks; the layout is told by the folders in `data`.

    - `images/` and `annotations/` (or `masks/`, `labels/`), with `training/`, `validation/` and perhaps `test/` in both
      (ADE20K's SceneParsing, CamVid) or without;
    - `leftImg8bit/` and `gtFine/` (Cityscapes): masks of training ids where they were made, else of labelIds;
    - `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/` (Pascal VOC), also below `VOCdevkit/VOC2012/`;
    - with `masks`: any folder of images and any folder of masks.

    A mask has its image's name, but for the suffix, in the same place. What comes without a validation split is split
    at random by `seed`.

    Args:
        data: The folder.
        masks: Folder of the masks, where `data` is a folder of images.
        classes: Names in the order of the ids, or one path of a text file of them, a name a line; needed where neither
            the layout nor an objectInfo150.txt gives them.
        reduce_zero_label, ignore_index: How masks store the classes, see `map_labels`.
        val_share, test_share: Shares that are split off where the data is not split.
        seed: Of that split.

    Raises:
        UserError: Nothing there, no known layout, no masks, no names, or too few images to split.
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
    """Open one set of pairs to be scored: the test split of `data`, else its validation split, else all of it.

    Arguments and errors are those of `open_pairs`.
    """
    found = _find(data, masks)
    labels = _labels(found, data, classes, reduce_zero_label, ignore_index)
    return _as_pairs(found, next(split for split in ("test", "val", "train", "") if split in found.parts), labels)


def check_pairs(
    splits: PairSplits, crop: int, max_broken: float, progress: Progress = iter
) -> tuple[PairSplits, list[Fault]]:
    """Look at every pair before training: can both be read, are they of one size, is every id a class or ignored.

    Images and masks are read whole. Faulty pairs are left out, and a test split without a labelled pixel. Notes are
    added about images smaller than the crop, about classes that no training mask holds, and about what the faults look
    like.

    Args:
        splits: What was opened.
        crop: Side in pixels of the crops that are trained on.
        max_broken: Share of faulty pairs that is put up with.
        progress: Wraps a list with as many items as there are pairs, to show how far it is.

    Returns:
        The splits without the faulty pairs, and these: name and reason.

    Raises:
        UserError: More faulty pairs than that, with the first of them and what may mend it; or none left.
    """
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    checked, faults, looks, hints = _check(parts, max_broken, progress)
    for part, name in zip(checked, ("training", "validation"), strict=False):
        if not len(part):
            raise UserError(f"no {name} pair is left: {first_faults(faults, 5)}")
    for part, seen, name in zip(checked, looks, ("training", "validation"), strict=False):
        if not _labelled(part, seen):
            raise UserError(f"no {name} mask has a labelled pixel: all ids are ignored.")
    test = checked[2] if len(checked) > 2 and len(checked[2]) else None
    notes = [*splits.notes, *hints, *_notes(splits.train, looks[0], crop)]
    if test is not None and not _labelled(test, looks[2]):
        test = None
        notes.append("no test mask has a labelled pixel: the report is about validation")
    return replace(splits, train=checked[0], val=checked[1], test=test, notes=notes), faults


def check_evaluation_pairs(
    pairs: Pairs, max_broken: float, progress: Progress = iter
) -> tuple[Pairs, list[Fault], list[str]]:
    """Look at every pair before it is scored, as `check_pairs` does.

    Returns:
        The pairs without the faulty ones, these, and notes about what they look like.

    Raises:
        UserError: More than the share `max_broken` is faulty, or none is left, or none has a labelled pixel.
    """
    (checked,), faults, (seen,), hints = _check([pairs], max_broken, progress)
    if not len(checked):
        raise UserError(f"no pair is left to be scored: {first_faults(faults, 5)}")
    if not _labelled(checked, seen):
        raise UserError("no mask has a labelled pixel to be scored: all ids are ignored.")
    return checked, faults, hints


def class_pixels(pairs: Pairs) -> np.ndarray:
    """Pixels of each class in the masks, (K)."""
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
    """What lies in a folder: its parts by split, "" where it is not split, and what its layout tells of the classes."""

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


def existing_folder(path: str, what: str) -> Path:
    """A folder that the user named, `what` in words.

    Raises:
        UserError: It does not exist, is a file, or cannot be read.
    """
    folder = Path(path)
    if not folder.exists():
        raise UserError(f"{folder} does not exist: give {what}.")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: give {what}.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"{folder} cannot be read: check its permissions.")
    return folder


def _open_folders(root: Path, images: Path, masks: Path) -> _Found:
    found = _Found(root, {}, kind="folders")
    folders = {split: folder for split in SPLITS if (folder := split_folder(images, split))}
    if not folders:
        found.parts[""] = _match(found, images, masks)
    for split, folder in folders.items():
        partner = split_folder(masks, split)
        if partner is not None and any(_walk(partner)):
            found.parts[split] = _match(found, folder, partner)
        elif split == "train":
            raise UserError(f"{folder} has no masks: put them in {masks / folder.name}.")
        else:
            found.notes.append(f"{relative_name(folder, root)} has no masks in {relative_name(masks, root)}: left out")
    if not found.parts:
        raise UserError(f"{masks} holds no masks for {' or '.join(map(str, folders.values()))}.")
    return found


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split in a folder, under any of its names."""
    return next((folder / name for name in SPLITS[split] if (folder / name).is_dir()), None)


def _open_cityscapes(root: Path) -> _Found:
    images, masks = root / "leftImg8bit", root / "gtFine"
    made = any(path.stem.endswith("_gtFine_labelTrainIds") for path in _walk(masks))
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


def voc_root(root: Path, labels: str) -> Path | None:
    """The folder of Pascal VOC with such a folder of labels, in or below a folder: of several years the last."""
    below = sorted([*root.glob("VOC20??"), *root.glob("VOCdevkit/VOC20??")], key=lambda path: path.name, reverse=True)
    is_voc = (path for path in (root, *below) if (path / "JPEGImages").is_dir() and (path / labels).is_dir())
    return next(is_voc, None)


def voc_lists(folder: Path) -> dict[str, list[str]]:
    """Names of images by split from VOC's train.txt, val.txt, trainval.txt and test.txt, "" for trainval alone."""
    lists = {path.stem: path for path in folder.glob("*.txt")}
    splits = ("train", "val", "trainval", "test")
    names = {name: [_without_suffix(line) for line in lines_of(lists[name])] for name in splits if name in lists}
    if "trainval" in names and not {"train", "val"} <= set(names):
        held = {*names.get("train", ()), *names.get("val", ())}
        rest = [name for name in names.pop("trainval") if name not in held]
        names["val" if "train" in names else "train" if "val" in names else ""] = rest
    names.pop("trainval", None)
    return names


def lines_of(path: Path) -> list[str]:
    """Lines of a text file that lists something, without empty ones; UserError where it is no such file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text: {first_line(error)}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name


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
    """Pair the files of two folders by name, without the endings of their stems; add a note on masks left over."""
    inner = images / os.path.relpath(masks, images)  # masks may lie below the images
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


def image_files(folder: Path, ending: str = "") -> dict[str, Path]:
    """Image files below a folder, whose stems end so, by their path in it without that ending, in order."""
    files: dict[str, Path] = {}
    for path in sorted(_walk(folder)):
        if path.stem.endswith(ending):
            key = path.relative_to(folder).with_name(path.stem.removesuffix(ending)).as_posix()
            if key in files:
                names = f"{relative_name(files[key], folder)} and {relative_name(path, folder)}"
                raise UserError(f"{folder}: {names} differ in their suffix alone: rename one, or take it away.")
            files[key] = path
    return files


def _walk(folder: Path) -> Iterable[Path]:
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(place, name)


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


def share_out(
    what: str, count: int, val_share: float, test_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share `count` images, called `what` in the error, out at random: those to train on, to validate and to test."""
    order = np.random.default_rng(seed).permutation(count)
    test_size, val_size = (round(share * count) for share in (test_share, val_share))
    if not val_size or count <= test_size + val_size:
        raise UserError(
            f"{what} are too few to split off validation images: "
            "add some, give a larger --val-share, or make folders training and validation."
        )
    test, val, train = (np.sort(part) for part in np.split(order, [test_size, test_size + val_size]))
    return train, val, test


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
        names = _names_in(info)
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


def given_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as the user gave them: themselves, or one path of a text file with a name a line."""
    if len(classes) == 1 and Path(classes[0]).is_file():
        return _names_in(Path(classes[0]))
    if len(classes) == 1 and classes[0].lower().endswith(".txt"):
        raise UserError(f"{classes[0]} does not exist: give a text file with the name of a class a line.")
    return tuple(name.strip() for name in classes)


def _names_in(path: Path) -> tuple[str, ...]:
    """Names in a text file, one a line, or in the last column of SceneParsing's objectInfo150.txt."""
    lines = lines_of(path)
    if lines and re.match(r"idx\b", lines[0], re.IGNORECASE):
        lines = [re.sub(r"^\d+(\s+[\d.]+){3,4}\s+", "", line) for line in lines[1:]]
    if not lines:
        raise UserError(f"{path} is empty: write the name of a class a line.")
    return tuple(lines)


def _palette(names: tuple[str, ...], kind: str) -> tuple[tuple[int, int, int], ...]:
    for known in (CAMVID, CITYSCAPES, VOC, ADE20K):
        if set(names) == set(known.class_names):
            colours = dict(zip(known.class_names, known.palette, strict=True))
            return tuple(colours[name] for name in names)
    if kind == "folders" and len(names) == len(ADE20K.class_names):
        return ADE20K.palette
    return tuple(default_palette(len(names)))


# ---- checking


class _Look(NamedTuple):
    """What one pair is like: why it cannot be used, its width and height, and the ids that its mask stores."""

    reason: str | None
    size: tuple[int, int] = (0, 0)
    stored: tuple[int, ...] = ()
    strange: tuple[int, ...] = ()


def _labelled(pairs: Pairs, seen: Sequence[_Look]) -> bool:
    """Whether any mask that was looked at has a pixel of a class."""
    stored = np.array(sorted({i for look in seen if not look.reason for i in look.stored}), dtype=np.int64)
    return bool((pairs.labels(stored) != IGNORE).any())


def _check(
    parts: Sequence[Pairs], max_broken: float, progress: Progress
) -> tuple[list[Pairs], list[Fault], list[list[_Look]], list[str]]:
    """Look at some parts.

    Returns:
        The parts without faulty pairs, the faults, every look, and hints at what may mend the faults.
    """
    looks = _look_at_all(parts, progress)
    faults, checked = [], []
    for part, seen in zip(parts, looks, strict=True):
        faults += [*part.unpaired, *((part.name(i), look.reason) for i, look in enumerate(seen) if look.reason)]
        checked.append(part.subset(i for i, look in enumerate(seen) if not look.reason))
    total = sum(len(part) + len(part.unpaired) for part in parts)
    hints = _hints([look for seen in looks for look in seen], parts[0].labels)
    if len(faults) > max_broken * total:
        what = f"{len(faults)} of {total} images with their masks cannot be used, more than --max-broken {max_broken:g}"
        raise UserError(". ".join([f"{what}: {first_faults(faults, 10)}", *hints]))
    return checked, faults, looks, hints


def _look_at_all(parts: Sequence[Pairs], progress: Progress) -> list[list[_Look]]:
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        jobs = ((part, i) for part in parts for i in range(len(part)))
        futures = [pool.submit(_look, *job) for job in jobs]
        try:
            looks = iter([future.result() for future in progress(futures)])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [[next(looks) for _ in range(len(part))] for part in parts]


def _look(pairs: Pairs, i: int) -> _Look:
    try:
        with open(pairs.images[i], "rb") as file:
            size = decode(file).size
    except Exception as error:  # decoders raise whatever they like on damaged input
        return _Look(f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}")
    try:
        ids = read_mask(pairs.masks[i])
    except BrokenImageError as error:
        return _Look(f"its mask {pairs.masks[i].name} {_predicate(error)}")
    if ids.shape != size[::-1]:
        return _Look(f"is {size[0]}x{size[1]} and its mask {ids.shape[1]}x{ids.shape[0]}", size)
    stored = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)) if ids.dtype == np.uint8 else np.unique(ids)
    try:
        pairs.labels(stored)
    except StrangeLabelError as error:
        return _Look(f"its mask {pairs.masks[i].name} {error}", size, tuple(stored.tolist()), error.ids)
    return _Look(None, size, tuple(stored.tolist()))


def _predicate(error: BrokenImageError) -> str:
    text = str(error)
    return text if text.startswith(("holds", "is a")) else f"cannot be read: {text}"


def _hints(looks: Sequence[_Look], labels: Labels) -> list[str]:
    """What may mend masks with ids that are no class."""
    strange = sorted({i for look in looks for i in look.strange})
    if not strange:
        return []
    present = {i for look in looks for i in look.stored}
    n, highest = len(labels.class_names), strange[-1]
    ignored = " ".join(map(str, sorted({*strange, *(present & set(labels.ignore_index))})))
    ignore = f"give --ignore-index {ignored} if {highest} means unlabelled"
    if strange == [n] and not labels.reduce_zero_label:
        counted = f"ids run from {0 if 0 in present else 1} to {n}"
        shift = "ADE20K counts from 1 and 0 is unlabelled: give --reduce-zero-label"
        return [f"{counted}: {shift}" if n == len(ADE20K.class_names) else f"{counted}: {shift}; or {ignore}"]
    if len(strange) == 1:
        return [f"one id, {highest}, is beyond the {n} classes: {ignore}"]
    return [f"the class list has {n} names but ids go up to {highest}: name them all with --classes"]


def _notes(pairs: Pairs, looks: Sequence[_Look], crop: int) -> list[str]:
    """Remarks on the training pairs that can be used."""
    used = [(pairs.name(i), look) for i, look in enumerate(looks) if not look.reason]
    sizes = [(name, *look.size) for name, look in used]
    small = [f"{name} ({width}x{height})" for name, width, height in sizes if min(width, height) < crop]
    notes = []
    if small:
        listed = first_few(small, 5)
        what = f"images smaller than the crop of {crop} px, padded with ignored pixels"
        notes.append(f"{what} ({len(small)}): {listed}")
    stored = sorted({i for _, look in used for i in look.stored})
    found = set(pairs.labels(np.array(stored, np.int64)).tolist())
    absent = [name for i, name in enumerate(pairs.labels.class_names) if i not in found]
    binary = stored == [0, IGNORE] and IGNORE in pairs.labels.ignore_index
    if absent:
        too_long = absent == list(pairs.labels.class_names[-len(absent) :]) and not binary
        hint = f": the class list has {len(pairs.labels.class_names)} names, is it too long?" if too_long else ""
        notes.append(f"no training mask holds {first_few(absent, 10)}{hint}")
    if binary:
        notes.append("the masks hold 0 and 255 alone, and 255 is ignored: if it is a class, save it as 1")
    return notes


# ---- words


def first_faults(faults: Sequence[Fault], most: int) -> str:
    """The first faults in one line."""
    return "; ".join(f"{name}: {reason}" for name, reason in faults[:most]) + ("; …" if len(faults) > most else "")


def first_few(names: Sequence[str], most: int) -> str:
    """The first names in one line."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def relative_name(path: Path, root: Path) -> str:
    """A path below the root as people see it, any other one whole."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
