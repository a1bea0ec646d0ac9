"""Predictions as labels that annotation tools open, and that `dmformer train` reads: pre-labelling."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..utils.errors import UserError
from ..utils.files import whole_file, write_whole
from .boxes import BoxPrediction

EDGES = ("left", "top", "right", "bottom")


def check_labels(kind: str, answer: str, out: Path) -> None:
    """Raise UserError for labels that the model cannot give, and for a folder that holds something."""
    if answer not in LABELS:
        raise UserError("--labels-as is not for this model.")
    if kind not in LABELS[answer]:
        raise UserError(f"--labels-as {kind} is not for this model: give {' or '.join(LABELS[answer])}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: give another --labels-out.")


def write_labels(kind: str, answer: str, found: Sequence[Any], names: Sequence[str], out: Path) -> None:
    """Write the labels of the photos that could be read.

    Args:
        kind: A key of `LABELS[answer]`.
        answer: Kind of predictions; see `Task`.
        found: What `ANSWERS[answer].predict` gave.
        names: Classes of the model, in order.
        out: Folder to write into; it is made.

    Raises:
        UserError: A file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        LABELS[answer][kind]([each for each in found if not each.error], names, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None


def _class_rows(found: Sequence[Any], names: Sequence[str], out: Path) -> None:
    rows = [(Path(each.name).resolve(), *each.classes[0]) for each in found]
    _write_csv(out / "labels.csv", ("path", "label", "probability"), rows)


def _tag_rows(found: Sequence[Any], names: Sequence[str], out: Path) -> None:
    rows = [(Path(each.name).resolve(), ";".join(name for name, _ in each.labels)) for each in found]
    _write_csv(out / "labels.csv", ("path", "labels"), rows)


def _masks(found: Sequence[Any], names: Sequence[str], out: Path) -> None:
    """The masks under the names of their photos, and the names of the ids."""
    for place, each in zip(_places([each.mask for each in found], ".mask.png", out), found, strict=True):
        shutil.copyfile(each.mask, place.with_name(f"{place.name}.png"))
    write_whole(out / "classes.txt", "\n".join(names) + "\n")


def _box_rows(found: Sequence[BoxPrediction], names: Sequence[str], out: Path) -> None:
    rows = [
        (Path(each.name).resolve(), one["class"], one["score"], *_edges(one)) for each in found for one in each.objects
    ]
    _write_csv(out / "labels.csv", ("path", "label", "score", *EDGES), rows)


def _coco(found: Sequence[BoxPrediction], names: Sequence[str], out: Path) -> None:
    """Outlines as run lengths, if the detector gives them."""
    images = [
        {"id": i, "file_name": each.name, "width": each.size[0], "height": each.size[1]}
        for i, each in enumerate(found, 1)
    ]
    objects = [
        {**{k: v for k, v in one.items() if k != "class"}, "image_id": i, "category_id": names.index(one["class"]) + 1}
        for i, each in enumerate(found, 1)
        for one in each.objects
    ]
    annotations = [
        {"id": i, "iscrowd": 0, "area": round(one["bbox"][2] * one["bbox"][3], 2), **one}
        for i, one in enumerate(objects, 1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_whole(out / "instances.json", json.dumps(content, ensure_ascii=False) + "\n")


def _voc(found: Sequence[BoxPrediction], names: Sequence[str], out: Path) -> None:
    """Pixels count from 1."""
    for place, each in _with_places(found, out):
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(each.name).name
        size = ElementTree.SubElement(root, "size")
        for side, value in zip(("width", "height", "depth"), (*each.size, 3), strict=True):
            ElementTree.SubElement(size, side).text = str(value)
        for one in each.objects:
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = one["class"]
            box = ElementTree.SubElement(entry, "bndbox")
            left, top, right, bottom = _edges(one)
            for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom), strict=True):
                ElementTree.SubElement(box, edge).text = f"{value:g}"
        write_whole(place.with_name(f"{place.name}.xml"), ElementTree.tostring(root, encoding="unicode") + "\n")


def _yolo(found: Sequence[BoxPrediction], names: Sequence[str], out: Path) -> None:
    for place, each in _with_places(found, out):
        lines = []
        for one in each.objects:
            left, top, width, height = one["bbox"]
            centre = ((left + width / 2) / each.size[0], (top + height / 2) / each.size[1])
            shares = (*centre, width / each.size[0], height / each.size[1])
            lines.append(" ".join([str(names.index(one["class"])), *(f"{share:.6f}" for share in shares)]))
        write_whole(place.with_name(f"{place.name}.txt"), "".join(f"{line}\n" for line in lines))
    write_whole(out / "classes.txt", "\n".join(names) + "\n")


def _labelme(found: Sequence[BoxPrediction], names: Sequence[str], out: Path) -> None:
    for place, each in _with_places(found, out):
        shapes = []
        for one in each.objects:
            left, top, right, bottom = _edges(one)
            shape = {"label": one["class"], "points": [[left, top], [right, bottom]], "shape_type": "rectangle"}
            shapes.append({**shape, "group_id": None, "flags": {}, "description": f"score {one['score']:.3f}"})
        sides = dict(zip(("imageWidth", "imageHeight"), each.size, strict=True))
        content = {"version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": Path(each.name).name, **sides}
        text = json.dumps({**content, "imageData": None}, ensure_ascii=False, indent=2)
        write_whole(place.with_name(f"{place.name}.json"), text + "\n")


def _edges(one: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of an object, in pixels."""
    left, top, width, height = one["bbox"]
    return left, top, round(left + width, 2), round(top + height, 2)


def _with_places(found: Sequence[BoxPrediction], out: Path) -> Iterator[tuple[Path, BoxPrediction]]:
    return zip(_places([each.picture for each in found], ".detections.png", out), found, strict=True)


def _places(written: Sequence[str], suffix: str, out: Path) -> Iterator[Path]:
    """For each written picture, the path in `out` without a suffix; subfolders of the photos are kept and made."""
    root = os.path.commonpath([Path(path).parent for path in written]) if written else ""
    for path in map(Path, written):
        place = out / path.relative_to(root or ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        yield place.with_name(place.name.removesuffix(suffix))


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with whole_file(path) as part, part.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


Writer = Callable[[Sequence[Any], Sequence[str], Path], None]
LABELS: dict[str, dict[str, Writer]] = {
    "labels": {"csv": _class_rows},
    "tags": {"csv": _tag_rows},
    "masks": {"masks": _masks},
    "boxes": {"coco": _coco, "voc": _voc, "yolo": _yolo, "labelme": _labelme, "csv": _box_rows},
}
"""What writes labels, by the `answer` of a `Task` and the format."""
