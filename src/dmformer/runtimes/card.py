"""Metadata of an exported file: everything needed to use it that is not in the graph."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..data.limits import Range
from ..data.selection import Selection, candidates_by_level
from ..utils.errors import UserError
from ..utils.views import VIEWS

RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}
"""Runtimes of the files that are used without PyTorch, by suffix."""

SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "pt2": (".pt2",), "aoti": (".aoti.pt2",)}
"""Suffixes of the files of each format that `dmformer export` writes; the first is that of the file to open."""

Colour = tuple[int, int, int]

LARGEST_SIDE = 16384
"""Maximum side in pixels that a file may ask images to be resized to."""
LONGEST_NAME, MOST_MASKED = 1000, 255
"""Maximum length of a class name; maximum number of classes of a segmenter, whose masks have 8 bits."""
LATER = ("boxes", "values", "thresholds", "tta", "members", "threshold")
"""Attributes that older files do not have."""
MOST_LEVELS, LARGEST_STRIDE, MOST_CANDIDATES, LARGEST_ID, LARGEST_MASK = 16, 1024, 10**6, 2**53, 1024
"""Maximum levels and stride of a detector's pyramid, candidates and objects per image, ids in JSON, and side of a
candidate's mask."""


@dataclass(frozen=True)
class Boxes:
    """From an image to a detector's input, and from its candidates to objects.

    Attributes:
        category_ids: Annotation ids of the K classes.
        side, max_side: Shorter side in pixels that images are resized to, and maximum of the longer side.
        filled: Whether images are padded with zeros to multiples of 32. If not, they are resized to the nearest
            multiples, for a model that would treat padding as part of the image.
        strides, per_place, queries: See `candidates_by_level`.
        any_size: Whether the graph pads images of any size itself; boxes are then fractions of the image. Missing in
            older files, which do not.
        mask_side: Side of the masks that follow the scores of each candidate; None, and missing in older files, for
            none.
    """

    category_ids: list[int]
    side: int
    max_side: int
    filled: bool
    strides: list[int]
    per_place: int
    queries: int | None
    selection: Selection
    any_size: bool = False
    mask_side: int | None = None

    def levels(self, height: int, width: int) -> list[int]:
        """Number of candidates on each level for images of this size."""
        return candidates_by_level(height, width, self.strides, self.per_place, self.queries)


@dataclass(frozen=True)
class Card:
    """Metadata of an exported model.

    Attributes:
        task: "classification", "multilabel", "segmentation" or "detection".
        architecture: timm's name of the model.
        mean, std: Mean and standard deviation of the red, green and blue values, 0 to 1.
        image_size: Height and width in pixels of a classifier's images, or of a segmenter built for a fixed size; else
            None.
        crop_pct, crop_mode, interpolation: Preprocessing of a classifier: fraction of the resized image that is kept,
            "center" or "squash", and name of the filter.
        resize: Shorter side that a segmenter's images are resized to; None keeps their size.
        window: Side of a segmenter's sliding window; None segments whole images.
        palette: K colours of a segmenter or a detector.
        reduce_zero_label, ignore_index: How the training masks stored ids.
        preprocessing: Whether the graph resizes, crops and normalises images (B, H, W, 3), uint8, itself, instead of
            taking preprocessed images (B, 3, H, W).
        precision: "float32" or "int8".
        version: Version of this package that wrote the file.
        boxes: Settings of a detector; missing in files from before detectors were supported.
        values: Values shown as black and white in images of more than 8 bits, as in training; missing in older files.
        thresholds: K probabilities of a multi-label classifier: a class applies if the sigmoid of its output is at
            least its threshold. None for other models, and missing in older files.
        tta: Test-time augmentation, a key of `VIEWS`: in a classifier's graph, or around a detector's; missing in older
            files, which have none.
        members: Number of models of an ensemble in the graph; missing in older files, which hold one.
        threshold: Minimum score of a detector's objects, unless the caller gives one; missing in older files.
    """

    name: str
    task: str
    architecture: str
    class_names: list[str]
    mean: list[float]
    std: list[float]
    image_size: list[int] | None
    crop_pct: float = 1.0
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    resize: int | None = None
    window: int | None = None
    palette: list[Colour] | None = None
    reduce_zero_label: bool = False
    ignore_index: list[int] | None = None
    preprocessing: bool = False
    precision: str = "float32"
    version: str = ""
    boxes: Boxes | None = None
    values: Range | None = None
    thresholds: list[float] | None = None
    tta: str = "none"
    members: int = 1
    threshold: float | None = None

    def to_metadata(self) -> dict[str, str]:
        """Each attribute as JSON, by name."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: str) -> "Card":
        """A card written by `to_metadata`; UserError if the file's metadata are anything else."""
        try:
            stated = {field.name: json.loads(metadata[field.name]) for field in fields(cls) if field.name not in LATER}
            later = (json.loads(metadata.get(name, "null")) for name in LATER)
            boxes, values, thresholds, tta, members, threshold = later
            _thresholds(None if threshold is None else [threshold])
            card = cls(
                **{name: _checked(name, value) for name, value in stated.items()},
                boxes=_boxes(boxes),
                values=_values(values),
                thresholds=_thresholds(thresholds),
                tta=_tta(tta),
                members=_members(members),
                threshold=threshold,
            )
            if WHOLE[card.task](card):
                return card
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            pass
        raise UserError(f"{file} was not written by `dmformer export`, or is damaged: its metadata do not describe it.")


def is_exported(source: str) -> bool:
    """Whether a source is a file from `dmformer export` for a runtime, judged by its suffix."""
    return not source.startswith("hf-hub:") and Path(source).suffix.lower() in RUNTIMES


def _of_classes(card: Card) -> bool:
    sides = card.image_size or (LARGEST_SIDE,)
    return card.boxes is None and max(sides) / card.crop_pct < LARGEST_SIDE


def _of_labels(card: Card) -> bool:
    return _of_classes(card) and len(card.thresholds or ()) == len(card.class_names)


def _of_masks(card: Card) -> bool:
    return card.boxes is None and len(card.palette or ()) == len(card.class_names) <= MOST_MASKED


def _of_boxes(card: Card) -> bool:
    ids, plain = card.boxes and card.boxes.category_ids, card.image_size is None and not card.preprocessing
    return plain and ids is not None and len(card.palette or ()) == len(ids) == len(card.class_names)


WHOLE: dict[str, Callable[[Card], bool]] = {
    "classification": _of_classes,
    "multilabel": _of_labels,
    "segmentation": _of_masks,
    "detection": _of_boxes,
}
"""Whether the attributes go together, by the tasks that files can be for."""


def _boxes(value: Any) -> Boxes | None:
    """The `Boxes` of a card, else ValueError."""
    if value is None:
        return None
    value = {"any_size": False, "mask_side": None, **value}
    _check_names(value, Boxes)
    _check_names(chosen := value["selection"], Selection)
    good = (
        type(value["category_ids"]) is list
        and all(type(i) is int and abs(i) < LARGEST_ID for i in value["category_ids"])
        and len(set(value["category_ids"])) == len(value["category_ids"])
        and _is_side(value["side"])
        and _is_side(value["max_side"])
        and type(value["filled"]) is bool
        and type(value["strides"]) is list
        and (len(value["strides"]) > 0 or value["queries"] is not None)
        and len(value["strides"]) <= MOST_LEVELS
        and all(type(stride) is int and 0 < stride <= LARGEST_STRIDE for stride in value["strides"])
        and _is_count(value["per_place"])
        and (value["queries"] is None or _is_count(value["queries"]))
        and type(value["any_size"]) is bool
        and (value["mask_side"] is None or (type(value["mask_side"]) is int and 0 < value["mask_side"] <= LARGEST_MASK))
        and _is_share(chosen["threshold"])
        and (chosen["per_level"] is None or _is_count(chosen["per_level"]))
        and (chosen["iou"] is None or _is_share(chosen["iou"]))
        and _is_count(chosen["most"])
    )
    if not good:
        raise ValueError("boxes")
    return Boxes(**{**value, "selection": Selection(**chosen)})


def _values(value: Any) -> Range | None:
    """The `values` of a card, else ValueError."""
    if value is None:
        return None
    low, high = value
    if not all(type(v) in (int, float) and math.isfinite(v) for v in value) or low > high:
        raise ValueError("values")
    return float(low), float(high)


def _thresholds(value: Any) -> list[float] | None:
    """The `thresholds` of a card, else ValueError."""
    if value is not None and not (type(value) is list and all(map(_is_share, value))):
        raise ValueError("thresholds")
    return value


def _tta(value: Any) -> str:
    """The `tta` of a card, else ValueError."""
    if value not in (None, *VIEWS):
        raise ValueError("tta")
    return value or "none"


def _members(value: Any) -> int:
    """The `members` of a card, else ValueError."""
    if value is not None and not _is_count(value):
        raise ValueError("members")
    return value or 1


def _check_names(value: Any, kind: type) -> None:
    if type(value) is not dict or set(value) != {field.name for field in fields(kind)}:
        raise ValueError(kind.__name__)


def _checked(name: str, value: Any) -> Any:
    """The value if it is valid for the attribute, else ValueError: files are untrusted."""
    if value is None:
        good = name in ("image_size", "resize", "window", "palette", "ignore_index")
    elif name in ("mean", "std"):
        good = len(value) == 3 and all(
            type(v) in (int, float) and -10 <= v <= 10 and (v > 0 or name == "mean") for v in value
        )
    elif name == "class_names":
        good = type(value) is list and value and all(type(v) is str and len(v) <= LONGEST_NAME for v in value)
    elif name == "image_size":
        good = len(value) == 2 and all(_is_side(v) for v in value)
    elif name in ("resize", "window"):
        good = _is_side(value)
    elif name == "palette":
        good = all(len(colour) == 3 and all(type(x) is int and 0 <= x < 256 for x in colour) for colour in value)
    elif name == "ignore_index":
        good = all(type(v) is int for v in value)
    elif name == "crop_pct":
        good = type(value) in (int, float) and 0 < value <= 1
    elif name in ("preprocessing", "reduce_zero_label"):
        good = type(value) is bool
    else:
        good = type(value) is str and value in _CHOICES.get(name, (value,))
    if not good:
        raise ValueError(name)
    return [tuple(colour) for colour in value] if name == "palette" and value else value


_CHOICES = {"task": tuple(WHOLE), "crop_mode": ("center", "squash")}


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIDE


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MOST_CANDIDATES


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
