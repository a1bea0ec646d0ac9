"""A model to look into, of a classifier or a segmenter, with the names of its parts and what brings a photo to it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn

from ..models.create import own_size, random_model
from ..tasks.config import find_config, run_name
from ..tasks.detection.detector import Detector
from ..tasks.opening import open_trained
from ..tasks.segmentation.segmenter import Segmenter
from ..utils.errors import UserError, unknown


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode on the CPU, float32, as it was trained: not fused.

    Attributes:
        name: What pictures and tables call it: the run's folder, or the source itself.
        task: "classification", with logits (B, K), or "segmentation", with logits (B, K, H, W).
        model: The whole of it.
        stages: Names of the modules in `model` that give its maps, from fine to coarse.
        strides: Of those maps, in pixels.
        class_names: K names; numbers where none are known.
        mean, std: Of the red, green and blue values, that `prepare` normalises with.
        image_size: Height and width that it was made or trained for; of a segmenter what it was made for, else None.
        prepare: A photo of any size -> (3, H, W), normalised, resized and cropped as in evaluation.
        trained: False for a model that was made by its name, with random weights.
    """

    name: str
    task: str
    model: nn.Module
    stages: list[str]
    strides: list[int]
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int] | None
    prepare: Callable[[Image.Image], Tensor]
    trained: bool = True

    def module(self, name: str) -> nn.Module:
        """A part of the model by its name; UserError with the nearest names for one that it does not have."""
        parts = dict(self.model.named_modules())
        if name not in parts or not name:
            raise unknown("layer", name, [part for part in parts if part])
        return parts[name]

    @property
    def backbone(self) -> Any:
        """What gives the maps: a segmenter without its head, a classifier whole."""
        return self.model.backbone if self.task == "segmentation" else self.model

    @property
    def channels_last_maps(self) -> bool:
        """Whether the stages give (B, H, W, C), as Swin's do."""
        return getattr(self.backbone, "output_fmt", None) == Format.NHWC

    def picture(self, prepared: Tensor) -> Image.Image:
        """A prepared photo (3, H, W) as it was before it was normalised: what the model sees."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = (255 * (prepared * std + mean)).round().clamp(0, 255).byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def open_subject(source: str, image_size: int | None = None) -> Subject:
    """A model to look into.

    Args:
        source: A run's best/ folder or the run's folder, hf-hub:owner/name, or the name of a model of ours or timm's,
            which then has random weights, always the same.
        image_size: Side in pixels of the images of a model made by name; by default its own.

    Raises:
        UserError: A source that is none of these.
    """
    if not source.startswith("hf-hub:") and not Path(source).is_dir():
        return _random(source, image_size)
    name = source if source.startswith("hf-hub:") else run_name(find_config(source).parent)
    trained = open_trained(source)
    if isinstance(trained, Detector):
        raise UserError(
            f"{name} is a detector: give a classifier or a segmenter, whose answer is of one class a place."
        )
    if isinstance(trained, Segmenter):
        config, model = trained.config, trained.model
        info: Any = model.backbone.feature_info
        modules, strides = _stages(info.module_name()[-4:], model.backbone, "backbone."), info.reduction()[-4:]
        names = list(config.class_names)
        prepare: Any = trained.transform()
        return Subject(
            name, "segmentation", model, modules, strides, names, config.mean, config.std, model.made_for, prepare
        )
    return _classifier(name, trained.model, trained.class_names, trained.data_config)


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
        "classification",
        model,
        _stages([entry["module"] for entry in info], model, ""),
        [entry["reduction"] for entry in info],
        class_names,
        tuple(data_config["mean"]),
        tuple(data_config["std"]),
        (height, width),
        prepare,
        trained,
    )


def _stages(names: list[str], model: nn.Module, prefix: str) -> list[str]:
    """Names as they are in the model: what timm takes apart for `features_only` has _ for a dot."""
    parts = dict(model.named_modules())
    return [prefix + (name if name in parts else name.replace(".", "_")) for name in names]
