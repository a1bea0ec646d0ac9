"""The `dmformer` command: train, eval, predict, explain, analyse, export, serve, convert, bench, models.

Arguments are parsed and checked before torch is imported; each command imports only what it needs.
"""

from .main import main

__all__ = ["main"]
