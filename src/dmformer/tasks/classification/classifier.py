"""A trained classifier with everything needed to use it, saved to and loaded from a folder that timm can load."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ... import models as models  # registers them with timm
from ...data.limits import Range
from ...models.weights import check_fit, read_state_dict, write_state_dict
from ...nn.mean_answer import MeanAnswer
from ...nn.over_cores import over_cores
from ...utils.errors import UserError, unknown
from ...utils.files import whole_file, write_whole
from ...utils.views import VIEWS
from ..build import Trained
from ..config import TrainedFolder, folder_for, read_as, read_folder

TASK = "classification"
"""The task that config.json names in such a folder, unless it names none."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")
"""timm's resizing and cropping modes."""


@dataclass(frozen=True)
class Classifier(Trained):
    """A model with everything needed to use it; a `ClassPredictor`.

    `model` is without test-time augmentation; `network` is the module that answers.
    """

    model: nn.Module
    class_names: list[str]
    data_config: dict[str, Any]
    name: str = ""
    form: str = "PyTorch"
    values: Range | None = None
    """Values shown as black and white in images of more than 8 bits, as in training."""
    tta: str = "none"
    """Test-time augmentation, a key of `VIEWS`."""
    task = TASK
    several = False
    """Whether an image may show several classes."""

    @cached_property
    def network(self) -> nn.Module:
        """(B, 3, H, W) -> logits (B, K), over the views of `tta`."""
        return self.model if self.tta == "none" else MeanAnswer([self.model], self.tta, self.several).eval()

    @property
    def single(self) -> nn.Module:
        """The one model that gives features and maps; UserError for an ensemble."""
        if isinstance(self.model, MeanAnswer):
            told = f"{self.name} is an ensemble, which has no features of its own"
            raise UserError(f"{told}: give one of its members, such as fold-1/best.")
        return self.model

    def answering(self, tta: str) -> Self:
        """The same with other test-time augmentation; "auto" keeps its own."""
        return self if tta == "auto" else replace(self, tta=tta)

    @property
    def one_size(self) -> bool:
        """Whether all transformed images have the same size, so that they can be batched."""
        return True

    def prepare(self, image: Image.Image) -> np.ndarray:
        """An image of any size -> (3, H, W), float32."""
        return self._transform(image).numpy()

    def as_probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) -> (B, K), rows that sum to 1."""
        return logits.softmax(1)

    @torch.inference_mode()
    def probabilities(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """B prepared images -> (B, K)."""
        device = next(self.model.parameters()).device
        images = torch.from_numpy(np.stack(batch)).to(device, memory_format=torch.channels_last)
        return self.as_probabilities(over_cores(self.network, images).float()).cpu().numpy()

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        return self.transform()

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The evaluation transform that the model was trained for: a PIL image to a tensor (3, H, W)."""
        return create_transform(**self.data_config)  # type: ignore[return-value]

    @property
    def at_least(self) -> int:
        """Minimum shorter side in pixels of an image before it is transformed."""
        return round(max(self.data_config["input_size"][-2:]) / self.data_config["crop_pct"])


def save_classifier(
    folder: Path,
    model: nn.Module,
    state: dict[str, Tensor],
    class_names: list[str],
    data_config: dict[str, Any],
    values: Range | None = None,
    tta: str = "none",
    more: dict[str, Any] | None = None,
) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, each file atomically.

    Args:
        model: Created by timm's `create_model`, whose arguments are recorded.
        class_names: In the order of the classifier's outputs.
        data_config: Preprocessing, as returned by timm's `resolve_data_config`.
        values: Values shown as black and white in images of more than 8 bits.
        tta: Test-time augmentation that the folder is used with by default, a key of `VIEWS`.
        more: More entries of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_state_dict(folder / "model.safetensors", state)
    config: dict[str, Any] = {**(more or {}), "label_names": class_names}
    if tta != "none":
        config["tta"] = tta
    if values is not None:
        config["value_range"] = list(values)
    with whole_file(folder / "config.json") as part:
        save_config_for_hf(model, str(part), model_config=config, data_config=data_config)
        _state_classes_once(part)


def _state_classes_once(path: Path) -> None:
    """Take num_classes out of a config.json's model_args: it is beside them too, and transformers passes both on."""
    stated = json.loads(path.read_text("utf-8"))
    stated.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(stated, indent=2) + "\n", "utf-8")


@dataclass(frozen=True)
class ClassifierConfig:
    """The model's part of a classifier's config.json, as timm writes it."""

    backbone: str
    num_classes: int
    backbone_args: dict[str, Any] | None = None
    value_range: Range | None = None
    tta: str = "none"
    members: tuple[str, ...] = ()
    """Folders of the models of an ensemble, relative to its own."""


@dataclass(frozen=True)
class Preprocessing:
    """The images' part of a config.json, its `pretrained_cfg`, in timm's terms; None is timm's default."""

    input_size: tuple[int, int, int] | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None


def open_classifier(source: str | TrainedFolder) -> Classifier:
    """Open a trained classifier from a run's best/ folder (or the run's folder), or from hf-hub:owner/name.

    Raises:
        UserError: No such folder, an unknown architecture, or weights that do not fit.
    """
    if isinstance(source, str) and source.startswith("hf-hub:"):
        model: Any = timm.create_model(source, pretrained=True).eval()
        return Classifier(
            model, label_names(model.pretrained_cfg, model.num_classes), resolve_model_data_config(model), source
        )
    return read_classifier(folder_for(TASK, source, "a classifier"))


def read_classifier(trained: TrainedFolder, several: bool = False) -> Classifier:
    """Open a folder that `save_classifier` or `save_ensemble` wrote, whatever task its config.json names.

    Args:
        several: Whether an image may show several classes.

    Raises:
        UserError: An unknown architecture, weights that do not fit, or members that differ.
    """
    config = read_as(ClassifierConfig, trained, "a classifier")
    if config.tta not in VIEWS:
        raise UserError(f"{trained.path}: its tta is {config.tta}: it must be {', '.join(VIEWS)}.")
    if config.members:
        return _read_ensemble(trained, config, several)
    _check_preprocessing(trained)
    if not timm.is_model(config.backbone):
        raise unknown("model", config.backbone, timm.list_models())
    state = read_state_dict(trained.weights)
    arguments = {"num_classes": config.num_classes, **(config.backbone_args or {})}
    with trained.building():
        model = timm.create_model(config.backbone, pretrained=False, **arguments)
    check_fit(model, state, str(trained))
    model.load_state_dict(state)
    names = label_names(trained.stated, config.num_classes)
    if len(names) != config.num_classes:
        raise UserError(f"{trained.path} names {len(names)} classes for a model of {config.num_classes}.")
    cfg = trained.stated.get("pretrained_cfg") or {}
    data_config = resolve_model_data_config(pretrained_cfg=cfg, model=model)
    return Classifier(model.eval(), names, data_config, trained.name, values=config.value_range, tta=config.tta)


def save_ensemble(folder: Path, members: Sequence[Path], more: dict[str, Any] | None = None) -> None:
    """Write a folder that answers with the mean probabilities of several classifiers, which stay where they are.

    Args:
        folder: Its config.json refers to the members by relative paths, so that all can be moved together.
        members: Folders that `save_classifier` wrote, of the same classes and preprocessing.
        more: More entries of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stated = {**read_folder(str(members[0])).stated, **(more or {})}
    stated["members"] = [Path(os.path.relpath(member, folder)).as_posix() for member in members]
    write_whole(folder / "config.json", json.dumps(stated, indent=2) + "\n")


def _read_ensemble(trained: TrainedFolder, config: ClassifierConfig, several: bool) -> Classifier:
    folders = [read_folder(str(trained.folder / member)) for member in config.members]
    if any("members" in folder.stated for folder in folders):
        raise UserError(f"{trained.path} lists an ensemble among its members: list the models themselves.")
    members = [read_classifier(folder, several) for folder in folders]
    first = members[0]
    wanted = (trained.task, first.class_names, first.data_config)
    for folder, other in zip(folders, members, strict=True):
        if (folder.task, other.class_names, other.data_config) != wanted:
            raise UserError(f"{trained.path} cannot be opened: {folder} has other classes or sizes than {folders[0]}.")
    model = MeanAnswer([member.model for member in members], several=several)
    return replace(first, model=model.eval(), name=trained.name, tta=config.tta)


def _check_preprocessing(trained: TrainedFolder) -> None:
    """Raise UserError for a config.json whose `pretrained_cfg` makes it impossible to prepare an image."""
    found = read_as(Preprocessing, trained, "a classifier")
    channels = (1, found.input_size[0] if found.input_size else 3)
    fits = {
        "input_size": found.input_size is None or min(found.input_size) > 0,
        "interpolation": found.interpolation in (None, "random", *INTERPOLATIONS),
        "mean": not found.mean or len(found.mean) in channels,
        "std": not found.std or (len(found.std) in channels and min(found.std) > 0),
        "crop_pct": found.crop_pct is None or found.crop_pct > 0,
        "crop_mode": found.crop_mode in (None, *CROP_MODES),
    }
    for name, good in fits.items():
        if not good:
            raise UserError(f"{trained.path} is not a classifier's configuration: no photo can be given its {name}.")


def label_names(cfg: Any, num_classes: int) -> list[str]:
    names = cfg.get("label_names")
    if names is not None and not isinstance(names, list | tuple):
        raise UserError("the model's configuration is damaged: its label_names are no list of names.")
    return [str(n) for n in names] if names else [str(i) for i in range(num_classes)]
