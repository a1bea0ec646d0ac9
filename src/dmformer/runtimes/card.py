"""Metadata of an exported file: everything needed to use it that is not in the graph."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from ..data.limits import Range
from ..data.selection import Selection, candidates_by_level
from ..utils.errors import UserError
from ..utils.typed import typed
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
            stated |= {name: json.loads(metadata[name]) for name in LATER if name in metadata}
            if stated.get("boxes") is not None:
                stated["boxes"] = {"any_size": False, "mask_side": None, **stated["boxes"]}
            hints = get_type_hints(cls)
            card = cls(**{name: typed(hints[name], value, name) for name, value in stated.items()})
            if _in_range(card) and (card.boxes is None or _boxes_in_range(card.boxes)) and WHOLE[card.task](card):
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


def _in_range(card: Card) -> bool:
    low, high = card.values or (0.0, 1.0)
    shares = [*(card.thresholds or ()), *(() if card.threshold is None else (card.threshold,))]
    return (
        len(card.mean) == len(card.std) == 3
        and all(-10 <= value <= 10 for value in (*card.mean, *card.std))
        and min(card.std) > 0
        and len(card.class_names) > 0
        and max(map(len, card.class_names)) <= LONGEST_NAME
        and (card.image_size is None or len(card.image_size) == 2)
        and all(map(_is_side, card.image_size or ()))
        and all(side is None or _is_side(side) for side in (card.resize, card.window))
        and all(0 <= value < 256 for colour in card.palette or () for value in colour)
        and 0 < card.crop_pct <= 1
        and card.crop_mode in ("center", "squash")
        and math.isfinite(low)
        and low <= high < math.inf
        and all(map(_is_share, shares))
        and card.tta in VIEWS
        and _is_count(card.members)
    )


def _boxes_in_range(boxes: Boxes) -> bool:
    chosen = boxes.selection
    return (
        all(abs(i) < LARGEST_ID for i in boxes.category_ids)
        and len(set(boxes.category_ids)) == len(boxes.category_ids)
        and _is_side(boxes.side)
        and _is_side(boxes.max_side)
        and (len(boxes.strides) > 0 or boxes.queries is not None)
        and len(boxes.strides) <= MOST_LEVELS
        and all(0 < stride <= LARGEST_STRIDE for stride in boxes.strides)
        and _is_count(boxes.per_place)
        and (boxes.queries is None or _is_count(boxes.queries))
        and (boxes.mask_side is None or 0 < boxes.mask_side <= LARGEST_MASK)
        and _is_share(chosen.threshold)
        and (chosen.per_level is None or _is_count(chosen.per_level))
        and (chosen.iou is None or _is_share(chosen.iou))
        and _is_count(chosen.most)
    )


def _is_side(value: int) -> bool:
    return 0 < value <= LARGEST_SIDE


def _is_count(value: int) -> bool:
    return 0 < value <= MOST_CANDIDATES


def _is_share(value: float) -> bool:
    return 0 <= value <= 1
