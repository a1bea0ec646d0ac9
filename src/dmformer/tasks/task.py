"""The `Task` record: all in which one task differs from another, so that nobody else asks which one it is."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..utils.files import check_path
from .recipe import Recipe

if TYPE_CHECKING:
    from .config import TrainedFolder
    from .job import Job


@dataclass(frozen=True)
class Summary:
    """Scores as the command prints them: lines, then a table of classes if there is one."""

    lines: Sequence[str]
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def _photos(recipe: Any) -> str:
    return recipe.data


@dataclass(frozen=True)
class Task:
    """One task. Its functions import torch when they are called, never before.

    Attributes:
        name: In recipes and in config.json.
        model: What a trained model is called: "classifier".
        answer: What a trained model says of a photo: "labels", "masks" or "boxes". The rooms above have a table each,
            by this name, of what they make of it: `predict.ANSWERS`, `export.kinds.KINDS`, `serve.opening.SERVICES`.
        recipe: The class of its recipes.
        recipes: Its recipes by name.
        job: From a recipe to its job, the data opened.
        open: From a run's folder, or hf-hub:owner/name where that is possible, to a trained model.
        evaluate: Scores a source or a trained model: `evaluate(source, data, workers=, max_broken=, progress=, say=)`,
            and its own options of `dmformer eval` that are not None.
        summary: From scores and the split's name to what is printed.
        headline: The name of the figure by which two models are compared.
        figure: That figure of scores, from 0 to 1.
        check_places: Raises UserError for a recipe that names a place that is not there.
        check_data: The same for what is given as --data to be scored on.
        photos: Where the photos of a recipe lie.
        default_data: What is scored on if nothing is named; None asks for a name.
        options: Names of the options of `dmformer eval` and `dmformer predict` that not every task has, and this has.
        check_options: Raises UserError for values of these options that cannot be meant.
    """

    name: str
    model: str
    answer: str
    recipe: type[Recipe]
    job: Callable[[Any], "Job"]
    open: Callable[["str | TrainedFolder"], Any]
    evaluate: Callable[..., Any]
    summary: Callable[[Any, str], Summary]
    headline: str
    figure: Callable[[Any], float]
    check_places: Callable[[Any], None]
    recipes: Mapping[str, Callable[[], Recipe]] = field(default_factory=dict)
    check_data: Callable[[str], None] = check_path
    photos: Callable[[Any], str] = _photos
    default_data: str | None = None
    options: tuple[str, ...] = ()
    check_options: Callable[[Mapping[str, Any]], None] = lambda options: None


def recipes_in(*modules: ModuleType) -> dict[str, Callable[[], Recipe]]:
    """Every public function of modules of recipes, in their order."""
    return {
        name: recipe
        for module in modules
        for name, recipe in vars(module).items()
        if inspect.isfunction(recipe) and recipe.__module__ == module.__name__ and not name.startswith("_")
    }


def check_paths(*places: str | None) -> None:
    """Raise UserError for a place that is named and not there."""
    for place in places:
        if place is not None:
            check_path(place)


def figure_line(name: str, figure: Any) -> str:
    """A figure, with its interval if it is a `Score`; a string as it is."""
    if isinstance(figure, str):
        return f"  {name:18}{figure:>7}"
    if isinstance(figure, float):
        return f"  {name:18}{figure:7.1%}"
    return f"  {name:18}{figure.value:7.1%}   95 % interval {figure.low:.1%} to {figure.high:.1%}"


def figure_lines(*figures: tuple[str, Any]) -> list[str]:
    """Those figures that there are, a line each."""
    return [figure_line(name, figure) for name, figure in figures if figure is not None]
