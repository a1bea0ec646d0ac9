"""LabelMe's object annotations: one JSON file per image."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....data.orientation import SIDEWAYS, orientation
from ...folders import Fault, relative_name
from ...labelme import LabelMe, Shape, read_labelme
from .parts import Part, Row, measured, other_size


def read_labelme_boxes(
    root: Path, pairs: Sequence[tuple[Path, Path]], faults: Sequence[Fault], where: str, notes: Sequence[str] = ()
) -> Part:
    """Read the objects of LabelMe's files, one per image; shapes of one group are parts of one object."""
    part = Part(root, (), None, where, faults=list(faults), notes=list(notes))
    json_of = dict(pairs)
    labels: dict[str, int] = {}
    for photo, size in measured(part, list(json_of)):
        content = read_labelme(json_of[photo])
        fault = content.fault or _size_fault(content, photo, size)
        if fault:
            part.faults.append((relative_name(photo, root), f"has a .json that {fault}" if content.fault else fault))
            continue
        image = part.add(photo, content.size or size, stated=content.size is not None)
        part.faults += [(part.object_name(image, number), why) for number, why in content.faults]
        for label, shapes in _objects(content.shapes):
            points = np.concatenate([shape.points for shape in shapes])
            box = (*points.min(0).tolist(), *points.max(0).tolist())
            outline = [shape.points.ravel() for shape in shapes]
            number = labels.setdefault(label, len(labels))
            part.rows.append(Row(image, box, number, False, math.nan, len(part.rows) + 1, outline))
    part.names = tuple(labels)
    return part


def _size_fault(content: LabelMe, photo: Path, size: tuple[int, int]) -> str | None:
    if content.size in (None, size) or (content.size == size[::-1] and orientation(photo) in SIDEWAYS):
        return None
    return other_size(size, content.size or size)


def _objects(shapes: Sequence[Shape]) -> list[tuple[str, list[Shape]]]:
    """Label and shapes of each object."""
    objects: dict[tuple, list[Shape]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        objects[(shape.label, shape.group) if shape.group is not None else (shape.label, None, i)].append(shape)
    return [(key[0], parts) for key, parts in objects.items()]
