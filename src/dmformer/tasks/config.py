"""config.json, which describes the model beside it: found, read once and checked without importing torch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from ..utils.errors import UserError, first_line
from ..utils.files import write_whole
from ..utils.pretrained import folder_of
from ..utils.typed import typed

Config = TypeVar("Config")

LARGEST_CONFIG = 16 * 2**20
"""Maximum size of a config.json in bytes."""

DEFAULT_TASK = "classification"
"""The task of a config.json that names none, as timm writes it, and of a model on a hub."""

KEYS = {
    "backbone": ("architecture",),
    "backbone_args": ("model_args",),
    "class_names": ("label_names",),
    **{
        name: ("pretrained_cfg", name)
        for name in ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    },
}
"""Where config.json keeps a field that timm names differently; other fields keep their own names."""


@dataclass(frozen=True)
class TrainedFolder:
    """A folder with a trained model: the path of its config.json, and its content."""

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
        """The model's task: "classification" (also for timm's folders), "segmentation" or "detection"."""
        return str(self.stated.get("task", DEFAULT_TASK))

    @property
    def name(self) -> str:
        """Name of the run."""
        return run_name(self.folder)

    @contextmanager
    def building(self) -> Iterator[None]:
        """Report a failure to build the model, whose arguments come from config.json, in one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each model raises its own error for unknown arguments
            raise UserError(f"{self.path}: the model cannot be built: {first_line(error)}") from None


def find_config(source: str) -> Path:
    """Where the config.json of a run's best/ folder, of the run's folder, or of this package's weights is or should
    be."""
    folder = folder_of(source)
    if not (folder / "config.json").is_file() and (folder / "best" / "config.json").is_file():
        folder = folder / "best"
    return folder / "config.json"


def read_folder(source: str | TrainedFolder) -> TrainedFolder:
    """Read config.json in a run's best/ folder, or the run's folder; a folder that is already read is returned
    unchanged.

    Raises:
        UserError: No such folder, or a config.json that does not describe a model.
    """
    if isinstance(source, TrainedFolder):
        return source
    path = find_config(source)
    return TrainedFolder(path, read_config(path))


def folder_for(task: str, source: str | TrainedFolder, what: str) -> TrainedFolder:
    """The folder of a model for a task, called `what` in the error; UserError if it is for another task."""
    trained = read_folder(source)
    if trained.task != task:
        raise UserError(f"{source} holds a model for {trained.task}, not {what}.")
    return trained


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json as timm writes it; UserError for anything else."""
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
    """Read config.json into a dataclass, each field checked against its type.

    A field without a default must be present. Whole numbers pass as floats, and lists as tuples.

    Args:
        kind: A dataclass whose fields are numbers, strings, dictionaries, tuples of those, or None.
        trained: The folder whose config.json is read.
        what: What it should configure, for the error: "a segmenter".

    Raises:
        UserError: A field is missing or has another type.
    """
    hints, values = get_type_hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        *above, key = keys = KEYS.get(field.name, (field.name,))
        place: Any = trained.stated
        for name in above:
            place = (place.get(name) or {}) if isinstance(place, Mapping) else place
        try:
            if not isinstance(place, Mapping):
                raise ValueError(f"its {'.'.join(above)} is not a mapping")
            if key in place:
                values[field.name] = typed(hints[field.name], place[key], ".".join(keys))
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


def trained_for(task: str, source: str) -> TrainedFolder | None:
    """The folder that the weights come from, if it holds a model for this task."""
    if not find_config(source).is_file():
        return None
    trained = read_folder(source)
    return trained if trained.task == task else None


def run_name(folder: Path) -> str:
    """Name of a run: its folder's name."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "best" else folder.name
