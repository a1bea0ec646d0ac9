"""The mean answer of classifiers over views of the images: test-time augmentation and ensembles."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..utils.views import VIEWS


class MeanAnswer(nn.Module):
    """Mean probabilities of M classifiers over V views of each image, as logits: (B, C, H, W) -> (B, K).

    Probabilities are averaged, not logits, whose scale differs from model to model and which a single confident view
    would decide. The mean p is returned as logits, log p, or log p - log(1 - p) for several labels per image: softmax
    or sigmoid gives p again. So whatever reads the logits of one classifier reads these, exported files included.

    The views are one batch of V * B images, so a graph holds each model once.

    Args:
        models: M classifiers of the same K classes and the same preprocessing.
        tta: Name of the views, a key of `VIEWS`.
        several: Whether an image may show several classes.
    """

    def __init__(self, models: Sequence[nn.Module], tta: str = "none", several: bool = False) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.views, self.several = VIEWS[tta], several
        self.pretrained_cfg = getattr(models[0], "pretrained_cfg", {})  # names the architecture and a fixed size

    def forward(self, images: Tensor) -> Tensor:
        views = torch.cat([images.flip(dims) if dims else images for dims in self.views])
        logits = torch.stack([model(views) for model in self.models]).unflatten(1, (len(self.views), -1))
        if self.several:
            return _log_mean(logits.sigmoid()) - _log_mean((-logits).sigmoid())
        return _log_mean(logits.softmax(-1))


def _log_mean(probabilities: Tensor) -> Tensor:
    """(M, V, B, K) -> (B, K), finite."""
    return probabilities.mean((0, 1)).clamp(min=torch.finfo(torch.float32).tiny).log()
