"""A trained detector with everything needed to use it, saved to and loaded from a folder."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import timm
from PIL import Image
from torch import Tensor, nn

from ... import models as models  # registers them with timm
from ...data.detections import THRESHOLD, Detections
from ...data.limits import Range
from ...data.palette import default_palette
from ...utils.errors import UserError
from ..build import Trained, load_model, save_model
from ..config import TrainedFolder, folder_for, read_as
from .frameworks.base import DetectionModel
from .loaders import EvalTransform, eval_transform
from .merged_views import MergedViews
from .model import FRAMEWORKS, QUERIES, WITH_MASKS, detect, detection_model

TASK = "detection"
"""The task that config.json names in such a folder."""


@dataclass(frozen=True)
class DetectorConfig:
    """How to build a detector, and what it needs; stored as config.json.

    Attributes:
        width, samples, queries: See `DetectionRecipe`; None for the detector's default, or if it has no such option.
        class_names, category_ids: Names, and the ids that annotations use, in the order of the labels.
        mean, std: Of the red, green and blue values.
        image_size, max_side: Shorter side in pixels to which images are resized, and maximum of the longer side.
        value_range: Values shown as black and white in images of more than 8 bits; None finds them in each image.
        threshold: Score with the highest F1 on the validation images; missing in older folders.
    """

    backbone: str
    backbone_args: dict[str, Any]
    framework: str
    masks: bool
    width: int | None
    samples: int | None
    queries: int | None
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    max_side: int
    value_range: Range | None = None
    threshold: float = THRESHOLD

    def build(self, weights: dict[str, Tensor] | None = None) -> DetectionModel:
        """Build the model with random weights, or its backbone with the weights of a classifier."""
        arguments: dict[str, Any] = {}
        if self.framework in WITH_MASKS:
            arguments["masks"] = self.masks
        given = {"width": self.width, "samples": self.samples, QUERIES.get(self.framework, ""): self.queries}
        arguments |= {name: value for name, value in given.items() if value is not None}
        framework = FRAMEWORKS[self.framework]
        return detection_model(
            self.backbone, len(self.class_names), framework, weights, self.backbone_args, **arguments
        )


@dataclass(frozen=True)
class Detector(Trained):
    """A model with everything needed to use it; a `BoxPredictor`.

    `model` is without test-time augmentation; `network` is the module that answers.
    """

    model: DetectionModel
    config: DetectorConfig
    name: str = ""
    form: str = "PyTorch"
    tta: str = "none"
    """Test-time augmentation, a key of `VIEWS`."""
    task = TASK

    @cached_property
    def network(self) -> nn.Module:
        """Images (3, H, W) -> detections in each, merged over the views of `tta`."""
        return self.model if self.tta == "none" else MergedViews(self.model, self.tta).eval()

    def answering(self, tta: str) -> Self:
        """The same with other test-time augmentation; "auto" keeps its own."""
        return self if tta == "auto" else replace(self, tta=tta)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        return self.config.category_ids

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        return default_palette(len(self.config.class_names))

    @property
    def threshold(self) -> float:
        return self.config.threshold

    @property
    def values(self) -> Range | None:
        return self.config.value_range

    def transform(self) -> EvalTransform:
        """The transform of an image: PIL to a normalised tensor (3, H', W')."""
        config = self.config
        return eval_transform(config.image_size, config.max_side, config.mean, config.std)

    def detect(self, image: Image.Image, threshold: float = 0.0) -> Detections:
        """The objects in an image that reach a score, in the image's pixels, the most confident first."""
        device = next(self.model.parameters()).device
        x = self.transform()(image).to(device)
        return detect(self.network, [x], [(image.height, image.width)], threshold)[0]


def save_detector(folder: Path, config: DetectorConfig, state: dict[str, Tensor]) -> None:
    """Write model.safetensors and config.json, each atomically; creates the folder if needed."""
    save_model(folder, TASK, config, state)


def open_detector(source: str | TrainedFolder) -> Detector:
    """Open a trained detector from a run's best/ folder, or the run's folder.

    Raises:
        UserError: No such folder, an unknown architecture, or weights that do not fit.
    """
    trained = folder_for(TASK, source, "a detector")
    config = detector_config(trained)
    return Detector(load_model(trained, config.build), config, trained.name)


def detector_config(trained: TrainedFolder) -> DetectorConfig:
    """Read a config.json written by `save_detector`; UserError for anything else."""
    config = read_as(DetectorConfig, trained, "a detector")
    if config.framework not in FRAMEWORKS or not timm.is_model(config.backbone):
        raise UserError(f"{trained.path} is not a detector's configuration: its model or framework is unknown.")
    if not len(config.class_names) == len(config.category_ids) == trained.stated["num_classes"]:
        raise UserError(f"{trained.path} is not a detector's configuration: its classes do not add up.")
    if not 0 <= config.threshold <= 1:
        raise UserError(f"{trained.path} is not a detector's configuration: its threshold is not from 0 to 1.")
    if min(config.image_size, config.max_side) < 32:
        raise UserError(f"{trained.path} is not a detector's configuration: its sides are below 32 pixels.")
    return config
