"""Classify images with a trained model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.decode import BrokenImageError, Reading, decode
from ..data.finding import list_photos, no_remark
from ..data.limits import MAX_PIXELS
from .photos import content_of
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
        say: Takes a remark on what was left out of a folder.

    Raises:
        UserError: A path does not exist, a folder contains no images, or the model is not a classifier.
    """
    names = list_photos(photos, say)
    classifier: Any = opened(source, "labels", "a classifier")
    reading = Reading(classifier.values, max_pixels)
    group: list[tuple[str, np.ndarray | str]] = []
    for i, name in enumerate(progress(names), 1):
        try:
            group.append((name, classifier.prepare(decode(content_of(name), classifier.at_least, reading))))
        except BrokenImageError as error:
            group.append((name, str(error)))
        if len(group) == batch_size or i == len(names):
            yield from _classify(group, classifier, top)
            group = []


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
