"""Convolutional-attention vision backbones behind timm's one line.

Importing this package registers every model: `import dmformer; timm.create_model("dmformer_s")`.
"""

import sys

__version__ = "0.1.0"

# The command reads its arguments before it pays for torch (see dmformer_command.py); its parts import `models`.
if "dmformer_command" not in sys.modules:
    from . import models as models
    from .convert import convert as convert
    from .fuse import fuse as fuse
    from .weights import load_weights as load_weights
