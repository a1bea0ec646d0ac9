"""Tables with a row for each photo: its path, its labels, perhaps its split; as .csv, .tsv or JSON Lines."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ...data.archives import FolderFiles
from ...data.finding import SPLIT_NAMES, is_photo, natural_key, sort_out, split_of
from ...utils.errors import UserError, first_line
from ..folders import first_few

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
    "img",
    "photo",
    "name",
    "id",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed")
SPLIT_COLUMNS = ("split", "set", "subset", "fold")
"""Names of columns, of which the first that is there counts, in any case."""


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
    places = Places(path.parent)
    parts: dict[str, dict[str, T]] = {}
    missing, unlabelled = [], []
    for row in rows:
        given, label = text_of(row.get(name_of)), label_of(row)
        if label is None:
            unlabelled.append(given)
        elif (name := places.find(given)) is None:
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
        "photos without a row": sorted(places.names - set(listed)),
    }
    notes = [f"left out {what}: {len(names):,} ({first_few(names, 3)})" for what, names in left_out.items() if names]
    if more := len(rows) - len(missing) - len(unlabelled) - len(listed):
        notes.append(f"{repeated}: {more:,}")
    return {split: {name: part[name] for name in sorted(part, key=natural_key)} for split, part in parts.items()}, notes


def find_column(row: dict[str, Any], names: Sequence[str]) -> str | None:
    """The column of a row whose name, in any case, comes first among `names`."""
    by_name = {name.strip().lower(): name for name in row}
    return next((by_name[name] for name in names if name in by_name), None)


def missing_column(path: Path, row: dict[str, Any], what: str, names: Sequence[str]) -> UserError:
    """The error for a table without a column of these names."""
    return UserError(f"{path} has the columns {first_few(list(row), 8)}: name the one with the {what} '{names[0]}'.")


def composed(name: str) -> str:
    """A name in composed Unicode: macOS writes an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text: {first_line(error)}") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    if not rows:
        return []
    header = rows[0]
    if any(map(is_photo, header)):  # there is no header: the photo and its label
        header = ["path" if is_photo(cell) else f"column {i + 1}" for i, cell in enumerate(header)]
        header = ["label" if len(header) == 2 and name != "path" else name for name in header]
        rows = [[], *rows]
    return [dict(zip(header, row, strict=False)) for row in rows[1:]]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8-sig", errors="replace").splitlines(), 1):
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
    """A cell as text without spaces around it; "" for None."""
    return "" if value is None else str(value).strip()


def _split(path: Path, row: dict[str, Any], column: str | None) -> str:
    value = text_of(row.get(column)) if column else ""
    split = split_of(value) if value else ""
    if split is None:
        raise UserError(f"{path} names the split '{value}': known are {', '.join(SPLIT_NAMES)}.")
    return split


class Places:
    """Finds the photos that a table names, below its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def names(self) -> set[str]:
        return set(sort_out(FolderFiles(self.folder).names()).photos)

    @cached_property
    def _by_tail(self) -> dict[str, str]:
        """Names by the ends of their paths, with and without the suffix, in lower case, if only one ends so."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            for whole in {name, name.rpartition(".")[0]}:
                parts = composed(whole).lower().split("/")
                for i in range(len(parts)):
                    found.setdefault("/".join(parts[i:]), []).append(name)
        return {tail: names[0] for tail, names in found.items() if len(names) == 1}

    def find(self, given: str) -> str | None:
        """The name of a photo: its path as it is, else the longest end of the path that only one photo has."""
        if not given:
            return None
        if (self.folder / given).is_file():
            return given if Path(given).is_absolute() else Path(os.path.normpath(given)).as_posix()
        parts = composed(given.replace("\\", "/")).lower().split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((self._by_tail[tail] for tail in tails if tail in self._by_tail), None)
