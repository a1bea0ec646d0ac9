"""Compare an exported file's outputs and speed with PyTorch's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..runtimes.card import Card
from ..runtimes.exported import Exported, ExportedClassifier, ExportedDetector, ExportedSegmenter
from ..runtimes.sessions import to_onnxruntime, to_openvino
from ..tasks.classification.classifier import Classifier
from ..tasks.detection.detector import Detector, DetectorConfig
from ..tasks.detection.frameworks.base import Found
from ..tasks.segmentation.segmenter import Segmenter, SegmenterConfig
from ..utils.timing import interleave, summarise, turn

LIMIT = 1e-3
"""Maximum accepted difference of logits, relative to PyTorch's largest; for boxes, see `box_difference`."""

SWAPPED = 0.05
"""Fraction of a query model's candidates that may differ by more (a reconstruction); see `box_difference`."""

Run = Callable[[np.ndarray], np.ndarray]
"""A batch of images -> logits, or candidates."""

Measure = Callable[[np.ndarray, np.ndarray], float]
"""(expected output, actual output) -> difference."""


@dataclass(frozen=True)
class Agreement:
    """Largest difference of one batch: logits relative to PyTorch's largest, or boxes; image sides in pixels."""

    height: int
    width: int
    batch: int
    difference: float


@dataclass(frozen=True)
class Speed:
    """Images per second at one batch size, medians over interleaved rounds; the ratio is the median over rounds."""

    batch: int
    pytorch: float
    exported: float
    ratio: float


def open_file(path: Path, to: str, threads: int) -> Run:
    """Open a file from `dmformer export` in its runtime."""
    if to == "onnx":
        return to_onnxruntime(path, threads).run
    if to == "openvino":
        return to_openvino(path, threads).run
    program = torch.export.load(path).module() if to == "pt2" else torch._inductor.aoti_load_package(str(path))
    return in_numpy(program)


def in_numpy(model: Callable[[Tensor], Tensor]) -> Run:
    """A PyTorch model as a function of NumPy arrays."""

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return run


def measure_of(card: Card) -> Measure:
    """The measure of difference between a file's outputs and PyTorch's."""
    if card.boxes is None:
        return difference
    queries = card.boxes.queries is not None
    return lambda expected, answer: box_difference(expected, answer, queries)


def compare(
    reference: Run, exported: Run, batches: Sequence[np.ndarray], measure: Measure | None = None
) -> list[Agreement]:
    """The difference of two outputs for each batch; preprocessed images (B, 3, H, W) or raw images (B, H, W, 3)."""
    found = []
    for images in batches:
        height, width = images.shape[1:3] if images.shape[-1] == 3 else images.shape[2:4]
        apart = (measure or difference)(reference(images), exported(images))
        found.append(Agreement(height, width, len(images), apart))
    return found


def difference(expected: np.ndarray, answer: np.ndarray) -> float:
    """Largest difference of two outputs, relative to the largest expected value; infinity for invalid outputs."""
    if answer.shape != expected.shape or not np.isfinite(answer).all():
        return float("inf")
    largest = float(np.abs(answer - expected).max())
    return largest / float(np.abs(expected).max()) if largest else 0.0


def box_difference(expected: np.ndarray, answer: np.ndarray, queries: bool) -> float:
    """The largest difference of candidates (B, N, 4 + K): edges as fractions of the image, clipped to it, and scores;
    infinity for invalid outputs.

    A model with queries sorts its locations by score. A rounding error may swap two almost equal scores, which then
    start from each other's query. Therefore a fraction of the candidates may differ.
    """
    if answer.shape != expected.shape or not np.isfinite(answer).all():
        return float("inf")
    rows = np.abs(answer.clip(0, 1) - expected.clip(0, 1)).max(-1)
    return float(np.quantile(rows, 1 - SWAPPED if queries else 1.0))


def speeds(
    reference: Run,
    exported: Run,
    batches: Sequence[np.ndarray],
    rounds: int = 5,
    seconds: float = 0.3,
) -> list[Speed]:
    """Time both alternately on each batch, so that other load on the machine affects both."""
    pairs = [(run, images) for images in batches for run in (reference, exported)]
    turns = [lambda run=run, images=images: turn(lambda: run(images), seconds) for run, images in pairs]
    times, found = interleave(turns, rounds, lambda *_: None), []
    for i, images in enumerate(batches):
        theirs, ours = times[2 * i], times[2 * i + 1]
        row = summarise(len(images), ours, theirs)
        pytorch = summarise(len(images), theirs, None)["images_per_second"]
        found.append(Speed(len(images), pytorch, row["images_per_second"], row["ratio"]))
    return found


class SessionModel(nn.Module):
    """An exported file with the interface of a PyTorch model: the file's input as a tensor -> logits.

    If a segmenter's file includes normalisation, images (B, 3, H, W) are converted back to raw images first.
    """

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported, card = exported, exported.card
        self.turned_back = card.preprocessing and card.task == "segmentation"
        self.mean, self.std = torch.tensor(card.mean).view(3, 1, 1), torch.tensor(card.std).view(3, 1, 1)
        size = card.image_size if card.task == "segmentation" else None
        self.made_for = None if size is None else (size[0], size[1])

    def forward(self, images: Tensor) -> Tensor:
        x = images.cpu()
        if self.turned_back:
            x = ((x * self.std + self.mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        logits = self.exported.logits(np.ascontiguousarray(x.numpy()))
        return torch.from_numpy(np.array(logits)).to(images.device)


class FileClassifier(Classifier):
    """An `ExportedClassifier` for `evaluate`; if the file includes resizing, images are scored one at a time."""

    @property
    def one_size(self) -> bool:
        model: Any = self.model
        return not model.exported.card.preprocessing

    def transform(self) -> Callable[[Image.Image], Tensor]:
        model: Any = self.model
        return lambda image: torch.from_numpy(np.array(model.exported.prepare(image)))


class SessionDetector(nn.Module):
    """An exported detector with the interface of a detection model: images (3, H, W) -> objects in each."""

    def __init__(self, exported: ExportedDetector) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, images: Sequence[Tensor]) -> list[Found]:
        found = [self.exported.find(image.cpu().numpy()) for image in images]
        return [
            {
                "boxes": torch.from_numpy(each.boxes),
                "scores": torch.from_numpy(each.scores),
                "labels": torch.from_numpy(each.labels),
            }
            for each in found
        ]


class FileDetector(Detector):
    """An `ExportedDetector` for `evaluate_boxes`."""

    def transform(self) -> Callable[[Image.Image], Tensor]:
        model: Any = self.model
        return lambda image: torch.from_numpy(model.exported.prepare(image))


def as_scored(
    exported: ExportedClassifier | ExportedSegmenter | ExportedDetector,
) -> FileClassifier | Segmenter | FileDetector:
    """An exported file in the form that `evaluate`, `evaluate_masks` and `evaluate_boxes` score."""
    if isinstance(exported, ExportedDetector):
        return _scored_detector(exported)
    card, model = exported.card, SessionModel(exported)
    if isinstance(exported, ExportedClassifier):
        assert card.image_size is not None
        data_config = {"input_size": (3, *card.image_size), "crop_pct": card.crop_pct}
        return FileClassifier(model, card.class_names, data_config, card.name, exported.form)
    backbone, _, head = card.architecture.partition("+")
    config = SegmenterConfig(
        backbone=backbone,
        backbone_args={},
        head=head,
        width=None,
        dropout=0.0,
        class_names=tuple(card.class_names),
        palette=tuple(exported.palette),
        mean=_three(card.mean),
        std=_three(card.std),
        resize=card.resize,
        window=card.window,
        reduce_zero_label=card.reduce_zero_label,
        ignore_index=tuple(card.ignore_index or ()),
    )
    network: Any = model
    return Segmenter(network, config, card.name, exported.form)


def _scored_detector(exported: ExportedDetector) -> FileDetector:
    card, boxes = exported.card, exported.card.boxes
    assert boxes is not None
    backbone, _, framework = card.architecture.partition("+")
    config = DetectorConfig(
        backbone=backbone,
        backbone_args={},
        framework=framework,
        masks=False,
        width=None,
        samples=None,
        queries=boxes.queries,
        class_names=tuple(card.class_names),
        category_ids=tuple(boxes.category_ids),
        mean=_three(card.mean),
        std=_three(card.std),
        image_size=boxes.side,
        max_side=boxes.max_side,
    )
    network: Any = SessionDetector(exported)
    return FileDetector(network, config, card.name, exported.form)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
