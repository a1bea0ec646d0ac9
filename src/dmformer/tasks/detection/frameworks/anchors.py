"""Anchors: boxes of several sizes and shapes around every place of every level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator


class Anchors(nn.Module):
    """Maps by level -> anchors (N, 4) of one image: by level, row and column, then by shape.

    torchvision's `AnchorGenerator` makes the shapes. It infers a level's stride from the sizes of image and map, which
    is wrong if the last levels are rounded up (53 instead of 64 for an image of 160 px); here the strides are given.

    Args:
        sizes: Sizes of the anchors of each level, square roots of areas in pixels.
        ratios: Height divided by width, for each size.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = list(strides)
        generator = AnchorGenerator(tuple(tuple(size) for size in sizes), (tuple(ratios),) * len(sizes))  # type: ignore[arg-type]
        self.per_place = generator.num_anchors_per_location()[0]
        for level, shapes in enumerate(generator.cell_anchors):
            self.register_buffer(f"shapes{level}", shapes, persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat(self.by_level(maps))

    def by_level(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The anchors (N, 4) of each level."""
        found = []
        for level, (m, stride) in enumerate(zip(maps, self.strides, strict=True)):
            shapes = self.get_buffer(f"shapes{level}")
            y, x = (torch.arange(side, device=m.device, dtype=shapes.dtype) * stride for side in m.shape[-2:])
            y, x = torch.meshgrid(y, x, indexing="ij")
            centre = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            found.append((centre + shapes).reshape(-1, 4))
        return found
