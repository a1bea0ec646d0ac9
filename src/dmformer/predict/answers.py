"""What is made of the answers for photos, by what the model's task answers with; a row in a table, or JSON."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .boxes import BoxPrediction, predict_boxes
from .classes import Prediction, predict
from .masks import MaskPrediction, predict_masks
from .tags import TagPrediction, predict_tags


@dataclass(frozen=True)
class Rows:
    """A way to list answers.

    Attributes:
        header: For the number of classes to tell.
        of: The rows of one photo, for that number.
    """

    header: Callable[[int], Sequence[str]]
    of: Callable[[Any, int], Sequence[Sequence[Any]]]


@dataclass(frozen=True)
class Answer:
    """One kind of answer.

    Attributes:
        doing: What is being done to the photos, in a word or two, for the progress.
        predict: From a source, photos, the number of classes to tell, and the task's own options, to what is made of
            each photo: with `name`, and `error` where it could not be read.
        table: The table, a row for each photo.
        narrow: The table where the other one does not fit.
        csv: The rows in CSV.
        told: Of one photo in JSON, besides its name.
    """

    doing: str
    predict: Callable[..., Iterator[Any]]
    table: Rows
    narrow: Rows
    csv: Rows
    told: Callable[[Any], dict[str, Any]]


def _masks(source: Any, photos: Sequence[str], top: int, **options: Any) -> Iterator[MaskPrediction]:
    return predict_masks(source, photos, **options)


def _tags(source: Any, photos: Sequence[str], top: int, **options: Any) -> Iterator[TagPrediction]:
    return predict_tags(source, photos, **options)


def _boxes(source: Any, photos: Sequence[str], top: int, **options: Any) -> Iterator[BoxPrediction]:
    return predict_boxes(source, photos, **options)


def _classes(found: Prediction, top: int) -> list[list[Any]]:
    cells = [cell for pair in found.classes for cell in pair]
    return [[found.name, *cells, *[""] * (2 * top - len(cells)), found.error or ""]]


def _each_class(found: Prediction, top: int) -> list[list[Any]]:
    return [[found.name, *pair] for pair in found.classes] or [[found.name, found.error, ""]]


def _labels(found: TagPrediction, top: int) -> list[list[Any]]:
    names, probabilities = [name for name, _ in found.labels], [f"{value:.3f}" for _, value in found.labels]
    return [[found.name, ";".join(names), ";".join(probabilities), found.error or ""]]


def _each_label(found: TagPrediction, top: int) -> list[list[Any]]:
    return [[found.name, *pair] for pair in found.labels] or [[found.name, found.error or "no label", ""]]


def _shares(found: MaskPrediction, top: int) -> list[list[Any]]:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found.shares[:top])
    return [[found.name, shares or found.error, found.overlay]]


def _surest(found: BoxPrediction, top: int) -> list[list[Any]]:
    surest = ", ".join(f"{each['class']} {each['score']:.1%}" for each in found.objects[:top])
    return [[found.name, found.error or len(found.objects), surest, found.picture]]


def _each_box(found: BoxPrediction, top: int) -> list[list[Any]]:
    rows = []
    for each in found.objects:
        left, upper, width, height = each["bbox"]
        edges = [f"{edge:.2f}" for edge in (left, upper, left + width, upper + height)]
        rows.append([found.name, each["class"], each["score"], *edges, ""])
    return rows or [[found.name, *[""] * 6, found.error or ""]]


_WIDE = Rows(
    lambda top: ["photo", *(f"{what} {i + 1}" for i in range(top) for what in ("class", "probability")), "error"],
    _classes,
)
_LABELS = Rows(lambda top: ["photo", "labels", "probabilities", "error"], _labels)
_SHARES = Rows(lambda top: ["photo", "largest classes", "overlay"], _shares)
_SUREST = Rows(lambda top: ["photo", "objects", "the surest", "picture"], _surest)

ANSWERS: dict[str, Answer] = {
    "labels": Answer(
        "classifying",
        predict,
        table=_WIDE,
        narrow=Rows(lambda top: ["photo", "class", "probability"], _each_class),
        csv=_WIDE,
        told=lambda found: {"classes": [{"class": c, "probability": v} for c, v in found.classes]},
    ),
    "tags": Answer(
        "finding labels",
        _tags,
        table=_LABELS,
        narrow=Rows(lambda top: ["photo", "label", "probability"], _each_label),
        csv=_LABELS,
        told=lambda found: {"labels": [{"class": c, "probability": v} for c, v in found.labels]},
    ),
    "masks": Answer(
        "segmenting",
        _masks,
        table=_SHARES,
        narrow=_SHARES,
        csv=_SHARES,
        told=lambda found: {"overlay": found.overlay, "mask": found.mask, "shares": dict(found.shares)},
    ),
    "boxes": Answer(
        "looking for objects",
        _boxes,
        table=_SUREST,
        narrow=_SUREST,
        csv=Rows(lambda top: ["photo", "class", "score", "left", "top", "right", "bottom", "error"], _each_box),
        told=lambda found: {"picture": found.picture, "objects": found.objects},
    ),
}
"""By the `answer` of a `Task`."""
