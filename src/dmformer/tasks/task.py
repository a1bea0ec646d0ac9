"""The `Task` record: everything in which tasks differ, so that no other code asks which task it handles."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..utils.display import Track
from ..utils.files import check_path
from ..utils.intervals import Score
from .recipe import Recipe
from .results import Summary

if TYPE_CHECKING:
    from .config import TrainedFolder
    from .job import Job
    from .view import View


OWN_TEST = "held-out photos of the run"
"""Stands for the photos that a run held out, as the data to score."""


@dataclass(frozen=True)
class Demo:
    """A recipe for one data set; `own` is the recipe for other data, `is_its` says whether data are the demo's."""

    own: str
    is_its: Callable[[str], bool]


@dataclass(frozen=True)
class Contest:
    """How `dmformer choose` compares models of a task.

    Attributes:
        models, image_sizes: What takes part by default.
        trial: Maps a recipe, an image size and a number of training images to the recipe of a trial: at this size, with
            a validation after each pass over the images, which `Recipe.lasting` then counts.
        scored: Scores a trained model, or an exported file in the form that `evaluate` takes, on a job's split "val" or
            "test": `scored(job, model, split)` is the task's figure with its 95 % interval.
        calibration: Maps opened data to the training photos that can calibrate an int8 file; UserError with the reason
            if there are none.
        head: The recipe's field that names what is built on the backbone; empty if there is no choice.
        heads: Its values.
        free_size: Whether exported files take photos of any size.
        multiple: Height and width of a model's input are padded to a multiple of this.
    """

    models: tuple[str, ...]
    image_sizes: tuple[int, ...]
    trial: Callable[[Any, int, int], Any]
    scored: Callable[[Any, Any, str], Score]
    calibration: Callable[[Any], list[str]]
    head: str = ""
    heads: tuple[str, ...] = ()
    free_size: bool = True
    multiple: int = 1


def later(package: str | None, module: str, name: str) -> Callable[..., Any]:
    """A function or a class of a package's module, which is imported when it is called: with torch, that takes seconds.

    Args:
        package: Where `module`, ".training", is looked up: `__package__`.
    """

    def called(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module, package), name)(*arguments, **options)

    return called


def holds_files(*beginnings: str) -> Callable[[str], bool]:
    """Whether a folder, or that of a file, holds a file, at any depth, whose name begins in one of these ways."""

    def holds(data: str) -> bool:
        folder = os.path.dirname(data) if os.path.isfile(data) else data
        return any(name.startswith(beginnings) for _, _, names in os.walk(folder or ".") for name in names)

    return holds


def _photos(recipe: Any) -> str:
    return recipe.data


def _check_scored(data: str) -> None:
    if data != OWN_TEST:
        check_path(data)


@dataclass(frozen=True)
class Task:
    """One task. Its functions import torch when they are called, never before.

    Attributes:
        name: In recipes and in config.json.
        model: What to call a trained model: "classifier".
        answer: Kind of a trained model's predictions: "labels", "tags", "masks" or "boxes". The packages above each
            have a table by this name: `predict.ANSWERS`, `export.kinds.KINDS`, `serve.opening.SERVICES`.
        recipe: The class of its recipes.
        recipes: Its recipes for the user's data and for demos, by name.
        demos: Which of them are for one data set.
        papers: Its recipes from papers, by name.
        open_data: Opens the data of a recipe and checks it as training needs it: `open_data(recipe, track)`. It imports
            torch only for data sets of other packages.
        view: Maps opened data to what the page on the data shows; None for other packages' data sets.
        recognises: Whether a path, by its folders and the names in them, can be data of this task.
        job: Maps a recipe and its opened data to its job; with None, the job opens it.
        open: Opens a run's folder, or hf-hub:owner/name if the task supports it, as a trained model.
        evaluate: Scores a source or a trained model: `evaluate(source, data, workers=, max_broken=, max_pixels=,
            progress=, say=, device=)`, with the task's own options of `dmformer eval` that are not None.
        summary: Maps scores and the split's name to what is printed.
        headline: Name of the figure by which models are compared.
        figure: Maps scores to that figure, from 0 to 1.
        check_places: Raises UserError if a recipe names a path that does not exist.
        check_data: The same for the --data of `dmformer eval`.
        photos: Maps a recipe to the location of its photos.
        default_data: Data scored by default; None requires --data.
        next_step: The command that is suggested at the end of a run; {best} stands for its best/ folder.
        options: Options of `dmformer eval` and `dmformer predict` that this task has, but not every task.
        check_options: Raises UserError for impossible values of these options.
        exports: Whether a model with this config.json, or with these options of its recipe, can be exported.
        conclude_folds: Scores a run in folds and writes its page and its ensemble, once all folds are trained:
            `conclude_folds(recipe, data, folder, facts)`; None if the task has no folds.
        contest: How models are compared; None if `dmformer choose` does not know the task.
    """

    name: str
    model: str
    answer: str
    recipe: type[Recipe]
    open_data: Callable[[Any, Track], Any]
    view: Callable[[Any], "View | None"]
    job: Callable[[Any, Any], "Job"]
    open: Callable[["str | TrainedFolder"], Any]
    evaluate: Callable[..., Any]
    summary: Callable[[Any, str], Summary]
    headline: str
    figure: Callable[[Any], float]
    check_places: Callable[[Any], None]
    recipes: Mapping[str, Callable[[], Recipe]] = field(default_factory=dict)
    demos: Mapping[str, Demo] = field(default_factory=dict)
    papers: Mapping[str, Callable[[], Recipe]] = field(default_factory=dict)
    check_data: Callable[[str], None] = _check_scored
    photos: Callable[[Any], str] = _photos
    default_data: str | None = None
    next_step: str = "dmformer predict {best} PHOTOS"
    recognises: Callable[[str], bool] = lambda data: False
    options: tuple[str, ...] = ()
    check_options: Callable[[Mapping[str, Any]], None] = lambda options: None
    exports: Callable[[Mapping[str, Any]], bool] = lambda stated: True
    conclude_folds: Callable[..., Summary] | None = None
    contest: Contest | None = None


def recipes_in(*modules: ModuleType) -> dict[str, Callable[[], Recipe]]:
    """Every public function of the modules, in order: their recipes."""
    return {
        name: recipe
        for module in modules
        for name, recipe in vars(module).items()
        if inspect.isfunction(recipe) and recipe.__module__ == module.__name__ and not name.startswith("_")
    }


def check_paths(*places: str | None) -> None:
    """Raise UserError for a path that is given but does not exist."""
    for place in places:
        if place is not None:
            check_path(place)


def figure_line(name: str, figure: Any) -> str:
    """A line with a figure, and its interval if it is a `Score`; a string is shown unchanged."""
    if isinstance(figure, str):
        return f"  {name:18}{figure:>7}"
    if isinstance(figure, float):
        return f"  {name:18}{figure:7.1%}"
    return f"  {name:18}{figure.value:7.1%}   95 % interval {figure.low:.1%} to {figure.high:.1%}"


def figure_lines(*figures: tuple[str, Any]) -> list[str]:
    """One line per figure that is not None."""
    return [figure_line(name, figure) for name, figure in figures if figure is not None]
