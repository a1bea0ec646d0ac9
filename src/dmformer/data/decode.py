"""Decode image files to upright 8-bit RGB, and compute a detector's image size."""

import contextlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..utils.extras import needs
from .limits import LONGEST, MAX_PIXELS, Range
from .values import deep_array, deep_values, own_range, to_8_bits

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit refuses panoramas; `open_image` has another one


POINTER = b"version https://git-lfs"
"""How the small file begins that Git keeps instead of a large one."""
PAGED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
"""Formats of which one file may hold several pictures."""
SUBFILE_TAG, NO_PAGE = 254, 0b101
"""TIFF's tag for what a picture is, and its bits for reduced copies and transparency masks."""


class BrokenImageError(Exception):
    """A file cannot be read as an image; the message says why."""


@dataclass(frozen=True)
class Reading:
    """How images are read.

    Attributes:
        values: Values shown as black and white in images of more than 8 bits; None finds them in each image.
        max_pixels: Images of more pixels are refused.
    """

    values: Range | None = None
    max_pixels: int = MAX_PIXELS


PLAIN = Reading()
"""How images are read if nothing is known of their set."""


def decode(
    source: IO[bytes] | str | Image.Image | np.ndarray, at_least: int | None = None, reading: Reading = PLAIN
) -> Image.Image:
    """Read an image as 8-bit RGB: grey, palette and CMYK are converted, EXIF rotation is applied.

    Transparent pixels are blended onto white. Values of more than 8 bits are scaled to 8 bits from `reading.values`,
    or from the range found in the file; what is no number becomes black. 8-bit values stay as they are.

    Args:
        source: A binary file, a path, an open image, or an array (H, W) or (H, W, 3 or 4).
        at_least: Minimum shorter side in pixels. A JPEG or JPEG 2000 of at least twice that size is decoded at a
            fraction of its size, which saves most of the time on large images.
        reading: How the image is read.

    Raises:
        BrokenImageError: The file cannot be read for any reason; it has more pixels than allowed, or one side is more
            than 100 times the other.
    """
    try:
        if isinstance(source, str):  # Pillow would leave the file of an animation open
            with open(source, "rb") as file:
                return decode(file, at_least, reading)
        if isinstance(source, np.ndarray):
            image = _of_array(source, reading)
        else:
            image = source if isinstance(source, Image.Image) else open_image(source)
        check_size(image, reading.max_pixels)
        if at_least is not None:
            _reduce(image, at_least)
        values = deep_values(image)
        if values is not None:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            image = _from_values(values, reading)
            image.getexif()[ExifTags.Base.Orientation] = orientation
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except BrokenImageError:
        raise
    except Exception as error:  # decoders raise arbitrary errors on damaged input
        raise BrokenImageError(reason(error)) from error


def reason(error: Exception) -> str:
    """Why a file could not be read, for the user: decoders name the file or the stream, which the caller knows."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in a format that cannot be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def open_image(source: IO[bytes] | str) -> Image.Image:
    """Open an image file without decoding it; HEIC with the extra `heif`.

    Raises:
        UnidentifiedImageError: It is no image that Pillow can read.
        BrokenImageError: It is a pointer of Git LFS.
        UserError: It is a HEIC file and the extra is missing.
    """
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if not _is_heif(source):
            if _start_of(source, len(POINTER)) == POINTER:
                raise BrokenImageError("a pointer of Git LFS instead of the photo: run git lfs pull") from None
            raise
        with needs("heif", "a HEIC photo"):
            import pillow_heif  # type: ignore[import-not-found]
        pillow_heif.register_heif_opener()
        return Image.open(source)


def pages_of(image: Any, most: int | None = None) -> int:
    """Number of pictures in an open file, of which `decode` reads the first: frames of an animation, pages of a TIFF.

    Reduced copies in a TIFF and the further pictures of a JPEG are no pages of their own. With `most`, so many pages of
    a TIFF are counted at most: each takes a fraction of a millisecond.
    """
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1) if image.format in PAGED else 1
    if not image.is_animated:
        return 1
    kinds = []
    with contextlib.suppress(EOFError):
        while most is None or len(kinds) < most:
            image.seek(len(kinds))
            kinds.append(image.tag_v2.get(SUBFILE_TAG, 0))
    image.seek(0)
    return sum(not kind & NO_PAGE for kind in kinds)


def _is_heif(source: IO[bytes] | str) -> bool:
    start = _start_of(source, 12)
    return start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif", b"msf")


def _start_of(source: IO[bytes] | str, length: int) -> bytes:
    """The first bytes of a file, which is at its start afterwards."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            return file.read(length)
    source.seek(0)
    start = source.read(length)
    source.seek(0)
    return start


def check_size(image: Image.Image, max_pixels: int = MAX_PIXELS) -> None:
    """Raise BrokenImageError for an image, not yet decoded, that is too large or too long."""
    width, height = image.size
    if width * height > max_pixels:
        raise BrokenImageError(f"{width:,} x {height:,} pixels are more than --max-pixels {max_pixels}")
    if max(width, height) > LONGEST * max(1, min(width, height)):
        raise BrokenImageError(f"{width:,} x {height:,} pixels: one side is more than {LONGEST} times the other")


def _reduce(image: Any, at_least: int) -> None:
    """Let the decoder skip pixels, as long as the shorter side keeps twice `at_least` pixels."""
    scale = max(1.0, min(image.size) / (2 * at_least))
    if image.format == "JPEG2000":
        image.reduce = int(scale).bit_length() - 1
    else:
        image.draft(None, (int(image.size[0] / scale), int(image.size[1] / scale)))


def _of_array(pixels: np.ndarray, reading: Reading) -> Image.Image:
    """An 8-bit image of an array: 8-bit values as they are, deeper ones as from a file."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        shape = " x ".join(map(str, pixels.shape))
        raise BrokenImageError(f"an array must be (H, W), (H, W, 3) or (H, W, 4), not {shape}")
    if pixels.dtype == np.uint8:
        return Image.fromarray(pixels)
    if pixels.dtype != np.uint16 and (pixels.ndim == 3 or pixels.dtype.kind not in "uif"):
        raise BrokenImageError(f"an array of {pixels.dtype}: give colours as uint8 or uint16, grey as any number")
    values = deep_array(pixels)
    return Image.fromarray((pixels >> 8).astype(np.uint8)) if values is None else _from_values(values, reading)


def _from_values(values: np.ndarray, reading: Reading) -> Image.Image:
    """An 8-bit image of deeper values; transparency, in the fourth channel, is of 16 bits."""
    shown = reading.values or own_range(values[..., :3] if values.ndim == 3 else values)
    if values.ndim == 2 or values.shape[2] == 3:
        return Image.fromarray(to_8_bits(values, shown))
    colours, alpha = to_8_bits(values[..., :3], shown), to_8_bits(values[..., 3:], (0.0, 65535.0))
    return Image.fromarray(np.concatenate([colours, alpha], axis=2))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fitted_size(height: int, width: int, side: int, max_side: int) -> tuple[int, int]:
    """(height, width) in pixels with the shorter side `side`, or less if the longer side would exceed `max_side`."""
    scale = min(side / min(height, width), max_side / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)
