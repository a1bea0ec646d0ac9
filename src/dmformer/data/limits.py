"""Limits of photos that are read."""

MAX_PIXELS = 500_000_000
"""Maximum number of pixels of a photo, unless another one is given."""

LONGEST = 100
"""Maximum aspect ratio: a line of pixels, resized by its shorter side to a model's size, would be huge."""
