"""How objects are chosen of what every place of an image answers."""

from collections.abc import Sequence
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


def candidates_by_level(
    height: int, width: int, strides: Sequence[int], per_place: int, queries: int | None
) -> list[int]:
    """Candidates of each level of a detector, for images of this size; of a model with queries, as one level.

    Args:
        height, width: Of the images in pixels.
        strides: Of the levels in pixels; each map is half of the one before, rounded up.
        per_place: Candidates of each place of a level.
        queries: Most candidates of a model that chooses among its places, each of which is one; else None.
    """
    places = [-(-height // stride) * -(-width // stride) for stride in strides]
    return [per_place * n for n in places] if queries is None else [min(queries, sum(places))]
