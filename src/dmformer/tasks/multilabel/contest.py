"""How multi-label classifiers are compared by `dmformer choose`: as classifiers, by another figure."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...utils.intervals import Score
from ..classification.contest import CONTEST as OF_CLASSIFIERS
from ..classification.contest import predicted

if TYPE_CHECKING:
    from .training import MultiLabelJob


def _scored(job: "MultiLabelJob", classifier: Any, split: str) -> Score:
    from .metrics import score

    found = predicted(job, classifier, split)
    return score(found.probabilities, job.labels[found.targets], job.class_names, classifier.thresholds).map


CONTEST = replace(OF_CLASSIFIERS, scored=_scored)
