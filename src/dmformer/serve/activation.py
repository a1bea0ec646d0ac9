"""Class activation maps of a classifier, for the overlay."""

from typing import Any

import numpy as np
from PIL import Image

from ..utils.extras import needs


class Activation:
    """A classifier, opened a second time for class activation.

    Args:
        source: A classifier: a run's best/ folder, or hf-hub:owner/name.

    Raises:
        UserError: The extra "explain" is missing.
    """

    def __init__(self, source: str) -> None:
        with needs("explain", "showing where the model looks"):
            import pytorch_grad_cam as _  # noqa: F401  # seconds, not to be spent in a request

        from ..interpret.cam import class_activation
        from ..interpret.subject import open_subject

        self._activation = class_activation
        self._subject = open_subject(source)

    def prepare(self, image: Image.Image) -> Any:
        """An image -> the model's input (3, H, W)."""
        return self._subject.prepare(image)

    def seen(self, prepared: Any) -> Image.Image:
        """A prepared image with its normalisation undone."""
        return self._subject.picture(prepared)

    def __call__(self, items: list[tuple[Any, int]]) -> list[np.ndarray]:
        """(prepared image, class) pairs -> one activation map (H, W), 0 to 1, per pair."""
        import torch

        found = self._activation(self._subject, torch.stack([x for x, _ in items]), [c for _, c in items])
        return list(np.asarray(found))
