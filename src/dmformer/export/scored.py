"""Exported files with the interface of PyTorch models, so that the tasks can score them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.limits import Range
from ..runtimes.exported import Exported, ExportedClassifier, ExportedDetector, ExportedMultiLabel, ExportedSegmenter
from ..tasks.classification.classifier import Classifier
from ..tasks.detection.detector import Detector, DetectorConfig
from ..tasks.detection.frameworks.base import Found
from ..tasks.multilabel.classifier import MultiLabelClassifier
from ..tasks.segmentation.segmenter import Segmenter, SegmenterConfig


class SessionModel(nn.Module):
    """An exported file with the interface of a PyTorch model: the file's input as a tensor -> logits."""

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        logits = self.exported.logits(np.ascontiguousarray(images.cpu().numpy()))
        return torch.from_numpy(np.array(logits)).to(images.device)


class SessionSegmenter(SessionModel):
    """An exported segmenter with the interface of a segmentation model: images (B, 3, H, W) -> logits.

    If the file includes normalisation, the images are converted back to raw images first.
    """

    def __init__(self, exported: ExportedSegmenter) -> None:
        super().__init__(exported)
        card = exported.card
        self.mean, self.std = torch.tensor(card.mean).view(3, 1, 1), torch.tensor(card.std).view(3, 1, 1)
        self.made_for = None if card.image_size is None else (card.image_size[0], card.image_size[1])

    def forward(self, images: Tensor) -> Tensor:
        if not self.exported.card.preprocessing:
            return super().forward(images)
        photos = ((images.cpu() * self.std + self.mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
        return super().forward(photos).to(images.device)


class FileClassifier(Classifier):
    """An `ExportedClassifier` for `evaluate`; if the file includes resizing, images are scored one at a time."""

    @property
    def one_size(self) -> bool:
        model: Any = self.model
        return not model.exported.card.preprocessing

    def transform(self) -> Callable[[Image.Image], Tensor]:
        model: Any = self.model
        return lambda image: torch.from_numpy(np.array(model.exported.prepare(image)))


class FileMultiLabel(FileClassifier, MultiLabelClassifier):
    """An `ExportedMultiLabel` for `evaluate`."""


class SessionDetector(nn.Module):
    """An exported detector with the interface of a detection model: images (3, H, W) -> detections in each."""

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
                **({} if each.masks is None else {"masks": torch.from_numpy(each.masks[:, None])}),
            }
            for each in found
        ]


class FileDetector(Detector):
    """An `ExportedDetector` for `evaluate_boxes`."""

    def transform(self) -> Callable[[Image.Image], Tensor]:
        model: Any = self.model
        return lambda image: torch.from_numpy(model.exported.prepare(image))


def scored_classifier(exported: ExportedClassifier) -> FileClassifier:
    """Wrap an exported classifier for `evaluate`."""
    return FileClassifier(*_of_file(exported))


def scored_multilabel(exported: ExportedMultiLabel) -> FileMultiLabel:
    """Wrap an exported multi-label classifier for `evaluate`."""
    return FileMultiLabel(*_of_file(exported), thresholds=tuple(exported.thresholds))


def _of_file(exported: ExportedClassifier) -> tuple[nn.Module, list[str], dict[str, Any], str, str, Range | None]:
    """The fields of a `Classifier`."""
    card = exported.card
    assert card.image_size is not None
    data_config = {"input_size": (3, *card.image_size), "crop_pct": card.crop_pct}
    return SessionModel(exported), card.class_names, data_config, card.name, exported.form, card.values


def scored_segmenter(exported: ExportedSegmenter) -> Segmenter:
    """Wrap an exported segmenter for `evaluate_masks`."""
    card = exported.card
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
        value_range=card.values,
    )
    network: Any = SessionSegmenter(exported)
    return Segmenter(network, config, card.name, exported.form)


def scored_detector(exported: ExportedDetector) -> FileDetector:
    """Wrap an exported detector for `evaluate_boxes`."""
    card, boxes = exported.card, exported.card.boxes
    assert boxes is not None
    backbone, _, framework = card.architecture.partition("+")
    config = DetectorConfig(
        backbone=backbone,
        backbone_args={},
        framework=framework,
        masks=boxes.mask_side is not None,
        width=None,
        samples=None,
        queries=boxes.queries,
        class_names=tuple(card.class_names),
        category_ids=tuple(boxes.category_ids),
        mean=_three(card.mean),
        std=_three(card.std),
        image_size=boxes.side,
        max_side=boxes.max_side,
        value_range=card.values,
    )
    network: Any = SessionDetector(exported)
    return FileDetector(network, config, card.name, exported.form)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third
