"""Of this package; here, for every room may name it."""

__version__ = "0.1.0"
