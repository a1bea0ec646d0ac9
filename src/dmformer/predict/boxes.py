"""Detect objects in images with a trained model."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.decode import BrokenImageError, Reading
from ..data.detections import coco_results
from ..data.finding import no_remark
from ..data.limits import MAX_PIXELS
from ..data.pages import Pages
from ..utils.errors import UserError
from ..utils.files import write_whole
from .photos import content_of, places_in, read, save_png, suffixed
from .predictor import BoxPredictor, Source, opened


@dataclass(frozen=True)
class BoxPrediction:
    """Result for one image: the drawing, and the objects with the highest score first; or an error."""

    name: str
    picture: str = ""
    objects: tuple[dict[str, Any], ...] = ()
    """Objects in COCO's result format, plus the "class" name."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the image in pixels."""
    error: str | None = None


def predict_boxes(
    source: Source | BoxPredictor,
    photos: Sequence[str],
    out: str = "predictions",
    threshold: float | None = None,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    say: Callable[[str], None] = no_remark,
) -> Iterator[BoxPrediction]:
    """Detect objects in images; yield one `BoxPrediction` per image, in order.

    Writes into `out`, with the subfolders of the input: STEM.detections.png, the image with boxes, masks and names; at
    the end, detections.json, all objects in COCO's format with their scores.

    Args:
        source: A run's best/ folder, an exported .onnx or .xml file, or an open predictor.
        photos: Files, folders (searched recursively) or "-" for an image on standard input.
        threshold: Minimum score of an object; by default the detector's own.
        max_pixels: Images of more pixels are not read.
        say: Takes a remark on what was left out of a folder, and on files of several pages.

    Raises:
        UserError: A path does not exist, a folder contains no images, the model is not a detector, or a file exists.
    """
    from ..report.drawing import draw_detections  # imported here, so that classifiers start faster

    places = {name: suffixed(place, "detections") for name, place in places_in(Path(out), photos, say)}
    listed = Path(out) / "detections.json"
    taken = [path for path in (*places.values(), listed) if path.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists already: give another --out, or --overwrite.")
    detector: Any = opened(source, "boxes", "a detector")
    threshold = detector.threshold if threshold is None else threshold
    names, ids, palette = list(detector.class_names), list(detector.category_ids), detector.palette
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    pages = Pages()
    try:
        for name in progress(list(places)):
            try:
                image = read(content_of(name, pages), reading=Reading(detector.values, max_pixels))
            except BrokenImageError as error:
                yield BoxPrediction(name, error=str(error))
                continue
            found = detector.detect(image, threshold)
            places[name].parent.mkdir(parents=True, exist_ok=True)
            save_png(draw_detections(image, found, names, palette), places[name])
            images.append({"id": len(images) + 1, "file_name": name, "width": image.width, "height": image.height})
            rows = coco_results(found, len(images), ids)
            numbered = enumerate(rows, len(objects) + 1)
            objects += [{"id": number, "iscrowd": 0, "area": _area(row), **row} for number, row in numbered]
            told = ({**row, "class": names[k]} for row, k in zip(rows, found.labels.tolist(), strict=True))
            yield BoxPrediction(name, str(places[name]), tuple(told), size=image.size)
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        Path(out).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"images": images, "categories": categories, "annotations": objects}, ensure_ascii=False)
        write_whole(listed, text + "\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None
    for note in pages.notes():
        say(note)


def _area(row: dict[str, Any]) -> float:
    return round(row["bbox"][2] * row["bbox"][3], 2)
