"""What a detector finds on one photo."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .extras import needs


@dataclass(frozen=True)
class Detections:
    """Objects, the surest first.

    Attributes:
        boxes: (n, 4), float32: left, upper, right and lower edge in pixels of the photo.
        scores: (n), float32, 0 to 1.
        labels: (n), int64: classes from 0.
        masks: (n, H, W), bool, of the photo's size; None of a detector of boxes alone.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Those with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept], masks)


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Objects of a photo as COCO's results have them: bbox (left, upper, width, height) in pixels, score, segmentation.

    Args:
        found: The objects; masks become run-length codes, which needs the extra "det".
        image_id: Of the photo.
        category_ids: In the order of the labels.
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
