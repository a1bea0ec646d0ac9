"""The feature pyramid of the detectors: a backbone, torchvision's FPN with extra levels, and RoI pooling."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from ....models.features import last_maps
from ....nn.layers import StridedConv2d

WIDTH = 256
"""Channels of the pyramid in all papers."""


class Pyramid(nn.Module):
    """(B, 3, H, W) -> maps (B, width, H/stride, W/stride), finest first (Feature Pyramid Networks, section 3).

    Args:
        first: Index of the first of the four maps used: 0 starts at stride 4, 1 at stride 8.
        extra: Derives further levels from the last; see `pooled` and `convolved`.
    """

    def __init__(
        self, backbone: nn.Module, channels: Sequence[int], first: int, extra: ExtraFPNBlock, width: int = WIDTH
    ) -> None:
        super().__init__()
        self.backbone, self.first = backbone, first
        self.fpn = FeaturePyramidNetwork(list(channels[first:]), width, extra)
        self.out_channels = width  # torchvision's heads read it

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        maps = last_maps(self.backbone, x)[self.first :]
        return self.fpn(OrderedDict((str(level), m) for level, m in enumerate(maps)))


def pooled() -> ExtraFPNBlock:
    """One extra level, every second place of the last (Feature Pyramid Networks, section 4.1: P6 for the RPN)."""
    return LastLevelMaxPool()


def convolved(channels: Sequence[int], on_output: bool, width: int = WIDTH) -> ExtraFPNBlock:
    """Two extra levels, by convolutions of stride 2 (RetinaNet, section 4: P6 and P7).

    Args:
        channels: Channels of the backbone's four maps.
        on_output: Derived from the pyramid's last level (FCOS, ATSS) and not from the backbone's last map (RetinaNet).
    """
    return ConvolvedLevels(width if on_output else channels[-1], width, on_output)


class ConvolvedLevels(ExtraFPNBlock):
    """torchvision's LastLevelP6P7, which infers `on_output` from the channels, with `StridedConv2d`."""

    def __init__(self, channels: int, width: int, on_output: bool) -> None:
        super().__init__()
        self.on_output = on_output
        self.p6 = StridedConv2d(channels, width, 3, stride=2, padding=1)
        self.p7 = StridedConv2d(width, width, 3, stride=2, padding=1)
        for convolution in (self.p6, self.p7):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(cast(Tensor, convolution.bias))

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(results[-1] if self.on_output else x[-1])
        return [*results, p6, self.p7(F.relu(p6))], [*names, "p6", "p7"]


class RoIPool(MultiScaleRoIAlign):
    """Maps, boxes (n, 4) of each image, sizes of images -> the content of all boxes, (N, 256, side, side).

    Each box is pooled from one level of P2 to P5, chosen by its size (Feature Pyramid Networks, section 4.2, equation
    1).

    Args:
        side: Side of the pooled region.
    """

    def __init__(self, side: int) -> None:
        super().__init__(["0", "1", "2", "3"], side, sampling_ratio=2)
        # By default it infers them from the first batch's images, which goes wrong if their padding is large.
        self.scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        self.map_levels = initLevelMapper(2, 5, self.canonical_scale, self.canonical_level)

    def from_all_levels(self, maps: Mapping[str, Tensor], boxes: Tensor) -> Tensor:
        """The same for boxes (B, n, 4), in operators whose shapes do not depend on the boxes' sizes.

        Each box is pooled from every level, and one of these is kept: for graphs.
        """
        assert self.scales is not None
        assert self.map_levels is not None
        batch, count = boxes.shape[:2]
        image = torch.arange(batch, dtype=boxes.dtype, device=boxes.device)[:, None].expand(-1, count)
        places = torch.cat([image[..., None], boxes], -1).flatten(0, 1)
        levels = self.map_levels([places[:, 1:]])[:, None, None, None]
        pooled = [
            roi_align(maps[name], places, list(self.output_size), scale, self.sampling_ratio) * (levels == i)
            for i, (name, scale) in enumerate(zip(self.featmap_names, self.scales, strict=True))
        ]
        return torch.stack(pooled).sum(0)
