"""Sparse R-CNN: a few hundred learned proposals, refined stage by stage, without anchors and NMS (Sun et al. 2021)."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from ....data.selection import Selection
from ....utils.extras import needs
from .base import Found, Target, mean_over_processes
from .dense import shares
from .pyramid import WIDTH, Pyramid, RoIPool, pooled
from .regions import RegionDetector, filled

REGION = 7
"""Side of a proposal's region, in places."""

HIDDEN = 64
"""Channels between the two convolutions that a proposal generates."""

PRIOR = 0.01
"""Probability of every class at the start, as in RetinaNet."""

CLASS, L1, GIOU = 2.0, 5.0, 2.0
"""Weights of the losses, and of a pair's matching costs (section 3)."""

Pooling = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Maps of each level, boxes (B, n, 4) in pixels -> what is in the boxes, (B n, C, 7, 7)."""


def sparse_rcnn(
    backbone: nn.Module, channels: Sequence[int], num_classes: int, proposals: int = 300, stages: int = 6
) -> "SparseRCNN":
    """Sparse R-CNN over a backbone.

    Args:
        proposals: Number per image; 100 and 300 in the paper, 300 for SMT.

    Raises:
        UserError: Without the extra "det".
    """
    return SparseRCNN(Pyramid(backbone, channels, 0, pooled()), num_classes, proposals, stages)


class SparseRCNN(RegionDetector):
    """Proposals, each a box and a vector, which every stage refines (section 3).

    The regions are taken from P2 to P5 by torchvision's RoIAlign, which does not shift them by half a pixel as the
    authors' does. Losses are summed over the stages; the detections in an image are the most confident pairs of a
    proposal and a class in the last stage.
    """

    suppresses = False

    def __init__(self, pyramid: Pyramid, num_classes: int, proposals: int, stages: int, most: int = 100) -> None:
        super().__init__(num_classes, proposals, Selection(threshold=0.0, per_level=None, iou=None, most=most))
        with needs("det", "Sparse R-CNN"):
            import scipy.optimize  # noqa: F401  the matcher's own error names no package
            from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
        self.most = most
        self.pyramid = pyramid
        self.proposal_boxes = nn.Parameter(torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(proposals, 1))  # centre, size
        self.proposal_features = nn.Parameter(torch.randn(proposals, WIDTH))
        self.pool = RoIPool(REGION)
        self.stages = nn.ModuleList(Stage(WIDTH, num_classes) for _ in range(stages))
        self.coder = BoxCoder((2.0, 2.0, 1.0, 1.0))
        self.matcher = DeformableDetrHungarianMatcher(class_cost=CLASS, bbox_cost=L1, giou_cost=GIOU)

    def answers(self, images: ImageList) -> list[tuple[Tensor, Tensor]]:
        """Logits (B, n, K) and boxes (B, n, 4) in pixels from every stage, in float32."""
        maps = self.pyramid(images.tensors)

        def pool(maps: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
            return self.pool(maps, list(boxes), images.image_sizes)

        return self._refined(maps, _scales(images), pool)

    def candidates(self, x: Tensor) -> Tensor:
        scale = shares(x)
        maps = self.pyramid(filled(x))
        logits, boxes = self._refined(maps, scale.expand(x.shape[0], 1, 4), self.pool.from_all_levels)[-1]
        return torch.cat([boxes / scale, logits.sigmoid()], dim=-1)

    def _refined(self, maps: Mapping[str, Tensor], scales: Tensor, pool: Pooling) -> list[tuple[Tensor, Tensor]]:
        """See `answers`; `scales` (B, 1, 4) are the width, height, width and height of each image."""
        boxes = box_convert(self.proposal_boxes, "cxcywh", "xyxy") * scales
        features = self.proposal_features.expand(scales.shape[0], -1, -1)
        found = []
        for stage in self.stages:
            logits, deltas, features = stage(features, pool(maps, boxes.detach()))
            boxes = self.coder.decode_single(deltas.float().flatten(0, 1), boxes.flatten(0, 1)).reshape(boxes.shape)
            found.append((logits.float(), boxes))
            boxes = boxes.detach()
        return found

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        scales = _scales(images)
        stages = [self.compared(logits, boxes, targets, scales) for logits, boxes in self.answers(images)]
        return {name: sum((stage[name] for stage in stages), scales.new_zeros(())) for name in stages[0]}

    def detect(self, images: ImageList) -> list[Found]:
        logits, boxes = self.answers(images)[-1]
        found = []
        for logit, box, (height, width) in zip(logits, boxes, images.image_sizes, strict=True):
            box = torch.minimum(box.clamp(min=0), box.new_tensor([width, height, width, height]))
            seen = (box[:, 2:] > box[:, :2]).all(1)  # boxes inside the padding have no area left
            box, flat = box[seen], logit[seen].sigmoid().flatten()
            scores, pair = flat.topk(min(self.most, len(flat)))
            found.append({"boxes": box[pair // self.num_classes], "scores": scores, "labels": pair % self.num_classes})
        return found

    def compared(self, logits: Tensor, boxes: Tensor, targets: list[Target], scales: Tensor) -> dict[str, Tensor]:
        """Losses of a stage, divided by the number of objects in a batch, its mean over all processes (section 3).

        Focal loss of all proposals; for the matched ones, L1 of centre, width and height in fractions of the image, as
        in the paper and DETR (the authors' code uses the corners), and GIoU.

        Args:
            logits, boxes: From `answers`.
            scales: (B, 1, 4), width, height, width and height of each image.
        """
        pairs = self.matched(logits, boxes, targets, scales)
        image = torch.cat([torch.full_like(proposal, i) for i, (proposal, _) in enumerate(pairs)])
        proposal = torch.cat([proposal for proposal, _ in pairs])
        labels = torch.cat([target["labels"][own] for target, (_, own) in zip(targets, pairs, strict=True)])
        truth = torch.cat([target["boxes"][own] for target, (_, own) in zip(targets, pairs, strict=True)])
        wanted = torch.zeros_like(logits)
        wanted[image, proposal, labels] = 1
        found, scale = boxes[image, proposal], scales[image, 0]
        objects = sum(len(target["labels"]) for target in targets)
        count = mean_over_processes(scales.new_tensor(objects)).clamp(min=1)
        l1 = F.l1_loss(_centred(found / scale), _centred(truth / scale), reduction="sum")
        return {
            "classification": CLASS * sigmoid_focal_loss(logits, wanted, reduction="sum") / count,
            "bbox_l1": L1 * l1 / count,
            "bbox_giou": GIOU * generalized_box_iou_loss(found, truth, reduction="sum") / count,
        }

    def matched(
        self, logits: Tensor, boxes: Tensor, targets: list[Target], scales: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """For each image the proposals and the objects of the cheapest pairs, every object in one (if there are
        enough).

        Arguments as in `compared`. A pair costs its losses' weights times the change that its class makes to the focal
        loss, its L1 and its negative GIoU.
        """
        device = logits.device
        if not any(len(target["labels"]) for target in targets):  # transformers' matcher needs one in a batch
            none = torch.zeros(0, dtype=torch.int64, device=device)
            return [(none, none) for _ in targets]
        # The matcher raises on boxes that are not numbers; this way, a diverging training run gets a loss of nan
        # instead.
        outputs = {"logits": logits, "pred_boxes": _centred(boxes / scales).nan_to_num()}
        wanted = [
            {"class_labels": target["labels"], "boxes": _centred(target["boxes"] / scale)}
            for target, scale in zip(targets, scales, strict=True)
        ]
        return [(proposal.to(device), own.to(device)) for proposal, own in self.matcher(outputs, wanted)]


class Stage(nn.Module):
    """Vectors (B, n, C) and regions (B n, C, 7, 7) -> logits (B, n, K), deltas (B, n, 4) and new vectors (section 3).

    The proposals attend to each other, then each to its region, and two branches read the results.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 8, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.interaction = Interaction(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2048), nn.ReLU(), nn.Linear(2048, dim))
        self.norm3 = nn.LayerNorm(dim)
        self.classes = nn.Sequential(*_layer(dim), nn.Linear(dim, num_classes))
        self.boxes = nn.Sequential(*_layer(dim), *_layer(dim), *_layer(dim), nn.Linear(dim, 4))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.classes[-1].bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.norm1(features + self.attention(features, features, features, need_weights=False)[0])
        features = self.norm2(features + self.interaction(features, regions))
        features = self.norm3(features + self.mlp(features))
        return self.classes(features), self.boxes(features), features


class Interaction(nn.Module):
    """Dynamic instance interactive head (section 3, figure 4): a proposal's vector generates the weights for its
    region.

    Vectors (B, n, C) and regions (B n, C, 7, 7) -> (B, n, C). For the region x, (49, C), and the vector's two matrices
    U (C, 64) and V (64, C): relu(norm(W vec(relu(norm(relu(norm(x U)) V))))).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrices = nn.Linear(dim, 2 * dim * HIDDEN)
        self.norm1 = nn.LayerNorm(HIDDEN)
        self.norm2 = nn.LayerNorm(dim)
        self.out = nn.Linear(dim * REGION**2, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        dim = features.shape[-1]
        first, second = self.matrices(features).flatten(0, 1).chunk(2, dim=-1)
        x = regions.flatten(2).transpose(1, 2)
        x = F.relu(self.norm1(x @ first.reshape(-1, dim, HIDDEN)))
        x = F.relu(self.norm2(x @ second.reshape(-1, HIDDEN, dim)))
        return F.relu(self.norm3(self.out(x.flatten(1)))).reshape(features.shape)


def _layer(dim: int) -> list[nn.Module]:
    return [nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()]


def _scales(images: ImageList) -> Tensor:
    """Width, height, width and height of each image: (B, 1, 4)."""
    return images.tensors.new_tensor([[[w, h, w, h]] for h, w in images.image_sizes], dtype=torch.float32)


def _centred(boxes: Tensor) -> Tensor:
    """Corners -> centre, width and height: (..., 4)."""
    return box_convert(boxes, "xyxy", "cxcywh")
