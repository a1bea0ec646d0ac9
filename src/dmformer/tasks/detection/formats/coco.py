"""COCO's object annotations: one JSON file per split."""

import gc
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ....utils.errors import UserError, first_line
from ...folders import first_faults, first_few, relative_name
from .parts import FaultyError, Outline, Part, Row, numbers, photo_sizes

LARGEST_AREA = 1e18
"""In pixels; a larger area is ignored as implausible."""
PROBES = 50
"""Number of images to look for when choosing the folder that holds them."""


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Inside, garbage collection is paused: for COCO's millions of new lists it takes half of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_collector_paused()
def read_coco(file: Path, folders: Sequence[Path], root: Path) -> Part:
    """Read the objects of a COCO JSON; its images are in whichever folder holds most of the first ones.

    Classes follow the order of their ids, which may have gaps. Objects with `iscrowd` are crowds.

    Raises:
        UserError: Not JSON, not COCO, categories without names or with equal ones, or no image in any folder.
    """
    content = _coco_content(file)
    entries, roots = _without_roots(content)
    categories = _coco_categories(file, entries)
    names, ids = tuple(categories.values()), tuple(categories)
    part = Part(root, names, ids, str(file))
    if roots:
        told = ", ".join(roots)
        part.notes.append(f"categories of {file} that stand over others and have no object, left out: {told}")
    places = _coco_photos(part, file, content["images"], folders)
    label_of = {number: label for label, number in enumerate(ids)}
    taken: set[int] = set()
    for entry in content["annotations"]:
        stated = entry if isinstance(entry, dict) else {}
        number, image = stated.get("id"), _whole(stated.get("image_id"))
        if not isinstance(image, int) or image not in places:
            part.faults.append((f"{file.name}, object {number}", f"belongs to no photo: image_id {image}"))
            continue
        place = places[image]
        if place is None:  # left out with its image
            continue
        try:
            row = _coco_row(stated, place, part.sizes[place], label_of)
            if row.id in taken:
                raise FaultyError("has an id that is taken")
        except FaultyError as error:
            part.faults.append((part.object_name(place, number), str(error)))
            continue
        taken.add(row.id)
        part.rows.append(row)
    return part


def _coco_content(file: Path) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = json.load(opened)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: {first_line(error)}.") from None
    if isinstance(content, list):
        raise UserError(f"{file} is a list, as results are: a COCO file of objects has images and categories too.")
    lacking = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if lacking:
        raise UserError(f"{file} is no COCO file of objects: it has no list of {' and '.join(lacking)}.")
    return content


def _without_roots(content: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The categories without Roboflow's root, which is the others' supercategory and has no object; and the root's
    name."""
    entries = [entry for entry in content["categories"] if isinstance(entry, dict)]
    used = {entry.get("category_id") for entry in content["annotations"] if _has_number(entry, "category_id")}
    roots = [
        entry
        for entry in entries
        if entry.get("supercategory") == "none"
        and _has_number(entry, "id")
        and entry["id"] not in used
        and any(other is not entry and other.get("supercategory") == entry.get("name") for other in entries)
    ]
    rest = [entry for entry in content["categories"] if not any(entry is root for root in roots)]
    return rest, [str(root["name"]) for root in roots]


def _has_number(entry: Any, key: str) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(key), int)


def _coco_categories(file: Path, entries: list[Any]) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    categories: dict[int, str] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not _is_whole(entry.get("id")) or not str(entry.get("name") or ""):
            raise UserError(f"{file}: the category {entry} has no whole number as id, or no name.")
        if entry["id"] in categories:
            raise UserError(f"{file}: two categories have the id {entry['id']}: give each its own.")
        if str(entry["name"]) in categories.values():
            raise UserError(f"{file}: two categories are called {entry['name']}: give each a name of its own.")
        categories[entry["id"]] = str(entry["name"])
    if not categories:
        raise UserError(f"{file} has no categories: name the classes there.")
    return dict(sorted(categories.items()))


def _coco_photos(part: Part, file: Path, entries: list[Any], folders: Sequence[Path]) -> dict[int, int | None]:
    """Add the images to the part; returns their indices by id, None for images that are left out."""
    listed: dict[int, tuple[str, tuple[int, int] | None]] = {}
    places: dict[int, int | None] = {}
    for entry in entries:
        number, name = (_whole(entry.get("id")), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not _is_whole(number) or not isinstance(name, str) or not name:
            told = f"has no whole number as id, or no file_name: {str(entry)[:80]}"
            part.faults.append((f"{file.name}, image {number}", told))
        elif number in listed:
            part.faults.append((name, f"has an id that is taken: {number}"))
        else:
            listed[number] = (name, _stated_size(entry))
    if not listed:
        why = first_faults(part.faults, 3) or "its list of images is empty."
        raise UserError(f"{file} lists no photos that can be read: {why}")
    names = [name for name, _ in listed.values()]
    folder = _folder_of(names, folders)
    if folder is None:  # names written on Windows
        listed = {number: (name.replace("\\", "/"), size) for number, (name, size) in listed.items()}
        folder = _folder_of([name for name, _ in listed.values()], folders)
    if folder is None:
        tried = first_few([str(place) for place in folders if place.is_dir()], 5)
        raise UserError(f"{file}: none of its photos, such as {names[0]}, lies in {tried}: name their --images.")
    unknown = [folder / name for name, size in listed.values() if size is None]
    measured = dict(zip(unknown, photo_sizes(unknown), strict=True))
    for number, (name, stated) in listed.items():
        size = stated or measured[folder / name]
        if isinstance(size, str):
            part.faults.append((relative_name(folder / name, part.root), size))
            places[number] = None
        else:
            places[number] = part.add(folder / name, size, number)
    return places


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if _is_whole(height) and _is_whole(width) and min(height, width) > 0 else None


def _whole(value: Any) -> Any:
    """An id written as 1.0 as a whole number; any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that fits in an array."""
    return isinstance(value, int) and abs(value) < 2**63


def _folder_of(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The folder that holds most of the first images."""
    probes = names[:: -(-len(names) // PROBES)]
    hits = [sum(os.path.isfile(folder / name) for name in probes) for folder in folders]
    return folders[hits.index(max(hits))] if any(hits) else None


def _coco_row(entry: dict[str, Any], image: int, size: tuple[int, int], label_of: dict[int, int]) -> Row:
    number, category, box = _whole(entry.get("id")), _whole(entry.get("category_id")), entry.get("bbox")
    if not _is_whole(number):
        raise FaultyError("has no whole number as id")
    if not isinstance(category, int) or category not in label_of:
        raise FaultyError(f"has an unknown category: {category}")
    if not isinstance(box, list) or len(box) != 4:
        raise FaultyError(f"has no box of four numbers: {box}")
    left, upper, width, height = numbers(box, "box")
    area = entry.get("area")
    area = float(area) if isinstance(area, int | float) and 0 <= area < LARGEST_AREA else math.nan
    outline = _outline(entry.get("segmentation"), size)
    crowd = entry.get("iscrowd") in (1, "1")
    box = (left, upper, left + width, upper + height)
    return Row(image, box, label_of[category], crowd, area, number, outline)


def _outline(stored: Any, size: tuple[int, int]) -> Outline | None:
    """Polygons or run lengths, checked because the library that draws them is written in C; None if there are none."""
    if isinstance(stored, list):
        stored = [polygon for polygon in stored if polygon != []]
    if not stored:
        return None
    if isinstance(stored, dict):
        return _run_lengths(stored, size)
    if not isinstance(stored, list) or not all(isinstance(polygon, list) for polygon in stored):
        raise FaultyError("has an outline that is no list of polygons")
    return [_polygon(polygon, max(size)) for polygon in stored]


def _polygon(points: list[Any], side: int) -> np.ndarray:
    if len(points) < 6 or len(points) % 2:
        raise FaultyError(f"has a polygon of {len(points)} numbers: it takes two a point and three points")
    try:
        finite, lowest, highest = math.isfinite(sum(points)), min(points), max(points)
    except (TypeError, OverflowError):
        raise FaultyError("has a polygon with something that is no number") from None
    if not finite:
        raise FaultyError("has a polygon with a number that is not finite")
    if lowest < -side or highest > 2 * side:  # drawing takes memory for the whole line, inside the image or not
        raise FaultyError("has a polygon far outside its photo")
    return np.array(points, np.float64)


def _run_lengths(stored: dict[str, Any], size: tuple[int, int]) -> Outline:
    counts = stored.get("counts")
    if stored.get("size") != list(size):
        told = "x".join(str(side) for side in reversed(size))
        raise FaultyError(f"has run lengths of another size than its photo, {told}: {stored.get('size')} (H, W)")
    try:
        lengths = _uncompressed(counts) if isinstance(counts, str) else [int(count) for count in counts or ()]
    except (TypeError, ValueError, OverflowError, IndexError):
        raise FaultyError("has run lengths that cannot be read") from None
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise FaultyError(f"has run lengths of {sum(lengths)} pixels, its photo has {size[0] * size[1]}")
    return {"size": list(size), "counts": counts if isinstance(counts, str) else np.array(lengths, np.uint32)}


def _uncompressed(text: str) -> list[int]:
    """Decode COCO's compressed run lengths: 5 bits per character, lowest first; from the fourth length on,
    differences."""
    lengths: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(code)
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) and 1 << shift  # the last character's highest bit is the sign
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("ends in the middle of a number")
    return lengths
