"""Labelled photos on disk: which are there, in which split, of which class; from folders, archives or a table."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...data.archives import ARCHIVES, Files, FolderFiles, is_archive, open_files
from ...data.finding import SPLIT_NAMES, is_litter, is_part, natural_key, require_heif, sort_out, split_in, split_of
from ...utils.errors import UserError
from ..folders import first_few, split_folders, unread_lists
from ..foreign import foreign_format
from ..tables import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    TABLES,
    composed,
    find_column,
    missing_column,
    one_hot_columns,
    read_rows,
    read_table,
    text_of,
)

METADATA = ("metadata.csv", "metadata.jsonl", "_classes.csv")
"""Names of tables with the labels of the photos beside them, as Hugging Face and Roboflow write them."""
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax", "bbox")
"""Columns of tables that are for detection."""


@dataclass(frozen=True)
class Labelled:
    """Photos with their classes.

    Attributes:
        files: Where the photos are.
        names: Names of the photos in `files`.
        classes: Class of each, as composed Unicode.
        root: Folder in `files` that holds the class folders: "" or a path that ends in "/".
    """

    files: Files
    names: list[str]
    classes: list[str]
    root: str = ""

    def __str__(self) -> str:
        below = self.root.rstrip("/")
        if isinstance(self.files, FolderFiles):
            return str(self.files.path / below)
        return f"{self.files.path}{f' ({below}/)' if below else ''}"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def class_names(self) -> list[str]:
        return sorted(set(self.classes), key=lambda name: (natural_key(name), name))


Part = TypeVar("Part")
"""Photos with their labels, of one kind or another."""


@dataclass(frozen=True)
class Layout(Generic[Part]):
    """What a place holds: by split ("train", "val", "test"), or under "" if it has none; remarks for the user; and in
    words how it is stored."""

    parts: dict[str, Part]
    notes: list[str]
    kind: str = ""


def read_layout(place: str) -> Layout[Labelled]:
    """The labelled photos of a folder, an archive or a table.

    Raises:
        UserError: Nothing there, no photos, photos without a class, or folders that can be meant in two ways.
    """
    path = Path(place)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder of class folders, an archive, a table or a set's name.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: check its permissions.")
    if path.is_file() and path.name.lower().endswith(TABLES):
        return _from_table(path)
    if path.is_file() and not is_archive(path):
        raise UserError(
            f"{path} is a file: give a folder of class folders, an archive of one ({', '.join(ARCHIVES)}), or a table "
            f"of paths and labels ({', '.join(TABLES)})."
        )
    try:
        layout = _from_folders(path)
    except UserError:
        if found := _from_metadata(path):
            return found
        raise
    if set().union(*(part.classes for part in layout.parts.values())) <= {"images", "data"}:
        return _from_metadata(path) or layout
    return layout


def is_labelled(path: Path) -> bool:
    """Whether a path is a table, an archive or a folder of class folders."""
    if path.is_file():
        return is_archive(path) or path.name.lower().endswith(TABLES)
    return holds_class_folders(path)


def holds_class_folders(folder: Path) -> bool:
    """Whether a folder holds photos in two or more class folders, or splits of them, and none beside those."""
    try:
        layout = read_layout(str(folder))
    except UserError:
        return False
    first = next(iter(layout.parts.values()))
    return len(first.class_names) > 1


# ---- folders


def _from_folders(path: Path) -> Layout[Labelled]:
    files = open_files(path)
    found = sort_out(files.names())
    notes = found.notes()
    if not found.photos:
        told = "".join(f" {note[0].upper()}{note[1:]}." for note in notes)
        told += foreign_format(path) if path.is_dir() else ""
        raise UserError(f"{path} holds no images: it needs a folder for each class with photos in it.{told}")
    require_heif(found.photos)
    root = _descend(found.photos, isinstance(files, FolderFiles))
    if root:
        notes.append(f"everything is in {root}: the folders in it are read")
    tops = _tops(found.photos, root)
    splits = _splits(tops, root, path)
    if not splits:
        _refuse_loose(Labelled(files, [], [], root), tops.get("", []))
        _refuse_parts(Labelled(files, found.photos, [], root), tops)
        parts = _by_inner_split(_labelled(files, found.photos, root))
        notes += ["the splits are inside the class folders"] if len(parts) > 1 else unread_lists(path / root)
    else:
        if loose := tops.get("", []):
            notes.append(f"{_photos(loose)} beside the folders {first_few(list(splits.values()), 3)}: left out")
        parts = {}
        for split, folder in splits.items():
            own = tops[folder]
            if split_of(folder) is None:
                notes.append(f"{folder} is read as the {split} split")
            inner_root = _entered(own, f"{root}{folder}/", split)
            inner = _tops(own, inner_root)
            if split != "train" and set(inner) == {""}:
                notes.append(f"{_photos(own)} in {folder} without class folders: left out")
                continue
            _refuse_loose(Labelled(files, [], [], inner_root), inner.get("", []))
            parts[split] = _labelled(files, own, inner_root)
    notes += _folders_without_photos(path / (parts["train"].root if "train" in parts else root), parts)
    where = "" if isinstance(files, FolderFiles) else " in an archive"
    return Layout(parts, notes, f"class folders{where}")


def _tops(names: Iterable[str], root: str) -> dict[str, list[str]]:
    """Names by the first folder below the root; under "" those outside folders."""
    tops: dict[str, list[str]] = {}
    for name in names:
        folder, inside, _ = name.removeprefix(root).partition("/")
        tops.setdefault(folder if inside else "", []).append(name)
    return tops


def _descend(names: Sequence[str], is_folder: bool) -> str:
    """The folder below which the classes or splits begin, if everything is inside one: "" or a path that ends in "/".

    An archive of one folder is entered, because nobody can name what is inside it. A folder is entered only if there
    are splits inside; else the only folder may be the only class.
    """
    root = entered = ""
    while True:
        tops = _tops(names, root)
        only = next(iter(tops))
        if len(tops) > 1 or not only or split_of(only):
            return entered
        inner = _tops(names, f"{root}{only}/")
        root += f"{only}/"
        if any(map(split_of, inner)) if is_folder else "" not in inner:
            entered = root


def _splits(tops: dict[str, list[str]], root: str, path: Path) -> dict[str, str]:
    """Folders by the split that they are; empty if the folders are classes.

    Raises:
        UserError: It could be either.
    """
    like = _like_splits(tops, root)
    others = [name for name in tops if name and name not in like]
    nested = [name for name in like if set(_tops(tops[name], f"{root}{name}/")) != {""}]
    if not like or (others and not nested):
        return {}
    seen = first_few(sorted(like), 5)
    if others:
        raise UserError(
            f"{path} holds {seen}, with folders in {nested[0]}, beside {first_few(sorted(others), 5)}: if {nested[0]} "
            "is a split, move the others away; if all of them are classes, put them into a folder called train."
        )
    if not nested:
        raise UserError(
            f"{path} holds photos directly in {seen}, outside class folders: make a folder for each class in there, or "
            "give a table of paths and labels."
        )
    twice = [split for split, n in Counter(like.values()).items() if n > 1]
    if twice:
        names = " and ".join(sorted(name for name, split in like.items() if split == twice[0]))
        raise UserError(f"{path} holds {names}, which both mean the {twice[0]} split: keep one, or join them.")
    found = {split: name for name, split in like.items()}
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _like_splits(tops: dict[str, list[str]], root: str) -> dict[str, str]:
    """The folders that are called like splits, with the split: exactly; or by a word in their names, if one of them is
    for training, all hold folders, and folders of the same name are in two of them."""
    exact = {name: split for name in tops if (split := split_of(name))}
    wide = {name: split for name in tops if (split := split_in(name))}
    if len(wide) == len(exact) or "train" not in wide.values():
        return exact
    roots = {name: _entered(tops[name], f"{root}{name}/", split) for name, split in wide.items()}
    inner = [set(_tops(tops[name], own)) for name, own in roots.items()]
    shared = any(a & b - {""} for i, a in enumerate(inner) for b in inner[:i])
    return wide if shared and {""} not in inner else exact


def _entered(names: Sequence[str], root: str, split: str) -> str:
    """The folder in which the classes of a split begin: in seg_train/seg_train/cat/1.jpg, the second one."""
    while len(tops := _tops(names, root)) == 1 and split_in(only := next(iter(tops))) == split:
        if set(_tops(names, f"{root}{only}/")) == {""}:
            break
        root += f"{only}/"
    return root


def _by_inner_split(all_of_them: Labelled) -> dict[str, Labelled]:
    """Photos by split, if every class folder holds nothing but splits (cat/train/1.jpg); else all under ""."""
    inner = [name.removeprefix(all_of_them.root).split("/")[1:-1] for name in all_of_them.names]
    splits = [split_of(folders[0]) if folders else None for folders in inner]
    if None in splits or len(set(splits)) == 1:
        return {"": all_of_them}
    parts = {}
    for split in SPLIT_NAMES:
        names = [name for name, own in zip(all_of_them.names, splits, strict=True) if own == split]
        if names:
            parts[split] = _labelled(all_of_them.files, names, all_of_them.root)
    return parts


def _labelled(files: Files, names: list[str], root: str) -> Labelled:
    classes = [composed(name.removeprefix(root).partition("/")[0]) for name in names]
    return Labelled(files, names, classes, root)


def _refuse_loose(place: Labelled, loose: Sequence[str]) -> None:
    if loose:
        names = [name.rpartition("/")[2] for name in loose]
        raise UserError(
            f"{place} holds {_photos(loose)} outside class folders ({first_few(names, 3)}): put each class's photos in "
            f"a folder of its own{_or_table(place)}."
        )


def _refuse_parts(place: Labelled, tops: dict[str, list[str]]) -> None:
    """Raise UserError if the folders are parts of a data set, such as train_images/ and test_images/, and no classes;
    or if each of them holds an image and its masks."""
    inner = {"/".join(name.removeprefix(place.root).split("/")[1:-1]) for name in place.names}
    if all(map(is_part, tops)):
        told = f"holds photos in {first_few(sorted(tops), 5)}, which are parts of a data set and no classes"
    elif {"images", "masks"} <= inner and all(map(is_part, inner)):
        told = f"holds images/ and masks/ in {next(iter(tops))} and others, which are no classes"
    else:
        return
    raise UserError(
        f"{place} {told}: put each class's photos in a folder of its own{_or_table(place)}; for images and masks, give "
        "--task segmentation, one mask per image."
    )


def _or_table(place: Labelled) -> str:
    """A hint at a table among the files."""
    tables = [name for name in place.files.names() if name.lower().endswith(TABLES) and "/" not in name]
    tables.sort(key=lambda name: (split_in(Path(name).stem) != "train", name))
    return f", or name the labels: --data {place.files.path / tables[0]}" if tables else ""


def _photos(names: Sequence[str]) -> str:
    return f"{len(names):,} photo{'s' if len(names) > 1 else ''}"


def _folders_without_photos(folder: Path, parts: dict[str, Labelled]) -> list[str]:
    """A remark on folders beside the class folders, unless they are a system's."""
    trained = parts.get("train") or parts.get("")
    if trained is None or not folder.is_dir():
        return []
    full = set(trained.class_names)
    empty = [p.name for p in folder.iterdir() if p.is_dir() and composed(p.name) not in full and not is_litter(p.name)]
    return [f"folders without photos, left out: {first_few(sorted(empty), 8)}"] if empty else []


# ---- tables


def _from_metadata(folder: Path) -> Layout[Labelled] | None:
    """The photos that a table of a usual name in a folder labels, or one in each of the folders of its splits."""
    if not folder.is_dir():
        return None
    try:
        places = {"": folder} if _metadata_in(folder) else split_folders(folder)
    except UserError:  # two folders for one split
        return None
    tables = {split: table for split, place in places.items() if (table := _metadata_in(place))}
    parts, notes = {}, []
    for split, table in tables.items():
        layout = _from_table(table)
        if split and set(layout.parts) != {""}:
            raise UserError(f"{table} names splits, inside the folder of the {split} split: give the table as --data.")
        parts |= {split: layout.parts[""]} if split else layout.parts
        notes += [f"the labels are those in {table}", *layout.notes]
    return Layout(parts, notes, "photos with a table of labels") if parts else None


def _metadata_in(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _from_table(path: Path) -> Layout[Labelled]:
    rows = read_rows(path)
    column = find_column(rows[0], LABEL_COLUMNS)
    one_hot = one_hot_columns(rows, find_column(rows[0], PATH_COLUMNS)) if column is None else []
    if column is None and not one_hot:
        raise missing_column(path, rows[0], "label", LABEL_COLUMNS)

    def label_of(row: dict[str, Any]) -> str:
        if column is not None:
            return _label(path, row, column)
        return composed(next(name for name in one_hot if text_of(row[name]) in ("1", "1.0")).strip())

    def joined(name: str, one: str, other: str) -> str:
        if one != other:
            raise UserError(f"{path} gives {name} the labels {one} and {other}: a photo has one class.")
        return one

    parts, notes = read_table(path, rows, lambda row: label_of(row) or None, joined)
    if boxes := [name for name in rows[0] if name.strip().casefold() in BOX_COLUMNS]:
        notes.append(f"columns of boxes, not used: {', '.join(boxes)}; for detection, give COCO, Pascal VOC or YOLO")
    if one_hot:
        notes.append(f"the columns of {path} with a 1 or 0 are taken as classes: {first_few(one_hot, 8)}")
    files = FolderFiles(path.parent)
    labelled = {split: Labelled(files, list(part), list(part.values())) for split, part in parts.items()}
    return Layout(labelled, notes, "a table of paths and labels")


def _label(path: Path, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | tuple | dict):
        raise UserError(
            f"{path} gives a photo several labels ({value}): a classifier needs one for each photo; for several, "
            "dmformer train tag."
        )
    return composed(text_of(value))
