"""Open the data that the user names: elpv, folders, tars and timm's named data sets.

Readers are timm's: `reader[i] -> (file or image, target)` and `reader.filename(i)`; `Split` adds what training needs.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data import create_dataset
from timm.data.dataset import IterableImageDataset
from timm.data.readers.img_extensions import add_img_extensions
from timm.data.readers.reader import Reader
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from ...data.decode import SUFFIXES, list_photos
from ...utils.errors import UserError
from ..folders import SPLITS
from .recipes import ClassificationRecipe

add_img_extensions(SUFFIXES)


class Place(NamedTuple):
    """A folder, a tar, or the content below a member of a tar."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.member}/)' if self.member else ''}"


@dataclass(frozen=True)
class Split:
    """Part of a data set: which images of a reader. `targets` is None if only decoding reveals them (streams)."""

    reader: Any
    indices: np.ndarray | None
    targets: np.ndarray | None

    @property
    def is_stream(self) -> bool:
        return isinstance(self.reader, IterableImageDataset)

    def __len__(self) -> int:
        return len(self.reader) if self.indices is None else len(self.indices)

    def filename(self, i: int) -> str:
        """Display name of image i of the split."""
        return str(self.reader.filename(int(self.indices[i]))) if self.indices is not None else f"image {i}"


@dataclass(frozen=True)
class Splits:
    """A data set of images, ready to train on."""

    class_names: list[str]
    train: Split
    val: Split
    test: Split | None
    notes: list[str]


def open_splits(recipe: ClassificationRecipe) -> Splits:
    """Open what `recipe.data` names; data without splits is split by `recipe.seed`.

    Raises:
        UserError: Nothing there, no images, fewer than two classes, or a missing package.
    """
    if recipe.data == "elpv":
        return _open_elpv(recipe)
    if is_named_set(recipe.data):
        return _open_named(recipe)
    return _open_local(recipe)


def is_named_set(data: str) -> bool:
    """Whether timm's `create_dataset` knows the data set by name, e.g. torch/cifar10."""
    return data.partition("/")[0].lower() in ("torch", "hfds", "hfids", "wds", "tfds") and not Path(data).exists()


def open_evaluation(recipe: ClassificationRecipe, class_names: list[str]) -> Split:
    """Open one set of images to be scored by a model with these classes.

    If a folder or tar has splits, this is its test split, else its validation split; otherwise it is all of it. For
    elpv it is the held-out quarter, for a named data set its `val_split`.

    Raises:
        UserError: Nothing there, or other classes.
    """
    if recipe.data == "elpv" or is_named_set(recipe.data):
        splits = open_splits(recipe) if recipe.data == "elpv" else _open_named(recipe, train=False)
        if splits.class_names != class_names:
            raise UserError(
                f"{recipe.data} has the classes {', '.join(splits.class_names[:8])}; "
                f"the model knows {', '.join(class_names[:8])}."
            )
        return splits.test or splits.val
    roots = _local_roots(Path(recipe.data))
    root = roots.get("test") or roots.get("val") or roots.get("train") or roots[""]
    found = list(_class_index(_local_reader(root, None)))
    strangers = [name for name in found if name not in class_names]
    if strangers:
        raise UserError(
            f"{root} has the classes {', '.join(found[:8])}; the model does not know {', '.join(strangers[:8])}."
        )
    return _whole(_local_reader(root, {name: i for i, name in enumerate(class_names)}))


class _Files(Reader):
    """Files with targets, as a timm reader; filenames are paths below `root`."""

    def __init__(self, paths: Sequence[Path], targets: Sequence[int], root: Path | None = None) -> None:
        super().__init__()
        self.paths, self.targets, self.root = list(paths), list(targets), root

    def __getitem__(self, index: int):
        return open(self.paths[index], "rb"), self.targets[index]

    def __len__(self) -> int:
        return len(self.paths)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.paths[index]
        if absolute or basename or self.root is None:
            return str(path) if absolute else path.name
        return str(path.relative_to(self.root))


class _Items(Reader):
    """A torchvision dataset of (image, target), as a timm reader."""

    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def __getitem__(self, index: int):
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f"image {index}"


class _TarPart(Reader):
    """The images below one folder of a tar."""

    def __init__(self, tar: ReaderImageInTar, members: np.ndarray) -> None:
        super().__init__()
        self.tar, self.members = tar, members

    def __getitem__(self, index: int):
        return self.tar[self.members[index]]

    def __len__(self) -> int:
        return len(self.members)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return str(self.tar.filename(self.members[index], basename, absolute))


def open_unlabelled(place: str, val_share: float, seed: int) -> tuple[Split, Split]:
    """The images of a folder at any depth, whatever its subfolders are called: training and validation images.

    Raises:
        UserError: No folder, or fewer than two images.
    """
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"{place} is not a folder: photos without labels are read from folders.")
    paths = [Path(path) for path in list_photos([place])]
    reader = _Files(paths, [-1] * len(paths), root)
    train, val = _divide(np.zeros(len(paths), int), np.arange(len(paths)), val_share, seed)
    if len(val) == 0:
        raise UserError(f"{place}: {len(paths)} photos are too few to split off some for validation.")
    unknown = np.full(len(paths), -1)
    return Split(reader, train, unknown[train]), Split(reader, val, unknown[val])


def has_class_folders(place: str) -> bool:
    """Whether a location holds images in class folders, or splits of them: a .tar does; a folder does if two or more of
    its subfolders hold images and no image is beside them."""
    path = Path(place)
    if not path.is_dir():
        return True
    for root in (path, *(path / name for names in SPLITS.values() for name in names)):
        photos, folders = False, 0
        for entry in root.iterdir() if root.is_dir() else ():
            photos = photos or (entry.suffix.lower() in SUFFIXES and entry.is_file())
            folders += entry.is_dir() and any(p.suffix.lower() in SUFFIXES for p in entry.rglob("*"))
        is_split = root == path and any((path / name).is_dir() for names in SPLITS.values() for name in names)
        if folders >= 2 and not photos and not is_split:
            return True
    return False


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
    paths = [root / path for path, _, _ in rows]
    targets = np.array([int(float(probability) > 0.5) for _, probability, _ in rows])
    strata = np.array([f"{kind} {float(probability):.2f}" for _, probability, kind in rows])
    rest, test = _divide(strata, np.arange(len(paths)), 0.25, seed=0)
    train, val = _divide(strata, rest, 0.1, seed=0)
    reader = _Files(paths, targets.tolist())
    parts = (Split(reader, part, targets[part]) for part in (train, val, test))
    return Splits(["sound", "defective"], *parts, notes=[])


def _open_local(recipe: ClassificationRecipe) -> Splits:
    roots = _local_roots(Path(recipe.data))
    if not {"train", ""} & set(roots):
        raise UserError(
            f"{recipe.data} has {' and '.join(roots)} but no train: put the class folders to train on there."
        )
    for name, place in (("val", recipe.val_data), ("test", recipe.test_data)):
        if place is not None:
            extra = _local_roots(Path(place))
            roots[name] = extra.get(name) or extra.get("") or next(iter(extra.values()))
    reader = _local_reader(roots.get("train") or roots[""], None)
    classes = _class_index(reader)
    class_names = list(classes)
    if len(class_names) < 2:
        raise UserError(
            f"{recipe.data} holds one class, '{class_names[0]}': a classifier needs two or more, each a folder."
        )
    train = _whole(reader)
    val = _whole(_local_reader(roots["val"], classes)) if "val" in roots else None
    test = _whole(_local_reader(roots["test"], classes)) if "test" in roots else None
    notes = _empty_classes(roots.get("train") or roots[""], class_names)
    if val is None:
        train, val, test_part = _split_off(train, recipe, with_test=test is None)
        test = test or test_part
    return Splits(class_names, train, val, test, notes)


def _split_off(split: Split, recipe: ClassificationRecipe, with_test: bool) -> tuple[Split, Split, Split | None]:
    assert split.indices is not None
    assert split.targets is not None
    rest, test = split.indices, None
    if with_test and recipe.test_share:
        rest, test = _divide(split.targets, rest, recipe.test_share, recipe.seed)
    train, val = _divide(split.targets, rest, recipe.val_share / (1 - recipe.test_share * with_test), recipe.seed)
    if len(val) == 0:
        raise UserError(
            f"{recipe.data}: {len(split)} images are too few to split off validation images: "
            "give --val-data, or a larger --val-share."
        )
    parts = [None if part is None else Split(split.reader, part, split.targets[part]) for part in (train, val, test)]
    return parts[0], parts[1], parts[2]  # type: ignore[return-value]


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


def _local_roots(path: Path) -> dict[str, Place]:
    """Locations of the splits found at a path; {"": place} if there is no split."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder of class folders, a .tar, or a set's name.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: check its permissions.")
    if path.is_file():
        if path.suffix.lower() != ".tar":
            raise UserError(f"{path} is a file: give a folder of class folders, or an uncompressed .tar of one.")
        tops = _tar_tops(path)
        roots = {split: Place(path, name) for split, names in SPLITS.items() for name in names if name in tops}
    else:
        found = ((split, path / name) for split, names in SPLITS.items() for name in names)
        roots = {split: Place(folder) for split, folder in found if folder.is_dir()}
    return roots or {"": Place(path)}


def _tar_tops(path: Path) -> set[str]:
    import tarfile

    try:
        with tarfile.open(path) as tar:
            return {member.name.removeprefix("./").split("/")[0] for member in tar}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a tar: {error}.") from None


def _local_reader(root: Place, classes: dict[str, int] | None) -> Any:
    """A reader of one location; with `classes`, only of their images."""
    path, member = str(root.path), root.member
    class_map: Any = classes or ""
    try:
        if root.path.is_file():
            tar = ReaderImageInTar(path, class_map=class_map, cache_tarinfo=False)
            if not member:
                return tar
            inside = [i for i, s in enumerate(tar.samples) if s[0].name.removeprefix("./").startswith(member + "/")]
            if not inside:
                raise RuntimeError("no image")
            return _TarPart(tar, np.array(inside))
        reader = ReaderImageFolder(path, class_map=class_map)
    except (RuntimeError, ValueError) as error:
        if classes is not None:
            raise UserError(f"{root} holds no image of the classes {', '.join(list(classes)[:8])}.") from None
        raise UserError(f"{root} holds no images: it needs one folder a class with images in it.") from error
    if "" in reader.class_to_idx:
        raise UserError(f"{root} holds images outside class folders: put each class's images in a folder of its own.")
    return reader


def _class_index(reader: Any) -> dict[str, int]:
    if isinstance(reader, _TarPart):
        return _class_index(reader.tar)
    index: Any = reader.class_name_to_idx if isinstance(reader, ReaderImageInTar) else reader.class_to_idx
    return dict(index)


def _targets(reader: Any) -> np.ndarray:
    if isinstance(reader, _TarPart):
        return _targets(reader.tar)[reader.members]
    if isinstance(reader, ReaderImageFolder):
        return np.array([target for _, target in reader.samples])
    return np.asarray(reader.targets)


def _whole(reader: Any) -> Split:
    return Split(reader, np.arange(len(reader)), _targets(reader))


def _empty_classes(root: Place, class_names: list[str]) -> list[str]:
    path = root.path
    if not path.is_dir():
        return []
    empty = sorted(p.name for p in path.iterdir() if p.is_dir() and p.name not in class_names and not any(p.iterdir()))
    return [f"class folders without images, left out: {', '.join(empty)}"] if empty else []


def _open_named(recipe: ClassificationRecipe, train: bool = True) -> Splits:
    """Data sets that timm's `create_dataset` knows: torchvision's, the hub's, streams and shards."""
    val = _named_split(recipe, recipe.val_split, training=False)
    train_split = _named_split(recipe, recipe.train_split, training=True) if train else val
    return Splits(_named_classes(val.reader, recipe), train_split, val, None, [])


def _named_split(recipe: ClassificationRecipe, split: str, training: bool) -> Split:
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
