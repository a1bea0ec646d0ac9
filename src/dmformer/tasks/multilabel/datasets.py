"""Open photos with several labels: which are for training, for validation and for testing."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...data.decode import Reading
from ...utils.display import Track, untracked
from ...utils.errors import UserError
from ..classification.datasets import (
    PhotoReader,
    Split,
    Splits,
    absent_note,
    check_classes,
    divide_in_folds,
    given_parts,
    split_off,
)
from ..classification.layout import Layout
from ..folders import alike_note
from ..leaks import Copies, find_copies, refuse_leaks, seen_in_training
from ..reading import found_reading
from .labels import LabelledPhotos, read_labels
from .recipes import MultiLabelRecipe


@dataclass(frozen=True)
class LabelSplits(Splits):
    """Photos with several labels, ready to train on.

    The target of a photo is its row in `labels` (N, K), which holds 1 for each of its classes.
    """

    labels: np.ndarray = field(kw_only=True)


def open_label_splits(recipe: MultiLabelRecipe, track: Track = untracked, compare: bool = True) -> LabelSplits:
    """Open what `recipe.data` names; data without splits is split by `recipe.seed_of_split`.

    Args:
        recipe: The recipe. If it has folds, so have the splits, and those of its fold are returned if it has one.
        track: Shows how far it has got.
        compare: Look for photos that occur twice; otherwise only if a random split needs to know them.

    Raises:
        UserError: Nothing there, no photos, no labels, or labels that the training photos do not have.
    """
    join = recipe.folds is not None
    layout = given_parts(recipe.data, recipe.val_data, recipe.test_data, lambda place: _read(recipe, place), join)
    parts, notes = layout.parts, layout.notes
    trained = parts.pop("train")
    class_names = trained.class_names
    if not class_names:
        raise UserError(f"{trained}: no photo has a label.")
    notes += alike_note(class_names)
    for split, part in parts.items():
        notes += check_classes(part, part.class_names, class_names, "the training data", split)
    rows = [_rows(part, class_names) for part in (trained, *parts.values())]
    opened = [_split(trained, 0, Reading(max_pixels=recipe.max_pixels))]
    reading = found_reading(opened[0], recipe.max_pixels, notes.append)
    opened = [replace(opened[0], reading=reading)]
    for part in parts.values():
        opened.append(_split(part, sum(map(len, opened)), reading))
    given = dict(zip(("train", *parts), opened, strict=True))
    labels = np.concatenate(rows)
    needed = compare or "val" not in given
    copies = find_copies(given, recipe.near_duplicates, track=track) if needed else Copies()
    notes += [*copies.notes, *refuse_leaks(given, copies, recipe.allow_leaks)]
    train, val, test = given["train"], given.get("val"), given.get("test")
    rare, folds = replace(train, targets=_rarest(rows[0])), []
    together = [*copies.same, *copies.near]
    if recipe.folds:
        val, folds = train, divide_in_folds(rare, recipe, together)
    elif val is None:
        divided = split_off(rare, recipe, test is None, together)
        train, val, test_part = (None if p is None else replace(p, targets=p.indices) for p in divided)
        for split, drawn in (("validation", val), ("test", test_part)):
            if drawn is not None and len(drawn):
                shown = np.flatnonzero(labels[drawn.targets].any(0))
                notes += absent_note(f"the {split} photos", {class_names[k] for k in shown}, class_names)
        test = test or test_part
    assert train is not None
    assert val is not None
    if not labels[val.targets].any():
        raise UserError(f"{recipe.data}: none of the {len(val)} validation photos has a label: give --val-data.")
    unlabelled = int((~labels.any(1)).sum())
    if unlabelled:
        notes.append(f"{unlabelled:,} photos have no label: they show what belongs to no class")
    kind, rows_of = layout.kind or "photos with several labels", labels.astype(np.float32)
    splits = LabelSplits(class_names, train, val, test, notes, kind, copies, folds, labels=rows_of)
    return splits.of_fold(recipe.fold)


def open_labelled(recipe: MultiLabelRecipe, class_names: list[str]) -> tuple[Split, np.ndarray, list[str]]:
    """Open the photos in `recipe.data` to be scored by a model with these classes: the test split if there are splits,
    else validation, else all of them; their labels (N, K); and remarks on them.

    Raises:
        UserError: Nothing there, or other classes.
    """
    layout = _read(recipe, recipe.data)
    part = layout.parts.get("test") or layout.parts.get("val") or next(iter(layout.parts.values()))
    notes = [*layout.notes, *check_classes(part, part.class_names, class_names, "the model")]
    split = _split(part, 0, Reading(max_pixels=recipe.max_pixels))
    return split, _rows(part, class_names).astype(np.float32), notes


def trained_photos(split: Split, recipe: MultiLabelRecipe) -> int:
    """How many images of a split a run was trained on, by their content; 0 if the run's data is not there any more."""
    try:
        train = open_label_splits(replace(recipe, allow_leaks=True), compare=False).train
    except UserError:
        return 0
    return seen_in_training(split, train)


def _read(recipe: MultiLabelRecipe, place: str) -> Layout[LabelledPhotos]:
    return read_labels(place, recipe.label_separator, recipe.label_columns)


def _rows(part: LabelledPhotos, class_names: Sequence[str]) -> np.ndarray:
    """(N, K), whether each class applies."""
    number = {name: k for k, name in enumerate(class_names)}
    rows = np.zeros((len(part.names), len(class_names)), bool)
    for i, labels in enumerate(part.labels):
        rows[i, [number[name] for name in labels]] = True
    return rows


def _split(part: LabelledPhotos, first: int, reading: Reading) -> Split:
    """The photos, with their rows from `first` on as targets."""
    targets = np.arange(first, first + len(part.names))
    reader = PhotoReader(part.files, part.names, targets.tolist(), part.root)
    return Split(reader, np.arange(len(targets)), targets, reading)


def _rarest(rows: np.ndarray) -> np.ndarray:
    """(N, K) -> (N), the rarest class of each photo, so that a random split has a part of each; -1 without one."""
    counts = np.where(rows, rows.sum(0), rows.size + 1)
    return np.where(rows.any(1), counts.argmin(1), -1)
