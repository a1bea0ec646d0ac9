"""Maps resized like PyTorch, and masks of boxes pasted into photos like torchvision, without torch."""

import numpy as np


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(K, h, w) -> (K, *size), without aligned corners or antialiasing, like PyTorch."""
    for axis, length in ((1, size[0]), (2, size[1])):
        old = maps.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * (old / length) - 0.5, 0, None)
        first = np.minimum(place.astype(np.int64), old - 1)
        weight = (place - first).astype(np.float32).reshape((-1, 1) if axis == 1 else (-1,))
        after = maps.take(np.minimum(first + 1, old - 1), axis)
        maps = maps.take(first, axis) * (1 - weight) + after * weight
    return maps


def pasted(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask of a box in an image of this height and width, like torchvision's `paste_masks_in_image`: (H, W), bool.

    Args:
        mask: (side, side), probabilities; those of at least 0.5 are in the mask.
        box: (4), left, top, right and bottom edge in pixels of the image.
    """
    height, width = size
    found = np.zeros(size, bool)
    side = mask.shape[-1]
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * np.float32((side + 2) / side)
    left, top = (int(edge) for edge in centre - half)
    right, bottom = (int(edge) for edge in centre + half)
    inside = bilinear(np.pad(mask, 1)[None], (max(bottom - top + 1, 1), max(right - left + 1, 1)))[0] >= 0.5
    rows, columns = slice(max(top, 0), min(bottom + 1, height)), slice(max(left, 0), min(right + 1, width))
    found[rows, columns] = inside[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return found
