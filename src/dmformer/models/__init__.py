"""The model families: sizes, pretrained configurations and timm entry points."""

from . import dmformer, smt, van, vitae, vitaev2

FAMILIES = (dmformer, van, smt, vitae, vitaev2)

PUBLISHED = {name: entry for family in FAMILIES for name, entry in family.PUBLISHED.items()}
"""The published figures of each variant."""

__all__ = ["FAMILIES", "PUBLISHED", "dmformer", "smt", "van", "vitae", "vitaev2"]
