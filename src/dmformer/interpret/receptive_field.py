"""Effective receptive fields: how the central unit of a map depends on the image or on a block's input."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .hooks import Block, as_map, deepest_blocks, grid_of, recording
from .subject import Subject


@dataclass(frozen=True)
class Field:
    """Effective receptive field of a stage's central unit.

    Attributes:
        stride: Stride of its map in pixels.
        energy: (H, W), mean over images of the squared gradient, summed over the colours.
        contribution: (H, W), mean over images of the gradient's positive part, summed over the colours.
    """

    name: str
    stride: int
    energy: Tensor
    contribution: Tensor

    def area(self, share: float) -> int:
        """Number of pixels in the smallest set that contains this fraction of the energy."""
        return smallest_area(self.energy, share)

    def square(self, share: float, log: bool = False) -> tuple[float, float]:
        """The smallest square around the field's centre that contains this fraction of the contribution.

        "Scaling Up Your Kernels to 31x31", appendix: the high-contribution area ratio, for fractions of 0.2, 0.3, 0.5
        and 0.99. The paper's code first takes log10(1 + contribution), which depends on the gradient's scale, and
        centres the square on the image. Here it is centred on the contribution's centre of mass, to half a pixel,
        because padding of strided convolutions shifts the field by up to half a stride; pixels outside the image do not
        count (reconstruction).

        Returns:
            The side in pixels, and the fraction of the image's pixels inside the square.
        """
        values = torch.log10(1 + self.contribution) if log else self.contribution
        away = []
        for axis, length in enumerate(values.shape):
            places = torch.arange(length) + 0.5
            middle = (self.contribution.sum(1 - axis) * places).sum() / self.contribution.sum()
            away.append((places - (2 * middle).round() / 2).abs())
        reach = torch.maximum(away[0][:, None], away[1])  # a pixel bounds a square of side 2 reach + 1
        order = reach.flatten().argsort()
        furthest = reach.flatten()[order[_first_to_hold(values.flatten()[order], share)]]
        return 2 * furthest.item() + 1, (reach <= furthest).double().mean().item()


@dataclass(frozen=True)
class BlockField:
    """Effective receptive field of the central unit of a block's output in the block's input.

    Attributes:
        energy: Energy for the output, (h, w).
        added: Energy for output - input, (h, w); equal to `energy` if the block changes the shape.
    """

    block: Block
    energy: Tensor
    added: Tensor

    def relative_side(self, share: float, added: bool = False) -> float:
        """Side of a square as large as the smallest set with this fraction of the energy, relative to the map's."""
        energy = self.added if added else self.energy
        return (smallest_area(energy, share) / energy.numel()) ** 0.5


def receptive_fields(subject: Subject, batches: Iterable[Tensor]) -> list[Field]:
    """Effective receptive field of every stage ("Understanding the Effective Receptive Field", 2016).

    The unit at row h // 2 and column w // 2 of a stage's map (below and right of the centre if the size is even) is
    summed over its channels and differentiated with respect to the normalised image.

        energy       = mean over images of sum over colours of gradient^2
        contribution = mean over images of sum over colours of max(gradient, 0)

    The energy is our definition (reconstruction); the contribution is from "Scaling Up Your Kernels to 31x31".

    Args:
        batches: Images of one size, (B, 3, H, W) each.
    """
    stages = list(zip(subject.stages, subject.strides, strict=True))
    energy, contribution = [torch.zeros(())] * len(stages), [torch.zeros(())] * len(stages)
    count = 0
    for images in batches:
        images = images.clone().requires_grad_()
        with torch.enable_grad(), recording(subject, subject.stages) as calls:
            subject.backbone(images)
            maps = [
                as_map(calls[s].output, grid_of(calls[s], images.shape[-2:], d), subject.channels_last_maps)
                for s, d in stages
            ]
        for i, features in enumerate(maps):
            gradient = torch.autograd.grad(_centre(features), images, retain_graph=i < len(maps) - 1)[0]
            energy[i] = energy[i] + gradient.square().sum((0, 1), dtype=torch.float64)
            contribution[i] = contribution[i] + gradient.clamp(min=0).sum((0, 1), dtype=torch.float64)
        count += len(images)
    return [
        Field(name, stride, e / count, c / count)
        for (name, stride), e, c in zip(stages, energy, contribution, strict=True)
    ]


def relative_receptive_fields(subject: Subject, batches: Iterable[Tensor]) -> list[BlockField]:
    """Effective receptive field of each block of the deepest stage, in the block's own input.

    After the relative receptive field of "Scale-Aware Modulation Meet Transformer", section 3, whose exact definition
    is not available (reconstruction): the energy is that of `receptive_fields` with respect to the block's input,
    summed over its channels. It is computed for the output, and for output - input, because a strong skip connection
    hides the rest. The deepest stage is the one with the most blocks; if there are several, the penultimate.

    Args:
        batches: Images of one size, (B, 3, H, W) each.
    """
    places = deepest_blocks(subject)
    energy, added, count = [torch.zeros(())] * len(places), [torch.zeros(())] * len(places), 0
    for images in batches:
        with torch.no_grad(), recording(subject, [place.name for place in places]) as calls:
            subject.backbone(images)
        for i, place in enumerate(places):
            call = calls[place.name]
            x = call.args[0].detach().requires_grad_()
            y = subject.module(place.name)(x, *call.args[1:], **call.kwargs)
            grid, channels_last = grid_of(call, images.shape[-2:], place.stride), subject.channels_last_maps
            for sums, output in ((energy, y), (added, y - x if y.shape == x.shape else y)):
                unit = _centre(as_map(output, grid, channels_last))
                (gradient,) = torch.autograd.grad(unit, x, retain_graph=sums is energy)
                squared = as_map(gradient, grid, channels_last).square()
                sums[i] = sums[i] + squared.sum((0, 1), dtype=torch.float64)
        count += len(images)
    return [BlockField(place, e / count, a / count) for place, e, a in zip(places, energy, added, strict=True)]


def smallest_area(energy: Tensor, share: float) -> int:
    """Number of positions in the smallest set that contains this fraction of the energy, a map (H, W)."""
    return _first_to_hold(energy.flatten().sort(descending=True).values, share) + 1


def _first_to_hold(values: Tensor, share: float) -> int:
    """Index at which the cumulative sum reaches this fraction of the total, up to rounding."""
    sums = values.double().cumsum(0)
    return int((sums < share * sums[-1] * (1 - 1e-9)).sum())


def _centre(features: Tensor) -> Tensor:
    """The sum of the central unit over images and channels."""
    return features[:, :, features.shape[2] // 2, features.shape[3] // 2].sum()
