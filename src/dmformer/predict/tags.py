"""Find all labels of images with a trained multi-label classifier."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.decode import BrokenImageError
from ..data.finding import list_photos, no_remark
from ..data.limits import MAX_PIXELS
from ..data.pages import Pages
from .classes import classify
from .photos import content_of
from .predictor import LabelPredictor, Source, opened


@dataclass(frozen=True)
class TagPrediction:
    """The labels of one image, perhaps none, with their probabilities, the most likely first; or why it could not be
    read."""

    name: str
    labels: list[tuple[str, float]]
    error: str | None = None


def predict_tags(
    source: Source | LabelPredictor,
    photos: Sequence[str],
    threshold: float | None = None,
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
    say: Callable[[str], None] = no_remark,
) -> Iterator[TagPrediction]:
    """Find the labels of images; yield one `TagPrediction` per image, in order.

    Args:
        source: A run's best/ folder, an exported .onnx or .xml file, or an open predictor.
        photos: Files, folders (searched recursively) or "-" for an image on standard input.
        threshold: Minimum probability of every label; by default each class has its own.
        max_pixels: Images of more pixels are not read.
        say: Takes a remark on what was left out of a folder, and on files of several pages.

    Raises:
        UserError: A path does not exist, a folder contains no images, or the model is not a multi-label classifier.
    """
    names = list_photos(photos, say)
    classifier: Any = opened(source, "tags", "a multi-label classifier")
    pages = Pages()
    contents = (content_of(name, pages) for name in progress(names))
    for name, found in zip(names, classify(classifier, contents, batch_size, max_pixels), strict=True):
        if isinstance(found, BrokenImageError):
            yield TagPrediction(name, [], str(found))
        else:
            yield TagPrediction(name, applying(found, classifier, threshold))
    for note in pages.notes():
        say(note)


def applying(
    found: Sequence[tuple[str, float]], classifier: LabelPredictor, threshold: float | None
) -> list[tuple[str, float]]:
    """Those of the classes and probabilities that reach the threshold, or without one their own."""
    own = dict(zip(classifier.class_names, classifier.thresholds, strict=True))
    return [(name, value) for name, value in found if value >= (own[name] if threshold is None else threshold)]
