"""What differs between classifiers with one label and with several labels per photo."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..measures import Measure
from .classifier import Classifier, open_classifier
from .metrics import measures, score
from .report import Report, write_report


@dataclass(frozen=True)
class Kind:
    """One label or several labels per photo.

    Attributes:
        open: Opens a best/ folder.
        score: Scores probabilities (N, K) against targets (N) with a classifier's thresholds, if it has any; with or
            without intervals.
        measures: The measures that summarise scores.
        label: The label or labels of a target, as text.
        truth: Maps targets (N) to what a page shows as the truth: the classes (N), or rows of labels (N, K).
        write_report: Writes the page of a run.
        more: Entries of the ensemble's config.json that follow from the out-of-fold probabilities and targets.
    """

    open: Callable[[str], Classifier]
    score: Callable[[Tensor, Tensor, Classifier, bool], Any]
    measures: Callable[[Any], list[Measure]]
    label: Callable[[int], str]
    truth: Callable[[Tensor], Tensor]
    write_report: Callable[[Path, Report], None]
    more: Callable[[Tensor, Tensor], dict[str, Any]] = lambda probabilities, targets: {}


def one_label(class_names: Sequence[str]) -> Kind:
    """One label per photo, of these classes."""

    def scored(probabilities: Tensor, targets: Tensor, classifier: Classifier, intervals: bool) -> Any:
        return score(probabilities, targets, classifier.class_names, 1000 if intervals else 0)

    return Kind(open_classifier, scored, measures, class_names.__getitem__, lambda targets: targets, write_report)
