"""Several labels per photo: scores of a set of predictions with their intervals, and the choice of thresholds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.intervals import Score, wilson
from ..measures import Measure

FEWEST = 5
"""Positives that a class needs for a threshold of its own."""
DEFAULT = 0.5
"""The threshold of other classes."""


@dataclass(frozen=True)
class LabelScore:
    """Scores of one class, as fractions; `count` images truly of it. Without any, `ap` and `recall` are None."""

    name: str
    ap: float | None
    precision: float
    recall: float | None
    f1: float
    threshold: float
    count: int


@dataclass(frozen=True)
class MultiLabelScores:
    """What `score` returns."""

    count: int
    map: Score
    macro_f1: Score
    micro_f1: Score
    exact: Score
    """Photos of which every label is right."""
    classes: list[LabelScore]


def measures(scores: MultiLabelScores) -> list[Measure]:
    """The measures that summarise scores."""
    return [
        Measure("mAP", "Mean average precision", scores.map, "mean of classes, at every threshold"),
        Measure("macro F1", "Macro F1", scores.macro_f1, "precision and recall, mean of classes"),
        Measure("micro F1", "Micro F1", scores.micro_f1, "precision and recall of all labels together"),
        Measure("all labels right", "All labels right", scores.exact, "photos without a single wrong label"),
    ]


def score(
    probabilities: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    thresholds: Sequence[float],
    resamples: int = 200,
) -> MultiLabelScores:
    """Score predictions.

    Args:
        probabilities: (N, K), each from 0 to 1.
        labels: (N, K), 0 or 1.
        thresholds: (K), a class applies from this probability on.
        resamples: Of the bootstrap; 0 for none, when the intervals are as wide as can be.

    mAP and macro F1 are means over the classes that have images; micro F1 counts all labels of all images together.
    These three carry a bootstrap's interval (seeded), the images with every label right Wilson's.

    Raises:
        ValueError: No image has a label.
    """
    truth = labels.bool()
    present = truth.any(0)
    if not present.any():
        raise ValueError("There is no label to score.")
    ap = average_precisions(probabilities, truth)
    chosen = probabilities >= torch.tensor(thresholds)
    precision, recall, f1 = _of_counts(*_counts(chosen, truth))
    low, high = _bootstrap(probabilities, chosen, truth, resamples)
    macro, micro = _f1s(chosen, truth, present)
    return MultiLabelScores(
        count=len(labels),
        map=Score(float(ap[present].mean()), low[0], high[0]),
        macro_f1=Score(macro, low[1], high[1]),
        micro_f1=Score(micro, low[2], high[2]),
        exact=wilson(int((chosen == truth).all(1).sum()), len(labels)),
        classes=[
            LabelScore(
                name,
                float(ap[k]) if present[k] else None,
                float(precision[k]),
                float(recall[k]) if present[k] else None,
                float(f1[k]),
                thresholds[k],
                int(truth[:, k].sum()),
            )
            for k, name in enumerate(class_names)
        ],
    )


def best_thresholds(probabilities: Tensor, labels: Tensor) -> tuple[float, ...]:
    """(N, K), (N, K) -> K thresholds with the highest F1 of each class, halfway between two probabilities.

    A class with fewer than `FEWEST` positives keeps `DEFAULT`: its best threshold would be an accident.
    """
    values, order = probabilities.double().sort(0, descending=True)
    right = labels.double().gather(0, order).cumsum(0)
    positives = labels.double().sum(0)
    f1 = 2 * right / (torch.arange(1, len(labels) + 1)[:, None] + positives)
    following = torch.cat([values[1:], torch.zeros(1, values.shape[1])])
    f1[values == following] = -1.0  # no threshold is between equal probabilities
    best = f1.argmax(0, keepdim=True)
    middle = ((values + following) / 2).gather(0, best)[0]
    return tuple(torch.where(positives >= FEWEST, middle, DEFAULT).tolist())


def _counts(chosen: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right, chosen and true labels by class, each (K)."""
    return (chosen & truth).sum(0), chosen.sum(0), truth.sum(0)


def _of_counts(right: Tensor, chosen: Tensor, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1; 0 where undefined."""
    return right / chosen.clamp(min=1), right / true.clamp(min=1), 2 * right / (chosen + true).clamp(min=1)


def _f1s(chosen: Tensor, truth: Tensor, present: Tensor) -> tuple[float, float]:
    """Macro and micro F1."""
    counts = _counts(chosen, truth)
    each = _of_counts(*counts)[2]
    together = _of_counts(*(count.sum() for count in counts))[2]
    return float(each[present].mean()), float(together)


def average_precisions(probabilities: Tensor, truth: Tensor) -> Tensor:
    """(N, K), (N, K) -> (K), the mean precision at the positives of each class; nan for a class without any.

    Equal probabilities are one threshold: the precision at each of them is that of the last.
    """
    values, order = probabilities.sort(0, descending=True)
    ranked = truth.gather(0, order).float()
    places = torch.arange(len(values))[:, None]
    precision = ranked.cumsum(0) / (places + 1)
    ends = torch.cat([values[1:] != values[:-1], torch.ones(1, values.shape[1], dtype=torch.bool)])
    last = torch.where(ends, places, len(values)).flip(0).cummin(0).values.flip(0)
    return (precision.gather(0, last) * ranked).sum(0) / ranked.sum(0)


def _bootstrap(probabilities: Tensor, chosen: Tensor, truth: Tensor, resamples: int) -> tuple[list[float], list[float]]:
    """Ends of the 95 % intervals of mAP, macro F1 and micro F1 over images drawn anew with replacement."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(resamples):
        drawn = torch.randint(len(truth), (len(truth),), generator=generator)
        t = truth[drawn]
        present = t.any(0)
        if present.any():
            ap = float(average_precisions(probabilities[drawn], t)[present].mean())
            values.append((ap, *_f1s(chosen[drawn], t, present)))
    if not values:
        return [0.0] * 3, [1.0] * 3
    low, high = torch.quantile(torch.tensor(values), torch.tensor([0.025, 0.975]), dim=0).tolist()
    return low, high
