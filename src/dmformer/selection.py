"""From the answers of every place to the objects of one image: how they are chosen, and NMS without torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .detections import Detections


@dataclass(frozen=True)
class Selection:
    """How objects are chosen.

    Attributes:
        threshold: Least score.
        per_level: Most candidates, pairs of a place and a class, of each level; None for all.
        iou: Overlap from which the less sure one of two objects of a class is dropped; None for no such rule.
        most: Objects of an image.
    """

    threshold: float = 0.05
    per_level: int | None = 1000
    iou: float | None = 0.5
    most: int = 100


def select(
    candidates: np.ndarray, levels: Sequence[int], size: tuple[int, int], padded: tuple[int, int], selection: Selection
) -> Detections:
    """Objects of one image, as `detection.dense.select` finds them in PyTorch.

    Args:
        candidates: (N, 4 + K): boxes as shares of the padded image (left, upper, right, lower), then the scores.
        levels: Candidates of each level, N in all.
        size: Height and width of the image in pixels.
        padded: Of the padded one.
        selection: How they are chosen.
    """
    height, width = size
    scale = np.array([padded[1], padded[0], padded[1], padded[0]], np.float32)
    boxes, scores, labels = [], [], []
    first = 0
    for count in levels:
        part = candidates[first : first + count]
        first += count
        flat = part[:, 4:].ravel()
        kept = np.flatnonzero(flat > selection.threshold)
        kept = kept[np.argsort(-flat[kept], kind="stable")][: selection.per_level]
        places, classes = np.divmod(kept, part.shape[1] - 4)
        boxes.append(part[places, :4] * scale)
        scores.append(flat[kept])
        labels.append(classes)
    box, score, label = np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels)
    box = np.clip(box, 0, np.array([width, height, width, height], np.float32))
    order = np.argsort(-score, kind="stable")
    if selection.iou is not None:
        order = order[_not_suppressed(box[order], label[order], selection.iou, selection.most)]
    order = order[: selection.most]
    return Detections(box[order], score[order], label[order].astype(np.int64))


def _not_suppressed(boxes: np.ndarray, labels: np.ndarray, iou: float, most: int) -> list[int]:
    """The first boxes (n, 4), sorted by score, that overlap none of their class before them by more than `iou`."""
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
