"""How objects are chosen of what every place of an image answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """How objects are chosen.

    Attributes:
        threshold: Least score.
        per_level: Most candidates, pairs of a place and a class, of each level; None for all.
        iou: Overlap from which the less sure one of two objects of a class is dropped; None for no such rule.
        most: Objects of an image.
    """

    threshold: float = 0.05
    per_level: int | None = 1000
    iou: float | None = 0.5
    most: int = 100
