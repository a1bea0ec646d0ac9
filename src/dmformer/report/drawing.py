"""Drawings on photos: classes as colours, boxes around objects, and heat maps of values from 0 to 1."""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.detections import Detections
from ..data.palette import Palette, to_lab

IGNORED = 255

IGNORED_COLOUR = (0, 0, 0)

BORDER = 0.45
"""Fraction of its brightness that a pixel on a border keeps."""

LEAST, MOST = 0.15, 0.75
"""Opacity of a map's colours at 0 and at 1; the photo below is grey, so that every colour comes from the map."""

LEGEND_ROWS, ROW, SWATCH = 30, 24, 16
"""Maximum classes per column of a legend; row height and swatch size in pixels."""

VEIL = 0.45
"""Opacity of object masks."""

LINE, LEAST_LINE = 250, 2

CONTEXT, AT_LEAST = 2.5, 0.3
"""A crop around a box is so many times as large as the box, and at least this fraction of the photo's longer side."""

LETTERS, LEAST_LETTERS = 45, 11
"""A photo's side (the root of its number of pixels) divided by the line width and by the letter height; minimum of
each."""

TOLD_APART, NAMES = 7, 8
"""With more classes than this, their names are printed on a mask, as colours alone cannot tell them apart; maximum
number of names."""

ROOM, INSIDE = (4, 2, 1), 0.95
"""A name is printed in the middle of the largest of these windows (in sizes of its tag) that lies inside its area; the
fraction of a window that counts as inside."""

BRIGHT = 50
"""Lightness (CIELAB) from which a colour gets black letters and a black outline instead of white ones."""


def colour(ids: np.ndarray, palette: Palette) -> Image.Image:
    """Colour a mask.

    Args:
        ids: (H, W), uint8: classes, or 255 for ignored pixels, which become black.

    Raises:
        ValueError: If the mask has a class without a colour.
    """
    return Image.fromarray(_colours(ids, palette))


def overlay(image: Image.Image, ids: np.ndarray, palette: Palette, opacity: float = 0.5) -> Image.Image:
    """A photo with the colours of its mask on top, and a thin dark line between neighbouring classes.

    Args:
        ids: (H, W), uint8: classes, or 255 for ignored pixels, which keep the photo's colour.

    Raises:
        ValueError: If the mask and the photo differ in size, or a class has no colour.
    """
    photo = np.asarray(image.convert("RGB"), dtype=np.float32)
    if ids.shape != photo.shape[:2]:
        height, width = ids.shape[:2]
        raise ValueError(f"The photo is {image.width} x {image.height} pixels, its mask {width} x {height}.")
    mixed = (1 - opacity) * photo + opacity * _colours(ids, palette)
    mixed[_borders(ids)] *= BORDER
    mixed[ids == IGNORED] = photo[ids == IGNORED]
    return Image.fromarray(mixed.round().astype(np.uint8))


def named_overlay(
    image: Image.Image, ids: np.ndarray, class_names: Sequence[str], palette: Palette, opacity: float = 0.5
) -> Image.Image:
    """`overlay`, with the names that `name_areas` prints."""
    return name_areas(overlay(image, ids, palette, opacity), ids, class_names, palette)


def name_areas(image: Image.Image, ids: np.ndarray, class_names: Sequence[str], palette: Palette) -> Image.Image:
    """A photo with the names of its mask's largest classes where they fit inside an area; few classes are not named.

    Args:
        image: From `overlay`.
        ids: (H, W), uint8: classes, or 255 for ignored pixels.
        class_names: K names. Characters that Pillow's built-in font lacks become squares.
    """
    if len(class_names) <= TOLD_APART:
        return image
    photo = image.copy()
    draw = ImageDraw.Draw(photo)
    classes, pixels = np.unique(ids[ids != IGNORED], return_counts=True)
    for k in map(int, classes[np.argsort(-pixels, kind="stable")[:NAMES]]):
        text, font, size = _tag_of(photo, class_names[k])
        if (corner := _inside(ids == k, *size)) is not None:
            _draw_tag(draw, corner, text, font, size, palette[k])
    return photo


def draw_detections(
    image: Image.Image, detections: Detections, class_names: Sequence[str], palette: Palette
) -> Image.Image:
    """A photo with a box around each detection, tagged "name 87 %", over its mask if it has one; the most confident on
    top.

    The line of a box lies inside the box, with a thin black or white outline.

    Args:
        detections: In the photo's pixels.
        class_names: K names. Characters that Pillow's built-in font lacks become squares.
    """
    ends = [f" {100 * score:.0f} %" for score in detections.scores.tolist()]
    return draw_objects(image, detections.boxes, detections.labels, class_names, palette, detections.masks, ends)


def draw_objects(
    image: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    palette: Palette,
    masks: np.ndarray | None = None,
    ends: Sequence[str] | None = None,
) -> Image.Image:
    """A photo with boxes around labelled objects, tagged "name", over their masks; the first object is on top.

    Args:
        boxes: (n, 4), in the photo's pixels: left, upper, right and lower edge.
        labels: (n), classes.
        masks: (n, H, W), bool or 0 and 1.
    """
    ends = ends or [""] * len(labels)
    last_first = range(len(labels) - 1, -1, -1)
    colours = [palette[label] for label in labels.tolist()]
    photo = image.convert("RGB")
    if masks is not None:
        photo = _veiled(photo, masks[::-1], colours[::-1])
    draw = ImageDraw.Draw(photo)
    for i in last_first:
        left, upper, right, lower = _pixels(boxes[i], photo)
        draw.rectangle((left - 1, upper - 1, right + 1, lower + 1), outline=_contrast(colours[i]))
        draw.rectangle((left, upper, right, lower), outline=colours[i], width=_line_width(photo))
    for i in last_first:
        _tag(draw, photo, boxes[i], class_names[int(labels[i])], ends[i], colours[i])
    return photo


def draw_frames(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    """A photo with thin white frames, edged with black, around boxes (n, 4) in its pixels."""
    photo = image.convert("RGB")
    draw = ImageDraw.Draw(photo)
    line = max(_line_width(photo) // 2, 1)
    for box in boxes:
        left, upper, right, lower = _pixels(box, photo)
        draw.rectangle((left - line, upper - line, right + line, lower + line), outline="black", width=3 * line)
        draw.rectangle((left, upper, right, lower), outline="white", width=line)
    return photo


def cropped(photo: Image.Image, box: np.ndarray, side: int) -> tuple[Image.Image, tuple[int, int], float]:
    """A box with what is around it, resized to `side` pixels; the upper left corner of that in the photo; its scale."""
    left, upper, right, lower = box.tolist()
    wanted = max(CONTEXT * max(right - left, lower - upper), AT_LEAST * max(photo.size))
    width, height = (max(min(math.ceil(wanted), whole), 1) for whole in photo.size)
    x = round(min(max((left + right - width) / 2, 0), photo.width - width))
    y = round(min(max((upper + lower - height) / 2, 0), photo.height - height))
    scale = side / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return photo.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)), (x, y), scale


def moved(boxes: np.ndarray, window: tuple[int, int], scale: float) -> np.ndarray:
    """Boxes (n, 4) of a photo in pixels of a crop of it; see `cropped`."""
    return (boxes - np.tile(np.array(window, np.float32), 2)) * scale


def heat(photo: Image.Image, values: np.ndarray, outline: np.ndarray | None = None) -> Image.Image:
    """A heat map over the photo, which becomes grey below it.

    Args:
        photo: As the model sees it, W x H.
        values: (H, W), from 0 to 1.
        outline: (H, W), bool: an area to draw a white line around.
    """
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]
    mixed = heat_over(grey, values)
    if outline is not None:
        edge = outline & _grown(~outline)
        for _ in range(min(photo.size) // 300):
            edge = _grown(edge)
        mixed[_grown(edge)] = 0
        mixed[edge] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_over(below: np.ndarray | int, values: np.ndarray) -> np.ndarray:
    """Colours from 0 to 255 for values (H, W), from 0 to 1, blended over `below`: (H, W, 3)."""
    opacity = (LEAST + (MOST - LEAST) * values)[..., None]
    return (1 - opacity) * below + opacity * 255 * heat_colours(values)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """matplotlib's inferno, whose lightness rises evenly and suits the colour-blind: (H, W) -> (H, W, 3), 0 to 1."""
    from matplotlib import colormaps  # slow to import

    return colormaps["inferno"](values)[..., :3]


def legend(names: Sequence[str], palette: Palette) -> Image.Image:
    """The names of the classes beside their colours, in columns on white.

    Args:
        names: In the order of their ids. Characters that Pillow's built-in font lacks become squares.
    """
    font = ImageFont.load_default(14)
    names = [" ".join(name.split()) for name in names]  # Pillow cannot measure several lines
    columns = [range(first, min(first + LEGEND_ROWS, len(names))) for first in range(0, len(names), LEGEND_ROWS)]
    widths = [SWATCH + ROW + max(round(font.getlength(names[i])) for i in column) for column in columns]
    size = (sum(widths) + ROW, ROW * (min(len(names), LEGEND_ROWS) + 1))
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    left = ROW // 2
    for column, width in zip(columns, widths, strict=True):
        for row, i in enumerate(column):
            top = ROW // 2 + ROW * row + (ROW - SWATCH) // 2
            draw.rectangle((left, top, left + SWATCH, top + SWATCH), fill=palette[i], outline=(90, 90, 90))
            draw.text((left + SWATCH + 8, top + SWATCH // 2), names[i], fill="black", font=font, anchor="lm")
        left += width
    return image


def _line_width(photo: Image.Image) -> int:
    return max(round(math.sqrt(photo.width * photo.height) / LINE), LEAST_LINE)


def _pixels(box: np.ndarray, photo: Image.Image) -> tuple[int, int, int, int]:
    """First and last column and row of a box, within the photo."""
    left, upper = (min(max(math.floor(edge), 0), side - 1) for edge, side in zip(box[:2], photo.size, strict=True))
    right, lower = (min(math.ceil(edge), side) - 1 for edge, side in zip(box[2:], photo.size, strict=True))
    return left, upper, max(right, left), max(lower, upper)


def _veiled(photo: Image.Image, masks: np.ndarray, colours: Palette) -> Image.Image:
    """A photo with masks (n, H, W) drawn on it in order."""
    pixels = np.array(photo)
    for mask, rgb in zip(masks.astype(bool), colours, strict=True):
        veiled = np.round((1 - VEIL) * np.arange(256)[:, None] + VEIL * np.array(rgb)).astype(np.uint8)
        pixels[mask] = veiled[pixels[mask], [0, 1, 2]]
    return Image.fromarray(pixels)


def _tag(
    draw: ImageDraw.ImageDraw, photo: Image.Image, box: np.ndarray, name: str, end: str, rgb: tuple[int, int, int]
) -> None:
    """A name on a filled tag, above the box or else at its top, but always within the photo."""
    text, font, (width, height) = _tag_of(photo, name, end)
    left, upper, _, _ = _pixels(box, photo)
    left = max(min(left, photo.width - width), 0)
    upper = max(min(upper - height if upper >= height else upper, photo.height - height), 0)
    _draw_tag(draw, (left, upper), text, font, (width, height), rgb)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _tag_of(photo: Image.Image, name: str, end: str = "") -> tuple[str, Font, tuple[int, int]]:
    """The text of a tag, which fits in the photo's width, its font, and the width and height of the tag."""
    font = ImageFont.load_default(max(round(math.sqrt(photo.width * photo.height) / LETTERS), LEAST_LETTERS))
    _, top, _, bottom = font.getbbox("lg", anchor="ls")
    margin = _margin(font)
    text = _shortened(name, end, font, photo.width - 2 * margin)
    return text, font, (math.ceil(font.getlength(text)) + 2 * margin, round(bottom - top) + 2 * margin)


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    font: Font,
    size: tuple[int, int],
    rgb: tuple[int, int, int],
) -> None:
    (left, upper), (width, height), margin = corner, size, _margin(font)
    top = font.getbbox("lg", anchor="ls")[1]
    draw.rectangle((left, upper, left + width - 1, upper + height - 1), fill=rgb)
    draw.text((left + margin, upper + margin - top), text, fill=_contrast(rgb), font=font, anchor="ls")


def _margin(font: Font) -> int:
    _, top, _, bottom = font.getbbox("lg", anchor="ls")
    return round((bottom - top) / 6)


def _inside(area: np.ndarray, width: int, height: int) -> tuple[int, int] | None:
    """The left upper corner of a tag inside an area (H, W), bool, as far from its border as `ROOM` tells; or None."""
    step = max(height // 6, 1)  # of a large photo not every pixel counts
    sums = np.pad(area[::step, ::step].cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    for times in ROOM:
        w, h = -(-times * width // step), -(-times * height // step)
        if h >= len(sums) or w >= len(sums[0]):
            continue
        pixels = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
        y, x = divmod(int(pixels.argmax()), pixels.shape[1])
        if pixels[y, x] >= INSIDE * w * h:
            return x * step + (w * step - width) // 2, y * step + (h * step - height) // 2
    return None


def _contrast(rgb: tuple[int, int, int]) -> str:
    """Black or white, whichever is easier to see on a colour."""
    return "black" if to_lab(np.array([rgb]))[0, 0] > BRIGHT else "white"


def _shortened(name: str, end: str, font: Font, room: float) -> str:
    """A name on one line, shortened so that it and `end` fit in the width `room` if possible."""
    name = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    if font.getlength(name + end) <= room:
        return name + end
    letters = bisect_right(range(len(name)), room, key=lambda n: font.getlength(f"{name[:n]}…{end}"))
    return f"{name[: max(letters - 1, 0)]}…{end}"


def _colours(ids: np.ndarray, palette: Palette) -> np.ndarray:
    """Mask (H, W) -> colours (H, W, 3), uint8."""
    classes = ids[ids != IGNORED]
    if classes.size and int(classes.max()) >= len(palette):
        raise ValueError(f"The mask has class {int(classes.max())}, the palette only {len(palette)} colours.")
    table = np.full((256, 3), IGNORED_COLOUR, dtype=np.uint8)
    table[: min(len(palette), IGNORED)] = np.array(palette[:IGNORED]).reshape(-1, 3)
    return table[ids]


def _borders(ids: np.ndarray) -> np.ndarray:
    """(H, W), bool: where the class differs from that of the pixel to the left or above."""
    borders = np.zeros(ids.shape, dtype=bool)
    borders[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    borders[1:] |= ids[1:] != ids[:-1]
    return borders


def _grown(area: np.ndarray) -> np.ndarray:
    """An area extended by its neighbouring pixels."""
    grown = area.copy()
    grown[1:] |= area[:-1]
    grown[:-1] |= area[1:]
    grown[:, 1:] |= area[:, :-1]
    grown[:, :-1] |= area[:, 1:]
    return grown
