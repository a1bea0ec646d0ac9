"""Put the photos of a data set into shards."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ...data.shards import Source, write_shards
from ...utils.errors import UserError
from .datasets import Split, is_named_set, open_splits
from .recipes import ClassificationRecipe


def write(
    recipe: ClassificationRecipe,
    folder: Path,
    shard_bytes: int,
    progress: Callable[[Iterable, str], Iterable] = lambda items, what: items,
) -> tuple[dict[str, int], list[str]]:
    """Write the photos that a recipe would be trained on, validated and tested with, as shards into an empty folder.

    Returns:
        The number of photos by split, and remarks for the user.

    Raises:
        UserError: The photos cannot be opened, or are not files.
    """
    if is_named_set(recipe.data):
        raise UserError(f"{recipe.data} is a named set: shards are written from photos in folders, archives or tables.")
    splits = open_splits(recipe, any_val=True)
    parts = {"train": splits.train, "validation": splits.val, "test": splits.test}
    sources = {name: _source(split) for name, split in parts.items() if split}
    values = splits.train.reading.values
    counts, notes = write_shards(folder, sources, splits.class_names, values, shard_bytes, recipe.seed, progress)
    if not splits.val:
        notes.append("there are no validation photos: other programs read these shards, `dmformer train` does not")
    return counts, [*splits.notes, *notes]


def _source(split: Split) -> Source:
    assert split.targets is not None
    names = [split.filename(i) for i in range(len(split))]
    return Source(names, split.targets.tolist(), split.open)
