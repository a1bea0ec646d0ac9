"""Run folders: naming them, opening them, finding them again.

runs/<name>/recipe.yaml  metrics.csv  best/  last/  scores.json  report.html  commands.jsonl  run.lock
"""

import csv
import io
import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..report import CHECK
from ..runtimes.card import SUFFIXES
from ..tasks.recipe import FIXED, Recipe
from ..tasks.recipes import read_recipe
from ..tasks.results import fold_folder
from ..utils.errors import UserError
from ..utils.files import recover_folder, writing_to
from ..utils.lock import LOCK, holder, locked

COMMANDS = "commands.jsonl"
"""Every command of a run's life, one per line: its event, time, host and text."""

SOUP = "soup.json"
"""Which runs a soup is made of, and all scores."""

BEFORE_TRAINING = {"recipe.yaml", CHECK, COMMANDS, LOCK, "dmformer"}
"""What a run writes before it has a state to resume from; dmformer/ belongs to the tracker."""


def check_folder(recipe: Recipe) -> None:
    """Raise UserError if a run folder would be overwritten, or a run cannot be resumed."""
    if recipe.resume:
        folder = find_run(recipe)
        if running := holder(folder):
            raise UserError(f"{folder} is in use by a running command ({running}): wait for it, or stop it first.")
        check_unchanged(folder, recipe, FIXED)
    elif recipe.name is not None and not recipe.overwrite and _is_occupied(Path(recipe.out) / recipe.name):
        raise _exists(Path(recipe.out) / recipe.name)


def check_unchanged(folder: Path, recipe: Recipe, kind: Mapping[str, str], when: str = "") -> None:
    """Raise UserError if options of a kind (`FIXED`, `PER_EPOCH`) differ from those that a run was started with.

    Args:
        folder: The run's folder.
        recipe: The recipe to resume it with. The run's mean, std and precision are used where these are None or auto.
        kind: The kind of the options to compare.
        when: Restricts the statement of the error, e.g. " within an epoch".
    """
    saved = read_recipe(folder / "recipe.yaml")
    if type(saved) is not type(recipe):
        raise UserError(f"{folder} is a run of {saved.task}, not of {recipe.task}: leave the recipe's name out.")
    if changed := _with_its_choices(recipe, saved).changes(saved, kind):
        raise UserError(
            f"{folder} cannot be resumed{when} with {recipe.spelled(changed)}: it was started with "
            f"{saved.spelled(changed)}. Use the same options, or start a new run."
        )


@contextmanager
def open_folder(recipe: Recipe) -> Iterator[Recipe]:
    """Create the folder of a run, or find the one to resume, and keep other commands out of it until the end.

    A new folder in which no state was saved is removed at the end, so that the run can be started again.

    Yields:
        The recipe with the folder's name.
    """
    check_folder(recipe)
    folder, new = (find_run(recipe), False) if recipe.resume else _created(recipe)
    try:
        with locked(folder):
            if recipe.resume:
                recover_folder(folder / "last")
                recipe = _with_its_choices(recipe, read_recipe(folder / "recipe.yaml"))
            try:
                yield replace(recipe, name=folder.name)
            finally:
                if new and not has_state(folder):  # perhaps best/, if the disk was full for last/
                    shutil.rmtree(folder, ignore_errors=True)
    finally:
        if new:
            with suppress(OSError):  # something was saved
                folder.rmdir()


def find_run(recipe: Recipe) -> Path:
    """The folder of the run to resume: the one named, else the latest unfinished one in `recipe.out`."""
    out = Path(recipe.out)
    runs = [out / recipe.name] if recipe.name else sorted(out.glob("*/"), key=lambda p: p.stat().st_mtime)
    runs = [run for run in runs if (run / "recipe.yaml").is_file() and has_state(run)]
    unfinished = runs if recipe.name else [run for run in runs if not is_finished(run)]
    if unfinished:
        return next((run for run in reversed(unfinished) if not holder(run)), unfinished[-1])
    if recipe.name:
        raise UserError(f"{out / recipe.name} has no saved state to resume: start it without --resume.")
    if runs:
        raise UserError(
            f"{out} holds no unfinished run to resume. To train a finished one longer, name it and give more epochs or "
            f"iterations: --name {runs[-1].name}."
        )
    raise UserError(f"{out} holds no run to resume.")


def record(folder: Path, event: str, command: str) -> None:
    """Add a line to a run's history: it was started, resumed or finished."""
    line = {"event": event, "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "host": socket.gethostname()}
    with (folder / COMMANDS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "command": command}) + "\n")


def history(folder: Path) -> list[dict[str, str]]:
    """The lines of a run's history; empty for a run of an earlier version."""
    path, lines = folder / COMMANDS, []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError):  # cut off by a full disk
            lines.append(json.loads(line))
    return lines


def csv_text(rows: list[dict[str, float]]) -> str:
    """The rows of metrics.csv as text."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    return text.getvalue()


def clear(folder: Path) -> None:
    """Remove what an earlier run of this name left behind (`--overwrite`), and nothing else."""
    folds = [path.name for path in folder.glob("fold-*") if (path / "recipe.yaml").is_file()]
    for name in ("best", "last", "last.old", *folds):
        shutil.rmtree(folder / name, ignore_errors=True)
    exported = (f"{folder.name}{suffix}" for suffixes in SUFFIXES.values() for suffix in suffixes)
    written = ("metrics.csv", "out_of_fold.csv", "scores.json", "report.html", "recipe.yaml", SOUP, CHECK, COMMANDS)
    for name in (*written, *exported):
        (folder / name).unlink(missing_ok=True)


def _created(recipe: Recipe) -> tuple[Path, bool]:
    """The folder of a run to start, and whether nothing was in it before."""
    out = Path(recipe.out)
    with writing_to(out, "choose another --out, or free some space"):
        out.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            number += 1
            folder = out / (recipe.name or f"{_stem(recipe)}-{number}")
            try:
                folder.mkdir()  # fails if another command has created it in the meantime
                return folder, True
            except FileExistsError:
                if recipe.name is None:
                    continue
                occupied = _is_occupied(folder)
                if occupied and not recipe.overwrite:
                    raise _exists(folder) from None
                return folder, not occupied


def _stem(recipe: Recipe) -> str:
    place = recipe.data if isinstance(recipe.data, str) else recipe.task
    data = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(place).stem).strip("-") or "data"
    return f"{data}-{recipe.model}"


def _exists(folder: Path) -> UserError:
    return UserError(
        f"{folder} exists already: choose another --name, continue it with --resume, or replace it with --overwrite."
    )


def _is_occupied(folder: Path) -> bool:
    """Whether a path is a file, or a folder with more in it than a run that has not trained yet."""
    if folder.is_file():
        return True
    return folder.is_dir() and any(path.name not in BEFORE_TRAINING for path in folder.iterdir())


def is_unfinished(run: Path) -> bool:
    """Whether a run has saved a state to resume from, and has not finished."""
    return has_state(run) and not is_finished(run)


def has_state(run: Path) -> bool:
    """Whether a run, or the first of its folds, has saved a state to resume from."""
    places = (run, fold_folder(run, 1))
    return any((place / last).exists() for place in places for last in ("last", "last.old"))


def is_finished(run: Path) -> bool:
    """Whether a run has come to its end, with its report."""
    if events := history(run):
        return events[-1]["event"] == "finished"
    report, last = run / "report.html", run / "last"  # a run of an earlier version
    return report.exists() and last.exists() and report.stat().st_mtime >= last.stat().st_mtime


def _with_its_choices(recipe: Recipe, saved: Recipe) -> Recipe:
    """The recipe with a run's normalisation and precision where it states none."""
    precision: Any = saved.precision if recipe.precision == "auto" else recipe.precision
    return replace(recipe, mean=recipe.mean or saved.mean, std=recipe.std or saved.std, precision=precision)
