"""Convolutional-attention vision backbones behind timm's one line.

Importing this package registers every model: `import dmformer; timm.create_model("dmformer_s")`.
"""

from . import models

__version__ = "0.1.0"
__all__ = ["models"]
