"""Pictures over photos: classes as colours, and what a map from 0 to 1 says of each place."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Palette = Sequence[tuple[int, int, int]]
"""A colour (red, green, blue; 0 to 255) for each class."""

IGNORED = 255
IGNORED_COLOUR = (0, 0, 0)
BORDER = 0.45
"""Of its brightness, what a pixel on a border keeps."""
LEAST, MOST = 0.15, 0.75
"""Opacity of a map's colours at 0 and at 1; the photo below them is grey, so that every colour is the map's."""
LEGEND_ROWS, ROW, SWATCH = 30, 24, 16
"""Classes below each other in a legend; sizes in pixels."""

_OKABE_ITO = [
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
]


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


def default_palette(n: int) -> list[tuple[int, int, int]]:
    """n colours, the same for every call: up to 7 from Okabe and Ito's palette, which the colour-blind can tell apart.

    Each further one is, of the colours of a grid, the farthest from those before it and from black and white, in the
    CIELAB space, where distances are about as the eye sees them.
    """
    grid = np.array(list(product(range(0, 256, 15), repeat=3)))
    lab = _lab(grid)
    chosen = list(_OKABE_ITO[:n])
    distance = np.full(len(grid), np.inf)
    for taken in _lab(np.array([(0, 0, 0), (255, 255, 255), *chosen])):
        distance = np.minimum(distance, np.linalg.norm(lab - taken, axis=1))
    while len(chosen) < n:
        farthest = int(distance.argmax())
        red, green, blue = grid[farthest].tolist()
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return chosen


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


def _lab(colours: np.ndarray) -> np.ndarray:
    """sRGB colours (N, 3) of 0 to 255 -> CIELAB (N, 3), for daylight (D65)."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
