"""An exported model with its metadata, used without PyTorch: images in, classes, masks or boxes out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from ..data.decode import fitted_size
from ..data.detections import THRESHOLD, Detections, select
from ..data.fusion import fused, mirrored
from ..data.limits import Range
from ..data.pasting import bilinear, pasted
from ..data.windows import default_step, starts
from ..utils.errors import UserError, first_line
from ..utils.extras import needs
from ..utils.machine import available_cores
from ..utils.views import VIEWS, axes_of
from .card import LARGEST_SIDE, RUNTIMES, Boxes, Card
from .sessions import Session, to_onnxruntime, to_openvino

MULTIPLE = 32
"""The sides of a detector's images are multiples of this."""


@dataclass(frozen=True)
class Exported:
    """A model in its runtime."""

    session: Session
    card: Card
    form: str

    @property
    def task(self) -> str:
        return self.card.task

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def class_names(self) -> list[str]:
        return self.card.class_names

    @property
    def values(self) -> Range | None:
        """Values shown as black and white in images of more than 8 bits."""
        return self.card.values

    def answering(self, tta: str) -> Self:
        """The same with other test-time augmentation; "auto" keeps the file's own.

        Raises:
            UserError: Its graph holds the views.
        """
        if tta == "auto":
            return self
        raise UserError(
            f"{self.name} is an exported file: give --tta {tta} to `dmformer export`, and leave it out here."
        )

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The file's output for a batch in its input format: (B, K), (B, K, H, W) for a segmenter, (B, N, 4 + K) for a
        detector.

        Raises:
            UserError: The file does not accept these images, or its output has an unexpected shape.
        """
        size = " x ".join(map(str, images.shape))
        try:
            found = self.session.run(images)
        except Exception as error:  # each runtime has its own
            told = told_by(error, self.form)
            raise UserError(f"{self.name} in {self.form} does not accept images of {size}: {told}") from None
        if found.shape != (len(images), *self._answer_shape(images)):
            raise UserError(f"{self.name} has an output of {' x '.join(map(str, found.shape))} for images of {size}.")
        return found

    def _answer_shape(self, images: np.ndarray) -> tuple[int, ...]:
        """Shape of the output for each image."""
        return (len(self.class_names),)


class ExportedClassifier(Exported):
    """A `ClassPredictor`."""

    def calibration(self, image: Image.Image) -> np.ndarray:
        """An image as a batch of 1, in the file's input format."""
        return self.prepare(image)[None]

    @property
    def at_least(self) -> int:
        assert self.card.image_size is not None
        return round(max(self.card.image_size) / self.card.crop_pct)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image -> (3, H, W), float32; or unchanged, (H, W, 3), uint8, if the graph contains the preprocessing."""
        if self.card.preprocessing:
            return np.asarray(image)
        assert self.card.image_size is not None
        cropped = resize_and_crop(
            image, self.card.image_size, self.card.crop_pct, self.card.crop_mode, self.card.interpolation
        )
        return normalised(cropped, self.card)

    def probabilities(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """B prepared images -> (B, K); images of equal shape are batched."""
        found = np.empty((len(batch), len(self.class_names)), np.float32)
        for shape in dict.fromkeys(image.shape for image in batch):
            places = [i for i, image in enumerate(batch) if image.shape == shape]
            found[places] = self.as_probabilities(self.logits(np.stack([batch[i] for i in places])))
        return found

    def as_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(B, K) -> (B, K), rows that sum to 1."""
        return softmax(logits)


class ExportedMultiLabel(ExportedClassifier):
    """A `LabelPredictor`."""

    @property
    def thresholds(self) -> list[float]:
        return list(self.card.thresholds or [])

    def as_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(B, K) -> (B, K), each from 0 to 1."""
        return 0.5 + 0.5 * np.tanh(0.5 * logits)  # the sigmoid, which does not overflow in this form


class ExportedSegmenter(Exported):
    """A `MaskPredictor`."""

    def calibration(self, image: Image.Image) -> np.ndarray:
        """The image, or its first window, as a batch of 1, in the file's input format."""
        x, window = self._prepared(image), self._window(None)
        if window is not None:
            x = x[:, :window, :window] if self.card.preprocessing else x[:, :, :window, :window]
        return self._filled(x)

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        return list(self.card.palette or [])

    def segment(
        self, image: Image.Image, window: int | None = None, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> np.ndarray:
        """The most likely class of every pixel of an image: (H, W), uint8.

        Raises:
            UserError: Scales or flips are requested, which need the PyTorch model.
        """
        if tuple(scales) != (1.0,) or flip:
            raise UserError("--scales and --flip need the run's best/ folder: an exported file predicts once.")
        size = (image.height, image.width)
        logits = self._windows(self._prepared(image), window)
        if logits.shape[-2:] == size:
            return logits[0].argmax(0).astype(np.uint8)
        ids, best = np.zeros(size, np.uint8), np.zeros(size, np.float32)
        for k, share in enumerate(softmax(logits)[0]):  # one at a time: together they may be gigabytes
            share = bilinear(share[None], size)[0]
            ids[share > best] = k
            np.maximum(best, share, out=best)
        return ids

    def _prepared(self, image: Image.Image) -> np.ndarray:
        if self.card.resize is not None:
            image = shorter_side(image, self.card.resize, "bilinear")
        return np.asarray(image)[None] if self.card.preprocessing else normalised(image, self.card)[None]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """See `Exported.logits`; images smaller than a file's fixed size are padded, and the logits are cropped."""
        height, width = self._sides(images)
        if self.card.image_size is None:
            return super().logits(images)
        return np.ascontiguousarray(super().logits(self._filled(images))[:, :, :height, :width])

    def _answer_shape(self, images: np.ndarray) -> tuple[int, ...]:
        return (len(self.class_names), *self._sides(images))

    def _sides(self, images: np.ndarray) -> tuple[int, int]:
        height, width = images.shape[1:3] if self.card.preprocessing else images.shape[2:4]
        return height, width

    def _filled(self, x: np.ndarray) -> np.ndarray:
        """Padded at the right and the bottom with values that normalise to 0."""
        if self.card.image_size is None:
            return np.ascontiguousarray(x)
        height, width = self._sides(x)
        below, right = max(self.card.image_size[0] - height, 0), max(self.card.image_size[1] - width, 0)
        if not self.card.preprocessing:
            return np.pad(x, ((0, 0), (0, 0), (0, below), (0, right)))
        filled = np.empty((len(x), height + below, width + right, 3), np.uint8)
        filled[:] = [round(255 * value) for value in self.card.mean]
        filled[:, :height, :width] = x
        return filled

    def _window(self, window: int | None) -> int | None:
        window = window or self.card.window
        return window if self.card.image_size is None else min(window or LARGEST_SIDE, *self.card.image_size)

    def _windows(self, x: np.ndarray, window: int | None) -> np.ndarray:
        """Logits (1, K, H, W) of an image from windows that overlap by a third, like `predict_probabilities`."""
        height, width = self._sides(x)
        window = self._window(window)
        if window is None or (height <= window and width <= window):
            return self.logits(x)
        total = np.zeros((1, len(self.class_names), height, width), np.float32)
        count = np.zeros((height, width), np.float32)
        for top in starts(height, window, default_step(window)):
            for left in starts(width, window, default_step(window)):
                place = (slice(top, top + window), slice(left, left + window))
                part = x[:, *place] if self.card.preprocessing else x[:, :, *place]
                total[:, :, *place] += self.logits(np.ascontiguousarray(part))
                count[place] += 1
        return total / count


class ExportedDetector(Exported):
    """A `BoxPredictor`."""

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        return list(self.card.palette or [])

    @property
    def threshold(self) -> float:
        return THRESHOLD if self.card.threshold is None else self.card.threshold

    @property
    def category_ids(self) -> list[int]:
        return self._boxes.category_ids

    def detect(self, image: Image.Image, threshold: float = 0.0) -> Detections:
        """The objects in an image with at least this score, in its pixels, highest score first."""
        x = self.prepare(image)
        found = self.find(x).above(threshold)
        across, down = image.width / x.shape[2], image.height / x.shape[1]
        boxes = found.boxes * np.array([across, down, across, down], np.float32)
        masks = None
        if found.masks is not None:
            masks = np.zeros((len(boxes), image.height, image.width), bool)
            for whole, mask, box in zip(masks, found.masks, boxes, strict=True):
                whole[:] = pasted(mask, box, (image.height, image.width))
        return replace(found, boxes=boxes, masks=masks)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image -> (3, H', W'), float32, resized and normalised like `data.box_transforms.eval_transform`."""
        height, width = fitted_size(image.height, image.width, self._boxes.side, self._boxes.max_side)
        if not self._boxes.filled and not self._boxes.any_size:
            height, width = (max(round(side / MULTIPLE), 1) * MULTIPLE for side in (height, width))
        return normalised(image.resize((width, height), _filter("bilinear")), self.card)

    def answering(self, tta: str) -> Self:
        """The same with other test-time augmentation, which is outside the graph; "auto" keeps its own."""
        return self if tta == "auto" else replace(self, card=replace(self.card, tta=tta))

    def find(self, x: np.ndarray) -> Detections:
        """The objects in a prepared image (3, H', W'), in its pixels; masks are (n, side, side), probabilities.

        They are merged over the views of the card's `tta`.
        """
        if self.card.tta == "none":
            return self._found_in(x)
        views = []
        for dimensions in VIEWS[self.card.tta]:
            axes = axes_of(dimensions)
            found = self._found_in(np.ascontiguousarray(np.flip(x, axes)))
            views.append(mirrored(found, (x.shape[1], x.shape[2]), axes))
        return fused(views, self._boxes.selection.most)

    def _found_in(self, x: np.ndarray) -> Detections:
        height, width = x.shape[1:]
        if not self._boxes.any_size:
            x = np.pad(x, ((0, 0), (0, -height % MULTIPLE), (0, -width % MULTIPLE)))
        padded = (x.shape[1], x.shape[2])
        candidates, masks = np.split(np.asarray(self.logits(x[None])[0]), [4 + len(self.class_names)], axis=1)
        levels, side = self._boxes.levels(*padded), self._boxes.mask_side
        found, places = select(candidates, levels, (height, width), padded, self._boxes.selection)
        return found if side is None else replace(found, masks=masks[places].reshape(-1, side, side))

    def _answer_shape(self, images: np.ndarray) -> tuple[int, ...]:
        columns = 4 + len(self.class_names) + (self._boxes.mask_side or 0) ** 2
        return (sum(self._boxes.levels(images.shape[2], images.shape[3])), columns)

    @property
    def _boxes(self) -> Boxes:
        assert self.card.boxes is not None
        return self.card.boxes


KINDS = {
    "classification": ExportedClassifier,
    "multilabel": ExportedMultiLabel,
    "segmentation": ExportedSegmenter,
    "detection": ExportedDetector,
}


def open_exported(path: str, threads: int | None = None) -> ExportedClassifier | ExportedSegmenter | ExportedDetector:
    """Open an exported file in its runtime, and check it.

    Args:
        path: An .onnx file for ONNX Runtime, or an .xml file with its .bin beside it for OpenVINO.
        threads: Threads of the runtime; by default as many cores as this process may use.

    Raises:
        UserError: The file is missing, damaged, or not written by `dmformer export`.
    """
    file, threads = Path(path), threads or available_cores()
    if not file.is_file():
        raise UserError(f"{path} does not exist.")
    form = RUNTIMES[file.suffix.lower()]
    if form == "OpenVINO" and not file.with_suffix(".bin").is_file():
        raise UserError(f"{path} needs its weights in {file.stem}.bin beside it.")
    with needs("export", form):
        try:
            session = (to_onnxruntime if form == "ONNX Runtime" else to_openvino)(file, threads)
        except ImportError:
            raise
        except Exception as error:  # each runtime has its own
            raise UserError(f"{path} is not a model that {form} can read: {told_by(error, form)}") from None
    card = Card.from_metadata(session.metadata, path)
    of_masks = ((card.boxes and card.boxes.mask_side) or 0) ** 2
    if session.classes is not None and session.classes - of_masks != len(card.class_names):
        told = f"names {len(card.class_names)} classes, but its model has {session.classes - of_masks}"
        raise UserError(f"{path} {told}.")
    return KINDS[card.task](session, card, form)


def told_by(error: Exception, form: str) -> str:
    """The informative line of a runtime's error: OpenVINO begins with source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines and form == "OpenVINO" else first_line(error)


def resize_and_crop(
    image: Image.Image, size: Sequence[int], crop_pct: float, crop_mode: str, interpolation: str
) -> Image.Image:
    """Resize an image and crop its centre to `size` (height, width), like timm's evaluation.

    Args:
        crop_pct: Fraction of each side of the resized image that is kept.
        crop_mode: "center" keeps the aspect ratio, for square sizes; "squash" does not.
    """
    height, width = size
    if crop_mode == "squash":
        resized = image.resize((math.floor(width / crop_pct), math.floor(height / crop_pct)), _filter(interpolation))
    else:
        resized = shorter_side(image, math.floor(height / crop_pct), interpolation)
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def shorter_side(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """Resize an image's shorter side to `side`, and round the longer one down, like torchvision."""
    short, long = min(image.size), max(image.size)
    if short == side:
        return image
    longer = int(side * long / short)
    return image.resize((side, longer) if image.width <= image.height else (longer, side), _filter(interpolation))


def normalised(image: Image.Image, card: Card) -> np.ndarray:
    """An RGB image -> (3, H, W), float32."""
    values = np.asarray(image, np.float32) / 255
    values = (values - np.array(card.mean, np.float32)) / np.array(card.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the second axis."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _filter(name: str) -> Image.Resampling:
    try:
        return Image.Resampling[name.upper()]
    except KeyError:
        raise UserError(f"the model's interpolation '{name}' is unknown.") from None
