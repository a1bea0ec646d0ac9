"""Run folders: naming them, opening them, finding them again.

runs/<name>/recipe.yaml  metrics.csv  best/  last/  scores.json  report.html
"""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

from ..tasks.recipe import Recipe
from ..utils.errors import UserError
from ..utils.files import recover_folder


def check_folder(recipe: Recipe) -> None:
    """Raise UserError if a run folder would be overwritten, or a run cannot be resumed."""
    if recipe.resume:
        find_run(recipe)
    elif recipe.name is not None and not recipe.overwrite and (Path(recipe.out) / recipe.name).exists():
        raise UserError(
            f"{Path(recipe.out) / recipe.name} exists already: choose another --name, "
            "go on with it by --resume, or replace it by --overwrite."
        )


def open_folder(recipe: Recipe) -> Recipe:
    """Create the folder of a run, or find the one to resume; returns the recipe with the folder's name."""
    check_folder(recipe)
    if recipe.resume:
        return replace(recipe, name=find_run(recipe).name)
    folder = Path(recipe.out) / recipe.name if recipe.name else _numbered(recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}.") from None
    return replace(recipe, name=folder.name)


def find_run(recipe: Recipe) -> Path:
    """The folder of the run to resume: the one named, else the latest unfinished one in `recipe.out`."""
    out = Path(recipe.out)
    runs = [out / recipe.name] if recipe.name else sorted(out.glob("*/"), key=lambda p: p.stat().st_mtime)
    for folder in reversed(runs):
        if (folder / "recipe.yaml").is_file() and recover_folder(folder / "last"):
            return folder
    if recipe.name:
        raise UserError(f"{out / recipe.name} has no saved state to resume: start it without --resume.")
    raise UserError(f"{out} holds no run to resume.")


def _numbered(recipe: Recipe) -> Path:
    place = recipe.data if isinstance(recipe.data, str) else recipe.task
    data = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(place).stem).strip("-") or "data"
    number = 1
    while (folder := Path(recipe.out) / f"{data}-{recipe.model}-{number}").exists():
        number += 1
    return folder


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
    for name in ("best", "last", "last.old"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.csv", "scores.json", "report.html", "recipe.yaml"):
        (folder / name).unlink(missing_ok=True)
