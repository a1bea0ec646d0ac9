"""Classification: scores of a set of predictions, with their confidence intervals."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from ...utils.intervals import Score, wilson
from ..measures import Measure


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class, as shares; `count` images truly of it."""

    name: str
    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True)
class Scores:
    """What `score` returns. `auroc` is None where a class has no image; `top5` where there are 5 classes or fewer."""

    count: int
    top1: Score
    top5: Score | None
    balanced_accuracy: Score
    macro_f1: Score
    auroc: float | None
    calibration_error: float
    classes: list[ClassScore]
    confusion: list[list[int]]
    """confusion[truth][prediction], in images."""


def measures(scores: Scores) -> list[Measure]:
    """The measures that summarise scores."""
    auroc = None if scores.auroc is None else f"{scores.auroc:.3f}"
    return [
        Measure("top-1", "Top-1 accuracy", scores.top1, "first answer right"),
        Measure("top-5", "Top-5 accuracy", scores.top5, "right one among five answers"),
        Measure("balanced accuracy", "Balanced accuracy", scores.balanced_accuracy, "every class counts the same"),
        Measure("macro F1", "Macro F1", scores.macro_f1, "precision and recall, mean of classes"),
        Measure("AUROC", "AUROC", auroc, "1 ranks perfectly, 0.5 is chance"),
        Measure("", "Calibration error", scores.calibration_error, "confidence against truth, 0 is best"),
    ]


def score(probabilities: Tensor, targets: Tensor, class_names: list[str], resamples: int = 1000) -> Scores:
    """Score predictions.

    Args:
        probabilities: (N, K), rows that sum to 1.
        targets: (N), class indices from 0 to K - 1.
        resamples: Of the bootstrap; 0 for none, when the intervals are as wide as can be.

    Top-1 and top-5 carry Wilson's interval, balanced accuracy and macro F1 a bootstrap's of the confusion matrix
    (seeded). Balanced accuracy is the mean recall, macro F1 the mean F1, both over the classes that have images;
    AUROC is one class against the rest, averaged, and the positive (second) class's for two; the calibration error is
    the expected one with 15 bins.
    """
    if len(targets) == 0:
        raise ValueError("There is no image to score.")
    K = len(class_names)
    predictions = probabilities.argmax(1)
    confusion = multiclass_confusion_matrix(predictions, targets, num_classes=K)
    precision, recall, f1, support = _per_class(confusion.diagonal(), confusion.sum(1), confusion.sum(0))
    top1 = int(confusion.diagonal().sum())
    top5 = int((probabilities.topk(5).indices == targets[:, None]).sum()) if K > 5 else None
    balanced, macro_f1 = _bootstrap(predictions, targets, K, resamples)
    present = bool((support > 0).all())
    return Scores(
        count=len(targets),
        top1=wilson(top1, len(targets)),
        top5=None if top5 is None else wilson(top5, len(targets)),
        balanced_accuracy=Score(_mean_over_present(recall, support), *balanced),
        macro_f1=Score(_mean_over_present(f1, support), *macro_f1),
        auroc=float(multiclass_auroc(probabilities, targets, num_classes=K)) if present else None,
        calibration_error=float(multiclass_calibration_error(probabilities, targets, num_classes=K, n_bins=15)),
        classes=[
            ClassScore(name, *(float(v[i]) for v in (precision, recall, f1)), count=int(support[i]))
            for i, name in enumerate(class_names)
        ],
        confusion=confusion.tolist(),
    )


def _per_class(right: Tensor, support: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts, each (K) -> precision, recall, F1 and support, each (K); 0 where undefined."""
    return (
        right / predicted.clamp(min=1),
        right / support.clamp(min=1),
        2 * right / (support + predicted).clamp(min=1),
        support,
    )


def _mean_over_present(values: Tensor, support: Tensor) -> float:
    return float(values[support > 0].mean())


def _bootstrap(predictions: Tensor, targets: Tensor, K: int, resamples: int) -> list[tuple[float, float]]:
    """95 % intervals of balanced accuracy and of macro F1 over images drawn anew with replacement."""
    generator = torch.Generator().manual_seed(0)
    n = len(targets)
    values = []
    for _ in range(resamples):
        drawn = torch.randint(n, (n,), generator=generator)
        t, p = targets[drawn], predictions[drawn]
        counts = (torch.bincount(v, minlength=K) for v in (t[t == p], t, p))
        _, recall, f1, support = _per_class(*counts)
        values.append((_mean_over_present(recall, support), _mean_over_present(f1, support)))
    if not values:
        return [(0.0, 1.0), (0.0, 1.0)]
    low, high = torch.quantile(torch.tensor(values), torch.tensor([0.025, 0.975]), dim=0).tolist()
    return list(zip(low, high, strict=True))
