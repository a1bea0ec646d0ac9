"""Files beside masks that name the classes and their colours, as annotation tools write them."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...utils.errors import UserError, first_line
from ..folders import lines_of

Colour = tuple[int, int, int]

FILES = ("labelmap.txt", "_classes.csv", "class_dict.csv", "classes.json", "label_colors.txt")
"""Names of such files: of CVAT, Roboflow, CamVid as Kaggle has it, several tools, CamVid."""

NAME_KEYS = ("name", "title", "label", "class")
COLOUR_KEYS = ("color", "colour", "rgb", "color_rgb")
ID_KEYS = ("id", "value", "index")


@dataclass(frozen=True)
class ColourMap:
    """Classes in the order of their ids, from 0; `colours` is empty if the masks hold ids."""

    class_names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()


def find_colour_map(folders: Iterable[Path]) -> Path | None:
    """The first such file in some folders."""
    return next((path for folder in folders for name in FILES if (path := folder / name).is_file()), None)


def read_colour_map(path: Path) -> ColourMap:
    """Read a file that names classes and perhaps colours.

    - labelmap.txt: `name:red,green,blue:parts:actions` per line;
    - .csv: a header with a name, and with a pixel value or with red, green and blue;
    - label_colors.txt: `red green blue name` per line;
    - .json: {"name": colour}, {"id": "name"}, or a list of objects with a name and a colour or an id; a colour is
      [red, green, blue] or "#RRGGBB".

    Raises:
        UserError: Another content, colours of some classes only, a colour or an id twice, or ids with gaps.
    """
    try:
        if path.suffix == ".json":
            rows = _json_rows(json.loads(path.read_bytes()))
        elif path.suffix == ".csv":
            rows = _csv_rows(list(csv.reader(lines_of(path), skipinitialspace=True)))
        elif path.name == "labelmap.txt":
            rows = [_labelmap_row(line) for line in lines_of(path) if not line.startswith("#")]
        else:
            rows = [_camvid_row(line) for line in lines_of(path)]
    except UserError:
        raise
    except Exception as error:  # any content can be in a file of such a name
        raise UserError(f"{path} cannot be read as names and colours of classes: {first_line(error)}") from None
    return _colour_map(path, rows)


def parse_colours(texts: Sequence[str]) -> tuple[Colour, ...]:
    """Colours written as RRGGBB; UserError for anything else, or a colour twice."""
    found = []
    for text in texts:
        try:
            found.append(_colour(text))
        except ValueError:
            raise UserError(f"--colours {text}: give colours as RRGGBB, such as 800000, or one file of them.") from None
    _check_once("--colours", [hexadecimal(colour) for colour in found])
    return tuple(found)


def hexadecimal(colour: Sequence[int]) -> str:
    """A colour as RRGGBB."""
    return "{:02x}{:02x}{:02x}".format(*colour)


Row = tuple[str, Colour | None, int | None]
"""A class's name, colour and id."""


def _labelmap_row(line: str) -> Row:
    name, colour, *_ = line.rsplit(":", 3)
    return name.strip(), _colour(colour), None


def _camvid_row(line: str) -> Row:
    red, green, blue, name = re.split(r"[\s,]+", line, maxsplit=3)
    return name.strip(), _colour([red, green, blue]), None


def _csv_rows(lines: list[list[str]]) -> list[Row]:
    header = [cell.strip().casefold() for cell in lines[0]]
    name = next(i for i, cell in enumerate(header) if cell in NAME_KEYS)
    value = next((i for i, cell in enumerate(header) if cell in ("pixel value", *ID_KEYS)), None)
    places = [
        next((i for i, cell in enumerate(header) if cell in (full, full[0])), None) for full in ("red", "green", "blue")
    ]
    rows = []
    for line in lines[1:]:
        colour = None if None in places else _colour([line[i] for i in places if i is not None])
        rows.append((line[name].strip(), colour, None if value is None else int(line[value])))
    return rows


def _json_rows(content: Any) -> list[Row]:
    if isinstance(content, dict) and isinstance(content.get("classes"), list | dict):
        content = content["classes"]
    if isinstance(content, list):
        return [(entry, None, i) if isinstance(entry, str) else _json_row(entry) for i, entry in enumerate(content)]
    return [
        (value, None, int(key)) if key.isdecimal() and isinstance(value, str) else (key, *_colour_or_id(value))
        for key, value in content.items()
    ]


def _json_row(entry: dict[str, Any]) -> Row:
    name, colour, number = (
        next((entry[key] for key in keys if key in entry), None) for keys in (NAME_KEYS, COLOUR_KEYS, ID_KEYS)
    )
    return str(name), None if colour is None else _colour(colour), number if isinstance(number, int) else None


def _colour_or_id(value: Any) -> tuple[Colour | None, int | None]:
    return (None, value) if isinstance(value, int) else (_colour(value), None)


def _colour(value: Any) -> Colour:
    """[r, g, b], "r,g,b" or "#RRGGBB"; ValueError for anything else."""
    if isinstance(value, str) and "," not in value:
        red, green, blue = bytes.fromhex(value.strip().removeprefix("#"))
        return red, green, blue
    red, green, blue = (int(part) for part in (value.split(",") if isinstance(value, str) else value)[:3])
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise ValueError(f"{value} is no colour")
    return red, green, blue


def _colour_map(path: Path, rows: Sequence[Row]) -> ColourMap:
    if not rows:
        raise UserError(f"{path} names no class.")
    colours = [colour for _, colour, _ in rows if colour is not None]
    if colours and len(colours) < len(rows):
        lacking = next(name for name, colour, _ in rows if colour is None)
        raise UserError(f"{path} gives no colour for {lacking}: give every class one, or none.")
    _check_once(str(path), [hexadecimal(colour) for colour in colours])
    if not colours and all(number is not None for *_, number in rows):
        rows = sorted(rows, key=lambda row: row[2] or 0)
        if [number for *_, number in rows] != list(range(len(rows))):
            raise UserError(f"{path}: the ids of the classes must be 0 to {len(rows) - 1} without gaps.")
    return ColourMap(tuple(name for name, *_ in rows), tuple(colours))


def _check_once(where: str, colours: Sequence[str]) -> None:
    if twice := [colour for colour in colours if colours.count(colour) > 1]:
        raise UserError(f"{where}: two classes have the colour {twice[0]}: give each its own.")
