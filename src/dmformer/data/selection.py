"""Rules for selecting objects from a detector's candidates."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Selection:
    """Selection rules.

    Attributes:
        threshold: Minimum score.
        per_level: Maximum number of candidates, (location, class) pairs, per level; None for all.
        iou: IoU threshold of non-maximum suppression per class; None disables it.
        most: Maximum number of objects per image.
    """

    threshold: float = 0.05
    per_level: int | None = 1000
    iou: float | None = 0.5
    most: int = 100


def candidates_by_level(
    height: int, width: int, strides: Sequence[int], per_place: int, queries: int | None
) -> list[int]:
    """Number of candidates on each level of a detector for images of this size; a model with queries has one level.

    Without strides, it has as many candidates as queries at every size.

    Args:
        height, width: Size of the images in pixels.
        strides: Strides of the levels in pixels; each map is half the size of the previous one, rounded up.
        per_place: Candidates per location of a level.
        queries: Maximum number of candidates of a model with queries, which has one per location; else None.
    """
    places = [-(-height // stride) * -(-width // stride) for stride in strides]
    if queries is None:
        return [per_place * n for n in places]
    return [min(queries, sum(places)) if strides else queries]
