"""Detectors that cut regions out of their maps, with a fixed number of regions: the form in which they are exported.

PyTorch's own way (torchvision's) handles as many regions as an image has, and pools each from one level. A graph whose
shapes depend on the image's size alone cannot: here, every image has the same number of regions, filled up with ones of
score 0; each region is pooled from all levels, of which one is kept; and suppression marks boxes instead of dropping
them. The objects are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import nms

from ....data.selection import Selection, candidates_by_level
from .base import MULTIPLE, DetectionModel
from .dense import shares


class RegionDetector(DetectionModel):
    """A detector that implements `candidates`, which is what is exported.

    Args:
        queries: Number of candidates per image.
        selection: How objects are selected from the candidates.
        mask_side: Side of the masks that candidates have; None for none.
    """

    strides: Sequence[int] = ()
    per_place = 1
    suppresses = True
    """Whether `candidates` contains `suppressed`."""

    def __init__(self, num_classes: int, queries: int, selection: Selection, mask_side: int | None = None) -> None:
        super().__init__()
        self.num_classes, self.queries, self.selection, self.mask_side = num_classes, queries, selection, mask_side

    def candidates(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) of any size -> (B, queries, 4 + K + mask_side^2): boxes, scores, masks.

        Boxes are fractions of the images' width and height (left, upper, right, lower); scores and masks are from 0 to
        1. Without masks, there are 4 + K numbers.
        """
        raise NotImplementedError

    def answers_in(self, maps: Mapping[str, Tensor], regions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, K, 4) in pixels and scores (B, P, K) in regions (B, P, 4) of images (B, 3, H, W), for a detector
        that suppresses."""
        raise NotImplementedError

    def unsuppressed(self, x: Tensor) -> list[Tensor]:
        """What `candidates` selects from: all objects of each image before any suppression, (m, 4 + K).

        Their scores are above the threshold, or at most `MARGIN` below it.
        """
        parts: Any = self
        maps = parts.pyramid(filled(x))
        found: list[list[Tensor]] = [[] for _ in x]
        for regions in likely(parts.rpn, maps, x)[0].unbind(1):  # level by level, for less memory
            boxes, scores = self.answers_in(maps, regions, x)
            for of_image, box, score in zip(found, clipped(boxes, x) / shares(x), scores, strict=True):
                chosen = (score > self.selection.threshold - MARGIN).nonzero(as_tuple=True)
                classes = F.one_hot(chosen[1], self.num_classes) * score[chosen][:, None]
                of_image.append(torch.cat([box[chosen], classes], 1))
        return [torch.cat(of_image) for of_image in found]

    def levels(self, height: int, width: int) -> list[int]:
        """Number of candidates for images of this size, in a list of one, as `select` takes it."""
        return candidates_by_level(height, width, self.strides, self.per_place, self.queries)


MARGIN = 1e-3
"""How far below the threshold `unsuppressed` scores may be: rounding errors in another backend may lift them above."""


def filled(x: Tensor) -> Tensor:
    """Images (B, 3, H, W), padded with zeros at the right and the bottom to multiples of 32, as by `batched`."""
    return F.pad(x, (0, -x.shape[-1] % MULTIPLE, 0, -x.shape[-2] % MULTIPLE))


def clipped(boxes: Tensor, x: Tensor) -> Tensor:
    """Boxes (..., 4) in pixels, clipped to the images (B, 3, H, W)."""
    return torch.minimum(boxes.clamp(min=0), shares(x))


def proposed(rpn: RegionProposalNetwork, maps: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The regions that torchvision's proposal network finds: boxes (B, P, 4) in pixels, of no area where it finds
    fewer.

    Args:
        rpn: With the anchors of `ProposalAnchors`.
        x: The images (B, 3, H, W), to which the boxes are clipped.
    """
    box, score = likely(rpn, maps, x)
    kept = suppressed(box.flatten(0, 1), score.flatten(0, 1), rpn.nms_thresh, 0.0).reshape(score.shape)
    top, place = (score * kept).flatten(1).topk(min(rpn.post_nms_top_n(), score[0].numel()))
    box = box.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 4))
    return box * (top > 0)[..., None]


def likely(rpn: RegionProposalNetwork, maps: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely regions of each level before suppression, arguments as in `proposed`: boxes (B, levels, n, 4) in
    pixels and scores (B, levels, n), 0 for boxes that are too small."""
    levels = list(maps.values())
    logits, deltas = rpn.head(levels)
    anchors: Any = rpn.anchor_generator
    each, boxes, scores = rpn.pre_nms_top_n(), [], []
    for logit, delta, anchor in zip(logits, deltas, anchors.anchors.by_level(levels), strict=True):
        logit = logit.permute(0, 2, 3, 1).flatten(1)
        delta = delta.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        # Filled up, so that small levels have as many boxes as large ones.
        top, place = F.pad(logit, (0, each), value=float("-inf")).topk(each)
        place = place[..., None].expand(-1, -1, 4)
        delta = F.pad(delta, (0, 0, 0, each)).gather(1, place)
        anchor = F.pad(anchor, (0, 0, 0, each)).expand(len(delta), -1, -1).gather(1, place)
        boxes.append(clipped(decoded(rpn.box_coder, delta, anchor), x))
        scores.append(top.sigmoid())
    box, score = torch.stack(boxes, 1), torch.stack(scores, 1)  # (B, levels, each, 4)
    return box, score * _at_least(box, rpn.min_size)


def found_in(boxes: Tensor, scores: Tensor, threshold: float, iou: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The objects in P regions, as by torchvision's `RoIHeads.postprocess_detections`.

    Args:
        boxes: (B, P, K, 4), a box for each class in pixels, clipped to the images. In a region of no area, they have
            none either, and are left out.
        scores: (B, P, K).

    Returns:
        Boxes (B, n, 4), scores (B, n), descending, 0 where there are fewer objects, and labels (B, n), with n = `most`
        or, if that is less, P K.
    """
    scores = scores * _at_least(boxes, 1e-2)
    box, score = boxes.transpose(1, 2), scores.transpose(1, 2)  # (B, K, P, 4)
    kept = suppressed(box.flatten(0, 1), score.flatten(0, 1), iou, threshold).reshape(score.shape)
    classes, regions = score.shape[1:]
    top, place = (score * kept).flatten(1).topk(min(most, classes * regions))
    real = top > 0
    place = place * real  # among scores of 0, each backend has an order of its own
    box = box.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 4))
    return box * real[..., None], top, place // regions


def decoded(coder: BoxCoder, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (B, n, 4), moved by deltas (B, n, 4)."""
    return coder.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).reshape(boxes.shape)


def _at_least(boxes: Tensor, side: float) -> Tensor:
    """Which of the boxes (..., 4) have sides of at least so many pixels: (...), bool."""
    return (boxes[..., 2:] - boxes[..., :2] >= side).all(-1)


@torch.library.custom_op("dmformer::suppressed", mutates_args=())
def suppressed(boxes: Tensor, scores: Tensor, iou: float, threshold: float) -> Tensor:
    """Non-maximum suppression in each of G groups, among the boxes with scores above the threshold.

    An operator of its own, because its result has the shape of the scores, unlike torchvision's: in an ONNX file it is
    `NonMaxSuppression`.

    Args:
        boxes: (G, n, 4).
        scores: (G, n).

    Returns:
        Which boxes are left, (G, n), bool.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for own, box, score in zip(kept, boxes, scores, strict=True):
        chosen = (score > threshold).nonzero()[:, 0]
        own[chosen[nms(box[chosen], score[chosen], iou)]] = True
    return kept


@suppressed.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
