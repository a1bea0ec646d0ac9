"""What is made of the answers for photos, by what the model's task answers with; a row in a table, or JSON."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .boxes import BoxPrediction, predict_boxes
from .classes import Prediction, predict
from .masks import MaskPrediction, predict_masks


@dataclass(frozen=True)
class Answer:
    """One kind of answer.

    Attributes:
        doing: What is being done to the photos, in a word or two, for the progress.
        predict: From a source, photos, the number of classes to tell, and the task's own options, to what is made of
            each photo: with `name`, and `error` where it could not be read.
        header: Of the table, for that number of classes.
        row: Of one photo in the table, for that number.
        told: Of one photo in JSON, besides its name.
        whole: Whether the table's lines may be longer than those of a page.
    """

    doing: str
    predict: Callable[..., Iterator[Any]]
    header: Callable[[int], Sequence[str]]
    row: Callable[[Any, int], Sequence[Any]]
    told: Callable[[Any], dict[str, Any]]
    whole: bool = True


def _masks(source: Any, photos: Sequence[str], top: int, **options: Any) -> Iterator[MaskPrediction]:
    return predict_masks(source, photos, **options)


def _boxes(source: Any, photos: Sequence[str], top: int, **options: Any) -> Iterator[BoxPrediction]:
    return predict_boxes(source, photos, **options)


def _class_header(top: int) -> list[str]:
    return ["photo", *(f"{what} {i + 1}" for i in range(top) for what in ("class", "probability")), "error"]


def _class_row(found: Prediction, top: int) -> list[Any]:
    cells = [cell for pair in found.classes for cell in pair]
    return [found.name, *cells, *[""] * (2 * top - len(cells)), found.error or ""]


def _mask_row(found: MaskPrediction, top: int) -> list[Any]:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.shares[:top])
    return [found.name, shares or found.error, found.overlay]


def _box_row(found: BoxPrediction, top: int) -> list[Any]:
    surest = ", ".join(f"{each['class']} {each['score']:.1%}" for each in found.objects[:top])
    return [found.name, found.error or len(found.objects), surest, found.picture]


ANSWERS: dict[str, Answer] = {
    "labels": Answer(
        "classifying",
        predict,
        _class_header,
        _class_row,
        lambda found: {"classes": [{"class": c, "probability": v} for c, v in found.classes]},
        whole=False,
    ),
    "masks": Answer(
        "segmenting",
        _masks,
        lambda top: ["photo", "largest classes", "overlay"],
        _mask_row,
        lambda found: {"overlay": found.overlay, "mask": found.mask, "shares": dict(found.shares)},
    ),
    "boxes": Answer(
        "looking for objects",
        _boxes,
        lambda top: ["photo", "objects", "the surest", "picture"],
        _box_row,
        lambda found: {"picture": found.picture, "objects": found.objects},
    ),
}
"""By the `answer` of a `Task`."""
