"""A trained classifier with what is needed to use it, written to and read from a folder that timm loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ... import models as models  # registers them with timm
from ...models.weights import check_fit, read_state_dict, to_best_device, write_state_dict
from ...nn.fuse import fuse
from ...nn.over_cores import over_cores
from ...utils.errors import UserError, first_line, unknown
from ...utils.files import whole_file
from ..config import find_config, read_config, run_name, task_of


@dataclass(frozen=True)
class Classifier:
    """A model with what is needed to use it; a `ClassPredictor`."""

    model: nn.Module
    class_names: list[str]
    data_config: dict[str, Any]
    name: str = ""
    form: str = "PyTorch"
    task = "classification"

    def for_inference(self) -> "Classifier":
        """The same classifier, fused, on the GPU if there is one."""
        fused = replace(self, model=fuse(self.model), form="PyTorch, fused")
        fused.on_best_device()
        return fused

    def prepare(self, image: Image.Image) -> np.ndarray:
        """A photo of any size -> (3, H, W), float32."""
        return self._transform(image).numpy()

    @torch.inference_mode()
    def probabilities(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """B prepared photos -> (B, K)."""
        device = next(self.model.parameters()).device
        images = torch.from_numpy(np.stack(batch)).to(device, memory_format=torch.channels_last)
        return over_cores(self.model, images).float().softmax(1).cpu().numpy()

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        return self.transform()

    def on_best_device(self) -> torch.device:
        """Move the model to the GPU, if there is one, in the memory format that suits convolutions."""
        return to_best_device(self.model)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The evaluation transform that the model was trained for: a PIL image to a tensor (3, H, W)."""
        return create_transform(**self.data_config)  # type: ignore[return-value]

    @property
    def at_least(self) -> int:
        """Shorter side in pixels that an image needs to have before it is transformed."""
        return round(max(self.data_config["input_size"][-2:]) / self.data_config["crop_pct"])


def save_classifier(
    folder: Path, model: nn.Module, state: dict[str, Tensor], class_names: list[str], data_config: dict[str, Any]
) -> None:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, each file whole.

    Args:
        folder: Made if it is not there.
        model: Made by timm's `create_model`, whose arguments are recorded.
        state: The weights to write.
        class_names: Their order is the classifier's.
        data_config: Preprocessing, as timm's `resolve_data_config` gives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_state_dict(folder / "model.safetensors", state)
    with whole_file(folder / "config.json") as part:
        save_config_for_hf(model, str(part), model_config={"label_names": class_names}, data_config=data_config)


def open_classifier(source: str) -> Classifier:
    """A trained classifier from a run's best/ folder (or the run's folder), or from hf-hub:owner/name.

    Raises:
        UserError: Not such a folder, an unknown architecture, weights that do not fit.
    """
    if source.startswith("hf-hub:"):
        model: Any = timm.create_model(source, pretrained=True).eval()
        return Classifier(
            model, label_names(model.pretrained_cfg, model.num_classes), resolve_model_data_config(model), source
        )
    path = find_config(source)
    folder, config = path.parent, read_config(path)
    if task_of(source) != "classification":
        raise UserError(f"{source} holds a model for {task_of(source)}, not a classifier.")
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise unknown("model", architecture, timm.list_models())
    state = read_state_dict(folder / "model.safetensors")
    cfg = config.get("pretrained_cfg", {})
    args = config.get("model_args") or {}
    try:
        model = timm.create_model(architecture, pretrained=False, **{"num_classes": config["num_classes"], **args})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / 'config.json'}: the model cannot be built: {first_line(error)}") from None
    check_fit(model, state, str(folder))
    model.load_state_dict(state)
    names = label_names(config, config["num_classes"])
    if len(names) != config["num_classes"]:
        raise UserError(f"{folder / 'config.json'} names {len(names)} classes for a model of {config['num_classes']}.")
    data_config = resolve_model_data_config(pretrained_cfg=cfg, model=model)
    return Classifier(model.eval(), names, data_config, run_name(folder))


def label_names(cfg: Any, num_classes: int) -> list[str]:
    names = cfg.get("label_names")
    if names is not None and not isinstance(names, list | tuple):
        raise UserError("the model's configuration is damaged: its label_names are no list of names.")
    return [str(n) for n in names] if names else [str(i) for i in range(num_classes)]
