"""Object detection and instance segmentation: detectors over any backbone with maps at strides 4, 8, 16 and 32."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ...data.detections import Detections
from ...models.features import open_backbone
from ...utils.errors import UserError
from .frameworks.atss import atss
from .frameworks.base import DetectionModel, Found
from .frameworks.cascade_rcnn import cascade_rcnn
from .frameworks.dino import dino
from .frameworks.mask_rcnn import mask_rcnn
from .frameworks.retinanet import retinanet
from .frameworks.sparse_rcnn import sparse_rcnn
from .recipes import WITH_MASKS as WITH_MASKS

FRAMEWORKS: dict[str, Callable[..., DetectionModel]] = {
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "retinanet": retinanet,
    "atss": atss,
    "sparse_rcnn": sparse_rcnn,
    "dino": dino,
}
"""Each makes a detector from the backbone and the channels of `open_backbone`, and the number of classes."""
FRAMEWORK_NAMES = {
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade Mask R-CNN",
    "retinanet": "RetinaNet",
    "atss": "ATSS",
    "sparse_rcnn": "Sparse R-CNN",
    "dino": "DINO",
}
BOX_NAMES = {"mask_rcnn": "Faster R-CNN", "cascade_rcnn": "Cascade R-CNN"}
"""Names of these detectors when they predict no masks."""
QUERIES = {"mask_rcnn": "proposals", "cascade_rcnn": "proposals", "sparse_rcnn": "proposals", "dino": "queries"}
"""What a detector that examines a fixed number of regions per image calls them."""


def detection_model(
    name: str,
    num_classes: int,
    framework: Callable[..., DetectionModel] = retinanet,
    weights: dict[str, Tensor] | None = None,
    backbone_args: dict[str, Any] | None = None,
    **arguments: Any,
) -> DetectionModel:
    """A backbone from dmformer or timm with a detector over it.

    Args:
        weights: Weights of the backbone as a classifier, under the names of its `state_dict`; its head is not needed.
        arguments: The detector's own arguments, such as `masks` of Mask R-CNN or `queries` of DINO.

    Raises:
        UserError: The backbone lacks maps at strides 4, 8, 16 and 32, is made for one size, or does not accept these
            arguments.
    """
    if (backbone_args or {}).get("img_size") is not None:
        raise UserError(f"{name} is made for images of one size: a detector's have all sizes.")
    backbone, channels = open_backbone(name, "a detector", weights, backbone_args)
    return framework(backbone, channels, num_classes, **arguments)


@torch.inference_mode()
def detect(
    model: nn.Module, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], threshold: float = 0.0
) -> list[Detections]:
    """Detections of a model in evaluation mode for images (3, H', W'), in the pixels of the original images.

    Args:
        sizes: Height and width of the original images.
        threshold: Minimum score; objects below it cost no mask.
    """
    found: list[Found] = model(images)
    kept = [{name: value[each["scores"] >= threshold] for name, value in each.items()} for each in found]
    return [
        in_photo(each, (image.shape[-2], image.shape[-1]), size)
        for each, image, size in zip(kept, images, sizes, strict=True)
    ]


def in_photo(found: Found, seen: tuple[int, int], size: tuple[int, int]) -> Detections:
    """Detections for an image of the size `seen` (height, width), in the pixels of the original image of `size`."""
    height, width = size
    y, x = height / seen[0], width / seen[1]
    boxes = found["boxes"].float() * found["boxes"].new_tensor([x, y, x, y], dtype=torch.float32)
    masks = None
    if "masks" in found:
        # one at a time: a hundred of 12 megapixels in floats would take 5 GB
        masks = np.zeros((len(boxes), height, width), bool)
        for pasted, mask, box in zip(masks, found["masks"].float(), boxes, strict=True):
            pasted[:] = paste_masks_in_image(mask[None], box[None], (height, width))[0, 0].cpu().numpy() >= 0.5
    scores, labels = found["scores"].float(), found["labels"]
    return Detections(boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy(), masks)
