"""Test-time augmentation of classifiers and detectors: the views of a photo whose answers are averaged or merged."""

from typing import Literal

Views = Literal["none", "flip", "flips"]
ViewsOrAuto = Literal["auto", "none", "flip", "flips"]
"""auto: as the model was scored at the end of its training."""

VIEWS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "flip": ((), (3,)),
    "flips": ((), (3,), (2,), (2, 3)),
}
"""Dimensions of images (B, C, H, W) along which each view is flipped."""

WORDS = {
    "none": "",
    "flip": "the mean of 2 views of the photo: as it is and mirrored (--tta flip)",
    "flips": "the mean of 4 views of the photo: as it is, mirrored, upside down, and both (--tta flips)",
}
"""What a classifier's answer is, for users."""


def axes_of(dimensions: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions of `VIEWS` counted from the last, for images (C, H, W) too: -1 swaps left and right."""
    return tuple(dimension - 4 for dimension in dimensions)
