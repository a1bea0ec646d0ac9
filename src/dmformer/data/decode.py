"""Any image file as the RGB picture that a person would see, its size for a detector; and which files there are."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from ..utils.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Files that are taken for images in folders and tars."""


class BrokenImageError(Exception):
    """A file that cannot be read as an image; says why."""


def decode(source: IO[bytes] | str | Image.Image, at_least: int | None = None) -> Image.Image:
    """Read an image as 8-bit RGB: grey, palette, CMYK and 16-bit are converted, EXIF rotation is applied.

    Transparent pixels are laid over white. 16-bit values are scaled to 8 bits, floating point from their own range.

    Args:
        source: A binary file, a path, or an image already opened.
        at_least: Shorter side in pixels that is enough: a JPEG of twice that or more is decoded at a fraction of its
            size, which saves most of the time on photos of many megapixels.

    Raises:
        BrokenImageError: For whatever keeps the file from being read, size bombs included.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        if at_least is not None:
            image.draft(None, _draft_size(image.size, at_least))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever they like on damaged input
        raise BrokenImageError(str(error) or type(error).__name__) from error


def _draft_size(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    scale = max(1.0, min(size) / (2 * at_least))
    return int(size[0] / scale), int(size[1] / scale)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F":
            low, high = float(values.min()), float(values.max())
            values = (values - low) / (high - low or 1.0) * 255
        elif image.mode != "I" or values.max() > 255:
            values = values / 257
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fitted_size(height: int, width: int, side: int, max_side: int) -> tuple[int, int]:
    """(height, width) in pixels whose shorter side is `side`, or less where the longer would exceed `max_side`."""
    scale = min(side / min(height, width), max_side / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def list_photos(photos: Sequence[str]) -> list[str]:
    """Files and the images in folders, sorted within each folder; "-" stays.

    Raises:
        UserError: A path that does not exist, or a folder without images.
    """
    names = []
    for photo in photos:
        path = Path(photo)
        if photo != "-" and not path.exists():
            raise UserError(f"{photo} does not exist: give image files, folders, or - for standard input.")
        if photo != "-" and path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{photo} holds no images ({', '.join(sorted(SUFFIXES))}).")
            names += found
        else:
            names.append(photo)
    return names
