"""dmformer predict: classify photos, segment them, or find objects on them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ..tasks.config import task_of
from ..utils.errors import UserError
from .checks import (
    BOX_OPTIONS,
    MASK_OPTIONS,
    check_path,
    check_source,
    check_testing,
    opened_if_exported,
    refuse_options,
)
from .parsing import parse
from .printing import print_rows


@dataclass(frozen=True)
class PredictOptions:
    """Classify photos with a trained classifier, segment them with a segmenter, or find objects with a detector.

    A segmenter writes STEM.overlay.png and STEM.mask.png (ids of the classes, from 0) for each photo, and legend.png.
    A detector writes STEM.detections.png, with boxes, masks and names, and detections.json in COCO's format. Video goes
    in as a folder of frames.

    The first photo waits for torch and timm to be imported: seconds, about 10 on a slow machine. A file that `dmformer
    export` wrote needs neither, and answers in about a second.

    examples:
      dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
      dmformer predict runs/elpv-dmformer_n-1/best folder/ --format csv > classes.csv
      curl -s $URL | dmformer predict runs/elpv-dmformer_n-1/best - --format json
      dmformer predict runs/camvid-1/best frames/ --out segmented/
      dmformer predict runs/bccd-1/best folder/ --threshold 0.5
      dmformer predict model.onnx photo.jpg
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or an exported .onnx or .xml file."""
    photos: tuple[str, ...]
    """Image files, folders (searched to the bottom), or - for an image on standard input."""
    top: int = 3
    """Classes to show; of detectors the surest objects, in the table."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""
    batch_size: int = 16
    """Classifiers: photos at a time."""
    threads: int | None = None
    """Threads that compute on a CPU; by default as many as there are cores. 1 keeps its speed beside other work."""
    out: str | None = None
    """Segmenters, detectors: folder of the pictures; by default predictions/."""
    window: int | None = None
    """Segmenters: side in pixels of the sliding window; by default as it was trained."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: factors on the photos' size whose predictions are averaged."""
    flip: bool = False
    """Segmenters: average with the photos mirrored."""
    overwrite: bool = False
    """Segmenters, detectors: replace pictures that are there."""
    threshold: float = 0.3
    """Detectors: least score of an object, from 0 to 1."""


def predict(arguments: list[str]) -> None:
    options = parse(PredictOptions, arguments, "predict")
    if options.top < 1 or options.batch_size < 1:
        raise UserError("--top and --batch-size must be 1 or more.")
    if not options.photos:
        raise UserError("name the photos: image files, folders, or - for standard input.")
    check_source(options.source, exported=True)
    for photo in options.photos:
        if photo != "-":
            check_path(photo)
    model = opened_if_exported(options.source, options.threads)
    task = model.task if model else task_of(options.source)
    if task == "segmentation":
        _predict_masks(options, model or options.source)
        return
    if task == "detection":
        _predict_boxes(options, model or options.source)
        return
    refuse_options(options, PredictOptions, MASK_OPTIONS, "segmenters; this is a classifier")
    refuse_options(options, PredictOptions, BOX_OPTIONS, "detectors; this is a classifier")
    refuse_options(options, PredictOptions, ("out", "overwrite"), "segmenters and detectors; this is a classifier")

    from ..predict.classes import predict
    from ..utils.display import track

    found = predict(
        model or options.source,
        options.photos,
        options.top,
        options.batch_size,
        lambda names: track(names, "classifying"),
    )
    if options.format == "json":
        _print_json(found, lambda p: {"classes": [{"class": c, "probability": v} for c, v in p.classes]})
        return
    rows = []
    for p in found:
        cells = [cell for pair in p.classes for cell in pair]
        rows.append([p.name, *cells, *[""] * (2 * options.top - len(cells)), p.error or ""])
    header = ["photo", *(f"{what} {i + 1}" for i in range(options.top) for what in ("class", "probability")), "error"]
    print_rows(header, rows, options.format)


def _predict_masks(options: PredictOptions, model: Any) -> None:
    check_testing(options.window, options.scales)
    refuse_options(options, PredictOptions, ("batch_size",), "classifiers; this is a segmenter")
    refuse_options(options, PredictOptions, BOX_OPTIONS, "detectors; this is a segmenter")

    from ..predict.masks import predict_masks
    from ..utils.display import track

    found = predict_masks(
        model,
        options.photos,
        options.out or "predictions",
        options.window,
        options.scales,
        options.flip,
        options.overwrite,
        lambda names: track(names, "segmenting"),
    )
    if options.format == "json":
        _print_json(found, lambda p: {"overlay": p.overlay, "mask": p.mask, "shares": dict(p.shares)})
        return
    rows: list[list[Any]] = []
    for p in found:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in p.shares[: options.top])
        rows.append([p.name, shares or p.error, p.overlay])
    print_rows(["photo", "largest classes", "overlay"], rows, options.format, whole=True)


def _predict_boxes(options: PredictOptions, model: Any) -> None:
    refuse_options(options, PredictOptions, ("batch_size",), "classifiers; this is a detector")
    refuse_options(options, PredictOptions, MASK_OPTIONS, "segmenters; this is a detector")
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold is {options.threshold:g}: it is a score from 0 to 1.")

    from ..predict.boxes import predict_boxes
    from ..utils.display import track

    found = predict_boxes(
        model,
        options.photos,
        options.out or "predictions",
        options.threshold,
        options.overwrite,
        lambda names: track(names, "looking for objects"),
    )
    if options.format == "json":
        _print_json(found, lambda p: {"picture": p.picture, "objects": p.objects})
        return
    cells: list[list[Any]] = []
    for p in found:
        surest = ", ".join(f"{each['class']} {each['score']:.1%}" for each in p.objects[: options.top])
        cells.append([p.name, p.error or len(p.objects), surest, p.picture])
    print_rows(["photo", "objects", "the surest", "picture"], cells, options.format, whole=True)


def _print_json(found: Iterable[Any], told: Callable[[Any], dict[str, Any]]) -> None:
    """Of each photo its name, and what is told of it or why it could not be read."""
    rows = [{"name": p.name, **({"error": p.error} if p.error else told(p))} for p in found]
    print(json.dumps(rows, indent=2, ensure_ascii=False))
