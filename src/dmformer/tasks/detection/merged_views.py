"""A detector over mirrored views of each image: test-time augmentation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.detections import Detections
from ...data.fusion import fused, mirrored
from ...utils.views import VIEWS, axes_of
from .frameworks.base import Found


class MergedViews(nn.Module):
    """Images (3, H, W) -> detections in each, merged over V views of it; see `fused`.

    The views are computed one after another, so they take the memory of one.

    Args:
        model: In evaluation mode, with the `selection` of `DenseDetector` and `RegionDetector`.
        tta: Name of the views, a key of `VIEWS`.
    """

    def __init__(self, model: Any, tta: str) -> None:
        super().__init__()
        self.model, self.views = model, VIEWS[tta]

    def forward(self, images: Sequence[Tensor]) -> list[Found]:
        views = []
        for axes in map(axes_of, self.views):
            found = self.model([image.flip(axes) for image in images])
            views.append(
                [
                    mirrored(_in_numpy(each), (image.shape[-2], image.shape[-1]), axes)
                    for each, image in zip(found, images, strict=True)
                ]
            )
        most = self.model.selection.most
        return [_in_torch(fused(of_image, most), images[0].device) for of_image in zip(*views, strict=True)]


def _in_numpy(found: Found) -> Detections:
    arrays = {name: value.float().cpu().numpy() for name, value in found.items() if name != "labels"}
    masks = arrays["masks"][:, 0] if "masks" in arrays else None
    return Detections(arrays["boxes"], arrays["scores"], found["labels"].cpu().numpy(), masks)


def _in_torch(found: Detections, device: torch.device) -> Found:
    masks = {} if found.masks is None else {"masks": found.masks[:, None]}
    arrays = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, **masks}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
