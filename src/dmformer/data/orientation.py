"""How EXIF turns a photo, for annotations of the frame as it is stored."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange width and height."""
UPRIGHT = (2, 3, 4)
"""Orientations that mirror a photo, or turn it by half a turn."""


def orientation(path: Path) -> int:
    """EXIF's orientation of an image file, 1 if it has none or cannot be read."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it all to look for more
                return 1
            return int(image.getexif().get(0x0112) or 1)
    except Exception:  # decoders raise anything on damaged input
        return 1


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """An array (H, W) of the stored frame as a sideways photo is shown: (W, H), as `ImageOps.exif_transpose` does."""
    return {
        5: lambda: stored.T,
        6: lambda: np.rot90(stored, -1),
        7: lambda: stored[::-1, ::-1].T,
        8: lambda: np.rot90(stored),
    }[orientation]()


def turned_points(points: np.ndarray, orientation: int, height: int, width: int) -> np.ndarray:
    """Points (..., 2) as x, y in a stored frame of this size, as a sideways photo is shown."""
    x, y = points[..., 0], points[..., 1]
    right = height - y if orientation in (6, 7) else y
    down = width - x if orientation in (7, 8) else x
    return np.stack([right, down], -1)


def as_shown(stored: np.ndarray, photo: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask (H, W), turned if it is of the frame as stored of a sideways photo, else the same array.

    Args:
        stored: The mask.
        photo: The image file.
        size: Width and height of the photo as shown.
    """
    if stored.shape != size or size[0] == size[1] or (way := orientation(photo)) not in SIDEWAYS:
        return stored
    return np.ascontiguousarray(turned(stored, way))
