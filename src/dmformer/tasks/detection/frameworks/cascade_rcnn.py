"""Cascade R-CNN, with or without masks: three stages of heads, each on the boxes refined by the one before."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss

from .base import Found, Target
from .mask_rcnn import (
    BOX_SIDE,
    HIDDEN,
    PROPOSALS,
    SAMPLES,
    BoxPredictor,
    box_answers,
    labelled_from_0,
    labelled_from_1,
    layout,
    region_candidates,
    region_proposals,
    roi_settings,
)
from .pyramid import WIDTH, Pyramid, pooled
from .regions import RegionDetector, clipped, decoded, filled, proposed

IOUS = [0.5, 0.6, 0.7]
"""Minimum IoU at which a box is positive, stage by stage (Cascade R-CNN, section 4.2)."""
CODER_WEIGHTS = [(10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)]
"""Weights of the deltas, which are smaller in later stages (section 4.1). The values are those of common code bases."""
LOSS_WEIGHTS = [1.0, 0.5, 0.25]
"""Weights of the stages' losses, as in the common code base; the paper gives none."""

BoxLoss = Callable[[Tensor, Tensor, Tensor, BoxCoder], Tensor]
"""Deltas (n, 4), the boxes (n, 4) that they refine, the objects' boxes (n, 4), their coder -> the sum of the losses."""
Size = tuple[int, int]


def giou_loss(deltas: Tensor, boxes: Tensor, objects: Tensor, coder: BoxCoder) -> Tensor:
    """Ten times the generalised IoU loss of the refined boxes, as in the 3x recipes of Swin and SMT."""
    return 10 * generalized_box_iou_loss(coder.decode_single(deltas, boxes), objects, reduction="sum")


def smooth_l1_loss(deltas: Tensor, boxes: Tensor, objects: Tensor, coder: BoxCoder) -> Tensor:
    """Smooth L1 of the deltas (Cascade R-CNN, section 3.1)."""
    return F.smooth_l1_loss(deltas, coder.encode_single(objects, boxes), reduction="sum")


def cascade_rcnn(
    backbone: nn.Module,
    channels: Sequence[int],
    num_classes: int,
    masks: bool = True,
    proposals: int = PROPOSALS,
    samples: int = SAMPLES,
    box_loss: BoxLoss = giou_loss,
) -> "CascadeRCNN":
    """Cascade Mask R-CNN over a backbone (Cascade R-CNN, sections 4 and 5; masks as in its longer version, section 5).

    Args:
        masks: False is Cascade R-CNN.
        proposals: Number of regions per image that the first stage gets.
        samples: Number of these that each stage learns from, at most a quarter of them on objects.
        box_loss: `giou_loss`, `smooth_l1_loss` or another one.
    """
    settings = zip(IOUS, CODER_WEIGHTS, strict=True)
    stages = [Stage(num_classes, iou, weights, masks, samples) for iou, weights in settings]
    pyramid = Pyramid(backbone, channels, 0, pooled())
    return CascadeRCNN(pyramid, region_proposals(proposals), stages, box_loss)


class CascadeRCNN(RegionDetector):
    """Mask R-CNN's proposals, refined by each stage for the next.

    In training, each stage samples its own boxes from those refined by the previous stage and from the objects' boxes.
    In evaluation, scores and masks are means over the heads of all stages, on the boxes of the last one.

    Args:
        box_loss: Loss of the boxes; its sum is divided by the number of all samples.
    """

    stages: Sequence["Stage"]

    def __init__(
        self, pyramid: Pyramid, proposals: RegionProposalNetwork, stages: Sequence["Stage"], box_loss: BoxLoss
    ) -> None:
        super().__init__(*layout(proposals, stages[-1]))
        self.pyramid, self.rpn, self.box_loss = pyramid, proposals, box_loss
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.predicts_masks = stages[-1].has_mask()

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        sizes = images.image_sizes
        maps = self.pyramid(images.tensors)
        targets = labelled_from_1(targets)
        boxes, losses = self.rpn(images, maps, targets)
        for number, (stage, weight) in enumerate(zip(self.stages, LOSS_WEIGHTS, strict=True), start=1):
            boxes, matched, labels, _ = stage.select_training_samples(boxes, targets)
            logits, deltas = stage.answers(maps, boxes, sizes)
            positive = [label > 0 for label in labels]
            on_object = [box[on] for box, on in zip(boxes, positive, strict=True)]
            object_of = [match[on] for match, on in zip(matched, positive, strict=True)]

            losses[f"loss_classifier_{number}"] = weight * F.cross_entropy(logits, torch.cat(labels))
            objects = torch.cat([target["boxes"][of] for target, of in zip(targets, object_of, strict=True)])
            of_boxes = self.box_loss(deltas[torch.cat(positive)], torch.cat(on_object), objects, stage.box_coder)
            losses[f"loss_box_reg_{number}"] = weight * of_boxes / len(deltas)
            if self.predicts_masks:
                masks, classes = ([target[name] for target in targets] for name in ("masks", "labels"))
                mask_logits = stage.mask_answers(maps, on_object, sizes)
                of_masks = maskrcnn_loss(mask_logits, on_object, masks, classes, object_of)
                losses[f"loss_mask_{number}"] = weight * of_masks

            moved = stage.moved(deltas, boxes, sizes)
            # The objects' own boxes need no refinement and are dropped: the next stage adds them again.
            own = [_among(box, target["boxes"]) for box, target in zip(boxes, targets, strict=True)]
            boxes = [box[~is_own] for box, is_own in zip(moved, own, strict=True)]
        return losses

    def detect(self, images: ImageList) -> list[Found]:
        sizes = images.image_sizes
        maps = self.pyramid(images.tensors)
        boxes, _ = self.rpn(images, maps)
        for stage in self.stages[:-1]:
            _, deltas = stage.answers(maps, boxes, sizes)
            boxes = stage.moved(deltas, boxes, sizes)

        answers = [stage.answers(maps, boxes, sizes) for stage in self.stages]
        scores = torch.stack([logits.softmax(dim=1) for logits, _ in answers]).mean(dim=0)
        _, deltas = answers[-1]
        # torchvision expects logits whose softmax gives the scores, and deltas for each class.
        found_boxes, found_scores, labels = self.stages[-1].postprocess_detections(
            scores.log(), deltas.repeat(1, scores.shape[1]), boxes, sizes
        )
        found = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(found_boxes, found_scores, labels, strict=True)
        ]
        if self.predicts_masks:
            by_stage = [
                maskrcnn_inference(stage.mask_answers(maps, found_boxes, sizes), labels) for stage in self.stages
            ]
            for each, masks in zip(found, zip(*by_stage, strict=True), strict=True):
                each["masks"] = torch.stack(masks).mean(dim=0)
        return labelled_from_0(found)

    def candidates(self, x: Tensor) -> Tensor:
        maps = self.pyramid(filled(x))
        boxes, scores = self.answers_in(maps, proposed(self.rpn, maps, x), x)
        return region_candidates(x, maps, boxes, scores, self.stages)

    def answers_in(self, maps: Mapping[str, Tensor], regions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        for stage in self.stages[:-1]:
            _, deltas = box_answers(stage, stage.box_roi_pool.from_all_levels(maps, regions))
            regions = clipped(decoded(stage.box_coder, deltas.reshape(regions.shape), regions), x)
        pooled = self.stages[-1].box_roi_pool.from_all_levels(maps, regions)
        answers = [box_answers(stage, pooled) for stage in self.stages]
        scores = torch.stack([logits.softmax(dim=-1) for logits, _ in answers]).mean(dim=0)
        scores = scores.reshape(*regions.shape[:2], -1)[:, :, 1:]
        boxes = decoded(self.stages[-1].box_coder, answers[-1][1].reshape(regions.shape), regions)
        return boxes[:, :, None].expand(-1, -1, scores.shape[-1], -1), scores  # boxes shared by all classes


class Stage(RoIHeads):
    """One stage: torchvision's sampling, box coder and heads; its own `forward` is not used.

    The box head has four convolutions with batch norm and one hidden layer ("4conv1fc"). The papers that use these
    backbones name it together with GIoU; the norm, over the boxes of all images, is a reconstruction. Deltas are shared
    by all classes (Cascade R-CNN, section 5.1); the size published with SMT-S, 78 M, includes deltas for each class.
    """

    def __init__(
        self, num_classes: int, iou: float, coder_weights: tuple[float, float, float, float], masks: bool, samples: int
    ) -> None:
        box_head = FastRCNNConvFCHead((WIDTH, BOX_SIDE, BOX_SIDE), [WIDTH] * 4, [HIDDEN], nn.BatchNorm2d)
        box_predictor = BoxPredictor(num_classes, class_agnostic=True)
        settings = roi_settings(num_classes, iou, coder_weights, masks, samples)
        super().__init__(box_head=box_head, box_predictor=box_predictor, **settings)

    def answers(self, maps: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> tuple[Tensor, Tensor]:
        """Logits (N, 1 + K) and deltas (N, 4) of the boxes of all images."""
        return self.box_predictor(self.box_head(self.box_roi_pool(maps, boxes, sizes)))

    def mask_answers(self, maps: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[Size]) -> Tensor:
        """Logits (N, 1 + K, 28, 28) of the masks in the boxes of all images."""
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, boxes, sizes)))

    def moved(self, deltas: Tensor, boxes: list[Tensor], sizes: list[Size]) -> list[Tensor]:
        """The boxes refined by their deltas, clipped to their images, without gradients."""
        moved = self.box_coder.decode_single(deltas.detach(), torch.cat(boxes)).split([len(box) for box in boxes])
        return [clip_boxes_to_image(box, size) for box, size in zip(moved, sizes, strict=True)]


def _among(boxes: Tensor, others: Tensor) -> Tensor:
    """Which of the boxes (n, 4) are among the others (m, 4): (n), bool."""
    return (boxes[:, None] == others).all(dim=2).any(dim=1)
