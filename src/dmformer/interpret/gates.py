"""DMFormer's channel gates and depth-wise branches: how much they depend on the input, and which level dominates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.mixers.dma import DMA
from .hooks import blocks, recording
from .subject import Subject

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of a block's gates over images and channels."""


@dataclass(frozen=True)
class Reading:
    """Gates and branches of one block.

    Attributes:
        gates: Gates by image and channel, (n, C), from 0 to 1.
        levels: Names of the branches, e.g. "5x5 d2": kernel and dilation.
        shares: Each branch's fraction of the variance of their sum, (L,); the fractions add up to 1.
        rms: Root mean square of each branch, (L,).
    """

    name: str
    label: str
    gates: Tensor
    levels: list[str]
    shares: Tensor
    rms: Tensor


@dataclass(frozen=True)
class Variances:
    """Variances of a block's gates: mean over channels of the variance over images, and variance over channels of the
    mean over images. Their sum is the total variance."""

    across_images: float
    across_channels: float

    @property
    def input_share(self) -> float:
        """Fraction of the total variance between images: 0 for gates that do not depend on the input."""
        whole = self.across_images + self.across_channels
        return self.across_images / whole if whole else 0.0


def gated_blocks(subject: Subject) -> list[tuple[str, str]]:
    """Name and label of the blocks whose mixer is DMA with a gate."""
    mixers = [
        (place.name, place.label, getattr(subject.module(place.name), "mixer", None)) for place in blocks(subject)
    ]
    return [(name, label) for name, label, mixer in mixers if isinstance(mixer, DMA) and mixer.gate is not None]


@torch.no_grad()
def read_gates(subject: Subject, batches: Iterable[Tensor]) -> tuple[list[Reading], Tensor]:
    """Gates and branches of every block with Dynamic Multi-level Attention, and the class (n,) of each image.

    A branch's fraction is Cov(branch, sum) / Var(sum), over images and positions, with channels weighted by Var(sum);
    the sum is the norm's input. The branches are computed as plain convolutions of the sum's input.

    Returns:
        The blocks in order, and the predicted classes; for a segmenter, the class of most pixels.
    """
    places = gated_blocks(subject)
    gates: list[list[Tensor]] = [[] for _ in places]
    moments = [Moments() for _ in places]
    predicted = []
    for images in batches:
        parts = [f"{name}.mixer.{part}" for name, _ in places for part in ("gate", "levels")]
        with recording(subject, parts) as calls:
            logits = subject.model(images)
        for i, (name, _) in enumerate(places):
            gates[i].append(calls[f"{name}.mixer.gate"].output[..., 0, 0])
            moments[i].add(branches(_mixer(subject, name), calls[f"{name}.mixer.levels"].args[0]))
        logits = logits[..., 4:].amax(1) if subject.of_boxes else logits  # the class of the surest box
        classes = logits.argmax(1).flatten(1) if logits.dim() == 4 else logits.argmax(1, keepdim=True)
        predicted.append(classes.mode(1).values)
    readings = [
        Reading(name, label, torch.cat(gates[i]), level_names(_mixer(subject, name)), *moments[i].result())
        for i, (name, label) in enumerate(places)
    ]
    return readings, torch.cat(predicted)


def branches(mixer: DMA, x: Tensor) -> list[Tensor]:
    """The terms of DMA's sum, each (B, C, H, W); they add up to the output of `mixer.levels`."""
    return [conv(x) for conv in mixer.levels.convs]


def level_names(mixer: DMA) -> list[str]:
    """Kernel and dilation of each branch, e.g. "5x5 d2"."""
    return [f"{c.kernel_size[0]}x{c.kernel_size[0]} d{c.dilation[0]}" for c in mixer.levels.convs]  # type: ignore[index]


class Moments:
    """Sums over images and positions, per channel, from which the branches' fractions are computed."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor = torch.zeros(())  # (4, L, C): of branch, branch^2, branch * sum, sum^2

    def add(self, terms: Sequence[Tensor]) -> None:
        """Add the branches of a batch, each (B, C, H, W)."""
        total = torch.stack(list(terms)).sum(0)
        kinds = ([b, b * b, b * total, total * total] for b in terms)
        self.sums = self.sums + torch.stack(
            [torch.stack([t.sum((0, 2, 3), dtype=torch.float64) for t in kind]) for kind in kinds], 1
        )
        self.count += total.numel() // total.shape[1]

    def result(self) -> tuple[Tensor, Tensor]:
        """Fractions (L,) and root mean squares (L,) of the branches."""
        mean, square, product, whole = self.sums / self.count
        total_mean = mean.sum(0)
        covariance, variance = product - mean * total_mean, whole[0] - total_mean.square()
        return covariance.sum(1) / variance.sum(), square.mean(1).sqrt()


def variances(gates: Tensor) -> Variances:
    """Decompose the variance of gates (n, C)."""
    gates = gates.double()
    return Variances(gates.var(0, correction=0).mean().item(), gates.mean(0).var(correction=0).item())


def between_classes(gates: Tensor, labels: Tensor) -> tuple[Tensor, float, float]:
    """The fraction of the gates' variance over images that lies between classes.

    Args:
        gates: (n, C).
        labels: Class of each image, (n,).

    Returns:
        The fraction per channel, (C,), nan for constant channels; the fraction over all channels; and the mean for
        unrelated classes, (K - 1) / (n - 1) for K classes among the images.
    """
    gates = gates.double()
    deviations = torch.zeros_like(gates)
    for label in labels.unique():
        deviations[labels == label] = gates[labels == label].mean(0) - gates.mean(0)
    between, whole = deviations.square().mean(0), gates.var(0, correction=0)
    by_chance = (len(labels.unique()) - 1) / max(len(labels) - 1, 1)
    overall = (between.sum() / whole.sum()).item() if whole.sum() > 0 else 0.0
    return between / whole, overall, by_chance


def class_channels(gates: Tensor, labels: Tensor, top: int = 5) -> dict[int, list[tuple[int, float]]]:
    """For each class, the channels whose gates differ most: (channel, class mean - mean over all images)."""
    found = {}
    for label in labels.unique().tolist():
        difference = gates[labels == label].mean(0) - gates.mean(0)
        channels = difference.abs().argsort(descending=True, stable=True)[:top].tolist()
        found[label] = [(c, difference[c].item()) for c in channels]
    return found


def _mixer(subject: Subject, name: str) -> DMA:
    mixer = subject.module(f"{name}.mixer")
    assert isinstance(mixer, DMA)
    return mixer
