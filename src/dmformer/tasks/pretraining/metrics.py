"""The scores of a pretraining run."""

from dataclasses import dataclass

from ...utils.intervals import Score
from ..measures import Measure


@dataclass(frozen=True)
class SourceScore:
    """A labelled source: its number of classes, and the accuracy of its own classifier on its held-out photos."""

    name: str
    classes: int
    top1: Score


@dataclass(frozen=True)
class ProbeScore:
    """Accuracy of classifiers of frozen features on a labelled folder."""

    data: str
    classes: int
    train_images: int
    test_images: int
    linear: Score
    knn: Score


@dataclass(frozen=True)
class PretrainingScores:
    """The scores of a pretraining run; `agreement` is None without a teacher, `probe` without --probe."""

    count: int
    images_seen: int
    agreement: Score | None
    sources: list[SourceScore]
    probe: ProbeScore | None


def measures(scores: PretrainingScores) -> list[Measure]:
    """The measures that summarise scores: agreement with the teacher, then the probe's."""
    linear, knn = (scores.probe.linear, scores.probe.knn) if scores.probe else (None, None)
    return [
        Measure("agreement", "Agreement", scores.agreement, "first answer is the teacher's"),
        Measure("linear probe", "Linear probe", linear, "frozen features, a linear classifier"),
        Measure("nearest neighbours", "Nearest neighbours", knn, "frozen features, a vote of the 20 nearest"),
    ]
