"""Pretraining: what a run comes to."""

from dataclasses import asdict, dataclass
from typing import Any

from ...utils.intervals import Score


@dataclass(frozen=True)
class SourceScore:
    """Of a labelled source: its classes, its held-out photos, and the share that its own classifier tells."""

    name: str
    classes: int
    top1: Score


@dataclass(frozen=True)
class ProbeScore:
    """Frozen features on a labelled folder."""

    data: str
    classes: int
    train_images: int
    test_images: int
    linear: Score
    knn: Score


@dataclass(frozen=True)
class PretrainingScores:
    """What a pretraining run comes to. `agreement` is None without a teacher, `probe` without a folder for it."""

    count: int
    images_seen: int
    agreement: Score | None
    sources: list[SourceScore]
    probe: ProbeScore | None

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and dictionaries, for JSON."""
        return asdict(self)
