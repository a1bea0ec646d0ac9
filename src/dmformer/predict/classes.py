"""Classify images with a trained model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..data.decode import BrokenImageError, Reading
from ..data.finding import list_photos, no_remark
from ..data.limits import MAX_PIXELS
from ..data.pages import Pages
from .photos import Photo, content_of, read
from .predictor import ClassPredictor, Source, opened


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of one image, best first, with their probabilities; or why it could not be read."""

    name: str
    classes: list[tuple[str, float]]
    error: str | None = None


def predict(
    source: Source | ClassPredictor,
    photos: Sequence[str],
    top: int = 3,
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    say: Callable[[str], None] = no_remark,
) -> Iterator[Prediction]:
    """Classify images; yield one `Prediction` per image, in order.

    Args:
        source: A run's best/ folder, hf-hub:owner/name, an exported .onnx or .xml file, or an open predictor.
        photos: Files, folders (searched recursively) or "-" for an image on standard input.
        top: Number of classes to return.
        max_pixels: Images of more pixels are not read.
        say: Takes a remark on what was left out of a folder, and on files of several pages.

    Raises:
        UserError: A path does not exist, a folder contains no images, or the model is not a classifier.
    """
    names = list_photos(photos, say)
    classifier: Any = opened(source, "labels", "a classifier")
    pages = Pages()
    contents = (content_of(name, pages) for name in progress(names))
    for name, found in zip(names, classify(classifier, contents, batch_size, max_pixels), strict=True):
        if isinstance(found, BrokenImageError):
            yield Prediction(name, [], str(found))
        else:
            yield Prediction(name, found[:top])
    for note in pages.notes():
        say(note)


def classify(
    classifier: ClassPredictor, photos: Iterable[Photo], batch_size: int = 16, max_pixels: int = MAX_PIXELS
) -> Iterator[list[tuple[str, float]] | BrokenImageError]:
    """All classes of each photo with their probabilities, the most likely first; or why it could not be read."""
    reading = Reading(classifier.values, max_pixels)
    for group in batched(photos, batch_size):
        images = [_prepared(photo, classifier, reading) for photo in group]
        readable = [image for image in images if not isinstance(image, BrokenImageError)]
        rows = iter(classifier.probabilities(readable) if readable else ())
        for image in images:
            yield image if isinstance(image, BrokenImageError) else _ranked(next(rows), classifier.class_names)


def _prepared(photo: Photo, classifier: ClassPredictor, reading: Reading) -> np.ndarray | BrokenImageError:
    try:
        return classifier.prepare(read(photo, classifier.at_least, reading))
    except BrokenImageError as error:
        return error


def _ranked(row: np.ndarray, class_names: Sequence[str]) -> list[tuple[str, float]]:
    order = np.argsort(-row, kind="stable").tolist()
    return [(str(class_names[i]), float(row[i])) for i in order]


def batched(items: Iterable[Photo], size: int) -> Iterator[list[Photo]]:
    """Groups of up to `size` items; itertools has it from Python 3.12 on."""
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group
