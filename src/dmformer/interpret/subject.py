"""A classifier, segmenter or detector to analyse, with the names of its modules and its preprocessing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn

from ..data.detections import THRESHOLD
from ..data.limits import Range
from ..models.create import own_size, random_model
from ..tasks.classification.classifier import Classifier
from ..tasks.detection.detector import Detector
from ..tasks.detection.frameworks.base import batched
from ..tasks.opening import open_trained
from ..tasks.segmentation.segmenter import Segmenter
from ..tasks.table import TASKS
from ..utils.errors import UserError, unknown
from ..utils.pretrained import CHECKSUMS
from .boxes import Objects


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode on the CPU, in float32 and not fused.

    Attributes:
        name: Name in figures and tables: the run's folder, or the source itself.
        stages: Names of the modules in `model` that output its feature maps, from fine to coarse.
        strides: Strides of those maps in pixels.
        class_names: K names; numbers if the names are unknown.
        mean, std: Mean and standard deviation of red, green and blue that `prepare` normalises with.
        image_size: Height and width that it was built or trained for; None for a model of images of any size.
        prepare: An image of any size -> (3, H, W), resized, cropped and normalised as in evaluation.
        padded: Pads images (B, 3, H, W) as the model itself does before its layers.
        part: Name of the module in `model` that outputs the feature maps; empty for the model itself.
        of_pixels: Whether it has an answer for every pixel, logits (B, K, H, W), rather than for the photo, (B, K).
        of_boxes: Whether it has an answer for every box, (B, n, 4 + K), see `Objects`.
        threshold: Score from which an object counts as detected, as in `dmformer predict`.
        several: Whether the photo may show several classes: its probabilities do not sum to 1.
        trained: False for a model created by name, with random weights.
        values: Values shown as black and white in images of more than 8 bits; None finds them in each image.
    """

    name: str
    model: nn.Module
    stages: list[str]
    strides: list[int]
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None
    prepare: Callable[[Image.Image], Tensor]
    padded: Callable[[Tensor], Tensor] = lambda images: images
    part: str = ""
    of_pixels: bool = False
    of_boxes: bool = False
    threshold: float = THRESHOLD
    several: bool = False
    trained: bool = True
    values: Range | None = None

    def module(self, name: str) -> nn.Module:
        """A module of the model by name; UserError with the nearest names if there is none."""
        parts = dict(self.model.named_modules())
        if name not in parts or not name:
            raise unknown("layer", name, [part for part in parts if part])
        return parts[name]

    @property
    def backbone(self) -> Any:
        """The model that outputs the feature maps: a segmenter or detector without its head, or a complete
        classifier."""
        return self.model.get_submodule(self.part)

    @property
    def of_any_size(self) -> bool:
        """Whether images may have any size, or vary around the one size of the model."""
        return self.of_pixels or self.of_boxes

    @property
    def channels_last_maps(self) -> bool:
        """Whether the stages output (B, H, W, C), like Swin's."""
        return getattr(self.backbone, "output_fmt", None) == Format.NHWC

    def picture(self, prepared: Tensor) -> Image.Image:
        """A prepared image (3, H, W) with its normalisation undone: what the model sees."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (255 * (prepared.cpu() * std + mean)).round().clamp(0, 255).byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def open_subject(source: str, image_size: int | None = None) -> Subject:
    """Open a model for analysis.

    Args:
        source: A run's best/ folder or the run's folder, this package's weights with their tag, hf-hub:owner/name, or
            a model name, ours or timm's, for reproducible random weights.
        image_size: Image side in pixels of a model created by name; by default the model's own.

    Raises:
        UserError: The source is none of these.
    """
    if not source.startswith("hf-hub:") and source not in CHECKSUMS and not Path(source).is_dir():
        return _random(source, image_size)
    trained = open_trained(source)
    name, task = trained.name, TASKS[trained.task]
    if task.answer not in SUBJECTS:
        raise UserError(f"{name} is a {task.model}: give a classifier, a segmenter or a detector.")
    return SUBJECTS[task.answer](name, trained)


def _of_classifier(name: str, trained: Classifier) -> Subject:
    subject = _classifier(name, trained.single, trained.class_names, trained.data_config)
    return replace(subject, values=trained.values)


def _of_multilabel(name: str, trained: Classifier) -> Subject:
    return replace(_of_classifier(name, trained), several=True)


def _of_segmenter(name: str, trained: Segmenter) -> Subject:
    config, model = trained.config, trained.model
    info: Any = model.backbone.feature_info
    modules, strides = _stages(info.module_name()[-4:], model.backbone, "backbone."), info.reduction()[-4:]
    names = list(config.class_names)
    prepare: Any = trained.transform()
    return Subject(
        name,
        model,
        modules,
        strides,
        names,
        config.mean,
        config.std,
        model.made_for,
        prepare,
        padded=model.padded,
        part="backbone",
        of_pixels=True,
        values=trained.values,
    )


def _of_detector(name: str, trained: Detector) -> Subject:
    model = Objects(trained.model, len(trained.class_names))
    backbone: Any = trained.model.backbone_module()
    part = next(place for place, module in model.named_modules() if module is backbone)
    return Subject(
        name,
        model,
        _stages(backbone.feature_info.module_name()[-4:], backbone, f"{part}."),
        backbone.feature_info.reduction()[-4:],
        list(trained.class_names),
        trained.config.mean,
        trained.config.std,
        None,
        trained.transform(),
        padded=lambda images: batched(list(images)).tensors,
        part=part,
        of_boxes=True,
        threshold=trained.threshold,
        values=trained.values,
    )


SUBJECTS: dict[str, Callable[[str, Any], Subject]] = {
    "labels": _of_classifier,
    "tags": _of_multilabel,
    "masks": _of_segmenter,
    "boxes": _of_detector,
}
"""By the `answer` of a `Task`, of those with classes of images, pixels or boxes."""


def _random(name: str, image_size: int | None) -> Subject:
    model: Any = random_model(name, image_size or own_size(name))
    data_config = resolve_model_data_config(model)
    if image_size is not None:
        data_config = {**data_config, "input_size": (3, image_size, image_size), "crop_pct": 1.0}
    return _classifier(name, model, [str(i) for i in range(model.num_classes)], data_config, trained=False)


def _classifier(
    name: str, model: Any, class_names: list[str], data_config: dict[str, Any], trained: bool = True
) -> Subject:
    info = model.feature_info
    prepare: Any = create_transform(**data_config)
    _, height, width = data_config["input_size"]
    return Subject(
        name,
        model,
        _stages([entry["module"] for entry in info], model, ""),
        [entry["reduction"] for entry in info],
        class_names,
        tuple(data_config["mean"]),
        tuple(data_config["std"]),
        (height, width),
        prepare,
        trained=trained,
    )


def _stages(names: list[str], model: nn.Module, prefix: str) -> list[str]:
    """Names as in the model: timm's `features_only` replaces dots by underscores."""
    parts = dict(model.named_modules())
    return [prefix + (name if name in parts else name.replace(".", "_")) for name in names]
