"""The model families: numbers, pretrained configurations and timm entry points."""

from . import dmformer

FAMILIES = (dmformer,)

__all__ = ["FAMILIES", "dmformer"]
