"""Folders of images and the files beside them: splits, lists, class names, and how faults in them are reported."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..data.finding import is_photo
from ..utils.errors import UserError, first_line

SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test",)}
"""Folder names recognised as a split."""


NAMES_FILE = "objectInfo150.txt"

Fault = tuple[str, str]
"""An image's display name, and what is wrong with it or its mask."""

Progress = Callable[[Iterable], Iterable]


def existing_folder(path: str, what: str) -> Path:
    """A folder named by the user, described by `what`.

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


def split_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split inside a folder, under any of its names."""
    return next((folder / name for name in SPLITS[split] if (folder / name).is_dir()), None)


def voc_root(root: Path, labels: str) -> Path | None:
    """The Pascal VOC folder that has a `labels` folder, in or below `root`; the last one if there are several years."""
    below = sorted([*root.glob("VOC20??"), *root.glob("VOCdevkit/VOC20??")], key=lambda path: path.name, reverse=True)
    is_voc = (path for path in (root, *below) if (path / "JPEGImages").is_dir() and (path / labels).is_dir())
    return next(is_voc, None)


def voc_lists(folder: Path) -> dict[str, list[str]]:
    """Image names by split from VOC's train.txt, val.txt, trainval.txt and test.txt; "" if only trainval exists."""
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
    """Lines of a text file that contains a list, without empty ones; UserError if it is no such file."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text: {first_line(error)}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _without_suffix(name: str) -> str:
    return name[: -len(Path(name).suffix)] if is_photo(name) else name


def image_files(folder: Path, ending: str = "") -> dict[str, Path]:
    """Image files below a folder whose stems end in `ending`, keyed by relative path without that ending, in order."""
    files: dict[str, Path] = {}
    for path in sorted(walk(folder)):
        if path.stem.endswith(ending):
            key = path.relative_to(folder).with_name(path.stem.removesuffix(ending)).as_posix()
            if key in files:
                names = f"{relative_name(files[key], folder)} and {relative_name(path, folder)}"
                raise UserError(f"{folder}: {names} differ only in their suffix: rename or remove one.")
            files[key] = path
    return files


def walk(folder: Path) -> Iterable[Path]:
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if not name.startswith(".") and is_photo(name):
                yield Path(place, name)


def share_out(
    what: str, count: int, val_share: float, test_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split `count` images, called `what` in the error, at random into training, validation and test images."""
    order = np.random.default_rng(seed).permutation(count)
    test_size, val_size = (round(share * count) for share in (test_share, val_share))
    if not val_size or count <= test_size + val_size:
        raise UserError(
            f"{what} are too few to split off validation images: "
            "add some, give a larger --val-share, or create folders named training and validation."
        )
    test, val, train = (np.sort(part) for part in np.split(order, [test_size, test_size + val_size]))
    return train, val, test


def given_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as the user gave them: the names themselves, or the path of one text file with one name per line."""
    if len(classes) == 1 and Path(classes[0]).is_file():
        return names_in(Path(classes[0]))
    if len(classes) == 1 and classes[0].lower().endswith(".txt"):
        raise UserError(f"{classes[0]} does not exist: give a text file with one class name per line.")
    return tuple(name.strip() for name in classes)


def names_in(path: Path) -> tuple[str, ...]:
    """Names in a text file, one per line, or in the last column of SceneParsing's objectInfo150.txt."""
    lines = lines_of(path)
    if lines and re.match(r"idx\b", lines[0], re.IGNORECASE):
        lines = [re.sub(r"^\d+(\s+[\d.]+){3,4}\s+", "", line) for line in lines[1:]]
    if not lines:
        raise UserError(f"{path} is empty: write one class name per line.")
    return tuple(lines)


# ---- words


def first_faults(faults: Sequence[Fault], most: int) -> str:
    """The first faults in one line."""
    return "; ".join(f"{name}: {reason}" for name, reason in faults[:most]) + ("; …" if len(faults) > most else "")


def check_broken(what: str, broken: Sequence[int], total: int, name: Callable[[int], str], max_broken: float) -> None:
    """Raise UserError with a list if more than a fraction of some images cannot be read.

    Args:
        what: What the images are, for the message: "training photos".
        broken: Positions of the unreadable ones.
        total: Number of images.
        name: Maps a position to a display name.
        max_broken: Maximum fraction.
    """
    if len(broken) > max_broken * total:
        listed = first_few([name(i) for i in broken[:21]], 20)
        told = f"{len(broken)} of {total} {what} cannot be read, more than --max-broken {max_broken:g}"
        raise UserError(f"{told}: {listed}")


def first_few(names: Sequence[str], most: int) -> str:
    """The first names in one line."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def relative_name(path: Path, root: Path) -> str:
    """A path relative to the root as users see it; in full if it is outside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
