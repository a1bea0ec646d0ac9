"""The feature pyramid under the frameworks: a backbone, torchvision's FPN with extra levels, and pooling of boxes."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import initLevelMapper

from ....models.features import last_maps

WIDTH = 256
"""Channels of the pyramid in all papers."""


class Pyramid(nn.Module):
    """(B, 3, H, W) -> maps (B, width, H/stride, W/stride) from the finest on (Feature Pyramid Networks, section 3).

    Args:
        backbone: Of `models.features.open_backbone`.
        channels: Of its four maps.
        first: The first of the four maps that is used: 0 begins at stride 4, 1 at stride 8.
        extra: Makes further levels of the last; see `pooled` and `convolved`.
        width: Channels of its maps.
    """

    def __init__(
        self, backbone: nn.Module, channels: Sequence[int], first: int, extra: ExtraFPNBlock, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.backbone, self.first = backbone, first
        self.fpn = FeaturePyramidNetwork(list(channels[first:]), width, extra)
        self.out_channels = width  # torchvision's heads ask for it

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        maps = last_maps(self.backbone, x)[self.first :]
        return self.fpn(OrderedDict((str(level), m) for level, m in enumerate(maps)))


def pooled() -> ExtraFPNBlock:
    """One level more, every second place of the last (Feature Pyramid Networks, section 4.1: P6 for the RPN)."""
    return LastLevelMaxPool()


def convolved(channels: Sequence[int], on_output: bool, width: int = WIDTH) -> ExtraFPNBlock:
    """Two levels more, by convolutions of stride 2 (RetinaNet, section 4: P6 and P7).

    Args:
        channels: Of the backbone's four maps.
        on_output: Made of the pyramid's last level (FCOS, ATSS) and not of the backbone's last map (RetinaNet).
        width: Channels of the pyramid.
    """
    block = LastLevelP6P7(width if on_output else channels[-1], width)
    block.use_P5 = on_output  # torchvision tells it from the channels, which may happen to be 256
    return block


class RoIPool(MultiScaleRoIAlign):
    """Maps, boxes (n, 4) of each image, sizes of images -> what lies in all boxes, (N, 256, side, side).

    A box is pooled of one level of P2 to P5, by its size (Feature Pyramid Networks, section 4.2, equation 1).

    Args:
        side: Of what is pooled.
    """

    def __init__(self, side: int) -> None:
        super().__init__(["0", "1", "2", "3"], side, sampling_ratio=2)
        # Left to itself it would guess them of the first batch's images, and go wrong if their padding is large.
        self.scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        self.map_levels = initLevelMapper(2, 5, self.canonical_scale, self.canonical_level)
