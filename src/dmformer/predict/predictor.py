"""A trained model that answers for photos, whatever runs it: PyTorch, ONNX Runtime or OpenVINO."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from ..data.detections import Detections
from ..runtimes.card import is_exported
from ..runtimes.exported import open_exported


class Predictor(Protocol):
    """A trained model of K classes.

    Attributes:
        task: "classification", "segmentation" or "detection".
        name: The run's, or the file's.
        form: What runs it, in words.
        class_names: K names.
    """

    @property
    def task(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def class_names(self) -> Sequence[str]: ...


class ClassPredictor(Predictor, Protocol):
    """A classifier.

    Attributes:
        at_least: Shorter side in pixels that a photo needs to have, for `decode`.
    """

    @property
    def at_least(self) -> int: ...

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A photo of any size -> what goes into a batch."""
        ...

    def probabilities(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """B prepared photos -> (B, K)."""
        ...


class MaskPredictor(Predictor, Protocol):
    """A segmenter.

    Attributes:
        palette: K colours (red, green, blue; 0 to 255).
    """

    @property
    def palette(self) -> Sequence[tuple[int, int, int]]: ...

    def segment(
        self, image: Image.Image, window: int | None = None, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> np.ndarray:
        """The likeliest class of every pixel of a photo: (H, W), uint8."""
        ...


class BoxPredictor(Predictor, Protocol):
    """A detector.

    Attributes:
        palette: K colours (red, green, blue; 0 to 255).
        category_ids: What annotations call the classes.
    """

    @property
    def palette(self) -> Sequence[tuple[int, int, int]]: ...
    @property
    def category_ids(self) -> Sequence[int]: ...

    def detect(self, image: Image.Image, threshold: float = 0.0) -> Detections:
        """The objects on a photo of at least a score, in its pixels, the surest first."""
        ...


def open_predictor(source: str, threads: int | None = None) -> ClassPredictor | MaskPredictor | BoxPredictor:
    """A trained model, ready to answer.

    Args:
        source: A run's best/ folder or the run's folder, hf-hub:owner/name, or an exported .onnx or .xml file, which
            is opened without PyTorch.
        threads: That it computes with, of PyTorch for the whole process; by default as many as there are cores.

    Raises:
        UserError: None of these, or one that cannot be read.
    """
    if is_exported(source):
        return open_exported(source, threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from ..tasks.opening import open_trained

    return open_trained(source).for_inference()
