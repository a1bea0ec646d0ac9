"""The `dmformer` command: train, eval, predict, convert, bench, models.

Arguments are read and checked before torch is imported; each command imports what it needs.
"""

from .main import main

__all__ = ["main"]
