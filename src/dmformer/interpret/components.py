"""Principal components of a model's feature maps: how many directions they use, and pictures of the first three."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .hooks import as_map, grid_of, recording
from .subject import Subject

PICTURES = 6
"""Maximum number of images whose components are drawn."""
CUT = 0.01
"""Fraction of the positions whose colours are cut off at each end of the scale."""


@dataclass(frozen=True)
class Components:
    """Principal components of one stage, over all positions of all images.

    Attributes:
        variances: Variance along each component, (C), in descending order.
        pictures: The first three components of the first images as red, green and blue, 0 to 1, (n, H, W, 3).
    """

    name: str
    stride: int
    variances: Tensor
    pictures: Tensor

    def share(self, count: int) -> float:
        """Fraction of the variance in the first `count` components."""
        return float(self.variances[:count].sum() / self.variances.sum())

    @property
    def dimensions(self) -> float:
        """Effective number of dimensions, the participation ratio: 1 for one direction, C if all vary alike."""
        return float(self.variances.sum().square() / self.variances.square().sum())


@torch.no_grad()
def principal_components(subject: Subject, batches: Iterable[Tensor]) -> list[Components]:
    """Principal components of every stage's map.

    A position is a vector of C features. The colours are those of "DINOv2" (arXiv 2304.07193, section 7.5), over whole
    images, without its separation of the foreground. The participation ratio, (sum v)^2 / sum v^2 of the variances v,
    is the usual one.

    Args:
        batches: Images of one size, (B, 3, H, W) each.
    """
    stages = list(zip(subject.stages, subject.strides, strict=True))
    moments: list[Any] = [(0, 0, 0)] * len(stages)
    shown: list[list[Tensor]] = [[] for _ in stages]
    pictured = 0
    for images in batches:
        with recording(subject, subject.stages) as calls:
            subject.backbone(images)
        for i, (name, stride) in enumerate(stages):
            grid = grid_of(calls[name], images.shape[-2:], stride)
            maps = as_map(calls[name].output, grid, subject.channels_last_maps).movedim(1, -1)
            shown[i] += list(maps[: PICTURES - pictured].clone())
            positions = maps.flatten(0, 2).double()
            count, total, squares = moments[i]
            moments[i] = (count + len(positions), total + positions.sum(0), squares + positions.T @ positions)
        pictured = min(PICTURES, pictured + len(images))
    found = []
    for (name, stride), (count, total, squares), maps in zip(stages, moments, shown, strict=True):
        mean = total / count
        variances, directions = torch.linalg.eigh(squares / count - torch.outer(mean, mean))
        first = directions.flip(1)[:, :3]
        first = first * first.gather(0, first.abs().argmax(0, keepdim=True)).sign()  # eigh's sign is arbitrary
        colours = scaled((torch.stack(maps).double() - mean) @ first)
        found.append(Components(name, stride, variances.flip(0).clamp(min=0), colours))
    return found


def scaled(values: Tensor) -> Tensor:
    """Values (n, H, W, k) scaled to 0 to 1 for each of the k, with the fraction `CUT` at each end cut off."""
    rows = values.flatten(0, 2)
    low, high = (torch.quantile(rows, share, 0) for share in (CUT, 1 - CUT))
    return ((values - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
