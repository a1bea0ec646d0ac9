"""Mistakes in the arguments, found before torch is imported."""

import difflib
import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..nn.kernels import chosen_mode
from ..runtimes.card import is_exported
from ..tasks.classification.recipes import ClassificationRecipe
from ..tasks.detection.recipes import DetectionRecipe
from ..tasks.pretraining.recipes import PretrainingRecipe
from ..tasks.recipe import Recipe
from ..tasks.segmentation.recipes import SegmentationRecipe
from ..utils.errors import UserError, unknown
from ..utils.model_names import model_names

NAMED_SETS = ("torch", "hfds", "hfids", "wds", "tfds")
"""Prefixes of the sets that timm knows by name."""

MASK_OPTIONS = ("masks", "reduce_zero_label", "ignore_index", "window", "scales", "flip")
"""Options that only segmenters have."""
BOX_OPTIONS = ("images", "threshold")
"""Options that only detectors have."""


def check_environment() -> None:
    try:
        chosen_mode()
    except ValueError as error:
        raise UserError(f"{error}.") from None


def use_threads(threads: int | None) -> None:
    """Have PyTorch compute with so many threads on a CPU; None leaves it as many as there are cores."""
    if threads is None:
        return
    import torch

    torch.set_num_threads(threads)


def check_path(path: str) -> None:
    if not Path(path).exists():
        near = difflib.get_close_matches(
            Path(path).name, [p.name for p in Path(path).parent.glob("*")] if Path(path).parent.is_dir() else [], n=1
        )
        hint = f"; did you mean {Path(path).parent / near[0]}?" if near else "."
        raise UserError(f"{path} does not exist{hint}")


def check_writable(option: str, path: Path, overwrite: bool) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: no file can be written there.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: give another name, or --overwrite.")


def check_places(recipe: Recipe) -> None:
    """The places that a recipe names exist."""
    places: list[str | None] = []
    if isinstance(recipe, ClassificationRecipe):
        check_data(recipe.data)
        places = [recipe.val_data, recipe.test_data]
    elif isinstance(recipe, PretrainingRecipe):
        places = [*recipe.data, *recipe.unlabelled, recipe.probe]
    elif isinstance(recipe, SegmentationRecipe):
        places = [recipe.data, recipe.masks]
    elif isinstance(recipe, DetectionRecipe):
        places = [recipe.data, recipe.images]
    for place in places:
        if place is not None:
            check_path(place)


def refuse_options(options: Any, kind: type, names: Sequence[str], whose: str) -> None:
    """Options that were given although they mean nothing for the model."""
    for field in fields(kind):
        if field.name in names and getattr(options, field.name) != field.default:
            raise UserError(f"--{field.name.replace('_', '-')} is for {whose}.")


def check_testing(window: int | None, scales: Sequence[float]) -> None:
    if window is not None and window < 32:
        raise UserError(f"--window is {window}: it must be 32 or more.")
    if not scales or min(scales) <= 0:
        raise UserError("--scales takes factors above 0, e.g. 0.75 1 1.25.")


def check_data(data: str) -> None:
    prefix, _, rest = data.partition("/")
    if data == "elpv" or (rest and prefix.lower() in NAMED_SETS) or Path(data).exists():
        return
    near = difflib.get_close_matches(prefix, ["elpv", *NAMED_SETS], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown data '{data}': {hint}Give a folder of class folders, a .tar of one, elpv, or a set's name such as "
        "torch/cifar10 or hfds/OWNER/NAME."
    )


def check_model(name: str) -> None:
    ours = model_names()
    if name in ours or name.startswith(("hf-hub:", "local-dir:")):
        return
    theirs = model_names("timm")
    if name.partition(".")[0] not in theirs:
        raise unknown("model", name, [*ours, *theirs])


def check_source_or_name(source: str, heads: bool = False) -> None:
    """A run's folder, a hub id, or the name of a model, ours or timm's, perhaps with +HEAD behind it."""
    if Path(source).exists() or ("/" in source and ":" not in source):
        check_source(source)
    else:
        check_model(source.partition("+")[0] if heads else source)


def opened_if_exported(source: str, threads: int | None = None) -> Any:
    """An exported file in its runtime; None for any other source, for which PyTorch is told its threads."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads is {threads}: it must be 1 or more.")
    if not is_exported(source):
        use_threads(threads)
        return None
    from ..runtimes.exported import open_exported

    return open_exported(source, threads)


def check_source(source: str, exported: bool = False) -> None:
    """A run's folder or a hub id, or perhaps an exported file."""
    if source.startswith("hf-hub:"):
        return
    check_path(source)
    if exported and Path(source).is_file() and is_exported(source):
        return
    if is_exported(source) or source.endswith(".pt2"):
        raise UserError(f"{source} is an exported file: here, give a run's best/ folder.")
    if Path(source).is_file():
        raise UserError(
            f"{source} is a file: make a weights file a folder first, dmformer convert {shlex.quote(source)} OUT/."
        )
    if not any((Path(source) / part / "config.json").is_file() for part in ("", "best")):
        raise UserError(f"{source} holds no config.json: give a run's best/ folder, as `dmformer train` writes it.")
