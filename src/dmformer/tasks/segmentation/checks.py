"""Check images and masks before training: report all problems at once, with possible fixes."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...data.decode import BrokenImageError, decode
from ...data.orientation import SIDEWAYS, UPRIGHT, as_shown, orientation
from ...utils.display import Track
from ...utils.errors import UserError
from ..folders import Fault, Progress, first_faults, first_few, relative_name
from .datasets import Labels, Pairs, PairSplits, open_pairs
from .label_sets import ADE20K
from .masks import IGNORE, MOST_COLOURS, ColouredMaskError, StrangeLabelError
from .recipes import SegmentationRecipe


def open_checked(recipe: SegmentationRecipe, track: Track) -> tuple[PairSplits, list[Fault]]:
    """Open and check the data of a recipe; see `open_pairs` and `check_pairs`."""
    opened = open_pairs(recipe, track)
    return check_pairs(opened, recipe.image_size, recipe.max_broken, lambda pairs: track(pairs, "checking the masks"))


def check_pairs(
    splits: PairSplits, crop: int, max_broken: float, progress: Progress = iter
) -> tuple[PairSplits, list[Fault]]:
    """Check every pair before training: both files are readable and of the same size, and every id is a class or
    ignored.

    Images and masks are read in full. Faulty pairs are left out, and so is a test split without a labelled pixel. Notes
    are added about images smaller than the crop, about classes that no training mask holds, and about the likely cause
    of the faults.

    Args:
        splits: The open data set.
        crop: Side of the training crops in pixels.
        max_broken: Maximum fraction of faulty pairs.
        progress: Wraps a list with as many items as there are pairs, to show how far it has got.

    Returns:
        The splits without the faulty pairs, and the faults: name and reason.

    Raises:
        UserError: More faulty pairs than that, with the first of them and possible fixes; or no pairs remain.
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
    splits = replace(splits, labels=checked[0].labels, train=replace(splits.train, labels=checked[0].labels))
    notes = [*splits.notes, *hints, *_notes(splits.train, looks[0], crop)]
    for part, seen, name in zip(checked[1:], looks[1:], ("validation", "test"), strict=False):
        notes += _differences(_masks_with(splits.train, looks[0]), _masks_with(part, seen), name)
    if test is not None and not _labelled(test, looks[2]):
        test = None
        notes.append("no test mask has a labelled pixel: the report is about validation")
    pixels = {
        name: [_class_pixels(part, look) for look in seen if not look.reason]
        for name, part, seen in zip(("train", "val", "test"), checked, looks, strict=False)
    }
    return replace(splits, train=checked[0], val=checked[1], test=test, notes=notes, pixels=pixels), faults


def check_evaluation_pairs(
    pairs: Pairs, max_broken: float, progress: Progress = iter
) -> tuple[Pairs, list[Fault], list[str]]:
    """Check every pair before it is scored, as `check_pairs` does.

    Returns:
        The pairs without the faulty ones, the faults, and the notes about the pairs and the likely cause of the faults.

    Raises:
        UserError: More than the fraction `max_broken` is faulty, or no pair remains, or none has a labelled pixel.
    """
    (checked,), faults, (seen,), hints = _check([pairs], max_broken, progress)
    if not len(checked):
        raise UserError(f"no pair is left to be scored: {first_faults(faults, 5)}")
    if not _labelled(checked, seen):
        raise UserError("no mask has a labelled pixel to be scored: all ids are ignored.")
    return checked, faults, [*pairs.notes, *hints]


class _Look(NamedTuple):
    """Result of checking one pair: why it cannot be used, its width and height, the number of pixels of each id that
    its mask stores, and those ids that are no classes; colours without a class; colours of palette indices; whether the
    mask was turned; whether EXIF turns the image and the sizes do not tell whether the mask should be."""

    reason: str | None
    size: tuple[int, int] = (0, 0)
    stored: dict[int, int] = {}  # noqa: RUF012 (never changed)
    strange: tuple[int, ...] = ()
    colours: tuple[str, ...] | None = None
    palette: dict[int, str] | None = None
    turned: bool = False
    unsure: bool = False


def _labelled(pairs: Pairs, seen: Sequence[_Look]) -> bool:
    """Whether any of the checked masks has a pixel of a class."""
    stored = np.array(sorted({i for look in seen if not look.reason for i in look.stored}), dtype=np.int64)
    return bool((pairs.labels(stored) != IGNORE).any())


def _check(
    parts: Sequence[Pairs], max_broken: float, progress: Progress
) -> tuple[list[Pairs], list[Fault], list[list[_Look]], list[str]]:
    """Check some parts.

    Returns:
        The parts without faulty pairs, the faults, every result, and hints at how to fix the faults.
    """
    looks = _look_at_all(parts, progress)
    if _is_binary(parts[0].labels, looks):
        parts = [replace(part, labels=replace(part.labels, binary=True)) for part in parts]
    _check_palettes(parts, looks)
    faults, checked = [], []
    for part, seen in zip(parts, looks, strict=True):
        faults += [*part.unpaired, *((part.name(i), look.reason) for i, look in enumerate(seen) if look.reason)]
        checked.append(part.subset(i for i, look in enumerate(seen) if not look.reason))
    total = sum(len(part) + len(part.unpaired) for part in parts)
    hints = _hints([look for seen in looks for look in seen], parts[0].labels)
    if parts[0].labels.binary:
        hints.append(f"the masks hold only 0 and 255: 255 is read as {parts[0].labels.class_names[1]}")
    pairs = zip(parts, looks, strict=True)
    turned = [part.name(i) for part, seen in pairs for i, look in enumerate(seen) if look.turned]
    if turned:
        told = f"{len(turned)}, such as {turned[0]}"
        hints.append(f"images that EXIF turns, with masks of the frame before: the masks were turned too: {told}")
    pairs = zip(parts, looks, strict=True)
    if unsure := [part.name(i) for part, seen in pairs for i, look in enumerate(seen) if look.unsure]:
        told = f"{len(unsure)}, such as {unsure[0]}"
        hints.append(
            f"images that EXIF turns or mirrors, with masks taken to be turned alike, which no size tells: {told}"
        )
    if len(faults) > max_broken * total:
        what = f"{len(faults)} of {total} images with their masks cannot be used, more than --max-broken {max_broken:g}"
        raise UserError(". ".join([f"{what}: {first_faults(faults, 10)}", *hints]))
    return checked, faults, looks, hints


def _is_binary(labels: Labels, looks: Sequence[Sequence[_Look]]) -> bool:
    """Whether 255 can only mean the second of two classes: masks hold it and 0, and nothing else."""
    stored = {i for seen in looks for look in seen for i in look.stored}
    plain = not labels.colours and not labels.reduce_zero_label and labels.table is None
    return plain and len(labels.class_names) == 2 and stored == {0, IGNORE} and IGNORE in labels.ignore_index


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
            size = decode(file, reading=pairs.reading).size
    except Exception as error:  # decoders raise anything on damaged input
        return _Look(f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}")
    palette: dict[int, str] = {}
    try:
        as_stored = pairs.labels.stored(pairs.masks[i], palette)
    except ColouredMaskError as error:
        return _Look(f"its mask {pairs.masks[i].name} {error}", size, colours=error.colours)
    except BrokenImageError as error:
        return _Look(f"its mask {pairs.masks[i].name} {_predicate(error)}")
    ids = as_shown(as_stored, pairs.images[i], size)
    if ids.shape != size[::-1]:
        return _Look(f"is {size[0]}x{size[1]} and its mask {ids.shape[1]}x{ids.shape[0]}", size)
    found, counts = _counted(ids)
    stored = dict(zip(found.tolist(), counts.tolist(), strict=True))
    try:
        pairs.labels(found)
    except StrangeLabelError as error:
        return _Look(f"its mask {pairs.masks[i].name} {error}", size, stored, error.ids)
    way = orientation(pairs.images[i])
    unsure = way in UPRIGHT or (way in SIDEWAYS and size[0] == size[1])
    return _Look(None, size, stored, palette=palette, turned=ids is not as_stored, unsure=unsure)


def _counted(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different ids of a mask, and the number of pixels of each."""
    if ids.dtype != np.uint8:
        return np.unique(ids, return_counts=True)
    counts = np.bincount(ids.ravel(), minlength=256)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _class_pixels(pairs: Pairs, look: _Look) -> dict[int, int]:
    """The number of pixels of each training id in a usable mask."""
    pixels: Counter[int] = Counter()
    for label, count in zip(
        pairs.labels(np.array(list(look.stored), np.int64)).tolist(), look.stored.values(), strict=True
    ):
        pixels[label] += count
    return dict(pixels)


def _predicate(error: BrokenImageError) -> str:
    text = str(error)
    return text if text.startswith(("holds", "is a")) else f"cannot be read: {text}"


def _hints(looks: Sequence[_Look], labels: Labels) -> list[str]:
    """Possible fixes for masks whose ids are not classes."""
    if hint := _colour_hint(looks):
        return [hint]
    strange = sorted({i for look in looks for i in look.strange})
    if not strange:
        return []
    present = {i for look in looks for i in look.stored}
    n, highest = len(labels.class_names), strange[-1]
    if len(strange) > MOST_COLOURS:
        return [f"masks hold {len(strange)} ids without a class: they were blurred, compressed or resized smoothly"]
    ignored = " ".join(map(str, sorted({*strange, *(present & set(labels.ignore_index))})))
    ignore = f"give --ignore-index {ignored} if {highest} means unlabelled"
    if strange == [n] and not labels.reduce_zero_label:
        counted = f"ids run from {0 if 0 in present else 1} to {n}"
        shift = "ADE20K counts from 1 and 0 is unlabelled: give --reduce-zero-label"
        return [f"{counted}: {shift}" if n == len(ADE20K.class_names) else f"{counted}: {shift}; or {ignore}"]
    listed = first_few([str(i) for i in sorted(present)], 8)
    as_many = f"; or save {listed} as 0 to {n - 1} if they are the {n} classes" if len(present) == n else ""
    if len(strange) == 1:
        return [f"one id, {highest}, is beyond the {n} classes: {ignore}{as_many}"]
    return [f"the class list has {n} names but ids go up to {highest}: name them all with --classes{as_many}"]


def _colour_hint(looks: Sequence[_Look]) -> str | None:
    """What to do about masks with colours that stand for no class."""
    coloured = [look.colours for look in looks if look.colours is not None]
    colours = sorted({colour for found in coloured for colour in found})
    if not coloured:
        return None
    if not all(coloured) or len(colours) > MOST_COLOURS:
        return f"masks hold more than {MOST_COLOURS} colours: they were blurred or compressed, or are no masks"
    return (
        f"colours without a class ({len(colours)}): {' '.join(colours)}: give --colours in the order of --classes, or "
        "put a labelmap.txt beside the masks"
    )


def _check_palettes(parts: Sequence[Pairs], looks: Sequence[Sequence[_Look]]) -> None:
    """Raise UserError if an index of palette masks has another colour in another mask: it is no class's id then."""
    if parts[0].labels.indexed:
        return
    first: dict[int, tuple[str, str]] = {}
    for part, seen in zip(parts, looks, strict=True):
        for i, look in enumerate(seen):
            name = relative_name(part.masks[i], part.root)
            for index, colour in (look.palette or {}).items():
                other, where = first.setdefault(index, (colour, name))
                if other != colour:
                    raise UserError(
                        f"the palettes of masks differ: index {index} is {other} in {where} and {colour} in {name}. "
                        "Give --colours in the order of --classes, or --colours ids if the indices are ids anyway."
                    )


def _masks_with(pairs: Pairs, looks: Sequence[_Look]) -> dict[str, int]:
    """The number of usable masks that hold each class."""
    held = [_class_pixels(pairs, look).keys() for look in looks if not look.reason]
    return {name: sum(i in classes for classes in held) for i, name in enumerate(pairs.labels.class_names)}


def _differences(train: dict[str, int], other: dict[str, int], split: str) -> list[str]:
    """Classes that only one of two splits has."""
    absent = [name for name, count in train.items() if count and not other[name]]
    unlearnt = [f"{name} ({count})" for name, count in other.items() if count and not train[name]]
    notes = [f"no {split} mask holds {first_few(absent, 10)}"] if absent else []
    if unlearnt:
        notes.append(f"{split} masks with classes that no training mask holds: {first_few(unlearnt, 10)}")
    return notes


def _notes(pairs: Pairs, looks: Sequence[_Look], crop: int) -> list[str]:
    """Remarks on the usable training pairs."""
    used = [(pairs.name(i), look) for i, look in enumerate(looks) if not look.reason]
    sizes = [(name, *look.size) for name, look in used]
    small = [f"{name} ({width}x{height})" for name, width, height in sizes if min(width, height) < crop]
    notes = []
    if small:
        listed = first_few(small, 5)
        what = f"images smaller than the crop of {crop} px, padded with ignored pixels"
        notes.append(f"{what} ({len(small)}): {listed}")
    stored = sorted({i for _, look in used for i in look.stored})
    absent = [name for name, count in _masks_with(pairs, looks).items() if not count]
    binary = stored == [0, IGNORE] and IGNORE in pairs.labels.ignore_index and not pairs.labels.binary
    if absent:
        too_long = absent == list(pairs.labels.class_names[-len(absent) :]) and not binary
        hint = f": the class list has {len(pairs.labels.class_names)} names, is it too long?" if too_long else ""
        notes.append(f"no training mask holds {first_few(absent, 10)}{hint}")
    if binary:
        notes.append("the masks hold only 0 and 255, and 255 is ignored: if it is a class, save it as 1")
    return notes
