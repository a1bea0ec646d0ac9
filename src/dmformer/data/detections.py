"""Detections in one image: their selection without torch, and COCO's result format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..utils.extras import needs
from .selection import Selection

THRESHOLD = 0.3
"""Default minimum score of an object for detectors without one of their own."""


@dataclass(frozen=True)
class Detections:
    """Detected objects, highest score first.

    Attributes:
        boxes: (n, 4), float32: left, top, right and bottom edges in pixels of the image.
        scores: (n), float32, 0 to 1.
        labels: (n), int64: classes from 0.
        masks: (n, H, W), bool, of the image's size; None if the detector predicts only boxes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """The objects with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks)


def select(
    candidates: np.ndarray, levels: Sequence[int], size: tuple[int, int], padded: tuple[int, int], selection: Selection
) -> tuple[Detections, np.ndarray]:
    """Select the objects of one image, like `detection.dense.select` in PyTorch; also the candidate of each, (n).

    Args:
        candidates: (N, 4 + K): boxes as fractions of the padded image (left, top, right, bottom), then the scores.
        levels: Number of candidates on each level, N in total.
        size: Height and width of the image in pixels.
        padded: Height and width of the padded image.
        selection: Selection rules.
    """
    height, width = size
    scale = np.array([padded[1], padded[0], padded[1], padded[0]], np.float32)
    boxes, scores, labels, rows = [], [], [], []
    first = 0
    for count in levels:
        part = candidates[first : first + count]
        flat = part[:, 4:].ravel()
        kept = np.flatnonzero(flat > selection.threshold)
        kept = kept[np.argsort(-flat[kept], kind="stable")][: selection.per_level]
        places, classes = np.divmod(kept, part.shape[1] - 4)
        boxes.append(part[places, :4] * scale)
        scores.append(flat[kept])
        labels.append(classes)
        rows.append(first + places)
        first += count
    box, score, label, row = (np.concatenate(parts) for parts in (boxes, scores, labels, rows))
    box = np.clip(box, 0, np.array([width, height, width, height], np.float32))
    seen = (box[:, 2:] > box[:, :2]).all(1)  # boxes entirely in the padding have no area left
    box, score, label, row = box[seen], score[seen], label[seen], row[seen]
    order = np.argsort(-score, kind="stable")
    if selection.iou is not None:
        order = order[_not_suppressed(box[order], label[order], selection.iou, selection.most)]
    order = order[: selection.most]
    return Detections(box[order], score[order], label[order].astype(np.int64)), row[order]


def _not_suppressed(boxes: np.ndarray, labels: np.ndarray, iou: float, most: int) -> list[int]:
    """Non-maximum suppression per class over boxes (n, 4) sorted by score; returns at most `most` indices."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    areas = sizes[:, 0] * sizes[:, 1]
    alive = np.ones(len(boxes), bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        if len(kept) == most:
            break
        upper, lower = np.maximum(boxes[i, :2], boxes[i + 1 :, :2]), np.minimum(boxes[i, 2:], boxes[i + 1 :, 2:])
        overlap = np.clip(lower - upper, 0, None).prod(1)
        union = areas[i] + areas[i + 1 :] - overlap
        alive[i + 1 :] &= (labels[i + 1 :] != labels[i]) | (overlap <= iou * union)
    return kept


def ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of a box (4) with each of n boxes (n, 4): (n)."""
    overlap = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - overlap
    return overlap / np.maximum(union, 1e-12)


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Objects of an image in COCO's result format: bbox (left, top, width, height) in pixels, score, segmentation.

    Args:
        found: The objects; masks become run-length codes, which needs the extra "det".
        image_id: Id of the image.
        category_ids: Category id of each label.
    """
    outlines = [{} for _ in range(len(found))] if found.masks is None else _encoded(found.masks)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(float(v), 2) for v in (left, upper, right - left, lower - upper)],
            "score": round(float(score), 5),
            **outline,
        }
        for (left, upper, right, lower), score, label, outline in zip(
            found.boxes, found.scores, found.labels.tolist(), outlines, strict=True
        )
    ]


def _encoded(masks: np.ndarray) -> list[dict[str, Any]]:
    with needs("det", "writing masks"):
        from faster_coco_eval.core import mask as codes
    encoded = [codes.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return [{"segmentation": {"size": list(code["size"]), "counts": _text(code["counts"])}} for code in encoded]


def _text(counts: bytes | str) -> str:
    return counts if isinstance(counts, str) else counts.decode("ascii")
