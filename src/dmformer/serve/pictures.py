"""Images in responses: a segmenter's classes or a detector's boxes over the photo, as PNG data URIs."""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from ..data.detections import Detections
from ..data.palette import Palette
from ..report.drawing import IGNORED, draw_detections, named_overlay

LARGEST = 1280
"""Maximum longer side in pixels of an overlay; it is only for viewing."""


def data_uri(image: Image.Image) -> str:
    """An image as a PNG data URI."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def masked(
    photo: Image.Image, ids: np.ndarray, class_names: Sequence[str], palette: Palette, only: int | None = None
) -> Image.Image:
    """An image overlaid with its mask's colours, named if they are many, with a longer side of at most `LARGEST`.

    Args:
        ids: (H, W), uint8.
        only: The class to show; None shows all.
    """
    size = scaled(photo.size, LARGEST / max(photo.size))
    ids = resized_ids(ids, size)
    if only is not None:
        ids = np.where(ids == only, ids, np.uint8(IGNORED))
    return named_overlay(photo.resize(size), ids, class_names, palette)


def boxed(
    photo: Image.Image, found: Detections, class_names: Sequence[str], palette: Palette, only: int | None = None
) -> Image.Image:
    """An image with its objects' boxes, masks and names, with a longer side of at most `LARGEST`.

    Args:
        found: Objects in pixels of `photo`.
        only: The class to show; None shows all.
    """
    size = scaled(photo.size, LARGEST / max(photo.size))
    kept = np.ones(len(found), bool) if only is None else found.labels == only
    masks = None
    if found.masks is not None:
        masks = np.array([resized_ids(mask, size) for mask in found.masks[kept]], bool).reshape(-1, size[1], size[0])
    boxes = resized_boxes(found.boxes[kept], photo.size, size)
    shown = Detections(boxes, found.scores[kept], found.labels[kept], masks)
    return draw_detections(photo.resize(size), shown, class_names, palette)


def reduced(photo: Image.Image, pixels: int) -> Image.Image:
    """An image, reduced if it has more than `pixels` pixels."""
    size = scaled(photo.size, (pixels / (photo.width * photo.height)) ** 0.5)
    return photo if size == photo.size else photo.resize(size, reducing_gap=3.0)


def resized_ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W) resized to (width, height) by nearest neighbour."""
    rows, columns = (np.arange(n) * old // n for n, old in zip(size[::-1], ids.shape, strict=True))
    return ids[rows[:, None], columns]


def resized_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) rescaled from one image size (width, height) to another."""
    across, down = new[0] / old[0], new[1] / old[1]
    return boxes * np.array([across, down, across, down], np.float32)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height, reduced by `scale` but never enlarged."""
    scale = min(1.0, scale)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
