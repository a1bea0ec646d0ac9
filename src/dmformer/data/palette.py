"""Class colours that colour-blind people can distinguish."""

from collections.abc import Sequence
from itertools import product

import numpy as np

Palette = Sequence[tuple[int, int, int]]
"""A colour (red, green, blue; 0 to 255) for each class."""

_OKABE_ITO = [
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
]


def default_palette(n: int) -> list[tuple[int, int, int]]:
    """n colours, deterministic: the first 7 from Okabe and Ito's palette, which colour-blind people can distinguish.

    Each further colour is the one on a grid that is farthest from the previous ones and from black and white, in CIELAB
    space, where distances are close to perceived differences.
    """
    grid = np.array(list(product(range(0, 256, 15), repeat=3)))
    lab = to_lab(grid)
    chosen = list(_OKABE_ITO[:n])
    distance = np.full(len(grid), np.inf)
    for taken in to_lab(np.array([(0, 0, 0), (255, 255, 255), *chosen])):
        distance = np.minimum(distance, np.linalg.norm(lab - taken, axis=1))
    while len(chosen) < n:
        farthest = int(distance.argmax())
        red, green, blue = grid[farthest].tolist()
        chosen.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return chosen


def to_lab(colours: np.ndarray) -> np.ndarray:
    """sRGB colours (N, 3), 0 to 255 -> CIELAB (N, 3), for daylight (D65)."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
