"""A trained model that predicts on images, in PyTorch, ONNX Runtime or OpenVINO."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..data.detections import Detections
from ..data.limits import Range
from ..runtimes.card import is_exported
from ..runtimes.exported import open_exported
from ..tasks.config import TrainedFolder
from ..tasks.table import TASKS
from ..utils.errors import UserError

Source = str | TrainedFolder
"""Where a trained model is, or its folder with the config.json read."""


class Predictor(Protocol):
    """A trained model of K classes.

    Attributes:
        task: "classification", "multilabel", "segmentation" or "detection".
        name: Name of the run or the file.
        form: Name of the runtime, for users.
        values: Values shown as black and white in images of more than 8 bits; None finds them in each image.
    """

    @property
    def task(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def class_names(self) -> Sequence[str]: ...
    @property
    def values(self) -> Range | None: ...


class ClassPredictor(Predictor, Protocol):
    """A classifier.

    Attributes:
        at_least: Minimum shorter side of an image in pixels, for `decode`.
    """

    @property
    def at_least(self) -> int: ...

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image of any size -> an item of a batch."""
        ...

    def probabilities(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """B prepared images -> (B, K)."""
        ...


class LabelPredictor(ClassPredictor, Protocol):
    """A multi-label classifier, whose probabilities do not sum to 1.

    Attributes:
        thresholds: A class applies from this probability on; K values.
    """

    @property
    def thresholds(self) -> Sequence[float]: ...


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
        """The most likely class of every pixel of an image: (H, W), uint8."""
        ...


class BoxPredictor(Predictor, Protocol):
    """A detector.

    Attributes:
        palette: K colours (red, green, blue; 0 to 255).
        category_ids: Annotation ids of the classes.
        threshold: Minimum score of an object, unless the caller gives one.
    """

    @property
    def palette(self) -> Sequence[tuple[int, int, int]]: ...
    @property
    def threshold(self) -> float: ...
    @property
    def category_ids(self) -> Sequence[int]: ...

    def detect(self, image: Image.Image, threshold: float = 0.0) -> Detections:
        """The objects in an image with at least this score, in its pixels, highest score first."""
        ...


def opened(source: Any, answer: str, what: str) -> Any:
    """A model that predicts `answer`, opened from its source unless it is open already.

    Args:
        answer: What the model's task has to predict; see `Task`.
        what: The kind of model expected, for the error message: "a classifier".

    Raises:
        UserError: A model of another kind, or as `open_predictor`.
    """
    model = open_predictor(source) if isinstance(source, Source) else source
    if TASKS[model.task].answer != answer:
        raise UserError(f"{model.name} is a model for {model.task}, not {what}.")
    return model


def open_predictor(
    source: Source, threads: int | None = None, device: str = "auto", tta: str = "auto"
) -> ClassPredictor | MaskPredictor | BoxPredictor:
    """Open a trained model for prediction.

    Args:
        source: A run's best/ folder or the run's folder, hf-hub:owner/name, or an exported .onnx or .xml file, which
            is opened without PyTorch.
        threads: Compute threads (for PyTorch, of the whole process); by default as many as there are cores.
        device: Name of the device that PyTorch computes on, see `find_device`.
        tta: Test-time augmentation of a classifier or a detector, a key of `VIEWS`; auto is its own. An exported
            classifier takes no other.

    Raises:
        UserError: The source is none of these, or cannot be read.
    """
    if isinstance(source, str) and is_exported(source):
        return open_exported(source, threads).answering(tta)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    from ..tasks.opening import open_trained

    trained = open_trained(source)
    return (trained if tta == "auto" else trained.answering(tta)).for_inference(device)
