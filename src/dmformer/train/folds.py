"""Training in folds: an ordinary run for each, in the folder of the whole, which is resumed as one."""

import shlex
import sys
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ..tasks.progress import history_facts
from ..tasks.recipe import FIXED, Recipe
from ..tasks.recipes import read_recipe
from ..tasks.results import Summary, fold_folder
from ..tasks.table import TASKS
from ..utils.files import write_whole, writing_to
from .loop import Stopped, start_processes, train
from .run_folder import clear, has_state, history, is_finished, open_folder, record


def train_folds(
    recipe: Recipe, data: Any, command: str = "", report_threads: int | None = None
) -> tuple[Path, Summary | None]:
    """Train a recipe that stands for several runs, one for each fold; finished folds of a resumed run are kept.

    Args:
        recipe: A recipe with `in_folds`.
        data: Its data, as the task's `open_data` returns it.
        command, report_threads: See `train`.

    Returns:
        The folder, and what is printed; None in all processes but the first.

    Raises:
        UserError, Stopped: As `train`.
    """
    first = start_processes(recipe).is_main_process
    with open_folder(recipe) if first else nullcontext() as opened:
        recipe = _of_first(opened)
        run, count = Path(recipe.out) / str(recipe.name), len(data.folds)
        if first:
            _begin(run, recipe, command)
        told = False
        for fold in range(1, count + 1):
            own = _of_first(_recipe_of(recipe, run, fold) if first else None)
            if own is None:
                continue
            if first:
                print(f"fold {fold} of {count}", file=sys.stderr)
            runs = 1 if told or own.resume else count - fold + 1
            told = told or runs > 1
            try:
                train(own, command, report_threads, data.of_fold(fold), last=False, runs=runs)
            except Stopped as stopped:
                again = ["dmformer", "train", "--resume", "--out", recipe.out, "--name", run.name]
                raise Stopped(
                    f"stopped in fold {fold} of {count}, state saved; continue with: {shlex.join(again)}",
                    stopped.number,
                ) from None
        summary = None
        if first:
            if report_threads is not None:
                torch.set_num_threads(report_threads)
            conclude: Any = TASKS[recipe.task].conclude_folds
            summary = conclude(recipe, data, run, history_facts(history(run)))
            record(run, "finished", "")
        start_processes(recipe).destroy_process_group()
    return run, summary


def _of_first(value: Any) -> Any:
    """The first process's value, in all of them."""
    return broadcast_object_list([value])[0]


def _begin(run: Path, recipe: Recipe, command: str) -> None:
    with writing_to(run, "free some space and try again"):
        if not recipe.resume:
            clear(run)
        write_whole(run / "recipe.yaml", recipe.to_yaml())
        record(run, "resumed" if recipe.resume else "started", command or "dmformer.train.folds.train_folds(recipe)")


def _recipe_of(recipe: Recipe, run: Path, fold: int) -> Recipe | None:
    """The recipe of a fold's run: to start it or to go on with it; None if it is finished."""
    folder = fold_folder(run, fold)
    place: dict[str, Any] = {"out": str(run), "name": folder.name}
    if not (recipe.resume and has_state(folder)):
        return replace(recipe, **place, fold=fold, resume=False, overwrite=True)  # type: ignore[call-arg]
    saved = read_recipe(folder / "recipe.yaml")
    if is_finished(folder) and saved.validations == recipe.validations:
        return None
    own = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.metadata.get("resume") != FIXED["resume"]}
    return replace(saved, **own | place)
