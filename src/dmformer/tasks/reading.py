"""How the photos of a set are read: with one range of values for all of them."""

from collections.abc import Callable

from ..data.decode import Reading
from ..data.values import set_range, told
from .leaks import Photos


def found_reading(train: Photos, max_pixels: int, say: Callable[[str], None]) -> Reading:
    """How the photos of a set are read: with the range of values of some training photos, which `say` is told."""
    values = set_range(len(train), train.open)
    if values is not None:
        say(told(values))
    return Reading(values, max_pixels)
