"""The interface of every detector: images and targets in; in training, losses out; in evaluation, detections."""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

MULTIPLE = 32
"""Height and width of a batch are padded to a multiple of this."""

Target = dict[str, Tensor]
"""Targets of one image: boxes (n, 4), float32, left, upper, right and lower edge in pixels, none without area; labels
(n), int64 from 0; for models with masks, masks (n, H, W), uint8. n may be 0."""

Found = dict[str, Tensor]
"""Detections in one image: boxes (n, 4) in its pixels, scores (n) in descending order, labels (n) from 0; for models
with masks, masks (n, 1, 28, 28), probabilities within each box."""


class DetectionModel(nn.Module):
    """Images (3, H, W), normalised, of any sizes -> losses by name in training mode, else the detections in each.

    A detector implements `losses` and `detect`, over a batch whose images are padded with zeros at the right and the
    bottom to one size, a multiple of 32; `image_sizes` has the height and width of each.
    """

    predicts_masks = False

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Found]:
        batch = batched(images)
        if not self.training:
            return self.detect(batch)
        assert targets is not None
        return self.losses(batch, list(targets))

    def backbone_module(self) -> nn.Module:
        """The backbone of `models.features.open_backbone`."""
        return self.get_submodule("pyramid.backbone")

    def losses(self, images: ImageList, targets: list[Target]) -> dict[str, Tensor]:
        """Losses by name, already weighted; training minimises their sum. Finite for images without objects."""
        raise NotImplementedError

    def detect(self, images: ImageList) -> list[Found]:
        """The detections in each image."""
        raise NotImplementedError


def batched(images: Sequence[Tensor]) -> ImageList:
    """Images of any sizes as one batch, padded with zeros at the right and the bottom."""
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (-(-max(side) // MULTIPLE) * MULTIPLE for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return ImageList(batch.contiguous(memory_format=torch.channels_last), sizes)


def mean_over_processes(number: Tensor) -> Tensor:
    """The mean of the processes' values in distributed training; otherwise the value itself."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return number
    total = number.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
