"""The model families: numbers, pretrained configurations and timm entry points."""

from . import dmformer

__all__ = ["dmformer"]
