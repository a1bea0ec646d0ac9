"""Classify photos with a trained classifier, or segment them with a trained segmenter."""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .data.decode import BrokenImageError, decode, list_photos
from .errors import UserError
from .files import whole_file
from .predictor import ClassPredictor, MaskPredictor, open_predictor


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
    return place.with_name(f"{place.name}.overlay.png"), place.with_name(f"{place.name}.mask.png")


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
