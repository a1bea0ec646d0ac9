"""Tables with a row for each photo: its path, its labels, perhaps its split; as .csv, .tsv or JSON Lines."""

import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from ..data.archives import FolderFiles
from ..data.finding import SPLIT_NAMES, is_photo, natural_key, sort_out, split_of
from ..utils.errors import UserError
from ..utils.files import read_text
from .folders import first_few
from .naming import match_names, renaming_note

T = TypeVar("T")

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Suffixes of files with the path and the label of a photo in every row."""
PATH_COLUMNS = (
    "path",
    "file_name",
    "filename",
    "file",
    "filepath",
    "image",
    "image_path",
    "image_file",
    "image_name",
    "image_index",
    "img",
    "img_path",
    "photo",
    "name",
    "image_id",
    "id",
)
LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "class_name",
    "category",
    "target",
    "species",
    "breed",
    "choice",
    "diagnosis",
    "dx",
)
SPLIT_COLUMNS = ("split", "set", "subset", "fold")
"""Names of columns, of which the first that is there counts, whatever their case, blanks and signs."""
SEPARATED = re.compile(r'"?sep=(.)"?')
"""The first line of a table that Excel has written, with its separator."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, by the names of their columns; UserError if there are none."""
    rows = _json_rows(path) if path.name.lower().endswith((".jsonl", ".ndjson")) else _csv_rows(path)
    if not rows:
        raise UserError(f"{path} holds no rows.")
    return rows


def read_table(
    path: Path,
    rows: list[dict[str, Any]],
    label_of: Callable[[dict[str, Any]], T | None],
    joined: Callable[[str, T, T], T],
    repeated: str = "rows that repeat another one",
) -> tuple[dict[str, dict[str, T]], list[str]]:
    """The labels of the photos in a table.

    Args:
        path: The table; its photos are below its folder.
        rows: As `read_rows` returns them.
        label_of: The label in a row; None leaves the row out.
        joined: The label of a photo (by name) that several rows give.
        repeated: What several rows for a photo are, for the remark on them.

    Returns:
        Labels by photo and split, "" if no row names a split; and remarks for the user.

    Raises:
        UserError: No path column, an unknown split, splits in some rows only, or none of the photos is there.
    """
    name_of, split_column = find_column(rows[0], PATH_COLUMNS), find_column(rows[0], SPLIT_COLUMNS)
    if name_of is None:
        raise missing_column(path, rows[0], "path", PATH_COLUMNS)
    names = [text_of(row.get(name_of)) for row in rows]
    photos = set(sort_out(FolderFiles(path.parent).names()).photos)
    name_in, notes = _find_photos(path, names, photos)
    parts: dict[str, dict[str, T]] = {}
    missing, unlabelled = [], []
    for given, row in zip(names, rows, strict=True):
        label = label_of(row)
        if label is None:
            unlabelled.append(given)
        elif (name := name_in.get(given)) is None:
            missing.append(given)
        else:
            part = parts.setdefault(_split(path, row, split_column), {})
            part[name] = joined(given, part[name], label) if name in part else label
    if not parts:
        raise UserError(f"{path}: none of its photos is there, for example {(missing or unlabelled)[0]}.")
    if "" in parts and len(parts) > 1:
        raise UserError(f"{path} names a split in some rows and none in others.")
    listed = [name for part in parts.values() for name in part]
    left_out = {
        "rows whose photo is not there": missing,
        "rows without a label": unlabelled,
        "photos without a row": sorted(photos - set(listed)),
    }
    notes += [f"left out {what}: {len(those):,} ({first_few(those, 3)})" for what, those in left_out.items() if those]
    if more := len(rows) - len(missing) - len(unlabelled) - len(listed):
        notes.append(f"{repeated}: {more:,}")
    return {split: {name: part[name] for name in sorted(part, key=natural_key)} for split, part in parts.items()}, notes


def find_column(row: dict[str, Any], names: Sequence[str]) -> str | None:
    """The column of a row whose name comes first among `names`; case, blanks and signs do not matter."""
    by_name = {_plain(name): name for name in row}
    return next((by_name[_plain(name)] for name in names if _plain(name) in by_name), None)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def one_hot_columns(rows: Sequence[dict[str, Any]], path_column: str | None) -> list[str]:
    """The columns beside the path and the split, if every row has a 1 in one of them and 0 in the others."""
    own = {path_column, find_column(rows[0], SPLIT_COLUMNS)}
    columns = [name for name in rows[0] if name not in own]
    values = ([text_of(row[name]).removesuffix(".0") for name in columns] for row in rows)
    return columns if all(sorted(each) == [*"0" * (len(columns) - 1), "1"] for each in values) else []


def missing_column(path: Path, row: dict[str, Any], what: str, names: Sequence[str]) -> UserError:
    """The error for a table without a column of these names."""
    return UserError(f"{path} has the columns {first_few(list(row), 8)}: name the one with the {what} '{names[0]}'.")


def composed(name: str) -> str:
    """A name in composed Unicode: macOS writes an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    text = read_text(path)
    first, _, rest = text.partition("\n")
    if stated := SEPARATED.fullmatch(first):
        delimiter, text = stated[1], rest
    else:
        delimiter = max(",;\t|", key=first.count)
    # Strict, because a quotation mark that is never closed would swallow all rows after it.
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}: check the quotation marks there.") from None
    if not rows:
        return []
    header = rows[0]
    if any(map(is_photo, header)):  # there is no header: the photo and its label
        header = ["path" if is_photo(cell) else f"column {i + 1}" for i, cell in enumerate(header)]
        header = ["label" if len(header) == 2 and name != "path" else name for name in header]
        rows = [[], *rows]
    if twice := [name for name, count in Counter(header).items() if name and count > 1]:
        raise UserError(f"{path} has two columns called '{twice[0]}': rename one.")
    for row in rows[1:]:
        if any(map(str.strip, row[len(header) :])):
            raise UserError(
                f"{path}: the row '{delimiter.join(row)}' has {len(row)} cells, the first row {len(header)}: put a "
                f"cell that contains '{delimiter}' into quotation marks."
            )
    return [dict(zip_longest(header, row[: len(header)], fillvalue="")) for row in rows[1:]]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object with a path and a label.")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def text_of(value: Any) -> str:
    """A cell as text without spaces around it; "" for None and NaN."""
    text = "" if value is None else str(value).strip()
    return "" if text.casefold() == "nan" else text


def _split(path: Path, row: dict[str, Any], column: str | None) -> str:
    value = text_of(row.get(column)) if column else ""
    split = split_of(value) if value else ""
    if split is None:
        raise UserError(f"{path} names the split '{value}': known are {', '.join(SPLIT_NAMES)}.")
    return split


def _find_photos(table: Path, given: Iterable[str], photos: set[str]) -> tuple[dict[str, str], list[str]]:
    """The photos that a table names, by what it calls them; and notes.

    A name stands for the file of this name; else for the one that `match_names` finds, with or without its suffix.
    """
    names = [name for name in dict.fromkeys(given) if name]
    exact = {name: own for name in names if (own := _as_given(table.parent, name))}
    found = match_names([exact.get(name, name) for name in names], photos)
    found = [exact.get(name, other) for name, other in zip(names, found, strict=True)]
    stems = Counter(map(_stem, photos))
    bare = {_stem(photo): photo for photo in photos.difference(filter(None, found)) if stems[_stem(photo)] == 1}
    stem_of = match_names(names, list(bare))
    found = [own or bare.get(stem or "") for own, stem in zip(found, stem_of, strict=True)]
    others = [(name, own) for name, own in zip(names, found, strict=True) if own and name not in exact]
    notes = renaming_note(f"photos of {table}", [name for name, _ in others], [own for _, own in others])
    return {name: own for name, own in zip(names, found, strict=True) if own}, notes


def _stem(name: str) -> str:
    """A photo's path without the suffix."""
    return name.rpartition(".")[0]


def _as_given(folder: Path, name: str) -> str | None:
    """The file of this name, as a path below the folder if it is there."""
    if not (folder / name).is_file():
        return None
    path = Path(os.path.normpath(folder / name))
    inside = Path(os.path.normpath(folder))
    return path.relative_to(inside).as_posix() if path.is_relative_to(inside) else str(path)
