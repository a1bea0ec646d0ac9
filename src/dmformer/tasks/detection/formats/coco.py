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
from ...folders import first_faults, first_few, relative_name, walk, without_suffix
from ...foreign import foreign_format
from ...naming import match_names, renaming_note
from ...tables import TABLES
from .others import of_cvat, of_json, of_table
from .parts import Box, FaultyError, Outline, Part, Row, numbers, photo_sizes
from .voc import cvat_root

LARGEST_AREA = 1e18
"""In pixels; a larger area is ignored as implausible."""
PROBES = 50
"""Number of images to look for when choosing the folder that holds them."""
BAD_OUTLINE = "outlines that cannot be used, left out while their boxes are kept"
NO_BOX = "objects without a usable box, whose box is now that of their outline"
NEW_NUMBER = "objects without an id of their own, renumbered"
TWICE = "entries for a photo that has one already, added to the first"


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
def read_coco(file: Path, folders: Sequence[Path], root: Path, images: str | None = None) -> Part:
    """Read the objects of a COCO JSON, or of another program's file; its images are in whichever folder holds most of
    the first ones.

    Classes follow the order of their ids, which may have gaps. Objects with `iscrowd` are crowds. An object with only
    one of box and outline that can be used keeps that one. Several entries for one file become one image.

    Args:
        file: The JSON, or one of those that `others` reads.
        folders: Where the images may be.
        root: Folder at which display names start.
        images: The folder of images that the user gave, for the error.

    Raises:
        UserError: Not JSON, not COCO, categories without names or with equal ones, or no image in any folder.
    """
    content, program = _content(file)
    entries, roots = _without_roots(content)
    categories = _coco_categories(file, entries)
    names, ids = tuple(categories.values()), tuple(categories)
    part = Part(root, names, ids, str(file))
    if program:
        part.notes.append(f"{file} is read as annotations of {program}")
    if roots:
        told = ", ".join(roots)
        part.notes.append(f"parent categories of {file} without objects, left out: {told}")
    places = _coco_photos(part, file, content["images"], folders, images)
    label_of = {number: label for label, number in enumerate(ids)}
    taken: set[int] = set()
    free = 1 + max((n for entry in content["annotations"] if _is_whole(n := _id(entry)) and n < 2**62), default=0)
    for entry in content["annotations"]:
        stated = entry if isinstance(entry, dict) else {}
        number, image = _id(stated), _whole(stated.get("image_id"))
        if not isinstance(image, int | str) or image not in places:
            part.faults.append((f"{file.name}, object {number}", f"belongs to no photo: image_id {image}"))
            continue
        place = places[image]
        if place is None:  # left out with its image
            continue
        if not _is_whole(number) or number in taken:
            part.mend(NEW_NUMBER, part.object_name(place, number))
            number, free = free, free + 1
        taken.add(number)
        try:
            part.rows.append(_coco_row(part, stated, place, label_of, number))
        except FaultyError as error:
            part.faults.append((part.object_name(place, number), str(error)))
    return part


def _content(file: Path) -> tuple[dict[str, Any], str]:
    """The content as of a COCO file, and the other program that the file is of."""
    if file.suffix.lower() in TABLES:
        found = of_table(file)
    elif file.suffix.lower() == ".xml":
        found = of_cvat(cvat_root(file), file)
    else:
        content = _json(file)
        try:
            found = of_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{file} is not as its program writes it: {first_line(error)}.") from None
        if found is None:
            return _coco_content(file, content), ""
    return found.content(), found.program


def _json(file: Path) -> Any:
    try:
        with open(file, "rb") as opened:  # as bytes, so that json finds UTF-16, too
            return json.load(opened)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON: {first_line(error)}.") from None


def _coco_content(file: Path, content: Any) -> dict[str, Any]:
    if isinstance(content, list):
        keys = first_few([str(key) for key in content[0]], 6) if content and isinstance(content[0], dict) else ""
        told = f" of objects with {keys}" if keys else ""
        raise UserError(
            f"{file} is a list{told}, like COCO results: annotations need images and categories too. For a classifier, "
            "give a table as .csv or .jsonl."
        )
    lacking = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if lacking:
        raise UserError(
            f"{file} is no COCO file of objects: it has no list of {' and '.join(lacking)}. For a classifier, give a "
            f"table as .csv or .jsonl.{foreign_format(file.parent)}"
        )
    if any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"][:10]):
        raise UserError(f"{file} is of COCO's panoptic segmentation: detectors need its instances_*.json.")
    return content


def _without_roots(content: dict[str, Any]) -> tuple[list[Any], list[str]]:
    """The categories without Roboflow's root, which is the others' supercategory and has no object; and the root's
    name."""
    entries = [entry for entry in content["categories"] if isinstance(entry, dict)]
    used = {str(_whole(entry.get("category_id"))) for entry in content["annotations"] if isinstance(entry, dict)}
    roots = [
        entry
        for entry in entries
        if entry.get("supercategory") == "none"
        and _is_whole(_id(entry))
        and str(_id(entry)) not in used
        and any(other is not entry and other.get("supercategory") == entry.get("name") for other in entries)
    ]
    rest = [entry for entry in content["categories"] if not any(entry is root for root in roots)]
    return rest, [str(root["name"]) for root in roots]


def _coco_categories(file: Path, entries: list[Any]) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    categories: dict[int, str] = {}
    for entry in entries:
        number = _id(entry)
        if not _is_whole(number) or entry.get("name") in (None, ""):
            raise UserError(f"{file}: the category {entry} has no whole number as id, or no name.")
        if number in categories:
            raise UserError(f"{file}: two categories have the id {number}: give each its own.")
        if str(entry["name"]) in categories.values():
            raise UserError(f"{file}: two categories are called {entry['name']}: give each a name of its own.")
        categories[number] = str(entry["name"])
    if not categories:
        raise UserError(f"{file} has no categories: name the classes there.")
    return dict(sorted(categories.items()))


def _coco_photos(
    part: Part, file: Path, entries: list[Any], folders: Sequence[Path], images: str | None
) -> dict[int | str, int | None]:
    """Add the images to the part; returns their indices by id, None for images that are left out."""
    listed: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
    for entry in entries:
        number, name = (_id(entry), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        if not isinstance(number, int | str) or not isinstance(name, str) or not name:
            part.faults.append((f"{file.name}, image {number}", f"has no id, or no file_name: {str(entry)[:80]}"))
        elif number in listed:
            part.faults.append((name, f"has an id that is taken: {number}"))
        else:
            listed[number] = (name, _stated_size(entry))
    if not listed:
        why = first_faults(part.faults, 3) or "its list of images is empty."
        raise UserError(f"{file} lists no photos that can be read: {why}")
    paths = _photo_paths(part, file, [name for name, _ in listed.values()], folders, images)
    sizes = [size for _, size in listed.values()]
    unknown = [path for path, size in zip(paths, sizes, strict=True) if size is None]
    measured = dict(zip(unknown, photo_sizes(unknown), strict=True))
    numbered = all(_is_whole(number) for number in listed)
    if not numbered:
        part.notes.append(f"the photos of {file} have ids that are no whole numbers: numbered from 1 in their order")
    places: dict[int | str, int | None] = {}
    place_of: dict[Path, int | None] = {}
    for number, path, stated in zip(listed, paths, sizes, strict=True):
        size = stated or measured[path]
        if path in place_of:
            part.mend(TWICE, f"{relative_name(path, part.root)}, image {number}")
        elif isinstance(size, str):
            part.faults.append((relative_name(path, part.root), size))
            place_of[path] = None
        else:
            own = number if numbered and isinstance(number, int) else None
            place_of[path] = part.add(path, size, own, stated is not None)
        places[number] = place_of[path]
    return places


def _photo_paths(part: Part, file: Path, names: list[str], folders: Sequence[Path], images: str | None) -> list[Path]:
    """Where the images are; one that is not found stays where its name says."""
    folder = _folder_of(names, folders)
    places = [folder] if folder else [place for place in dict.fromkeys(folders) if place.is_dir()]
    if folder and all((folder / name).is_file() for name in names):
        return [folder / name for name in names]
    best, most = [], 0
    for place in places:
        known = [path.relative_to(place).as_posix() for path in walk(place)]
        found = match_names(names, known)
        if not any(found):  # tables may leave the suffix out
            whole = {without_suffix(name): name for name in known}
            found = [whole.get(stem or "") for stem in match_names(names, whole)]
        if (hits := sum(name is not None for name in found)) > most:
            folder, best, most = place, found, hits
    if folder is None or not most:
        tried = first_few([str(place) for place in places], 5)
        remedy = "that is not the folder that holds them" if images else "name their folder with --images"
        raise UserError(f"{file}: none of its photos, such as {names[0]}, lies in {tried}: {remedy}.")
    part.notes += renaming_note(f"photos of {file}", names, best)
    return [folder / (found or name) for name, found in zip(names, best, strict=True)]


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if _is_whole(height) and _is_whole(width) and min(height, width) > 0 else None


def _whole(value: Any) -> Any:
    """An id written as 1.0 or "1" as a whole number; any other value unchanged."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 19 else value


def _id(entry: Any) -> Any:
    return _whole(entry.get("id")) if isinstance(entry, dict) else None


def _is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number that fits in an array."""
    return isinstance(value, int) and abs(value) < 2**63


def _folder_of(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """The folder that holds most of the first images."""
    probes = names[:: -(-len(names) // PROBES)]
    hits = [sum(os.path.isfile(folder / name) for name in probes) for folder in folders]
    return folders[hits.index(max(hits))] if any(hits) else None


def _coco_row(part: Part, entry: dict[str, Any], image: int, label_of: dict[int, int], number: int) -> Row:
    category = _whole(entry.get("category_id"))
    if not isinstance(category, int) or category not in label_of:
        raise FaultyError(f"has an unknown category: {category}")
    outline = _usable_outline(part, entry.get("segmentation"), image, number)
    box = _coco_box(entry.get("bbox"), required=outline is None)
    if box is None:
        box = _extent(outline)
        part.mend(NO_BOX, part.object_name(image, number))
    elif outline is not None and _is_stray(outline, box):
        outline = None
        part.mend(BAD_OUTLINE, f"{part.object_name(image, number)}: it lies outside the box")
    area = entry.get("area")
    area = float(area) if isinstance(area, int | float) and 0 <= area < LARGEST_AREA else math.nan
    return Row(image, box, label_of[category], entry.get("iscrowd") in (1, "1"), area, number, outline)


def _coco_box(stored: Any, required: bool) -> Box | None:
    """The edges of a box; if it is not required, None for one that cannot be used."""
    try:
        if not isinstance(stored, list) or len(stored) != 4:
            raise FaultyError(f"has no box of four numbers: {stored}")
        left, upper, width, height = numbers(stored, "box")
    except FaultyError:
        if required:
            raise
        return None
    usable = math.isfinite(left + upper + width + height) and width > 0 and height > 0
    return (left, upper, left + width, upper + height) if usable or required else None


def _usable_outline(part: Part, stored: Any, image: int, number: int) -> Outline | None:
    """Run lengths, or those polygons that can be used; None if nothing can. What is left out is counted."""
    try:
        if isinstance(stored, dict):
            return _run_lengths(stored, part.sizes[image]) if stored else None
        return _polygons(part, stored, image, number)
    except FaultyError as error:
        part.mend(BAD_OUTLINE, f"{part.object_name(image, number)} {error}")
        return None


def _polygons(part: Part, stored: Any, image: int, number: int) -> list[np.ndarray] | None:
    if not stored:
        return None
    if not isinstance(stored, list):
        raise FaultyError("has an outline that is no list of polygons")
    usable = []
    for polygon in [stored] if isinstance(stored[0], int | float) else stored:
        if polygon == []:
            continue
        try:
            usable.append(_polygon(polygon, max(part.sizes[image])))
        except FaultyError as error:
            part.mend(BAD_OUTLINE, f"{part.object_name(image, number)} {error}")
    return usable or None


def _polygon(points: Any, side: int) -> np.ndarray:
    """A polygon, checked because the library that draws it is written in C."""
    if not isinstance(points, list):
        raise FaultyError("has an outline that is no list of polygons")
    if len(points) < 6 or len(points) % 2:
        raise FaultyError(f"has a polygon of {len(points)} numbers: it takes two per point, and three points")
    try:
        finite, lowest, highest = math.isfinite(sum(points)), min(points), max(points)
    except (TypeError, OverflowError):
        raise FaultyError("has a polygon with something that is no number") from None
    if not finite:
        raise FaultyError("has a polygon with a number that is not finite")
    if lowest < -side or highest > 2 * side:  # drawing takes memory for the whole line, inside the image or not
        raise FaultyError("has a polygon far outside its photo")
    return np.array(points, np.float64)


def _is_stray(outline: Outline, box: Box) -> bool:
    """Whether an outline and its box have no point in common."""
    if not isinstance(outline, dict):
        x, y = outline[0][:2].tolist()
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]:  # nearly always, and cheaper than the whole outline
            return False
    try:
        left, upper, right, lower = _extent(outline)
    except FaultyError:  # it has no pixel
        return False
    return right < box[0] or box[2] < left or lower < box[1] or box[3] < upper


def _extent(outline: Outline | None) -> Box:
    """The edges of the smallest box around an outline; FaultyError if it is empty."""
    if isinstance(outline, dict):
        return _extent_of_runs(outline)
    points = np.concatenate(outline or [np.zeros(0)]).reshape(-1, 2)
    (left, upper), (right, lower) = points.min(0).tolist(), points.max(0).tolist()
    return left, upper, right, lower


def _extent_of_runs(outline: dict[str, Any]) -> Box:
    height, counts = outline["size"][0], outline["counts"]
    ends = np.cumsum(_uncompressed(counts) if isinstance(counts, str) else counts)
    starts, ends = ends[: len(ends) // 2 * 2 : 2].astype(np.int64), ends[1::2].astype(np.int64)
    starts, ends = starts[ends > starts], ends[ends > starts] - 1
    if not len(starts):
        raise FaultyError("has no box, and an outline without a pixel")
    columns = np.array([starts.min(), ends.max()]) // height
    over = (starts // height != ends // height).any()  # a run over a border of columns reaches its lower edge
    upper, lower = (0, height) if over else ((starts % height).min(), (ends % height).max() + 1)
    return float(columns[0]), float(upper), float(columns[1] + 1), float(lower)


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
