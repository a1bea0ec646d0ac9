"""Convert files that authors publish to a folder that timm loads."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, resolve_data_config

from ...models import PUBLISHED
from ...models.weights import POSITIONS, identify, load_weights, our_names, read_state_dict, sentence
from ...utils.errors import UserError
from ...utils.files import writing_to
from .classifier import save_classifier

PATCH = 16
"""Patch side in pixels that learned positions refer to."""


@dataclass(frozen=True)
class Converted:
    """What was written: the model's name and arguments, its size, and how to prepare images for it."""

    model: str
    parameters: int
    num_classes: int
    data_config: dict[str, Any]
    folder: Path


def convert(
    source: str, out: str, drop_head: bool = False, image_size: int | None = None, overwrite: bool = False
) -> Converted:
    """Recognise a published weights file and write the folder that `timm.create_model("local-dir:OUT")` loads.

    Args:
        source: A .pth, .pth.tar or .safetensors file: the authors', OpenMMLab's, Hugging Face's, or with our names.
        out: Output folder for model.safetensors and config.json; created if missing.
        image_size: Side in pixels that the weights were tuned for, if the file's name does not say.

    Raises:
        UserError: An unreadable file, weights of an unknown variant, or values that are not finite.
    """
    path, folder = Path(source), Path(out)
    if (folder / "model.safetensors").exists() and not overwrite:
        raise UserError(f"{out} holds a model already: give --overwrite, or another folder.")
    if folder.is_file():
        raise UserError(f"{out} is a file: name a folder.")
    state = our_names(read_state_dict(path), source)
    match = identify(state)
    if match is None:
        raise UserError(f"{source} is of no model here: its tensors are named like {', '.join(list(state)[:3])}.")
    if match.differences:
        raise UserError(
            f"{source} is of no variant here. The nearest is {match}; the file {sentence(match.differences)}."
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{source} is refused: {name} holds values that are not finite.")
    weight = state.get("head.fc.weight")
    num_classes = 0 if weight is None or drop_head else len(weight)
    name = f"{match.variant}.{_tag(match.variant, path.name, None if weight is None else len(weight))}"
    arguments = dict(match.arguments)
    if POSITIONS in state:
        image_size = PATCH * math.isqrt(state[POSITIONS].shape[1])
        arguments["img_size"] = image_size
    model: Any = timm.create_model(name, num_classes=num_classes, **arguments)
    if num_classes == 0:
        state = {key: value for key, value in state.items() if not key.startswith("head.fc.")}
    load_weights(model, state)
    data_config = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    if image_size is not None and image_size != data_config["input_size"][-1]:
        data_config = {**data_config, "input_size": (3, image_size, image_size)}
        if image_size > 224:
            data_config["crop_pct"] = 1.0
    with writing_to(folder, "free some space, or name another folder"):
        save_classifier(folder, model, model.state_dict(), class_names(num_classes), data_config)
    parameters = sum(p.numel() for p in model.parameters())
    return Converted(str(match), parameters, num_classes, data_config, folder)


def _tag(variant: str, file: str, classes: int | None) -> str:
    """Which of a variant's published weights a file holds, by its name, else by its classes."""
    weights = PUBLISHED[variant].weights
    by_name = [w.tag for w in weights if file in w.files]
    by_classes = [w.tag for w in weights if w.num_classes == classes]
    return (by_name or by_classes or [weights[0].tag])[0]


def class_names(num_classes: int) -> list[str]:
    """ImageNet's class names if the number matches ImageNet-1K or 22K, else numbers."""
    subset = {1000: "imagenet-1k", 21841: "imagenet-22k"}.get(num_classes)
    if subset is None:
        return [str(i) for i in range(num_classes)]
    info = ImageNetInfo(subset)
    names = [str(name) for name in info.label_descriptions()]
    count = Counter(names)  # ImageNet-1K has two cranes
    pairs = zip(names, info.label_names(), strict=True)
    return [f"{name} ({synset})" if count[name] > 1 else name for name, synset in pairs]
