"""Find photos in folders: which files are photos, which are left out and why."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath

from PIL import Image

from ..utils.errors import UserError
from ..utils.extras import needs

LITTER = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
)
"""Files and folders that systems leave behind, in lower case; names that start with a dot are litter too."""

PLACEHOLDER = ".icloud"
"""Suffix of the hidden file that stands for one that macOS has not downloaded."""

SPLIT_NAMES = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Folder names that mean a split, in any case."""

PARTS = (
    *("image", "images", "img", "imgs", "photo", "photos", "jpeg", "jpegimages"),
    *("mask", "masks", "annotation", "annotations", "label", "labels", "gt"),
)
"""Words in names of folders that hold a part of a data set and not a class."""

HEIF = (".heic", ".heif", ".hif")
"""Suffixes of photos that need the extra `heif`."""

NO_PHOTOS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow recognises and cannot decode, or decodes with another program."""

OUTPUT = "output of dmformer"

MEASURES = ("attention-distance", "receptive-field", "relative-receptive-field", "gates", "modulators", "cka")
"""Names of the plots that `dmformer analyse` writes."""
MARKS = {"legend.png", "detections.json", "index.html", *(f"{measure}.csv" for measure in MEASURES)}
"""Files that predict, explain and analyse write beside their pictures."""


def no_remark(remark: str) -> None:
    """Take a remark for the user and drop it."""


@cache
def photo_suffixes() -> tuple[str, ...]:
    """Suffixes of photos in lower case: of all formats that Pillow reads, and of HEIC."""
    Image.init()
    read = {s for s, name in Image.registered_extensions().items() if name in Image.OPEN and name not in NO_PHOTOS}
    return tuple(sorted({*read, ".mpo", *HEIF}))


def is_photo(name: str) -> bool:
    """Whether a file's name ends like a photo's."""
    return name.lower().endswith(photo_suffixes())


def require_heif(names: Iterable[str]) -> None:
    """Raise UserError if there are HEIC photos among the names and the extra `heif` is missing."""
    if any(name.lower().endswith(HEIF) for name in names):
        with needs("heif", "reading HEIC photos"):
            import_module("pillow_heif")


def is_litter(name: str) -> bool:
    """Whether a file or a folder of this name, without its path, was left behind by a system."""
    return name.startswith(".") or name.casefold() in LITTER


def split_of(name: str) -> str | None:
    """The split that a folder's name means: "train", "val" or "test"; None for other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.casefold() in names), None)


def split_in(name: str) -> str | None:
    """The split that a word in a folder's name means, as in training_set, seg_train and "Test data"; None without."""
    splits = {split_of(word) or split_of(word.removesuffix("set")) for word in _words(name)} - {None}
    return splits.pop() if len(splits) == 1 else None


def is_part(name: str) -> bool:
    """Whether a folder's name says which part of a data set it is, and no class: train_images, test1, masks_machine."""
    words = [word for word in _words(name) if word]
    if {"masks", "annotations"} & set(words) or name.casefold().startswith("segmentation"):
        return True
    known = (*SPLIT_NAMES, *(() if re.search(r"\d", name) else PARTS))  # label_0 is a class
    return bool(words) and all(split_in(word) or word.removesuffix("annot") in known for word in words)


def _words(name: str) -> list[str]:
    return re.split(r"[\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())


def natural_key(name: str) -> list[str | int]:
    """Key that sorts 2.jpg before 10.jpg, ignoring case; like timm's."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name.lower()))]


@dataclass(frozen=True)
class Found:
    """What a place holds.

    Attributes:
        photos: Names of the photos, as paths with "/" below the place, in natural order.
        others: Number of files that are no photos, by suffix.
        litter: Number of files that end like photos and are skipped, by the reason.
    """

    photos: list[str]
    others: Counter[str] = field(default_factory=Counter)
    litter: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """What was left out, for the user."""
        notes = []
        if self.litter:
            notes.append(f"skipped {_counted(self.litter)} of the system or of dmformer: {listed(self.litter)}")
        if self.others:
            notes.append(f"left out {_counted(self.others)} that cannot be read as photos: {listed(self.others)}")
        return notes


def _counted(counts: Counter[str]) -> str:
    return f"{counts.total():,} file{'s' if counts.total() > 1 else ''}"


def listed(counts: Counter[str]) -> str:
    """The most common of some words with their numbers."""
    return ", ".join(f"{name} ({n:,})" for name, n in counts.most_common(8)) + (", …" if len(counts) > 8 else "")


def walk(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, as paths with "/"; linked folders are followed, cycles are not.

    Raises:
        UserError: A folder cannot be read, and none that a system leaves behind.
    """
    pending = [("", frozenset({os.path.realpath(folder)}))]
    while pending:
        inside, above = pending.pop()
        try:
            with os.scandir(os.path.join(folder, inside)) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if any(map(is_litter, inside.split("/"))):
                continue
            raise UserError(f"{os.path.join(folder, inside)} cannot be read: {error.strerror}.") from None
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if _is_folder(entry):
                if (real := os.path.realpath(entry.path)) not in above:
                    pending.append((name, above | {real}))
            elif entry.is_symlink() or entry.is_file():  # no pipe, which is never read to its end
                yield name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def sort_out(names: Iterable[str]) -> Found:
    """Which of a place's files, given as paths with "/", are photos; what systems or dmformer wrote is skipped."""
    folders: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, set()).add(file)
    written = _outputs(folders)
    photos, others, litter = [], Counter[str](), Counter[str]()
    for folder, files in folders.items():
        parts = folder.split("/") if folder else []
        left_behind = next((part for part in parts if is_litter(part)), None)
        is_output = any("/".join(parts[: i + 1]) in written for i in range(len(parts)))
        for file in files:
            if left_behind is not None or is_litter(file):
                if is_photo(file.removesuffix(PLACEHOLDER)):
                    litter[left_behind or _kind_of_litter(file)] += 1
            elif is_output or _is_picture(file, files, folder, folders):
                if is_photo(file):
                    litter[OUTPUT] += 1
            elif is_photo(file):
                photos.append(f"{folder}/{file}" if folder else file)
            else:
                others[PurePosixPath(file).suffix.lower() or "without a suffix"] += 1
    return Found(sorted(photos, key=natural_key), others, litter)


def _kind_of_litter(file: str) -> str:
    if file.endswith(PLACEHOLDER):
        return "in iCloud alone"
    return "._*" if file.startswith("._") else ".*"


def _outputs(folders: dict[str, set[str]]) -> set[str]:
    """Those of the folders, except the place itself, that a command wrote."""
    return {folder for folder, files in folders.items() if folder and _is_output(folder, files, folders)}


def _is_output(folder: str, files: set[str], folders: dict[str, set[str]]) -> bool:
    """Whether a folder is a run or a trained model, or what predict, explain or analyse wrote."""
    if {"config.json", "model.safetensors"} <= files:
        return True
    if "recipe.yaml" in files:
        return "metrics.csv" in files or any(f"{folder}/{inner}" in folders for inner in ("best", "last"))
    if not files & MARKS:
        return False
    pictures = [file for inner in _below(folder, folders) for file in folders[inner] if is_photo(file)]
    if "legend.png" in files and any(file.endswith(".overlay.png") for file in pictures):
        return True
    if "detections.json" in files and all(file.endswith(".detections.png") for file in pictures):
        return True
    if "index.html" in files and all(file.endswith(".png") and file.count(".") >= 3 for file in pictures):
        return True
    return all(file.removesuffix(".png").removesuffix("-maps") in MEASURES for file in pictures)


def _below(folder: str, folders: dict[str, set[str]]) -> Iterator[str]:
    return (other for other in folders if other == folder or other.startswith(f"{folder}/"))


def _is_picture(file: str, beside: set[str], folder: str, folders: dict[str, set[str]]) -> bool:
    """Whether predict wrote a file beside the photos."""
    for end, other in ((".overlay.png", ".mask.png"), (".mask.png", ".overlay.png")):
        if file.endswith(end):
            return file.removesuffix(end) + other in beside
    if file == "legend.png":
        inside = folders if not folder else _below(folder, folders)
        return any(name.endswith(".overlay.png") for inner in inside for name in folders[inner])
    return file.endswith(".detections.png") and "detections.json" in folders.get("", ())


def find_photos(folder: Path) -> Found:
    """The photos below a folder at any depth, and what was left out."""
    return sort_out(walk(folder))


def list_photos(photos: Sequence[str], say: Callable[[str], None] = no_remark) -> list[str]:
    """The given files and the photos in the given folders, sorted within each folder; "-" is kept.

    Args:
        photos: Files, folders (searched at any depth) or "-".
        say: Takes a remark on what was left out of a folder.

    Raises:
        UserError: A path does not exist, or a folder contains no photos.
    """
    names = []
    for photo in photos:
        path = Path(photo)
        if photo != "-" and not path.exists():
            raise UserError(f"{photo} does not exist: give image files, folders, or - for standard input.")
        if photo == "-" or not path.is_dir():
            names.append(photo)
            continue
        found = find_photos(path)
        for note in found.notes():
            say(f"{photo}: {note}")
        if not found.photos:
            raise UserError("; ".join([f"{photo} contains no images", *found.notes()]) + ".")
        names += sorted(str(path / name) for name in found.photos)
    return names
