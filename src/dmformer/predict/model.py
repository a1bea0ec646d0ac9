"""A trained model for programs: photos in, plain values out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.decode import BrokenImageError, Reading
from ..data.limits import MAX_PIXELS
from ..tasks.table import TASKS
from ..utils.errors import UserError
from .classes import classify
from .masks import fractions
from .photos import Photo, read
from .predictor import open_predictor
from .tags import applying


@dataclass(frozen=True)
class Classification:
    """The class of a photo.

    Attributes:
        label: The most likely class.
        probability: Its probability.
        probabilities: All classes with their probabilities, the most likely first.
    """

    label: str
    probability: float
    probabilities: list[tuple[str, float]]


@dataclass(frozen=True)
class Labelling:
    """The labels of a photo.

    Attributes:
        labels: Those that apply with their probabilities, the most likely first; perhaps none.
        probabilities: All classes with their probabilities, the most likely first.
    """

    labels: list[tuple[str, float]]
    probabilities: list[tuple[str, float]]


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel of a photo.

    Attributes:
        mask: (H, W), uint8: the photo's size, class ids from 0 in the order of the model's `class_names`.
        fractions: The classes found with their fractions of the pixels, the largest first.
    """

    mask: np.ndarray
    fractions: list[tuple[str, float]]


@dataclass(frozen=True)
class Detection:
    """The n objects in a photo, the highest score first.

    Attributes:
        boxes: (n, 4), float32: left, top, right and bottom edges in pixels of the photo.
        scores: (n), float32, from 0 to 1.
        labels: Classes of the n objects.
        masks: (n, H, W), bool; None if the detector predicts only boxes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    masks: np.ndarray | None


Answer = Classification | Labelling | Segmentation | Detection


class Model:
    """A trained model, opened once, that predicts on photos as `dmformer predict` does; see `load`.

    Attributes:
        name: Name of the run or the file.
        task: "classification", "multilabel", "segmentation" or "detection".
        class_names: In the order of the ids in masks.
    """

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self.name: str = predictor.name
        self.task: str = predictor.task
        self.class_names: list[str] = list(predictor.class_names)

    def predict(
        self,
        photos: Photo | Iterable[Photo],
        *,
        threshold: float | None = None,
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
    ) -> Any:
        """Predict on one photo, or on several.

        Args:
            photos: A path, an open file, a PIL image, or an array (H, W) or (H, W, 3 or 4) of 8 or 16 bits in the order
                red, green, blue; or several, also as an array (N, H, W, 3 or 4). EXIF rotation is applied, and values
                of more than 8 bits are read as from a file.
            threshold: Detectors: minimum score of an object; by default the one chosen in training. Multi-label
                classifiers: minimum probability of every label; by default each class has its own.
            batch_size: Classifiers: photos per batch.
            max_pixels: Photos of more pixels are not read.

        Returns:
            A `Classification`, a `Labelling`, a `Segmentation` or a `Detection`; a list of them for several photos.

        Raises:
            UserError: A photo cannot be read; the message names it.
        """
        one = isinstance(photos, str | Path | Image.Image) or hasattr(photos, "read")
        one = one or (isinstance(photos, np.ndarray) and photos.ndim < 4)
        items: Any = [photos] if one else list(photos)  # type: ignore[arg-type]
        found = []
        for i, answer in enumerate(self._answers(items, threshold, batch_size, max_pixels)):
            if isinstance(answer, BrokenImageError):
                name = items[i] if isinstance(items[i], str | Path) else "the photo" if one else f"photo {i}"
                raise UserError(f"{name} cannot be read: {answer}.")
            found.append(answer)
        return found[0] if one else found

    def _answers(
        self, photos: Sequence[Photo], threshold: float | None, batch_size: int, max_pixels: int
    ) -> Iterator[Answer | BrokenImageError]:
        answer = TASKS[self.task].answer
        if answer in ("labels", "tags"):
            for found in classify(self._predictor, photos, batch_size, max_pixels):
                if isinstance(found, BrokenImageError):
                    yield found
                elif answer == "labels":
                    yield Classification(*found[0], found)
                else:
                    yield Labelling(applying(found, self._predictor, threshold), found)
            return
        for photo in photos:
            try:
                image = read(photo, reading=Reading(self._predictor.values, max_pixels))
            except BrokenImageError as error:
                yield error
                continue
            yield self._segmented(image) if answer == "masks" else self._detected(image, threshold)

    def _segmented(self, image: Image.Image) -> Segmentation:
        mask = self._predictor.segment(image)
        return Segmentation(mask, fractions(mask, self.class_names))

    def _detected(self, image: Image.Image, threshold: float | None) -> Detection:
        found = self._predictor.detect(image, self._predictor.threshold if threshold is None else threshold)
        labels = [self.class_names[label] for label in found.labels.tolist()]
        return Detection(found.boxes, found.scores, labels, found.masks)


def load(source: str | Path) -> Model:
    """Open a trained model for prediction.

    Args:
        source: A run's best/ folder or the run's folder, an exported .onnx or .xml file, hf-hub:owner/name, or the name
            of weights in this package, such as dmformer_n.

    Raises:
        UserError: The source is none of these, or cannot be read.
    """
    return Model(open_predictor(str(source)))
