"""Mask R-CNN, and Faster R-CNN without masks: boxes are proposed, then each is classified and refined.

The parts are torchvision's. Differences from the code base that the papers over these backbones used: smooth L1 for
the proposals' boxes (beta 1/9) and the objects' ones (beta 1/9), not L1; RoIAlign without the shift of half a pixel, on
2 x 2 points per bin and not as many as the box needs; soft mask targets, not thresholded at 0.5.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from ....data.selection import Selection
from .anchors import Anchors
from .base import Found, Target
from .dense import shares
from .pyramid import WIDTH, Pyramid, RoIPool, pooled
from .regions import RegionDetector, clipped, filled, found_in, proposed

STRIDES = [4, 8, 16, 32, 64]
SIZES = [32, 64, 128, 256, 512]
RATIOS = [0.5, 1.0, 2.0]
BOX_SIDE, MASK_SIDE = 7, 14
"""Sides of the region pooled from a box, for its class and edges and for its mask."""
HIDDEN = 1024
PROPOSALS, SAMPLES = 1000, 512


def mask_rcnn(
    backbone: nn.Module,
    channels: Sequence[int],
    num_classes: int,
    masks: bool = True,
    proposals: int = PROPOSALS,
    samples: int = SAMPLES,
) -> "MaskRCNN":
    """Mask R-CNN over a backbone (Mask R-CNN, section 3, its heads on a pyramid: figure 4, right).

    Args:
        masks: False is Faster R-CNN.
        proposals: Number of regions per image that the heads get.
        samples: Number of these that are learnt from, at most a quarter of them on objects.
    """
    box_head, box_predictor = TwoMLPHead(WIDTH * BOX_SIDE**2, HIDDEN), BoxPredictor(num_classes)
    settings = roi_settings(num_classes, 0.5, (10.0, 10.0, 5.0, 5.0), masks, samples)
    roi_heads = RoIHeads(box_head=box_head, box_predictor=box_predictor, **settings)
    return MaskRCNN(Pyramid(backbone, channels, 0, pooled()), region_proposals(proposals), roi_heads)


def roi_settings(
    num_classes: int, iou: float, coder_weights: tuple[float, ...], masks: bool, samples: int
) -> dict[str, Any]:
    """Arguments of torchvision's RoI heads besides the box head: boxes are positive from this IoU with an object."""
    return dict(
        box_roi_pool=RoIPool(BOX_SIDE),
        fg_iou_thresh=iou,
        bg_iou_thresh=iou,
        batch_size_per_image=samples,
        positive_fraction=0.25,
        bbox_reg_weights=coder_weights,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=RoIPool(MASK_SIDE) if masks else None,
        mask_head=MaskRCNNHeads(WIDTH, [WIDTH] * 4, dilation=1) if masks else None,  # (N, 256, 14, 14) -> the same
        mask_predictor=MaskPredictor(num_classes) if masks else None,
    )


class MaskRCNN(RegionDetector):
    """Proposals from every level, P2 to P6, then torchvision's RoI heads on those of P2 to P5.

    Args:
        roi_heads: They number their classes from 1; 0 is the background.
    """

    def __init__(self, pyramid: Pyramid, proposals: RegionProposalNetwork, roi_heads: RoIHeads) -> None:
        super().__init__(*layout(proposals, roi_heads))
        self.pyramid, self.rpn, self.roi_heads = pyramid, proposals, roi_heads
        self.predicts_masks = roi_heads.has_mask()

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        maps = self.pyramid(images.tensors)
        targets = labelled_from_1(targets)
        boxes, of_proposals = self.rpn(images, maps, targets)
        _, of_objects = self.roi_heads(maps, boxes, images.image_sizes, targets)
        return of_proposals | of_objects

    def detect(self, images: ImageList) -> list[Found]:
        maps = self.pyramid(images.tensors)
        boxes, _ = self.rpn(images, maps)
        found, _ = self.roi_heads(maps, boxes, images.image_sizes)
        return labelled_from_0(found)

    def candidates(self, x: Tensor) -> Tensor:
        maps = self.pyramid(filled(x))
        boxes, scores = self.answers_in(maps, proposed(self.rpn, maps, x), x)
        return region_candidates(x, maps, boxes, scores, [self.roi_heads])

    def answers_in(self, maps: Mapping[str, Tensor], regions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.roi_heads
        logits, deltas = box_answers(heads, heads.box_roi_pool.from_all_levels(maps, regions))
        boxes = heads.box_coder.decode_single(deltas, regions.flatten(0, 1)).reshape(*regions.shape[:2], -1, 4)
        scores = logits.softmax(-1).reshape(*regions.shape[:2], -1)
        return boxes[:, :, 1:], scores[:, :, 1:]


def layout(proposals: RegionProposalNetwork, heads: RoIHeads) -> tuple[int, int, Selection, int | None]:
    """The arguments of `RegionDetector` for these heads."""
    predictor: Any = heads.box_predictor
    classes, most = predictor.cls_score.out_features - 1, heads.detections_per_img
    selection = Selection(heads.score_thresh, per_level=None, iou=None, most=most)
    queries = min(most, classes * proposals.post_nms_top_n())
    return classes, queries, selection, 2 * MASK_SIDE if heads.has_mask() else None


def box_answers(heads: RoIHeads, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, 1 + K) and deltas of what is in N boxes, (N, 256, 7, 7)."""
    return heads.box_predictor(heads.box_head(pooled))


def region_candidates(
    x: Tensor, maps: Mapping[str, Tensor], boxes: Tensor, scores: Tensor, heads: Sequence[RoIHeads]
) -> Tensor:
    """The candidates of `RegionDetector`: the objects among boxes (B, P, K, 4) in pixels with scores (B, P, K).

    Args:
        heads: Their last one selects the objects. A mask is the mean of the masks of all.
    """
    last = heads[-1]
    box, score, label = found_in(clipped(boxes, x), scores, last.score_thresh, last.nms_thresh, last.detections_per_img)
    classes = torch.zeros_like(box[..., :1]).expand(-1, -1, scores.shape[-1])
    parts = [box / shares(x), classes.scatter(-1, label[..., None], score[..., None])]
    if last.has_mask():
        pool: Any = last.mask_roi_pool
        pooled, own = pool.from_all_levels(maps, box), 1 + label.flatten()[:, None, None, None]
        masks = []
        for each in heads:
            logits = each.mask_predictor(each.mask_head(pooled))  # type: ignore[misc]
            masks.append(logits.gather(1, own.expand(-1, 1, *logits.shape[-2:])).sigmoid())
        parts.append(torch.stack(masks).mean(0).reshape(*label.shape, -1))
    return torch.cat(parts, dim=-1)


def labelled_from_1(targets: Sequence[Target]) -> list[Target]:
    """The same targets as torchvision's RoI heads expect them: label 0 is the background."""
    return [{**target, "labels": target["labels"] + 1} for target in targets]


def labelled_from_0(found: Sequence[Found]) -> list[Found]:
    """Detections of torchvision's RoI heads, with our labels."""
    return [{**each, "labels": each["labels"] - 1} for each in found]


def region_proposals(proposals: int = PROPOSALS) -> RegionProposalNetwork:
    """Images and maps P2 to P6 -> boxes of each image that may hold an object (Feature Pyramid Networks, section 4.1).

    Trained on 256 anchors per image, half of them positive: an IoU of at least 0.7, or an object's best; negative below
    0.3. It keeps 2000 boxes per level (1000 in evaluation), and after NMS at 0.7, level by level, the best overall.
    """
    anchors = ProposalAnchors()
    return RegionProposalNetwork(
        anchor_generator=anchors,  # type: ignore[arg-type]
        head=ProposalHead(WIDTH, anchors.anchors.per_place),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": proposals, "testing": proposals},
        nms_thresh=0.7,
    )


class ProposalAnchors(nn.Module):
    """Images and maps P2 to P6 -> anchors (N, 4) of each image: at every place one size, three shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors = Anchors([[size] for size in SIZES], RATIOS, STRIDES)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        return [self.anchors(maps)] * len(images.image_sizes)


class ProposalHead(RPNHead):
    """torchvision's, with outputs in float32 even under autocast: boxes in bfloat16 would be pixels off."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [each.float() for each in logits], [each.float() for each in deltas]


class BoxPredictor(FastRCNNPredictor):
    """Features (N, 1024) -> logits (N, 1 + K), background first, and deltas of boxes (N, 4 (1 + K)), in float32.

    Initialised as in Fast R-CNN, section 2.3.

    Args:
        class_agnostic: One box for all classes: deltas (N, 4).
    """

    def __init__(self, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__(HIDDEN, 1 + num_classes)
        if class_agnostic:
            self.bbox_pred = nn.Linear(HIDDEN, 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class MaskPredictor(MaskRCNNPredictor):
    """(N, 256, 14, 14) -> logits (N, 1 + K, 28, 28) of a mask for each class, in float32."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(WIDTH, WIDTH, 1 + num_classes)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()
