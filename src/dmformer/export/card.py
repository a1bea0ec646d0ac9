"""What an exported file says of itself: whatever is needed to use it that its graph does not hold."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UserError

RUNTIMES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}
"""Files that are used without PyTorch, by suffix, and what runs them."""

Colour = tuple[int, int, int]

LARGEST_SIDE = 16384
"""In pixels, that a file may ask images to be brought to."""
LONGEST_NAME, MOST_MASKED = 1000, 255
"""Letters of a class's name; classes of a segmenter, whose masks have 8 bits."""


@dataclass(frozen=True)
class Card:
    """Of an exported model.

    Attributes:
        name: The run's.
        task: "classification" or "segmentation".
        architecture: The model's, by timm's name.
        class_names: K names.
        mean, std: Of the red, green and blue values, 0 to 1.
        image_size: Height and width in pixels of a classifier's images, and of the only ones that a segmenter of a
            fixed size takes; else None.
        crop_pct, crop_mode, interpolation: Of a classifier's images: the share of the resized photo that is kept,
            "center" or "squash", and the name of the filter.
        resize: Shorter side that a segmenter's photos are brought to; None keeps their size.
        window: Side of its sliding window; None segments photos whole.
        palette: K colours of a segmenter.
        reduce_zero_label, ignore_index: How the masks that it was trained on store ids.
        preprocessing: Whether the graph itself resizes, crops and normalises photos (B, H, W, 3) of 8 bits, instead of
            taking images (B, 3, H, W) that are.
        precision: "float32" or "int8".
        version: Of this package, which wrote it.
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

    def to_metadata(self) -> dict[str, str]:
        """Each attribute as JSON, under its name."""
        return {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], file: str) -> "Card":
        """A card that `to_metadata` wrote; UserError for a file whose metadata are anything else."""
        try:
            values = {field.name: json.loads(metadata[field.name]) for field in fields(cls)}
            card = cls(**{name: _checked(name, value) for name, value in values.items()})
            if card.task == "classification" and max(card.image_size or (LARGEST_SIDE,)) / card.crop_pct < LARGEST_SIDE:
                return card
            if card.task == "segmentation" and len(card.palette or ()) == len(card.class_names) <= MOST_MASKED:
                return card
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            pass
        raise UserError(f"{file} was not written by `dmformer export`, or is damaged: its metadata do not describe it.")


def is_exported(source: str) -> bool:
    """Whether a source is a file that `dmformer export` wrote for a runtime, by its suffix."""
    return not source.startswith("hf-hub:") and Path(source).suffix.lower() in RUNTIMES


def _checked(name: str, value: Any) -> Any:
    """A value of the kind that the attribute has, else ValueError: files may come from anyone."""
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


_CHOICES = {"task": ("classification", "segmentation"), "crop_mode": ("center", "squash")}


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIDE
