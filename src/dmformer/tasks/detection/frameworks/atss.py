"""ATSS: one anchor per place, and for each object its own threshold on the overlap with it.

"Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection", Zhang et al.
2020.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from ....data.selection import Selection
from .anchors import Anchors
from .base import Target, mean_over_processes
from .dense import DenseDetector, shares
from .pyramid import WIDTH, Pyramid, convolved

STRIDES = [8, 16, 32, 64, 128]
NEAREST = 9
MARGIN = 0.01
"""Minimum distance in pixels of an anchor's centre from the edges of its object; from the authors' code."""


def atss(backbone: nn.Module, channels: Sequence[int], num_classes: int, width: int = WIDTH) -> "ATSS":
    """ATSS over a backbone."""
    extra = convolved(channels, on_output=True, width=width)
    return ATSS(Pyramid(backbone, channels, 1, extra, width), num_classes)


class ATSS(DenseDetector):
    """FCOS's head on levels P3 to P7, whose boxes start from a square anchor of 8 strides (section 3.1).

    The score of a place and a class is the root of class probability times centerness, as in the authors' code. There
    the threshold applies to the class probability alone; here it applies to the score.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int) -> None:
        super().__init__(num_classes, Selection(threshold=0.05, per_level=1000, iou=0.6, most=100), STRIDES)
        self.pyramid = pyramid
        self.anchors = Anchors([[8 * stride] for stride in STRIDES], [1.0], STRIDES)
        self.classes = FCOSClassificationHead(pyramid.out_channels, self.per_place, num_classes)
        self.boxes = BoxHead(pyramid.out_channels, len(STRIDES))
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        maps = list(self.pyramid(images.tensors).values())
        by_level = self.anchors.by_level(maps)
        anchors, counts = torch.cat(by_level), [len(level) for level in by_level]
        matched = torch.stack([assign(anchors, counts, target["boxes"]) for target in targets])
        return self.compared(*self.answers(maps), anchors, matched, targets)

    def candidates(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        maps = list(self.pyramid(x).values())
        logits, deltas, centerness = self.answers(maps)
        anchors = self.anchors(maps).expand_as(deltas)
        boxes = self.coder.decode_single(deltas.flatten(0, 1), anchors.flatten(0, 1)).reshape(deltas.shape)
        scores = (logits.sigmoid() * centerness.sigmoid()[..., None]).sqrt()
        return torch.cat([boxes / shares(x), scores], dim=-1)

    def answers(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps by level -> logits (B, N, K), box deltas (B, N, 4) and centerness logits (B, N), in float32."""
        deltas, centerness = self.boxes(maps)
        return self.classes(maps).float(), deltas.float(), centerness.float()

    def compared(
        self,
        logits: Tensor,
        deltas: Tensor,
        centerness: Tensor,
        anchors: Tensor,
        matched: Tensor,
        targets: list[Target],
    ) -> dict[str, Tensor]:
        """Losses of a batch's outputs: focal, GIoU weighted by the target centerness (times 2), and centerness.

        The first and the last are divided by the number of positive anchors, the second by the sum of its weights, but
        by no less than 1, as in the common code base; both divisors are means over all processes.

        Args:
            logits, deltas, centerness: From `answers`.
            anchors: (N, 4).
            matched: (B, N), for each anchor the index of its object, -1 for none.
        """
        image, place = (matched >= 0).nonzero(as_tuple=True)
        own = [(target, index[index >= 0]) for target, index in zip(targets, matched, strict=True)]
        labels = torch.cat([target["labels"][index] for target, index in own])
        boxes = torch.cat([target["boxes"][index] for target, index in own])
        wanted = torch.zeros_like(logits)
        wanted[image, place, labels] = 1
        weights = centerness_of(anchors[place], boxes)
        giou = generalized_box_iou_loss(self.coder.decode_single(deltas[image, place], anchors[place]), boxes)
        positives = mean_over_processes(weights.new_tensor(len(place))).clamp(min=1)
        return {
            "classification": sigmoid_focal_loss(logits, wanted, reduction="sum") / positives,
            "bbox_regression": 2 * (giou * weights).sum() / mean_over_processes(weights.sum()).clamp(min=1),
            "bbox_ctrness": F.binary_cross_entropy_with_logits(centerness[image, place], weights, reduction="sum")
            / positives,
        }


class BoxHead(FCOSRegressionHead):
    """Maps (B, C, H, W) by level -> box deltas (B, N, 4) and centerness logits (B, N), N places in all.

    These are torchvision's layers. Its own forward is FCOS's: without a scale per level, and with no distance below 0.

    Args:
        in_channels: C, a multiple of 32.
    """

    def __init__(self, in_channels: int, levels: int) -> None:
        super().__init__(in_channels, num_anchors=1)
        self.scales = nn.Parameter(torch.ones(levels))

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        deltas, centerness = [], []
        for m, scale in zip(x, self.scales, strict=True):
            m = self.conv(m)
            deltas.append((self.bbox_reg(m) * scale).flatten(2).transpose(1, 2))
            centerness.append(self.bbox_ctrness(m).flatten(1))
        return torch.cat(deltas, dim=1), torch.cat(centerness, dim=1)


def assign(anchors: Tensor, counts: Sequence[int], boxes: Tensor, nearest: int = NEAREST) -> Tensor:
    """Adaptive training sample selection (section 4.1): for each anchor the index of its object, -1 for none: (N).

    An object's candidates are the anchors of each level whose centres are nearest to its own. Its positives are those
    inside it whose IoU with it is at least the candidates' mean plus their standard deviation, computed with n - 1 as
    in the authors' code. It may have none. An anchor claimed by several objects goes to the one with the highest IoU.

    Args:
        anchors: (N, 4), by level.
        counts: Number of anchors per level, N in all.
        boxes: (n, 4), the objects' boxes.
    """
    if not len(boxes):
        return anchors.new_full((len(anchors),), -1, dtype=torch.int64)
    ious = box_iou(anchors, boxes)
    places = _centres(anchors)
    distances = (places[:, None] - _centres(boxes)).square().sum(-1)
    chosen, first = [], 0
    for part in distances.split(list(counts)):
        chosen.append(first + part.topk(min(nearest, len(part)), dim=0, largest=False).indices)
        first += len(part)
    candidates = torch.cat(chosen)  # (candidates, n)
    overlaps = ious.gather(0, candidates)
    inside = _edges(places[candidates], boxes).amin(-1) > MARGIN
    positive = (overlaps >= overlaps.mean(0) + overlaps.std(0)) & inside
    best, index = torch.full_like(ious, -1).scatter(0, candidates, overlaps.where(positive, -1)).max(1)
    return index.where(best >= 0, -1)


def centerness_of(anchors: Tensor, boxes: Tensor) -> Tensor:
    """How central the anchors (n, 4) are in their boxes (n, 4): 1 at the centre, 0 at an edge (FCOS, formula 3): (n).

    At each axis the smaller distance to an edge divided by the larger one; the root of the product of both.
    """
    left, upper, right, lower = _edges(_centres(anchors), boxes).unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    along = torch.minimum(upper, lower) / torch.maximum(upper, lower)
    return (across * along).sqrt()


def _centres(boxes: Tensor) -> Tensor:
    """(n, 4) -> (n, 2)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _edges(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances of points (..., 2) to the left, upper, right and lower edge of boxes (..., 4), below 0 outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
