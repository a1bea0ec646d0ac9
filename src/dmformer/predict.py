"""Classify photos, segment them, or find objects on them, with a trained model."""

import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data.decode import BrokenImageError, decode, list_photos
from .detections import coco_results
from .errors import UserError
from .files import whole_file, write_whole
from .predictor import BoxPredictor, ClassPredictor, MaskPredictor, open_predictor


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one photo, best first, with their probabilities; or why it could not be read."""

    name: str
    classes: list[tuple[str, float]]
    error: str | None = None


def predict(
    source: str | ClassPredictor,
    photos: Sequence[str],
    top: int = 3,
    batch_size: int = 16,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Iterator[Prediction]:
    """Classify photos, one `Prediction` each, in order.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, an exported .onnx or .xml file, or what is open already.
        photos: Files, folders (searched to the bottom) or "-" for an image on standard input.
        top: Classes to return.
        batch_size: Photos at a time.
        progress: Wraps the list of files, to show how far it is.

    Raises:
        UserError: A path that does not exist, a folder without images, a source that is no classifier.
    """
    names = list_photos(photos)
    classifier: Any = open_predictor(source) if isinstance(source, str) else source
    if classifier.task != "classification":
        raise UserError(f"{classifier.name} is a model for {classifier.task}, not a classifier.")
    group: list[tuple[str, np.ndarray | str]] = []
    for i, name in enumerate(progress(names), 1):
        try:
            group.append((name, classifier.prepare(decode(content_of(name), classifier.at_least))))
        except BrokenImageError as error:
            group.append((name, str(error)))
        if len(group) == batch_size or i == len(names):
            yield from _classify(group, classifier, top)
            group = []


@dataclass(frozen=True)
class MaskPrediction:
    """What was made of one photo: files written, and the classes' shares of its pixels, largest first; or why not."""

    name: str
    overlay: str = ""
    mask: str = ""
    shares: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predict_masks(
    source: str | MaskPredictor,
    photos: Sequence[str],
    out: str = "predictions",
    window: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    overwrite: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Iterator[MaskPrediction]:
    """Segment photos, one `MaskPrediction` each, in order.

    Writes into `out`, below it as in the folder that was given: STEM.overlay.png, the photo with the classes' colours
    over it; STEM.mask.png, ids of the classes from 0, of the photo's size; and legend.png.

    Args:
        source: A run's best/ folder, an exported .onnx or .xml file, or what is open already.
        photos: Files, folders (searched to the bottom) or "-" for an image on standard input.
        out: Made if it is not there.
        window: Side of the sliding window; by default the segmenter's own.
        scales, flip: Of multi-scale testing; see `predict_probabilities`.
        overwrite: Replace files that are there.
        progress: Wraps the list of files, to show how far it is.

    Raises:
        UserError: A path that does not exist, a folder without images, no segmenter, a file in the way.
    """
    from .drawing import legend, overlay  # here, for classifiers answer sooner without

    places = dict(places_in(Path(out), photos))
    legend_file = Path(out) / "legend.png"
    taken = [f for place in places.values() for f in _mask_files(place) if f.exists()]
    if legend_file.exists() and not any(Path(out).rglob("*.overlay.png")):
        taken.append(legend_file)  # somebody else's
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists already: give another --out, or --overwrite.")
    segmenter: Any = open_predictor(source) if isinstance(source, str) else source
    if segmenter.task != "segmentation":
        raise UserError(f"{segmenter.name} is a model for {segmenter.task}, not a segmenter.")
    names, palette = segmenter.class_names, segmenter.palette
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        save_png(legend(names, palette), legend_file)
        for name in progress(list(places)):
            try:
                image = decode(content_of(name))
            except BrokenImageError as error:
                yield MaskPrediction(name, error=str(error))
                continue
            ids = segmenter.segment(image, window, scales, flip)
            overlay_file, mask_file = _mask_files(places[name])
            overlay_file.parent.mkdir(parents=True, exist_ok=True)
            save_png(overlay(image, ids, palette), overlay_file)
            save_png(Image.fromarray(ids), mask_file)
            counts = np.bincount(ids.ravel(), minlength=len(names))
            order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
            shares = tuple((names[i], int(counts[i]) / ids.size) for i in order)
            yield MaskPrediction(name, str(overlay_file), str(mask_file), shares)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None


@dataclass(frozen=True)
class BoxPrediction:
    """What was found on one photo: its picture with boxes, and the objects, the surest first; or why not."""

    name: str
    picture: str = ""
    objects: tuple[dict[str, Any], ...] = ()
    """As COCO's results have them, and the "class" by name."""
    error: str | None = None


def predict_boxes(
    source: str | BoxPredictor,
    photos: Sequence[str],
    out: str = "predictions",
    threshold: float = 0.3,
    overwrite: bool = False,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Iterator[BoxPrediction]:
    """Find objects on photos, one `BoxPrediction` each, in order.

    Writes into `out`, below it as in the folder that was given: STEM.detections.png, the photo with boxes, masks and
    names; and when all are done detections.json, all objects in COCO's format with their scores.

    Args:
        source: A run's best/ folder, an exported .onnx or .xml file, or what is open already.
        photos: Files, folders (searched to the bottom) or "-" for an image on standard input.
        out: Made if it is not there.
        threshold: Least score of an object.
        overwrite: Replace files that are there.
        progress: Wraps the list of files, to show how far it is.

    Raises:
        UserError: A path that does not exist, a folder without images, no detector, a file in the way.
    """
    from .drawing import draw_detections  # here, for classifiers answer sooner without

    places = {name: _suffixed(place, "detections") for name, place in places_in(Path(out), photos)}
    listed = Path(out) / "detections.json"
    taken = [path for path in (*places.values(), listed) if path.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]} exists already: give another --out, or --overwrite.")
    detector: Any = open_predictor(source) if isinstance(source, str) else source
    if detector.task != "detection":
        raise UserError(f"{detector.name} is a model for {detector.task}, not a detector.")
    names, ids, palette = list(detector.class_names), list(detector.category_ids), detector.palette
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    try:
        for name in progress(list(places)):
            try:
                image = decode(content_of(name))
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
            yield BoxPrediction(name, str(places[name]), tuple(told))
        categories = [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]
        Path(out).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"images": images, "categories": categories, "annotations": objects}, ensure_ascii=False)
        write_whole(listed, text + "\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.") from None


def _area(row: dict[str, Any]) -> float:
    return round(row["bbox"][2] * row["bbox"][3], 2)


def places_in(out: Path, photos: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Each photo, and the path in `out` that its pictures' names begin with."""
    taken = set()
    for photo in photos:
        for name in list_photos([photo]):
            relative = Path(name).relative_to(photo) if Path(photo).is_dir() else Path(Path(name).name)
            place = out / ("stdin" if name == "-" else relative.with_suffix(""))
            if place in taken:  # a.jpg and a.png
                place = out / relative
            number = 2
            while place in taken:  # the same name from two folders
                place, number = out / relative.with_name(f"{relative.name}-{number}"), number + 1
            taken.add(place)
            yield name, place


def _mask_files(place: Path) -> tuple[Path, Path]:
    return _suffixed(place, "overlay"), _suffixed(place, "mask")


def _suffixed(place: Path, what: str) -> Path:
    return place.with_name(f"{place.name}.{what}.png")


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with whole_file(path) as part:
        image.save(part, format="PNG")


def content_of(name: str) -> io.BytesIO | str:
    """What `decode` takes for a file, or for "-"."""
    return io.BytesIO(sys.stdin.buffer.read()) if name == "-" else name


def _classify(
    group: Sequence[tuple[str, np.ndarray | str]], classifier: ClassPredictor, top: int
) -> Iterator[Prediction]:
    prepared = [image for _, image in group if not isinstance(image, str)]
    rows = iter(classifier.probabilities(prepared) if prepared else ())
    for name, image in group:
        if isinstance(image, str):
            yield Prediction(name, [], image)
            continue
        row = next(rows)
        order = np.argsort(-row, kind="stable")[:top].tolist()
        yield Prediction(name, [(str(classifier.class_names[i]), float(row[i])) for i in order])
