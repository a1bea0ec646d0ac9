"""A trained segmenter with everything needed to use it, saved to and loaded from a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from ... import models as models  # registers them with timm
from ...data.limits import Range
from ...utils.errors import UserError
from ..build import Trained, load_model, save_model
from ..config import TrainedFolder, folder_for, read_as
from .loaders import PairTransform, eval_transform
from .masks import IGNORE
from .model import HEADS, SegmentationModel, likeliest, predict_probabilities, segmentation_model

TASK = "segmentation"
"""The task that config.json names in such a folder."""


@dataclass(frozen=True)
class SegmenterConfig:
    """How to build a segmenter, and what it needs; stored as config.json.

    Attributes:
        head, width, dropout: A key of `HEADS`, and its arguments; None is the head's default width.
        class_names, palette: Names and colours (red, green, blue), in the order of the ids.
        mean, std: Of the red, green and blue values.
        resize: Shorter side in pixels to which images are resized; None keeps their size.
        window: Side of the sliding window; None predicts whole images.
        reduce_zero_label, ignore_index: How the training masks store ids; see `map_labels`.
        colours: Colours of the training masks with the id of each, (red, green, blue, id); none if they hold ids.
        value_range: Values shown as black and white in images of more than 8 bits; None finds them in each image.
    """

    backbone: str
    backbone_args: dict[str, Any]
    head: str
    width: int | None
    dropout: float
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    window: int | None = None
    reduce_zero_label: bool = False
    ignore_index: tuple[int, ...] = (IGNORE,)
    colours: tuple[tuple[int, int, int, int], ...] = ()
    value_range: Range | None = None

    def build(self, weights: dict[str, Tensor] | None = None) -> SegmentationModel:
        """Build the model with random weights, or its backbone with the weights of a classifier."""
        return segmentation_model(
            self.backbone,
            len(self.class_names),
            HEADS[self.head],
            weights,
            self.backbone_args,
            self.width,
            self.dropout,
        )


@dataclass(frozen=True)
class Segmenter(Trained):
    """A model with everything needed to use it; a `MaskPredictor`."""

    model: SegmentationModel
    config: SegmenterConfig
    name: str = ""
    form: str = "PyTorch"
    task = TASK

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        return self.config.palette

    @property
    def values(self) -> Range | None:
        return self.config.value_range

    def transform(self) -> PairTransform:
        """The transform of an image, with or without its mask: PIL to a normalised tensor (3, H', W')."""
        config = self.config
        return eval_transform(config.mean, config.std, config.resize)

    def probabilities(
        self, image: Image.Image, window: int | None = None, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> Tensor:
        """Probabilities (K, H', W') of every pixel of the transformed image, on the model's device."""
        device = next(self.model.parameters()).device
        prepare: Any = self.transform()
        x = prepare(image)[None].to(device, memory_format=torch.channels_last)
        found = predict_probabilities(self.model, x, window or self.config.window, scales=scales, flip=flip)  # type: ignore[arg-type]
        return found[0]

    def segment(
        self, image: Image.Image, window: int | None = None, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> np.ndarray:
        """The most likely class (H, W), uint8, of every pixel of an image; see `predict_probabilities`."""
        found = self.probabilities(image, window, scales, flip)[None]
        return likeliest(found, (image.height, image.width))[0][0].byte().cpu().numpy()


def save_segmenter(folder: Path, config: SegmenterConfig, state: dict[str, Tensor]) -> None:
    """Write model.safetensors and config.json, each atomically; creates the folder if needed."""
    save_model(folder, TASK, config, state)


def open_segmenter(source: str | TrainedFolder) -> Segmenter:
    """Open a trained segmenter from a run's best/ folder, or the run's folder.

    Raises:
        UserError: No such folder, an unknown architecture, or weights that do not fit.
    """
    trained = folder_for(TASK, source, "a segmenter")
    config = segmenter_config(trained)
    return Segmenter(load_model(trained, config.build), config, trained.name)


def segmenter_config(trained: TrainedFolder) -> SegmenterConfig:
    """Read a config.json written by `save_segmenter`; UserError for anything else."""
    config = read_as(SegmenterConfig, trained, "a segmenter")
    if config.head not in HEADS or not timm.is_model(config.backbone):
        raise UserError(f"{trained.path} is not a segmenter's configuration: its model or head is unknown.")
    if not len(config.class_names) == len(config.palette) == trained.stated["num_classes"]:
        raise UserError(f"{trained.path} is not a segmenter's configuration: its classes do not add up.")
    return config
