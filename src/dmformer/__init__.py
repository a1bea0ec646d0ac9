"""Convolutional-attention vision backbones behind timm's one line.

Importing this package registers every model: `import dmformer; timm.create_model("dmformer_s")`.
"""

import sys

from .utils.version import __version__ as __version__

# The command reads its arguments before it pays for torch (see dmformer_command.py); its parts import `models`.
if "dmformer_command" not in sys.modules:
    from . import models as models
    from .models.weights import load_weights as load_weights
    from .nn.fuse import fuse as fuse
    from .predict.model import load as load
    from .tasks.classification.convert import convert as convert
