"""Decode image files to upright RGB, compute a detector's image size, and list image files."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from ..utils.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""Suffixes of files that count as images in folders and tar archives."""


class BrokenImageError(Exception):
    """A file cannot be read as an image; the message says why."""


def decode(source: IO[bytes] | str | Image.Image, at_least: int | None = None) -> Image.Image:
    """Read an image as 8-bit RGB: grey, palette, CMYK and 16-bit are converted, EXIF rotation is applied.

    Transparent pixels are blended onto white. 16-bit values are scaled to 8 bits; floating-point values are scaled from
    their range.

    Args:
        source: A binary file, a path, or an open image.
        at_least: Minimum shorter side in pixels. A JPEG of at least twice that size is decoded at a fraction of its
            size, which saves most of the time on large images.

    Raises:
        BrokenImageError: The file cannot be read for any reason, including decompression bombs.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        if at_least is not None:
            image.draft(None, _draft_size(image.size, at_least))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise arbitrary errors on damaged input
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
    """(height, width) in pixels with the shorter side `side`, or less if the longer side would exceed `max_side`."""
    scale = min(side / min(height, width), max_side / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def list_photos(photos: Sequence[str]) -> list[str]:
    """The given files and the images in the given folders, sorted within each folder; "-" is kept.

    Raises:
        UserError: A path does not exist, or a folder contains no images.
    """
    names = []
    for photo in photos:
        path = Path(photo)
        if photo != "-" and not path.exists():
            raise UserError(f"{photo} does not exist: give image files, folders, or - for standard input.")
        if photo != "-" and path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{photo} contains no images ({', '.join(sorted(SUFFIXES))}).")
            names += found
        else:
            names.append(photo)
    return names
