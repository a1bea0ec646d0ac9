"""The data sets that a backbone is pretrained on, labelled or not; without torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...utils.display import Track, untracked
from ..classification.datasets import Split, Splits, has_class_folders, open_splits, open_unlabelled
from ..classification.recipes import ClassificationRecipe
from ..view import View
from .recipes import PretrainingRecipe


@dataclass(frozen=True)
class Source:
    """A set of images: its name, its classes (none if it has no labels), its parts."""

    name: str
    class_names: list[str]
    train: Split
    val: Split


Sources = tuple[list[Source], list[str]]
"""The opened data sets, and remarks on them."""


def open_sources(recipe: PretrainingRecipe, track: Track = untracked) -> Sources:
    """The data sets that a recipe names, each split into training and validation images; and remarks on them."""
    sources: list[Source] = []
    notes: list[str] = []
    for place, labelled in [
        *((p, has_class_folders(p)) for p in recipe.data),
        *((p, False) for p in recipe.unlabelled),
    ]:
        name = Path(place).stem if Path(place).is_file() else Path(place).resolve().name
        while any(source.name == name for source in sources):
            name += "'"
        remarks: list[str] = []
        if labelled:
            splits = opened(place, recipe, test_share=0.0, track=track)
            sources.append(Source(name, splits.class_names, splits.train, splits.val))
            remarks = splits.notes
        else:
            seed = recipe.seed_of_split
            train, val = open_unlabelled(place, recipe.val_share, seed, recipe.max_pixels, remarks.append)
            sources.append(Source(name, [], train, val))
        notes += [f"{name}: {remark}" for remark in remarks]
    return sources, notes


def view(sources: Sources) -> View:
    """What the page on the data shows; see `View`. The classes of several sets have no common table."""
    found, notes = sources
    only = found[0] if len(found) == 1 and found[0].class_names else None
    parts = {f"{source.name} {name}": part for source in found for name, part in _parts(source).items()}
    return View(
        layout=" and ".join("labelled photos" if source.class_names else "photos without labels" for source in found),
        splits=parts,
        class_names=only.class_names if only else (),
        counted="photos",
        counts={name: _counts(part, len(only.class_names)) for name, part in parts.items()} if only else {},
        reading=found[0].train.reading,
        notes=notes,
    )


def _parts(source: Source) -> dict[str, Split]:
    return {"train": source.train, "val": source.val}


def _counts(split: Split, classes: int) -> list[int]:
    assert split.targets is not None
    return np.bincount(split.targets, minlength=classes).tolist()


def opened(place: str, recipe: PretrainingRecipe, test_share: float, track: Track = untracked) -> Splits:
    """A labelled data set, split by the recipe's seed if it is not split."""
    val_share = recipe.val_share if test_share == 0 else ClassificationRecipe.val_share
    return open_splits(
        ClassificationRecipe(
            data=place,
            val_share=val_share,
            test_share=test_share,
            seed=recipe.seed_of_split,
            max_pixels=recipe.max_pixels,
            allow_leaks=recipe.allow_leaks,
            near_duplicates=recipe.near_duplicates,
        ),
        track,
    )
