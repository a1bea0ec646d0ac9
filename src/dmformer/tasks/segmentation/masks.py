"""Id masks: reading them exactly as stored, and the one mapping from stored ids to training ids."""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw

from ...data.decode import BrokenImageError, pages_of, reason
from ...utils.errors import UserError
from ..labelme import LabelMe

IGNORE = 255
"""The id that every loss and score skips."""

Colours = Sequence[tuple[int, int, int, int]]
"""Red, green and blue of a colour, and the id that it stands for."""

NO_CLASSES = ("__ignore__", "_ignore_", "ignore")
"""LabelMe's labels of what is not to be learnt."""

STRANGE = -1
"""In look-up tables: a stored id that is neither a class nor ignored."""

MOST_COLOURS = 64
"""Maximum number of colours of a mask that holds classes."""

LOSSY = ("JPEG", "MPO", "WEBP")
SPREAD = {"L;2": 85, "L;4": 17}
"""Factors by which Pillow spreads the values of 2- and 4-bit grey images over 0 to 255."""


class StrangeLabelError(ValueError):
    """A mask holds ids that are neither a class nor ignored; `ids` lists them."""

    def __init__(self, ids: Collection[int]) -> None:
        super().__init__(ids)
        self.ids = tuple(sorted(ids))

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.ids[:8])) + (", …" if len(self.ids) > 8 else "")
        one = len(self.ids) == 1
        return f"holds the id{'' if one else 's'} {listed}, which {'is' if one else 'are'} no class and not ignored"


class ColouredMaskError(BrokenImageError):
    """A mask holds colours that stand for no id; `colours` lists them as RRGGBB, empty if they are too many."""

    def __init__(self, message: str, colours: Collection[str]) -> None:
        super().__init__(message)
        self.colours = tuple(colours)


def map_labels(
    ids: np.ndarray,
    num_classes: int,
    reduce_zero_label: bool = False,
    ignore_index: Collection[int] = (IGNORE,),
    table: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Map ids as stored in a mask (any shape) to training ids 0 .. `num_classes` - 1 or `IGNORE`, as uint8.

    Every stored id is looked up once, in this order:

    1. With a `table`, its entry is the training id, and `IGNORE` if it has none.
    2. An id in `ignore_index` is `IGNORE`; these are ids as stored, before anything is shifted.
    3. With `reduce_zero_label`, 0 is `IGNORE` and k + 1 is class k.
    4. Without it, k is class k.

    An id that no rule covers raises an error: nothing silently becomes a class, or disappears.

    This avoids two classic mistakes. Subtraction in 8 bits turns 255 into class 254 (and 0 into the ignored 255): here
    ignored ids are removed first. And if ids count from 1, ignoring 0 without shifting leaves every class one too high
    and no place for the last: ADE20K's masks need `reduce_zero_label`, not `ignore_index=(0,)`.

    Args:
        ids: Integers, of any shape, e.g. (H, W).
        num_classes: K, at most 255, since 255 is `IGNORE`.
        reduce_zero_label: 0 is unlabelled and class k is stored as k + 1 (ADE20K's SceneParsing).
        ignore_index: Stored ids that mean "unlabelled".
        table: Maps stored ids to training ids, for Cityscapes' labelIds.

    Raises:
        StrangeLabelError: An id that is neither a class nor ignored.
        UserError: More than 255 classes, a table with entries outside them, or both a table and `reduce_zero_label`.
    """
    rules = (num_classes, reduce_zero_label, tuple(ignore_index), None if table is None else tuple(table.items()))
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    if ids.dtype in (np.uint8, np.uint16):
        mapped = np.take(_whole_table(np.iinfo(ids.dtype).max + 1, *rules), ids)
    else:
        values, places = np.unique(ids, return_inverse=True)
        mapped = np.take(_training_ids(values, *rules), places).reshape(ids.shape)
    if mapped.size and mapped.min() == STRANGE:
        raise StrangeLabelError(np.unique(ids[mapped == STRANGE]).tolist())
    return mapped.astype(np.uint8)


def read_mask(
    source: IO[bytes] | str | Path | Image.Image, colours: Colours = (), palette: dict[int, str] | None = None
) -> np.ndarray:
    """Read a mask as an array (H, W) of ids, exactly as stored.

    Grey values are ids, also if three equal channels, opaque or as whole numbers in floating point hold them; so are
    palette indices, and 1-bit and 16-bit values. With `colours`, colours are looked up there, those of a palette too.
    EXIF is not applied.

    Args:
        source: A file, its path, or an open image.
        colours: The id of each colour.
        palette: Filled with the colours, as RRGGBB, of those palette indices that are read as ids.

    Raises:
        BrokenImageError: The mask cannot be read, was compressed with loss, holds colours without an id, or several
            pages.
    """
    if isinstance(source, str | Path):
        try:
            with open(source, "rb") as file:
                return read_mask(file, colours, palette)
        except OSError as error:
            raise BrokenImageError(reason(error)) from error
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source)
        spread = SPREAD.get(_stored_mode(image), 1)
        pages = pages_of(image)
        image.load()
    except Exception as error:  # decoders raise anything on damaged input
        raise BrokenImageError(reason(error)) from error
    if pages > 1:
        raise BrokenImageError(f"holds {pages} images, and a mask is one: save one alone")
    if image.format in LOSSY:
        raise BrokenImageError(f"is a {image.format}, whose compression changes ids: save masks as PNG")
    if colours and image.mode in ("P", "RGB", "RGBA"):
        return _ids_of_colours(image, colours)
    if image.mode == "F":
        return _whole_numbers(image)
    if image.mode in ("LA", "RGB", "RGBA"):
        image = _grey(image)
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        found = image.convert("RGB").getcolors(MOST_COLOURS) if image.mode in ("RGB", "RGBA") else None
        raise ColouredMaskError(
            _what_instead(image), [_hexadecimal(colour) for _, colour in sorted(found or (), reverse=True)]
        )
    ids = np.asarray(image)
    if image.mode == "P" and palette is not None:
        shown = _palette(image)
        palette |= {int(i): shown[i].tobytes().hex() for i in np.unique(ids)}
    return ids.astype(np.uint8) // spread if ids.dtype in (bool, np.uint8) else ids


def draw_mask(outlines: LabelMe, class_names: Sequence[str], background: str) -> np.ndarray:
    """Fill LabelMe's outlines with their classes' ids, the later ones over the earlier: (H, W), uint8.

    What no outline covers is the class `background`, or `IGNORE` if there is no such class.

    Raises:
        BrokenImageError: The file cannot be used, or an outline has a label that is no class.
    """
    ids = {name: i for i, name in enumerate(class_names)}
    free = ids.get(background, IGNORE)
    ids |= dict.fromkeys(NO_CLASSES, IGNORE) | {f"_{background}_": free}
    if outlines.fault or outlines.size is None:
        raise BrokenImageError(outlines.fault or "gives no imageHeight and imageWidth")
    height, width = outlines.size
    canvas = Image.new("L", (width, height), free)
    draw = ImageDraw.Draw(canvas)
    for shape in outlines.shapes:
        if shape.label not in ids:
            raise BrokenImageError(f"holds the label {shape.label}, which is no class")
        draw.polygon([(x, y) for x, y in shape.points.tolist()], fill=ids[shape.label])
    return np.array(canvas)


def _hexadecimal(colour: Any) -> str:
    return bytes(colour).hex()


def _palette(image: Image.Image) -> np.ndarray:
    """The colours of a palette image, (256, 3), uint8; black where the palette ends early."""
    stored = np.frombuffer(bytes(image.getpalette("RGB") or ()), np.uint8)[: 256 * 3]
    return np.pad(stored, (0, 256 * 3 - len(stored))).reshape(256, 3)


def _ids_of_colours(image: Image.Image, colours: Colours) -> np.ndarray:
    """The ids (H, W), uint8, of an image's colours; BrokenImageError for a colour without one."""
    pixels = _palette(image) if image.mode == "P" else np.asarray(image)[..., :3]
    packed = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    keys, ids = np.array(sorted((red << 16 | green << 8 | blue, i) for red, green, blue, i in colours)).T
    places = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    strange = keys[places] != packed
    found = ids[places].astype(np.uint8)
    if image.mode == "P":
        indices = np.asarray(image)
        strange, packed, found = strange[indices], packed[indices], found[indices]
    if strange.any():
        listed = [f"{colour:06x}" for colour in np.unique(packed[strange])]
        told = ", ".join(listed[:8]) + (", …" if len(listed) > 8 else "")
        raise ColouredMaskError(f"holds the colour{'s' if len(listed) > 1 else ''} {told}, which no class has", listed)
    return found


def _whole_numbers(image: Image.Image) -> np.ndarray:
    """The ids (H, W) of a mask in floating point."""
    values = np.asarray(image)
    ids = np.where(np.isfinite(values), values, -1).astype(np.int64)
    if not np.array_equal(ids, values):
        raise BrokenImageError("holds decimal numbers (F) instead of class ids")
    return ids


def _grey(image: Image.Image) -> Image.Image:
    """One channel of an opaque image whose channels are equal; other images unchanged."""
    bands = image.split()
    if "A" in image.getbands() and bands[-1].getextrema()[0] != 255:
        return image
    colours = [np.asarray(band) for band in bands[: 3 if image.mode.startswith("RGB") else 1]]
    return bands[0] if all(np.array_equal(colours[0], other) for other in colours[1:]) else image


def _stored_mode(image: Image.Image) -> str:
    """How the file stores the values, e.g. "L;4", before the image is loaded."""
    tiles = getattr(image, "tile", None)
    mode = tiles[0][3] if tiles else ""
    return str(mode[0] if isinstance(mode, tuple) and mode else mode)


def _what_instead(image: Image.Image) -> str:
    if image.mode == "LA":
        return "holds transparent pixels (LA): save a single channel"
    return f"holds colours ({image.mode}) instead of class ids"


Rules = tuple[int, bool, tuple[int, ...], tuple[tuple[int, int], ...] | None]


@lru_cache
def _whole_table(size: int, *rules: *Rules) -> np.ndarray:
    return _training_ids(np.arange(size), *rules)


def _training_ids(
    values: np.ndarray,
    num_classes: int,
    reduce_zero_label: bool,
    ignore_index: tuple[int, ...],
    table: tuple[tuple[int, int], ...] | None,
) -> np.ndarray:
    """Training ids of some stored ids, int16, `STRANGE` if there is none."""
    if not 1 <= num_classes <= IGNORE:
        raise UserError(
            f"{num_classes} classes: there must be 1 to {IGNORE}, since {IGNORE} is the id that is ignored."
        )
    found = np.full(values.shape, STRANGE, np.int16)
    if table is not None:
        _check_table(num_classes, reduce_zero_label, table)
        found[:] = IGNORE
        for stored, training in table:
            found[values == stored] = training
    else:
        classes = values.astype(np.int64) - reduce_zero_label
        inside = (classes >= 0) & (classes < num_classes)
        found[inside] = classes[inside]
        if reduce_zero_label:
            found[values == 0] = IGNORE
    found[np.isin(values, ignore_index)] = IGNORE
    return found


def _check_table(num_classes: int, reduce_zero_label: bool, table: tuple[tuple[int, int], ...]) -> None:
    if reduce_zero_label:
        raise UserError("these ids are translated by a table, which begins at class 0: leave out --reduce-zero-label.")
    outside = sorted({training for _, training in table if not 0 <= training < num_classes and training != IGNORE})
    if outside:
        raise UserError(
            f"the table of ids leads to class {outside[-1]}, but there are {num_classes} classes: "
            f"name {max(outside) + 1} of them in --classes."
        )
