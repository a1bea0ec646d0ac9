"""Images with annotated objects: opened, checked before training, split."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from ...data.decode import PLAIN, Reading
from ...data.finding import sort_out
from ...data.limits import MAX_PIXELS
from ...data.orientation import SIDEWAYS, UPRIGHT, turned, turned_points
from ...utils.display import Track, untracked
from ...utils.errors import UserError
from ...utils.extras import needs
from ..folders import Fault, Progress, alike_note, first_faults, first_few, given_names, relative_name, share_out
from ..leaks import Copies, find_copies, refuse_leaks
from ..reading import found_reading
from .formats.find import Found, find_boxes, holds_yolo
from .formats.parts import Outline, Part, Row, other_size, photo_sizes
from .recipes import DetectionRecipe

FRACTIONS = 2.0
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

    def turned(self, orientation: int, height: int, width: int) -> "Annotations":
        """The same objects of a stored frame of this size, as a sideways photo is shown; see `data.orientation`."""
        corners = turned_points(self.boxes.reshape(-1, 2, 2), orientation, height, width)
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
        if self.outlines is None:
            return replace(self, boxes=boxes)
        outlines: list[Outline] = []
        for outline in self.outlines:
            if isinstance(outline, dict):
                whole = turned(replace(self, outlines=(outline,)).masks(height, width)[0], orientation)
                outlines.append({"size": [width, height], "counts": _run_lengths(whole)})
            else:
                points = (polygon.reshape(-1, 2) for polygon in outline)
                outlines.append([turned_points(each, orientation, height, width).ravel() for each in points])
        return replace(self, boxes=boxes, outlines=tuple(outlines))

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


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """COCO's run lengths of a mask (H, W), column by column, the first of zeros; uint32."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0, 0] if flat[0] else [0], ends, [len(flat)]])
    return np.diff(edges).astype(np.uint32)


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
        reading: How the images are read.
        unsized: Images whose size the annotations do not state.
    """

    images: tuple[Path, ...]
    sizes: np.ndarray
    annotations: tuple[Annotations, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    root: Path = Path()
    reading: Reading = PLAIN
    unsized: frozenset[Path] = frozenset()

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """Display name of image i: its path below the data folder."""
        return relative_name(self.images[i], self.root)

    def filename(self, i: int) -> str:
        """The same, as `leaks.Photos` calls it."""
        return self.name(i)

    def open(self, i: int) -> IO[bytes]:
        """The file of image i."""
        return open(self.images[i], "rb")

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
    """A data set of images with objects, ready to train on.

    Attributes:
        faults: Objects and images that were left out.
        layout: The format of the annotations.
        copies: Images that occur twice.
    """

    train: BoxSet
    val: BoxSet
    test: BoxSet | None
    notes: list[str]
    faults: list[Fault]
    layout: str = ""
    copies: Copies = field(default_factory=Copies)

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
    max_bare: float = 0.0,
    allow_leaks: bool = False,
    near_duplicates: bool = False,
    max_pixels: int = MAX_PIXELS,
    track: Track = untracked,
    compare: bool = True,
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
        max_bare: If masks are learnt: up to this fraction of objects without outlines is left out, so that the others
            can be learnt.
        allow_leaks: Accept images that are in two splits.
        near_duplicates: Also find images that look alike, and keep them together in a random split.
        max_pixels: Images of more pixels are not read.
        track: Shows how far it has got.
        compare: Look for images that occur twice; otherwise only if a random split needs to know them.

    Raises:
        UserError: Nothing there, unknown layout, a file whose content does not match its name, boxes in other units,
            classes that differ between the splits, the same image in two splits, or too few images to split.
    """
    wanted = given_names(classes) if classes else ()
    found = find_boxes(data, images, wanted)
    if not {"train", ""} & set(found.readers):
        raise UserError(f"{data} has {' and '.join(found.readers)} but no train: put the training photos there.")
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
    sets, notes, faults = {}, [*found.notes, *absent, *alike_note(class_names)], []
    for split, part in parts.items():
        boxes, strange, seen = _box_set(part, class_names, found.kind, max_bare)
        sets[split] = boxes
        faults += part.faults
        notes += seen
        if strange:
            others = "other classes than those named" if wanted else "other classes"
            notes.append(f"objects of {others} in {part.where}, left out: {len(strange)}")
    if found.kind != "LabelMe":  # which tells the photos without a .json itself
        notes += _unnamed(list(parts.values()))
    notes = list(dict.fromkeys(notes))
    reading = found_reading(sets[whole], max_pixels, notes.append)
    sets = {split: replace(boxes, reading=reading) for split, boxes in sets.items()}
    needed = compare or "val" not in sets
    copies = find_copies(sets, near_duplicates, track=track) if needed else Copies()
    notes += [*copies.notes, *refuse_leaks(sets, copies, allow_leaks)]
    train, val, test = sets[whole], sets.get("val"), sets.get("test")
    notes += _numbering(train, found.kind)
    if val is None:
        what = f"{data}: {len(train)} photos"
        groups = copies.together(whole)
        shares = share_out(what, len(train), val_share, 0.0 if test else test_share, seed, groups)
        rest = train.subset(shares[2]) if len(shares[2]) else None
        train, val, test = train.subset(shares[0]), train.subset(shares[1]), test or rest
    return BoxSplits(train, val, test, notes, faults, found.kind, copies)


def has_boxes(data: str) -> bool:
    """Whether a folder or a file has a layout of images with objects; only the names of files are looked at."""
    try:
        return bool(find_boxes(data, None, ("any",)).readers)
    except UserError:
        return Path(data).is_dir() and holds_yolo(Path(data))


def open_run(
    recipe: DetectionRecipe, any_leaks: bool = False, track: Track = untracked, compare: bool = True
) -> BoxSplits:
    """The data of a run, see `open_boxes`; `any_leaks` accepts images in two splits in any case."""
    return open_boxes(
        recipe.data,
        recipe.images,
        recipe.classes,
        recipe.val_share,
        recipe.test_share,
        recipe.seed_of_split,
        recipe.max_broken if recipe.learns_masks else 0.0,
        recipe.allow_leaks or any_leaks,
        recipe.near_duplicates,
        recipe.max_pixels,
        track,
        compare,
    )


def open_checked(recipe: DetectionRecipe, track: Track) -> BoxSplits:
    """Open and check the data of a recipe; see `open_boxes` and `check_boxes`."""
    opened = open_run(recipe, track=track)
    return check_boxes(opened, recipe.max_broken, lambda items: track(items, "checking the photos"))


def open_evaluation_boxes(
    data: str, class_names: Sequence[str], images: str | None = None, max_bare: float = 0.0
) -> tuple[BoxSet, list[Fault], list[str]]:
    """Read one set of images for scoring: the test split of `data`, else its validation split, else all of it.

    Args:
        data, images, max_bare: See `open_boxes`, also for the errors.
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
        _check_case(part, split, class_names, "the model knows")
        if part.names and not set(part.names) & set(class_names):
            raise UserError(
                f"{part.where} has the classes {first_few(part.names, 8)}; the model knows {first_few(class_names, 8)}."
            )
        boxes, strange, seen = _box_set(part, tuple(class_names), found.kind, max_bare)
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
    notes += _differences(checked[0], checked[1], "validation")
    notes += _differences(checked[0], test, "test") if test else []
    if splits.test is not None and test is None:
        notes.append("no test photo has an object: the report is about validation")
    return replace(splits, train=checked[0], val=checked[1], test=test, notes=notes, faults=faults)


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


def _unnamed(parts: Sequence[Part]) -> list[str]:
    """A remark on photos that lie beside those of the annotations, and that no split names."""
    known = {os.path.normpath(photo) for part in parts for photo in part.images}
    left_out = {(part.root, name) for part in parts for name, _ in part.faults}
    lost = []
    for root, folder in sorted({(part.root, photo.parent) for part in parts for photo in part.images}):
        beside = (folder / name for name in sort_out(os.listdir(folder)).photos)
        lost += [
            name
            for photo in beside
            if os.path.normpath(photo) not in known and (root, name := relative_name(photo, root)) not in left_out
        ]
    return [f"photos that the annotations do not name, left out: {len(lost)} ({first_few(lost, 3)})"] if lost else []


def _names(kind: str, train: Part, parts: Sequence[Part]) -> tuple[str, ...]:
    """The classes of a layout, in order: from the file of the training images; for files without a list of classes all
    of them, alphabetically."""
    listed = kind in ("COCO", "YOLO")
    return train.names if listed else tuple(sorted({name for part in parts for name in part.names}))


def _check_names(kind: str, parts: dict[str, Part], class_names: Sequence[str], wanted: Sequence[str]) -> None:
    known = {name for part in parts.values() for name in part.names}
    if wanted:
        if twice := [name for name in wanted if wanted.count(name) > 1]:
            raise UserError(f"the class {twice[0]} is given twice: class names must be unique.")
        if missing := [name for name in wanted if name not in known]:
            raise UserError(f"there is no class {missing[0]} in the files, which have {first_few(sorted(known), 12)}.")
        return
    train = parts["train"] if "train" in parts else parts[""]
    for split, part in parts.items():
        _check_case(part, split, train.names, "the training photos have")
        if kind == "COCO":
            if strange := [name for name in part.names if name not in class_names]:
                raise UserError(
                    f"{part.where} ({split}) has categories that the training photos' file lacks: "
                    f"{first_few(strange, 5)}. Give both the same, or name those to be learnt with --classes."
                )


def _check_case(part: Part, split: str, names: Sequence[str], whose: str) -> None:
    """Raise UserError for a class that differs from another one in case or blanks alone: it would be lost."""
    plain = {name.casefold().strip(): name for name in names}
    for name in part.names:
        other = plain.get(name.casefold().strip(), name)
        if other != name and name not in names:
            raise UserError(f"{part.where} ({split or 'all'}) has the class {name!r}, {whose} {other!r}: rename one.")


def _box_set(
    part: Part, class_names: tuple[str, ...], kind: str, max_bare: float
) -> tuple[BoxSet, list[Fault], list[str]]:
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
    repeated = _repeated(rows, right)
    right &= ~repeated
    bare = np.array([row.outline is None for row in rows], bool)
    if bare.sum() <= (few := max_bare * count):
        names = [part.object_name(rows[i].image, rows[i].id) for i in np.flatnonzero(right & bare)]
        part.faults += [(name, "has no outline, and masks are learnt from outlines") for name in names]
        right &= ~bare
    strange = [
        (part.object_name(rows[i].image, rows[i].id), f"has an unknown class: {part.names[rows[i].label]}")
        for i in np.flatnonzero(right & (labels < 0))
    ]
    kept = np.flatnonzero(right & (labels >= 0))
    kept = kept[np.argsort(images[kept], kind="stable")]
    annotations = _per_photo(part, kept, images[kept], labels[kept], clipped[kept])
    notes = [*part.notes, *part.mended_notes()]
    if repeated.any():
        first = rows[int(repeated.argmax())]
        name = part.object_name(first.image, first.id)
        notes.append(f"objects in {part.where} given twice, counted once: {int(repeated.sum())}, such as {name}")
    over = right & np.any(np.abs(clipped - whole) >= 1, axis=1)
    if over.sum() * 2 > right.sum():
        _check_corners(part, kind, stored, right, sizes[images])
    if over.any():
        notes.append(f"boxes in {part.where} that extend beyond their photo, clipped: {int(over.sum())}")
    if few < bare.sum() < count:
        notes.append(f"objects in {part.where} without an outline, so that masks cannot be learnt: {bare.sum()}")
    boxes = BoxSet(
        tuple(part.images),
        sizes,
        annotations,
        class_names,
        _ids(part, class_names),
        tuple(part.image_ids),
        part.root,
        unsized=frozenset(part.unsized),
    )
    return boxes, strange, notes


def _repeated(rows: Sequence[Row], right: np.ndarray) -> np.ndarray:
    """Which of the right rows equal an earlier one in everything but their id, (n)."""
    first: dict[tuple, Row] = {}
    repeated = np.zeros(len(rows), bool)
    for i in np.flatnonzero(right).tolist():
        row = rows[i]
        other = first.setdefault((row.image, row.label, row.crowd, row.box), row)
        repeated[i] = other is not row and _same_outline(other.outline, row.outline)
    return repeated


def _same_outline(a: Outline | None, b: Outline | None) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(np.array_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return np.array_equal(a["counts"], b["counts"])
    return a is b


def _check_units(part: Part, boxes: np.ndarray) -> None:
    finite = np.isfinite(boxes).all(1)
    tiny = finite & (np.abs(boxes) <= FRACTIONS).all(1) & boxes.any(1)
    if tiny.sum() * 2 > finite.sum():
        first = int(tiny.argmax())
        told = " ".join(f"{edge:.6g}" for edge in boxes[first])
        raise UserError(
            f"{part.where}: the edges of {tiny.sum()} of {len(boxes)} boxes are {FRACTIONS:g} or less: they look like "
            "fractions of the photo: pixels are expected there (COCO's left, upper, width, height; VOC's left, upper, "
            f"right, lower). The first: {part.object_name(part.rows[first].image, part.rows[first].id)}: edges {told}."
        )


def _check_corners(part: Part, kind: str, boxes: np.ndarray, right: np.ndarray, sizes: np.ndarray) -> None:
    """Raise UserError if most boxes extend beyond their photo, and all fit if their numbers are taken for corners."""
    if kind not in ("COCO", "YOLO") or not all(part.rows[i].outline is None for i in np.flatnonzero(right)):
        return
    first, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    first = first + sides / 2 if kind == "YOLO" else first
    if np.all((sides > first) & (sides <= sizes[:, ::-1] + 1), axis=1)[right].all():
        given = "centre, width and height" if kind == "YOLO" else "left, upper, width and height"
        i = int(right.argmax())
        raise UserError(
            f"{part.where}: most boxes extend beyond their photo, but all fit if their numbers are left, upper, right "
            f"and lower edge, as in Pascal VOC: {kind}'s are {given}. The first: "
            f"{part.object_name(part.rows[i].image, part.rows[i].id)}."
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
        The parts without faulty images, the known faults and the new ones, and notes.
    """
    # A scored image that turns out broken is not replaced by another, as in training: it must be whole.
    scored = {path for part in parts if part is not training for path in part.images}
    paths = [path for part in parts for path in part.images]
    way_of: dict[Path, int] = {}
    sizes = iter(photo_sizes(paths, progress, scored, parts[0].reading.max_pixels, way_of))
    faults, checked, notes = list(known), [], []
    for part in parts:
        part, turns = _as_shown(part, seen := [next(sizes) for _ in part.images], way_of)
        notes += [*turns, *_unsure(part, way_of)]
        reasons = [_reason(*each) for each in zip(seen, part.sizes.tolist(), strict=True)]
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
    if told:
        notes.append(f"left out of {total} objects and photos: {told}")
    return checked, faults, notes


def _as_shown(
    part: BoxSet, seen: Sequence[tuple[int, int] | str], way_of: Mapping[Path, int]
) -> tuple[BoxSet, list[str]]:
    """The set with the boxes of those photos turned that EXIF turns sideways and whose stated size is that of the
    stored frame; and a note with their number."""
    sizes, annotations, names = part.sizes.copy(), list(part.annotations), []
    for i, (size, stated) in enumerate(zip(seen, part.sizes.tolist(), strict=True)):
        if isinstance(size, str) or size == tuple(stated) or size != tuple(stated)[::-1]:
            continue
        if (way := way_of.get(part.images[i])) in SIDEWAYS:
            sizes[i], annotations[i] = size, annotations[i].turned(way, *stated)
            names.append(part.name(i))
    if not names:
        return part, []
    told = f"{len(names)}, such as {names[0]}"
    note = f"photos that EXIF turns, with a stated size as before: their boxes were turned too: {told}"
    return replace(part, sizes=sizes, annotations=tuple(annotations)), [note]


def _unsure(part: BoxSet, way_of: Mapping[Path, int]) -> list[str]:
    """A remark on photos with objects that EXIF turns or mirrors, if no size tells whether the boxes should be."""
    names = []
    for i, (path, (height, width)) in enumerate(zip(part.images, part.sizes.tolist(), strict=True)):
        way = way_of.get(path)
        sideways = way in SIDEWAYS and (path in part.unsized or height == width)
        if len(part.annotations[i]) and (way in UPRIGHT or sideways):
            names.append(part.name(i))
    if not names:
        return []
    told = f"{len(names)}, such as {names[0]}"
    return [f"photos that EXIF turns or mirrors, with boxes taken to be turned alike, which no size tells: {told}"]


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


def counts_of(boxes: BoxSet) -> np.ndarray:
    """Objects of each class without crowds, (K)."""
    labels = [each.labels[~each.crowd] for each in boxes.annotations]
    return np.bincount(np.concatenate(labels), minlength=len(boxes.class_names))


def _differences(train: BoxSet, other: BoxSet, split: str) -> list[str]:
    """Classes that only one of two splits has."""
    each = list(zip(train.class_names, counts_of(train), counts_of(other), strict=True))
    absent = [name for name, learnt, scored in each if learnt and not scored]
    unlearnt = [f"{name} ({scored})" for name, learnt, scored in each if scored and not learnt]
    notes = [f"no {split} photo has an object of {first_few(absent, 10)}: not scored there"] if absent else []
    if unlearnt:
        notes.append(f"{split} objects of classes without training objects, all missed: {first_few(unlearnt, 10)}")
    return notes


def _notes(boxes: BoxSet) -> list[str]:
    """Remarks on the usable training images."""
    objects = np.concatenate([each.boxes for each in boxes.annotations])
    empty = sum(not len(each) for each in boxes.annotations)
    notes = [f"training photos without objects: {empty}"] if empty else []
    if absent := [name for name, count in zip(boxes.class_names, counts_of(boxes), strict=True) if not count]:
        notes.append(f"no training photo has an object of {first_few(absent, 10)}")
    thin = (objects[:, 2:] - objects[:, :2]).min(1) < SMALL
    if thin.any():
        notes.append(f"training objects less than {SMALL} pixels wide or high: {int(thin.sum())} of {len(objects)}")
    return notes
