"""Photos of more than 8 bits: their pixel values, the range of values that counts as black to white, and 8-bit grey."""

from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image

from .limits import Range

NODATA_TAG, FORMAT_TAG, UNSIGNED = 42113, 339, 1
"""GDAL's TIFF tag with the value that means "no data"; TIFF's sample format, and its value for unsigned integers."""
NO_NUMBER = 1e30
"""Larger values, such as the largest float, mean that there is no measurement."""
FAR = 10
"""A single value this many times as far from the others as those are from each other is no measurement either."""
DARK = 64
"""If the high bytes of a 16-bit colour photo stay below this, it has 14 bits or fewer."""
SAMPLED = 256
"""Photos of a set that are looked at to find the range of the set."""
OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}
"""Pillow's raw modes keep the high byte of a 16-bit colour value; these read the low byte instead."""

GREY_ALPHA = "LA;16B"
"""Pillow's raw mode for grey with transparency, of both of which it keeps the high bytes alone."""


def is_deep(image: Image.Image) -> bool:
    """Whether an image, not yet loaded, has more than 8 bits per value."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or _raw_mode(image)[-3:] in OTHER_BYTE


def deep_values(image: Image.Image) -> np.ndarray | None:
    """Values of an image of more than 8 bits, not yet loaded: (H, W), or (H, W, C) for colour.

    None for 8 bits, and for colour with 16 significant bits, of which Pillow's high bytes are enough. What is no
    number, or marked as no data, is NaN.
    """
    if not is_deep(image):
        return None
    if image.mode in ("RGB", "RGBA"):
        return _colour_values(image)
    values = np.asarray(image)
    if image.mode == "I" and getattr(image, "tag_v2", {}).get(FORMAT_TAG) in (UNSIGNED, (UNSIGNED,)):
        values = values.view(np.uint32)  # Pillow reads them as signed
    values = values.astype(np.float64)
    values[~np.isfinite(values) | (np.abs(values) >= NO_NUMBER)] = np.nan
    if (nodata := _nodata(image)) is not None:
        values[values == nodata] = np.nan
    return values


def deep_array(pixels: np.ndarray) -> np.ndarray | None:
    """Values of an array of more than 8 bits, like `deep_values`: (H, W) of any numbers, (H, W, C) of 16 bits; None for
    the colours of which the high bytes are enough."""
    if pixels.ndim == 3 and pixels[..., :3].max() >= DARK * 256:
        return None
    values = pixels.astype(np.float64)
    values[~np.isfinite(values) | (np.abs(values) >= NO_NUMBER)] = np.nan
    return values


def _raw_mode(image: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words, for colour photos."""
    tiles: Any = getattr(image, "tile", None)
    if image.mode not in ("RGB", "RGBA") or not tiles:
        return ""
    arguments = tiles[0].args
    raw = arguments[0] if isinstance(arguments, tuple) else arguments
    return raw if isinstance(raw, str) and (raw.startswith(image.mode) or raw == GREY_ALPHA) else ""


def _colour_values(image: Any) -> np.ndarray | None:
    """(H, W, C): high and low bytes are read one after the other."""
    raw = _raw_mode(image)
    image.fp.seek(0)
    if raw == GREY_ALPHA:
        return _grey_and_alpha(image)
    low = Image.open(image.fp, formats=[image.format])
    low.tile = [tile._replace(args=_with_raw(tile.args, raw[:-3] + OTHER_BYTE[raw[-3:]])) for tile in low.tile]
    low_bytes = np.asarray(low)
    high_bytes = np.asarray(image)
    if high_bytes[..., :3].max() >= DARK:
        return None
    return high_bytes * 256.0 + low_bytes


def _grey_and_alpha(image: Any) -> np.ndarray:
    """(H, W, 4): the four bytes of a pixel are read as four channels."""
    stored = Image.open(image.fp, formats=[image.format])
    stored.tile = [tile._replace(args=_with_raw(tile.args, "RGBA")) for tile in stored.tile]
    pixels = np.asarray(stored).astype(np.float64)
    grey, alpha = pixels[..., 0] * 256 + pixels[..., 1], pixels[..., 2] * 256 + pixels[..., 3]
    return np.stack([grey, grey, grey, alpha], -1)


def _with_raw(arguments: Any, raw: str) -> Any:
    return (raw, *arguments[1:]) if isinstance(arguments, tuple) else raw


def _nodata(image: Image.Image) -> float | None:
    try:
        return float(str(getattr(image, "tag_v2", {}).get(NODATA_TAG)).strip("\0 "))
    except ValueError:
        return None


def extremes(values: np.ndarray) -> Range | None:
    """Lowest and highest value of an image, without NaN and without a single value far from all others; None if there
    are no numbers."""
    numbers = values[np.isfinite(values)]
    if not numbers.size:
        return None
    low, high = float(numbers.min()), float(numbers.max())
    rest = numbers[(numbers > low) & (numbers < high)]
    if rest.size:
        inner_low, inner_high = float(rest.min()), float(rest.max())
        spread = FAR * (inner_high - inner_low)
        if spread and inner_low - low > spread:
            low = inner_low
        if spread and high - inner_high > spread:
            high = inner_high
    return low, high


def range_of(low: float, high: float, whole: bool) -> Range:
    """The range that keeps the contrast of values from `low` to `high`.

    For whole numbers of 8, 10, 12, 14, 16 or 32 bits it is the range of the bits, as long as the values fill a quarter
    of it; else it is `low` to `high`.
    """
    if whole and low >= 0:
        white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16, 32, 64) if high < 2**bits)
        if white == 255 or low == high or high - low >= white / 4:
            return 0.0, float(white)
    return low, high


def own_range(values: np.ndarray) -> Range:
    """The range of one image's values."""
    found = extremes(values)
    return range_of(*found, whole=_whole(values)) if found else (0.0, 1.0)


def set_range(count: int, opened: Callable[[int], IO[bytes]]) -> Range | None:
    """The range of a set of photos, from some of them, evenly spread; None if they all have 8 bits.

    Args:
        count: Number of photos.
        opened: Opens the file of a photo by its number.
    """
    found, whole = [], True
    for i in range(min(count, SAMPLED)):
        try:
            with opened(i * count // min(count, SAMPLED)) as file:
                values = deep_values(Image.open(file))
        except Exception:  # damaged photos are found and told when they are read
            continue
        if values is not None and (own := extremes(values)) is not None:
            found.append(own)
            whole = whole and _whole(values)
    return range_of(min(low for low, _ in found), max(high for _, high in found), whole) if found else None


def _whole(values: np.ndarray) -> bool:
    numbers = values[np.isfinite(values)]
    return bool((numbers == numbers.round()).all())


def to_8_bits(values: np.ndarray, shown: Range) -> np.ndarray:
    """Values of any shape to 0 (black) to 255 (white), uint8; NaN is black."""
    low, high = shown
    scaled = (values - low) / ((high - low) or 1.0) * 255
    return np.nan_to_num(scaled, nan=0.0).round().clip(0, 255).astype(np.uint8)


def told(shown: Range) -> str:
    """A set's range, for the user."""
    return f"photos of more than 8 bits: values from {shown[0]:g} to {shown[1]:g} are read as black to white"
