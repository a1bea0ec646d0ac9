"""YOLO's object annotations: one text file per image."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ....data.finding import is_photo
from ....utils.errors import UserError, first_line
from ...folders import first_few, lines_of, relative_name
from ...naming import match_names, renaming_note
from .parts import LARGEST_TEXT, FaultyError, Part, Row, measured, numbers

ABSOLUTE = "has numbers above 1"
TOLERANCE = 0.5
"""How far fractions may be outside 0 to 1: such boxes are clipped; numbers further out are taken for pixels."""


class UnknownClassError(FaultyError):
    """A line has a class that has no name; `number` is -1 if it is not even a whole number."""

    def __init__(self, message: str, label: float) -> None:
        super().__init__(message)
        self.number = int(label) if label.is_integer() else -1


def read_yolo(root: Path, photos: Sequence[Path], names: Sequence[str], where: str, notes: Sequence[str] = ()) -> Part:
    """Read YOLO's text files, one per image, with lines `class cx cy w h` or `class x y x y x y ...`.

    Numbers are fractions of the image's width and height. An image without a file has no objects.

    Raises:
        UserError: No image has a file, or most lines have numbers that are not fractions.
    """
    part = Part(root, tuple(names), tuple(range(len(names))), where, notes=list(notes))
    text_of = _label_files(part, [photo for photo in photos if photo.is_file()])
    labelled = lines = absolute = quads = 0
    unknown: set[int] = set()
    bare: list[str] = []
    for photo, size in measured(part, photos):
        text = text_of[photo]
        if text is None:
            part.add(photo, size, stated=False)
            bare.append(relative_name(photo, root))
            continue
        labelled += 1
        try:
            told = _label_lines(text)
        except FaultyError as error:
            part.faults.append((relative_name(photo, root), str(error)))
            continue
        place = part.add(photo, size, stated=False)
        for i, line in enumerate(told, 1):
            lines += 1
            try:
                part.rows.append(_yolo_row(_cells(line, names), place, size, len(names), len(part.rows) + 1))
                outline = part.rows[-1].outline
                quads += isinstance(outline, list) and len(outline[0]) == 8
            except UnknownClassError as error:
                unknown.add(error.number)
                part.faults.append((f"{relative_name(text, root)}, line {i}", str(error)))
            except FaultyError as error:
                absolute += str(error).startswith(ABSOLUTE)
                part.faults.append((f"{relative_name(text, root)}, line {i}", str(error)))
    if part.images and not labelled:
        raise UserError(f"{where}: no photo has a text file of labels, such as {label_file(part.images[0])}.")
    if bare:
        told = f"{len(bare)}, such as {bare[0]}"
        part.notes.append(f"photos in {where} without a text file, taken to be without objects: {told}")
    if quads and quads == len(part.rows):
        part.notes.append(
            f"all {quads} lines of {where} have four corners, as of oriented boxes (OBB): detectors learn the upright "
            "boxes around them"
        )
    if unknown == {len(names)} and all(row.label for row in part.rows):
        raise UserError(
            f"{where}: the classes of the lines run from 1 to {len(names)}: YOLO counts the {len(names)} named classes "
            "from 0: subtract 1, or name the class 0 too."
        )
    if absolute * 2 > lines:
        raise UserError(
            f"{where}: {absolute} of {lines} lines have numbers above 1: YOLO's are fractions of the photo's width and "
            f"height, not pixels. The first: {first_few([' '.join(fault) for fault in part.faults], 1)}"
        )
    return part


def _label_lines(text: Path) -> list[str]:
    try:
        if text.stat().st_size > LARGEST_TEXT:
            raise FaultyError(f"has a text file of more than {LARGEST_TEXT // 1_000_000} MB")
        return lines_of(text)
    except (OSError, UserError) as error:
        raise FaultyError(f"has a text file that cannot be read: {first_line(error)}") from None


def _cells(line: str, names: Sequence[str]) -> list[str]:
    """The cells of a line, between blanks or commas; a class that is given by its name as its number."""
    cells = line.split() if len(line.split()) > 1 else [cell.strip() for cell in line.split(",")]
    return [str(names.index(cells[0])), *cells[1:]] if cells[0] in names and not cells[0].isdecimal() else cells


def _yolo_row(cells: list[str], image: int, size: tuple[int, int], classes: int, number: int) -> Row:
    label, *shares = numbers(cells, "line")
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        more = ", and predictions a fifth number, their score, to be removed" if len(shares) == 5 else ""
        raise FaultyError(f"has {len(shares)} numbers after the class: a box has 4, a polygon two per point{more}")
    if not label.is_integer() or not 0 <= label < classes:
        raise UnknownClassError(f"has an unknown class: {cells[0]}, of {classes}", label)
    values = np.array(shares)
    if not np.isfinite(values).all():
        raise FaultyError("has a number that is not finite")
    if values.max() > 1 + TOLERANCE or values.min() < -TOLERANCE:
        raise FaultyError(f"{ABSOLUTE}, or below 0: {' '.join(cells)[:80]}")
    height, width = size
    if len(shares) == 4:
        x, y, w, h = values * (width, height, width, height)
        return Row(image, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), int(label), False, math.nan, number, None)
    points = values.reshape(-1, 2) * (width, height)
    box = (*points.min(0).tolist(), *points.max(0).tolist())
    return Row(image, box, int(label), False, math.nan, number, [points.ravel()])


def _label_files(part: Part, photos: Sequence[Path]) -> dict[Path, Path | None]:
    """The text file of each image; one with another name is looked for in and below the folder where it should be."""
    usual = {photo: label_file(photo) for photo in photos}
    found: dict[Path, Path | None] = {photo: text if text.is_file() else None for photo, text in usual.items()}
    bare = defaultdict(list)
    for photo, text in usual.items():
        if found[photo] is None:
            bare[next(folder for folder in text.parents if folder.is_dir())].append(photo)
    taken = set(found.values())
    for folder, lacking in bare.items():
        texts = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.suffix.lower() == ".txt" and path not in taken
        }
        wanted = [usual[photo].relative_to(folder).as_posix() for photo in lacking]
        names = match_names(wanted, texts)
        part.notes += renaming_note(f"text files in {relative_name(folder, part.root)}", wanted, names)
        found.update((photo, texts[name]) for photo, name in zip(lacking, names, strict=True) if name)
    part.notes += _without_photo(part, usual, set(found.values()))
    return found


def _without_photo(part: Part, usual: dict[Path, Path], taken: Collection[Path | None]) -> list[str]:
    """A note for each folder with text files of photos that are not there; other texts may lie there, too."""
    stems: dict[Path, set[str]] = defaultdict(set)
    for folder, texts in {(photo.parent, text.parent) for photo, text in usual.items()}:
        stems[texts].update(path.stem for path in folder.iterdir() if is_photo(path.name))
    notes = []
    for folder in sorted(path for path in stems if path.is_dir()):
        free = (path for path in sorted(folder.glob("[!.]*.txt")) if path.stem not in stems[folder])
        if alone := [path.name for path in free if path not in taken and holds_labels(path)]:
            told = f"{len(alone)}, such as {alone[0]}"
            where = relative_name(folder, part.root)
            notes.append(f"text files in {where} of photos that are not there, left out: {told}")
    return notes


def holds_labels(text: Path) -> bool:
    """Whether a text file begins with a line of YOLO's, or is empty."""
    try:
        lines = _label_lines(text)
        return not lines or len(numbers(_cells(lines[0], ())[1:], "line")) >= 4
    except FaultyError:
        return False


def label_file(photo: Path) -> Path:
    """Path of an image's annotations: in labels/ in place of the last images/, else beside it."""
    beside = photo.with_suffix(".txt")
    parts = list(beside.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    apart = Path(*parts)
    return beside if beside.is_file() and not apart.is_file() else apart
