"""Images with annotated objects: opened, checked before training, split."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...utils.errors import UserError
from ...utils.extras import needs
from ..folders import Fault, Progress, first_faults, first_few, given_names, relative_name, share_out
from .formats.find import Found, find_boxes
from .formats.parts import Outline, Part, other_size, photo_sizes

SHARES = 2.0
"""If most boxes of a file have edges up to this, they are taken for fractions of the width and height."""

SMALL = 4
"""In pixels: thinner objects are reported."""


@dataclass(frozen=True)
class Annotations:
    """The annotated objects of one image.

    Attributes:
        boxes: (n, 4), float32: left, upper, right and lower edge in pixels of the image, within it.
        labels: (n), int64: classes from 0.
        crowd: (n), bool: regions of many objects, which are neither trained on nor counted as missed.
        areas: (n), float64: COCO's areas, else the areas of the boxes.
        ids: (n), int64.
        outlines: Outline of each object; None if any object lacks one.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    ids: np.ndarray
    outlines: tuple[Outline, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def single(self) -> "Annotations":
        """The objects that are not crowds."""
        if not self.crowd.any():
            return self
        kept = np.flatnonzero(~self.crowd)
        return Annotations(
            self.boxes[kept],
            self.labels[kept],
            self.crowd[kept],
            self.areas[kept],
            self.ids[kept],
            None if self.outlines is None else tuple(self.outlines[i] for i in kept),
        )

    def masks(self, height: int, width: int) -> np.ndarray:
        """Fill the outlines, as COCO does: (n, H, W), uint8, 0 or 1.

        Raises:
            ValueError: There are no outlines, or run lengths have another size.
        """
        if not len(self):
            return np.zeros((0, height, width), np.uint8)
        if self.outlines is None:
            raise ValueError("these objects have no outlines")
        with needs("det", "drawing masks"):
            from faster_coco_eval.core import mask
        coded = []
        for outline in self.outlines:
            if not isinstance(outline, dict):
                coded.append(mask.merge(mask.frPyObjects(outline, height, width)))  # type: ignore[arg-type]
            elif isinstance(outline["counts"], str | bytes):
                coded.append(outline)
            else:
                whole = {"size": [height, width], "counts": [int(count) for count in outline["counts"]]}
                coded.append(mask.frPyObjects(whole, height, width))
        return np.ascontiguousarray(mask.decode(coded).transpose(2, 0, 1))


@dataclass(frozen=True)
class BoxSet:
    """Images and the objects in each.

    Attributes:
        images: Image files.
        sizes: (N, 2), int64: height and width of the image as people see it.
        annotations: Objects of each image; there may be none.
        class_names: Names, in the order of the labels.
        category_ids: The classes' numbers in the files: COCO's own (-1 for a class that a file lacks), from 1 for
            Pascal VOC, from 0 for YOLO.
        image_ids: COCO's own, else from 1.
        root: Folder at which display names start.
    """

    images: tuple[Path, ...]
    sizes: np.ndarray
    annotations: tuple[Annotations, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    root: Path = Path()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Display name of image i: its path below the data folder."""
        return relative_name(self.images[i], self.root)

    def subset(self, indices: Iterable[int]) -> "BoxSet":
        """Some of the images, in the given order."""
        chosen = [int(i) for i in indices]
        images, annotations, ids = (
            tuple(items[i] for i in chosen) for items in (self.images, self.annotations, self.image_ids)
        )
        return replace(self, images=images, sizes=self.sizes[chosen], annotations=annotations, image_ids=ids)

    @property
    def objects(self) -> int:
        """Number of objects, including crowds."""
        return sum(map(len, self.annotations))

    @property
    def single(self) -> int:
        """Number of objects without crowds, which can be learnt and detected."""
        return sum(int((~each.crowd).sum()) for each in self.annotations)

    @property
    def has_masks(self) -> bool:
        """Whether there are objects, and all have outlines."""
        return self.objects > 0 and all(each.outlines is not None for each in self.annotations if len(each))


@dataclass(frozen=True)
class BoxSplits:
    """A data set of images with objects, ready to train on; `faults` are objects and images that were left out."""

    train: BoxSet
    val: BoxSet
    test: BoxSet | None
    notes: list[str]
    faults: list[Fault]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""
        return self.train.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The classes' numbers in the files of the training images."""
        return self.train.category_ids


def open_boxes(
    data: str,
    images: str | None = None,
    classes: Sequence[str] = (),
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
) -> BoxSplits:
    """Read images and their annotated objects; the layout is recognised by the content of `data`.

    - COCO: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`, the same with val and test
      and without the year or the folder; Roboflow's `train/_annotations.coco.json`; or one .json with its images;
    - Pascal VOC: `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/`, also below `VOCdevkit/VOC2012/`; or
      `annotations/` and `images/`; or .xml files beside the images;
    - YOLO: a `data.yaml`; or `images/` and `labels/`, with `train/`, `val/` and perhaps `test/` in both or without; or
      text files beside the images; with the class names in a `classes.txt`, if there is one.

    Data without a validation split is split at random by `seed`. Faulty objects and images are left out, and boxes are
    clipped to the image; `check_boxes` checks the image files themselves.

    Args:
        data: The folder, or one COCO .json.
        images: Folder of the images of COCO files, if they are elsewhere.
        classes: Class names. For YOLO files without names, in the order of their numbers; otherwise the classes to
            learn, in this order, and objects of other classes are left out. Or the path of one text file with one name
            per line.
        val_share, test_share: Fractions to split off if the data is not split.
        seed: Seed of that split.

    Raises:
        UserError: Nothing there, unknown layout, a file whose content does not match its name, boxes in other units,
            classes that differ between the splits, or too few images to split.
    """
    wanted = given_names(classes) if classes else ()
    found = find_boxes(data, images, wanted)
    if not {"train", ""} & set(found.readers):
        raise UserError(f"{data} has {' and '.join(found.readers)} but no train: put the photos to train on there.")
    parts, absent = {}, []
    for split in found.readers:
        try:
            parts[split] = _read(found, split)
        except UserError as error:
            if split != "test":
                raise
            absent.append(f"there is no test split: {error}")  # COCO's test split is published without annotations
    whole = "train" if "train" in parts else ""
    class_names = wanted or _names(found.kind, parts[whole], list(parts.values()))
    _check_names(found.kind, parts, class_names, wanted)
    sets, notes, faults = {}, list(found.notes) + absent, []
    for split, part in parts.items():
        sets[split], strange, seen = _box_set(part, class_names, found.kind)
        faults += part.faults
        notes += seen
        if strange:
            others = "other classes than those named" if wanted else "other classes"
            notes.append(f"objects of {others} in {part.where}, left out: {len(strange)}")
    train, val, test = sets[whole], sets.get("val"), sets.get("test")
    notes += _numbering(train, found.kind)
    if val is None:
        what = f"{data}: {len(train)} photos"
        shares = share_out(what, len(train), val_share, 0.0 if test else test_share, seed)
        rest = train.subset(shares[2]) if len(shares[2]) else None
        train, val, test = train.subset(shares[0]), train.subset(shares[1]), test or rest
    return BoxSplits(train, val, test, notes, faults)


def open_evaluation_boxes(
    data: str, class_names: Sequence[str], images: str | None = None
) -> tuple[BoxSet, list[Fault], list[str]]:
    """Read one set of images for scoring: the test split of `data`, else its validation split, else all of it.

    Args:
        data, images: See `open_boxes`, also for the errors.
        class_names: Classes that the model knows, in the order of its labels; objects of other classes are left out.

    Returns:
        The images, what was left out, and notes.
    """
    found = find_boxes(data, images, class_names)
    notes = list(found.notes)
    splits = [split for split in ("test", "val", "train", "") if split in found.readers]
    for split in splits:
        try:
            part = _read(found, split)
        except UserError as error:
            if split != "test" or split == splits[-1]:
                raise
            notes.append(f"there is no test split: {error}")
            continue
        if part.names and not set(part.names) & set(class_names):
            raise UserError(
                f"{part.where} has the classes {first_few(part.names, 8)}; the model knows {first_few(class_names, 8)}."
            )
        boxes, strange, seen = _box_set(part, tuple(class_names), found.kind)
        if boxes.single:
            break
        notes.append(f"{part.where} has no object that can be scored")
    if strange:
        others = first_few(sorted({reason.partition(": ")[2] for _, reason in strange}), 8)
        notes.append(
            f"objects of classes that the model does not know in {part.where}, left out: {len(strange)} ({others})"
        )
    return boxes, part.faults, [*notes, *seen]


def check_boxes(splits: BoxSplits, max_broken: float, progress: Progress = iter) -> BoxSplits:
    """Check every image before training: it exists, it can be opened, and it has the stated size.

    Only the headers of training images are read; images that are scored are read in full.

    Faulty images are left out. Notes are added about what was left out, about the objects, and about classes without
    any.

    Args:
        splits: The open data set.
        max_broken: Maximum fraction of faulty objects and images.
        progress: Wraps a list with as many items as there are images, to show how far it has got.

    Raises:
        UserError: More faults than that, with the first of them; or no image or object remains to train or validate on.
    """
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    checked, faults, counts = _check(parts, splits.faults, max_broken, progress, splits.train)
    for part, name in zip(checked, ("training", "validation"), strict=False):
        if not part.single:
            raise UserError(f"no {name} photo has an object: {first_faults(faults, 5) or 'all are empty.'}")
    test = checked[2] if len(checked) > 2 and checked[2].single else None
    notes = [*splits.notes, *counts, *_notes(checked[0])]
    if splits.test is not None and test is None:
        notes.append("no test photo has an object: the report is about validation")
    return BoxSplits(checked[0], checked[1], test, notes, faults)


def check_evaluation_boxes(
    boxes: BoxSet, faults: Sequence[Fault], max_broken: float, progress: Progress = iter
) -> tuple[BoxSet, list[Fault], list[str]]:
    """Check every image before it is scored, as `check_boxes` does.

    Args:
        boxes, faults: From `open_evaluation_boxes`.
        max_broken, progress: See `check_boxes`.

    Returns:
        The images without the faulty ones, all faults, and notes.

    Raises:
        UserError: More than the fraction `max_broken` is faulty, or no object remains.
    """
    (checked,), faults, notes = _check([boxes], faults, max_broken, progress, None)
    if not checked.single:
        raise UserError(f"no photo has an object to be scored: {first_faults(faults, 5) or 'all are empty.'}")
    return checked, faults, notes


# ---- from parts to sets


def _read(found: Found, split: str) -> Part:
    """The images of a split; UserError if none of them can be used."""
    part = found.readers[split]()
    if not part.images:
        raise UserError(f"no photo in {part.where} can be used: {first_faults(part.faults, 5) or 'there is none.'}")
    return part


def _names(kind: str, train: Part, parts: Sequence[Part]) -> tuple[str, ...]:
    """The classes of a layout, in order: from the file of the training images; for VOC all of them, alphabetically."""
    return tuple(sorted({name for part in parts for name in part.names})) if kind == "Pascal VOC" else train.names


def _check_names(kind: str, parts: dict[str, Part], class_names: Sequence[str], wanted: Sequence[str]) -> None:
    known = {name for part in parts.values() for name in part.names}
    if wanted:
        if twice := [name for name in wanted if wanted.count(name) > 1]:
            raise UserError(f"the class {twice[0]} is named twice: every class needs a name of its own.")
        if missing := [name for name in wanted if name not in known]:
            raise UserError(f"no file knows the class {missing[0]}: there are {first_few(sorted(known), 12)}.")
    elif kind == "COCO":
        for split, part in parts.items():
            if strange := [name for name in part.names if name not in class_names]:
                raise UserError(
                    f"{part.where} ({split}) has categories that the training photos' file lacks: "
                    f"{first_few(strange, 5)}. Give both the same, or name those to be learnt with --classes."
                )


def _box_set(part: Part, class_names: tuple[str, ...], kind: str) -> tuple[BoxSet, list[Fault], list[str]]:
    """Convert a part to arrays, checking its objects against their images; new faults are added to the part's.

    Returns:
        The set, its faults (including objects of other classes), and notes.
    """
    rows, count = part.rows, len(part.rows)
    images, labels = (np.array([row[i] for row in rows], np.int64) for i in (0, 2))
    stored = np.array([row.box for row in rows], np.float64).reshape(count, 4)
    sizes = np.array(part.sizes, np.int64).reshape(-1, 2)
    if kind != "YOLO":
        _check_units(part, stored)
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in part.names], np.int64)[labels]
    finite = np.all(np.isfinite(stored), axis=1)
    bounded = np.clip(np.where(finite[:, None], stored, 0), -1e9, 1e9)
    whole = bounded.astype(np.float32)  # very thin boxes lose their area in float32
    clipped = np.clip(whole, 0, sizes[images][:, [1, 0, 1, 0]].astype(np.float32))
    wrong = {
        "has a box with a number that is not finite": ~finite,
        "has a box without area": finite & ~_has_area(whole),
        "has a box outside its photo": _has_area(whole) & ~_has_area(clipped),
    }
    for why, those in wrong.items():
        for i in np.flatnonzero(those):
            told = " ".join(f"{edge:.6g}" for edge in stored[i])
            part.faults.append((part.object_name(rows[i].image, rows[i].id), f"{why}: edges {told}"))
    right = ~np.any(list(wrong.values()), axis=0)
    strange = [
        (part.object_name(rows[i].image, rows[i].id), f"has an unknown class: {part.names[rows[i].label]}")
        for i in np.flatnonzero(right & (labels < 0))
    ]
    kept = np.flatnonzero(right & (labels >= 0))
    kept = kept[np.argsort(images[kept], kind="stable")]
    annotations = _per_photo(part, kept, images[kept], labels[kept], clipped[kept])
    notes = list(part.notes)
    over = right & np.any(np.abs(clipped - whole) >= 1, axis=1)
    if over.any():
        notes.append(f"boxes in {part.where} that reach over the edge of their photo, clipped: {int(over.sum())}")
    without = sum(row.outline is None for row in rows)
    if 0 < without < count:
        notes.append(f"objects in {part.where} without an outline, so that masks cannot be learnt: {without}")
    boxes = BoxSet(
        tuple(part.images), sizes, annotations, class_names, _ids(part, class_names), tuple(part.image_ids), part.root
    )
    return boxes, strange, notes


def _check_units(part: Part, boxes: np.ndarray) -> None:
    finite = np.isfinite(boxes).all(1)
    tiny = finite & (np.abs(boxes) <= SHARES).all(1) & boxes.any(1)
    if tiny.sum() * 2 > finite.sum():
        first = int(tiny.argmax())
        told = " ".join(f"{edge:.6g}" for edge in boxes[first])
        raise UserError(
            f"{part.where}: the edges of {tiny.sum()} of {len(boxes)} boxes are {SHARES:g} or less, so they look like "
            "shares of the photo: pixels are expected there (COCO's left, upper, width, height; VOC's left, upper, "
            f"right, lower). The first: {part.object_name(part.rows[first].image, part.rows[first].id)}: edges {told}."
        )


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """Which of the boxes (n, 4) have an area, (n)."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _per_photo(
    part: Part, kept: np.ndarray, images: np.ndarray, labels: np.ndarray, boxes: np.ndarray
) -> tuple[Annotations, ...]:
    """The kept rows, sorted by image and cut into one piece per image: views of a few large arrays."""
    rows = [part.rows[i] for i in kept]
    crowd = np.array([row.crowd for row in rows], bool)
    ids = np.array([row.id for row in rows], np.int64)
    areas = np.array([row.area for row in rows], np.float64)
    areas = np.where(np.isnan(areas), np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], 1), areas)
    ends = np.searchsorted(images, np.arange(len(part.images)), side="right").tolist()
    annotations = []
    for first, end in zip([0, *ends], ends, strict=False):
        own = slice(first, end)
        drawn = tuple(row.outline for row in rows[own] if row.outline is not None)
        outlines = drawn if len(drawn) == end - first else None
        annotations.append(Annotations(boxes[own], labels[own], crowd[own], areas[own], ids[own], outlines))
    return tuple(annotations)


def _ids(part: Part, class_names: tuple[str, ...]) -> tuple[int, ...]:
    if part.ids is None:
        return tuple(range(1, len(class_names) + 1))
    own = dict(zip(part.names, part.ids, strict=True))
    return tuple(own.get(name, -1) for name in class_names)


# ---- checking


def _check(
    parts: Sequence[BoxSet], known: Sequence[Fault], max_broken: float, progress: Progress, training: BoxSet | None
) -> tuple[list[BoxSet], list[Fault], list[str]]:
    """Check the images of some parts; for those of `training`, only their headers.

    Returns:
        The parts without faulty images, the known faults and the new ones, and a note with their number.
    """
    # A scored image that turns out broken is not replaced by another, as in training: it must be whole.
    scored = {path for part in parts if part is not training for path in part.images}
    sizes = iter(photo_sizes([path for part in parts for path in part.images], progress, scored))
    faults, checked = list(known), []
    for part in parts:
        reasons = [_reason(next(sizes), stated) for stated in part.sizes.tolist()]
        faults += [(part.name(i), reason) for i, reason in enumerate(reasons) if reason]
        checked.append(part.subset(i for i, reason in enumerate(reasons) if not reason))
    objects, photos = sum(part.objects for part in parts), sum(map(len, parts))
    total = objects + photos + len(known)
    if len(faults) > max_broken * total:
        raise UserError(
            f"{len(faults)} of {total} objects and photos cannot be used ({len(faults) / total:.1%}), more than "
            f"--max-broken {max_broken:g}: {first_faults(faults, 5)}"
        )
    counts = Counter(reason.partition(":")[0] for _, reason in faults)
    told = ", ".join(f"{count} x '{reason}'" for reason, count in counts.most_common())
    notes = [f"left out of {total} objects and photos: {told}"] if told else []
    return checked, faults, notes


def _reason(seen: tuple[int, int] | str, stated: Sequence[int]) -> str | None:
    """Why an image cannot be used."""
    if isinstance(seen, str):
        return seen
    return None if tuple(seen) == tuple(stated) else other_size(seen, stated)


def _numbering(boxes: BoxSet, kind: str) -> list[str]:
    """How COCO's categories are numbered, unless it is from 1 without gaps."""
    ids = boxes.category_ids
    if kind != "COCO" or ids == tuple(range(1, len(ids) + 1)):
        return []
    return [f"the category ids {min(ids)} to {max(ids)} are not 1 to {len(ids)}: classes are numbered in their order"]


def _notes(boxes: BoxSet) -> list[str]:
    """Remarks on the usable training images."""
    objects = np.concatenate([each.boxes for each in boxes.annotations])
    labels = np.concatenate([each.labels[~each.crowd] for each in boxes.annotations])
    empty = sum(not len(each) for each in boxes.annotations)
    notes = [f"training photos without objects: {empty}"] if empty else []
    counts = np.bincount(labels, minlength=len(boxes.class_names))
    if absent := [name for name, count in zip(boxes.class_names, counts, strict=True) if not count]:
        notes.append(f"no training photo has an object of {first_few(absent, 10)}")
    thin = (objects[:, 2:] - objects[:, :2]).min(1) < SMALL
    if thin.any():
        notes.append(f"training objects less than {SMALL} pixels wide or high: {int(thin.sum())} of {len(objects)}")
    return notes
