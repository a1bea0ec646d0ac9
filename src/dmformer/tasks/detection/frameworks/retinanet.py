"""RetinaNet: one stage, nine anchors per place, focal loss (Focal Loss for Dense Object Detection, sections 3, 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from ....data.selection import Selection
from .anchors import Anchors
from .base import Target
from .dense import DenseDetector, shares
from .pyramid import WIDTH, Pyramid, convolved

STRIDES = [8, 16, 32, 64, 128]
OCTAVES = [2 ** (i / 3) for i in range(3)]
RATIOS = [0.5, 1.0, 2.0]


def retinanet(backbone: nn.Module, channels: Sequence[int], num_classes: int, width: int = WIDTH) -> "RetinaNet":
    """RetinaNet over a backbone."""
    extra = convolved(channels, on_output=False, width=width)
    return RetinaNet(Pyramid(backbone, channels, 1, extra, width), num_classes)


class RetinaNet(DenseDetector):
    """torchvision's heads, losses, matcher and box coder, with levels P3 to P7.

    An anchor is positive from an IoU of 0.5, negative below 0.4, and ignored in between; an object's best anchor is
    always positive. Losses: focal (alpha 0.25, gamma 2) and L1, each divided by the number of positive anchors of its
    image, then averaged over the images, as in torchvision; the paper divides the sum over a batch.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int) -> None:
        chosen = Selection(threshold=0.05, per_level=1000, iou=0.5, most=100)
        super().__init__(num_classes, chosen, STRIDES, per_place=len(OCTAVES) * len(RATIOS))
        self.pyramid = pyramid
        self.anchors = Anchors([[4 * stride * octave for octave in OCTAVES] for stride in STRIDES], RATIOS, STRIDES)
        self.head = RetinaNetHead(pyramid.out_channels, self.per_place, num_classes)
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        maps = list(self.pyramid(images.tensors).values())
        outputs = {name: output.float() for name, output in self.head(maps).items()}
        anchors = self.anchors(maps)
        matched = [self._match(anchors, target["boxes"]) for target in targets]
        return self.head.compute_loss(targets, outputs, [anchors] * len(targets), matched)

    def _match(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """For each anchor the index of its object, -1 for none, -2 if it is ignored: (N)."""
        if not len(boxes):
            return anchors.new_full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, dtype=torch.int64)
        return self.matcher(box_iou(boxes, anchors))

    def candidates(self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        maps = list(self.pyramid(x).values())
        outputs = self.head(maps)
        deltas, logits = outputs["bbox_regression"].float(), outputs["cls_logits"].float()
        anchors = self.anchors(maps).expand_as(deltas)  # len(x) would fix an exported graph's batch size
        boxes = self.coder.decode_single(deltas.flatten(0, 1), anchors.flatten(0, 1)).reshape(deltas.shape)
        return torch.cat([boxes / shares(x), logits.sigmoid()], dim=-1)
