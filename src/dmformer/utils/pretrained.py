"""The weights in this package: their names, files and checksums, without importing torch."""

import hashlib
import json
from pathlib import Path

from .errors import UserError

FOLDER = Path(__file__).parents[1] / "models" / "pretrained"

CHECKSUMS = {"dmformer_n.dist_lite0": "8a64dac4c44ccf033a6f9c250b25481785b8dcd1d2a92d41a7f39ca82a748862"}
"""SHA-256 of each model.safetensors, by timm's name of the weights, "model.tag"; the default weights of a model first.

Each has a folder in `FOLDER`, of the same form as a run's best/, with a card that says how the weights were made.
"""


def tags(model: str) -> list[str]:
    """Tags of a model's weights in this package."""
    return [name.partition(".")[2] for name in CHECKSUMS if name.partition(".")[0] == model]


def name_of(source: str) -> str | None:
    """Full name of this package's weights that are meant by "dmformer_n" or "dmformer_n.dist_lite0"; None for other
    sources, and for a path that exists."""
    name = source if source in CHECKSUMS else f"{source}.{next(iter(tags(source)), '')}"
    return name if name in CHECKSUMS and not Path(source).exists() else None


def folder_of(source: str) -> Path:
    """The trained folder that a source means: that of this package's weights for their name, else the path itself."""
    name = name_of(source)
    return FOLDER / name if name else Path(source)


def check_file(path: Path) -> None:
    """Compare a file of this package's weights with its checksum; other files are accepted.

    Raises:
        UserError: The file is missing or damaged.
    """
    name = path.parent.name
    if path.parent.parent != FOLDER or name not in CHECKSUMS:
        return
    if not path.is_file():
        raise UserError(f"the weights {name} are missing from this installation of dmformer ({path}): reinstall it.")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != CHECKSUMS[name]:
            raise UserError(f"the weights {name} of this installation of dmformer are damaged ({path}): reinstall it.")


def class_names(folder: Path) -> list[str]:
    """Names of the classes that the weights in a folder were trained for."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["label_names"]


def no_weights(model: str, tag: str = "") -> UserError:
    """The error for a model without such weights."""
    there = ", ".join(CHECKSUMS)
    asked = f"{model}.{tag}" if tag else model
    return UserError(
        f"dmformer ships no weights for {asked}, only {there}. `dmformer convert FILE OUT/` makes a folder for "
        "--weights from the authors' files."
    )
