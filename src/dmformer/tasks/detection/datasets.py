"""Photos with the objects on them: opened, checked before training, split."""

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
"""Edges up to which boxes, if they are most of a file, are taken for shares of the width and height."""

SMALL = 4
"""Pixels: thinner objects are told."""


@dataclass(frozen=True)
class Annotations:
    """The objects on one photo.

    Attributes:
        boxes: (n, 4), float32: left, upper, right and lower edge in pixels of the photo, within it.
        labels: (n), int64: classes from 0.
        crowd: (n), bool: regions of many objects, which are neither trained on nor counted as missed.
        areas: (n), float64: COCO's areas, else those of the boxes.
        ids: (n), int64.
        outlines: Of each object; None where some have none.
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
        """Those that are no crowds."""
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
        """The outlines filled, as COCO does it: (n, H, W), uint8, 0 or 1.

        Raises:
            ValueError: There are no outlines, or run lengths are of another size.
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
    """Photos and the objects on each.

    Attributes:
        images: Files.
        sizes: (N, 2), int64: height and width as people see the photo.
        annotations: Of each photo; one may have no objects.
        class_names: Names, in the order of the labels.
        category_ids: The classes' numbers in the files: COCO's own (-1 for a class that a file lacks), from 1 with
            Pascal VOC, from 0 with YOLO.
        image_ids: COCO's own, else from 1.
        root: Folder that names for people begin at.
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
        """Name of photo i, for people: its path below the data folder."""
        return relative_name(self.images[i], self.root)

    def subset(self, indices: Iterable[int]) -> "BoxSet":
        """Some of the photos, in the order given."""
        chosen = [int(i) for i in indices]
        images, annotations, ids = (
            tuple(items[i] for i in chosen) for items in (self.images, self.annotations, self.image_ids)
        )
        return replace(self, images=images, sizes=self.sizes[chosen], annotations=annotations, image_ids=ids)

    @property
    def objects(self) -> int:
        """How many there are, crowds included."""
        return sum(map(len, self.annotations))

    @property
    def single(self) -> int:
        """How many there are without crowds, which can be learnt and found."""
        return sum(int((~each.crowd).sum()) for each in self.annotations)

    @property
    def has_masks(self) -> bool:
        """Whether there are objects, and all have outlines."""
        return self.objects > 0 and all(each.outlines is not None for each in self.annotations if len(each))


@dataclass(frozen=True)
class BoxSplits:
    """A set of photos with objects, ready to train on; `faults` are objects and photos that were left out."""

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
        """The classes' numbers in the files of the training photos."""
        return self.train.category_ids


def open_boxes(
    data: str,
    images: str | None = None,
    classes: Sequence[str] = (),
    val_share: float = 0.15,
    test_share: float = 0.15,
    seed: int = 0,
) -> BoxSplits:
    """Read photos and the objects on them; the layout is told by what lies in `data`.

    - COCO: `annotations/instances_train2017.json` with `train2017/` or `images/train2017/`, the same with val and test
      and without the year or the folder; Roboflow's `train/_annotations.coco.json`; or one .json with its photos;
    - Pascal VOC: `Annotations/`, `JPEGImages/` and perhaps `ImageSets/Main/`, also below `VOCdevkit/VOC2012/`; or
      `annotations/` and `images/`; or .xml files beside the photos;
    - YOLO: a `data.yaml`; or `images/` and `labels/`, with `train/`, `val/` and perhaps `test/` in both or without; or
      text files beside the photos; with the names of the classes in a `classes.txt`, if there is one.

    What comes without a validation split is split at random by `seed`. Faulty objects and photos are left out, boxes
    clipped to the photo; `check_boxes` looks at the photos themselves.

    Args:
        data: The folder, or one COCO .json.
        images: Folder of the photos of COCO files, where they lie elsewhere.
        classes: Names of the classes: of YOLO in files that do not name them, in the order of their numbers; otherwise
            those to be learnt, in this order, objects of others being left out. Or one path of a text file with a name
            a line.
        val_share, test_share: Shares that are split off where the data is not split.
        seed: Of that split.

    Raises:
        UserError: Nothing there, no known layout, a file that is not what its name says, boxes in other units, classes
            that differ between the splits, or too few photos to split.
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
            absent.append(f"there is no test split: {error}")  # COCO's is published without its truth
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
    """Read one set of photos to be scored: the test split of `data`, else its validation split, else all of it.

    Args:
        data, images: See `open_boxes`, as for the errors.
        class_names: What the model knows, in the order of its labels; objects of other classes are left out.

    Returns:
        The photos, what was left out, and notes.
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
    """Look at every photo before training: is it there, can it be opened, has it the size that is stated.

    Of those to train on the header is read; those that are scored are read whole.

    Faulty photos are left out. Notes are added about what was left out, about the objects, and about classes without.

    Args:
        splits: What was opened.
        max_broken: Share of faulty objects and photos that is put up with.
        progress: Wraps a list with as many items as there are photos, to show how far it is.

    Raises:
        UserError: More faults than that, with the first of them; or no photo or object left to train or validate on.
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
    """Look at every photo before it is scored, as `check_boxes` does.

    Args:
        boxes, faults: Of `open_evaluation_boxes`.
        max_broken, progress: See `check_boxes`.

    Returns:
        The photos without the faulty ones, all faults, and notes.

    Raises:
        UserError: More than the share `max_broken` is faulty, or no object is left.
    """
    (checked,), faults, notes = _check([boxes], faults, max_broken, progress, None)
    if not checked.single:
        raise UserError(f"no photo has an object to be scored: {first_faults(faults, 5) or 'all are empty.'}")
    return checked, faults, notes


# ---- from parts to sets


def _read(found: Found, split: str) -> Part:
    """The photos of a split; UserError where none of them can be used."""
    part = found.readers[split]()
    if not part.images:
        raise UserError(f"no photo in {part.where} can be used: {first_faults(part.faults, 5) or 'there is none.'}")
    return part


def _names(kind: str, train: Part, parts: Sequence[Part]) -> tuple[str, ...]:
    """The classes of a layout, in their order: those of the training photos' file; with VOC all, by the alphabet."""
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
    """A part as arrays, its objects checked against their photos; faults are added to those of the part.

    Returns:
        The set, as faults the objects of other classes, and notes.
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
    whole = bounded.astype(np.float32)  # in which what is very thin has no area
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
    """Of boxes (n, 4) which have one, (n)."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _per_photo(
    part: Part, kept: np.ndarray, images: np.ndarray, labels: np.ndarray, boxes: np.ndarray
) -> tuple[Annotations, ...]:
    """The kept rows, sorted by photo, cut into those of each: views of a few large arrays."""
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
    """Look at the photos of some parts; at those of `training`, at their headers alone.

    Returns:
        The parts without faulty photos, the known faults and the new ones, and a note that counts them.
    """
    # What is scored is not replaced by another photo where it breaks, as in training: it must be whole.
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
    """Why a photo cannot be used."""
    if isinstance(seen, str):
        return seen
    return None if tuple(seen) == tuple(stated) else other_size(seen, stated)


def _numbering(boxes: BoxSet, kind: str) -> list[str]:
    """How COCO's categories are numbered, where not from 1 without gaps."""
    ids = boxes.category_ids
    if kind != "COCO" or ids == tuple(range(1, len(ids) + 1)):
        return []
    return [f"the category ids {min(ids)} to {max(ids)} are not 1 to {len(ids)}: classes are numbered in their order"]


def _notes(boxes: BoxSet) -> list[str]:
    """Remarks on the training photos that can be used."""
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
