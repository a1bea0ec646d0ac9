"""Photos with several labels each: from tables, and from class folders that share photos."""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.archives import Files, FolderFiles
from ...data.copies import MANY, same_photos
from ...data.finding import natural_key
from ...utils.errors import UserError
from ..classification.layout import Labelled, Layout, read_layout
from ..folders import first_few
from ..tables import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    TABLES,
    composed,
    find_column,
    missing_column,
    read_rows,
    read_table,
    text_of,
)

LABELS_COLUMNS = ("labels", "tags", "classes", "attributes", "tag", "finding labels", *LABEL_COLUMNS)
"""Names of columns with labels, of which the first that is there counts, in any case."""
SEPARATORS = ";|,"
BRACKETS = ("[", "(", "{")
"""How a cell begins that is a list, a set or a mapping in JSON or Python."""
BINARY = {
    **dict.fromkeys(("", "0", "0.0", "-1", "-1.0", "false", "no"), False),
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
}
"""Cells of a column that is a class, in lower case."""
MIXED = {"-1", "-1.0"}, {"", "0", "0.0"}
"""Cells that are never in the same column: with 0 or nothing for "no", -1 means that it is not known."""

Labels = frozenset[str]


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos with their labels, perhaps none.

    Attributes:
        files: Where the photos are.
        names: Names of the photos in `files`.
        labels: Labels of each, as composed Unicode.
        place: Where they were read from, for messages.
        root: Start of every name, which users do not need to see: "" or a path that ends in "/".
    """

    files: Files
    names: list[str]
    labels: list[Labels]
    place: str
    root: str = ""

    def __str__(self) -> str:
        return self.place

    @property
    def class_names(self) -> list[str]:
        return sorted(frozenset().union(*self.labels), key=lambda name: (natural_key(name), name))


def read_labels(place: str, separator: str | None = None, columns: Sequence[str] = ()) -> Layout[LabelledPhotos]:
    """The photos of a table, or of class folders in a folder or an archive, with their labels.

    Args:
        place: Where they are.
        separator: What separates the labels in a cell; None finds it.
        columns: The columns that are classes; none finds them.

    Raises:
        UserError: Nothing there, no photos, no labels, or a table that cannot be understood.
    """
    path = Path(place)
    if path.is_file() and path.name.lower().endswith(TABLES):
        return _from_table(path, separator, columns)
    layout = read_layout(place)
    parts, notes = {}, list(layout.notes)
    for split, part in layout.parts.items():
        parts[split], shared = _merged(part)
        if shared:
            photos = "photo is" if shared == 1 else "photos are"
            notes.append(f"{shared:,} {photos} in several class folders{f' of {split}' if split else ''}")
        if len(part) > MANY:
            notes.append(f"more than {MANY:,} photos: no photo was looked for in several class folders")
    return Layout(parts, notes)


def _merged(part: Labelled) -> tuple[LabelledPhotos, int]:
    """Photos of class folders, each once with the labels of all its copies; and the number of those with several."""
    labels = [frozenset([name]) for name in part.classes]
    groups = same_photos(len(part), lambda i: part.files.open(part.names[i])) if len(part) <= MANY else []
    dropped, shared = set(), 0
    for first, *others in groups:
        labels[first] = labels[first].union(*(labels[i] for i in others))
        dropped.update(others)
        shared += len(labels[first]) > 1
    kept = [i for i in range(len(part)) if i not in dropped]
    names = [part.names[i] for i in kept]
    root = part.root if isinstance(part.files, FolderFiles) else ""
    return LabelledPhotos(part.files, names, [labels[i] for i in kept], str(part), root), shared


# ---- tables


def _from_table(path: Path, separator: str | None, columns: Sequence[str]) -> Layout[LabelledPhotos]:
    rows = read_rows(path)
    column = None if columns else find_column(rows[0], LABELS_COLUMNS)
    if column is not None and not _is_class([row.get(column) for row in rows]):
        separator = separator or _separator(path, [row.get(column) for row in rows])
        notes = [f"labels in the column '{column}' are separated by '{separator}'"] if separator else []

        def labels_of(row: dict[str, Any]) -> Labels:
            return _labels_in(row.get(column), separator)

        notes += _not_separated(frozenset().union(*map(labels_of, rows)), separator)
    else:
        classes, notes = _class_columns(path, rows, columns)

        def labels_of(row: dict[str, Any]) -> Labels:
            return frozenset(composed(name.strip()) for name in classes if BINARY[_cell(row.get(name))])

    repeated = "rows of photos that have several, whose labels were joined"
    parts, more = read_table(path, rows, labels_of, lambda _, one, other: one | other, repeated)
    files = FolderFiles(path.parent)
    found = {
        split: LabelledPhotos(files, list(part), list(part.values()), f"{path}{f' ({split})' if split else ''}")
        for split, part in parts.items()
    }
    return Layout(found, [*notes, *more])


def _separator(path: Path, cells: Sequence[Any]) -> str | None:
    """The separator that most cells contain; None if no cell contains any."""
    counts = {mark: sum(mark in cell for cell in cells if _is_joined(cell)) for mark in SEPARATORS}
    mark = max(SEPARATORS, key=lambda mark: counts[mark])
    return mark if counts[mark] else None


def _not_separated(labels: Labels, separator: str | None) -> list[str]:
    """A remark on labels that another separator might divide further; blanks divide them if nothing else does."""
    others = [mark for mark in (*SEPARATORS, *([] if separator else [" "])) if mark != separator]
    joined = sorted(label for label in labels if any(mark in label for mark in others))
    if not joined:
        return []
    return [f"labels read as one each, unless --label-separator says otherwise: {first_few(joined, 3)}"]


def _is_joined(value: Any) -> bool:
    """Whether a cell is a string of labels, not a list in brackets."""
    return isinstance(value, str) and not value.lstrip().startswith(BRACKETS)


def _labels_in(value: Any, separator: str | None) -> Labels:
    """Labels in a cell: a string, a list, a mapping from each label to whether it applies, or these as text."""
    if isinstance(value, str) and value.strip().startswith(BRACKETS):
        value = _listed(value)
    if isinstance(value, dict):
        value = [name for name, applies in value.items() if applies]
    if not isinstance(value, list | tuple | set):
        text = text_of(value)
        value = text.split(separator) if separator else [text]
    return frozenset(composed(text) for each in value if (text := text_of(each)))


def _listed(text: str) -> Any:
    """A list, a set or a mapping as JSON or Python writes it; other text unchanged."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list | tuple | set | dict) else [found]
    return text


def _cell(value: Any) -> str:
    return text_of(value).lower()


def _is_binary(value: Any) -> bool:
    return not isinstance(value, list | dict) and _cell(value) in BINARY


def _are_binary(cells: Sequence[Any]) -> bool:
    """Whether a column holds nothing but "yes" and "no" in one of the usual forms."""
    if not all(map(_is_binary, cells)):
        return False
    seen = set(map(_cell, cells))
    return not all(seen & form for form in MIXED)


def _is_class(cells: Sequence[Any]) -> bool:
    """Whether a column holds nothing but 0 and 1, and 1 for some photo."""
    return _are_binary(cells) and any(BINARY[_cell(value)] for value in cells)


def _class_columns(path: Path, rows: list[dict[str, Any]], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns of a table that are classes, and remarks on the others."""
    absent = [name for name in wanted if name not in rows[0]]
    if absent:
        raise UserError(f"{path} has no column '{absent[0]}': it has {first_few(list(rows[0]), 8)}.")
    if wanted:
        for row in rows:
            for name in wanted:
                if not _is_binary(row.get(name)):
                    raise UserError(f"{path}: the column '{name}' holds '{row.get(name)}': a class needs 0 or 1.")
        for name in wanted:
            if not _are_binary([row.get(name) for row in rows]):
                raise UserError(f"{path}: the column '{name}' holds -1 beside 0 or nothing: a class needs 0 or 1.")
        return list(wanted), []
    special = {find_column(rows[0], names) for names in (PATH_COLUMNS, SPLIT_COLUMNS)}
    others = [name for name in rows[0] if name not in special]
    classes = [name for name in others if _are_binary([row.get(name) for row in rows])]
    never = [name for name in classes if not _is_class([row.get(name) for row in rows])]
    if len(never) == len(classes):
        raise missing_column(path, rows[0], "labels", LABELS_COLUMNS)
    left_out = [name for name in others if name not in classes]
    notes = []
    if left_out:
        notes.append(f"columns that hold more than 0 and 1, which are no classes: {first_few(left_out, 8)}")
    if never:
        notes.append(f"columns that are 0 for every photo, left out: {first_few(never, 8)}")
    return classes, notes
