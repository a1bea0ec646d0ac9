"""Limits of photos that are read, and of their values."""

Range = tuple[float, float]
"""The values of a photo of more than 8 bits that are shown as black and as white."""

MAX_PIXELS = 500_000_000
"""Maximum number of pixels of a photo, unless another one is given."""

LONGEST = 100
"""Maximum aspect ratio: a line of pixels, resized by its shorter side to a model's size, would be huge."""
