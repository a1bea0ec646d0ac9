"""Load and save weights. Files are untrusted: tensors are read, nothing in them is ever run."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from timm.data import create_transform, resolve_model_data_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from . import models as models  # registers them with timm
from .errors import UserError, unknown
from .files import whole_file

LARGEST_CONFIG = 16 * 2**20
"""Bytes; a larger config.json is refused."""


@dataclass(frozen=True)
class Classifier:
    """A model with what is needed to use it."""

    model: nn.Module
    class_names: list[str]
    data_config: dict[str, Any]

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The evaluation transform that the model was trained for: a PIL image to a tensor (3, H, W)."""
        return create_transform(**self.data_config)  # type: ignore[return-value]

    @property
    def at_least(self) -> int:
        """Shorter side in pixels that an image needs to have before it is transformed."""
        return round(max(self.data_config["input_size"][-2:]) / self.data_config["crop_pct"])


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or a .pth file, out of the wrappers `state_dict`, `model` and `state_dict_ema`.

    Raises:
        UserError: The file is missing, damaged, or holds anything but tensors in plain containers.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a .safetensors or .pth file.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a weights file: {_first_line(error)}") from None
    except Exception as error:  # pickle.UnpicklingError and whatever else a hostile file provokes
        raise UserError(f"{path} is refused, it needs more than tensors to be read: {_first_line(error)}") from None
    for wrapper in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise UserError(f"{path} holds no state dict: tensors by name are expected.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_weights(model: nn.Module, source: str, keep_head: bool = True) -> None:
    """Load weights into a model of the same architecture, strictly.

    Args:
        model: One of timm's or ours.
        source: A folder with model.safetensors, a weights file, or hf-hub:owner/name.
        keep_head: False leaves the classifier as it is, for another set of classes.
    """
    if source.startswith("hf-hub:"):
        state = timm.create_model(source, pretrained=True).state_dict()
    else:
        path = Path(source)
        state = read_state_dict(path / "model.safetensors" if path.is_dir() else path)
    own = model.state_dict()
    if not keep_head:
        config: Any = model.pretrained_cfg
        heads = config["classifier"]
        heads = (heads,) if isinstance(heads, str) else heads
        for name in [n for n in own if n.rpartition(".")[0] in heads]:
            state[name] = own[name]
    check_fit(own, state, source)
    model.load_state_dict(state)


def check_fit(own: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    """Raise UserError unless two state dicts have the same names and shapes."""
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    surplus = [n for n in state if n not in own]
    wrong = [n for n in own if n in state and state[n].shape != own[n].shape]
    if missing or surplus:
        what = f"lacks {missing[0]}" if missing else f"holds {surplus[0]}, which the model has not"
        raise UserError(f"{source} is of another architecture: it {what} ({len(missing) + len(surplus)} such tensors).")
    if wrong:
        name, has, wants = wrong[0], tuple(state[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise UserError(
            f"{source} is of another size or class count: {name} is {has}, not {wants} ({len(wrong)} such tensors)."
        )


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
    with whole_file(folder / "model.safetensors") as part:
        safetensors.torch.save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, part)
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
            model, _label_names(model.pretrained_cfg, model.num_classes), resolve_model_data_config(model)
        )
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{source} is not a folder: give a run's best/ folder, as `dmformer train` writes it.")
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    config = _read_config(folder / "config.json")
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise unknown("model", architecture, timm.list_models())
    state = read_state_dict(folder / "model.safetensors")
    cfg = config.get("pretrained_cfg", {})
    args = config.get("model_args") or {}
    try:
        model = timm.create_model(architecture, pretrained=False, **{"num_classes": config["num_classes"], **args})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / 'config.json'}: the model cannot be built: {_first_line(error)}") from None
    check_fit(model.state_dict(), state, str(folder))
    model.load_state_dict(state)
    names = _label_names(config, config["num_classes"])
    if len(names) != config["num_classes"]:
        raise UserError(f"{folder / 'config.json'} names {len(names)} classes for a model of {config['num_classes']}.")
    return Classifier(model.eval(), names, resolve_model_data_config(pretrained_cfg=cfg, model=model))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path.parent} holds no config.json: give a run's best/ folder, as `dmformer train` writes it."
        )
    if path.stat().st_size > LARGEST_CONFIG:
        raise UserError(f"{path} is refused: it is larger than {LARGEST_CONFIG >> 20} MB.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config["architecture"], str) and isinstance(config["num_classes"], int):
            return config
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        pass
    raise UserError(f"{path} is not a model's configuration as timm writes it.")


def _label_names(cfg: Any, num_classes: int) -> list[str]:
    names = cfg.get("label_names")
    return [str(n) for n in names] if names else [str(i) for i in range(num_classes)]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


__all__ = ["Classifier", "load_weights", "open_classifier", "read_state_dict", "save_classifier"]
