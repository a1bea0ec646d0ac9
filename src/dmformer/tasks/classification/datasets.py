"""Open the data that the user names: elpv, labelled photos on disk, and timm's named data sets.

Readers are like timm's: `reader[i] -> (file or image, target)` and `reader.filename(i)`; `Split` adds what training
needs. timm, and with it torch, is imported only for its named data sets.
"""

import contextlib
import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ...data.archives import Files, FolderFiles
from ...data.decode import PLAIN, Reading
from ...data.finding import list_photos, require_heif
from ...data.shards import ShardFiles, Shards, holds_shards, read_shards, without_broken
from ...utils.display import Track, untracked
from ...utils.errors import UserError
from ..folders import alike_note, first_few
from ..leaks import Copies, Group, find_copies, refuse_leaks, seen_in_training
from ..reading import found_reading
from ..recipe import Recipe
from ..tables import composed
from .image_recipe import ClassifierRecipe
from .layout import Labelled, Layout, Part, holds_class_folders, read_layout
from .recipes import ClassificationRecipe

STREAMED = (
    "{} is a stream: with several readers or processes, an epoch may repeat some images and miss others, and a resumed "
    "epoch starts the stream again; shards that `dmformer shards` writes do neither"
)


@dataclass(frozen=True)
class Split:
    """Part of a data set: which images of a reader. `targets` is None if only decoding reveals them (streams)."""

    reader: Any
    indices: np.ndarray | None
    targets: np.ndarray | None
    reading: Reading = PLAIN

    @property
    def is_stream(self) -> bool:
        return self.indices is None

    @property
    def has_names(self) -> bool:
        """Whether its images have file names, which named data sets do not have, or only within the images."""
        return isinstance(self.reader, PhotoReader)

    def __len__(self) -> int:
        return len(self.reader) if self.indices is None else len(self.indices)

    def filename(self, i: int) -> str:
        """Display name of image i of the split."""
        return str(self.reader.filename(int(self.indices[i]))) if self.indices is not None else f"image {i}"

    def open(self, i: int) -> IO[bytes]:
        """The file of image i of the split, for photos on disk."""
        assert self.indices is not None
        return self.reader.open(int(self.indices[i]))

    def target(self, i: int) -> int:
        """The class of image i of the split."""
        assert self.targets is not None
        return int(self.targets[i])


@dataclass(frozen=True)
class Splits:
    """A data set of images, ready to train on; `layout` says in words how it is stored."""

    class_names: list[str]
    train: Split
    val: Split
    test: Split | None
    notes: list[str]
    layout: str = ""
    copies: Copies = field(default_factory=Copies)
    folds: list[np.ndarray] = field(default_factory=list)
    """For data in folds: the images of each, as indices of the reader of `train`. `train` and `val` are then both all
    of them; `of_fold` divides them."""

    def of_fold(self, fold: int | None) -> Self:
        """The splits of a fold, from 1 on: validation on it, training on the others; None changes nothing."""
        if fold is None:
            return self
        targets = np.array(self.train.reader.targets)
        rest = np.sort(np.concatenate([part for i, part in enumerate(self.folds, 1) if i != fold]))
        train, val = (replace(self.train, indices=part, targets=targets[part]) for part in (rest, self.folds[fold - 1]))
        return replace(self, train=train, val=val)


def open_splits(
    recipe: ClassificationRecipe, track: Track = untracked, compare: bool = True, any_val: bool = False
) -> Splits:
    """Open what `recipe.data` names; data without splits is split by `recipe.seed_of_split`.

    Args:
        recipe: The recipe. If it has folds, so have the splits, and those of its fold are returned if it has one.
        track: Shows how far it has got.
        compare: Look for images that occur twice; otherwise only if a random split needs to know them.
        any_val: Accept photos that are too few for validation, or a `val_share` of 0: `val` is empty then.

    Raises:
        UserError: Nothing there, no images, fewer than two classes, or a missing package.
    """
    if recipe.data == "elpv":
        return _open_elpv(recipe).of_fold(recipe.fold)
    shards = _shards(recipe)
    if recipe.folds and (shards or is_named_set(recipe.data)):
        raise UserError(f"--folds divides photos in folders, archives and tables, which {recipe.data} is not.")
    if shards:
        return _open_shards(shards, recipe)
    if is_named_set(recipe.data):
        return _open_named(recipe)
    return _open_local(recipe, track, compare, any_val).of_fold(recipe.fold)


def is_named_set(data: str) -> bool:
    """Whether timm's `create_dataset` knows the data set by name, e.g. torch/cifar10."""
    return data.partition("/")[0].lower() in ("torch", "hfds", "hfids", "wds", "tfds") and not Path(data).exists()


def open_evaluation(recipe: ClassificationRecipe, class_names: list[str]) -> tuple[Split, list[str]]:
    """Open one set of images to be scored by a model with these classes, and remarks on it.

    If labelled photos have splits, this is their test split, else their validation split; otherwise it is all of them.
    For elpv it is the held-out quarter, for shards their test split, for a named data set its `val_split`.

    Raises:
        UserError: Nothing there, or other classes.
    """
    shards = _shards(recipe)
    if recipe.data == "elpv" or shards or is_named_set(recipe.data):
        if shards:
            splits = _open_shards(shards, recipe, train=False)
        else:
            splits = open_splits(recipe) if recipe.data == "elpv" else _open_named(recipe, train=False)
        if splits.class_names != class_names:
            raise UserError(
                f"{recipe.data} has the classes {first_few(splits.class_names, 8)}; "
                f"the model knows {first_few(class_names, 8)}."
            )
        return splits.test or splits.val, splits.notes
    layout = read_layout(recipe.data)
    part = layout.parts.get("test") or layout.parts.get("val") or next(iter(layout.parts.values()))
    notes = [*layout.notes, *check_classes(part, part.class_names, class_names, "the model")]
    return _opened(part, class_names, Reading(max_pixels=recipe.max_pixels)), notes


def files_of(split: Split) -> list[Path] | None:
    """The files of a split's photos; None if the photos are in an archive or a named data set."""
    reader = split.reader
    if split.indices is None or not isinstance(reader, PhotoReader) or not isinstance(reader.files, FolderFiles):
        return None
    return [reader.files.path / reader.names[i] for i in split.indices]


def trained_photos(split: Split, recipe: ClassificationRecipe) -> int | None:
    """How many images of a split a run was trained on; None if that cannot be found out.

    Images are compared by their place and their content.
    """
    if recipe.data == "elpv" or is_named_set(recipe.data) or not isinstance(split.reader, PhotoReader):
        return None
    try:
        train = open_splits(replace(recipe, allow_leaks=True), compare=False).train
    except UserError:  # the data has been moved or changed
        return None
    return seen_in_training(split, train)


class PhotoReader:
    """Files with targets, as a reader; their display names are paths below `root`."""

    def __init__(self, files: Files, names: Sequence[str], targets: Sequence[int], root: str = "") -> None:
        self.files, self.names, self.targets, self.root = files, list(names), list(targets), root

    def open(self, index: int) -> IO[bytes]:
        return self.files.open(self.names[index])

    def __getitem__(self, index: int):
        return self.open(index), self.targets[index]

    def __len__(self) -> int:
        return len(self.names)

    def filename(self, index: int) -> str:
        return self.names[index].removeprefix(self.root)


class _Items:
    """A torchvision dataset of (image, target), as a reader."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int):
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def filename(self, index: int) -> str:
        return f"image {index}"


def open_unlabelled(
    place: str, val_share: float, seed: int, max_pixels: int, say: Callable[[str], None]
) -> tuple[Split, Split]:
    """The images of a folder at any depth, whatever its subfolders are called: training and validation images.

    `say` takes remarks on what was left out.

    Raises:
        UserError: No folder, or fewer than two images.
    """
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"{place} is not a folder: photos without labels are read from folders.")
    names = [Path(path).relative_to(root).as_posix() for path in list_photos([place], say)]
    require_heif(names)
    reader = PhotoReader(FolderFiles(root), names, [-1] * len(names))
    train, val = _divide(np.zeros(len(names), int), np.arange(len(names)), val_share, seed)
    if len(val) == 0:
        raise UserError(f"{place}: {len(names)} is too few photos to split off some for validation.")
    unknown = np.full(len(names), -1)
    reading = found_reading(Split(reader, train, None), max_pixels, say)
    return Split(reader, train, unknown[train], reading), Split(reader, val, unknown[val], reading)


def has_class_folders(place: str) -> bool:
    """Whether a location holds images in class folders, or splits of them: an archive does; a folder does if two or
    more of its subfolders hold images and no image is beside them."""
    path = Path(place)
    return holds_class_folders(path) if path.is_dir() else True


def _open_elpv(recipe: ClassificationRecipe) -> Splits:
    """Solar cells: a probability of defect of 0 or 1/3 is sound, 2/3 or 1 defective, following the authors.

    The held-out quarter (656) is stratified by probability and kind of cell, with a fixed seed independent of the
    recipe, so that all runs are scored on the same images; a tenth of the rest is for validation.
    """
    try:
        import elpv_dataset
    except ImportError:
        raise UserError(
            "the default data comes with the extra 'demo': pip install 'dmformer[demo]', or give --data FOLDER."
        ) from None
    root = Path(elpv_dataset.__file__).parent / "data"
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines() if line.strip()]
    names = [path for path, _, _ in rows]
    targets = np.array([int(float(probability) > 0.5) for _, probability, _ in rows])
    strata = np.array([f"{kind} {float(probability):.2f}" for _, probability, kind in rows])
    rest, test = _divide(strata, np.arange(len(names)), 0.25, seed=0)
    train, val = (rest, rest) if recipe.folds else _divide(strata, rest, 0.1, seed=0)
    reader = PhotoReader(FolderFiles(root), names, targets.tolist(), "images/")
    parts = (Split(reader, part, targets[part]) for part in (train, val, test))
    splits = Splits(["sound", "defective"], *parts, notes=[])
    return _in_folds(splits, recipe) if recipe.folds else splits


def given_parts(
    data: str,
    val_data: str | None,
    test_data: str | None,
    read: Callable[[str], Layout[Part]],
    join: bool = False,
) -> Layout[Part]:
    """The photos in three places by split; those of the first place without a split are "train".

    With `join`, the photos of "val" are in "train" too.

    Raises:
        UserError: As `read`, or there is nothing to train on.
    """
    layout = read(data)
    parts, notes = dict(layout.parts), list(layout.notes)
    if not {"train", ""} & set(parts):
        raise UserError(f"{data} has {' and '.join(parts)} but no train: put the class folders to train on there.")
    parts = {"train": parts.pop("train", None) or parts.pop(""), **parts}
    for split, place in (("val", val_data), ("test", test_data)):
        if place is not None:
            extra = read(place)
            parts[split] = extra.parts.get(split) or extra.parts.get("") or next(iter(extra.parts.values()))
            notes += [f"{place}: {note}" for note in extra.notes]
    if join and "val" in parts:
        parts["train"] = _joined(parts["train"], parts.pop("val"))
    return Layout(parts, notes, layout.kind)


def _joined(train: Any, val: Any) -> Any:
    """The photos of two splits as one."""
    if train.files is not val.files:
        raise UserError("--folds divides the photos of --data: leave out --val-data.")
    both = {f.name: (getattr(train, f.name), getattr(val, f.name)) for f in fields(train)}
    lists = {name: of_train + of_val for name, (of_train, of_val) in both.items() if isinstance(of_train, list)}
    root = posixpath.commonpath([train.root, val.root])
    return replace(train, **lists, root=f"{root}/" if root else "")


def _open_local(recipe: ClassificationRecipe, track: Track, compare: bool, any_val: bool) -> Splits:
    layout = given_parts(recipe.data, recipe.val_data, recipe.test_data, read_layout, recipe.folds is not None)
    parts, notes = layout.parts, layout.notes
    trained = parts.pop("train")
    class_names = trained.class_names
    if len(class_names) < 2:
        raise UserError(_one_class(recipe.data, trained))
    notes += alike_note(class_names)
    for split in parts:
        notes += check_classes(parts[split], parts[split].class_names, class_names, "the training data", split)
    reading = Reading(max_pixels=recipe.max_pixels)
    train = _opened(trained, class_names, reading)
    reading = found_reading(train, recipe.max_pixels, notes.append)
    train = replace(train, reading=reading)
    val, test = (_opened(parts[s], class_names, reading) if s in parts else None for s in ("val", "test"))
    given = {name: split for name, split in (("train", train), ("val", val), ("test", test)) if split is not None}
    copies = Copies()
    if compare or val is None:
        copies = find_copies(given, recipe.near_duplicates, lambda name, i: given[name].target(i), track=track)
    notes += [*copies.notes, *refuse_leaks(given, copies, recipe.allow_leaks)]
    together = [*copies.same, *copies.near]
    if recipe.folds:
        return _in_folds(Splits(class_names, train, train, test, notes, layout.kind, copies), recipe)
    if val is None:
        train, val, test_part = split_off(train, recipe, test is None, together, any_val)
        for split, drawn in (("validation", val), ("test", test_part)):
            if drawn is not None and len(drawn):
                shown = {class_names[drawn.target(i)] for i in range(len(drawn))}
                notes += absent_note(f"the {split} photos", shown, class_names)
        test = test or test_part
    return Splits(class_names, train, val, test, notes, layout.kind, copies)


def _one_class(data: str, trained: Labelled) -> str:
    only = trained.class_names[0]
    told = f"{data} holds one class, '{only}': a classifier needs two or more, each a folder."
    inside = {name.removeprefix(trained.root).split("/")[1] for name in trained.names if name.count("/") > 1}
    if len(inside) > 1 and isinstance(trained.files, FolderFiles):
        told += f" If the folders in it are the classes, give --data {Path(str(trained)) / only}."
    return told


def _opened(part: Labelled, class_names: list[str], reading: Reading) -> Split:
    """The photos of these classes."""
    number = {composed(name): i for i, name in enumerate(class_names)}
    targets = [number[name] for name in part.classes]
    root = part.root if isinstance(part.files, FolderFiles) else ""
    reader = PhotoReader(part.files, part.names, targets, root)
    return Split(reader, np.arange(len(reader)), np.array(targets), reading)


def _strange(strangers: Sequence[str], known: set[str], owner: str) -> str:
    """What is wrong with classes that are not known: that they are written in another case, or nothing like it."""
    by_case = {name.casefold(): name for name in known}
    pairs = [f"'{by_case[name.casefold()]}'" for name in strangers if name.casefold() in by_case]
    if pairs:
        return f"{owner} has {first_few(pairs, 4)}: write the names alike."
    return f"{owner} does not know them ({first_few(sorted(known), 8)}): take them out."


def check_classes(part: Any, found: Sequence[str], class_names: list[str], owner: str, split: str = "") -> list[str]:
    """A remark if classes have no photos.

    Args:
        part: The photos, as a string in messages.
        found: The classes that they show.
        class_names: The classes known.
        owner: Who knows these, in words.
        split: The name of the photos' split.

    Raises:
        UserError: There are photos of other classes.
    """
    known = {composed(name) for name in class_names}
    strangers = [name for name in found if name not in known]
    if strangers:
        raise UserError(f"{part} has the classes {first_few(strangers, 8)}; {_strange(strangers, known, owner)}")
    return absent_note(f"the {split} photos" if split else str(part), found, sorted(known))


def absent_note(what: str, found: Iterable[str], class_names: Sequence[str]) -> list[str]:
    """A remark on those of the known classes that some photos do not show."""
    shown = set(found)
    absent = [name for name in class_names if name not in shown]
    count = f"{len(absent)} of {len(class_names)} classes"
    return [f"{what} show none of {count}, which no score covers: {first_few(absent, 8)}"] if absent else []


def split_off(
    split: Split, recipe: Recipe, with_test: bool, together: Sequence[Group], any_val: bool = False
) -> tuple[Split, Split, Split | None]:
    """Split photos at random, each class alike; photos of a group stay together.

    Raises:
        UserError: Too few photos, unless `any_val` accepts that none is left for validation.
    """
    assert split.indices is not None
    assert split.targets is not None
    rest, test, seed = split.indices, None, recipe.seed_of_split
    if with_test and recipe.test_share:
        rest, test = _divide(split.targets, rest, recipe.test_share, seed)
    train, val = _divide(split.targets, rest, recipe.val_share / (1 - recipe.test_share * with_test), seed)
    train, val, test = _kept_together([train, val, test], together)
    assert val is not None
    if not (len(val) or any_val):
        told = f"{recipe.data}: {len(split)} images, of which copies stay together, are too few"
        raise UserError(f"{told} to split off validation images: give --val-data, or a larger --val-share.")
    parts = [None if p is None else replace(split, indices=p, targets=split.targets[p]) for p in (train, val, test)]
    return parts[0], parts[1], parts[2]  # type: ignore[return-value]


def _in_folds(splits: Splits, recipe: ClassificationRecipe) -> Splits:
    """The splits with folds; UserError if a class has fewer photos than there are folds, or as `divide_in_folds`."""
    assert splits.train.targets is not None
    assert recipe.folds is not None
    counts = np.bincount(splits.train.targets, minlength=len(splits.class_names))
    if (fewest := int(counts.min())) < recipe.folds:
        told = f"'{splits.class_names[int(counts.argmin())]}' has {fewest} photo{'s' * (fewest != 1)}"
        told += f", fewer than the {recipe.folds} folds"
        remedy = f"give --folds {fewest} or fewer" if fewest > 1 else "add photos, or take the class out"
        raise UserError(f"{recipe.data}: {told}, each of which needs one to be scored on: {remedy}.")
    copies = splits.copies
    return replace(splits, folds=divide_in_folds(splits.train, recipe, [*copies.same, *copies.near]))


def divide_in_folds(split: Split, recipe: ClassifierRecipe, together: Sequence[Group] = ()) -> list[np.ndarray]:
    """The indices of a split in folds, each class alike; photos of a group stay together.

    Raises:
        UserError: Too few photos.
    """
    assert split.indices is not None
    assert split.targets is not None
    assert recipe.folds is not None
    generator = np.random.default_rng(recipe.seed_of_split)
    classes = [split.indices[split.targets == k] for k in np.unique(split.targets)]
    dealt = np.concatenate([generator.permutation(members) for members in classes])
    folds = _kept_together([dealt[i :: recipe.folds] for i in range(recipe.folds)], together)
    if not all(fold is not None and len(fold) for fold in folds):
        raise UserError(f"{recipe.data}: {len(split)} is too few photos for {recipe.folds} folds: give fewer --folds.")
    return [fold for fold in folds if fold is not None]


def _kept_together(parts: Sequence[np.ndarray | None], groups: Sequence[Group]) -> list[np.ndarray | None]:
    """The parts, with the photos of each group in the part of its first photo in "train"."""
    part_of = {int(i): k for k, part in enumerate(parts) if part is not None for i in part}
    for group in groups:
        members = [i for name, i in group if name == "train"]
        for i in members:
            part_of[i] = part_of[members[0]]
    return [
        None if part is None else np.array(sorted(i for i, own in part_of.items() if own == k), int)
        for k, part in enumerate(parts)
    ]


def _divide(strata: np.ndarray, indices: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split `indices` in two, `share` of every stratum in the second; a stratum of one stays in the first."""
    generator = np.random.default_rng(seed)
    first, second = [], []
    carry = 0.5  # the rounding remainder carries over to the next stratum, so that the total is right
    for stratum in np.unique(strata[indices]):
        members = generator.permutation(indices[strata[indices] == stratum])
        exact = share * len(members) + carry
        n = min(int(exact), len(members) - 1)
        carry = min(exact - n, 1.0)
        first.append(members[n:])
        second.append(members[:n])
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(second))


def _shards(recipe: ClassificationRecipe) -> Shards | None:
    """The shards that `dmformer shards` wrote at the place that a recipe names: a folder, or wds/ before a folder or a
    URL, or wds/NAME with the place as `data_root`."""
    if Path(recipe.data).is_dir():
        return read_shards(recipe.data) if holds_shards(recipe.data) else None
    prefix, _, rest = recipe.data.partition("/")
    return read_shards(recipe.data_root or rest) if prefix.lower() == "wds" else None


def _open_shards(shards: Shards, recipe: ClassificationRecipe, train: bool = True) -> Splits:
    """Photos in shards; copies across the splits were looked for when they were written."""
    notes: list[str] = []

    def opened(name: str) -> Split:
        if name not in shards.splits:
            raise UserError(f"{shards.place} has no split '{name}': it has {first_few(list(shards.splits), 5)}.")
        kept, remarks = without_broken(shards.place, name, shards.splits[name], recipe.max_broken)
        notes.extend(remarks)
        reader = PhotoReader(ShardFiles(shards.place, kept), kept.names, kept.targets)
        reading = Reading(shards.values, recipe.max_pixels)
        return Split(reader, np.arange(len(kept)), np.array(kept.targets), reading)

    val = opened(recipe.val_split)
    own_test = "test" in shards.splits and recipe.val_split == ClassificationRecipe.val_split
    return Splits(
        shards.class_names,
        opened(recipe.train_split) if train else val,
        val,
        opened("test") if own_test else None,
        notes,
    )


def _open_named(recipe: ClassificationRecipe, train: bool = True) -> Splits:
    """Data sets that timm's `create_dataset` knows: torchvision's, the hub's, streams and other programs' shards."""
    val = _named_split(recipe, recipe.val_split, training=False)
    train_split = _named_split(recipe, recipe.train_split, training=True) if train else val
    notes = [STREAMED.format(recipe.data)] if train_split.is_stream else []
    return Splits(_named_classes(val.reader, recipe), train_split, val, None, notes)


def _named_split(recipe: ClassificationRecipe, split: str, training: bool) -> Split:
    from timm.data import create_dataset
    from timm.data.dataset import IterableImageDataset

    options: dict[str, Any] = {"download": True} if recipe.download else {}
    try:
        dataset: Any = create_dataset(
            recipe.data,
            root=recipe.data_root,
            split=split,
            is_training=training,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            **options,
        )
    except ImportError as error:
        raise UserError(f"{recipe.data} needs a package that is not installed: {error}.") from None
    except Exception as error:  # each kind of data set has its own errors
        raise UserError(f"{recipe.data} (split '{split}') cannot be opened: {error or type(error).__name__}") from None
    if isinstance(dataset, IterableImageDataset):
        return Split(dataset, None, None)
    reader = getattr(dataset, "reader", None) or _Items(dataset)
    targets = None
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        targets = np.asarray(dataset.targets if isinstance(reader, _Items) else reader.dataset[reader.label_key])
    return Split(reader, np.arange(len(reader)), targets)


def _named_classes(reader: Any, recipe: ClassificationRecipe) -> list[str]:
    inner = getattr(reader, "reader", reader)
    dataset = getattr(inner, "dataset", None)
    names = getattr(dataset, "classes", None)
    if names is None:
        features = getattr(dataset, "features", None) or getattr(getattr(inner, "builder", None), "info", None)
        features: Any = getattr(features, "features", features)
        with contextlib.suppress(Exception):
            names = next(f.names for f in features.values() if hasattr(f, "names"))
    if names is None and recipe.num_classes:
        names = [str(i) for i in range(recipe.num_classes)]
    if names is None:
        raise UserError(f"{recipe.data} does not say its classes: give their number with --num-classes.")
    return [str(name) for name in names]
