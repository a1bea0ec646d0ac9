"""config.json, which says what the model beside it is: found, read once and checked without importing torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..utils.errors import UserError, first_line
from ..utils.files import write_whole

Config = TypeVar("Config")

LARGEST_CONFIG = 16 * 2**20
"""Bytes; a larger config.json is refused."""

DEFAULT_TASK = "classification"
"""The task of a config.json that names none, as timm writes it, and of what lies on a hub."""

KEYS = {
    "backbone": ("architecture",),
    "backbone_args": ("model_args",),
    "class_names": ("label_names",),
    **{
        name: ("pretrained_cfg", name)
        for name in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    },
}
"""Where config.json keeps a field that timm calls otherwise; the others are found under their own names."""


@dataclass(frozen=True)
class TrainedFolder:
    """A folder with a trained model: the path of its config.json, and what that says."""

    path: Path
    stated: dict[str, Any]

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def task(self) -> str:
        """What the model is for: "classification", as of timm's folders, "segmentation" or "detection"."""
        return str(self.stated.get("task", DEFAULT_TASK))

    @property
    def name(self) -> str:
        """What the run is called."""
        return run_name(self.folder)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Tell a failure to build the model, whose arguments come from config.json, in one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each model has its own for arguments that it does not know
            raise UserError(f"{self.path}: the model cannot be built: {first_line(error)}") from None


def find_config(source: str) -> Path:
    """Where config.json of a run's best/ folder, or of the run's folder, is or should be."""
    folder = Path(source)
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    return folder / "config.json"


def read_folder(source: str | TrainedFolder) -> TrainedFolder:
    """A run's best/ folder, or the run's folder, with its config.json read; what is read already as it is.

    Raises:
        UserError: No such folder, or a config.json that is no model's.
    """
    if isinstance(source, TrainedFolder):
        return source
    path = find_config(source)
    return TrainedFolder(path, read_config(path))


def folder_for(task: str, source: str | TrainedFolder, what: str) -> TrainedFolder:
    """The folder of a model for a task, called `what` in the error; UserError where it is for another."""
    trained = read_folder(source)
    if trained.task != task:
        raise UserError(f"{source} holds a model for {trained.task}, not {what}.")
    return trained


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
        if isinstance(config["architecture"], str) and type(config["num_classes"]) is int:
            return config
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path} is not a model's configuration as timm writes it.")


def read_as(kind: type[Config], trained: TrainedFolder, what: str) -> Config:
    """What config.json says of the fields of a dataclass, each of the field's type.

    A field without a default must be there. Whole numbers pass for others, and lists for tuples.

    Args:
        kind: A dataclass whose fields are numbers, strings, dictionaries, tuples of those, or None.
        trained: Whose config.json is read.
        what: Whose configuration it should be, for the error: "a segmenter".

    Raises:
        UserError: A field that is missing or of another type.
    """
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        *above, key = keys = KEYS.get(field.name, (field.name,))
        place: Any = trained.stated
        for name in above:
            place = (place.get(name) or {}) if isinstance(place, Mapping) else place
        try:
            if not isinstance(place, Mapping):
                raise ValueError(f"its {'.'.join(above)} is no mapping")
            if key in place:
                values[field.name] = _typed(hints[field.name], place[key], ".".join(keys))
            elif field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"it has no {'.'.join(keys)}")
        except ValueError as error:
            raise UserError(f"{trained.path} is not {what}'s configuration: {error}.") from None
    return kind(**values)


def write_config(path: Path, task: str, config: Any) -> None:
    """Write the fields of a dataclass with `backbone` and `class_names` as config.json, which `read_as` reads."""
    stated: dict[str, Any] = {"task": task, "architecture": config.backbone, "num_classes": len(config.class_names)}
    for field in fields(config):
        *above, key = KEYS.get(field.name, (field.name,))
        place = stated
        for name in above:
            place = place.setdefault(name, {})
        place[key] = getattr(config, field.name)
    write_whole(path, json.dumps(stated, indent=2, ensure_ascii=False) + "\n")


def _typed(hint: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type of a field; ValueError with its name where it is of another."""
    origin, parts = get_origin(hint), get_args(hint)
    if NoneType in parts:
        return None if value is None else _typed(parts[0], value, name)
    if origin is tuple and isinstance(value, list | tuple):
        if parts[-1] is Ellipsis:
            return tuple(_typed(parts[0], each, name) for each in value)
        if len(value) == len(parts):
            return tuple(_typed(part, each, name) for part, each in zip(parts, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return value
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:
        return value
    shown = json.dumps(value, ensure_ascii=False)
    raise ValueError(f"its {name} is {shown if len(shown) <= 40 else shown[:40] + '…'}")


def trained_for(task: str, source: str) -> TrainedFolder | None:
    """The folder that a source of weights is, where it holds a model for this task."""
    if not find_config(source).is_file():
        return None
    trained = read_folder(source)
    return trained if trained.task == task else None


def run_name(folder: Path) -> str:
    """What a run is called: its folder's name."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "best" else folder.name
