"""A detector as a function with one output tensor, so that the evidence for a box can be traced to the backbone."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

from ..tasks.detection.frameworks.base import DetectionModel, Found, batched
from ..tasks.detection.frameworks.dense import DenseDetector


class Objects(nn.Module):
    """Images (B, 3, H, W) -> (B, n, 4 + K): boxes in pixels (left, upper, right, lower), then a score for each class.

    They are all candidates of a detector that has candidates at every place, else the objects that it selects.
    """

    def __init__(self, detector: DetectionModel, classes: int) -> None:
        super().__init__()
        self.detector, self.classes = detector, classes

    def forward(self, images: Tensor) -> Tensor:
        batch = batched(list(images))
        if isinstance(self.detector, DenseDetector):
            height, width = batch.tensors.shape[-2:]
            found = self.detector.candidates(batch.tensors, batch.image_sizes)
            return found * found.new_tensor([width, height, width, height] + [1] * self.classes)
        return pad_sequence([self._scored(each) for each in self.detector.detect(batch)], batch_first=True)

    def selected(self, image: Tensor) -> Found:
        """The objects in an image (3, H, W), the most confident first; with none, the best candidate, if any."""
        (found,) = self.detector.detect(batched([image]))
        return found if len(found["scores"]) else self.best(image, None)

    def best(self, image: Tensor, label: int | None) -> Found:
        """The candidate with the highest score for a class, or for any class."""
        rows = self(image[None])[0]
        scores, labels = (rows[:, 4:] if label is None else rows[:, 4 + label, None]).max(1)
        first = scores.argsort(descending=True)[:1]
        return {"boxes": rows[first, :4], "scores": scores[first], "labels": labels[first] + (label or 0)}

    def _scored(self, found: Found) -> Tensor:
        one_hot = nn.functional.one_hot(found["labels"], self.classes)
        return torch.cat([found["boxes"], found["scores"][:, None] * one_hot], 1)


def score_in(rows: Tensor, label: int, region: Tensor) -> Tensor:
    """The score, as a logit, of the candidate (n, 4 + K) that is most surely a class in a box.

    Args:
        region: (H, W), True within the box.
    """
    place = region.nonzero()
    if not len(rows) or not len(place):
        return rows.sum() * 0
    (upper, left), (lower, right) = place.amin(0), place.amax(0) + 1
    box = torch.stack([left, upper, right, lower])[None].to(rows)
    scores = rows[:, 4 + label]
    with torch.no_grad():
        nearest = (box_iou(rows[:, :4], box)[:, 0] * scores).argmax()
    return scores[nearest].clamp(1e-6, 1 - 1e-6).logit()


def regions(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes (n, 4) as masks (n, height, width), at least one pixel each."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, upper, right, lower) in zip(masks, boxes.round().long().tolist(), strict=True):
        left, upper = min(max(left, 0), width - 1), min(max(upper, 0), height - 1)
        mask[upper : max(lower, upper + 1), left : max(right, left + 1)] = True
    return masks
