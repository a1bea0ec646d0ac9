"""Check arguments before torch is imported."""

import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..nn.kernels import chosen_mode
from ..runtimes.card import is_exported
from ..tasks.config import find_config, read_folder
from ..tasks.table import TASKS, task_for
from ..tasks.task import Task
from ..utils.device import check_device
from ..utils.errors import UserError, unknown
from ..utils.files import check_path
from ..utils.model_names import model_names
from ..utils.pretrained import CHECKSUMS, name_of


def check_environment() -> None:
    try:
        chosen_mode()
    except ValueError as error:
        raise UserError(f"{error}.") from None


def check_threads(threads: int | None) -> None:
    if threads is not None and threads < 1:
        raise UserError(f"--threads is {threads}: it must be 1 or more.")


def use_threads(threads: int | None) -> None:
    """Set the number of threads that PyTorch uses on a CPU; None leaves PyTorch's default, one per core."""
    check_threads(threads)
    if threads is None:
        return
    import torch

    torch.set_num_threads(threads)


def check_writable(option: str, path: Path, overwrite: bool) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: a file cannot be written there.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: give another name, or --overwrite.")


def own_options(options: Any, task: Task) -> dict[str, Any]:
    """The checked options of a command that belong to a model's task, without those that have no value.

    Raises:
        UserError: An option was given that belongs only to other tasks, or a value is impossible.
    """
    for field in fields(options):
        owners = [other for other in TASKS.values() if field.name in other.options]
        if owners and field.name not in task.options and getattr(options, field.name) != field.default:
            *others, last = dict.fromkeys(f"{other.model}s" for other in owners)
            whose = " and ".join([*([", ".join(others)] if others else []), last])
            raise UserError(f"--{field.name.replace('_', '-')} is for {whose}; this is a {task.model}.")
    names = [field.name for field in fields(options) if field.name in task.options]
    own = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    task.check_options(own)
    return own


def check_model(name: str) -> None:
    ours = model_names()
    if name in ours or name.startswith(("hf-hub:", "local-dir:")):
        return
    theirs = model_names("timm")
    if name.partition(".")[0] not in theirs:
        raise unknown("model", name, [*ours, *theirs])


def check_source_or_name(source: str, heads: bool = False) -> None:
    """Check a run's folder, a hub id, this package's weights with their tag, or the name of a model from dmformer or
    timm, with `heads` perhaps +HEAD."""
    if Path(source).exists() or ("/" in source and ":" not in source):
        check_source(source)
    elif source not in CHECKSUMS:
        check_model(source.partition("+")[0] if heads else source)


def open_source(source: str, threads: int | None = None) -> tuple[Task, Any]:
    """The task of a trained model, and what to predict with or to open: an exported file opened in its runtime, a
    folder with its config.json read, or the name on a hub. For the latter two, PyTorch's number of threads is set."""
    check_threads(threads)
    if is_exported(source):
        from ..runtimes.exported import open_exported

        model = open_exported(source, threads)
        return TASKS[model.task], model
    use_threads(threads)
    if source.startswith("hf-hub:"):
        return task_for(None), source
    trained = read_folder(source)
    return task_for(trained), trained


def check_runs_on(device: str, source: str) -> None:
    """Raise UserError for a device that does not exist, or that cannot run the source, without importing torch."""
    check_device(device)
    if is_exported(source) and device not in ("auto", "cpu"):
        raise UserError(f"{source} is an exported file, which runs on the CPU: leave out --device {device}.")


def check_source(source: str, exported: bool = False) -> None:
    """Check a run's folder, a hub id or this package's weights, or with `exported` an exported file."""
    if source.startswith("hf-hub:") or name_of(source):
        return
    check_path(source)
    if exported and Path(source).is_file() and is_exported(source):
        return
    if is_exported(source) or source.endswith(".pt2"):
        raise UserError(f"{source} is an exported file: this command takes a run's best/ folder.")
    if Path(source).is_file():
        raise UserError(
            f"{source} is a file: convert a weights file into a folder first, "
            f"dmformer convert {shlex.quote(source)} OUT/."
        )
    if not find_config(source).is_file():
        raise UserError(f"{source} holds no config.json: give a run's best/ folder, as `dmformer train` writes it.")
