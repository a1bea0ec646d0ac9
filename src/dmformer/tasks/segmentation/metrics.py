"""Scores of masks: mean intersection over union with its confidence interval, accuracies, and each class's share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.intervals import Score
from ..measures import Measure

_CHUNK = 1 << 22
"""Most numbers of one part of the bootstrap: 32 MB."""


@dataclass(frozen=True)
class ClassIoU:
    """Scores of one class, as shares; of its accuracy, the denominator is its true pixels."""

    name: str
    iou: float | None
    """None where the class has neither a true nor a predicted pixel."""
    accuracy: float | None
    """None where it has no true pixel."""
    share: float
    """Of the labelled pixels, how many are truly of the class."""


@dataclass(frozen=True)
class SegmentationScores:
    """What `score_masks` returns; shares from 0 to 1."""

    images: int
    pixels: int
    """Labelled ones."""
    miou: Score
    macc: float
    aacc: float
    classes: list[ClassIoU]
    confusion: list[list[int]]
    """confusion[truth][prediction], in pixels."""


def measures(scores: SegmentationScores) -> list[Measure]:
    """The measures that summarise scores."""
    counted = f"right ones of all {scores.pixels:,} labelled pixels"
    return [
        Measure("mIoU", "Mean IoU", scores.miou, "overlap of truth and prediction, mean of classes"),
        Measure("mean accuracy", "Mean accuracy", scores.macc, "pixels of a class that were found, mean of classes"),
        Measure("pixel accuracy", "Pixel accuracy", scores.aacc, counted),
    ]


def score_masks(confusion: Tensor, counts: Tensor, class_names: list[str], resamples: int = 1000) -> SegmentationScores:
    """Score predicted masks by their counts of pixels, of which those that are not labelled have been left out.

    Args:
        confusion: (K, K), int64: pixels by truth and prediction, summed over the images.
        counts: (N, 3, K), int64: of each image and class the pixels that are right, true and predicted.
        resamples: Of the bootstrap; 0 for none, when the interval is as wide as can be.

    The IoU of a class is that of all its pixels in the set, not a mean of images. mIoU is the mean over the classes
    that have a true or a predicted pixel and carries a bootstrap's interval over images (seeded); mAcc is the mean over
    the classes that have a true pixel; aAcc is the share of right pixels.

    Raises:
        ValueError: If no pixel is labelled, or the counts are not those of the confusion.
    """
    confusion, counts = confusion.cpu(), counts.cpu()
    if confusion.sum() == 0:
        raise ValueError("There is no labelled pixel to score.")
    sums = class_counts(confusion)
    if not torch.equal(sums, counts.sum(0)):
        raise ValueError("The counts of the images do not add up to the confusion.")
    right, true, _ = sums
    pixels = int(true.sum())
    iou, accuracy = _iou(sums), right.double() / true
    low, high = _bootstrap(counts, resamples)
    return SegmentationScores(
        images=len(counts),
        pixels=pixels,
        miou=Score(float(iou.nanmean()), low, high),
        macc=float(accuracy.nanmean()),
        aacc=int(right.sum()) / pixels,
        classes=[
            ClassIoU(name, _or_none(iou[i]), _or_none(accuracy[i]), share=int(true[i]) / pixels)
            for i, name in enumerate(class_names)
        ],
        confusion=confusion.tolist(),
    )


def class_counts(confusion: Tensor) -> Tensor:
    """Pixels (K, K) by truth and prediction -> (3, K): of each class those that are right, true and predicted."""
    return torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])


def image_ious(counts: Tensor) -> Tensor:
    """Counts (N, 3, K) as in `score_masks` -> (N): each image's mean IoU over the classes in its truth or prediction.

    nan for an image without labelled pixels.
    """
    return _iou(counts).nanmean(-1)


def _iou(counts: Tensor) -> Tensor:
    """Right, true and predicted pixels (..., 3, K) -> IoU (..., K); nan where a class has no pixel."""
    right, true, predicted = counts.double().unbind(-2)
    return right / (true + predicted - right)


def _or_none(value: Tensor) -> float | None:
    return None if value.isnan() else float(value)


def _bootstrap(counts: Tensor, resamples: int) -> tuple[float, float]:
    """95 % interval of mIoU over images drawn anew with replacement."""
    if resamples == 0:
        return 0.0, 1.0
    N, _, K = counts.shape
    generator = torch.Generator().manual_seed(0)
    flat = counts.flatten(1).double()  # exact: counts of pixels are far below 2 ** 53
    values = []
    for chunk in torch.arange(resamples).split(max(_CHUNK // max(N, 3 * K), 1)):
        drawn = torch.randint(N, (len(chunk), N), generator=generator)
        times = torch.zeros(len(chunk), N, dtype=torch.double)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        values.append(_iou((times @ flat).unflatten(1, (3, K))).nanmean(1))
    # A resample of unlabelled images only has no score.
    low, high = torch.cat(values).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high
