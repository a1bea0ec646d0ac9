"""Pictures over photos: classes as colours, objects in frames, and what a map from 0 to 1 says of each place."""

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
"""Of its brightness, what a pixel on a border keeps."""

LEAST, MOST = 0.15, 0.75
"""Opacity of a map's colours at 0 and at 1; the photo below them is grey, so that every colour is the map's."""

LEGEND_ROWS, ROW, SWATCH = 30, 24, 16
"""Classes below each other in a legend; sizes in pixels."""

VEIL = 0.45
"""Opacity of the masks of objects."""

LINE, LEAST_LINE = 250, 2

LETTERS, LEAST_LETTERS = 45, 11
"""A photo's side, as the root of its pixels, has so many widths of a frame's line and heights of letters; the least."""

BRIGHT = 50
"""Lightness (CIELAB) from which a colour has black letters on it and a black line about it, and not white ones."""


def colour(ids: np.ndarray, palette: Palette) -> Image.Image:
    """A mask in colours.

    Args:
        ids: (H, W), uint8: classes, or 255 for ignored pixels, which become black.
        palette: A colour for each class.

    Raises:
        ValueError: If the mask has a class without a colour.
    """
    return Image.fromarray(_colours(ids, palette))


def overlay(image: Image.Image, ids: np.ndarray, palette: Palette, opacity: float = 0.5) -> Image.Image:
    """A photo with the colours of its mask laid over it, and a thin dark line between neighbouring classes.

    Args:
        image: The photo, W x H.
        ids: (H, W), uint8: classes, or 255 for ignored pixels, which stay as they are in the photo.
        palette: A colour for each class.
        opacity: Of the colours, from 0 to 1.

    Raises:
        ValueError: If the mask has another size than the photo, or a class without a colour.
    """
    photo = np.asarray(image.convert("RGB"), dtype=np.float32)
    if ids.shape != photo.shape[:2]:
        height, width = ids.shape[:2]
        raise ValueError(f"The photo is {image.width} x {image.height} pixels, its mask {width} x {height}.")
    mixed = (1 - opacity) * photo + opacity * _colours(ids, palette)
    mixed[_borders(ids)] *= BORDER
    mixed[ids == IGNORED] = photo[ids == IGNORED]
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_detections(
    image: Image.Image, detections: Detections, class_names: Sequence[str], palette: Palette
) -> Image.Image:
    """A photo with frames round what is found, tagged "name 87 %", over its masks if it has any; the surest on top.

    A frame's line lies within the box, and a thin black or white one about it.

    Args:
        image: The photo, W x H.
        detections: In its pixels.
        class_names: K names. Letters that Pillow's own font does not have become boxes.
        palette: K colours.
    """
    ends = [f" {100 * score:.0f} %" for score in detections.scores.tolist()]
    return _framed(image, detections.boxes, detections.labels, ends, class_names, palette, detections.masks)


def draw_objects(
    image: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    palette: Palette,
    masks: np.ndarray | None = None,
) -> Image.Image:
    """A photo with frames round the objects that are on it, as `draw_detections` has them, tagged "name".

    Args:
        image: The photo, W x H.
        boxes: (n, 4), in its pixels: left, upper, right and lower edge.
        labels: (n), classes.
        class_names: K names.
        palette: K colours.
        masks: (n, H, W), bool or 0 and 1.
    """
    return _framed(image, boxes, labels, [""] * len(labels), class_names, palette, masks)


def draw_frames(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    """A photo with thin white frames, edged with black, round boxes (n, 4) in its pixels."""
    photo = image.convert("RGB")
    draw = ImageDraw.Draw(photo)
    line = max(_line_width(photo) // 2, 1)
    for box in boxes:
        left, upper, right, lower = _pixels(box, photo)
        draw.rectangle((left - line, upper - line, right + line, lower + line), outline="black", width=3 * line)
        draw.rectangle((left, upper, right, lower), outline="white", width=line)
    return photo


def heat(photo: Image.Image, values: np.ndarray, outline: np.ndarray | None = None) -> Image.Image:
    """A map over the photo, which becomes grey below it.

    Args:
        photo: As the model sees it, W x H.
        values: (H, W), from 0 to 1.
        outline: (H, W), bool: an area to draw a white line around.
    """
    grey = np.asarray(photo.convert("L"), dtype=np.float32)[..., None]
    mixed = heat_over(grey, values)
    if outline is not None:
        edge = _edge(outline)
        for _ in range(min(photo.size) // 300):
            edge = _grown(edge)
        mixed[_grown(edge)] = 0
        mixed[edge] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_over(below: np.ndarray | int, values: np.ndarray) -> np.ndarray:
    """Colours of 0 to 255 of values (H, W), from 0 to 1, over what is below: (H, W, 3)."""
    opacity = (LEAST + (MOST - LEAST) * values)[..., None]
    return (1 - opacity) * below + opacity * 255 * heat_colours(values)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """matplotlib's inferno, whose lightness rises evenly, for the colour-blind too: (H, W) -> (H, W, 3), 0 to 1."""
    from matplotlib import colormaps  # takes its time

    return colormaps["inferno"](values)[..., :3]


def legend(names: Sequence[str], palette: Palette) -> Image.Image:
    """The classes' names beside their colours, in columns on white.

    Args:
        names: In the order of their ids. Letters that Pillow's own font does not have become boxes.
        palette: A colour for each class.
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


def _framed(
    image: Image.Image,
    boxes: np.ndarray,
    labels: np.ndarray,
    ends: Sequence[str],
    class_names: Sequence[str],
    palette: Palette,
    masks: np.ndarray | None,
) -> Image.Image:
    """A photo with masks, frames and tags, of which each has an end that is not cut; the first object on top."""
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


def _line_width(photo: Image.Image) -> int:
    return max(round(math.sqrt(photo.width * photo.height) / LINE), LEAST_LINE)


def _pixels(box: np.ndarray, photo: Image.Image) -> tuple[int, int, int, int]:
    """First and last column and row of a box, within the photo."""
    left, upper = (min(max(math.floor(edge), 0), side - 1) for edge, side in zip(box[:2], photo.size, strict=True))
    right, lower = (min(math.ceil(edge), side) - 1 for edge, side in zip(box[2:], photo.size, strict=True))
    return left, upper, max(right, left), max(lower, upper)


def _veiled(photo: Image.Image, masks: np.ndarray, colours: Palette) -> Image.Image:
    """A photo with masks (n, H, W) laid over it, one after the other."""
    pixels = np.array(photo)
    for mask, rgb in zip(masks.astype(bool), colours, strict=True):
        veiled = np.round((1 - VEIL) * np.arange(256)[:, None] + VEIL * np.array(rgb)).astype(np.uint8)
        pixels[mask] = veiled[pixels[mask], [0, 1, 2]]
    return Image.fromarray(pixels)


def _tag(
    draw: ImageDraw.ImageDraw, photo: Image.Image, box: np.ndarray, name: str, end: str, rgb: tuple[int, int, int]
) -> None:
    """A name on a filled tag, above a box or else at its top, but always within the photo."""
    font = ImageFont.load_default(max(round(math.sqrt(photo.width * photo.height) / LETTERS), LEAST_LETTERS))
    _, top, _, bottom = font.getbbox("lg", anchor="ls")
    margin = round((bottom - top) / 6)
    text = _shortened(name, end, font, photo.width - 2 * margin)
    width, height = math.ceil(font.getlength(text)) + 2 * margin, round(bottom - top) + 2 * margin
    left, upper, _, _ = _pixels(box, photo)
    left = max(min(left, photo.width - width), 0)
    upper = max(min(upper - height if upper >= height else upper, photo.height - height), 0)
    draw.rectangle((left, upper, left + width - 1, upper + height - 1), fill=rgb)
    draw.text((left + margin, upper + margin - top), text, fill=_contrast(rgb), font=font, anchor="ls")


def _contrast(rgb: tuple[int, int, int]) -> str:
    """Of black and white the one that is seen better on a colour."""
    return "black" if to_lab(np.array([rgb]))[0, 0] > BRIGHT else "white"


def _shortened(name: str, end: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """A name on one line, cut so that it and its end are no wider than the room, as far as that can be."""
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


def _edge(area: np.ndarray) -> np.ndarray:
    """The pixels of an area that have one outside it as neighbour."""
    return area & _grown(~area)


def _grown(area: np.ndarray) -> np.ndarray:
    """An area with the neighbours of its pixels."""
    grown = area.copy()
    grown[1:] |= area[:-1]
    grown[:-1] |= area[1:]
    grown[:, 1:] |= area[:, :-1]
    grown[:, :-1] |= area[:, 1:]
    return grown
