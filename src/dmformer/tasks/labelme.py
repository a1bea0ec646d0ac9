"""LabelMe's annotations: one JSON file per image, with labelled outlines."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.errors import first_line

CIRCLE = 64
"""Number of corners with which a circle is drawn."""
LARGEST = 100_000_000
"""Maximum size of a file in bytes; most of one is the photo that LabelMe may store in it."""


@dataclass(frozen=True)
class Shape:
    """An outline: its label, its corners (n, 2) as x, y in pixels, and the object that it is a part of, if any."""

    label: str
    points: np.ndarray
    group: int | str | None = None


@dataclass(frozen=True)
class LabelMe:
    """The content of a file.

    Attributes:
        photo: Path of the image as the file gives it, or "".
        size: Height and width as the file gives them.
        shapes: Outlines, in the file's order.
        faults: Number and reason of each shape that has no area or cannot be read.
        fault: Why the file as a whole cannot be read.
    """

    photo: str = ""
    size: tuple[int, int] | None = None
    shapes: tuple[Shape, ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    fault: str = ""


def read_labelme(path: Path) -> LabelMe:
    """Read a file; rectangles and circles become outlines too."""
    try:
        if path.stat().st_size > LARGEST:
            return LabelMe(fault=f"has more than {LARGEST // 1_000_000} MB")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return LabelMe(fault=f"cannot be read: {first_line(error)}")
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        return LabelMe(fault="is no file of LabelMe: it has no list of shapes")
    shapes, faults = [], []
    for number, entry in enumerate(content["shapes"], 1):
        try:
            shapes.append(_shape(entry))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            faults.append((number, str(error) if type(error) is ValueError else "cannot be read"))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None
    return LabelMe(str(content.get("imagePath") or ""), size, tuple(shapes), tuple(faults))


def _shape(entry: dict[str, Any]) -> Shape:
    label, kind = str(entry["label"]).strip(), entry.get("shape_type") or "polygon"
    points = np.array(entry["points"], np.float64).reshape(-1, 2)
    if not label:
        raise ValueError("has no label")
    if not np.isfinite(points).all():
        raise ValueError("has a number that is not finite")
    if kind == "rectangle" and len(points) == 2:
        (left, upper), (right, lower) = points.min(0), points.max(0)
        points = np.array([(left, upper), (right, upper), (right, lower), (left, lower)])
    elif kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, CIRCLE, endpoint=False)
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
    elif kind not in ("polygon", "rectangle", "oriented_rectangle"):
        raise ValueError(f"is a {kind}, which has no outline")
    if len(points) < 3:
        raise ValueError(f"has an outline of {len(points)} points")
    return Shape(label, points, entry.get("group_id"))
