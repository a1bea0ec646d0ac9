"""Annotations that other programs keep in one file, as the content of a COCO file: VGG's VIA, Label Studio, CreateML,
CVAT's XML, and tables with a row for each box."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from ....utils.errors import UserError
from ...tables import LABEL_COLUMNS, PATH_COLUMNS, find_column, missing_column, read_rows, text_of

EDGE_COLUMNS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
    ("x1", "y1", "x2", "y2"),
)
BOX_COLUMN, ONLY = "bbox", "object"
"""The column with a whole box, left, upper, width and height; the class of boxes in a table without classes."""
NAMED = ("label", "class", "name", "type", "category")
"""VIA's attributes that name the class, of several."""
CORNERS = 64
"""Number of corners with which a circle or an ellipse is drawn."""


@dataclass
class Objects:
    """Images and their objects, as COCO's file holds them."""

    program: str
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def photo(self, name: str, width: Any = None, height: Any = None) -> int:
        """The number of a photo, which is added if it is new."""
        entry = {"id": len(self.images) + 1, "file_name": name, "width": width, "height": height}
        return self.images.setdefault(name, entry)["id"]

    def add(self, photo: int, label: str, box: Sequence[Any] | None, outline: Any = None) -> None:
        """Add an object with its box (left, upper, width, height) or its outline (n, 2); without, it is a fault."""
        own = {"id": len(self.annotations) + 1, "image_id": photo, "bbox": None if box is None else list(box)}
        if label:
            own["category_id"] = self.categories.setdefault(label, len(self.categories) + 1)
        if outline is not None:
            own["segmentation"] = [np.asarray(outline, np.float64).ravel().tolist()]
        self.annotations.append({**own, "iscrowd": 0})

    def content(self) -> dict[str, Any]:
        """The content of a COCO file; the classes are numbered in alphabetical order."""
        number = {self.categories[name]: k for k, name in enumerate(sorted(self.categories), 1)}
        annotations = [
            {**each, "category_id": number[each["category_id"]]} if "category_id" in each else each
            for each in self.annotations
        ]
        categories = [{"id": k, "name": name} for k, name in enumerate(sorted(self.categories), 1)]
        return {"images": list(self.images.values()), "annotations": annotations, "categories": categories}


def of_json(content: Any) -> Objects | None:
    """The objects in the content of a JSON file; None if it is of none of these programs."""
    if isinstance(content, dict):
        entries = content.get("_via_img_metadata", content)
        entries = list(entries.values()) if isinstance(entries, dict) else []
        is_via = entries and all(isinstance(e, dict) and {"filename", "regions"} <= set(e) for e in entries)
        return _via(entries) if is_via else None
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        return None
    if all({"image", "annotations"} <= set(entry) for entry in content):
        return _createml(content)
    if all(isinstance(entry.get("data"), dict) and "annotations" in entry for entry in content):
        return _label_studio(content)
    return None


def _via(entries: Sequence[Mapping[str, Any]]) -> Objects:
    found = Objects("VGG's VIA")
    for entry in entries:
        photo = found.photo(str(entry["filename"]))
        regions = entry["regions"]
        for region in regions.values() if isinstance(regions, dict) else regions:
            shape, attributes = region.get("shape_attributes", {}), region.get("region_attributes", {})
            names = [key for key in NAMED if attributes.get(key)] or list(attributes)
            label = attributes[names[0]] if names else ""
            if isinstance(label, dict):  # boxes that were ticked
                label = next((key for key, ticked in label.items() if ticked), "")
            found.add(photo, str(label).strip(), *_via_shape(shape))
    return found


def _via_shape(shape: Mapping[str, Any]) -> tuple[list[Any] | None, np.ndarray | None]:
    """The box and the outline of a shape; neither for one without an area."""
    try:
        if shape.get("name") == "rect":
            return [shape["x"], shape["y"], shape["width"], shape["height"]], None
        if "all_points_x" in shape:
            return None, np.stack([shape["all_points_x"], shape["all_points_y"]], 1).astype(np.float64)
        radii = np.array([shape.get("rx", shape.get("r")), shape.get("ry", shape.get("r"))], np.float64)
        angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
        return None, np.stack([np.cos(angles), np.sin(angles)], 1) * radii + [shape["cx"], shape["cy"]]
    except (KeyError, TypeError, ValueError):
        return None, None


def _createml(entries: Sequence[Mapping[str, Any]]) -> Objects:
    found = Objects("CreateML")
    for entry in entries:
        photo = found.photo(str(entry["image"]))
        for each in entry["annotations"]:
            x, y, width, height = (each["coordinates"][key] for key in ("x", "y", "width", "height"))
            found.add(photo, str(each.get("label", "")), [x - width / 2, y - height / 2, width, height])
    return found


def _label_studio(entries: Sequence[Mapping[str, Any]]) -> Objects:
    """Values are in percent of the photo; a rotated rectangle becomes an outline."""
    found = Objects("Label Studio")
    if several := sum(len(entry["annotations"]) > 1 for entry in entries):
        found.program += f", of which {several} photos have several annotations: the first counts"
    for entry in entries:
        name = next((_stored(value) for value in entry["data"].values() if isinstance(value, str)), "")
        results = [each for one in entry["annotations"][:1] for each in one.get("result", ())]
        sized = next((each for each in results if each.get("original_width")), {})
        width, height = sized.get("original_width"), sized.get("original_height")
        photo = found.photo(name, width, height)
        for each in results:
            value, kind = each.get("value", {}), str(each.get("type", ""))
            label = next(iter(value.get(kind) or ()), "")
            if not kind.endswith("labels"):  # choices, texts
                continue
            if kind not in ("rectanglelabels", "polygonlabels") or not width or not height:
                found.add(photo, label, None)
                continue
            scale = np.array([width, height]) / 100
            if kind == "polygonlabels":
                found.add(photo, label, None, np.array(value["points"], np.float64) * scale)
                continue
            corner, sides = (
                np.array([value["x"], value["y"]]) * scale,
                np.array([value["width"], value["height"]]) * scale,
            )
            turn = math.radians(value.get("rotation") or 0)
            if not turn:
                found.add(photo, label, [*corner.tolist(), *sides.tolist()])
                continue
            corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * sides
            rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
            found.add(photo, label, None, corners @ rotation + corner)
    return found


def _stored(address: str) -> str:
    """The path in an address of Label Studio's: /data/local-files/?d=folder/1.jpg."""
    local = parse_qs(urlsplit(address).query).get("d")
    return local[0] if local else unquote(urlsplit(address).path) or address


def of_cvat(root: ElementTree.Element, file: Path) -> Objects:
    """The objects in CVAT's XML for images."""
    if root.find("track") is not None:
        raise UserError(f"{file} holds CVAT's tracks through a video: export 'CVAT for images', or COCO.")
    found = Objects("CVAT")
    for image in root.iter("image"):
        photo = found.photo(image.get("name", ""), int(image.get("width", 0)), int(image.get("height", 0)))
        for shape in image:
            label = shape.get("label", "")
            if shape.tag == "box":
                left, upper, right, lower = (float(shape.get(edge, "nan")) for edge in ("xtl", "ytl", "xbr", "ybr"))
                found.add(photo, label, [left, upper, right - left, lower - upper])
            elif shape.tag == "polygon":
                points = [point.split(",") for point in shape.get("points", "").split(";")]
                found.add(photo, label, None, np.array(points, np.float64))
            elif shape.tag != "tag":  # points, lines, masks
                found.add(photo, label, None)
    return found


def box_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a table that hold boxes: four with the edges, or one with a whole box; none in another table."""
    for names in EDGE_COLUMNS:
        columns = [find_column(dict(row), (name,)) for name in names]
        if all(columns):
            return [column for column in columns if column]
    whole = find_column(dict(row), (BOX_COLUMN,))
    return [whole] if whole else []


def of_table(path: Path) -> Objects:
    """The objects in a table with a row for each box; a row without one is of a photo without objects."""
    rows = read_rows(path)
    name, label = find_column(rows[0], PATH_COLUMNS), find_column(rows[0], LABEL_COLUMNS)
    width, height = find_column(rows[0], ("width",)), find_column(rows[0], ("height",))
    columns = box_columns(rows[0])
    if name is None:
        raise missing_column(path, rows[0], "path", PATH_COLUMNS)
    if not columns:
        raise missing_column(path, rows[0], "left edge", EDGE_COLUMNS[0])
    found = Objects("a table of boxes")
    for row in rows:
        if not text_of(row[name]):
            continue
        sides = [_number(row.get(side)) if side else None for side in (width, height)]
        photo = found.photo(text_of(row[name]), *(int(side) if side else None for side in sides))
        cells = [row[column] for column in columns]
        if any(map(text_of, cells)):
            found.add(photo, text_of(row.get(label)) if label else ONLY, _box(cells))
    return found


def _box(cells: Sequence[Any]) -> list[Any] | None:
    """Left, upper, width and height."""
    if len(cells) == 1:
        try:
            return list(ast.literal_eval(cells[0]) if isinstance(cells[0], str) else cells[0])
        except (ValueError, SyntaxError, TypeError):
            return None
    edges = [_number(cell) for cell in cells]
    if None in edges:
        return None
    left, upper, right, lower = (float(edge or 0) for edge in edges)
    left, right, upper, lower = min(left, right), max(left, right), min(upper, lower), max(upper, lower)
    return [left, upper, right - left, lower - upper]


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
