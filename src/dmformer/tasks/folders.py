"""Folders of images and the files beside them: splits, lists, class names, and how faults in them are reported."""

import contextlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.finding import SPLIT_NAMES, find_photos, is_litter, is_part, is_photo, no_remark, split_of
from ..utils.errors import UserError
from ..utils.files import read_text
from ..utils.visible import visible

NAMES_FILE = "objectInfo150.txt"

NUMBERED = re.compile(r"(?P<number>\d+)(?P<sign>\s*[:;,=\t]\s*| +)(?P<name>\S.*)")
COLOURED = re.compile(r"(.*?\S)[\s,;:]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})")
"""Lines of a list of classes: the number and the name; the name and its colour."""

ANNOTATIONS = (".txt", ".xml", ".json", ".csv", ".yaml", ".yml", ".md", ".names", ".data", ".cache", ".mat")
"""Suffixes of files beside photos that are expected there."""

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


def entered(folder: Path) -> Path:
    """The folder itself, or the one in it, if nothing else is there and it holds folders, as unpacked archives do."""
    while True:
        inside = [path for path in folder.iterdir() if not is_litter(path.name)]
        if len(inside) != 1 or not inside[0].is_dir() or split_of(inside[0].name) or is_part(inside[0].name):
            return folder
        if not any(path.is_dir() for path in inside[0].iterdir()):
            return folder
        folder = inside[0]


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of splits inside a folder, by split; UserError if there are two for one split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = split_of(path.name)
        if split is None or is_litter(path.name) or not path.is_dir():
            continue
        if split in found:
            raise UserError(f"{folder} has {found[split].name} and {path.name}: rename or remove one of them.")
        found[split] = path
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def parts_of(root: Path) -> dict[str, Path]:
    """Folders by split; all of `root` as "" if there are none."""
    return split_folders(root) or {"": root}


def voc_root(root: Path, labels: str) -> Path | None:
    """The Pascal VOC folder that has a `labels` folder, in or below `root`; the last one if there are several years."""
    below = sorted([*root.glob("VOC20??"), *root.glob("VOCdevkit/VOC20??")], key=lambda path: path.name, reverse=True)
    is_voc = (path for path in (root, *below) if (path / "JPEGImages").is_dir() and (path / labels).is_dir())
    return next(is_voc, None)


def voc_lists(folder: Path) -> dict[str, list[str]]:
    """Image names by split from train.txt, val.txt, trainval.txt and test.txt, as VOC has them; "" if only trainval
    exists, and if there is nothing but CVAT's default.txt."""
    lists = {split_of(path.stem) or path.stem: path for path in sorted(folder.glob("*.txt"))}
    if set(lists) == {"default"}:
        return {"": [_listed(line) for line in lines_of(lists["default"])]}
    splits = ("train", "val", "trainval", "test")
    names = {name: [_listed(line) for line in lines_of(lists[name])] for name in splits if name in lists}
    if "trainval" in names and not {"train", "val"} <= set(names):
        held = {*names.get("train", ()), *names.get("val", ())}
        rest = [name for name in names.pop("trainval") if name not in held]
        names["val" if "train" in names else "train" if "val" in names else ""] = rest
    names.pop("trainval", None)
    return names


def unread_lists(folder: Path) -> list[str]:
    """A remark on lists of photos, such as train.txt, in a folder of a layout that does not use them."""
    texts = [path for path in sorted(folder.glob("*.txt")) if split_of(path.stem)]
    lists = [path.name for path in texts if any(map(is_photo, path.read_text("utf-8", "replace")[:1000].split()))]
    if not lists:
        return []
    return [f"{' and '.join(lists)} in {folder}: not read; give a table with a column split, or folders train and val"]


def lines_of(path: Path) -> list[str]:
    """Lines of a text file that contains a list, without empty ones; UserError if it is no such file."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _listed(line: str) -> str:
    """The image in a line of a list, which may name its mask, too, without the suffix."""
    image, _, mask = line.partition(" ")
    return without_suffix(image if is_photo(image) and is_photo(mask) else line)


def without_suffix(name: str) -> str:
    """A name without the suffix of a photo."""
    return name[: -len(Path(name).suffix)] if is_photo(name) else name


def image_files(folder: Path, ending: str = "", say: Callable[[str], None] = no_remark) -> dict[str, Path]:
    """Image files below a folder whose stems end in `ending`, keyed by relative path without that ending, in order.

    `say` takes a remark on what was left out, without annotations.
    """
    files: dict[str, Path] = {}
    found = find_photos(folder)
    others = Counter({suffix: n for suffix, n in found.others.items() if suffix not in ANNOTATIONS})
    for note in replace(found, others=others).notes():
        say(f"{folder}: {note}")
    for path in sorted(folder / name for name in found.photos):
        if path.stem.endswith(ending):
            key = path.relative_to(folder).with_name(path.stem.removesuffix(ending)).as_posix()
            if key in files:
                names = f"{relative_name(files[key], folder)} and {relative_name(path, folder)}"
                raise UserError(f"{folder}: {names} differ only in their suffix: rename or remove one.")
            files[key] = path
    return files


def walk(folder: Path) -> list[Path]:
    """The photos below a folder, without what systems and dmformer left there."""
    return [folder / name for name in find_photos(folder).photos]


def share_out(
    what: str, count: int, val_share: float, test_share: float, seed: int, groups: Iterable[Sequence[int]] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split `count` images, called `what` in the error, at random into training, validation and test images.

    The images of a group stay together.
    """
    order = np.random.default_rng(seed).permutation(count)
    test_size, val_size = (round(share * count) for share in (test_share, val_share))
    if not val_size or count <= test_size + val_size:
        raise UserError(
            f"{what} are too few to split off validation images: "
            "add some, give a larger --val-share, or create folders named training and validation."
        )
    part_of = np.zeros(count, int)
    part_of[order[: test_size + val_size]] = 1
    part_of[order[:test_size]] = 2
    for group in groups:
        part_of[list(group)] = part_of[group[0]]
    train, val, test = (np.flatnonzero(part_of == part) for part in range(3))
    return train, val, test


def given_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names as the user gave them: the names themselves, or the path of one text file (see `classes_in`)."""
    if len(classes) == 1 and Path(classes[0]).is_file():
        return names_in(Path(classes[0]))
    if len(classes) == 1 and classes[0].lower().endswith((".txt", ".csv", ".json", ".names")):
        raise UserError(f"{classes[0]} does not exist: give a text file with one class name per line.")
    return tuple(name.strip() for name in classes)


def names_in(path: Path) -> tuple[str, ...]:
    """Names in a text file, see `classes_in`."""
    return classes_in(path)[0]


def classes_in(path: Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Class names in a text file, and their colours if every line ends in one as red, green and blue.

    One name per line, perhaps after its number, or all in one line, with commas between them or as JSON; or the last
    column of SceneParsing's objectInfo150.txt. Lines that begin with "# " are comments.

    Raises:
        UserError: No names, an empty line between them, or numbers that are not 0, 1, ….
    """
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    lines = [line for line in lines if line != "#" and not line.startswith("# ")]
    if lines and re.match(r"idx\b", lines[0], re.IGNORECASE):
        lines = [re.sub(r"^\d+(\s+[\d.]+){3,4}\s+", "", line) for line in lines[1:] if line]
    if not any(lines):
        raise UserError(f"{path} is empty: write one class name per line.")
    if "" in lines:
        after = next(line for line in lines[lines.index("") :] if line)
        raise UserError(f"{path} has an empty line before {after}, so that its number is not sure: remove or fill it.")
    if len(lines) == 1:
        lines = _in_one_line(lines[0])
    names = _by_number(path, lines)
    coloured = [COLOURED.fullmatch(name) for name in names]
    if len(names) == 1 or not all(match and max(map(int, match.groups()[1:])) < 256 for match in coloured):
        return tuple(names), ()
    parts = [match.groups() for match in coloured if match]
    return tuple(name for name, *_ in parts), tuple((int(r), int(g), int(b)) for _, r, g, b in parts)


def _in_one_line(line: str) -> list[str]:
    """Names in a line: a JSON list, or separated by commas."""
    if line.startswith("["):
        with contextlib.suppress(ValueError):
            return [str(name) for name in json.loads(line)]
    return [name.strip() for name in line.split(",") if name.strip()] if not NUMBERED.fullmatch(line) else [line]


def _by_number(path: Path, lines: Sequence[str]) -> list[str]:
    """Lines without the numbers at their start, if all have one, in the order of these."""
    found = [NUMBERED.fullmatch(line) for line in lines]
    numbered = {int(match["number"]): match["name"] for match in found if match}
    if sorted(numbered) == list(range(len(lines))):
        return [numbered[i] for i in range(len(lines))]
    if all(match and match["sign"].strip(" ") for match in found):
        raise UserError(f"{path} numbers the classes {first_few(list(map(str, numbered)), 5)}: number them from 0 on.")
    return list(lines)


# ---- words


def alike_note(names: Iterable[str]) -> list[str]:
    """A remark on names that look like one class: they differ in case, blanks, characters without a shape, Unicode's
    form, or as 1 and 1.0."""
    forms: dict[str, list[str]] = {}
    for name in names:
        seen = "".join(one for one in name if unicodedata.category(one) != "Cf")
        plain = " ".join(unicodedata.normalize("NFKC", seen).casefold().split())
        forms.setdefault(re.sub(r"(?<=\d)\.0$", "", plain), []).append(f"'{visible(name)}'")
    alike = [" and ".join(each) for each in forms.values() if len(each) > 1]
    return [f"classes whose names look alike, read as different ones: {first_few(alike, 5)}"] if alike else []


def first_faults(faults: Sequence[Fault], most: int) -> str:
    """The first faults in one line."""
    return "; ".join(f"{visible(name)}: {reason}" for name, reason in faults[:most]) + (
        "; …" if len(faults) > most else ""
    )


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
    return ", ".join(map(visible, names[:most])) + (", …" if len(names) > most else "")


def relative_name(path: Path, root: Path) -> str:
    """A path relative to the root as users see it; in full if it is outside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
