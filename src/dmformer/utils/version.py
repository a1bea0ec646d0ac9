"""Version of this package; in `utils`, so that every package can import it."""

__version__ = "0.1.0"
