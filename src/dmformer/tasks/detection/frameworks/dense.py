"""Detectors with a prediction at every place of every level: one tensor per batch, from which objects are selected."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from ....data.selection import Selection, candidates_by_level
from .base import DetectionModel, Found


class DenseDetector(DetectionModel):
    """A detector that implements `candidates`, which is also what is exported.

    Args:
        selection: How objects are selected from the candidates.
        strides, per_place, queries: See `candidates_by_level`.
    """

    def __init__(
        self,
        num_classes: int,
        selection: Selection,
        strides: Sequence[int],
        per_place: int = 1,
        queries: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.selection = num_classes, selection
        self.strides, self.per_place, self.queries = list(strides), per_place, queries

    def candidates(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """(B, 3, H, W), sides multiples of 32 -> (B, N, 4 + K): boxes, scores.

        Boxes are fractions of the batch's width and height (left, upper, right, lower), scores from 0 to 1. The N
        candidates are ordered by level, finest first. `sizes` are the images' own (height, width), given if padding
        must not count.
        """
        raise NotImplementedError

    def levels(self, height: int, width: int) -> list[int]:
        """Number of candidates per level, for a batch of this size."""
        return candidates_by_level(height, width, self.strides, self.per_place, self.queries)

    def detect(self, images: ImageList) -> list[Found]:
        height, width = images.tensors.shape[-2:]
        found = self.candidates(images.tensors, images.image_sizes).float()
        levels = self.levels(height, width)
        return [
            select(each, levels, size, (height, width), self.selection)
            for each, size in zip(found, images.image_sizes, strict=True)
        ]


def shares(x: Tensor) -> Tensor:
    """Width, height, width and height of a batch, by which pixels are divided: (4)."""
    height, width = (torch.scalar_tensor(side, dtype=torch.float32, device=x.device) for side in x.shape[-2:])
    return torch.stack([width, height, width, height])


def select(
    candidates: Tensor, levels: Sequence[int], size: tuple[int, int], padded: tuple[int, int], selection: Selection
) -> Found:
    """Detections in one image; arguments as in `data.detections.select`, which does the same without torch."""
    scale = candidates.new_tensor([padded[1], padded[0], padded[1], padded[0]])
    boxes, scores, labels = [], [], []
    for part in candidates.split(list(levels)):
        flat = part[:, 4:].flatten()
        kept = (flat > selection.threshold).nonzero()[:, 0]
        kept = kept[flat[kept].argsort(descending=True, stable=True)][: selection.per_level]
        boxes.append(part[kept // (part.shape[1] - 4), :4] * scale)
        scores.append(flat[kept])
        labels.append(kept % (part.shape[1] - 4))
    box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    box = torch.minimum(box.clamp(min=0), box.new_tensor([size[1], size[0], size[1], size[0]]))
    seen = (box[:, 2:] > box[:, :2]).all(1)  # boxes inside the padding have no area left
    box, score, label = box[seen], score[seen], label[seen]
    order = score.argsort(descending=True, stable=True)
    if selection.iou is not None:
        order = order[batched_nms(box[order], score[order], label[order], selection.iou)]
    order = order[: selection.most]
    return {"boxes": box[order], "scores": score[order], "labels": label[order]}
