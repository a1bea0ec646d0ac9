"""config.json, which says what the model beside it is: found, checked and read without importing torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..utils.errors import UserError

Number = TypeVar("Number", int, float)

LARGEST_CONFIG = 16 * 2**20
"""Bytes; a larger config.json is refused."""


def find_config(source: str) -> Path:
    """Where config.json of a run's best/ folder, or of the run's folder, is or should be."""
    folder = Path(source)
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    return folder / "config.json"


def read_config(path: Path) -> dict[str, Any]:
    """A config.json as timm writes it; UserError for anything else."""
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: give a run's best/ folder, as `dmformer train` writes it.")
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


def task_of(source: str) -> str:
    """What a trained model is for: "classification", as of timm's folders and hubs, "segmentation" or "detection"."""
    if source.startswith("hf-hub:"):
        return "classification"
    return str(read_config(find_config(source)).get("task", "classification"))


def is_trained_for(task: str, source: str) -> bool:
    """Whether a source of weights is a run's folder with a model for this task."""
    return find_config(source).is_file() and task_of(source) == task


def run_name(folder: Path) -> str:
    """What a run is called: its folder's name."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "best" else folder.name


def three(kind: Callable[[Any], Number], values: Any) -> tuple[Number, Number, Number]:
    """Three numbers of a configuration, as for red, green and blue; TypeError or ValueError for anything else."""
    first, second, third = values
    return kind(first), kind(second), kind(third)


def perhaps(value: Any) -> int | None:
    """A whole number of a configuration, or none."""
    return None if value is None else int(value)
